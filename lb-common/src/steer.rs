//! How a flow finds its backend: the rule of a slot with current and base owners and pins, the SYN budget, and the
//! policies for UDP. [`crate::second_choice`] has the rule for a retransmitted SYN.
//!
//! A slot in the steady state (no base owner, no pin stamp) is answered at once by its current owner. All else is
//! in [`in_flux`], out of line: it is rare, and the path of the others is shorter without it.
//!
//! # Rule of a slot
//!
//! - No base owner, no pin stamp: the current owner.
//! - A pin with a usable backend decides. A SYN on an idle or closed pin is a new flow, and so is a SYN on a pin
//!   whose backend is not usable. The program changes this pin to the current owner, under the lease, as if it made
//!   one. Without the lease the flow goes where its other packets go: by the pin while it holds, else to the base
//!   owner, else to the current owner.
//! - In flux, a SYN goes to the current owner and gets a pin. Without a token of the service's budget on this CPU,
//!   without the lease, or without room in `PINS`, it goes to the base owner without a pin. That is consistent; it
//!   only makes a drain longer.
//! - In flux, any other packet goes to the base owner and renews the slot's stamp of unpinned packets.
//!
//! Each flow that begins in flux is therefore pinned or on the base owner, and each older one is on the base owner:
//! no sequence of changes moves a flow. `lb_model::ring` decides when a base owner is cleared.
//!
//! A pin ends when the flow has been idle for the service's idle timeout, or for 75 seconds if it has only sent
//! SYNs (two seconds while the table is more than half full). FIN and RST shorten neither, since anybody who knows
//! the tuple can forge them.
//!
//! # Base owner that is soft down
//!
//! A base owner that is soft down (`SOFT_DOWN` in its entry) would refuse a new flow, so it gets none:
//!
//! - A SYN gets a pin to the current owner even without the lease. Without token or room it is dropped
//!   (`unpinnable`), and the client's retransmission may find a token.
//! - A new flow on a closed or idle pin to such a backend takes that pin over, which needs neither token nor room;
//!   only while pinning is paused it is dropped. The same holds for a retransmitted SYN on a pin whose backend has not
//!   answered.
//! - A SYN on the pin of an established connection to such a backend is dropped once and marks the pin as closing.
//!   If the connection lives, the SYN is forged, and the drop costs nothing. If the backend has reset the
//!   connection, which the balancer does not see, the client's next SYN is a new flow, and no RST has refused it.
//! - While a flood takes all tokens or all room, such a base owner gives way after a while
//!   (`lb_control::engine::starved`).
//!
//! # Lease
//!
//! A peer that takes over must send each flow where this node did, and it sends a flow of which it has no pin to
//! the base owner. So pins are made only while the daemon renews the lease, which follows its exports to the peers.
//!
//! A pin in place of a base owner that is soft down needs no lease. On this node the flow's later packets find the
//! pin, which is in the table before the SYN leaves. If this node dies before the pin is exported, the peer sends
//! them to the base owner, whose kernel resets a connection that it does not have: the flow ends as it would have
//! begun, and no other flow is affected. Dropping the SYN instead would cost each new flow of the slot a second, as
//! long as there is no lease. While pinning is paused for a handover the SYN is dropped nevertheless: the peer takes
//! over within milliseconds and receives the retransmission.
//!
//! # UDP
//!
//! UDP has no SYN. `oneshot` uses the current owner alone. `tracked` has a table of flows, least recently used out
//! first. `quic` treats the first Initial or 0-RTT packet of a client's address and port as a SYN. A handshake
//! takes several such packets, so for ten seconds (`HANDSHAKES`) the others belong to the flow that the first one
//! opened, regardless of the ring by then. If its backend has become soft down, and the client's packets still have
//! the connection id that the client chose, no server has answered, and the packet counts as the first one again.

