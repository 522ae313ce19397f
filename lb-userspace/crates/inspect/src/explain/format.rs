//! The notes of a decision, as text.

use std::net::SocketAddr;

use lb_api::status::{self, Status};
use lb_common::{
    abi::{
        Backend, Destination, FlowKey, FlowValue, Owners, Service, Unanswered, backend_flags,
        flow_flags, service_flags, stamp, stamp_age, udp_policy,
    },
    hash::slot_of,
    nat,
    packet::{number, tcp},
    rewrite, steer,
    verdict::{Pass, ReplyKind, Verdict, events},
};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Mode, ServiceKey},
    entry,
    flow::{FlowRef, hash_of_flow},
    units::counted,
};

use super::{
    Around, Explained, Next, Outcome, Plain, Questions, Snap, counters_of,
    leave::Left,
    overlay::{Note, Write},
    packet, reason_of,
    steps::Steps,
    text::{drop_text, flow_word, pass_text, state},
};

const SECOND: u64 = 1_000_000_000;

/// Describes notes as text, with the names and states of the node.
pub(crate) struct Narrator<'a> {
    status: &'a Status,
    nanos: u64,
    ingress: u32,
    cpu: u32,
}

/// A service as it was found.
#[derive(Clone, Copy)]
struct Met<'a> {
    service: Service,
    named: Option<(&'a str, &'a status::Service)>,
}

impl<'a> Narrator<'a> {
    pub fn new(around: &Around<'a>, ingress: u32, questions: &Questions) -> Self {
        Self { status: around.status, nanos: around.nanos, ingress, cpu: questions.cpu }
    }

    /// Fills in the steps and the end of a decision.
    pub(crate) fn fill(
        &self,
        explained: &mut Explained,
        snap: &Snap,
        verdict: &Plain,
        notes: &[Note],
        left: &Left,
    ) {
        let mut steps = Steps::default();
        self.parse(&mut steps, snap, verdict);
        let met = notes.iter().find_map(|note| match note {
            Note::Service(Some(key), Some(service)) => Some(self.met(key, *service)),
            _ => None,
        });
        if let Some(Met { named: Some((name, _)), .. }) = met {
            explained.service = Some(name.into());
        }
        explained.slot = notes.iter().find_map(|note| match note {
            Note::Slot { index, .. } => Some(*index),
            _ => None,
        });
        self.lookups(&mut steps, snap, verdict, notes, met);
        match verdict {
            Verdict::Pass(reason) => steps.add("end", pass_text(*reason)),
            Verdict::Drop(reason) => steps.add("end", drop_text(*reason)),
            Verdict::Reply(reply) => {
                let text = match reply.kind {
                    ReplyKind::TooBig => format!(
                        "the packet is longer than the {} bytes that reach the backend: its sender \
                         gets an ICMP error",
                        reply.mtu
                    ),
                    ReplyKind::TtlExceeded => {
                        "its time to live has run out here: its sender gets an ICMP error".into()
                    }
                };
                steps.add("answer", text);
            }
            Verdict::Return(to) => {
                explained.backend = Some(entry::backend_of(&to.backend));
                explained.backend_id = to.id;
                let vip = translation(to.backend.vip, to.backend.vip_port.get());
                let backend = self.backend(to.id);
                steps.add("return", format!("an answer of {backend}: its source becomes {vip}"));
                steps.add("egress", "by the kernel's route to the client".into());
            }
            Verdict::Forward(to) => {
                explained.backend = Some(entry::backend_of(&to.backend));
                explained.backend_id = to.id;
                self.way(&mut steps, to.id, &to.backend, to.len, met);
                if to.events & events::SECOND_CHOICE != 0 {
                    steps.add("second choice", "the SYN is pinned to another backend".into());
                }
            }
        }
        if left.no_room {
            steps.add("headers", "the frame is too short for them".into());
        } else if left.action != "XDP_PASS"
            && matches!(verdict, Verdict::Forward(_) | Verdict::Reply(_) | Verdict::Return(_))
        {
            for line in packet::headers(&left.bytes) {
                steps.add("leaves", line);
            }
        }
        explained.steps = steps.0;
        match reason_of(verdict, left.no_room) {
            Some((outcome, reason)) => {
                let verdict = if outcome == Outcome::Passed { "passed" } else { "dropped" };
                explained.outcome = outcome;
                explained.reason = Some(reason.into());
                explained.counted = format!("{verdict} {reason}");
            }
            None => {
                explained.outcome = Outcome::Forwarded;
                if let Verdict::Return(to) = verdict {
                    explained.outcome = Outcome::Returned;
                    explained.counted = format!("backend {}: answers", self.backend(to.id));
                }
                if let Verdict::Forward(to) = verdict {
                    let names = counters_of(to.events).join(", ");
                    explained.counted = format!("backend {}: {names}", self.backend(to.id));
                }
            }
        }
    }

