//! A SYN that is sent again: when it leaves its backend, where it goes, and what it leaves behind.

use std::rc::Rc;

use lb_common::{
    abi::{
        Backend, BackendCounter, Flow, FlowValue, Owners, Unanswered, backend_flags, flow_flags,
        service_flags,
    },
    verdict::{Drop, Forward, Verdict, events},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, FIN, Family, RST, SYN, answer, icmp_error, segment},
    model::{BACKENDS, IDLE, Model, QUIC, WEB},
};

const SILENT_SYNS: u32 = Unanswered::SILENT_SYNS;
const SENT_AGAIN: u32 = events::NEW_FLOW | events::SYN_RETRANSMISSION;
const DIVERTED: u32 = SENT_AGAIN | events::SECOND_CHOICE;

/// A world whose rings belong to backends 1 to 3 in equal shares.
fn world() -> Model {
    let model = Model::new(61);
    model.share_rings(3);
    model
}

fn syn(model: &Model, family: Family, client: &Client) -> Forward<Backend> {
    model.forwarded(&client.tcp(family, WEB, SYN))
}

/// The same a second later.
fn syn_again(model: &Model, family: Family, client: &Client) -> Forward<Backend> {
    model.pass_seconds(1);
    syn(model, family, client)
}

/// SYNs of as many others that backend `id` leaves without an answer.
fn unanswered(model: &Model, family: Family, id: u16, others: u32) {
    // Each from another client, which has sent none yet.
    for _ in 0..others {
        let number = model.counters[usize::from(id)].new_flows.load() as usize;
        let other = model.client_of(family, id, 100 + number);
        assert_eq!(syn(model, family, &other).id, id);
    }
}

/// A sign of life of backend `id`: another client acknowledges what it said.
fn acknowledge(model: &Model, family: Family, id: u16) {
    let other = model.client_of(family, id, 99);
    let to = model.forwarded(&other.bare_ack(family, WEB));
    assert_eq!((to.id, to.events), (id, events::BARE_ACK));
}

fn suspect(model: &Model, id: u16) {
    model.set_flags(id, backend_flags::USABLE | backend_flags::SUSPECT);
}

#[test]
fn a_retransmitted_syn_to_a_silent_backend_goes_to_the_second_choice_and_stays_there() {
    for family in FAMILIES {
        let model = world();
        let client = model.client_of(family, 1, 0);
        assert_eq!(syn(&model, family, &client).id, 1);
        unanswered(&model, family, 1, SILENT_SYNS - 1);
        let to = syn_again(&model, family, &client);
        assert_ne!(to.id, 1, "{family:?}");
        assert_eq!(to.events, DIVERTED, "{family:?}");
        let again = syn_again(&model, family, &client);
        assert_eq!((again.id, again.events), (to.id, SENT_AGAIN), "{family:?}: it has its pin");
        for flags in [ACK, ACK, FIN | ACK, RST] {
            model.pass_seconds(1);
            assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, to.id, "{family:?}");
        }
        for owner in [4, 1, 5] {
            model.move_rings_to(owner);
            assert_eq!(model.forwarded(&client.bare_ack(family, WEB)).id, to.id, "{family:?}");
        }
        let answered = icmp_error(
            family,
            if family == Family::V4 { 3 } else { 1 },
            &answer(family, &client, 6, &segment(WEB, client.port, ACK)),
        );
        assert_eq!(model.forwarded(&answered).id, to.id, "{family:?}: an error about it");
    }
}

#[test]
fn a_retransmitted_syn_to_a_backend_that_answers_stays() {
    for family in FAMILIES {
        let model = world();
        let client = model.client_of(family, 1, 0);
        syn(&model, family, &client);
        for _ in 0..5 {
            unanswered(&model, family, 1, 20);
            model.pass_seconds(1);
            acknowledge(&model, family, 1);
            // A burst, which no backend can have answered yet.
            unanswered(&model, family, 1, 20);
            let to = syn(&model, family, &client);
            assert_eq!((to.id, to.events), (1, SENT_AGAIN), "{family:?}");
        }
        assert!(model.pins.borrow().is_empty());
        // It dies after all.
        assert_ne!(syn_again(&model, family, &client).id, 1, "{family:?}");
    }
}

