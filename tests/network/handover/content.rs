//! Everything that a set of maps holds, to be compared with another.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, Map, MapData, MapInfo},
};
use lb_common::{
    abi::{
        ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, ServiceKeyV4, ServiceKeyV6,
        VipKey,
    },
    verdict::REASONS,
};

use super::older::{OlderKey, of_older, pinned};

/// A service as bytes: fields that this test does not know by name are compared as well.
type Bytes = [u8; 64];

/// The content of a folder's maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub services_v4: HashMap<ServiceKeyV4, Bytes>,
    pub services_v6: HashMap<ServiceKeyV6, Bytes>,
    pub vips: HashMap<VipKey, u32>,
    pub own_macs: Vec<u64>,
    /// The entries that are not all zero, by id.
    pub backends: BTreeMap<u32, Vec<u64>>,
    /// Slots as words, by service: both owners and both stamps.
    pub rings: BTreeMap<u32, Vec<u64>>,
    pub pins: HashMap<FlowKey, FlowValue>,
    pub tracked: HashMap<FlowKey, FlowValue>,
    pub connections: HashMap<ConnectionKey, FlowValue>,
    pub fragments: HashMap<FragmentKey, (u16, u32, u32)>,
    /// Packets and bytes of each reason, over all CPUs.
    pub verdicts: Vec<[u64; 2]>,
    /// The counters of each backend, over all CPUs, without zeros.
    pub counters: BTreeMap<u32, [u64; 8]>,
}

impl Content {
    /// Of the maps that are pinned in `folder`.
    pub fn of(folder: &Path) -> Self {
        let fragments = table::<FragmentKey, Fragment>(folder, "FRAGMENTS").into_iter();
        let cpus = aya::util::nr_cpus().unwrap();
        Self {
            services_v4: services(folder, "SERVICES_V4"),
            services_v6: services(folder, "SERVICES_V6"),
            vips: table(folder, "VIPS"),
            own_macs: array::<u64>(folder, "OWN_MACS"),
            backends: used(array::<[u64; 16]>(folder, "BACKENDS"))
                .map(|(id, words)| (id, words.to_vec()))
                .collect(),
            rings: rings(folder),
            pins: flows(folder, "PINS"),
            tracked: flows(folder, "TRACKED"),
            connections: table(folder, "CONNECTIONS"),
            fragments: fragments.map(|(k, v)| (k, (v.backend, v.seen, v.entropy))).collect(),
            verdicts: sums(&array::<[u64; 2]>(folder, "VERDICTS"), REASONS as usize),
            counters: {
                let counters = array::<[u64; 8]>(folder, "BACKEND_COUNTERS");
                used(sums(&counters, counters.len() / cpus)).collect()
            },
        }
    }

    /// Packets that went to a backend.
    pub fn packets(&self) -> u64 {
        self.counters.values().map(|counter| counter[0]).sum()
    }
}

/// The elements that are not all zero, by index.
fn used<const N: usize>(all: Vec<[u64; N]>) -> impl Iterator<Item = (u32, [u64; N])> {
    (0..).zip(all).filter(|(_, words)| words.iter().any(|&word| word != 0))
}

fn table<K: Pod + Hash + Eq, V: Pod>(folder: &Path, name: &str) -> HashMap<K, V> {
    pinned::<K, V>(folder, name).iter().map(Result::unwrap).collect()
}

/// The flows by client of a set of any layout.
fn flows(folder: &Path, name: &str) -> HashMap<FlowKey, FlowValue> {
    let key = MapInfo::from_pin(folder.join(name)).unwrap().key_size() as usize;
    if key == size_of::<FlowKey>() {
        return table(folder, name);
    }
    table::<OlderKey, _>(folder, name)
        .into_iter()
        .map(|(key, value)| (of_older(key), value))
        .collect()
}

fn services<K: Pod + Hash + Eq>(folder: &Path, name: &str) -> HashMap<K, Bytes> {
    let bytes = |words: [u64; 8]| {
        let mut bytes = [0; 64];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    };
    table::<K, [u64; 8]>(folder, name).into_iter().map(|(k, v)| (k, bytes(v))).collect()
}

fn array<V: Pod>(folder: &Path, name: &str) -> Vec<V> {
    let map = Map::Array(MapData::from_pin(folder.join(name)).unwrap());
    let map: Array<_, V> = map.try_into().unwrap();
    map.iter().map(Result::unwrap).collect()
}

fn rings(folder: &Path) -> BTreeMap<u32, Vec<u64>> {
    let map = Map::ArrayOfMaps(MapData::from_pin(folder.join("RINGS")).unwrap());
    let rings: ArrayOfMaps<_, Array<MapData, u64>> = map.try_into().unwrap();
    let ids = 0..rings.len();
    let ring = |id| Some((id, rings.get(&id, 0).ok()?.iter().map(Result::unwrap).collect()));
    ids.filter_map(ring).collect()
}

/// Adds up values with a stretch of so many elements for each CPU.
fn sums<const N: usize>(all: &[[u64; N]], stretch: usize) -> Vec<[u64; N]> {
    let mut sums = vec![[0; N]; stretch];
    for (at, words) in all.iter().enumerate() {
        for (sum, word) in sums[at % stretch].iter_mut().zip(words) {
            *sum += word;
        }
    }
    sums
}
