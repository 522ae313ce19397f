//! A SYN that is sent again: how it is recognised, and where it goes if its backend is silent.
//!
//! The answers of a backend bypass the balancer, so what is known of it is what its clients do next:
//! a SYN that is sent again was not answered, and a bare ACK acknowledges bytes that the backend has just
//! sent ([`events::BARE_ACK`]). A SYN that is sent again to a backend that has been silent for a while
//! goes to another one, the flow's *second choice*, and is pinned there. So a connection gets
//! through at the client's first repetition, a second after its SYN, before any check has noticed the
//! death. What the daemon has marked as suspect is taken for silent at once.
//!
//! A backend that lives must not be left: it repeats its SYN-ACK about when the client repeats the
//! SYN. Then the answers of two backends race, and if the first one's wins, the second one gets the
//! ACK, and resets. Therefore silence is measured ([`crate::abi::Unanswered`]) by SYNs and by time: a
//! count alone would call every backend silent in a burst or in a flood, and time alone an idle one.
//! No flow leaves a backend from which any client has received within half a second.
//!
//! Every CPU knows its own clients only: it can take a backend that lives for a silent one only if
//! none of its own clients was answered.
//!
//! QUIC has no second choice. A client's hello may take several Initial packets, and their numbers
//! are encrypted: one that is sent again can't be distinguished from the hello's second.
//!
//! # Silence
//!
//! A bare ACK acknowledges an answer that the backend has just sent. No other packet proves one: clients repeat
//! data, FIN and RST for minutes to a backend that is dead, and anybody may send an ICMP error. Each CPU keeps one
//! word for each backend, in the cache line that counts the backend's packets: the SYNs since the last bare ACK,
//! and the tick of the first of them. Three SYNs over more than half a second make the backend silent.
//!
//! # Choice
//!
//! The flow's hash, hashed again up to 16 times, leads to slots; the first current owner that is usable, not
//! suspect and not silent is the second choice. The flow is pinned there, by a token of the service's budget unless
//! it has a pin that may be changed. Without another backend, a token or room the flow stays where it was, so it is
//! consistent. An established flow never moves. `service_flags::SECOND_CHOICE` enables all of this for a service.
//!
//! In a flood of SYNs, a backend without an ACK for half a second counts as silent like any other; the budget
//! bounds the pins that the flood gets. A forged pair of SYNs can pin an unpinned flow of that client elsewhere,
//! while its backend is suspect; it takes the client's address and port.

use core::hint::black_box;

use crate::{
    abi::{FlowValue, SYN_MARKS, Service, Slot, backend_flags, flow_flags, service_flags, stamp},
    choice::{Choice, Query},
    hash::{GOLDEN, slot_of},
    pinning::{affords_pin, may_change_pins},
    tables::Tables,
    verdict::events,
};

/// How many slots are searched for a second choice. Of two backends with the same weight, one in 2^16
/// flows meets only the silent one.
const TRIES: u32 = 16;

/// What becomes of a SYN for which the rule of the slot has made its choice. `again` is [`sent_again`],
/// called only if it was seen before.
#[inline(always)]
pub(crate) fn opened<T: Tables>(
    tables: &T,
    service: &Service,
    (hash, sequence): (u64, u32),
    first: Choice,
    again: impl FnOnce(u64) -> u64,
) -> Choice {
    let mut choice = Choice { id: first.id, events: first.events | events::NEW_FLOW };
    if is_retransmission(tables, hash, sequence) {
        choice.events |= events::SYN_RETRANSMISSION;
        if service.flags & service_flags::SECOND_CHOICE != 0 {
            let word = forgotten(choice.to_word(), hash);
            choice = Choice::from_word(again(word));
        }
    }
    Choice::from_word(forgotten(choice.to_word(), hash))
}

/// The same word, of which the kernel's verifier knows nothing. If it knows the events of a choice,
/// it walks all that follows once for each value that they can have.
#[inline(always)]
fn forgotten(word: u64, hash: u64) -> u64 {
    black_box(word ^ hash) ^ hash
}