#[test]
fn one_lost_answer_of_an_idle_backend_diverts_nobody() {
    for family in FAMILIES {
        let model = world();
        let client = model.client_of(family, 1, 0);
        let first = syn(&model, family, &client).id;
        let again = [1, 2, 3].map(|_| syn_again(&model, family, &client).id == 1);
        assert_eq!((first, again), (1, [true, true, false]), "{family:?}");
    }
}

#[test]
fn silence_takes_more_than_half_a_second_and_less_than_a_repeated_syn() {
    for offset in (0..1_000).step_by(7) {
        let start = 5_000_000_000 + offset * 1_000_000;
        let mut word = Unanswered::default();
        assert!(!word.is_silence(start));
        for _ in 0..SILENT_SYNS {
            assert!(!word.is_silence(start + 10_000_000_000), "{word:?}");
            word = word.with_syn(|| start);
        }
        // Later ones say nothing of its beginning.
        let later = start + 400_000_000;
        word = word.with_syn(|| later);
        assert_eq!(word.syns(), SILENT_SYNS + 1);
        assert!(!word.is_silence(start + 530_000_000), "{offset}");
        assert!(word.is_silence(start + 810_000_000), "{offset}");
    }
}

#[test]
fn a_retransmitted_syn_leaves_a_suspect_or_unusable_backend_at_once() {
    for family in FAMILIES {
        let model = world();
        let client = model.client_of(family, 1, 0);
        suspect(&model, 1);
        let to = syn(&model, family, &client);
        assert_eq!((to.id, to.events), (1, events::NEW_FLOW), "a suspect gets new flows");
        acknowledge(&model, family, 1);
        assert_eq!(syn(&model, family, &client).events, DIVERTED, "{family:?}");

        let model = world();
        model.set_flags(1, 0);
        let frame = client.tcp(family, WEB, SYN);
        assert_eq!(model.decide(&frame), Verdict::Drop(Drop::NoBackend));
        assert_eq!(model.forwarded(&frame).events, DIVERTED, "{family:?}");
    }
}

/// Why there is no second choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Budget,
    Room,
    Flag,
    Others,
    UsableOthers,
    UnsuspectedOthers,
    AnsweringOthers,
    Established,
}

#[test]
fn without_a_second_choice_the_first_one_stays_and_so_does_the_flow() {
    use Lack::*;
    let all =
        [Budget, Room, Flag, Others, UsableOthers, UnsuspectedOthers, AnsweringOthers, Established];
    for (family, lack) in FAMILIES.into_iter().flat_map(|family| all.map(|lack| (family, lack))) {
        let case = format!("{family:?}, no {lack:?}");
        let mut model = world();
        let id = family.service(1);
        match lack {
            Budget => model.change_service(id, |service| service.syn_budget = 0),
            Room => model.pin_capacity.set(0),
            Flag => model.change_service(id, |service| service.flags &= !SECOND),
            Others => model.share_rings(1),
            UsableOthers => (2..=3).for_each(|id| model.set_flags(id, 0)),
            UnsuspectedOthers => (2..=3).for_each(|id| suspect(&model, id)),
            AnsweringOthers => (1..=3).for_each(|id| unanswered(&model, family, id, SILENT_SYNS)),
            Established => {}
        }
        let client = model.client_of(family, 1, 0);
        if lack == Established {
            // Born in flux, so that it is pinned.
            let slot = model.slot_of(family, &client);
            slot.set_owners(Owners { current: 1, base: 2 });
            syn(&model, family, &client);
            model.forwarded(&client.tcp(family, WEB, ACK));
        }
        let pins = |model: &Model| {
            let value = |pin: &Rc<Flow>| FlowValue { seen: 0, ..pin.get() };
            model.pins.borrow().values().map(value).collect::<Vec<_>>()
        };
        let before = pins(&model);
        for nth in 0..6 {
            if nth == 4 {
                suspect(&model, 1);
            }
            let to = syn_again(&model, family, &client);
            assert_eq!((to.id, to.events & events::SECOND_CHOICE), (1, 0), "{case}");
        }
        assert_eq!(pins(&model), before, "{case}");
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 1, "{case}");
    }
    const SECOND: u8 = service_flags::SECOND_CHOICE;
}

