//! Random states of the tables and random frames that meet them: a few clients, VIPs and
//! identifications, so that pins, fragments and connections are hit often.

use lb_common::{
    abi::{
        Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, Owners, PeerKey,
        ReverseKey, ReversePrefix, Service, ServiceKeyV4, ServiceKeyV6, Unanswered, VipKey,
        backend_flags, flow_flags, mapped, service_flags, stamp, udp_policy,
    },
    hash::FlowKeys,
    packet::{ethernet, number},
    rewrite,
    wide::WideKey,
};
use lb_model::entry;
use zerocopy::network_endian::U16;

use super::wide;

/// SplitMix64 (Steele et al., 2014): the same numbers for the same seed, everywhere.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Whether it is one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// The VIP of IPv4.
pub const VIP_V4: [u8; 4] = [10, 0, 0, 100];
/// The VIP of IPv6.
pub const VIP_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64];
pub(super) const NODE_V4: [u8; 4] = [10, 0, 0, 1];
/// The MAC address that frames come to.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const OWN_TOO: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];
pub(super) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Ports, protocol, and for UDP the policy, of the services at each VIP.
pub(super) const PORTS: [(u16, u8, u8); 6] = [
    (80, number::TCP, 0),
    (81, number::TCP, 0),
    (443, number::TCP, 0),
    (53, number::UDP, udp_policy::ONESHOT),
    (54, number::UDP, udp_policy::TRACKED),
    (443, number::UDP, udp_policy::QUIC),
];
pub(super) const CLIENTS: usize = 24;
/// The interface of ingress in `BPF_PROG_TEST_RUN`: the loopback.
pub const INGRESS: u32 = 1;
/// Backends, with the one that is none.
pub const BACKENDS: u16 = 33;

/// Everything that a run of the program can read, as plain values.
#[derive(Clone, Debug)]
pub struct State {
    /// The services of IPv4.
    pub services_v4: Vec<(ServiceKeyV4, Service)>,
    /// The services of IPv6.
    pub services_v6: Vec<(ServiceKeyV6, Service)>,
    /// The services with several ports or VIPs.
    pub wide: Vec<(WideKey, Service)>,
    /// The rings, as words, by service.
    pub rings: Vec<(u16, Vec<u64>)>,
    /// The backends, by id.
    pub backends: Vec<Backend>,
    /// The pins.
    pub pins: Vec<(FlowKey, FlowValue)>,
    /// The tracked flows.
    pub tracked: Vec<(FlowKey, FlowValue)>,
    /// The connections.
    pub connections: Vec<(ConnectionKey, FlowValue)>,
    /// Fragmented packets.
    pub fragments: Vec<(FragmentKey, Fragment)>,
    /// The VIPs.
    pub vips: Vec<VipKey>,
    /// The MAC addresses that the node answers to.
    pub own_macs: Vec<OwnMac>,
    /// The MAC addresses of other balancers, by service, and the backend on this node.
    pub peer_macs: Vec<(PeerKey, u16)>,
    /// The backends in mode `nat`, by the source of their answers.
    pub reverse_nat: Vec<(ReverseKey, u16)>,
    /// The same of those that keep the clients' port.
    pub reverse_ranges: Vec<(ReversePrefix, u16)>,
    /// The unanswered SYNs of backends.
    pub unanswered: Vec<(u16, Unanswered)>,
}

impl State {
    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let v4 = self.services_v4.iter().map(|(_, service)| service);
        let v6 = self.services_v6.iter().map(|(_, service)| service);
        v4.chain(v6).chain(self.wide.iter().map(|(_, service)| service))
    }
}

/// The IPv4 address of a backend.
pub(super) fn backend_v4(id: u16) -> [u8; 4] {
    [192, 0, 2, id as u8]
}

/// The IPv6 address of a backend.
pub(super) fn backend_v6(id: u16) -> [u8; 16] {
    let mut address = VIP_V6;
    address[14] = 1;
    address[15] = id as u8;
    address
}

/// The port at which a backend in mode `nat` listens.
pub(super) fn backend_port(id: u16) -> [u8; 2] {
    (8_000 + id).to_be_bytes()
}

