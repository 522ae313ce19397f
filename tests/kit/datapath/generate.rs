//! Random states of the tables and random frames that meet them: a few clients, VIPs and
//! identifications, so that pins, fragments and connections are hit often.

use lb_common::{
    abi::{
        Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, Owners, PeerKey,
        ReverseKey, ReversePrefix, Service, ServiceKeyV4, ServiceKeyV6, Unanswered, VipKey,
        backend_flags, flow_flags, mapped, service_flags, stamp, udp_policy,
    },
    hash::FlowKeys,
    packet::{
        ethernet, icmp,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    rewrite, unfinished,
    wide::WideKey,
};
use lb_model::entry;
use zerocopy::{IntoBytes, network_endian::U16};

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
const NODE_V4: [u8; 4] = [10, 0, 0, 1];
/// The MAC address that frames come to.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN_TOO: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Ports, protocol, and for UDP the policy, of the services at each VIP.
const PORTS: [(u16, u8, u8); 6] = [
    (80, number::TCP, 0),
    (81, number::TCP, 0),
    (443, number::TCP, 0),
    (53, number::UDP, udp_policy::ONESHOT),
    (54, number::UDP, udp_policy::TRACKED),
    (443, number::UDP, udp_policy::QUIC),
];
const CLIENTS: usize = 24;
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

/// Sources that no ICMP error may go to.
const BAD_V4: [[u8; 4]; 7] = [
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [127, 0, 0, 1],
    [224, 0, 0, 1],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
    VIP_V4,
];
/// The same for IPv6.
const BAD_V6: [[u8; 16]; 4] = [
    [0; 16],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    VIP_V6,
];

/// The IPv4 address of a backend.
fn backend_v4(id: u16) -> [u8; 4] {
    [192, 0, 2, id as u8]
}

/// The IPv6 address of a backend.
fn backend_v6(id: u16) -> [u8; 16] {
    let mut address = VIP_V6;
    address[14] = 1;
    address[15] = id as u8;
    address
}

/// The port at which a backend in mode `nat` listens.
fn backend_port(id: u16) -> [u8; 2] {
    (8_000 + id).to_be_bytes()
}

/// The protocol of a backend in mode `nat`.
const fn backend_proto(id: u16) -> u8 {
    if id.is_multiple_of(3) { number::UDP } else { number::TCP }
}

fn client_v4(n: usize) -> [u8; 4] {
    [198, 51, 100, n as u8]
}

fn client_v6(n: usize) -> [u8; 16] {
    let mut address = VIP_V6;
    address[4] = 0xc1;
    address[15] = n as u8;
    address
}

fn client_port(n: usize) -> [u8; 2] {
    (4000 + n as u16 % 3).to_be_bytes()
}

fn connection_id(n: usize) -> [u8; 8] {
    [0xc0, n as u8, 1, 2, 3, 4, 5, 6]
}

/// A link-layer header with as many tags as it has room for.
fn link_header(random: &mut Random, len: u8) -> [u8; 22] {
    let mut header: [u8; 22] = random.bytes();
    for tpid in (ethernet::LEN..usize::from(len)).step_by(ethernet::TAG_LEN) {
        // The kernel takes no other for tc.
        let kind = if header[tpid].is_multiple_of(2) { ethernet::VLAN } else { ethernet::QINQ };
        header[tpid - 2..tpid].copy_from_slice(&kind.to_be_bytes());
    }
    header
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
fn some_backend(random: &mut Random, v6: bool) -> u16 {
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

/// A random frame: most are well-formed and for a service, the rest is neither.
pub fn frame(random: &mut Random) -> Vec<u8> {
    frame_with(random, 6)
}

/// The same; each is from a backend.
pub fn frame_of_backend(random: &mut Random) -> Vec<u8> {
    frame_with(random, 1)
}

/// A random frame; one in `from_backend` is from a backend.
fn frame_with(random: &mut Random, from_backend: usize) -> Vec<u8> {
    let v6 = random.one_in(2);
    let packet = match (v6, random.one_in(from_backend)) {
        (true, true) => return_v6(random),
        (true, false) => packet_v6(random),
        (false, true) => return_v4(random),
        (false, false) => packet_v4(random),
    };
    let destination =
        random.of(&[OWN, OWN, OWN, OWN, OWN, OWN_TOO, [0xff; 6], [2, 0, 0, 0, 0, 77]]);
    let ethertype = if random.one_in(60) {
        random.of(&[0x0806, 0x88cc, 0, 0xffff])
    } else if v6 {
        ethernet::IPV6
    } else {
        ethernet::IPV4
    };
    let mut frame = [destination, GATEWAY].concat();
    for _ in 0..random.of(&[0, 0, 0, 0, 1, 2, 2, 3]) {
        frame.extend(random.of(&[ethernet::VLAN, ethernet::QINQ]).to_be_bytes());
        frame.extend(random.bytes::<2>());
    }
    frame.extend(ethertype.to_be_bytes());
    let l3 = frame.len();
    frame.extend(packet);
    if random.one_in(4)
        && let Some((place, sum)) = unfinished::pseudo_header(&frame[..], l3, v6)
        && let Some(check) = frame.get_mut(place.check..place.check + 2)
    {
        check.copy_from_slice(&sum);
    }
    damage(random, &mut frame);
    // The kernel's test run takes no frame shorter than an Ethernet header.
    if frame.len() < 60 && random.one_in(2) {
        frame.resize(60, 0);
    }
    frame.resize(frame.len().max(ethernet::LEN), 0);
    frame
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(12) {
        0 => frame.truncate(ethernet::LEN + random.below(frame.len())),
        1 => {
            for _ in 0..=random.below(3) {
                let at = random.below(frame.len().min(96));
                frame[at] ^= 1 << random.below(8);
            }
        }
        2 => {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        _ => {}
    }
}

/// The VIP's last byte, the port and the protocol of a packet.
fn target(random: &mut Random) -> (u8, u16, u8) {
    if random.one_in(4) {
        return wide::target(random);
    }
    if random.one_in(12) {
        return (VIP_V4[3], random.of(&[22, 0, 8080]), random.of(&[number::TCP, number::UDP]));
    }
    let (port, proto, _) = random.of(&PORTS);
    (VIP_V4[3], port, proto)
}

/// A transport header from `from` to `to` with a payload.
fn transport(random: &mut Random, proto: u8, from: [u8; 2], to: [u8; 2]) -> Vec<u8> {
    let mut out = [from, to].concat();
    let payload_len = random.of(&[0, 0, 1, 64, 300, 560, 1232, 1400, 1440, 1460]);
    let mut payload = vec![0x5a; payload_len];
    if proto == number::TCP {
        // Few sequence numbers, so that some SYNs are sent again.
        out.extend([0, 0, 0, random.below(3) as u8]);
        out.extend(random.bytes::<4>());
        let flags = random.of(&[0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x04, 0x12, 0x06, 0xc2]);
        out.extend([random.of(&[0x50, 0x50, 0x50, 0x80, 0xf0, 0x40]), flags]);
        out.extend([0xff, 0xff, 0, 0, 0, 0]);
    } else {
        if random.one_in(2) {
            payload = quic(random);
        }
        let len = 8 + payload.len() as u16;
        let len = if random.one_in(15) { random.of(&[0, 7, 8, 9999]) } else { len };
        out.extend(len.to_be_bytes());
        out.extend([0, 0]);
    }
    out.extend(payload);
    out
}

fn quic(random: &mut Random) -> Vec<u8> {
    let id = connection_id(random.below(CLIENTS));
    let kind = random.below(4) as u8;
    let mut out = match random.below(4) {
        0 => vec![0x40 | random.next() as u8 & 0x3f],
        _ => {
            let mut out = vec![0xc0 | kind << 4];
            out.extend(random.of(&[[0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf], [0xff, 0, 0, 0x1d]]));
            out.push(random.of(&[8, 8, 20, 4, 0]));
            out
        }
    };
    out.extend(id);
    out.extend(vec![0; random.of(&[0, 20, 1190])]);
    out
}

fn header_v4(random: &mut Random, proto: u8, len: usize, from: [u8; 4], to: [u8; 4]) -> Ipv4 {
    let mut ip = Ipv4 {
        tos: random.next() as u8,
        total_len: U16::new((ipv4::LEN + len) as u16),
        id: [0, random.below(8) as u8],
        fragment: U16::new(random.of(&[0, 0, 0x4000])),
        ttl: random.of(&[64, 64, 64, 64, 128, 255, 2, 1, 0]),
        proto,
        ..rewrite::ipv4_template(from, to)
    };
    ip.check = U16::new(!rewrite::fold(rewrite::sum(ip.as_bytes())));
    ip
}

fn packet_v4(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let client = if random.one_in(12) { random.of(&BAD_V4) } else { client_v4(n) };
    let (last, port, proto) = target(random);
    let vip = if random.one_in(10) { NODE_V4 } else { wide::vip_v4(last) };
    if random.one_in(8) {
        return icmp_v4(random, n, vip, port, proto);
    }
    let proto = if random.one_in(40) { random.of(&[1, 2, 47, 58, 89, 132]) } else { proto };
    let segment = transport(random, proto, client_port(n), port.to_be_bytes());
    let mut ip = header_v4(random, proto, segment.len(), client, vip);
    if random.one_in(6) {
        ip.fragment = U16::new(random.of(&[0x2000, 0x2000, 0x2001, 0x00b9, 0x1fff]));
    }
    let mut out = ip.as_bytes().to_vec();
    if random.one_in(12) {
        // Options: no-operations.
        let words = 1 + random.below(10);
        out[0] += words as u8;
        out.extend(vec![1; 4 * words]);
        ip.total_len += words as u16 * 4;
        out[2..4].copy_from_slice(ip.total_len.as_bytes());
    }
    out.extend(segment);
    out
}

/// A packet of a backend to a client: an answer, if it is one in mode `nat`, or an ICMP error about a packet to it.
fn return_v4(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let id = 1 + random.below(usize::from(BACKENDS) - 1) as u16;
    let (port, proto) = (backend_port(id), backend_proto(id));
    let client = if random.one_in(12) { NODE_V4 } else { client_v4(n) };
    if random.one_in(4) {
        let segment = transport(random, proto, client_port(n), port);
        let quoted = header_v4(random, proto, segment.len(), client, backend_v4(id));
        let mut message = vec![random.of(&[3, 3, 11, 12, 8]), 0, 0, 0, 0, 0, 5, 0];
        message.extend(quoted.as_bytes());
        message.extend(&segment[..segment.len().min(8 + random.below(20))]);
        let from = random.of(&[backend_v4(id), client_v4(201)]);
        let ip = header_v4(random, number::ICMP, message.len(), from, client);
        return [ip.as_bytes(), &message].concat();
    }
    let segment = transport(random, proto, port, client_port(n));
    let mut ip = header_v4(random, proto, segment.len(), backend_v4(id), client);
    if random.one_in(4) {
        ip.fragment = U16::new(random.of(&[0x2000, 0x2000, 0x00b9, 0x00b9]));
    }
    [ip.as_bytes(), &segment].concat()
}

/// An ICMP message to the VIP: most quote a packet that the VIP sent to the client.
fn icmp_v4(random: &mut Random, n: usize, vip: [u8; 4], port: u16, proto: u8) -> Vec<u8> {
    let quoted_from = if random.one_in(12) { NODE_V4 } else { vip };
    let segment = transport(random, proto, port.to_be_bytes(), client_port(n));
    let mut quoted = header_v4(random, proto, segment.len(), quoted_from, client_v4(n));
    if random.one_in(12) {
        quoted.fragment = U16::new(0x00b9);
    }
    let kind = random.of(&[icmp::UNREACHABLE, icmp::UNREACHABLE, icmp::TIME_EXCEEDED, 12, 8, 0, 5]);
    let mut message = vec![kind, random.below(5) as u8, 0, 0, 0, 0, 5, 0];
    message.extend(quoted.as_bytes());
    message.extend(&segment[..segment.len().min(8 + random.below(20))]);
    let ip = header_v4(random, number::ICMP, message.len(), client_v4(200), vip);
    [ip.as_bytes(), &message].concat()
}

fn header_v6(random: &mut Random, next: u8, len: usize, from: [u8; 16], to: [u8; 16]) -> Ipv6 {
    Ipv6 {
        version_class_label: [0x60 | random.next() as u8 & 0xf, random.next() as u8, 1, 2],
        payload_len: U16::new(len as u16),
        next,
        hop_limit: random.of(&[64, 64, 64, 64, 128, 255, 2, 1, 0]),
        source: from,
        destination: to,
    }
}

/// A chain of extension headers that ends in `last`; returns its first protocol number.
fn extensions(random: &mut Random, last: u8) -> (u8, Vec<u8>) {
    let mut kinds = Vec::new();
    for _ in 0..random.of(&[0, 0, 0, 1, 1, 2, 3, 6, 8]) {
        kinds.push(random.of(&[
            number::HOP_BY_HOP,
            number::ROUTING,
            number::DESTINATION,
            number::FRAGMENT,
        ]));
    }
    let mut out = Vec::new();
    for (index, &kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(last);
        if kind == number::FRAGMENT {
            let offset_more = random.of(&[0u16, 1, 1, 0x00b8, 0x00b9, 6]);
            out.extend([next, 0]);
            out.extend(offset_more.to_be_bytes());
            out.extend([0, random.below(8) as u8, 0, 0]);
        } else {
            let words = random.of(&[0, 0, 1, 5]);
            out.extend([next, words]);
            out.extend(vec![0; 6 + 8 * usize::from(words)]);
        }
    }
    (kinds.first().copied().unwrap_or(last), out)
}

fn packet_v6(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let client = if random.one_in(12) { random.of(&BAD_V6) } else { client_v6(n) };
    let (last, port, proto) = target(random);
    let vip = if random.one_in(10) { client_v6(250) } else { wide::vip_v6(last) };
    let (proto, segment) = if random.one_in(8) {
        (number::ICMPV6, icmp_v6(random, n, vip, port, proto))
    } else {
        let proto = if random.one_in(40) { random.of(&[58, 59, 50, 1, 41]) } else { proto };
        (proto, transport(random, proto, client_port(n), port.to_be_bytes()))
    };
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let mut ip = header_v6(random, next, payload.len(), client, vip);
    if random.one_in(50) {
        ip.payload_len = U16::new(random.of(&[0, 0xffff, 0xfff0]));
    }
    [ip.as_bytes(), &payload].concat()
}

/// The same for IPv6.
fn return_v6(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let id = 1 + random.below(usize::from(BACKENDS) - 1) as u16;
    let (port, proto) = (backend_port(id), backend_proto(id));
    let client = if random.one_in(12) { client_v6(250) } else { client_v6(n) };
    if random.one_in(4) {
        let segment = transport(random, proto, client_port(n), port);
        let (next, mut payload) = extensions(random, proto);
        payload.extend(segment);
        let quoted = header_v6(random, next, payload.len(), client, backend_v6(id));
        let mut message = vec![random.of(&[1, 2, 3, 4, 128]), 0, 0, 0, 0, 0, 5, 0];
        message.extend(quoted.as_bytes());
        message.extend(&payload[..payload.len().min(8 + random.below(120))]);
        message.truncate(1280 - ipv6::LEN);
        let from = random.of(&[backend_v6(id), client_v6(252)]);
        let ip = header_v6(random, number::ICMPV6, message.len(), from, client);
        return [ip.as_bytes(), &message].concat();
    }
    let segment = transport(random, proto, port, client_port(n));
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let ip = header_v6(random, next, payload.len(), backend_v6(id), client);
    [ip.as_bytes(), &payload].concat()
}

fn icmp_v6(random: &mut Random, n: usize, vip: [u8; 16], port: u16, proto: u8) -> Vec<u8> {
    let quoted_from = if random.one_in(12) { client_v6(251) } else { vip };
    let segment = transport(random, proto, port.to_be_bytes(), client_port(n));
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let quoted = header_v6(random, next, payload.len(), quoted_from, client_v6(n));
    let mut message = vec![random.of(&[1, 2, 2, 3, 4, 0, 5, 128, 135]), 0, 0, 0, 0, 0, 5, 0];
    message.extend(quoted.as_bytes());
    let cut = payload.len().min(8 + random.below(120));
    message.extend(&payload[..cut]);
    let max = 1280 - ipv6::LEN;
    message.truncate(max);
    message
}
