//! The addresses of a virtual router, and those of its peers.

use std::{collections::BTreeSet, net::IpAddr};

use lb_model::{
    router::{Family, SecondPath, VirtualAddress},
    rules,
};

use super::{
    check_interface,
    tree::{Field, Table},
};

const ADDRESSES: &str = "addresses = [\"10.0.0.100\"]";
const PEERS: &str = "peers = [\"10.0.0.3\"]";
const SECOND_PATH: &str = "second_path = { interface = \"eth1\", peers = [\"192.168.9.3\"] }";
/// The most addresses that an advertisement of 1,500 bytes can name over IPv6; over IPv4 the count is
/// a byte.
const MOST: (usize, usize) = (255, 90);

/// The word for a family.
const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The addresses of a router of `family`, or of that of the first address; each with its place.
pub(super) fn read_addresses<'a>(
    table: &Table<'a>,
    family: Option<Family>,
) -> (Option<Family>, Vec<(VirtualAddress, Field<'a>)>) {
    let mut read: Vec<(VirtualAddress, Field<'a>)> = Vec::new();
    let Some(field) = table.required("addresses", ADDRESSES) else { return (family, read) };
    let Some(items) = field.strings(ADDRESSES) else { return (family, read) };
    if items.is_empty() {
        field.refuse(format!("no address; name at least one, as {ADDRESSES}"));
    }
    let mut family = family;
    for item in items {
        let Some((address, item)) = read_address(item, &mut family) else { continue };
        if read.iter().any(|(known, _)| known.address == address.address) {
            item.refuse(format!("{} is named twice; once is enough", address.address));
            continue;
        }
        read.push((address, item));
    }
    let advertised = read.iter().filter(|(address, _)| address.advertised).count();
    match family {
        Some(family) if advertised == 0 && !read.is_empty() => field.refuse(format!(
            "no {} address that is advertised; an {} router has one at least",
            family_name(family),
            family_name(family)
        )),
        Some(family) => {
            let most = if family == Family::V4 { MOST.0 } else { MOST.1 };
            if advertised > most {
                field.refuse(format!(
                    "{advertised} addresses are more than an advertisement can name; give all but \
                     {most} advertised = false"
                ));
            }
        }
        None => {}
    }
    (family, read)
}

/// One address: `"10.0.0.100/24"`, or a table.
fn read_address<'a>(
    item: Field<'a>,
    family: &mut Option<Family>,
) -> Option<(VirtualAddress, Field<'a>)> {
    let plain = |address: IpAddr, prefix, family: Family| VirtualAddress {
        address,
        prefix,
        interface: None,
        label: None,
        nodad: true,
        advertised: Family::of(address) == family,
    };
    if !item.is_table() {
        let (address, prefix) = item.parsed(ADDRESSES, parse)?;
        let family = *family.get_or_insert(Family::of(address));
        return Some((plain(address, prefix, family), item));
    }
    let table = item.table("virtual_router.addresses")?;
    let field = table.required("address", "address = \"10.0.0.100\"");
    let interface = table.optional("interface").and_then(|field| {
        field.parsed("interface = \"eth1\"", |text| check_interface(text).map(|()| text.to_owned()))
    });
    let label_field = table.optional("label");
    let label = label_field.as_ref().and_then(|field| field.parsed("label = \"eth0:vip\"", label));
    let nodad = table.optional("nodad");
    let advertised = table.optional("advertised");
    let parsed = field.as_ref().and_then(|field| field.parsed("address = \"10.0.0.100\"", parse));
    let read = parsed.map(|(address, prefix)| {
        let router = *family.get_or_insert(Family::of(address));
        if let (IpAddr::V6(_), Some(label)) = (address, &label_field) {
            label.refuse("labels are for IPv4 addresses; remove it");
        }
        if let (IpAddr::V4(_), Some(nodad)) = (address, &nodad) {
            nodad.refuse("`nodad` is for IPv6 addresses; remove it");
        }
        let plain = plain(address, prefix, router);
        let configured = advertised.as_ref().and_then(|field| field.flag());
        if let (Some(true), false, Some(field)) = (configured, plain.advertised, &advertised) {
            field.refuse(format!(
                "advertisements over {} can't name {address}; remove `advertised`, or give it a router of its own",
                family_name(router)
            ));
        }
        VirtualAddress {
            interface,
            label,
            nodad: nodad.as_ref().and_then(|field| field.flag()).unwrap_or(plain.nodad),
            advertised: configured.unwrap_or(plain.advertised) && plain.advertised,
            ..plain
        }
    });
    table.finish();
    read.zip(field)
}

/// Reads `10.0.0.100` or `10.0.0.100/24`.
fn parse(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong =
        || format!("`{text}` is no address; write one as \"10.0.0.100\" or \"10.0.0.100/24\"");
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => all,
        Some(prefix) => prefix.parse().map_err(|_| wrong())?,
    };
    if !(1..=all).contains(&prefix) {
        return Err(format!("a prefix of {prefix} bits; from 1 to {all} are possible"));
    }
    match address {
        // RFC 9568, 5.2.9: a router's own link-local address is one of its virtual addresses.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {}
        address => rules::check_address(address)?,
    }
    Ok((address, prefix))
}

