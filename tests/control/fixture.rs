//! The engine over maps in memory, and the desired states and next hops that the tests give it.

use std::{
    net::IpAddr,
    num::NonZeroU16,
    time::{Duration, SystemTime},
};

use lb_common::abi::{self, FlowKey, FlowValue, Owners, flow_flags};
use lb_control::engine::Engine;
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Desired, Mode, Protocol, Service, UdpPolicy, Weight},
    flow::FlowRef,
    hop::{Neighbourhood, NextHop, Resolution, Want},
    settings::{Limits, Settings},
    time::Now,
};
use lb_plane::{Maps as _, fake::Fake};

pub const IDLE: u32 = 900;
pub const SLOTS: u32 = 251;

pub fn at(mono_secs: u32) -> Now {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + u64::from(mono_secs));
    Now { mono: Duration::from_secs(mono_secs.into()), wall }
}

pub fn address(text: &str) -> BackendAddress {
    text.parse().unwrap()
}

pub fn settings() -> Settings {
    Settings { seed: *b"the secret seed.", ..Settings::default() }
}

pub fn backend(weight: u16) -> Backend {
    Backend { weight: Weight(NonZeroU16::new(weight).unwrap()), ..Backend::default() }
}

pub fn service(vip: &str, backends: &[(&str, u16)]) -> Service {
    Service {
        ring_slots: SLOTS,
        idle_timeout: Duration::from_secs(IDLE.into()),
        syn_budget: 20_001,
        drain_silence: Duration::from_secs(20),
        backends: backends.iter().map(|(to, weight)| (address(to), backend(*weight))).collect(),
        ..Service::new(address(vip).ip, 80, Mode::Dsr)
    }
}

/// One service over IPv4 in `dsr`, one over IPv6 in `ipip`, one for UDP.
pub fn three_services() -> Desired {
    let web = service("10.0.0.100", &[("10.0.0.11", 1), ("10.0.0.12", 2), ("10.0.0.13", 1)]);
    let mut far = service("fd00::100", &[("fd01::11", 1), ("10.9.0.12", 1)]);
    far.mode = Mode::Ipip;
    let mut dns = service("10.0.0.100", &[("10.0.0.11", 1), ("10.0.0.12", 1)]);
    dns.key.protocol = Protocol::Udp;
    dns.key.port = 53;
    dns.udp_policy = UdpPolicy::Oneshot;
    let services = [("web", web), ("far", far), ("dns", dns)];
    Desired { services: services.map(|(name, service)| (name.to_owned(), service)).into() }
}

pub fn one_service(backends: &[(&str, u16)]) -> Desired {
    Desired { services: [("web".to_owned(), service("10.0.0.100", backends))].into() }
}

pub fn resolved(want: Want) -> Resolution {
    let last = match want.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    let mac = [2, 0, 0, 0, 0, last];
    let ether = if want.address.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let l2 = [&mac[..], &[2, 0, 0, 0, 0, 1], &ether].concat();
    Resolution::Resolved(NextHop { ifindex: 3, interface: "eth0".into(), mac, l2, mtu: 1500 })
}

/// A neighbourhood in which everything that is wanted is reached.
pub fn reached(engine: &Engine<Fake>) -> Neighbourhood {
    let hops = engine.wants().into_iter().map(|want| (want, resolved(want))).collect();
    Neighbourhood { hops, own_macs: vec![[2, 0, 0, 0, 0, 1]], ..Neighbourhood::default() }
}

pub fn engine_of(desired: Desired, limits: Limits) -> Engine<Fake> {
    let mut engine = Engine::adopt(Fake::new(limits), &settings()).unwrap();
    set(&mut engine, desired);
    engine
}

/// Sets a desired state of which every backend is reached.
pub fn set(engine: &mut Engine<Fake>, desired: Desired) {
    engine.set_desired(desired);
    let neighbourhood = reached(engine);
    engine.set_neighbourhood(neighbourhood);
}

pub fn running(desired: Desired) -> Engine<Fake> {
    let mut engine = engine_of(desired, Limits::default());
    engine.reconcile(at(100)).unwrap();
    engine
}

pub fn edit(engine: &mut Engine<Fake>, to: &str, admin: Admin) {
    let mut desired = engine.desired().clone();
    let web = desired.services.get_mut("web").unwrap();
    web.backends.get_mut(&address(to)).unwrap().admin = admin;
    engine.set_desired(desired);
}

pub fn hop(engine: &mut Engine<Fake>, to: &str, state: Resolution) {
    let mut neighbourhood = reached(engine);
    neighbourhood.hops.insert(Want { address: address(to).ip, mode: Mode::Dsr }, state);
    engine.set_neighbourhood(neighbourhood);
}

pub fn unreachable() -> Resolution {
    Resolution::Unreachable { reason: "neighbour does not answer".into() }
}

pub fn pending() -> Resolution {
    Resolution::Pending { reason: "neighbour is asked".into() }
}

pub fn id(engine: &Engine<Fake>, to: &str) -> u16 {
    engine.status().unwrap().services["web"].backends[&address(to)].id
}

pub fn owners(engine: &Engine<Fake>) -> Vec<Owners> {
    let ring = engine.data_plane().ring(0).unwrap();
    ring.iter().map(abi::Slot::owners).collect()
}

pub fn pin(port: u16, backend: u16, seen: u32) -> (FlowRef, FlowValue) {
    let key = FlowKey::new([9; 16], port.into(), 0);
    (FlowRef::Pin(key), FlowValue { backend, flags: flow_flags::ESTABLISHED, seen })
}