#[test]
fn a_flow_whose_second_choice_is_silent_too_gets_another() {
    for family in FAMILIES {
        let mut model = world();
        let client = model.client_of(family, 1, 0);
        syn(&model, family, &client);
        suspect(&model, 1);
        let second = syn(&model, family, &client).id;
        suspect(&model, second);
        // What is pinned already needs no token and no room.
        model.change_service(family.service(1), |service| service.syn_budget = 0);
        model.pin_capacity.set(1);
        let third = syn(&model, family, &client);
        assert_eq!((third.id, third.events), (6 - 1 - second, DIVERTED), "{family:?}");
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, third.id, "{family:?}");
        suspect(&model, third.id);
        model.set_flags(1, backend_flags::USABLE);
        assert_eq!(syn(&model, family, &client).id, third.id, "{family:?}: it is established");
    }
}

#[test]
fn in_flux_the_current_owner_is_the_second_choice_of_a_flow_on_base() {
    for family in FAMILIES {
        let mut model = world();
        let id = family.service(1);
        let client = model.client_of(family, 1, 0);
        model.slot_of(family, &client).set_owners(Owners { current: 4, base: 1 });
        model.change_service(id, |service| service.syn_budget = 0);
        let to = syn(&model, family, &client);
        assert_eq!((to.id, to.events), (1, events::NEW_FLOW | events::UNPINNED), "{family:?}");
        suspect(&model, 1);
        let to = syn(&model, family, &client);
        assert_eq!((to.id, to.events), (1, SENT_AGAIN | events::UNPINNED), "{family:?}");
        model.change_service(id, |service| service.syn_budget = 1000);
        // A token at last: it is pinned to the current owner by the rule of the slot.
        assert_eq!(syn_again(&model, family, &client).id, 4, "{family:?}");
        suspect(&model, 4);
        let to = syn(&model, family, &client);
        assert_eq!(to.events, DIVERTED, "{family:?}");
        assert!([2, 3].contains(&to.id), "{family:?}: {}", to.id);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, to.id, "{family:?}");
    }
}

#[test]
fn only_a_bare_ack_of_a_flow_is_a_sign_of_life() {
    let silent = |frame: &[u8]| {
        let model = Model::new(1);
        model.counters[1].unanswered.store(5);
        model.forwarded(frame);
        Unanswered(model.counters[1].unanswered.load()).syns() >= 5
    };
    for family in FAMILIES {
        let client = Client::new(1);
        assert!(!silent(&client.bare_ack(family, WEB)), "{family:?}");
        for flags in [ACK, FIN | ACK, RST, RST | ACK, SYN, SYN | ACK, 0] {
            assert!(silent(&client.tcp(family, WEB, flags)), "{family:?} {flags:#x}");
        }
        for flags in [FIN | ACK, RST, RST | ACK, SYN, SYN | ACK, 0] {
            let frame = client.tcp_with(family, WEB, flags, 64, &[]);
            assert!(silent(&frame), "{family:?} {flags:#x}, without data");
        }
        let answered = answer(family, &client, 6, &segment(WEB, client.port, ACK));
        let error = icmp_error(family, if family == Family::V4 { 3 } else { 1 }, &answered);
        assert!(silent(&error), "{family:?}: an ICMP error");
        assert!(silent(&client.udp(family, QUIC, &[0x43; 40])), "{family:?}: UDP");
        let model = Model::new(1);
        let first = [segment(client.port, WEB, ACK), vec![0x5a; 28]].concat();
        model.forwarded(&client.fragment(family, (7, 6), (0, true), &first));
        model.counters[1].unanswered.store(5);
        model.forwarded(&client.fragment(family, (7, 6), (48, false), &[0x5a; 40]));
        assert_eq!(model.counters[1].unanswered.load(), 5, "{family:?}: a later fragment");
    }
}

