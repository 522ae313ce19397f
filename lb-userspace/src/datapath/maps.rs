//! The maps by name: where they are pinned, how large they are, and a typed handle of each.

use std::{collections::BTreeMap, io, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapInfo};
use lb_common::{
    abi::{
        self, Backend, BackendCounter, ConnectionKey, Flow, FlowKey, FlowValue, Fragment,
        FragmentKey, OwnMac, Service, ServiceKeyV4, ServiceKeyV6, Slot, SynBudget, VerdictCounter,
        VipKey,
    },
    service_index::{self, Bucket, Entry},
    verdict::REASONS,
};

use super::sys::{self, Table};
use crate::settings::Limits;

// From linux/bpf.h, enum bpf_map_type.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const ARRAY_OF_MAPS: u32 = 12;

/// A map's name, kind, key and value size, and entries for these limits and this many CPUs.
struct Shape {
    name: &'static str,
    kind: u32,
    key: usize,
    value: usize,
    entries: fn(&Limits, u32) -> u32,
}

const fn shape<K, V>(name: &'static str, kind: u32, entries: fn(&Limits, u32) -> u32) -> Shape {
    Shape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

const SHAPES: [Shape; 16] = [
    shape::<u32, Bucket>("SERVICE_INDEX", ARRAY, |limits, _| buckets(limits)),
    shape::<u32, Entry>("SERVICE_ENTRIES", ARRAY, |limits, _| limits.services),
    shape::<ServiceKeyV4, Service>("SERVICES_V4", HASH, |limits, _| limits.services),
    shape::<ServiceKeyV6, Service>("SERVICES_V6", HASH, |limits, _| limits.services),
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
    shape::<u32, SynBudget>("SYN_BUDGETS", ARRAY, |limits, cpus| limits.services * cpus),
    shape::<u32, u32>("SYN_SEEN", PERCPU_ARRAY, |_, _| abi::SYN_SEEN),
];

/// Buckets of the services' index.
pub const fn buckets(limits: &Limits) -> u32 {
    service_index::buckets(limits.services)
}

/// Sizes of every map by name.
pub fn sizes(limits: &Limits, cpus: u32) -> BTreeMap<&'static str, u32> {
    SHAPES.iter().map(|shape| (shape.name, (shape.entries)(limits, cpus))).collect()
}

/// The limits that the maps pinned in `folder` have; where one is missing, the wanted one.
///
/// # Errors
///
/// If a map is not what this version has under its name.
pub fn pinned_limits(folder: &Path, wanted: Limits, cpus: u32) -> Result<Limits> {
    let mut found = BTreeMap::new();
    for shape in &SHAPES {
        let path = folder.join(shape.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let kind = info.map_type().map(|kind| kind as u32).unwrap_or(0);
        let is = (kind, info.key_size() as usize, info.value_size() as usize);
        ensure!(
            is == (shape.kind, shape.key, shape.value),
            "{}: a map of type {}, key {} and value {} bytes, where this version has type {}, {} \
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
        connections: of("CONNECTIONS", wanted.connections),
        fragments: of("FRAGMENTS", wanted.fragments),
    };
    for (name, entries) in sizes(&limits, cpus) {
        let is = of(name, entries);
        ensure!(
            is == entries,
            "{}: {is} entries where the other maps ask for {entries}; `lbctl detach` removes them \
             all, and forwarding stops until lbd is started again",
            folder.join(name).display(),
        );
    }
    Ok(limits)
}

/// Makes and pins `RINGS`, unless it is there, for the loader to find.
///
/// The loader would make it from the object, with BTF of a ring's elements; Linux 6.1 then refuses
/// a ring that was made without, and there is no way to make one with.
///
/// # Errors
///
/// If the kernel refuses the map or the pin.
pub fn pin_rings(folder: &Path, limits: &Limits) -> Result<()> {
    let path = folder.join("RINGS");
    if path.exists() {
        return Ok(());
    }
    let rings = sys::map_of_maps(ARRAY_OF_MAPS, "RINGS", limits.services, &new_ring(1)?)
        .context("make the map RINGS")?;
    rings.pin(&path).with_context(|| format!("pin {}", path.display()))
}

/// A typed handle of each map. No map's name occurs outside this file.
#[derive(Debug)]
pub struct Maps {
    /// `SERVICES_V4`.
    pub services_v4: Table<ServiceKeyV4, Service>,
    /// `SERVICES_V6`.
    pub services_v6: Table<ServiceKeyV6, Service>,
    /// `RINGS`: written as descriptors, read as ids.
    pub rings: Table<u32, u32>,
    /// `BACKENDS`.
    pub backends: Table<u32, Backend>,
    /// `PINS`.
    pub pins: Table<FlowKey, FlowValue>,
    /// `TRACKED`.
    pub tracked: Table<FlowKey, FlowValue>,
    /// `CONNECTIONS`.
    pub connections: Table<ConnectionKey, FlowValue>,
    /// `FRAGMENTS`.
    pub fragments: Table<FragmentKey, Fragment>,
    /// `VIPS`.
    pub vips: Table<VipKey, u32>,
    /// `OWN_MACS`.
    pub own_macs: Table<u32, OwnMac>,
    /// `VERDICTS`, to be mapped.
    pub verdicts: MapData,
    /// `BACKEND_COUNTERS`, to be mapped.
    pub backend_counters: MapData,
    /// `SYN_BUDGETS`, to be mapped.
    pub syn_budgets: MapData,
}

impl Maps {
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let map = |name: &str| -> io::Result<MapData> {
            MapData::from_pin(folder.join(name))
                .map_err(|error| io::Error::other(format!("open map {name}: {error}")))
        };
        Ok(Self {
            services_v4: Table::new(map("SERVICES_V4")?)?,
            services_v6: Table::new(map("SERVICES_V6")?)?,
            rings: Table::new(map("RINGS")?)?,
            backends: Table::new(map("BACKENDS")?)?,
            pins: Table::new(map("PINS")?)?,
            tracked: Table::new(map("TRACKED")?)?,
            connections: Table::new(map("CONNECTIONS")?)?,
            fragments: Table::new(map("FRAGMENTS")?)?,
            vips: Table::new(map("VIPS")?)?,
            own_macs: Table::new(map("OWN_MACS")?)?,
            verdicts: map("VERDICTS")?,
            backend_counters: map("BACKEND_COUNTERS")?,
            syn_budgets: map("SYN_BUDGETS")?,
        })
    }
}

/// Opens the maps of the services' index: `SERVICE_INDEX`, to be mapped, and `SERVICE_ENTRIES`.
pub fn open_index(folder: &Path) -> Result<(MapData, Table<u32, Entry>)> {
    let map = |name: &str| {
        MapData::from_pin(folder.join(name)).with_context(|| format!("open map {name}"))
    };
    Ok((map("SERVICE_INDEX")?, Table::new(map("SERVICE_ENTRIES")?)?))
}

/// The kernel's number of a ring's flags: `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`.
const RING_FLAGS: u32 = 1 << 10 | 1 << 12;

/// A map for a ring of its own.
pub fn new_ring(slots: u32) -> Result<MapData> {
    let (key, value) = (size_of::<u32>() as u32, size_of::<Slot>() as u32);
    let object = aya_obj::Map::new_from_params(ARRAY, key, value, slots, RING_FLAGS);
    MapData::create(object, "ring", None).with_context(|| format!("make a map of {slots} slots"))
}