use crate::{
    abi::{
        ConnectionKey, Destination, FlowKey, FlowValue, Handshake, Owners, Service, Slot,
        backend_flags, flow_flags, proto, stamp, udp_policy,
    },
    choice::{Choice, Kind, Query, kind},
    hash::{flow_hash_v4, slot_of},
    packet::{
        MAX_OFFSET, Packet,
        quic::{self, Datagram},
    },
    pinning::{REFUSES, flags_of_backend, is_usable, may_pin, takes_token},
    second_choice,
    tables::Tables,
    verdict::events,
};

/// TCP: the slot rule. `query` is called only for a slot that has a base owner or pins, and for a retransmitted SYN.
#[inline(always)]
pub fn by_slot<'a, T: Tables>(
    tables: &T,
    service: &Service,
    hash: u64,
    what: Kind,
    query: impl Fn() -> Query<'a>,
) -> Choice {
    let rare = Rare {
        in_flux: |slot: &Slot| tables.in_flux(service, &query().key, slot, what.number().into()),
        sent_again: |slot: &Slot, first| second_choice::sent_again(tables, &query(), slot, first),
    };
    let choice = by_slot_or(tables, service, hash, what.sequence(), rare);
    if what == Kind::Acknowledges {
        return Choice { id: choice.id, events: choice.events | events::BARE_ACK };
    }
    choice
}

/// TCP: the slot rule of an IPv4 flow of a service with one VIP and one port, for which little is kept at hand: `client`
/// is its address and port, as on the wire, in a word's lower six bytes, and the key is made where it is needed. It does
/// not set [`events::BARE_ACK`].
#[inline(always)]
pub fn by_slot_v4<T: Tables>(
    tables: &T,
    service: &Service,
    client: u64,
    hash: u64,
    what: Kind,
) -> Choice {
    let rare = Rare {
        in_flux: |slot: &Slot| {
            let client = client | u64::from(what.number()) << 48;
            in_flux_v4(tables, service, client, hash, slot)
        },
        sent_again: |slot: &Slot, first| sent_again_v4(tables, service, client, slot, first),
    };
    by_slot_or(tables, service, hash, what.sequence(), rare)
}

/// The functions for few packets. `in_flux` has the rule of a slot with a base owner or pins. `sent_again` takes
/// the [`Choice`] for a retransmitted SYN, as a word. Both return a [`Choice`] as a word.
struct Rare<F, S> {
    in_flux: F,
    sent_again: S,
}

/// `opens` is the sequence number of a SYN.
#[inline(always)]
fn by_slot_or<T: Tables>(
    tables: &T,
    service: &Service,
    hash: u64,
    opens: Option<u32>,
    rare: Rare<impl FnOnce(&Slot) -> u64, impl FnOnce(&Slot, u64) -> u64>,
) -> Choice {
    let Some(slot) = tables.slot(service.id, slot_of(hash, service.slots)) else {
        return Choice::NONE;
    };
    let owners = slot.owners();
    let choice = if owners.base == 0 && slot.pinned() == 0 {
        Choice::of(owners.current)
    } else {
        Choice::from_word((rare.in_flux)(&slot))
    };
    let Some(sequence) = opens else { return choice };
    let sent_again = |first| (rare.sent_again)(&slot, first);
    second_choice::opened(tables, service, (hash, sequence), choice, sent_again)
}

/// The query of a client as [`by_slot_v4`] takes it.
#[inline(always)]
fn query_v4(service: &Service, client: u64, hash: u64) -> Query<'_> {
    let [a, b, c, d, e, f, ..] = client.to_le_bytes();
    Query::v4(service, ([a, b, c, d], [e, f]), Destination::ONLY, hash)
}

/// [`second_choice::sent_again`] of a client as [`by_slot_v4`] takes it. The hash is calculated again: a
/// function in the kernel takes five arguments at most, and Linux 7.2 counts them by their types, one
/// of no size too.
#[inline(never)]
fn sent_again_v4<T: Tables>(
    tables: &T,
    service: &Service,
    client: u64,
    slot: &Slot,
    first: u64,
) -> u64 {
    let [a, b, c, d, e, f, ..] = client.to_le_bytes();
    let hash = flow_hash_v4(&service.keys, [a, b, c, d], [e, f], [0; 2]);
    second_choice::sent_again(tables, &query_v4(service, client, hash), slot, first)
}