#[test]
fn a_count_that_is_taken_back_leaves_nothing() {
    let all = events::UNPINNED | DIVERTED;
    let counter = BackendCounter::default();
    for what in [0, events::UNPINNED, events::NEW_FLOW, all] {
        let to = Forward {
            id: 1,
            backend: (),
            l3: 14,
            v6: false,
            len: 100,
            packets: 3,
            bytes: 180,
            entropy: 0,
            events: what,
        };
        counter.count(&to, || what & events::BARE_ACK != 0, || 5_000_000_000);
        counter.take_back(&to);
    }
    let BackendCounter { packets, bytes, new_flows, unpinned, .. } = &counter;
    let BackendCounter { syn_retransmissions, unanswered, second_choices, .. } = &counter;
    for count in [packets, bytes, new_flows, unpinned, syn_retransmissions, second_choices] {
        assert_eq!(count.load(), 0);
    }
    let old = Unanswered(unanswered.load());
    assert_eq!(old.syns(), 0);
    assert_eq!(old.with_syn(|| 9_000_000_000), Unanswered::default().with_syn(|| 9_000_000_000));
}

#[test]
fn almost_every_flow_of_one_of_two_backends_has_a_second_choice() {
    for family in FAMILIES {
        let model = Model::new(251);
        model.share_rings(2);
        suspect(&model, 1);
        for client in model.clients_of(family, 1).take(500) {
            syn(&model, family, &client);
            assert_eq!(syn(&model, family, &client).id, 2, "{family:?}, {client:?}");
        }
    }
}

