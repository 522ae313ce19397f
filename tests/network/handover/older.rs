//! The data planes of earlier versions, with layouts 1 and 2: their objects over maps that are pinned as they did, in
//! the middle of a change of backends.

use std::{
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData},
    programs::{Xdp, XdpMode, links::FdLink},
};
use lb_common::{
    abi::{
        Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, Service,
        ServiceKeyV4, ServiceKeyV6, VipKey, backend_flags, flow_flags, mapped, proto, stamp,
        udp_policy,
    },
    hash::FlowKeys,
    service_index::{self, Entry, Place},
};
use lb_model::{
    settings::{Limits, Settings},
    time::Now,
};
use zerocopy::FromZeros as _;

use super::testbed::ifindex;

/// The object of layout 1.
static OBJECT_1: &[u8] = aya::include_bytes_aligned!("../../fixtures/balancer-v1.o");
/// The object of layout 2.
static OBJECT_2: &[u8] = aya::include_bytes_aligned!("../../fixtures/balancer-v2.o");

/// The last layout before this one.
pub const LAST: u32 = 2;

pub const VIP: [u8; 4] = [10, 0, 0, 100];
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The MAC address of a backend ends in its id.
pub const BACKEND_MAC: [u8; 4] = [2, 0, 0, 9];
/// Slots of each ring.
pub const SLOTS: u16 = 251;

/// Every slot is in flux, from backend 1 to backend 2; pins name backend 3.
pub const WEB: u16 = 80;
/// No slot is in flux; the owners are 1 to 3 in turn.
pub const STEADY: u16 = 81;
/// Tracked UDP.
pub const GAME: u16 = 54;
/// Flows of `WEB` and of `GAME` that are pinned to backend 3, by client.
pub const FLOWS: u16 = 600;
/// The port of all these clients.
pub const CLIENT_PORT: u16 = 5_000;

/// Port, protocol, policy; the id is the place.
const SERVICES: [(u16, u8, u8); 4] = [
    (WEB, proto::TCP, 0),
    (STEADY, proto::TCP, 0),
    (GAME, proto::UDP, udp_policy::TRACKED),
    (443, proto::UDP, udp_policy::QUIC),
];
/// Of the one service with an IPv6 VIP.
const V6_ID: u16 = 4;

/// The folder of the maps of a layout.
pub fn folder(settings: &Settings, layout: u32) -> PathBuf {
    settings.pin_dir.join(format!("v{layout}"))
}

/// Loads, fills and attaches the data plane of a layout. The result may be dropped: program and maps are pinned.
pub fn start(settings: &Settings, layout: u32) -> Ebpf {
    let name = |interface: &str| format!("link-{}", interface.replace('.', "_"));
    let folder = folder(settings, layout);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    let mut object = load(&folder, &settings.limits, layout);
    fill(&mut object, &settings.limits);
    let program: &mut Xdp = object.program_mut("balance").unwrap().try_into().unwrap();
    lb_datapath::load_program(program).unwrap();
    for interface in &settings.interfaces {
        let id = program.attach_to_if_index(ifindex(interface), XdpMode::Driver).unwrap();
        let link = FdLink::try_from(program.take_link(id).unwrap()).unwrap();
        link.pin(settings.pin_dir.join(name(interface))).unwrap();
    }
    object
}

fn load(folder: &Path, limits: &Limits, layout: u32) -> Ebpf {
    let cpus = aya::util::nr_cpus().unwrap() as u32;
    let backends = limits.backends + 1;
    let buckets = buckets(limits);
    let mut sizes = vec![
        ("SERVICE_INDEX", buckets),
        ("SERVICE_ENTRIES", limits.services),
        ("SERVICES_V4", limits.services),
        ("SERVICES_V6", limits.services),
        ("RINGS", limits.services),
        ("BACKENDS", backends),
        ("PINS", limits.pins),
        ("TRACKED", limits.tracked_flows),
        ("CONNECTIONS", limits.connections),
        ("FRAGMENTS", limits.fragments),
        ("VIPS", limits.services),
        ("OWN_MACS", 16),
        ("VERDICTS", 48 * cpus),
        ("BACKEND_COUNTERS", backends * cpus),
        ("SYN_BUDGETS", limits.services * cpus),
    ];
    match layout {
        1 => sizes.push(("SYN_SEEN", 8_192)),
        _ => sizes.extend([
            ("SYN_MARKS", 65_536),
            ("PIN_LOG", 4_096 * cpus),
            ("PIN_LOG_HEADS", cpus),
            ("PIN_LEASE", 1),
            ("PEER_MACS", 4_096),
            ("REVERSE_NAT", limits.backends),
            ("NAT_BACKENDS", 1),
            ("RETURN_EGRESS", 16),
            ("RETURN_COUNTERS", backends * cpus),
            ("NAT_CONNECTIONS", limits.nat_connections),
            ("HANDSHAKES", 262_144),
        ]),
    }
    rings(limits.services).pin(folder.join("RINGS")).unwrap();
    let mut loader = EbpfLoader::new();
    let mask = buckets - 1;
    loader.override_global("BACKENDS_PER_CPU", &backends, true);
    loader.override_global("SERVICES_PER_CPU", &limits.services, true);
    loader.override_global("SERVICE_INDEX_MASK", &mask, true);
    for (name, entries) in sizes {
        loader.map_max_entries(name, entries);
        loader.map_pin_path(name, folder.join(name));
    }
    if layout == 1 {
        return loader.load(OBJECT_1).unwrap();
    }
    for (name, entries) in [("ICMP_BUDGETS", 1), ("TOO_BIG_BUDGETS", 256), ("RETURN_ROUTES", 512)] {
        loader.map_max_entries(name, entries * cpus);
    }
    loader.map_max_entries("NAT_RECENT", 4_096 * cpus);
    loader.load(OBJECT_2).unwrap()
}

