//! The rule of a slot, as a table; and the budget of pins.

use std::rc::Rc;

use lb_common::{
    abi::{Flow, FlowKey, FlowValue, Owners, TokenBucket, flow_flags, stamp},
    token_bucket::take,
    verdict::{Drop, Verdict, events},
};
use proptest::prelude::*;
use zerocopy::network_endian::U16;

use crate::{
    frames::{ACK, Client, FAMILIES, FIN, Family, RST, SYN, answer, icmp_error, segment},
    model::{IDLE, Model, START, WEB},
};

/// The owner of new flows, of flows older than the change, and of the pin.
const CURRENT: u16 = 1;
const BASE: u16 = 2;
const PINNED: u16 = 3;

/// What the flow's pin is like before the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pin {
    None,
    Fresh,
    Idle,
    Closing,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Syn,
    Data,
    Fin,
    Rst,
    Error,
}

/// Whether another pin can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Plenty,
    BudgetSpent,
    TableFull,
}

/// The pin after the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    None,
    /// As it was.
    Same,
    /// Its backend and flags; last seen just now.
    Now(u16, u16),
}

/// Which stamps the packet sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamps {
    None,
    Pinned,
    Unpinned,
    /// A pin was tried, which the stamp has to precede.
    Both,
}

struct Row {
    rule: &'static str,
    base: &'static [u16],
    pin: &'static [Pin],
    what: &'static [What],
    room: &'static [Room],
    backend: u16,
    after: After,
    stamps: Stamps,
    events: u32,
}

const ANY_ROOM: &[Room] = &[Room::Plenty, Room::BudgetSpent, Room::TableFull];
const ANY_BASE: &[u16] = &[0, BASE];
const SEGMENTS: &[What] = &[What::Data, What::Fin, What::Rst];
const LIVE: &[Pin] = &[Pin::Fresh, Pin::Idle, Pin::Closing];
const ESTABLISHED: u16 = flow_flags::ESTABLISHED;
const CLOSED: u16 = flow_flags::ESTABLISHED | flow_flags::CLOSING;

