//! A typed handle of each map by its name; how large they are is defined in [`super::layouts`].

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::{
    abi::{
        self, Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, NatConnectionKey,
        NatConnectionValue, OwnMac, PeerKey, ReverseKey, ReversePrefix, Service, ServiceKeyV4,
        ServiceKeyV6, Slot, VipKey,
    },
    service_index::Entry,
    wide::{PortPrefix, VipPrefix, WideKey},
};
use lb_model::{
    desired::{Protocol, ServiceKey},
    entry,
};
use zerocopy::IntoBytes as _;

use super::{
    layouts::ARRAY_OF_MAPS,
    rings::Rings,
    sys::{self, Table},
};

// From linux/bpf.h, enum bpf_map_type.
const ARRAY: u32 = 2;

/// Makes and pins `RINGS`, for so many services, unless it is there, for the loader to find.
///
/// The loader would make it from the object, with BTF of a ring's elements; Linux 6.1 then refuses
/// a ring that was made without, and there is no way to make one with.
///
/// # Errors
///
/// If the kernel refuses the map or the pin.
pub fn pin_rings(folder: &Path, services: u32) -> Result<()> {
    let path = folder.join("RINGS");
    if path.exists() {
        return Ok(());
    }
    let rings = sys::map_of_maps(ARRAY_OF_MAPS, "RINGS", services, &new_ring(1)?)
        .context("make the map RINGS")?;
    rings.pin(&path).with_context(|| format!("pin {}", path.display()))
}

/// A typed handle of each map. No map's name occurs outside this file and the layouts.
///
/// `F` is the type of the tables of flows by client, whose keys older layouts have in another form.
#[derive(Debug)]
pub(crate) struct OpenMaps<F = Table<FlowKey, FlowValue>> {
    /// `SERVICES_V4`.
    pub services_v4: Table<ServiceKeyV4, Service>,
    /// `SERVICES_V6`.
    pub services_v6: Table<ServiceKeyV6, Service>,
    /// `WIDE_SERVICES`, which layouts before the third have not, as the next three.
    pub wide_services: Option<Table<WideKey, Service>>,
    /// `WIDE_VIPS`.
    pub wide_vips: Option<Table<VipPrefix, u32>>,
    /// `WIDE_PORTS`.
    pub wide_ports: Option<Table<PortPrefix, u32>>,
    /// `WIDE_GROUPS`.
    pub wide_groups: Option<Table<u32, u32>>,
    /// `RINGS`, and the pins of what is in it.
    pub rings: Rings,
    /// `BACKENDS`.
    pub backends: Table<u32, Backend>,
    /// `PINS`.
    pub pins: F,
    /// `TRACKED`.
    pub tracked: F,
    /// `CONNECTIONS`.
    pub connections: Table<ConnectionKey, FlowValue>,
    /// `HANDSHAKES`, which sets that were made before it have not.
    pub handshakes: Option<Table<u32, u64>>,
    /// `FRAGMENTS`.
    pub fragments: Table<FragmentKey, Fragment>,
    /// `VIPS`.
    pub vips: Table<VipKey, u32>,
    /// `OWN_MACS`.
    pub own_macs: Table<u32, OwnMac>,
    /// `PEER_MACS`, which sets that were made before it have not.
    pub peer_macs: Option<Table<PeerKey, u32>>,
    /// `REVERSE_NAT`, which sets that were made before it have not, as the others of mode `nat`.
    pub reverse_nat: Option<Table<ReverseKey, u32>>,
    /// `REVERSE_RANGES`, which sets that were made before it have not.
    pub reverse_ranges: Option<Table<ReversePrefix, u32>>,
    /// `NAT_BACKENDS`.
    pub nat_backends: Option<Table<u32, u32>>,
    /// `RETURN_EGRESS`.
    pub return_egress: Option<Table<u32, u32>>,
    /// `NAT_CONNECTIONS`.
    pub nat_connections: Option<Table<NatConnectionKey, NatConnectionValue>>,
    /// `RETURN_COUNTERS`, to be mapped.
    pub return_counters: Option<MapData>,
    /// `VERDICTS`, to be mapped.
    pub verdicts: MapData,
    /// `BACKEND_COUNTERS`, to be mapped.
    pub backend_counters: MapData,
    /// `SYN_BUDGETS`, to be mapped.
    pub syn_budgets: MapData,
    /// `SYN_MARKS`, which layout 1 has not.
    pub syn_marks: Option<Table<u32, u32>>,
}

impl OpenMaps {
    /// Opens the maps of this layout that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with(folder, Table::new)
    }
}

