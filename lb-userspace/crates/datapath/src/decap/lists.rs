//! The lists of addresses that a decapsulator takes: which addresses they are, and the maps that hold them.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use lb_common::abi::{VipKey, mapped};
use lb_netlink::query::InterfaceSnapshot;

use super::Options;

/// The map of outer destinations.
pub(super) const ADDRESSES: &str = "DECAP_ADDRESSES";
/// The map of inner destinations.
pub(super) const VIPS: &str = "DECAP_VIPS";
/// Capacity of `DECAP_ADDRESSES`.
const MAX_ADDRESSES: usize = 64;
/// Capacity of `DECAP_VIPS`.
const MAX_VIPS: usize = 512;

/// Where a list is from: the value of its entries, which the program does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Origin {
    /// The operator has named it.
    Named = 1,
    /// It is what the interface had.
    Found = 2,
}

/// The entries of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) origin: Origin,
    pub(super) addresses: Vec<IpAddr>,
}

impl List {
    /// What is named, or else what is found.
    fn new(named: &[IpAddr], found: &[IpAddr]) -> Self {
        let (origin, addresses) =
            if named.is_empty() { (Origin::Found, found) } else { (Origin::Named, named) };
        Self { origin, addresses: addresses.to_vec() }
    }
}

/// Both lists of a decapsulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    /// Outer destinations.
    pub(super) addresses: List,
    /// Inner destinations.
    pub(super) vips: List,
}

impl Lists {
    /// What `dev` is to take, by the options and the addresses that there are.
    pub(super) fn of(
        dev: &str,
        options: &Options,
        interfaces: &BTreeMap<String, InterfaceSnapshot>,
    ) -> Result<Self> {
        let found =
            |name| interfaces.get(name).map_or(&[][..], |one: &InterfaceSnapshot| &one.addresses);
        let lists = Self {
            addresses: List::new(&options.addresses, found(dev)),
            vips: List::new(&options.vips, found("lo")),
        };
        let (addresses, vips) = (&lists.addresses.addresses, &lists.vips.addresses);
        ensure!(addresses.len() <= MAX_ADDRESSES, "at most {MAX_ADDRESSES} addresses can be taken");
        ensure!(vips.len() <= MAX_VIPS, "at most {MAX_VIPS} VIPs can be taken");
        Ok(lists)
    }

    /// That neither is empty: nothing would be unwrapped, and nothing would change that.
    pub(super) fn ensure_useful(&self, dev: &str) -> Result<()> {
        ensure!(
            !self.addresses.addresses.is_empty(),
            "interface {dev} has no address of global scope; name the tunnel's destinations with --address"
        );
        ensure!(
            !self.vips.addresses.is_empty(),
            "no VIP is on the loopback; add it there first (ip address add VIP/32 dev lo), or name it with --vip"
        );
        Ok(())
    }

    /// Fills the maps of an object that is not attached yet.
    pub(super) fn fill(&self, object: &mut Ebpf) -> Result<()> {
        for (name, list) in [(ADDRESSES, &self.addresses), (VIPS, &self.vips)] {
            let map = object.map_mut(name);
            let map = map.with_context(|| format!("the object lacks the map {name}"))?;
            let mut map: HashMap<_, VipKey, u32> = map.try_into()?;
            for address in &list.addresses {
                let written = map.insert(key_of(*address), list.origin as u32, 0);
                written.with_context(|| format!("write {address} to {name}"))?;
            }
        }
        Ok(())
    }
}

/// What was added to a list that is in use, and taken from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) added: Vec<IpAddr>,
    pub(super) removed: Vec<IpAddr>,
}

/// Makes the map that is pinned at `pin` hold this list, entry by entry: packets for what stays in it see
/// no change.
pub(super) fn update(pin: &Path, list: &List) -> Result<Difference> {
    let map = open_map(pin)?.with_context(|| format!("{} is not there", pin.display()))?;
    let mut map: HashMap<_, VipKey, u32> = Map::HashMap(map).try_into()?;
    let there = read(pin)?.map_or_else(Vec::new, |list| list.addresses);
    let context = |address| move || format!("change {address} in {}", pin.display());
    let mut difference = Difference::default();
    // First what goes: its room may be needed.
    for address in there.iter().filter(|address| !list.addresses.contains(address)) {
        map.remove(&key_of(*address)).with_context(context(*address))?;
        difference.removed.push(*address);
    }
    for address in list.addresses.iter().filter(|address| !there.contains(address)) {
        let written = map.insert(key_of(*address), list.origin as u32, 0);
        written.with_context(context(*address))?;
        difference.added.push(*address);
    }
    Ok(difference)
}

/// The list that is pinned at `pin`, in the order of the addresses; none if there is no such pin.
pub(super) fn read(pin: &Path) -> Result<Option<List>> {
    let Some(data) = open_map(pin)? else { return Ok(None) };
    let map: HashMap<_, VipKey, u32> = Map::HashMap(data).try_into()?;
    let entries: Result<Vec<_>, _> = map.iter().collect();
    let entries = entries.with_context(|| format!("read {}", pin.display()))?;
    // One that is empty is found: nobody names nothing.
    let is_found = entries.iter().all(|(_, origin)| *origin == Origin::Found as u32);
    let origin = if is_found { Origin::Found } else { Origin::Named };
    let mut addresses: Vec<_> = entries.into_iter().map(|(key, _)| address_of(key)).collect();
    addresses.sort();
    Ok(Some(List { origin, addresses }))
}

/// The map pinned at `pin`; none if there is no such pin.
pub(super) fn open_map(pin: &Path) -> Result<Option<MapData>> {
    if !pin.exists() {
        return Ok(None);
    }
    MapData::from_pin(pin).map(Some).with_context(|| format!("open {}", pin.display()))
}

pub(super) const fn key_of(address: IpAddr) -> VipKey {
    let address = match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    VipKey { address }
}

fn address_of(key: VipKey) -> IpAddr {
    IpAddr::from(key.address).to_canonical()
}
