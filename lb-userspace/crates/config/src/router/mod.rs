//! The `[[virtual_router]]` tables of a configuration. The rules between them are in `clash`.

use std::{num::NonZeroU8, time::Duration};

use lb_model::{
    router::{Announce, Auth, Checksum, Family, OWNER, Router, RouterKey, Version, VirtualMac},
    rules,
};

use super::{
    address::{read_addresses, read_peers, read_second_path, read_source},
    check_interface, command, duration_within, secret,
    track::read_tracks,
    tree::{About, Field, Problems, Table},
};

/// The default priority (RFC 9568, 5.2.4).
const PRIORITY: NonZeroU8 = NonZeroU8::new(100).expect("it is not zero");
/// The least and the most interval of version 3: its field has 12 bits of centiseconds.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(40_950));
/// The default interval. RFC 9568 (6.1) has a second: 3.6 s until a peer has noticed.
const INTERVAL_OF_V3: Duration = Duration::from_millis(100);
/// The same of version 2, which can't have less.
const INTERVAL_OF_V2: Duration = Duration::from_secs(1);
/// The most interval of version 2: its field has 8 bits of seconds.
const MOST_SECONDS: u64 = 255;
/// The most that a wait may last.
const MOST_WAIT: Duration = Duration::from_secs(86_400);
/// Keys that are shorter are guessed.
const HMAC_BYTES: usize = 16;

/// A router, with the places of values that may clash with others.
pub(super) struct Read<'a> {
    pub(super) router: Router,
    pub(super) name: Option<Field<'a>>,
    pub(super) interface: Option<Field<'a>>,
    pub(super) vrid: Option<Field<'a>>,
    pub(super) addresses: Vec<Field<'a>>,
    pub(super) services: Vec<Field<'a>>,
    pub(super) virtual_mac: Option<Field<'a>>,
}

/// All routers of a file. A missing value is reported, and a stand-in takes its place.
pub(super) fn read_routers<'a>(root: &Table<'a>, doubts: &Problems<'_>) -> Vec<Read<'a>> {
    let tables = root.tables("virtual_router", "virtual_router");
    tables.into_iter().map(|table| read_router(table, doubts)).collect()
}

fn read_router<'a>(table: Table<'a>, doubts: &Problems<'_>) -> Read<'a> {
    const NAME: &str = "name = \"main\"";
    const INTERFACE: &str = "interface = \"eth0\"";
    let name_field = table.required("name", NAME);
    let name = name_field.as_ref().and_then(|field| {
        field.parsed(NAME, |text| rules::check_name(text).map(|()| text.to_owned()))
    });
    let interface_field = table.required("interface", INTERFACE);
    let interface = interface_field.as_ref().and_then(|field| {
        field.parsed(INTERFACE, |text| check_interface(text).map(|()| text.to_owned()))
    });
    let vrid_field = table.required("vrid", "vrid = 51");
    let vrid = vrid_field.as_ref().and_then(|field| field.integer::<u8>(1..256));
    let family = table
        .optional("family")
        .and_then(|field| field.word(&[("ipv4", Family::V4), ("ipv6", Family::V6)]));
    let (family, addresses) = read_addresses(&table, family);
    let version = read_version(&table, family);
    let priority = read_priority(&table);
    let is_owner = priority.get() == OWNER;
    let interval = read_interval(&table, version);
    let (preempt, preempt_delay) = read_preempt(&table, is_owner);
    let source = read_source(&table, family);
    let peers = read_peers(&table, family);
    let min_ttl = table.optional("min_ttl");
    let second_path = read_second_path(&table, family, interface.as_deref());
    if let (Some(field), true, None) = (&min_ttl, peers.is_empty(), &second_path) {
        field.refuse(
            "`min_ttl` is for unicast: multicast is never forwarded; remove it, or name `peers`",
        );
    }
    let auth = read_auth(&table, version, doubts);
    let checksum = read_checksum(&table, version, family);
    let key = RouterKey {
        family: family.unwrap_or(Family::V4),
        vrid: vrid.and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN),
    };
    let (virtual_mac, virtual_mac_field) = read_virtual_mac(&table, key);
    let accept = table.optional("accept").and_then(|field| field.flag());
    let announce = table.optional("announce").and_then(|f| f.table("virtual_router.announce"));
    let announce = announce.map(read_announce);
    let notify = table.optional("notify").and_then(|field| command(&field, "notify"));
    let tracks = read_tracks(&table, is_owner);
    for address in &addresses {
        for (what, holds) in [
            ("this router's own source", source == Some(address.0.address)),
            ("a peer", peers.contains(&address.0.address)),
        ] {
            if holds {
                let vip = address.0.address;
                address.1.refuse(format!("{vip} is {what}; a virtual address is of no one node"));
            }
        }
    }
    let fallback = table.path().to_owned();
    table.finish();
    let (addresses, places) = addresses.into_iter().unzip();
    let (tracks, services): (_, Vec<Option<Field<'a>>>) = tracks.into_iter().unzip();
    Read {
        router: Router {
            name: name.unwrap_or(fallback),
            interface: interface.unwrap_or_default(),
            key,
            version,
            priority,
            interval,
            preempt,
            preempt_delay,
            accept: accept.unwrap_or(true),
            addresses,
            source,
            peers,
            min_ttl: min_ttl.and_then(|field| field.integer(1..256)).unwrap_or(255),
            second_path,
            auth,
            checksum,
            virtual_mac,
            announce: announce.unwrap_or_default(),
            tracks,
            notify,
        },
        name: name_field,
        interface: interface_field,
        vrid: vrid.and(vrid_field),
        addresses: places,
        services: services.into_iter().flatten().collect(),
        virtual_mac: virtual_mac_field,
    }
}