/// [`in_flux`] of a client as [`by_slot_v4`] takes it, with a [`kind`] in the word's seventh byte, since a function
/// in the kernel takes five arguments at most.
#[inline(never)]
fn in_flux_v4<T: Tables>(
    tables: &T,
    service: &Service,
    client: u64,
    hash: u64,
    slot: &Slot,
) -> u64 {
    tables.in_flux(service, &query_v4(service, client, hash).key, slot, client >> 48)
}

/// The rule of a slot that has a base owner or pins, for a packet of the [`kind`] `what`. Returns a [`Choice`] as a
/// word.
#[inline(always)]
pub fn in_flux<T>(tables: &T, service: &Service, key: &FlowKey, slot: &Slot, what: u32) -> u64
where
    T: Tables + ?Sized,
{
    let Owners { current, base } = slot.owners();
    let now = tables.now();
    let pin = if slot.pinned() != 0 { tables.pin(key) } else { None };
    let mut ends = false;
    if let Some(pin) = &pin {
        let value = pin.get();
        let flags = flags_of_backend(tables, value.backend);
        if may_open(what) {
            // A SYN on an open pin is a retransmission. It begins a new flow if the pin is idle or closing, or if the
            // pin's backend has not answered and refuses new flows.
            let open = value.flags & flow_flags::CLOSING == 0
                && now.wrapping_sub(value.seen) <= service.idle_timeout
                && (value.flags & flow_flags::ESTABLISHED != 0 || flags & REFUSES != REFUSES);
            ends = !open && may_pin(tables, service, flags);
            if !open && !ends && flags & REFUSES == REFUSES {
                return UNPINNABLE.to_word();
            }
            // Either the connection lives and the SYN is forged; or the backend has reset the connection, which the
            // balancer does not see, and would refuse this SYN. It is dropped, and the pin marked as closing: the
            // client's retransmission begins a new flow.
            if open && what == kind::OPENS && flags & REFUSES == REFUSES {
                slot.touch_pinned(stamp(now));
                pin.touch(now, flow_flags::CLOSING);
                return UNPINNABLE.to_word();
            }
        }
        // A pin decides only while its backend is usable.
        if !ends && flags & backend_flags::USABLE != 0 {
            if what != kind::CONCERNS {
                slot.touch_pinned(stamp(now));
                pin.touch(now, flags_of(what));
                // The pin of an established flow is kept for longer: peers must have it as such.
                if flags_of(what) & !value.flags & flow_flags::ESTABLISHED != 0 {
                    tables.note_pin(key);
                }
            }
            return Choice::of(value.backend).to_word();
        }
    }
    let flags = flags_of_backend(tables, base);
    if what == kind::OPENS || may_open(what) && (ends || flags & REFUSES == REFUSES) {
        // No backend takes new flows: all of them drain, the base owner too. New flows would keep its drain from
        // ending.
        if current == 0 {
            return Choice::NONE.to_word();
        }
        // The pin of an older flow would send this flow's later packets to the older flow's backend. So it is changed
        // to this flow's backend, which takes no room. Where it may not be changed its backend is not usable, and the
        // SYN goes where the flow's later packets go.
        if let Some(pin) = &pin
            && (ends || may_pin(tables, service, flags))
        {
            slot.touch_pinned(stamp(now));
            pin.set(FlowValue { backend: current, flags: 0, seen: now });
            tables.note_pin(key);
            return Choice::of(current).to_word();
        }
        if base == 0 {
            return Choice::of(current).to_word();
        }
        if may_pin(tables, service, flags) && takes_token(tables, service) {
            // The stamp before the pin: a CPU looks for a pin only if it sees a stamp.
            slot.touch_pinned(stamp(now));
            let value = FlowValue { backend: current, flags: 0, seen: now };
            if tables.insert_pin(key, value) {
                tables.note_pin(key);
                return Choice::of(current).to_word();
            }
        }
        // Without a pin the SYN goes where the flow's later packets go: to the base owner, or to the current owner
        // while the base owner is not usable. It may become usable again, so a pin was tried even then.
        if flags & backend_flags::USABLE == 0 {
            return Choice::of(current).to_word();
        }
        // The base owner would refuse the SYN. So it is dropped, and the client retransmits it.
        if flags & backend_flags::SOFT_DOWN != 0 {
            return UNPINNABLE.to_word();
        }
        return to_base_owner(slot, now).to_word();
    }
    if flags & backend_flags::USABLE == 0 {
        return Choice::of(current).to_word();
    }
    if what == kind::CONCERNS {
        return Choice::of(base).to_word();
    }
    to_base_owner(slot, now).to_word()
}