/// Whether this SYN was seen before. A lossy memory: a mark at a place, both from tuple and sequence
/// number; another SYN may take the place, so what is counted is a sample. All CPUs share it, since a
/// SYN that is sent again may come on another one; a mark is one word, so no store is half seen.
#[inline(always)]
fn is_retransmission<T: Tables>(tables: &T, hash: u64, sequence: u32) -> bool {
    let mixed = (hash ^ u64::from(sequence)).wrapping_mul(GOLDEN);
    let Some(seen) = tables.syn_seen((mixed >> 32) as u32 & (SYN_MARKS - 1)) else { return false };
    let mark = mixed as u32 | 1;
    if seen.load() == mark {
        return true;
    }
    seen.store(mark);
    false
}

/// A SYN that was seen before: its backend, or its second choice. Takes and returns a [`Choice`] as a
/// word.
#[inline(never)]
pub(crate) fn sent_again<T: Tables>(tables: &T, query: &Query<'_>, slot: &Slot, first: u64) -> u64 {
    let choice = Choice::from_word(first);
    let now = tables.now_nanos();
    if may_answer(tables, choice.id, now) {
        return first;
    }
    let Query { service, hash, .. } = *query;
    let (id, slots) = (u64::from(service.id), u64::from(service.slots));
    let second = tables.second_choice(id, slots, hash, u64::from(choice.id), now) as u16;
    if second == 0 || pin(tables, query, slot, u64::from(second)) == 0 {
        return first;
    }
    let events = choice.events & !(events::UNPINNED | events::UNPINNABLE) | events::SECOND_CHOICE;
    Choice { id: second, events }.to_word()
}

/// Whether a backend can be sent to, is not suspect and not silent.
#[inline(always)]
fn may_answer<T: Tables + ?Sized>(tables: &T, id: u16, now_nanos: u64) -> bool {
    let Some(backend) = tables.backend(id) else { return false };
    backend.flags & (backend_flags::USABLE | backend_flags::SUSPECT) == backend_flags::USABLE
        && !tables.unanswered(id).is_silence(now_nanos)
}

/// The first backend that may answer, of those that own the flow's own slot and the slots that its
/// hash, hashed again, leads to, in the ring of a service with `slots` slots; 0 if there is none. Like the ring it is
/// the same on every node that finds the same backends silent.
///
/// The own slot is of use for a flow that is pinned, or sent to a base owner for want of a pin.
#[inline(always)]
pub fn search<T: Tables + ?Sized>(
    tables: &T,
    service: u16,
    slots: u32,
    mut hash: u64,
    first: u16,
    now_nanos: u64,
) -> u16 {
    for _ in 0..=TRIES {
        let Some(slot) = tables.slot(service, slot_of(hash, slots)) else { return 0 };
        let id = slot.owners().current;
        if id != first && may_answer(tables, id, now_nanos) {
            return id;
        }
        // The halves change places, since a product's high half is the one that knows all bits.
        hash = hash.rotate_left(32).wrapping_mul(GOLDEN);
    }
    0
}

/// Pins a flow that is not established to a backend; 0 if that can't be had.
#[inline(never)]
fn pin<T: Tables>(tables: &T, query: &Query<'_>, slot: &Slot, id: u64) -> u64 {
    let id = id as u16;
    let Query { service, key, .. } = query;
    let now = tables.now();
    let value = FlowValue { backend: id, flags: 0, seen: now };
    let known = if slot.pinned() != 0 { tables.pin(key) } else { None };
    if let Some(known) = known {
        // A SYN on an established flow may be forged, however often it comes.
        if known.get().flags & flow_flags::ESTABLISHED != 0 || !may_change_pins(tables, service) {
            return 0;
        }
        slot.touch_pinned(stamp(now));
        known.set(value);
        tables.note_pin(key);
        return 1;
    }
    if !affords_pin(tables, service) {
        return 0;
    }
    // The stamp before the pin: a CPU looks for a pin only if it sees a stamp.
    slot.touch_pinned(stamp(now));
    if !tables.insert_pin(key, value) {
        return 0;
    }
    tables.note_pin(key);
    1
}