fn read_version(table: &Table<'_>, family: Option<Family>) -> Version {
    let Some(field) = table.optional("version") else { return Version::default() };
    match field.integer::<u8>(2..4) {
        Some(2) if family == Some(Family::V6) => {
            field.refuse("version 2 knows IPv4 only; remove it: IPv6 is version 3");
            Version::V3
        }
        Some(2) => Version::V2,
        _ => Version::V3,
    }
}

fn read_priority(table: &Table<'_>) -> NonZeroU8 {
    let owner = table.optional("owner").and_then(|field| field.flag()).unwrap_or(false);
    let field = table.optional("priority");
    let configured = field.as_ref().and_then(|field| field.integer::<u8>(1..256));
    if let (true, Some(field), Some(1..=254)) = (owner, &field, configured) {
        field.refuse(format!("the owner's priority is {OWNER}; remove this, or `owner`"));
    }
    match owner {
        true => NonZeroU8::MAX,
        false => configured.and_then(NonZeroU8::new).unwrap_or(PRIORITY),
    }
}

fn read_interval(table: &Table<'_>, version: Version) -> Duration {
    let interval = table.optional("interval").and_then(|field| {
        field.parsed("interval = \"1s\"", |text| {
            if version == Version::V2 {
                let most = Duration::from_secs(MOST_SECONDS);
                let interval = duration_within(text, Duration::ZERO, most)?;
                return match interval.subsec_nanos() == 0 && !interval.is_zero() {
                    true => Ok(interval),
                    false => Err(format!(
                        "`{text}`, but version 2 counts whole seconds, from 1s to 255s; use version 3 for less"
                    )),
                };
            }
            let interval = duration_within(text, INTERVAL.0, INTERVAL.1)?;
            match interval.as_millis().is_multiple_of(10) {
                true => Ok(interval),
                false => Err(format!(
                    "`{text}` is no multiple of 10ms, which is what advertisements count in"
                )),
            }
        })
    });
    interval.unwrap_or(match version {
        Version::V2 => INTERVAL_OF_V2,
        Version::V3 => INTERVAL_OF_V3,
    })
}

fn read_preempt(table: &Table<'_>, is_owner: bool) -> (bool, Duration) {
    let field = table.optional("preempt");
    let preempt = field.as_ref().and_then(|field| field.flag()).unwrap_or(true);
    let delay_field = table.optional("preempt_delay");
    let delay = delay_field.as_ref().and_then(|field| {
        field.parsed("preempt_delay = \"5s\"", |text| {
            duration_within(text, Duration::ZERO, MOST_WAIT)
        })
    });
    if let (true, false, Some(field)) = (is_owner, preempt, &field) {
        field.refuse("the owner always preempts; remove this, or give a priority below 255");
    }
    if let (true, Some(field), Some(delay)) = (is_owner || !preempt, &delay_field, delay)
        && !delay.is_zero()
    {
        field.refuse(match is_owner {
            true => "the owner preempts at once; remove this, or give a priority below 255",
            false => "there is nothing to delay with `preempt = false`; remove one of them",
        });
    }
    (preempt, delay.unwrap_or_default())
}