/// A packet goes to the base owner without a pin, and its slot's stamp is renewed. If the daemon has settled the
/// slot since its owners were read, the packet goes where the next ones of its flow will go.
#[inline(always)]
fn to_base_owner(slot: &Slot, now: u32) -> Choice {
    let Owners { current, base } = slot.touched(stamp(now));
    let id = if base == 0 { current } else { base };
    Choice { id, events: events::UNPINNED }
}

/// Whether a packet of this [`kind`] may be the first one that its flow's backend answers.
#[inline(always)]
const fn may_open(what: u32) -> bool {
    matches!(what, kind::OPENS | kind::REPEATS)
}

#[inline(always)]
const fn flags_of(what: u32) -> u16 {
    match what {
        kind::CONTINUES => flow_flags::ESTABLISHED,
        kind::CLOSES => flow_flags::ESTABLISHED | flow_flags::CLOSING,
        _ => 0,
    }
}

/// A new flow that nothing takes: its client sends the SYN again.
const UNPINNABLE: Choice = Choice { id: 0, events: events::UNPINNABLE };

/// UDP whose every packet stands alone.
#[inline(always)]
pub fn oneshot<T: Tables>(tables: &T, service: &Service, hash: u64) -> Choice {
    match tables.slot(service.id, slot_of(hash, service.slots)) {
        Some(slot) => Choice::of(slot.owners().current),
        None => Choice::NONE,
    }
}