/// The protocol of a backend in mode `nat`.
pub(super) const fn backend_proto(id: u16) -> u8 {
    if id.is_multiple_of(3) { number::UDP } else { number::TCP }
}

pub(super) fn client_v4(n: usize) -> [u8; 4] {
    [198, 51, 100, n as u8]
}

pub(super) fn client_v6(n: usize) -> [u8; 16] {
    let mut address = VIP_V6;
    address[4] = 0xc1;
    address[15] = n as u8;
    address
}

pub(super) fn client_port(n: usize) -> [u8; 2] {
    (4000 + n as u16 % 3).to_be_bytes()
}

pub(super) fn connection_id(n: usize) -> [u8; 8] {
    [0xc0, n as u8, 1, 2, 3, 4, 5, 6]
}

/// A link-layer header with as many tags as it has room for.
fn link_header(random: &mut Random, len: u8) -> [u8; 22] {
    let mut header: [u8; 22] = random.bytes();
    set_tags(&mut header, len);
    header
}

/// Makes VLAN tags of what is between the addresses and the EtherType of a link-layer header of `len` bytes.
pub fn set_tags(header: &mut [u8; 22], len: u8) {
    for tpid in (ethernet::LEN..usize::from(len)).step_by(ethernet::TAG_LEN) {
        // The kernel takes no other for tc.
        let kind = if header[tpid].is_multiple_of(2) { ethernet::VLAN } else { ethernet::QINQ };
        header[tpid - 2..tpid].copy_from_slice(&kind.to_be_bytes());
    }
}

fn backend(random: &mut Random, id: u16) -> Backend {
    // A quarter of each kind: dsr and tunnel, IPv4 and IPv6.
    let mut flags = match id % 4 {
        0 => 0,
        1 => backend_flags::V6,
        2 => backend_flags::TUNNEL,
        _ => backend_flags::TUNNEL | backend_flags::V6,
    };
    if id != 0 && !random.one_in(8) {
        flags |= backend_flags::USABLE;
    }
    if random.one_in(4) {
        flags |= backend_flags::SUSPECT;
    }
    if random.one_in(2) {
        flags |= backend_flags::SOFT_DOWN;
    }
    let (v4, v6) = (backend_v4(id), backend_v6(id));
    let is_v6 = flags & backend_flags::V6 != 0;
    let mut source = [0; 16];
    source[0] = 1;
    let source_v4 = [172, 16, 0, 0];
    // A half of those without a tunnel gets translated packets.
    let is_nat = id != 0 && id % 4 < 2 && random.one_in(2);
    if is_nat {
        flags |= backend_flags::NAT;
    }
    // Some listen at the port that clients connect to.
    let own_port = U16::from_bytes(backend_port(id));
    let (port, vip_port) = match random.one_in(3) {
        true => (U16::ZERO, own_port),
        false => (own_port, U16::new(random.of(&PORTS).0)),
    };
    // And others at all ports of a range, which mostly has the one that packets come from.
    let range = wide::range_about(random, own_port.get());
    let keeps_port = is_nat && random.one_in(3);
    let (port, vip_port) = if keeps_port { (U16::ZERO, U16::ZERO) } else { (port, vip_port) };
    let (first_port, last_port) = if keeps_port { range } else { (0, 0) };
    let vip = if is_v6 { VIP_V6 } else { mapped(VIP_V4) };
    let is_local = !is_nat && random.one_in(6);
    let l2_len = if is_local { 0 } else { random.of(&[14, 14, 14, 18, 22]) };
    Backend {
        l2: link_header(random, l2_len),
        l2_len,
        flags,
        ifindex: random.of(&[INGRESS, INGRESS, 7]),
        mtu: if is_local { u16::MAX } else { random.of(&[1500, 1480, 1460, 1280, 600]) },
        service: 0,
        outer_sum: rewrite::ipv4_template_sum(source_v4, v4),
        source_mask: random.of(&[0xffff, 0xff, u32::MAX, 0])
            & if is_v6 { u32::MAX } else { 0xffff },
        address_v4: v4,
        source_v4,
        port: if is_nat { port } else { U16::ZERO },
        reserved0: [0; 14],
        address: if is_v6 { v6 } else { mapped(v4) },
        source,
        vip: if is_nat { vip } else { [0; 16] },
        vip_port: if is_nat { vip_port } else { U16::ZERO },
        proto: if is_nat { backend_proto(id) } else { 0 },
        reserved1: 0,
        first_port: first_port.into(),
        last_port: last_port.into(),
        reserved2: [0; 8],
    }
}