    fn met(&self, key: &ServiceKey, service: Service) -> Met<'a> {
        let is_met = |known: &ServiceKey| {
            if !is_wide(&service) {
                return known == key;
            }
            let has = known.vips().contains(key.vip) && known.ports().contains(key.port);
            has && known.protocol == key.protocol && !known.extent.is_one()
        };
        let services = self.status.services.iter().filter(|(_, known)| is_met(&known.key));
        let named = services.min_by_key(|(_, known)| known.key.extent);
        Met { service, named: named.map(|(name, service)| (name.as_str(), service)) }
    }

    fn parse(&self, steps: &mut Steps, snap: &Snap, verdict: &Plain) {
        for line in packet::headers(&snap.bytes) {
            steps.add("comes", line);
        }
        if !snap.is_whole() {
            let (have, had) = (snap.bytes.len(), snap.length);
            steps.add("comes", format!("only {have} of its {had} bytes were saved"));
        }
        let at = packet::transport(&snap.bytes);
        if let Some(at) = &at
            && at.proto == number::TCP
            && let Some(flags) = snap.bytes.get(at.offset + 13)
        {
            let text = if flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN {
                "a SYN: it opens a flow"
            } else if flags & (tcp::RST | tcp::FIN) != 0 {
                "FIN or RST: it belongs to a flow, and the client is done"
            } else {
                "neither SYN, FIN nor RST: it belongs to a flow that is there"
            };
            steps.add("parse", text.into());
        }
        if !matches!(verdict, Verdict::Pass(Pass::OtherHost)) {
            let to: Option<[u8; 6]> = snap.bytes.get(..6).and_then(|mac| mac.try_into().ok());
            let to = to.map(packet::mac).unwrap_or_default();
            let interface = self.interface(self.ingress);
            let addressed = if packet::is_raw_ip(&snap.bytes) {
                "without an Ethernet header every frame is for this node".to_owned()
            } else {
                format!("{to} on {interface} is this node")
            };
            let text = format!("{addressed}; CPU {}", self.cpu);
            steps.add("node", text);
        }
    }

    /// The lookups, in their order.
    fn lookups(
        &self,
        steps: &mut Steps,
        snap: &Snap,
        verdict: &Plain,
        notes: &[Note],
        met: Option<Met<'_>>,
    ) {
        let mut searches = 0;
        for note in notes {
            match note {
                Note::Service(key, found) => {
                    steps.add("service", self.service(*key, found.as_ref()));
                    if let Some(hash) = found.and_then(|service| hash(snap, &service, notes)) {
                        let more = match found.as_ref().is_some_and(is_wide) {
                            true => ", and the destination's port",
                            false => "",
                        };
                        let of = format!("{hash:#018x} of the client's address and port{more}");
                        steps.add("hash", of);
                    }
                }
                Note::NoSlot => steps.add("slot", "the service has no ring: no backend".into()),
                Note::Slot { index, owners, unpinned, pinned, .. } => {
                    searches += 1;
                    if searches > 1 {
                        let text = format!(
                            "slot {index} is asked for a second choice: {}",
                            self.backend(owners.current)
                        );
                        steps.add("second choice", text);
                        continue;
                    }
                    steps.add("slot", self.slot(*index, *owners, met));
                    self.stamps(steps, *owners, *unpinned, *pinned, met);
                }
                Note::Flow(flow, value) => {
                    let text = self.flow(flow, *value, met);
                    steps.add(flow_word(flow), text);
                }
                Note::Lease(until) => {
                    if met.is_some_and(|met| met.service.flags & service_flags::PINNING_PAUSED != 0)
                    {
                        steps.add("pins", "paused: another node is about to take over".into());
                    } else if *until != 0 && self.nanos > *until {
                        let text = "lbd's lease is over: no pin is made, but in place of a backend \
                                    that is down";
                        steps.add("pins", text.into());
                    }
                }
                Note::Budget(tokens, refilled) => {
                    steps.add("budget", self.budget(*tokens, *refilled, met));
                }
                Note::Insert(flow, value, room) => {
                    let to = self.backend(value.backend);
                    let text = match room {
                        true => format!("would be made: to {to}"),
                        false => "there is no room for another".into(),
                    };
                    steps.add(flow_word(flow), text);
                }
                Note::Reverse(key, found) => {
                    let at = SocketAddr::new(entry::ip_of(key.address), key.port.get());
                    let text = match found {
                        Some(id) => format!("{at} is backend {}", self.backend(*id)),
                        None => format!("{at} is no backend in mode nat"),
                    };
                    steps.add("source", text);
                }
                Note::SynMark => {
                    let again = matches!(
                        verdict,
                        Verdict::Forward(to) if to.events & events::SYN_RETRANSMISSION != 0
                    );
                    let text = match again {
                        true => "the SYN was seen before: it is sent again",
                        false => "the SYN was not seen before",
                    };
                    steps.add("mark", text.into());
                }
                Note::Unanswered(id, word) => {
                    steps.add("silence", self.silence(*id, *word));
                }
                Note::Handshake(age) => steps.add(
                    "quic",
                    match age {
                        Some(age) if *age <= steer::HANDSHAKE_TIMEOUT => {
                            format!("a part of the handshake that this client began {age} s ago")
                        }
                        _ => "the first packet of a handshake, which the rest would follow".into(),
                    },
                ),
                Note::Fragment(found) => steps.add(
                    "fragment",
                    match found {
                        Some(first) if first.backend == 0 => {
                            "its first fragment was for the node itself".into()
                        }
                        Some(first) => {
                            let to = self.backend(first.backend);
                            let age = self.age(first.seen);
                            format!("its first fragment went to {to}, {age} s ago")
                        }
                        None => "its first fragment was not seen".into(),
                    },
                ),
                Note::InsertFragment(id) => {
                    let to = self.backend(*id);
                    steps.add("fragment", format!("the others would follow it to {to}"));
                }
                Note::Vip(is) => {
                    let text = if *is { "the address is a VIP" } else { "the address is no VIP" };
                    steps.add("vip", text.into());
                }
                Note::Backend(id, found) => {
                    let usable = found.is_some_and(|b| b.flags & backend_flags::USABLE != 0);
                    if !usable {
                        steps.add("backend", self.unusable(*id));
                    }
                }
                Note::Peer(mac, Some(id)) => {
                    let (from, to) = (packet::mac(*mac), self.backend(*id));
                    let text = format!("{from} is another balancer: delivered to {to} here");
                    steps.add("peer", text);
                }
                Note::Peer(_, None) | Note::PinNoted => {}
            }
        }
    }

    fn service(&self, key: Option<ServiceKey>, found: Option<&Service>) -> String {
        let Some(key) = key else { return "no service has this protocol".into() };
        let Some(service) = found else { return format!("{key} is none") };
        let Met { named, .. } = self.met(&key, *service);
        let name = named.map_or("(not in the configuration)", |(name, _)| name);
        let policy = match (key.protocol.number() == number::UDP, service.udp_policy) {
            (false, _) => "",
            (true, udp_policy::ONESHOT) => ", oneshot",
            (true, udp_policy::QUIC) => ", quic",
            (true, _) => ", tracked",
        };
        let mode = named.map_or(String::new(), |(_, service)| format!(", {}", service.mode));
        let (id, slots) = (service.id, service.slots);
        let key = named.map_or(key, |(_, service)| service.key);
        format!("{name}: {key}{policy}{mode}, id {id}, a ring of {slots} slots")
    }

    fn slot(&self, index: u32, owners: Owners, met: Option<Met<'_>>) -> String {
        let of = met.map_or(String::new(), |met| format!(" of {}", met.service.slots));
        let current = match owners.current {
            0 => "nobody takes new flows".into(),
            id => format!("the current owner is {}", self.backend(id)),
        };
        let base = match owners.base {
            0 => "no base owner: steady".into(),
            id => {
                format!("the base owner, who has the older flows, is {}: in flux", self.backend(id))
            }
        };
        format!("{index}{of}: {current}; {base}")
    }

    fn stamps(
        &self,
        steps: &mut Steps,
        owners: Owners,
        unpinned: u16,
        pinned: u16,
        met: Option<Met<'_>>,
    ) {
        let now = stamp((self.nanos / SECOND) as u32);
        let ago = |stamp: u16| match stamp {
            0 => "never".into(),
            then => format!("{} s ago", stamp_age(now, then)),
        };
        if owners.base != 0 || unpinned != 0 || pinned != 0 {
            let text = format!(
                "last packet to the base owner {}, last use of a pin {}",
                ago(unpinned),
                ago(pinned)
            );
            steps.add("stamps", text);
        }
        let stateless = met.is_some_and(|met| {
            let udp = met.named.is_some_and(|(_, known)| known.udp_policy.is_some());
            udp && met.service.udp_policy != udp_policy::QUIC
        });
        if stateless {
            return;
        }
        if owners.base == 0 && pinned == 0 {
            steps.add("pin", "not looked for: the slot is steady and has none".into());
        } else if pinned == 0 {
            steps.add("pin", "not looked for: no flow of the slot has one".into());
        }
    }

    fn flow(&self, flow: &FlowRef, value: Option<FlowValue>, met: Option<Met<'_>>) -> String {
        let Some(value) = value else { return "none for this flow".into() };
        let mut words = Vec::new();
        if value.flags & flow_flags::ESTABLISHED != 0 {
            words.push("established");
        }
        if value.flags & flow_flags::CLOSING != 0 {
            words.push("closing");
        }
        let idle = met.map_or(u32::MAX, |met| met.service.idle_timeout);
        let age = self.age(value.seen);
        if age > idle && !matches!(flow, FlowRef::Connection(_)) {
            words.push("idle for too long");
        }
        let words = if words.is_empty() { "opening".into() } else { words.join(", ") };
        format!("to {}, {words}, last packet {age} s ago", self.backend(value.backend))
    }

    fn budget(&self, word: u64, refilled: u64, met: Option<Met<'_>>) -> String {
        let (tokens, share) = (word & u64::from(u32::MAX), word >> 32);
        let rate = match share {
            0 => met.map_or(0, |met| u64::from(met.service.syn_budget)),
            share => share,
        };
        let elapsed = self.nanos.wrapping_sub(refilled);
        let now = match elapsed >= SECOND {
            true => rate,
            false => (tokens + elapsed * rate / SECOND).min(rate.max(tokens)),
        };
        let left = if now == 0 { "spent: no pin" } else { "a pin can be had" };
        format!("{now} of {} of this second left on CPU {}: {left}", counted(rate, "pin"), self.cpu)
    }

    fn silence(&self, id: u16, word: Unanswered) -> String {
        let of = self.backend(id);
        match word.is_silence(self.nanos) {
            true => {
                let syns = counted(word.syns(), "SYN");
                format!("{of} has answered none of {syns}: taken for silent")
            }
            false => format!("{of} is not known to be silent"),
        }
    }

    /// How a packet goes to its backend.
    fn way(&self, steps: &mut Steps, id: u16, backend: &Backend, len: u16, met: Option<Met<'_>>) {
        let known = met.and_then(|met| met.named).and_then(|(_, service)| {
            let (_, backend) = service.backends.iter().find(|(_, b)| b.id == id)?;
            Some((service, backend))
        });
        let state = known.map_or_else(
            || String::from("not in the configuration any more"),
            |(_, backend)| state(backend),
        );
        let suspect = backend.flags & backend_flags::SUSPECT != 0;
        let suspect = if suspect { ", suspected to be silent" } else { "" };
        steps.add("backend", format!("{}: {state}{suspect}", self.backend(id)));
        if backend.is_local() {
            steps.add("egress", "this node itself: its own stack has the packet as it came".into());
            return;
        }
        let tunnel = backend.flags & backend_flags::TUNNEL != 0;
        let (mode, how) = match (tunnel, nat::is_nat(backend)) {
            (true, _) => (Mode::Ipip, "a header is put before it".to_owned()),
            (false, false) => (Mode::Dsr, "the MAC addresses change".to_owned()),
            (false, true) => {
                let to = translation(backend.address, nat::port_of(backend).get());
                (Mode::Nat, format!("its destination becomes {to}"))
            }
        };
        steps.add("mode", format!("{mode}: {how}, the TTL is lowered by one"));
        let hop: Option<[u8; 6]> = backend.l2.get(..6).and_then(|mac| mac.try_into().ok());
        let hop = hop.map(packet::mac).unwrap_or_default();
        steps.add("next hop", hop);
        let interface = known.and_then(|(_, backend)| backend.interface.clone());
        let interface = interface.unwrap_or_else(|| self.interface(backend.ifindex));
        let same = backend.ifindex == self.ingress;
        let action = if same { "where it came from (XDP_TX)" } else { "redirected (XDP_REDIRECT)" };
        steps.add("egress", format!("{interface}: {action}"));
        steps.add("mtu", format!("{len} of at most {} bytes", backend.mtu));
        if tunnel {
            let ttl = rewrite::TTL;
            steps.add("tunnel", format!("to {}, TTL {ttl}", entry::ip_of(backend.address)));
        }
    }

    fn unusable(&self, id: u16) -> String {
        if id == 0 {
            return "none".into();
        }
        let why = self.named(id).and_then(|(_, backend)| backend.unusable.clone());
        let why = why.map_or(String::new(), |why| format!(" ({why})"));
        format!("{} can't be sent to{why}", self.backend(id))
    }

    fn age(&self, seen: u32) -> u32 {
        ((self.nanos / SECOND) as u32).wrapping_sub(seen)
    }

    fn named(&self, id: u16) -> Option<(BackendAddress, &'a status::Backend)> {
        let services = self.status.services.values();
        let mut all = services.flat_map(|service| &service.backends);
        all.find(|(_, backend)| backend.id == id).map(|(address, backend)| (*address, backend))
    }

    /// A backend by its address, or by its id where it has none any more.
    fn backend(&self, id: u16) -> String {
        match self.named(id) {
            Some((address, _)) => format!("{address} (id {id})"),
            None if id == 0 => "nobody".into(),
            None => format!("id {id}"),
        }
    }

    fn interface(&self, index: u32) -> String {
        let mut known = self.status.interfaces.iter();
        match known.find(|interface| interface.ifindex == index) {
            Some(interface) => interface.name.clone(),
            None => format!("interface {index}"),
        }
    }

    /// The writes that the program would make, as text.
    pub(crate) fn writes(&self, writes: &[Write]) -> Vec<String> {
        let words = writes.iter().map(|write| match write {
            Write::Flow(flow, before, value) => {
                let what = match before {
                    None => "made",
                    Some(before) if before.backend != value.backend => "given",
                    Some(_) => "refreshed",
                };
                format!("{} {what}: to {}", flow_word(flow), self.backend(value.backend))
            }
            Write::Unpinned(slot) => format!("slot {slot}: stamp of the base owner"),
            Write::Pinned(slot) => format!("slot {slot}: stamp of pins"),
            Write::Token(left) => format!("budget: {} left of this second", counted(*left, "pin")),
            Write::Mark => "mark of the SYN".into(),
            Write::Handshake => "the handshake that begins is noted".into(),
            Write::Fragment(id) => format!("fragments follow to {}", self.backend(*id)),
            Write::Noted => "note of the pin for lbd and its peers".into(),
        });
        words.collect()
    }

    /// The decision for the flow's next packet.
    pub fn next(&self, what: &str, first: &Plain, second: &Plain, notes: &[Note]) -> Option<Next> {
        let goes_to = |verdict: &Plain| match verdict {
            Verdict::Forward(to) => self.backend(to.id),
            verdict => {
                let (outcome, reason) =
                    reason_of(verdict, false).unwrap_or((Outcome::Forwarded, ""));
                format!("{} {reason}", outcome.name())
            }
        };
        if !matches!(first, Verdict::Forward(_)) && goes_to(first) == goes_to(second) {
            return None;
        }
        let table = notes.iter().find_map(|note| match note {
            Note::Flow(flow, Some(_)) => Some(flow_word(flow)),
            _ => None,
        });
        let unpinned = matches!(second, Verdict::Forward(to) if to.events & events::UNPINNED != 0);
        let why = match (table, unpinned) {
            (Some(word), _) => format!("by its {word}"),
            (None, true) => "the slot's base owner, without a pin".into(),
            (None, false) => "by its slot, as this one".into(),
        };
        let differs = goes_to(first) != goes_to(second) || table.is_some() || unpinned;
        Some(Next { packet: what.into(), goes_to: goes_to(second), differs, why })
    }
}