const fn buckets(limits: &Limits) -> u32 {
    (limits.services * 4).next_power_of_two()
}

/// An empty `RINGS`, without type information, as lbd makes it.
fn rings(entries: u32) -> MapData {
    const MAP_CREATE: libc::c_long = 0;
    const ARRAY_OF_MAPS: u32 = 12;
    let inner = new_ring(1);
    let inner_fd = inner.map().fd().as_fd().as_raw_fd() as u32;
    // Kind, key, value, entries, flags, inner map: the first fields of `union bpf_attr`.
    let attr = [ARRAY_OF_MAPS, 4, 4, entries, 0, inner_fd];
    // SAFETY: the kernel reads these bytes alone, and they hold no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attr.as_ptr(), size_of_val(&attr)) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given this descriptor.
    MapData::from_fd(unsafe { OwnedFd::from_raw_fd(fd as i32) }).unwrap()
}

/// A ring's slots as words.
type Ring = Array<MapData, u64>;

fn new_ring(slots: u32) -> Ring {
    const MMAPABLE: u32 = 1 << 10;
    const INNER_MAP: u32 = 1 << 12;
    Ring::create(slots, MMAPABLE | INNER_MAP).unwrap()
}

fn table<'a, K: Pod, V: Pod>(object: &'a mut Ebpf, name: &str) -> HashMap<&'a mut MapData, K, V> {
    object.map_mut(name).unwrap().try_into().unwrap()
}

fn array<'a, V: Pod>(object: &'a mut Ebpf, name: &str) -> Array<&'a mut MapData, V> {
    object.map_mut(name).unwrap().try_into().unwrap()
}

/// A flow of a service.
pub fn flow(client: u16, port: u16, service: u16) -> FlowKey {
    let [high, low] = client.to_be_bytes();
    FlowKey::new(mapped([10, 1, high, low]), port.into(), service)
}

/// The key of a flow in layouts 1 and 2: client, port, service.
pub type OlderKey = [u8; 20];

/// That of [`flow`].
pub fn older_flow(client: u16, port: u16, service: u16) -> OlderKey {
    let key = flow(client, port, service);
    let mut older = [0; 20];
    older[..16].copy_from_slice(&key.source);
    older[16..18].copy_from_slice(&port.to_be_bytes());
    older[18..].copy_from_slice(&service.to_ne_bytes());
    older
}

/// The inverse of [`older_flow`].
pub fn of_older(key: OlderKey) -> FlowKey {
    let ([a, b], [c, d]) = ([key[16], key[17]], [key[18], key[19]]);
    let (port, service) = (u16::from_be_bytes([a, b]), u16::from_ne_bytes([c, d]));
    FlowKey::new(key[..16].try_into().unwrap(), port.into(), service)
}