/// Every combination occurs in exactly one row.
const ROWS: &[Row] = &[
    Row {
        rule: "base none: the current owner, and no flow table is touched (new flow)",
        base: &[0],
        pin: &[Pin::None],
        what: &[What::Syn],
        room: ANY_ROOM,
        backend: CURRENT,
        after: After::None,
        stamps: Stamps::None,
        events: events::NEW_FLOW,
    },
    Row {
        rule: "base none: the current owner, and no flow table is touched",
        base: &[0],
        pin: &[Pin::None],
        what: &[What::Data, What::Fin, What::Rst, What::Error],
        room: ANY_ROOM,
        backend: CURRENT,
        after: After::None,
        stamps: Stamps::None,
        events: 0,
    },
    Row {
        rule: "in flux, a SYN: the current owner, and a pin is inserted",
        base: &[BASE],
        pin: &[Pin::None],
        what: &[What::Syn],
        room: &[Room::Plenty],
        backend: CURRENT,
        after: After::Now(CURRENT, 0),
        stamps: Stamps::Pinned,
        events: events::NEW_FLOW,
    },
    Row {
        rule: "in flux, a SYN beyond the budget: the base owner, no pin",
        base: &[BASE],
        pin: &[Pin::None],
        what: &[What::Syn],
        room: &[Room::BudgetSpent],
        backend: BASE,
        after: After::None,
        stamps: Stamps::Unpinned,
        events: events::NEW_FLOW | events::UNPINNED,
    },
    Row {
        rule: "in flux, a SYN when the table is full: the base owner, no pin",
        base: &[BASE],
        pin: &[Pin::None],
        what: &[What::Syn],
        room: &[Room::TableFull],
        backend: BASE,
        after: After::None,
        stamps: Stamps::Both,
        events: events::NEW_FLOW | events::UNPINNED,
    },
    Row {
        rule: "in flux, any other packet: the base owner, no insert, the unpinned stamp",
        base: &[BASE],
        pin: &[Pin::None],
        what: SEGMENTS,
        room: ANY_ROOM,
        backend: BASE,
        after: After::None,
        stamps: Stamps::Unpinned,
        events: events::UNPINNED,
    },
    Row {
        rule: "an ICMP error follows its flow and changes nothing (base owner)",
        base: &[BASE],
        pin: &[Pin::None, Pin::Dead],
        what: &[What::Error],
        room: ANY_ROOM,
        backend: BASE,
        after: After::Same,
        stamps: Stamps::None,
        events: 0,
    },
    Row {
        rule: "an ICMP error follows its flow and changes nothing (pin)",
        base: ANY_BASE,
        pin: LIVE,
        what: &[What::Error],
        room: ANY_ROOM,
        backend: PINNED,
        after: After::Same,
        stamps: Stamps::None,
        events: 0,
    },
    Row {
        rule: "the pin decides: a SYN on a fresh pin is a retransmission",
        base: ANY_BASE,
        pin: &[Pin::Fresh],
        what: &[What::Syn],
        room: ANY_ROOM,
        backend: PINNED,
        after: After::Now(PINNED, 0),
        stamps: Stamps::Pinned,
        events: events::NEW_FLOW,
    },
    Row {
        rule: "a SYN on an idle, closed or dead pin is a new flow, and the pin follows it",
        base: ANY_BASE,
        pin: &[Pin::Idle, Pin::Closing, Pin::Dead],
        what: &[What::Syn],
        room: ANY_ROOM,
        backend: CURRENT,
        after: After::Now(CURRENT, 0),
        stamps: Stamps::Pinned,
        events: events::NEW_FLOW,
    },
    Row {
        rule: "the pin decides, however idle",
        base: ANY_BASE,
        pin: &[Pin::Fresh, Pin::Idle],
        what: &[What::Data],
        room: ANY_ROOM,
        backend: PINNED,
        after: After::Now(PINNED, ESTABLISHED),
        stamps: Stamps::Pinned,
        events: 0,
    },
    Row {
        rule: "a pin is marked by FIN and RST, never deleted",
        base: ANY_BASE,
        pin: LIVE,
        what: &[What::Fin, What::Rst],
        room: ANY_ROOM,
        backend: PINNED,
        after: After::Now(PINNED, CLOSED),
        stamps: Stamps::Pinned,
        events: 0,
    },
    Row {
        rule: "a closed pin still decides for what is left of its flow",
        base: ANY_BASE,
        pin: &[Pin::Closing],
        what: &[What::Data],
        room: ANY_ROOM,
        backend: PINNED,
        after: After::Now(PINNED, CLOSED),
        stamps: Stamps::Pinned,
        events: 0,
    },
    Row {
        rule: "a pin whose backend is gone holds nothing (base owner)",
        base: &[BASE],
        pin: &[Pin::Dead],
        what: SEGMENTS,
        room: ANY_ROOM,
        backend: BASE,
        after: After::Same,
        stamps: Stamps::Unpinned,
        events: events::UNPINNED,
    },
    Row {
        rule: "a pin whose backend is gone holds nothing (current owner)",
        base: &[0],
        pin: &[Pin::Dead],
        what: &[What::Data, What::Fin, What::Rst, What::Error],
        room: ANY_ROOM,
        backend: CURRENT,
        after: After::Same,
        stamps: Stamps::None,
        events: 0,
    },
];

const OLD: u32 = START - 9;

fn pin_value(pin: Pin) -> Option<FlowValue> {
    let value = FlowValue { backend: PINNED, flags: 0, seen: OLD };
    match pin {
        Pin::None => None,
        Pin::Fresh | Pin::Dead => Some(value),
        Pin::Idle => Some(FlowValue { seen: START - IDLE - 1, ..value }),
        Pin::Closing => Some(FlowValue { flags: CLOSED, ..value }),
    }
}

fn frame(family: Family, client: &Client, what: What) -> Vec<u8> {
    match what {
        What::Syn => client.tcp(family, WEB, SYN),
        What::Data => client.tcp(family, WEB, ACK),
        What::Fin => client.tcp(family, WEB, FIN | ACK),
        What::Rst => client.tcp(family, WEB, RST),
        What::Error => {
            let quoted = answer(family, client, 6, &segment(WEB, client.port, ACK));
            icmp_error(family, if family == Family::V4 { 3 } else { 1 }, &quoted)
        }
    }
}

fn flow_key(family: Family, client: &Client) -> FlowKey {
    let source = client.key_address(family);
    FlowKey::new(source, U16::new(client.port), family.service(1))
}

