//! What decapsulators take and have counted, read from their pins.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use lb_common::{
    abi::VipKey,
    decap::{REASONS, Reason, Source},
};
use serde::{Deserialize, Serialize};

use super::{
    ADDRESSES, SOURCES, VERDICTS, VIPS, mode_name,
    pins::{PREFIX, Pins, file_name},
};
use crate::{flows::Prefix, netlink::query, status::Count};

/// A decapsulator at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecapStatus {
    /// The interface.
    pub dev: String,
    /// `native`, `generic`, or `detached` if the interface has gone or lost the program.
    pub mode: String,
    /// The outer destinations that are taken.
    pub addresses: Vec<IpAddr>,
    /// The inner destinations that are taken; empty: any, by a decapsulator of an older version.
    pub vips: Vec<IpAddr>,
    /// The outer sources that are taken; none: any, by a decapsulator of an older version.
    #[serde(default)]
    pub sources: Option<Vec<Prefix>>,
    /// Packets and bytes by what became of them.
    pub counters: BTreeMap<String, Count>,
}

/// All decapsulators under `pin_dir`, by interface.
///
/// # Errors
///
/// If the pins can't be read.
pub fn status(pin_dir: &Path) -> Result<Vec<DecapStatus>> {
    let folder = match fs::read_dir(pin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder.with_context(|| format!("read {}", pin_dir.display()))?,
    };
    let interfaces = query::interfaces()?;
    let mut all = Vec::new();
    for entry in folder {
        let name = entry.with_context(|| format!("read {}", pin_dir.display()))?.file_name();
        let Some(pinned) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let pins = Pins { folder: pin_dir.join(&name) };
        all.push(status_of(pinned, &pins, &interfaces)?);
    }
    all.sort_by(|a, b| a.dev.cmp(&b.dev));
    Ok(all)
}

fn status_of(
    pinned: &str,
    pins: &Pins,
    interfaces: &BTreeMap<String, query::Interface>,
) -> Result<DecapStatus> {
    let program = match PinnedLink::from_pin(pins.link()) {
        Ok(link) => Some(FdLink::from(link).info()?.program_id()),
        Err(_) => None,
    };
    // Two interfaces can have the same name but for dots; the program tells which it is.
    let carrier = interfaces.iter().find(|(name, interface)| {
        file_name(name) == pinned && program.is_some() && interface.xdp_prog_id == program
    });
    let (dev, mode) = match carrier {
        Some((name, interface)) => (name.as_str(), mode_name(interface.xdp_generic)),
        None => (pinned, "detached"),
    };
    Ok(DecapStatus {
        dev: dev.into(),
        mode: mode.into(),
        addresses: addresses_in(&pins.map(ADDRESSES))?,
        vips: addresses_in(&pins.map(VIPS))?,
        sources: sources_in(&pins.map(SOURCES))?,
        counters: counters_in(&pins.map(VERDICTS))?,
    })
}

fn addresses_in(pin: &Path) -> Result<Vec<IpAddr>> {
    let Some(data) = open_map(pin)? else { return Ok(Vec::new()) };
    let map: HashMap<_, VipKey, u32> = Map::HashMap(data).try_into()?;
    let keys: Result<Vec<_>, _> = map.keys().collect();
    let keys = keys.with_context(|| format!("read {}", pin.display()))?;
    let mut addresses: Vec<_> = keys.into_iter().map(address_of).collect();
    addresses.sort();
    Ok(addresses)
}

/// The prefixes of a list; none if there is no such map.
fn sources_in(pin: &Path) -> Result<Option<Vec<Prefix>>> {
    let Some(data) = open_map(pin)? else { return Ok(None) };
    let map: Array<_, Source> = Map::Array(data).try_into()?;
    let mut prefixes = Vec::new();
    for index in 0..map.len() {
        let source = map.get(&index, 0).with_context(|| format!("read {}", pin.display()))?;
        if source.used != 0 {
            prefixes.push(prefix_of(&source));
        }
    }
    Ok(Some(prefixes))
}

/// The inverse of [`super::source_of`].
fn prefix_of(source: &Source) -> Prefix {
    let [high, low] = source.address.map(u64::from_be);
    let length = source.mask.map(u64::count_ones).iter().sum::<u32>() as u8;
    let address = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
    match address.to_ipv4_mapped().filter(|_| length >= 96) {
        Some(v4) => Prefix::new(v4.into(), length - 96),
        None => Prefix::new(address.into(), length),
    }
}

fn counters_in(pin: &Path) -> Result<BTreeMap<String, Count>> {
    let mut counters = BTreeMap::new();
    let Some(data) = open_map(pin)? else { return Ok(counters) };
    let map: Array<_, [u64; 2]> = Map::Array(data).try_into()?;
    for index in 0..map.len() {
        let [packets, bytes] =
            map.get(&index, 0).with_context(|| format!("read {}", pin.display()))?;
        if packets > 0 {
            let count: &mut Count = counters.entry(reason_name(index % REASONS)).or_default();
            count.packets += packets;
            count.bytes += bytes;
        }
    }
    Ok(counters)
}

/// The word for a counter.
fn reason_name(index: u32) -> String {
    Reason::ALL.get(index as usize).map_or("unknown", |reason| reason.name()).into()
}

/// The map pinned at `pin`; none if there is no such pin.
fn open_map(pin: &Path) -> Result<Option<MapData>> {
    if !pin.exists() {
        return Ok(None);
    }
    MapData::from_pin(pin).map(Some).with_context(|| format!("open {}", pin.display()))
}

fn address_of(key: VipKey) -> IpAddr {
    IpAddr::from(key.address).to_canonical()
}
