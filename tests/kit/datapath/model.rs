//! The XDP program's effect on a frame, byte by byte on a `Vec`, and its counters, over a model of the tables: naive
//! on purpose.

use std::{cell::Cell, collections::HashMap};

use lb_common::{
    abi::{Backend, backend_flags},
    model::ModelTables,
    nat, nat_connections,
    packet::{Packet, ethernet, ipv4, ipv6, number},
    returns::decide,
    rewrite,
    tables::Tables as _,
    unfinished::{self, Place},
    verdict::{Drop, Forward, Noted, Pass, Reply, ReplyKind, Return, Verdict, events},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::hook::Hook;

/// The actions of XDP on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// XDP_DROP
    Drop = 1,
    /// XDP_PASS
    Pass = 2,
    /// XDP_TX
    Tx = 3,
    /// XDP_REDIRECT
    Redirect = 4,
}

/// Counters of one backend: packets, bytes, new flows, unpinned, SYN retransmissions, the word of what
/// is unanswered, second choices.
pub type BackendCount = [u64; 7];

/// The tables, and the counters that the program would keep.
#[derive(Debug)]
pub struct Model {
    /// The tables.
    pub tables: ModelTables,
    /// Packets and bytes by verdict.
    pub verdicts: HashMap<u32, [u64; 2]>,
    /// The counts of each backend.
    pub counts: HashMap<u16, BackendCount>,
    /// Bytes of the next frame that are in its first buffer.
    pub first_buffer: usize,
    /// How often a bare ACK had something to do.
    pub silences_ended: u64,
    /// Where the program is.
    pub hook: Hook,
    /// [`Packet::segment`] of the next frame.
    pub segment: u32,
    /// The kernel's routes to clients, if there are any.
    pub routes: Option<Routes>,
    /// Answers of each backend in mode `nat`: packets, bytes, SYN-ACKs, refusals.
    pub returns: HashMap<u16, [u64; 4]>,
    /// Whether the last frame was an answer of which the kernel may have written the MAC addresses, behind the program.
    pub is_resolved: bool,
}

/// The kernel's routes to clients: all lead to one interface, other than that of ingress, to which answers may be redirected.
#[derive(Clone, Copy, Debug)]
pub struct Routes {
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
    /// Whose MAC addresses the kernel knows.
    pub neighbours: Neighbours,
}

/// Clients whose MAC addresses the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// None.
    None,
    /// Those whose address ends in an even byte.
    Even,
    /// The interface asks for none (`IFF_NOARP`), and frames go to its own.
    NotAsked,
}

impl Routes {
    /// The MAC address of a client whose address ends in this byte, if the kernel knows it.
    #[must_use]
    pub fn neighbour(self, last: u8) -> Option<[u8; 6]> {
        match self.neighbours {
            Neighbours::None => None,
            Neighbours::Even => last.is_multiple_of(2).then_some([2, 0, 0, 0, 1, last]),
            Neighbours::NotAsked => Some(self.mac),
        }
    }
}

/// A frame that is to leave in segments with so many bytes of payload.
struct Segmented<'a>(&'a [u8], u32);

impl Packet for Segmented<'_> {
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        self.0.load(off)
    }

    fn holds(&self, len: usize) -> bool {
        self.0.holds(len)
    }

    fn segment(&self) -> u32 {
        self.1
    }
}

impl Model {
    /// Empty tables with room for so many pins, and so many ICMP errors a second.
    #[must_use]
    pub fn new(pin_capacity: usize, icmp_rate: u32) -> Self {
        Self {
            tables: ModelTables {
                pin_capacity: Cell::new(pin_capacity),
                icmp_rate,
                ..ModelTables::default()
            },
            verdicts: HashMap::new(),
            counts: HashMap::new(),
            first_buffer: usize::MAX,
            silences_ended: 0,
            hook: Hook::Xdp,
            segment: 0,
            routes: None,
            is_resolved: false,
            returns: HashMap::new(),
        }
    }

    /// Sets the counts of the backends, and by them which of those answer.
    pub fn set_counts(&mut self, counts: HashMap<u16, BackendCount>) {
        for (id, counter) in self.tables.counters.iter().enumerate() {
            let count = u16::try_from(id).ok().and_then(|id| counts.get(&id));
            counter.unanswered.store(count.map_or(0, |count| count[5]));
        }
        self.counts = counts;
    }