/// The end of a packet once it is translated.
fn translation(address: [u8; 16], port: u16) -> String {
    match (entry::ip_of(address), port) {
        (ip, 0) => format!("{ip}, and its port stays"),
        (ip, port) => SocketAddr::new(ip, port).to_string(),
    }
}

/// Whether it has several VIPs or ports.
const fn is_wide(service: &Service) -> bool {
    service.flags & service_flags::WIDE != 0
}

/// The hash of the flow that a frame belongs to by its own header, if the slot that was looked up
/// follows from it.
fn hash(snap: &Snap, service: &Service, notes: &[Note]) -> Option<u64> {
    let at = packet::transport(&snap.bytes)?;
    let ports: [u8; 4] = snap.bytes.get(at.offset..at.offset + 4)?.try_into().ok()?;
    let port = |high, low| u16::from_be_bytes([high, low]).into();
    let [.., o, p] = entry::address(at.destination);
    let key = FlowKey {
        source: entry::address(at.source),
        port: port(ports[0], ports[1]),
        service: service.id,
        destination: Destination::of(service, port(ports[2], ports[3]), [o, p]),
    };
    let hash = hash_of_flow(service, &key);
    let slot = notes.iter().find_map(|note| match note {
        Note::Slot { index, .. } => Some(*index),
        _ => None,
    })?;
    (slot == slot_of(hash, service.slots)).then_some(hash)
}