/// A random state at second `now`.
#[must_use]
pub fn state(random: &mut Random, now: u32) -> State {
    let mut state = State {
        services_v4: Vec::new(),
        services_v6: Vec::new(),
        wide: Vec::new(),
        rings: Vec::new(),
        backends: (0..BACKENDS).map(|id| backend(random, id)).collect(),
        pins: Vec::new(),
        tracked: Vec::new(),
        connections: Vec::new(),
        fragments: Vec::new(),
        vips: vec![VipKey { address: mapped(VIP_V4) }, VipKey { address: VIP_V6 }],
        own_macs: [OWN, OWN_TOO].map(|mac| OwnMac { mac, reserved: [0; 2] }).to_vec(),
        peer_macs: Vec::new(),
        reverse_nat: Vec::new(),
        reverse_ranges: Vec::new(),
        unanswered: Vec::new(),
    };
    for (id, one) in (0..BACKENDS).zip(&state.backends) {
        let key = entry::reverse_key(one).filter(|_| !random.one_in(8));
        state.reverse_nat.extend(key.map(|key| (key, id)));
    }
    let ranges = (0..BACKENDS).zip(&state.backends);
    let ranges: Vec<_> =
        ranges.filter_map(|(id, one)| Some((entry::reverse_range(one)?, id))).collect();
    state.reverse_ranges.extend(lb_datapath::reverse_prefixes(&ranges));
    if random.one_in(12) {
        state.own_macs.clear();
    }
    for id in 1..BACKENDS {
        if random.one_in(2) {
            let since = u64::from(now.wrapping_sub(random.of(&[0, 1, 70]))) * 1_000_000_000;
            let syns = random.of(&[1, 2, 3, 4, 1000]);
            let one = Unanswered::default().with_syn(|| since);
            state.unanswered.push((id, Unanswered(one.0 + syns - 1)));
        }
    }
    let mut id = 0;
    for v6 in [false, true] {
        let exact = PORTS.into_iter().map(|(port, proto, policy)| (Ok((port, proto)), policy));
        let wide = wide::keys(random, v6).into_iter().map(|(key, policy)| (Err(key), policy));
        for (at, policy) in exact.chain(wide).collect::<Vec<_>>() {
            id += 1;
            let is_wide = if at.is_err() { service_flags::WIDE } else { 0 };
            // Frames come from the gateway.
            let local = if random.one_in(5) { service_flags::LOCAL } else { 0 };
            if random.one_in(2) {
                let key = PeerKey { mac: GATEWAY, service: id };
                state.peer_macs.push((key, random.below(BACKENDS.into()) as u16));
            }
            let service = Service {
                keys: FlowKeys::derive(&random.bytes(), &[id as u8]).0,
                slots: random.of(&[1, 7, 13, 61, 251]),
                id,
                udp_policy: policy,
                flags: random.of(&[
                    service_flags::SECOND_CHOICE,
                    service_flags::SECOND_CHOICE,
                    service_flags::SECOND_CHOICE | service_flags::PINNING_PAUSED,
                    0,
                ]) | local
                    | is_wide,
                idle_timeout: 60,
                // None at all, or more than a run can spend: what is left of a budget depends on
                // the moment, and the pins that it bought must not.
                syn_budget: random.of(&[0, 1_000_000_000, 1_000_000_000]),
            };
            match at {
                Ok((port, proto)) if v6 => {
                    let port = port.into();
                    let key = ServiceKeyV6 { address: VIP_V6, port, proto, reserved: 0 };
                    state.services_v6.push((key, service));
                }
                Ok((port, proto)) => {
                    let port = port.into();
                    let key = ServiceKeyV4 { address: VIP_V4, port, proto, reserved: 0 };
                    state.services_v4.push((key, service));
                }
                Err(key) => state.wide.push((key, service)),
            }
            if !random.one_in(10) {
                let ring = (0..service.slots).map(|_| slot(random, v6, now)).collect();
                state.rings.push((id, ring));
            }
            flows(random, &mut state, &service, v6, now);
        }
    }
    for n in 0..6 {
        let key = fragment_key(n, n % 2 == 0);
        let seen = now.wrapping_sub(random.of(&[0, 5, 29, 100]));
        let backend = random.below(usize::from(BACKENDS)) as u16;
        state.fragments.push((key, Fragment { backend, is_return: 0, seen, entropy: 77 }));
    }
    for n in 0..8 {
        let id = 1 + random.below(usize::from(BACKENDS) - 1) as u16;
        let (source, destination) = match id % 4 {
            1 | 3 => (backend_v6(id), client_v6(n)),
            _ => (mapped(backend_v4(id)), mapped(client_v4(n))),
        };
        let proto = if id % 2 == 1 { 0 } else { backend_proto(id) };
        let packet = [0, n as u8, 0, 0];
        let key = FragmentKey { source, destination, id: packet, proto, reserved: [0; 3] };
        let seen = now.wrapping_sub(random.of(&[0, 5, 29, 100]));
        let is_return = random.of(&[1, 1, 1, 0]);
        state.fragments.push((key, Fragment { backend: id, is_return, seen, entropy: 0 }));
    }
    state
}