fn label(text: &str) -> Result<String, String> {
    // As the kernel has it, with the final zero.
    let fits = !text.is_empty() && text.len() <= 15 && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("`{text}` is no label; write up to 15 signs, as \"eth0:vip\""))
}

/// The unicast peers of a router; empty: multicast.
pub(super) fn read_peers(table: &Table<'_>, family: Option<Family>) -> Vec<IpAddr> {
    let field = table.optional("peers");
    field.map(|field| peers_of(&field, family)).unwrap_or_default()
}

fn peers_of(field: &Field<'_>, family: Option<Family>) -> Vec<IpAddr> {
    let mut known = BTreeSet::new();
    let items = field.strings(PEERS).unwrap_or_default();
    let read = items.iter().filter_map(|item| {
        let peer = unicast(item, PEERS, family)?;
        if !known.insert(peer) {
            item.refuse(format!("{peer} is named twice; once is enough"));
        }
        Some(peer)
    });
    read.collect()
}

/// The address of one node, of the router's family.
fn unicast(field: &Field<'_>, example: &str, family: Option<Family>) -> Option<IpAddr> {
    field.parsed(example, |text| {
        let address: IpAddr =
            text.parse().map_err(|_| format!("`{text}` is no IP address; write {example}"))?;
        if let Some(family) = family.filter(|family| *family != Family::of(address)) {
            let family = family_name(family);
            return Err(format!("{address} is no {family} address, as those of the router are"));
        }
        match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {}
            // Tests of a host with itself have peers there.
            address if address.is_loopback() => {}
            address => rules::check_address(address)?,
        }
        Ok(address)
    })
}

/// The source of advertisements.
pub(super) fn read_source(table: &Table<'_>, family: Option<Family>) -> Option<IpAddr> {
    unicast(&table.optional("source")?, "source = \"10.0.0.2\"", family)
}

/// The second way to the peers of a router on `interface`.
pub(super) fn read_second_path(
    table: &Table<'_>,
    family: Option<Family>,
    interface: Option<&str>,
) -> Option<SecondPath> {
    let table = table.optional("second_path")?.table("virtual_router.second_path")?;
    let field = table.required("interface", SECOND_PATH);
    let second = field.as_ref().and_then(|field| {
        field.parsed("interface = \"eth1\"", |text| check_interface(text).map(|()| text.to_owned()))
    });
    if let (Some(field), Some(second)) = (&field, &second)
        && Some(second.as_str()) == interface
    {
        field.refuse(format!("{second} is the first path already; name another interface"));
    }
    let source = read_source(&table, family);
    let peers = table.required("peers", SECOND_PATH).map(|field| {
        let peers = peers_of(&field, family);
        if peers.is_empty() {
            field.refuse(format!("no peer; write {SECOND_PATH}"));
        }
        peers
    });
    table.finish();
    Some(SecondPath { interface: second?, source, peers: peers? })
}
