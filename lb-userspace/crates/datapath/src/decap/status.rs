//! What decapsulators take and have counted, read from their pins.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map};
use lb_api::status::Count;
use lb_common::decap::{REASONS, Reason, Source, Unlisted};
use lb_model::prefix::Prefix;
use lb_model::{
    time,
    units::{format_count, format_duration},
};
use lb_netlink::query;
use serde::{Deserialize, Serialize};

use super::{
    SOURCES, UNLISTED, VERDICTS,
    lists::{self, ADDRESSES, List, Origin, VIPS, open_map},
    mode_name,
    pins::{PREFIX, Pins, file_name},
};

/// A decapsulator at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecapStatus {
    /// The interface.
    pub dev: String,
    /// `native`, `generic`, or `detached` if the interface has gone or lost the program.
    pub mode: String,
    /// The outer destinations that are taken.
    pub addresses: Vec<IpAddr>,
    /// The inner destinations that are taken; none: any, by a decapsulator of an older version.
    #[serde(default)]
    pub vips: Option<Vec<IpAddr>>,
    /// Which lists a process keeps as the host's addresses are.
    #[serde(default)]
    pub followed: Followed,
    /// The outer sources that are taken; none: any, by a decapsulator of an older version.
    #[serde(default)]
    pub sources: Option<Vec<Prefix>>,
    /// Packets and bytes by what became of them.
    pub counters: BTreeMap<String, Count>,
    /// The last packet from a source that is not taken; none: there was none since it was attached, or by a
    /// decapsulator of an older version.
    #[serde(default)]
    pub unlisted: Option<UnlistedSource>,
}

/// Which lists of a decapsulator a process keeps as the host's addresses are; the others are fixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The outer destinations.
    pub addresses: bool,
    /// The inner destinations.
    pub vips: bool,
}

impl Followed {
    /// Whether there is such a process.
    #[must_use]
    pub const fn any(self) -> bool {
        self.addresses || self.vips
    }
}

/// The last packet from a source that a decapsulator does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlistedSource {
    /// Its outer source.
    pub source: IpAddr,
    /// How many packets from such sources have come since the lists were made.
    pub packets: u64,
    /// How long ago it came.
    pub seconds_ago: u64,
}

impl fmt::Display for UnlistedSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, packets, seconds_ago } = self;
        let ago = format_duration(Duration::from_secs(*seconds_ago));
        match packets {
            1 => write!(
                out,
                "1 packet came from {source}, which is not among the sources, {ago} ago"
            ),
            _ => write!(
                out,
                "{} packets came from sources that are not listed, the last one from {source}, {ago} ago",
                format_count(*packets)
            ),
        }
    }
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
    interfaces: &BTreeMap<String, query::InterfaceSnapshot>,
) -> Result<DecapStatus> {
    let program = pins.program();
    // Two interfaces can have the same name but for dots; the program distinguishes them.
    let carrier = interfaces.iter().find(|(name, interface)| {
        file_name(name) == pinned && program.is_some() && interface.xdp_prog_id == program
    });
    let (dev, mode) = match carrier {
        Some((name, interface)) => (name.as_str(), mode_name(interface.xdp_generic)),
        None => (pinned, "detached"),
    };
    let (addresses, vips) = (lists::read(&pins.map(ADDRESSES))?, lists::read(&pins.map(VIPS))?);
    let is_followed = pins.is_followed();
    let follows = |list: &Option<List>| {
        is_followed && list.as_ref().is_some_and(|list| list.origin == Origin::Found)
    };
    Ok(DecapStatus {
        dev: dev.into(),
        mode: mode.into(),
        followed: Followed { addresses: follows(&addresses), vips: follows(&vips) },
        addresses: addresses.map(|list| list.addresses).unwrap_or_default(),
        vips: vips.map(|list| list.addresses),
        sources: sources_in(&pins.map(SOURCES))?,
        counters: counters_in(&pins.map(VERDICTS))?,
        unlisted: unlisted_in(&pins.map(UNLISTED))?,
    })
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

/// The last packet from a source that is not taken, of all CPUs.
fn unlisted_in(pin: &Path) -> Result<Option<UnlistedSource>> {
    let Some(data) = open_map(pin)? else { return Ok(None) };
    let map: Array<_, Unlisted> = Map::Array(data).try_into()?;
    let read = |index| map.get(&index, 0).with_context(|| format!("read {}", pin.display()));
    let all = (0..map.len()).map(read).collect::<Result<Vec<_>>>()?;
    let packets = all.iter().map(|one| one.packets).sum();
    let last = all.iter().max_by_key(|one| one.at).filter(|_| packets > 0);
    Ok(last.map(|last| {
        let ago = time::monotonic().saturating_sub(Duration::from_nanos(last.at));
        let source = IpAddr::from(last.source).to_canonical();
        UnlistedSource { source, packets, seconds_ago: ago.as_secs() }
    }))
}
