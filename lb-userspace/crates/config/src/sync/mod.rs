//! The `[sync]` table of a configuration.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use lb_model::units::counted;
use lb_sync::{Config, Key};

use super::{
    check_interface, duration_within, secret,
    tree::{About, Field, Problems, Table},
};

/// The port that peers listen at unless another is given.
const EXAMPLE: &str = "listen = \"10.0.0.2:3780\"";
const PEERS: &str = "peers = [\"10.0.0.3:3780\"]";
const MULTICAST: &str = "multicast = { group = \"239.0.0.7:3780\", interface = \"eth0\" }";
const RATE: &str = "rate = \"100Mbit\"";
/// The most peers that a node has.
const MOST_PEERS: usize = 15;
/// 100 Mbit/s in bytes.
const DEFAULT_RATE: NonZeroU32 = NonZeroU32::new(12_500_000).expect("it is not zero");
/// Less than 1 Mbit/s can't carry the flows that are born.
const LEAST_RATE: u64 = 125_000;
/// The node state is sent every 100 ms: a peer is not gone because two of them are lost.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(60));
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads `[sync]`; none if there is no such table, or it has a mistake.
pub(super) fn read_sync(root: &Table<'_>, doubts: &Problems<'_>) -> Option<Config> {
    let table = root.optional("sync")?.table("sync")?;
    let key = read_key(&table, doubts);
    let listen_field = table.required("listen", EXAMPLE);
    let listen = listen_field.as_ref().and_then(|field| field.parsed(EXAMPLE, address));
    let peers = read_peers(&table, listen);
    let node = table.optional("node").map(|field| {
        field.parsed("node = \"lb1\"", |text| {
            lb_model::rules::check_name(text).map(|()| text.to_owned())
        })
    });
    let node = node.unwrap_or_else(|| Some(host_name()));
    let multicast = table.optional("multicast").and_then(|field| field.table("sync.multicast"));
    let multicast = multicast.and_then(|table| read_multicast(&table, listen));
    let rate = table.optional("rate").and_then(|field| field.parsed(RATE, parse_rate));
    let timeout = table.optional("timeout").and_then(|field| {
        field.parsed("timeout = \"1s\"", |text| duration_within(text, TIMEOUT.0, TIMEOUT.1))
    });
    table.finish();
    Some(Config {
        node: node?,
        listen: listen?,
        peers,
        multicast,
        key: key?,
        rate: rate.unwrap_or(DEFAULT_RATE),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
    })
}

/// `key_file = "/etc/lb/sync.key"`, or `key = "..."`.
fn read_key(table: &Table<'_>, doubts: &Problems<'_>) -> Option<Key> {
    const HOW: &str = "64 hexadecimal digits, as 'lbctl sync key' makes them";
    let given = table.optional("key");
    let file = table.optional("key_file");
    match (given, file) {
        (Some(given), Some(_)) => {
            given.refuse("both `key` and `key_file` are given; keep one of them");
            None
        }
        (Some(given), None) => given.parsed(HOW, |text| {
            text.parse().map_err(|_| {
                format!("{} characters that are no key; write {HOW}", text.chars().count())
            })
        }),
        (None, Some(file)) => {
            let bytes = secret::read(&file, doubts, |path| {
                format!(
                    "make it on one node with '{}', and copy it to the others",
                    secret::make_key(path)
                )
            })?;
            let key = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
            if key.is_none() {
                let path = file.string("").unwrap_or_default();
                file.refuse_file(
                    About::File,
                    format!(
                        "{path} holds no key of 64 hexadecimal digits; copy it from another node, or make one for all with '{}'",
                        secret::make_key(path)
                    ),
                );
            }
            key
        }
        (None, None) => {
            table.refuse(
                "`key_file` is missing; add key_file = \"/etc/lb/sync.key\", and make it with 'lbctl sync key'",
            );
            None
        }
    }
}

fn read_peers(table: &Table<'_>, listen: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut peers = BTreeSet::new();
    let mut ordered = Vec::new();
    let Some(field) = table.required("peers", PEERS) else { return ordered };
    let items = field.strings(PEERS).unwrap_or_default();
    if items.is_empty() || items.len() > MOST_PEERS {
        field.refuse(format!(
            "{}; name 1 to {MOST_PEERS}, as {PEERS}",
            counted(items.len(), "peer")
        ));
    }
    for item in items {
        let Some(peer) = item.parsed(PEERS, address) else { continue };
        if let Some(listen) = listen {
            if peer == listen {
                item.refuse(format!("{peer} is this node's own `listen`; name the others"));
            }
            check_family(&item, peer, listen);
        }
        if !peers.insert(peer) {
            item.refuse(format!("{peer} is named twice; once is enough"));
        }
        ordered.push(peer);
    }
    ordered
}

fn check_family(field: &Field<'_>, address: SocketAddr, listen: SocketAddr) {
    if address.is_ipv4() != listen.is_ipv4() {
        let family = if listen.is_ipv4() { "IPv4" } else { "IPv6" };
        field.refuse(format!(
            "{address} is of another family than `listen`, {listen}; give an {family} address"
        ));
    }
}

fn read_multicast(table: &Table<'_>, listen: Option<SocketAddr>) -> Option<(SocketAddr, String)> {
    let field = table.required("group", MULTICAST)?;
    let group = field.parsed(MULTICAST, |text| {
        let group: SocketAddr = text
            .parse()
            .map_err(|_| format!("`{text}` is no address with a port; write {MULTICAST}"))?;
        match group.ip().is_multicast() && group.port() != 0 {
            true => Ok(group),
            false => {
                Err(format!("`{text}` is no multicast group; write one as \"239.0.0.7:3780\""))
            }
        }
    });
    if let (Some(group), Some(listen)) = (group, listen) {
        check_family(&field, group, listen);
    }
    let interface = table.required("interface", MULTICAST).and_then(|field| {
        field.parsed("interface = \"eth0\"", |text| check_interface(text).map(|()| text.into()))
    });
    Some((group?, interface?))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("`{text}` has no port; write \"{ip}:3780\""),
        Ok(IpAddr::V6(ip)) => format!("`{text}` has no port; write \"[{ip}]:3780\""),
        Err(_) => format!("`{text}` is no address with a port; write one as \"10.0.0.2:3780\""),
    })?;
    if address.port() == 0 {
        return Err(format!("`{text}` has port 0; a number from 1 to 65535 is expected"));
    }
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("`{text}` is no address of one node; write one as \"10.0.0.2:3780\""));
    }
    Ok(address)
}

/// Reads `10Mbit` or `1Gbit`, for a second; in bytes.
fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    let wrong =
        || format!("`{text}` is no rate; write bits in a second, as \"100Mbit\" or \"1Gbit\"");
    let digits = text.len() - text.trim_start_matches(|sign: char| sign.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let bits: u64 = match unit {
        "kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(bits).ok_or_else(wrong)? / 8;
    let rate = u32::try_from(bytes).ok().and_then(NonZeroU32::new);
    rate.filter(|_| bytes >= LEAST_RATE)
        .ok_or_else(|| format!("`{text}` is out of range; from 1Mbit to 34Gbit is possible"))
}

/// The machine's name.
#[must_use]
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // A machine may have a name that can't be a node's.
    match name.trim() {
        "" => "node".into(),
        name => name.chars().take(63).collect(),
    }
}

#[cfg(test)]
mod tests;