/// A backend's id that suits the family of a service; sometimes none.
pub(super) fn some_backend(random: &mut Random, v6: bool) -> u16 {
    if random.one_in(10) {
        return 0;
    }
    let kinds: &[u16] = if v6 { &[1, 3] } else { &[0, 2, 3] };
    4 * (1 + random.below(7) as u16) + random.of(kinds)
}

fn slot(random: &mut Random, v6: bool, now: u32) -> u64 {
    let current = some_backend(random, v6);
    let base = if random.one_in(2) { some_backend(random, v6) } else { 0 };
    let recent = stamp(now.wrapping_sub(9));
    let pinned = if random.one_in(3) { recent } else { 0 };
    let unpinned = if base != 0 && random.one_in(2) { recent } else { 0 };
    u64::from(Owners { current, base }.to_word())
        | u64::from(unpinned) << 32
        | u64::from(pinned) << 48
}

fn flows(random: &mut Random, state: &mut State, service: &Service, v6: bool, now: u32) {
    let step = if service.flags & service_flags::WIDE == 0 { 1 } else { 4 };
    for n in (0..CLIENTS).step_by(step) {
        let source = if v6 { client_v6(n) } else { mapped(client_v4(n)) };
        let key = FlowKey::new(source, U16::from_bytes(client_port(n)), service.id);
        let key = wide::flow(random, service, key);
        let mut value = || FlowValue {
            backend: some_backend(random, v6),
            flags: random.of(&[0, flow_flags::ESTABLISHED, 3]),
            seen: now.wrapping_sub(random.of(&[0, 1, 58, 80, 5000])),
        };
        if n % 3 == 0 {
            state.pins.push((key, value()));
        }
        if n % 3 == 1 {
            state.tracked.push((key, value()));
        }
        if n % 4 == 0 {
            let key = ConnectionKey { id: connection_id(n), service: service.id, reserved: 0 };
            state.connections.push((key, FlowValue { flags: 0, ..value() }));
        }
    }
}

fn fragment_key(n: usize, v6: bool) -> FragmentKey {
    let id = [0, n as u8, 0, 0];
    if v6 {
        let (source, destination) = (client_v6(n), VIP_V6);
        FragmentKey { source, destination, id, proto: 0, reserved: [0; 3] }
    } else {
        let (source, destination) = (mapped(client_v4(n)), mapped(VIP_V4));
        FragmentKey { source, destination, id, proto: number::TCP, reserved: [0; 3] }
    }
}
