//! The layouts of maps: that of this version, and the older ones that were released and can be
//! taken over.
//!
//! An older layout is a file here, written when the next one came and frozen since. What a map of it
//! has in common with today's is taken over as it is. Layout 2 only gave a meaning to bytes that were zero, and has its
//! marks of SYNs in a map of another name, which begins empty. Layout 3 made the keys of flows longer: [`v2`] turns one
//! into the other, and [`super::migrate`] asks it to; its log of pins has notes of another form, and begins empty.

use std::{collections::BTreeMap, fs, io, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use lb_common::{
    abi::{
        self, ABI_VERSION, Backend, BackendCounter, ConnectionKey, Flow, FlowKey, Fragment,
        FragmentKey, NatConnection, NatConnectionKey, OwnMac, PeerKey, PinLease, PinLogHead,
        PinNote, ReturnCounter, ReverseKey, ReversePrefix, Service, ServiceKeyV4, ServiceKeyV6,
        TokenBucket, VerdictCounter, VipKey,
    },
    service_index::{self, Bucket, Entry},
    verdict::REASONS,
    wide::{PORTS_PER_SERVICE, PortPrefix, VipPrefix, WideKey},
};
use lb_model::settings::Limits;

mod v1;
pub(crate) mod v2;

// From linux/bpf.h, enum bpf_map_type.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
/// Kind of `RINGS`.
pub(crate) const ARRAY_OF_MAPS: u32 = 12;

/// A map's name, kind, key and value size, and entries for these limits and this many CPUs.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Its name.
    pub name: &'static str,
    kind: u32,
    key: usize,
    value: usize,
    /// Its entries.
    pub entries: fn(&Limits, u32) -> u32,
    /// Whether a set without it is whole: it holds nothing that forwarding needs, and is made when
    /// it is missing.
    pub is_spare: bool,
}

impl Shape {
    const fn spare(self) -> Self {
        Self { is_spare: true, ..self }
    }

    /// Whether a map of the other shape is a map of this one, but for its entries.
    fn is_like(&self, other: &Self) -> bool {
        (self.kind, self.key, self.value) == (other.kind, other.key, other.value)
    }
}

const fn shape<K, V>(name: &'static str, kind: u32, entries: fn(&Limits, u32) -> u32) -> Shape {
    shape_of(name, kind, (size_of::<K>(), size_of::<V>()), entries)
}

const fn shape_of(
    name: &'static str,
    kind: u32,
    (key, value): (usize, usize),
    entries: fn(&Limits, u32) -> u32,
) -> Shape {
    Shape { name, kind, key, value, entries, is_spare: false }
}

/// Whether a map of a set of layout `version` is one of this layout, too, but for its entries.
pub(crate) fn is_shared(version: u32, there: &Shape, here: &Shape) -> bool {
    let is_log = matches!(here.name, "PIN_LOG" | "PIN_LOG_HEADS");
    there.is_like(here) && !(is_log && version < NEW_PIN_NOTES)
}

/// The first layout whose notes of pins have today's form.
const NEW_PIN_NOTES: u32 = 3;

/// The maps of this version.
pub(crate) const SHAPES: [Shape; 31] = [
    shape::<u32, Bucket>("SERVICE_INDEX", ARRAY, |limits, _| buckets(limits)),
    shape::<u32, Entry>("SERVICE_ENTRIES", ARRAY, |limits, _| limits.services),
    shape::<ServiceKeyV4, Service>("SERVICES_V4", HASH, |limits, _| limits.services),
    shape::<ServiceKeyV6, Service>("SERVICES_V6", HASH, |limits, _| limits.services),
    shape::<WideKey, Service>("WIDE_SERVICES", HASH, |limits, _| limits.services),
    shape::<VipPrefix, u32>("WIDE_VIPS", LPM_TRIE, |limits, _| limits.services),
    shape::<PortPrefix, u32>("WIDE_PORTS", LPM_TRIE, |limits, _| {
        limits.services * PORTS_PER_SERVICE
    }),
    shape::<u32, u32>("WIDE_GROUPS", ARRAY, |_, _| 1),
    shape::<u32, u32>("RINGS", ARRAY_OF_MAPS, |limits, _| limits.services),
    shape::<u32, Backend>("BACKENDS", ARRAY, |limits, _| limits.backends + 1),
    shape::<FlowKey, Flow>("PINS", HASH, |limits, _| limits.pins),
    shape::<FlowKey, Flow>("TRACKED", LRU_HASH, |limits, _| limits.tracked_flows),
    shape::<ConnectionKey, Flow>("CONNECTIONS", LRU_HASH, |limits, _| limits.connections),
    shape::<FragmentKey, Fragment>("FRAGMENTS", LRU_HASH, |limits, _| limits.fragments),
    shape::<VipKey, u32>("VIPS", HASH, |limits, _| limits.services),
    shape::<u32, OwnMac>("OWN_MACS", ARRAY, |_, _| abi::OWN_MACS),
    shape::<u32, VerdictCounter>("VERDICTS", ARRAY, |_, cpus| REASONS * cpus),
    shape::<u32, BackendCounter>("BACKEND_COUNTERS", ARRAY, |limits, cpus| {
        (limits.backends + 1) * cpus
    }),
    shape::<u32, TokenBucket>("SYN_BUDGETS", ARRAY, |limits, cpus| limits.services * cpus),
    shape::<u32, u32>("SYN_MARKS", ARRAY, |_, _| abi::SYN_MARKS),
    shape::<u32, PinNote>("PIN_LOG", ARRAY, |_, cpus| abi::PIN_NOTES * cpus).spare(),
    shape::<u32, PinLogHead>("PIN_LOG_HEADS", ARRAY, |_, cpus| cpus).spare(),
    shape::<u32, PinLease>("PIN_LEASE", ARRAY, |_, _| 1).spare(),
    shape::<PeerKey, u32>("PEER_MACS", HASH, |_, _| abi::PEER_MACS).spare(),
    shape::<ReverseKey, u32>("REVERSE_NAT", HASH, |limits, _| limits.backends).spare(),
    shape::<ReversePrefix, u32>("REVERSE_RANGES", LPM_TRIE, |limits, _| {
        limits.backends * PORTS_PER_SERVICE
    })
    .spare(),
    shape::<u32, u32>("NAT_BACKENDS", ARRAY, |_, _| 1).spare(),
    shape::<u32, u32>("RETURN_EGRESS", ARRAY, |_, _| abi::RETURN_EGRESS).spare(),
    shape::<u32, ReturnCounter>("RETURN_COUNTERS", ARRAY, |limits, cpus| {
        (limits.backends + 1) * cpus
    })
    .spare(),
    shape::<NatConnectionKey, NatConnection>("NAT_CONNECTIONS", LRU_HASH, |limits, _| {
        limits.nat_connections
    })
    .spare(),
    shape::<u32, u64>("HANDSHAKES", ARRAY, |_, _| abi::HANDSHAKES).spare(),
];