impl<F> OpenMaps<F> {
    /// Opens the maps that are pinned in `folder`, and those of flows by client with `flows`.
    pub fn open_with(folder: &Path, flows: impl Fn(MapData) -> io::Result<F>) -> Result<Self> {
        let map = |name: &str| -> io::Result<MapData> {
            MapData::from_pin(folder.join(name))
                .map_err(|error| io::Error::other(format!("open map {name}: {error}")))
        };
        let spare = |name: &str| match folder.join(name).exists() {
            true => map(name).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            services_v4: Table::new(map("SERVICES_V4")?)?,
            services_v6: Table::new(map("SERVICES_V6")?)?,
            wide_services: spare("WIDE_SERVICES")?.map(Table::new).transpose()?,
            wide_vips: spare("WIDE_VIPS")?.map(Table::new).transpose()?,
            wide_ports: spare("WIDE_PORTS")?.map(Table::new).transpose()?,
            wide_groups: spare("WIDE_GROUPS")?.map(Table::new).transpose()?,
            rings: Rings::new(map("RINGS")?, folder)?,
            backends: Table::new(map("BACKENDS")?)?,
            pins: flows(map("PINS")?)?,
            tracked: flows(map("TRACKED")?)?,
            connections: Table::new(map("CONNECTIONS")?)?,
            handshakes: spare("HANDSHAKES")?.map(Table::new).transpose()?,
            fragments: Table::new(map("FRAGMENTS")?)?,
            vips: Table::new(map("VIPS")?)?,
            own_macs: Table::new(map("OWN_MACS")?)?,
            peer_macs: spare("PEER_MACS")?.map(Table::new).transpose()?,
            reverse_nat: spare("REVERSE_NAT")?.map(Table::new).transpose()?,
            reverse_ranges: spare("REVERSE_RANGES")?.map(Table::new).transpose()?,
            nat_backends: spare("NAT_BACKENDS")?.map(Table::new).transpose()?,
            return_egress: spare("RETURN_EGRESS")?.map(Table::new).transpose()?,
            nat_connections: spare("NAT_CONNECTIONS")?.map(Table::new).transpose()?,
            return_counters: spare("RETURN_COUNTERS")?,
            verdicts: map("VERDICTS")?,
            backend_counters: map("BACKEND_COUNTERS")?,
            syn_budgets: map("SYN_BUDGETS")?,
            syn_marks: spare("SYN_MARKS")?.map(Table::new).transpose()?,
        })
    }
}

/// The rings of the set in `folder`; none if there is no such map.
pub(crate) fn open_rings(folder: &Path) -> Result<Option<Rings>> {
    let path = folder.join("RINGS");
    if !path.exists() {
        return Ok(None);
    }
    let context = || format!("open {}", path.display());
    let map = MapData::from_pin(&path).with_context(context)?;
    Rings::new(map, folder).map(Some).with_context(context)
}

/// Opens the maps of the services' index: `SERVICE_INDEX`, to be mapped, and `SERVICE_ENTRIES`.
pub(crate) fn open_index(folder: &Path) -> Result<(MapData, Table<u32, Entry>)> {
    let map = |name: &str| {
        MapData::from_pin(folder.join(name)).with_context(|| format!("open map {name}"))
    };
    Ok((map("SERVICE_INDEX")?, Table::new(map("SERVICE_ENTRIES")?)?))
}

/// The kernel's number of a ring's flags: `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`.
const RING_FLAGS: u32 = 1 << 10 | 1 << 12;

/// A map for a ring of its own.
pub(crate) fn new_ring(slots: u32) -> Result<MapData> {
    let (key, value) = (size_of::<u32>() as u32, size_of::<Slot>() as u32);
    let object = aya_obj::Map::new_from_params(ARRAY, key, value, slots, RING_FLAGS);
    MapData::create(object, "ring", None).with_context(|| format!("make a map of {slots} slots"))
}

fn key_of(vip: IpAddr, port: u16, proto: u8) -> ServiceKey {
    let protocol = if proto == abi::proto::UDP { Protocol::Udp } else { Protocol::Tcp };
    ServiceKey::new(vip, port, protocol)
}

/// All services that the maps hold.
pub fn services<F>(maps: &OpenMaps<F>) -> Result<BTreeMap<ServiceKey, abi::Service>> {
    let mut services = BTreeMap::new();
    maps.services_v4.walk(|key, value| {
        let vip = IpAddr::from(key.address);
        services.insert(key_of(vip, key.port.get(), key.proto), value);
    })?;
    maps.services_v6.walk(|key, value| {
        let vip = IpAddr::from(key.address);
        services.insert(key_of(vip, key.port.get(), key.proto), value);
    })?;
    if let Some(wide) = &maps.wide_services {
        wide.walk(|key, value| {
            services.insert(entry::of_wide_key(&key), value);
        })?;
    }
    Ok(services)
}

/// All backends that the maps hold, by id.
pub(crate) fn backends(maps: &OpenMaps) -> Result<BTreeMap<u16, abi::Backend>> {
    let mut backends = BTreeMap::new();
    maps.backends.walk(|id, value| {
        if value.as_bytes().iter().any(|&byte| byte != 0) {
            backends.insert(id as u16, value);
        }
    })?;
    Ok(backends)
}