/// `password` for version 2, `hmac_key_file` for version 3.
fn read_auth(table: &Table<'_>, version: Version, doubts: &Problems<'_>) -> Auth {
    let password = table.optional("password");
    let file = table.optional("hmac_key_file");
    let id_field = table.optional("hmac_key_id");
    let id = id_field.as_ref().and_then(|field| field.integer::<u8>(0..256));
    if let (Some(field), None) = (&id_field, &file) {
        field.refuse(
            "`hmac_key_id` is the number of a key; add hmac_key_file = \"/etc/lb/vrrp.key\"",
        );
    }
    if let (Some(password), Some(_)) = (&password, &file) {
        password.refuse("both `password` and `hmac_key_file` are given; keep one of them");
        return Auth::None;
    }
    if let Some(field) = password {
        if version == Version::V3 {
            field.refuse("a password is for version = 2; version 3 has none: use hmac_key_file");
        }
        let pass = field.parsed("password = \"secret\"", |text| {
            if text.is_empty() {
                return Err("a password of 0 bytes; 1 to 8 go into an advertisement".to_owned());
            }
            // keepalived sends the first eight bytes as well.
            let mut pass = [0; 8];
            pass.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
            if text.len() > pass.len() {
                let message = format!(
                    "a password of {} bytes, of which the first 8 go into an advertisement and count, \
                     as with keepalived",
                    text.len()
                );
                doubts.push_at(&field, message);
            }
            Ok(pass)
        });
        return pass.map_or(Auth::None, Auth::Pass);
    }
    let Some(file) = file else { return Auth::None };
    if version == Version::V2 {
        file.refuse("HMAC is for version 3; remove `version`, or use a password");
    }
    let secret = secret::read(&file, doubts, |path| {
        format!("make it on one node with '{}', and copy it to the others", secret::make_key(path))
    });
    let Some(mut secret) = secret else { return Auth::None };
    // Editors end files with a newline, which is no part of the key.
    while secret.last().is_some_and(u8::is_ascii_whitespace) {
        secret.pop();
    }
    if secret.len() < HMAC_BYTES {
        let message = format!(
            "a key of {} bytes; {HMAC_BYTES} are the least: make one for all nodes with '{}'",
            secret.len(),
            secret::make_key(file.string("").unwrap_or_default()),
        );
        file.refuse_file(About::File, message);
    }
    Auth::Hmac { id: id.unwrap_or(0), secret }
}

fn read_checksum(table: &Table<'_>, version: Version, family: Option<Family>) -> Checksum {
    let Some(field) = table.optional("checksum") else { return Checksum::default() };
    if version == Version::V2 || family == Some(Family::V6) {
        field.refuse("there is only one checksum for version 2 and for IPv6; remove this");
    }
    let words = [("pseudo-header", Checksum::PseudoHeader), ("message", Checksum::Message)];
    field.word(&words).unwrap_or_default()
}

/// `virtual_mac = true`, or the name of its interface.
fn read_virtual_mac<'a>(
    table: &Table<'a>,
    key: RouterKey,
) -> (Option<VirtualMac>, Option<Field<'a>>) {
    let Some(field) = table.optional("virtual_mac") else { return (None, None) };
    let interface = if field.is_flag() {
        field.flag().unwrap_or(false).then(|| match key.family {
            Family::V4 => format!("vrrp.{}", key.vrid),
            Family::V6 => format!("vrrp6.{}", key.vrid),
        })
    } else {
        field.parsed("virtual_mac = true, or virtual_mac = \"vrrp.51\"", |text| {
            check_interface(text).map(|()| text.to_owned())
        })
    };
    (interface.map(|interface| VirtualMac { interface }), Some(field))
}

fn read_announce(table: Table<'_>) -> Announce {
    let default = Announce::default();
    let repeat = table.optional("repeat").and_then(|field| field.integer(1..101));
    let wait = |key: &'static str, example: &str| {
        let field = table.optional(key)?;
        field.parsed(example, |text| duration_within(text, Duration::ZERO, MOST_WAIT))
    };
    let delay = wait("delay", "delay = \"5s\"").unwrap_or(default.delay);
    let refresh = wait("refresh", "refresh = \"60s\"").unwrap_or(default.refresh);
    table.finish();
    Announce { repeat: repeat.unwrap_or(default.repeat), delay, refresh }
}

#[cfg(test)]
mod tests;