/// Maps that earlier versions pinned beside those of this layout, and that nothing asks any more.
const RETIRED: [&str; 1] = ["OPENINGS"];

/// Removes the pins of the [`RETIRED`] maps in `folder`, with which the maps end.
///
/// # Errors
///
/// If the kernel refuses it.
pub(crate) fn unpin_retired(folder: &Path) -> Result<()> {
    for pin in RETIRED.map(|name| folder.join(name)) {
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", pin.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Buckets of the services' index.
pub(crate) const fn buckets(limits: &Limits) -> u32 {
    service_index::buckets(limits.services)
}

/// The maps of a version's layout; none if this version can't read it.
pub(crate) const fn of(version: u32) -> Option<&'static [Shape]> {
    match version {
        ABI_VERSION => Some(&SHAPES),
        1 => Some(&v1::SHAPES),
        2 => Some(&v2::SHAPES),
        _ => None,
    }
}

/// The limits that the maps pinned in `folder` have; where one is missing, the wanted one.
///
/// # Errors
///
/// If a map is not what the layout has under its name.
pub(crate) fn pinned_limits(
    folder: &Path,
    shapes: &[Shape],
    wanted: Limits,
    cpus: u32,
) -> Result<Limits> {
    let mut found = BTreeMap::new();
    for shape in shapes {
        let path = folder.join(shape.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let kind = info.map_type().map(|kind| kind as u32).unwrap_or(0);
        let is = (kind, info.key_size() as usize, info.value_size() as usize);
        ensure!(
            is == (shape.kind, shape.key, shape.value),
            "{}: a map of type {}, key {} and value {} bytes, where its layout has type {}, {} \
             and {}; `lbctl detach` removes it, and forwarding stops until lbd is started again",
            path.display(),
            is.0,
            is.1,
            is.2,
            shape.kind,
            shape.key,
            shape.value,
        );
        found.insert(shape.name, info.max_entries());
    }
    let of = |name, wanted| found.get(name).copied().unwrap_or(wanted);
    let limits = Limits {
        services: of("RINGS", wanted.services),
        backends: found.get("BACKENDS").map_or(wanted.backends, |entries| entries - 1),
        pins: of("PINS", wanted.pins),
        tracked_flows: of("TRACKED", wanted.tracked_flows),
        nat_connections: of("NAT_CONNECTIONS", wanted.nat_connections),
        connections: of("CONNECTIONS", wanted.connections),
        fragments: of("FRAGMENTS", wanted.fragments),
        icmp_errors: wanted.icmp_errors,
    };
    for shape in shapes {
        let entries = (shape.entries)(&limits, cpus);
        let is = of(shape.name, entries);
        ensure!(
            is == entries,
            "{}: {is} entries where the other maps ask for {entries}; `lbctl detach` removes them \
             all, and forwarding stops until lbd is started again",
            folder.join(shape.name).display(),
        );
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the maps of an older layout that a set of today's has as they are, and of the others.
    fn divided(version: u32) -> (Vec<&'static str>, Vec<&'static str>) {
        let limits = Limits { services: 77, backends: 99, ..Limits::default() };
        of(version).unwrap().iter().map(|then| then.name).partition(|name| {
            let then = of(version).unwrap().iter().find(|shape| shape.name == *name).unwrap();
            let now = SHAPES.iter().find(|shape| shape.name == *name);
            now.is_some_and(|now| {
                let alike = is_shared(version, then, now);
                let entries = ((then.entries)(&limits, 3), (now.entries)(&limits, 3));
                assert!(!alike || entries.0 == entries.1, "{name}: {entries:?}");
                alike
            })
        })
    }

    /// Maps are shared between an older set and one of today's, and read by today's types.
    #[test]
    fn every_map_of_an_older_layout_but_flows_marks_and_logs_is_taken_as_it_is() {
        let (shared, others) = divided(1);
        assert_eq!((shared.len(), others), (13, vec!["PINS", "TRACKED", "SYN_SEEN"]));
        let (shared, others) = divided(2);
        let replaced = vec!["PINS", "TRACKED", "PIN_LOG", "PIN_LOG_HEADS"];
        assert_eq!((shared.len(), others), (22, replaced));
    }
}