/// One packet in a slot with this history: where it goes, and what it leaves.
fn check(row: &Row, family: Family, base: u16, pin: Pin, what: What, room: Room) {
    let case = format!("{}: {family:?}, base {base}, pin {pin:?}, {what:?}, {room:?}", row.rule);
    let mut model = Model::new(1);
    let client = Client::new(1);
    let id = family.service(1);
    let old = pin_value(pin);
    let key = flow_key(family, &client);
    let slot = model.rings[&id][0].clone();
    slot.set_owners(Owners { current: CURRENT, base });
    if let Some(value) = old {
        model.pins.borrow_mut().insert(key, Rc::new(Flow::new(value)));
        slot.set_stamps(0, stamp(OLD));
    }
    if pin == Pin::Dead {
        model.set_flags(PINNED, 0);
    }
    match room {
        Room::Plenty => {}
        Room::BudgetSpent => model.change_service(id, |service| service.syn_budget = 0),
        Room::TableFull => model.pin_capacity.set(model.pins.borrow().len()),
    }

    let to = model.forwarded(&frame(family, &client, what));

    assert_eq!((to.id, to.events), (row.backend, row.events), "{case}");
    let pins = model.pins.borrow();
    let expected = match row.after {
        After::None => None,
        After::Same => old,
        After::Now(backend, flags) => Some(FlowValue { backend, flags, seen: START }),
    };
    assert_eq!(pins.get(&key).map(|pin| pin.get()), expected, "{case}");
    let before = (0, if old.is_some() { stamp(OLD) } else { 0 });
    let stamps = match row.stamps {
        Stamps::None => before,
        Stamps::Pinned => (before.0, stamp(START)),
        Stamps::Unpinned => (stamp(START), before.1),
        Stamps::Both => (stamp(START), stamp(START)),
    };
    assert_eq!((slot.unpinned(), slot.pinned()), stamps, "{case}");
    assert_eq!(
        slot.owners(),
        Owners { current: CURRENT, base },
        "{case}: only the daemon writes it"
    );
}