/// UDP whose flows are known one by one: the policies `tracked` and `quic`. `payload` is the offset
/// of the UDP payload. Returns a [`Choice`] as a word.
#[inline(never)]
pub fn udp<P, T>(pkt: &P, tables: &T, query: &Query<'_>, payload: usize) -> u64
where
    P: Packet + ?Sized,
    T: Tables,
{
    if query.service.udp_policy == udp_policy::TRACKED {
        return tracked(tables, query).to_word();
    }
    quic(tables, query, quic::parse(pkt, payload & MAX_OFFSET)).to_word()
}

/// UDP whose flows stay where they are until they are idle.
#[inline(always)]
fn tracked<T: Tables>(tables: &T, query: &Query<'_>) -> Choice {
    let now = tables.now();
    let known = tables.tracked(&query.key);
    if let Some(flow) = &known {
        let value = flow.get();
        if now.wrapping_sub(value.seen) <= query.service.idle_timeout
            && is_usable(tables, value.backend)
        {
            flow.touch(now, 0);
            return Choice::of(value.backend);
        }
    }
    let current = oneshot(tables, query.service, query.hash);
    if current.id == 0 {
        return current;
    }
    let value = FlowValue { backend: current.id, flags: 0, seen: now };
    match &known {
        Some(flow) => flow.set(value),
        None => tables.insert_tracked(&query.key, value),
    }
    Choice { id: current.id, events: events::NEW_FLOW }
}

/// Seconds for which a QUIC handshake is awaited: as long as a client tries.
pub const HANDSHAKE_TIMEOUT: u16 = 10;

/// QUIC: by connection id where it is known, else by the tuple's slot.
#[inline(always)]
fn quic<T: Tables>(tables: &T, query: &Query<'_>, datagram: Datagram) -> Choice {
    let id = match datagram {
        Datagram::Opens(id) => return quic_opening(tables, query, id),
        Datagram::Continues(id) | Datagram::Shows(id) => id,
        Datagram::Other => [0; 8],
    };
    let key = ConnectionKey { id, service: query.service.id, reserved: 0 };
    if let Datagram::Continues(_) = datagram
        && let Some(connection) = tables.connection(&key)
    {
        let backend = connection.get().backend;
        if is_usable(tables, backend) {
            connection.touch(tables.now(), 0);
            return Choice::of(backend);
        }
    }
    let choice = by_slot_of(tables, query, kind::CONTINUES);
    if let Datagram::Shows(_) = datagram {
        learn(tables, query, id, choice);
    }
    choice
}

/// An Initial or 0-RTT packet to connection `id`. A handshake takes several, and the ring may change
/// between them, so only the first is like a SYN: the others find what it found, which is the pin if
/// it got one, and else what the slot's owner was. Where that one refuses new flows by now, and has
/// not answered yet, they are like a SYN as well.
#[inline(always)]
fn quic_opening<T: Tables>(tables: &T, query: &Query<'_>, id: [u8; 8]) -> Choice {
    let now = tables.now();
    let Some(mark) = tables.handshake(query.hash) else { return Choice::NONE };
    let first = Handshake(mark.load());
    if let Some(age) = first.age(query.hash, now)
        && age <= HANDSHAKE_TIMEOUT
    {
        // Once its server has answered, a client uses the id that the server has chosen; a datagram
        // that has a Handshake packet behind an Initial one shows it only here.
        let answered = !first.is_to(id);
        let what = if answered { kind::PROCEEDS } else { kind::REPEATS };
        let choice = by_slot_of(tables, query, what);
        if answered && id != [0; 8] {
            learn(tables, query, id, choice);
        }
        return choice;
    }
    let choice = by_slot_of(tables, query, kind::OPENS);
    if choice.id != 0 {
        mark.store(Handshake::begun(query.hash, id, now).0);
    }
    choice
}

/// Notes the backend of a QUIC connection by the id that it has chosen.
#[inline(always)]
fn learn<T: Tables>(tables: &T, query: &Query<'_>, id: [u8; 8], choice: Choice) {
    if choice.id != 0 {
        let key = ConnectionKey { id, service: query.service.id, reserved: 0 };
        let value = FlowValue { backend: choice.id, flags: 0, seen: tables.now() };
        tables.insert_connection(&key, value);
    }
}

/// The slot rule for a flow that is at hand already.
#[inline(always)]
fn by_slot_of<T: Tables>(tables: &T, query: &Query<'_>, what: u32) -> Choice {
    let Some(slot) = tables.slot(query.service.id, slot_of(query.hash, query.service.slots)) else {
        return Choice::NONE;
    };
    let owners = slot.owners();
    let mut choice = if owners.base == 0 && slot.pinned() == 0 {
        Choice::of(owners.current)
    } else {
        Choice::from_word(tables.in_flux(query.service, &query.key, &slot, what.into()))
    };
    if what == kind::OPENS {
        choice.events |= events::NEW_FLOW;
    }
    choice
}

/// An ICMP error: the backend of the flow that it quotes. It neither opens nor refreshes a flow.
#[inline(always)]
pub fn backend_of_quoted<T: Tables>(tables: &T, protocol: u8, query: &Query<'_>) -> Choice {
    let service = query.service;
    if protocol == proto::TCP || service.udp_policy == udp_policy::QUIC {
        return by_slot_of(tables, query, kind::CONCERNS);
    }
    if service.udp_policy == udp_policy::TRACKED
        && let Some(flow) = tables.tracked(&query.key)
    {
        let backend = flow.get().backend;
        if is_usable(tables, backend) {
            return Choice::of(backend);
        }
    }
    oneshot(tables, service, query.hash)
}