    /// Runs a frame that came in on interface `ingress`; returns the program's expected action and the
    /// frame that it must leave.
    pub fn run(&mut self, frame: &[u8], ingress: u32) -> (Action, Vec<u8>) {
        self.is_resolved = false;
        let mut out = frame.to_vec();
        let (reason, action) = match decide(&Segmented(frame, self.segment), &self.tables).owned() {
            Verdict::Pass(reason) => (reason.index(), Action::Pass),
            Verdict::Drop(reason) => (reason.index(), Action::Drop),
            Verdict::Forward(to) => {
                let l2 = usize::from(to.backend.l2_len);
                let is_local = to.backend.is_local();
                if nat::is_nat(&to.backend) && !is_local {
                    self.note_close(frame, &to);
                }
                let same = to.backend.ifindex == ingress;
                if !is_local {
                    out = self.hook.shown(forward(frame, &to, self.computes()), l2, same);
                }
                let count = self.counts.entry(to.id).or_default();
                count[0] += u64::from(to.packets);
                count[1] += u64::from(to.bytes);
                count[2] += u64::from(to.events & events::NEW_FLOW != 0);
                count[3] += u64::from(to.events & events::UNPINNED != 0);
                count[4] += u64::from(to.events & events::SYN_RETRANSMISSION != 0);
                if to.events & events::BARE_ACK != 0 {
                    self.silences_ended += u64::from(count[5] != 0);
                    count[5] = 0;
                }
                if to.events & events::NEW_FLOW != 0 {
                    if count[5] == 0 {
                        count[5] = self.tables.nanos.get() >> 28 << 32;
                    }
                    count[5] += 1;
                }
                count[6] += u64::from(to.events & events::SECOND_CHOICE != 0);
                self.tables.counters[usize::from(to.id)].unanswered.store(count[5]);
                if is_local {
                    return (Action::Pass, out);
                }
                return (if same { Action::Tx } else { Action::Redirect }, out);
            }
            Verdict::Return(to) => match self.answer(frame, &to) {
                Some((action, bytes)) => {
                    let count = self.returns.entry(to.id).or_default();
                    count[0] += u64::from(to.packets);
                    count[1] += u64::from(to.bytes);
                    let (at, now) = ((to.l3, to.v6), self.tables.now());
                    match nat_connections::note_answer(frame, &self.tables, at, to.id, now) {
                        Noted::Accepted => count[2] += 1,
                        Noted::Refused => count[3] += 1,
                        Noted::Other => {}
                    }
                    return (action, bytes);
                }
                None => (Pass::ReturnUntranslated.index(), Action::Pass),
            },
            Verdict::Reply(to) => match reply(frame, &to, self.first_buffer, self.hook) {
                Some(frame) => {
                    out = self.hook.shown(frame, to.l3, true);
                    let reason = match to.kind {
                        ReplyKind::TooBig => Drop::TooBigReplied,
                        ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
                    };
                    (reason.index(), Action::Tx)
                }
                None => (Drop::NoHeadroom.index(), Action::Drop),
            },
        };
        let count = self.verdicts.entry(reason).or_default();
        count[0] += 1;
        count[1] += (frame.len() - self.hook.unseen()) as u64;
        (action, out)
    }
}

impl Model {
    /// Within how many bytes of a frame the program computes a checksum.
    fn computes(&self) -> usize {
        if self.hook == Hook::Xdp { self.first_buffer } else { 0 }
    }

    /// Notes that a client closes its connection to a backend in mode `nat`.
    fn note_close(&self, frame: &[u8], to: &Forward<Backend>) {
        let mut frame = frame.to_vec();
        let part = nat::to_backend(&mut frame[..], to.l3, to.v6, &to.backend);
        let part = part.expect("decided on it");
        if let Some(tcp) = nat_connections::closing(&frame[..], to.l3, part) {
            let at = nat_connections::Place { l3: to.l3, v6: to.v6, tcp };
            let now = self.tables.now();
            nat_connections::note_close(&frame[..], &self.tables, at, to.id, now);
        }
    }

    /// What becomes of an answer in mode `nat`; `None` if the kernel gets it as it came.
    fn answer(&mut self, frame: &[u8], to: &Return<Backend>) -> Option<(Action, Vec<u8>)> {
        let routes = self.routes?;
        let client = match to.v6 {
            true => frame[to.l3 + 24..][..16].to_vec(),
            false => frame[to.l3 + 16..][..4].to_vec(),
        };
        let is_gso = self.hook == Hook::Tc && self.segment > 0;
        let is_long = to.len > routes.mtu && !is_gso;
        let dont_fragment = to.v6 || frame[to.l3 + 6] & 0x40 != 0;
        if !has_route(&client) || (is_long && dont_fragment) {
            return None;
        }
        let mut out = frame.to_vec();
        let was_unfinished = complete(&mut out, to.l3, to.v6, self.computes());
        nat::to_client(&mut out[..], to.l3, to.v6, &to.backend).expect("decided on it");
        // The socket buffer that the kernel gets still says that the checksum is to be computed.
        let mut by_stack = out.clone();
        if was_unfinished {
            let place = unfinished::pseudo_header(&out[..], to.l3, to.v6);
            let (place, sum) = place.expect("it was unfinished");
            by_stack[place.check..][..2].copy_from_slice(&sum);
        }
        if is_long {
            return Some((Action::Pass, by_stack));
        }
        let neighbour = routes.neighbour(client[client.len() - 1]);
        let mac = match (self.hook, neighbour) {
            (Hook::Tc, mac) => mac,
            (_, Some(mac)) if to.l3 == ethernet::LEN => Some(mac),
            _ => return Some((Action::Pass, by_stack)),
        };
        self.is_resolved = self.hook == Hook::Tc;
        let inner = lower_ttl(out[to.l3..].to_vec(), to.v6);
        // The kernel writes the addresses of a frame that it has to find the neighbour of, behind the program.
        let mut addresses = out[..12].to_vec();
        if let Some(mac) = mac {
            addresses = [mac, routes.mac].concat();
        }
        let kind = out[to.l3 - 2..to.l3].to_vec();
        Some((Action::Redirect, [addresses, kind, inner].concat()))
    }
}