fn fill(object: &mut Ebpf, limits: &Limits) {
    let now = Now::read().mono_secs();
    for (id, (port, proto, policy)) in (0..).zip(SERVICES) {
        let key = ServiceKeyV4 { address: VIP, port: port.into(), proto, reserved: 0 };
        let value = service(id, policy);
        table(object, "SERVICES_V4").insert(key, value, 0).unwrap();
        let place = Place::of_v4(&key, buckets(limits) - 1);
        index(object, place, value, mapped(VIP), port, proto);
    }
    let mut address = [0xfd; 16];
    address[15] = 100;
    let key = ServiceKeyV6 { address, port: 80.into(), proto: proto::TCP, reserved: 0 };
    let value = service(V6_ID, 0);
    table(object, "SERVICES_V6").insert(key, value, 0).unwrap();
    index(object, Place::of_v6(&key, buckets(limits) - 1), value, address, 80, proto::TCP);
    for address in [mapped(VIP), address] {
        table(object, "VIPS").insert(VipKey { address }, 1_u32, 0).unwrap();
    }
    let own = OwnMac { mac: OWN_MAC, reserved: [0; 2] };
    array(object, "OWN_MACS").set(0, own, 0).unwrap();
    for id in 1..=3 {
        array(object, "BACKENDS").set(u32::from(id), backend(id), 0).unwrap();
    }
    for id in 0..=V6_ID {
        let mut ring = new_ring(SLOTS.into());
        for slot in 0..SLOTS {
            let steady = [u64::from(slot % 3) + 1, 0, 0, 0];
            // Current owner, base owner, stamp of unpinned packets, stamp of pins.
            let ago = |age| u64::from(stamp(now.wrapping_sub(age)));
            let flux = [2, 1, ago(u32::from(slot % 50)), ago(u32::from(slot % 70))];
            let words = if id == 0 { flux } else { steady };
            let word = (0..4).fold(0, |word, at| word | words[at] << (16 * at));
            ring.set(slot.into(), word, 0).unwrap();
        }
        let rings = object.map_mut("RINGS").unwrap();
        let mut rings: ArrayOfMaps<&mut MapData, Ring> = rings.try_into().unwrap();
        rings.set(id.into(), &ring, 0).unwrap();
    }
    let value = FlowValue { backend: 3, flags: flow_flags::ESTABLISHED, seen: now };
    for client in 0..FLOWS {
        table::<OlderKey, _>(object, "PINS")
            .insert(older_flow(client, CLIENT_PORT, 0), value, 0)
            .unwrap();
        table::<OlderKey, _>(object, "TRACKED")
            .insert(older_flow(client, CLIENT_PORT, 2), value, 0)
            .unwrap();
        let id = [7, 7, 7, 7, 7, 7, (client >> 8) as u8, client as u8];
        let key = ConnectionKey { id, service: 3, reserved: 0 };
        table(object, "CONNECTIONS").insert(key, value, 0).unwrap();
        let key = FragmentKey {
            source: flow(client, 0, 0).source,
            destination: mapped(VIP),
            id: [9; 4],
            proto: proto::TCP,
            reserved: [0; 3],
        };
        let value = Fragment { backend: 3, is_return: 0, seen: now, entropy: 5 };
        table(object, "FRAGMENTS").insert(key, value, 0).unwrap();
    }
    // The program's counters so far, on each CPU.
    for cpu in 0..aya::util::nr_cpus().unwrap() as u32 {
        for id in 1..=3_u32 {
            let count = u64::from(1_000 * id + cpu);
            let at = cpu * (limits.backends + 1) + id;
            let counter = [count, count * 100, count / 10, count / 20, count / 50, 0, 0, 0];
            array::<[u64; 8]>(object, "BACKEND_COUNTERS").set(at, counter, 0).unwrap();
        }
        let verdict = [u64::from(cpu) + 40, 4_000];
        array::<[u64; 2]>(object, "VERDICTS").set(cpu * 48 + 3, verdict, 0).unwrap();
    }
}

fn service(id: u16, udp_policy: u8) -> Service {
    let keys = FlowKeys::derive(&[7; 16], &id.to_be_bytes()).0;
    let slots = SLOTS.into();
    Service {
        keys,
        slots,
        id,
        udp_policy,
        idle_timeout: 900,
        syn_budget: 10_000,
        ..Service::new_zeroed()
    }
}

fn backend(id: u16) -> Backend {
    let mut entry = Backend::new_zeroed();
    entry.l2[..4].copy_from_slice(&BACKEND_MAC);
    entry.l2[4..6].copy_from_slice(&id.to_be_bytes());
    entry.l2[6..12].copy_from_slice(&OWN_MAC);
    entry.l2[12..14].copy_from_slice(&[8, 0]);
    entry.l2_len = 14;
    entry.flags = backend_flags::USABLE;
    entry.ifindex = ifindex("va");
    entry.mtu = 1_500;
    entry.address_v4 = [10, 0, 0, id as u8];
    entry.address = mapped(entry.address_v4);
    entry
}

fn index(
    object: &mut Ebpf,
    place: Place,
    service: Service,
    address: [u8; 16],
    port: u16,
    proto: u8,
) {
    let entry = Entry { service, address, port: port.into(), proto, reserved: [0; 5] };
    array(object, "SERVICE_ENTRIES").set(service.id.into(), entry, 0).unwrap();
    let mut buckets = array::<[u32; service_index::WAYS]>(object, "SERVICE_INDEX");
    let mut words = buckets.get(&place.bucket, 0).unwrap();
    *words.iter_mut().find(|word| **word == 0).unwrap() = place.word(service.id);
    buckets.set(place.bucket, words, 0).unwrap();
}

/// A table that is pinned in a folder, for a test that does the program's part.
pub fn pinned<K: Pod, V: Pod>(folder: &Path, name: &str) -> HashMap<MapData, K, V> {
    let map = MapData::from_pin(folder.join(name)).unwrap();
    let info = map.info().unwrap().map_type().unwrap();
    let map =
        if info == aya::maps::MapType::LruHash { Map::LruHashMap(map) } else { Map::HashMap(map) };
    map.try_into().unwrap()
}