#[test]
fn the_rule_of_a_slot() {
    let mut cases = 0;
    for family in FAMILIES {
        for &base in ANY_BASE {
            for pin in [Pin::None, Pin::Fresh, Pin::Idle, Pin::Closing, Pin::Dead] {
                for what in [What::Syn, What::Data, What::Fin, What::Rst, What::Error] {
                    for &room in ANY_ROOM {
                        let rows: Vec<_> = ROWS
                            .iter()
                            .filter(|row| {
                                row.base.contains(&base)
                                    && row.pin.contains(&pin)
                                    && row.what.contains(&what)
                                    && row.room.contains(&room)
                            })
                            .collect();
                        assert_eq!(rows.len(), 1, "rows for {base} {pin:?} {what:?} {room:?}");
                        check(rows[0], family, base, pin, what, room);
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 2 * 2 * 5 * 5 * 3);
}

#[test]
fn a_dead_base_owner_leaves_its_slot_to_the_current_one() {
    for family in FAMILIES {
        for what in [What::Syn, What::Data, What::Fin, What::Rst, What::Error] {
            let model = Model::new(1);
            model.only_slot(family.service(1)).set_owners(Owners { current: CURRENT, base: BASE });
            model.set_flags(BASE, 0);
            let to = model.forwarded(&frame(family, &Client::new(1), what));
            assert_eq!(to.id, CURRENT, "{family:?} {what:?}");
            assert_eq!(to.events & events::UNPINNED, 0, "{family:?} {what:?}");
        }
    }
}

#[test]
fn a_packet_goes_where_the_next_one_goes_when_its_slot_settles_meanwhile() {
    for family in FAMILIES {
        for what in [What::Syn, What::Data] {
            for base in [CURRENT, 0] {
                let model = Model::new(1);
                let service = family.service(1);
                model.only_slot(service).set_owners(Owners { current: CURRENT, base: BASE });
                // Its SYN gets no pin.
                model.lease.set(1);
                model.settles.set(Some((service, Owners { current: CURRENT, base })));
                let to = model.forwarded(&frame(family, &Client::new(1), what));
                assert_eq!(to.id, CURRENT, "{family:?} {what:?} {base}");
                assert_eq!(model.settles.get(), None);
                let next = model.forwarded(&frame(family, &Client::new(1), What::Data));
                assert_eq!(next.id, CURRENT, "{family:?} {what:?} {base}");
            }
        }
    }
}

#[test]
fn a_slot_without_a_usable_owner_drops() {
    for family in FAMILIES {
        for what in [What::Syn, What::Data, What::Error] {
            let model = Model::new(1);
            let frame = frame(family, &Client::new(1), what);
            let drop = Verdict::Drop(Drop::NoBackend);
            model.set_flags(CURRENT, 0);
            assert_eq!(model.decide(&frame), drop, "{family:?} {what:?}: dead");
            model.only_slot(family.service(1)).set_owners(Owners::default());
            assert_eq!(model.decide(&frame), drop, "{family:?} {what:?}: none");
            let mut model = Model::new(1);
            model.rings.clear();
            assert_eq!(model.decide(&frame), drop, "{family:?} {what:?}: no ring");
        }
    }
}

#[test]
fn a_pin_is_not_looked_up_where_the_slot_has_none() {
    // The stamp alone says whether there may be pins: the steady state pays for no lookup.
    let model = Model::new(1);
    let client = Client::new(1);
    let value = FlowValue { backend: PINNED, flags: 0, seen: START };
    let key = flow_key(Family::V4, &client);
    model.pins.borrow_mut().insert(key, Rc::new(Flow::new(value)));
    assert_eq!(model.forwarded(&client.tcp(Family::V4, WEB, ACK)).id, CURRENT);
}

const SECOND: u64 = 1_000_000_000;

/// How many of `calls` calls, `gap` nanoseconds apart, get a token.
fn spend(budget: &TokenBucket, rate: u32, start: u64, gap: u64, calls: u64) -> u64 {
    (0..calls).filter(|n| take(budget, rate, rate, start + n * gap)).count() as u64
}

#[test]
fn no_budget_gives_no_token() {
    let budget = TokenBucket::default();
    assert_eq!(spend(&budget, 0, 5 * SECOND, SECOND / 7, 1000), 0);
}

#[test]
fn a_budget_that_was_taken_away_gives_nothing_after_a_second() {
    let budget = TokenBucket::default();
    assert!(take(&budget, 100, 100, 5 * SECOND));
    assert_eq!(spend(&budget, 0, 6 * SECOND, SECOND / 10, 100), 0);
}

#[test]
fn a_budget_holds_one_second_at_most() {
    let budget = TokenBucket::default();
    assert_eq!(spend(&budget, 50, 500 * SECOND, 0, 1000), 50);
    assert_eq!(spend(&budget, 50, 900 * SECOND, 0, 1000), 50, "after a long rest");
}

#[test]
fn slow_rates_lose_nothing_to_a_coarse_clock() {
    for rate in [1_u32, 3, 7, 249, 299, 499, 700, 20_000] {
        let budget = TokenBucket::default();
        spend(&budget, rate, SECOND, 0, u64::from(rate));
        // Ten seconds in ticks of four milliseconds, with more wishes than tokens in each.
        let got: u64 =
            (1..=2500).map(|tick| spend(&budget, rate, SECOND + tick * 4_000_000, 0, 200)).sum();
        let due = 10 * u64::from(rate);
        assert!(got <= due && got + 1 >= due, "rate {rate}: {got} of {due}");
    }
}

#[test]
fn a_clock_that_jumps_back_refills_once() {
    let budget = TokenBucket::default();
    assert_eq!(spend(&budget, 10, 100 * SECOND, 0, 100), 10);
    assert_eq!(spend(&budget, 10, 40 * SECOND, 0, 100), 10);
    assert_eq!(spend(&budget, 10, 40 * SECOND + SECOND / 2, 0, 100), 5);
}

proptest! {
    #[test]
    fn a_budget_is_never_exceeded(rate: u32, gaps in prop::collection::vec(0..SECOND, 1..200)) {
        let budget = TokenBucket::default();
        let mut now = 7 * SECOND;
        let (start, mut got) = (now, 0_u128);
        for gap in gaps {
            now += gap;
            got += u128::from(take(&budget, rate, rate, now));
        }
        let due = u128::from(now - start) * u128::from(rate) / u128::from(SECOND);
        prop_assert!(got <= due + u128::from(rate), "{got} tokens, {due} due and one burst");
        prop_assert!(budget.tokens.load() <= rate);
    }
}