#[test]
fn second_choices_spread_over_all_others_by_their_share() {
    let model = Model::new(251);
    model.share_rings(BACKENDS);
    suspect(&model, 1);
    let mut counts = [0; BACKENDS as usize + 1];
    for client in model.clients_of(Family::V4, 1).take(700) {
        syn(&model, Family::V4, &client);
        counts[usize::from(syn(&model, Family::V4, &client).id)] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!(counts[2..].iter().all(|count| (60..150).contains(count)), "{counts:?}");
}

proptest! {
    /// What else a node has seen makes no difference.
    #[test]
    fn the_second_choice_is_a_function_of_hash_and_ring(
        slots in 2..80_u32, owners in 2..=BACKENDS, n: u32, others in 0..50_u32, v6: bool,
        is_suspect: bool,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let client = Client::new(n);
        let second = |others: u32, is_suspect: bool| {
            let model = Model::new(slots);
            model.share_rings(owners);
            for other in 0..others {
                syn(&model, family, &Client::new(n ^ (1 + other)));
                model.forwarded(&client.tcp(family, WEB, ACK));
            }
            model.counters.iter().for_each(|counter| counter.unanswered.store(0));
            let first = syn(&model, family, &client).id;
            if is_suspect {
                suspect(&model, first);
            } else {
                model.counters[usize::from(first)].unanswered.store(u64::from(SILENT_SYNS));
            }
            (first, syn_again(&model, family, &client).id)
        };
        prop_assert_eq!(second(0, true), second(others, is_suspect));
    }

    /// A lossy network of clients: all backends live and answer, and clients lose the answers, and
    /// repeat their SYNs whenever they like. A flow leaves a backend only if no client has acknowledged
    /// bytes of it for half a second, and never after its own client has.
    #[test]
    fn no_flow_leaves_a_backend_that_answers_others(
        steps in prop::collection::vec((0..60_usize, 0..100_u32, 0..300_u64), 1..250),
        loss in 0..100_u32, slots in 1..40_u32, owners in 2..=BACKENDS, v6: bool,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let model = Model::new(slots);
        model.share_rings(owners);
        let mut flows = [None; 60];
        let mut last_ack = [0; BACKENDS as usize + 1];
        for (n, luck, millis) in steps {
            let client = Client::new(n as u32);
            let now = model.nanos.get() + millis * 1_000_000;
            model.nanos.set(now);
            match flows[n] {
                Some(id) if luck >= loss => {
                    prop_assert_eq!(model.forwarded(&client.bare_ack(family, WEB)).id, id);
                    last_ack[usize::from(id)] = now;
                }
                known => {
                    let to = syn(&model, family, &client);
                    if let Some(id) = known {
                        let is_recent = last_ack[usize::from(id)] + 500_000_000 > now;
                        prop_assert!(to.id == id || !is_recent);
                        prop_assert_eq!(to.id != id, to.events & events::SECOND_CHOICE != 0);
                    }
                    flows[n] = Some(to.id);
                }
            }
        }
    }

    /// Any order of births, SYNs sent again, packets, changes of the ring, pauses, and backends that
    /// fall silent or are suspected: once a client has gone on, its flow never moves, and before
    /// that only by a SYN that is counted as its second choice.
    #[test]
    fn a_flow_moves_by_its_own_syn_alone(
        steps in prop::collection::vec((0..8_u8, 0..30_u32, 1..=BACKENDS), 1..250),
        v6: bool, capacity in 0..40_usize, budget in 0..20_u32,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut model = Model::new(5);
        model.pin_capacity.set(capacity);
        model.change_service(family.service(1), |service| service.syn_budget = budget);
        // Where each flow is, and whether its client has gone on.
        let mut flows = [None; 30];
        for (step, n, owner) in steps {
            let client = Client::new(n);
            let flow = &mut flows[n as usize];
            let counter = &model.counters[usize::from(owner)];
            match (step, *flow) {
                (0, _) => model.move_rings_to(owner),
                (1, _) => model.pass_seconds(n % 3),
                (2, _) => counter.unanswered.store(u64::from(n)),
                (3, _) => suspect(&model, owner),
                (4, _) => model.set_flags(owner, backend_flags::USABLE),
                (5 | 6, None | Some((_, false))) => {
                    let to = syn(&model, family, &client);
                    if let Some((id, _)) = *flow {
                        // In flux, what found no token at first may find one now, as the first SYN
                        // of a flow does. It is the client's first answer that counts.
                        let is_free = to.events & events::SECOND_CHOICE != 0
                            || model.slot_of(family, &client).owners().current == to.id;
                        prop_assert!(to.id == id || is_free);
                    }
                    *flow = Some((to.id, false));
                }
                (_, Some((id, _))) => {
                    let frame = if n % 2 == 0 {
                        client.tcp(family, WEB, ACK)
                    } else {
                        client.bare_ack(family, WEB)
                    };
                    prop_assert_eq!(model.forwarded(&frame).id, id);
                    *flow = Some((id, true));
                }
                (_, None) => {}
            }
        }
    }
}

#[test]
fn a_second_choice_outlives_its_slots_return_to_the_steady_state() {
    for family in FAMILIES {
        let model = world();
        let client = model.client_of(family, 1, 0);
        syn(&model, family, &client);
        suspect(&model, 1);
        let to = syn(&model, family, &client);
        model.set_flags(1, backend_flags::USABLE);
        model.pass_seconds(IDLE / 2);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, to.id, "{family:?}");
        let pin = model.pins.borrow().values().next().expect("the flow's").get();
        assert_eq!((pin.backend, pin.flags), (to.id, flow_flags::ESTABLISHED), "{family:?}");
        // Others of the slot are not concerned.
        let other = model.client_of(family, 1, 1);
        assert_eq!(syn(&model, family, &other).id, 1, "{family:?}");
    }
}