/// Computes a checksum that is not computed yet, as XDP does before it translates a packet that is in the first `bytes`; whether
/// that has changed it.
fn complete(frame: &mut [u8], l3: usize, v6: bool, bytes: usize) -> bool {
    let word = unfinished::find(&*frame, l3, v6);
    let place = Place::from_word(word);
    if word == 0 || place.end > bytes.min(frame.len()) {
        return false;
    }
    let mut text = frame[place.begin..place.end].to_vec();
    text.resize(text.len().next_multiple_of(2), 0);
    let computed = match !rewrite::fold(rewrite::sum(&text)) {
        0 if place.check - place.begin == 6 => 0xffff,
        computed => computed,
    };
    let before = core::mem::replace(
        frame[place.check..].first_chunk_mut().expect("it is in the packet"),
        computed.to_be_bytes(),
    );
    before != computed.to_be_bytes()
}

/// Whether the kernel has a route to an address: a client's.
fn has_route(address: &[u8]) -> bool {
    matches!(address, [198, 51, 100, _] | [0x20, 1, 0xd, 0xb8, 0xc1, ..])
}

/// A packet one hop later.
fn lower_ttl(mut packet: Vec<u8>, v6: bool) -> Vec<u8> {
    if v6 {
        ipv6::Ipv6::mut_from_prefix(&mut packet).expect("decided on it").0.hop_limit -= 1;
    } else {
        let ip = ipv4::Ipv4::mut_from_prefix(&mut packet).expect("decided on it").0;
        ip.ttl -= 1;
        ip.check.set(rewrite::check_after_ttl(ip.check.get()));
    }
    packet
}

/// The frame that leaves for a backend.
fn forward(frame: &[u8], to: &Forward<Backend>, computes: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if nat::is_nat(&to.backend) {
        complete(&mut frame, to.l3, to.v6, computes);
        nat::to_backend(&mut frame[..], to.l3, to.v6, &to.backend).expect("decided on it");
    }
    let inner = lower_ttl(frame[to.l3..].to_vec(), to.v6);
    let (class, next) = if to.v6 {
        let ip = ipv6::Ipv6::ref_from_prefix(&inner).expect("decided on it").0;
        (ip.class(), number::IPV6)
    } else {
        let ip = ipv4::Ipv4::ref_from_prefix(&inner).expect("decided on it").0;
        (ip.tos, number::IPV4)
    };
    let mut out = to.backend.l2[..usize::from(to.backend.l2_len)].to_vec();
    if to.backend.flags & backend_flags::TUNNEL != 0 {
        if to.backend.flags & backend_flags::V6 != 0 {
            let outer = rewrite::outer_v6(&to.backend, class, to.len, next, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        } else {
            let outer = rewrite::outer_v4(&to.backend, class, to.len, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        }
    }
    out.extend_from_slice(&inner);
    out
}

/// The ICMP error that goes back to the sender; the long quote is one of the first buffer.
fn reply(frame: &[u8], to: &Reply, first_buffer: usize, hook: Hook) -> Option<Vec<u8>> {
    let mut out = frame[..to.l3].to_vec();
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].copy_from_slice(&frame[..6]);
    let packet = &frame[to.l3..];
    let mut quote_len = rewrite::quote_len(to.kind, to.v6, to.len);
    if to.l3 + quote_len > first_buffer {
        quote_len = if to.v6 { rewrite::QUOTE_SHORT_V6 } else { rewrite::QUOTE_SHORT_V4 };
    }
    let quote_len = hook.quote_len(packet, to.v6, quote_len);
    let quote = hook.quote(packet.get(..quote_len)?.to_vec(), to.v6);
    let sum = rewrite::sum(&quote);
    if to.v6 {
        let ip = ipv6::Ipv6::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v6(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    } else {
        let ip = ipv4::Ipv4::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v4(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    }
    out.extend_from_slice(&quote);
    Some(out)
}
