//! New flows in slots whose base owner is soft down: its host lives and refuses them.

use std::rc::Rc;

use lb_common::{
    abi::{Backend, Owners, Service, Slot, backend_flags, service_flags},
    verdict::{Drop, Verdict, events},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, FIN, Family, SYN},
    model::{BACKENDS, Model, QUIC, WEB},
};

const UNPINNABLE: Verdict<Backend> = Verdict::Drop(Drop::Unpinnable);

fn soft_down(model: &Model, id: u16) {
    model.set_flags(id, backend_flags::USABLE | backend_flags::SOFT_DOWN);
}

/// One slot, from backend 1, which is soft down, to backend 2, and no lease.
fn model(family: Family) -> Model {
    let model = Model::new(1);
    model.move_rings_to(2);
    soft_down(&model, 1);
    model.lease.set(model.nanos.get() - 1);
    // The SYN's service and that of QUIC.
    for service in [1, 4] {
        assert_eq!(
            model.only_slot(family.service(service)).owners(),
            Owners { current: 2, base: 1 }
        );
    }
    model
}

/// The same, while the daemon has paused pinning.
fn model_with_pinning_paused(family: Family) -> Model {
    let mut model = model(family);
    model.change_service(family.service(1), |service: &mut Service| {
        service.flags |= service_flags::PINNING_PAUSED;
    });
    model
}

#[test]
fn a_new_flow_is_pinned_to_the_current_owner_though_no_peer_will_know_in_time() {
    for family in FAMILIES {
        let model = model(family);
        let client = Client::new(1);
        let to = model.forwarded(&client.tcp(family, WEB, SYN));
        assert_eq!((to.id, to.events), (2, events::NEW_FLOW), "{family:?}");
        assert_eq!(
            model.notes.borrow().len(),
            1,
            "the pin is noted for the peers when it can be made"
        );
        for owner in [3, 4, 1] {
            model.move_rings_to(owner);
            for flags in [ACK, SYN, ACK, FIN] {
                let to = model.forwarded(&client.tcp(family, WEB, flags)).id;
                assert_eq!(to, 2, "{family:?}, after the change to {owner}");
            }
        }
    }
}

#[test]
fn a_quic_connection_begins_as_a_tcp_one_does() {
    for family in FAMILIES {
        let model = model(family);
        let frame = Client::new(1).udp(family, QUIC, &initial(9));
        assert_eq!(model.forwarded(&frame).id, 2, "{family:?}");
        model.move_rings_to(3);
        assert_eq!(model.forwarded(&frame).id, 2, "{family:?}: the second flight");
    }
}

/// A long header of version 1 with an id of eight bytes (RFC 9000, 17.2.2).
fn initial(id: u8) -> Vec<u8> {
    [&[0xc3, 0, 0, 0, 1, 8][..], &[id; 8], &[0; 80]].concat()
}

#[test]
fn a_syn_that_is_sent_again_leaves_the_pin_of_a_backend_that_refuses_by_now() {
    for family in FAMILIES {
        for answered in [false, true] {
            let model = Model::new(1);
            let slot = model.only_slot(family.service(1));
            slot.set_owners(Owners { current: 1, base: 3 });
            let client = Client::new(1);
            let (syn, ack) = (client.tcp(family, WEB, SYN), client.tcp(family, WEB, ACK));
            assert_eq!(model.forwarded(&syn).id, 1);
            if answered {
                model.forwarded(&ack);
            }
            slot.set_owners(Owners { current: 2, base: 3 });
            soft_down(&model, 1);
            if answered {
                // Its connection may live, and the SYN be forged.
                assert_eq!(model.decide(&syn), UNPINNABLE, "{family:?}");
                assert_eq!(model.forwarded(&ack).id, 1, "{family:?}: it does live");
            }
            for frame in [&syn, &ack, &syn] {
                assert_eq!(model.forwarded(frame).id, 2, "{family:?}, answered {answered}");
            }
        }
    }
}

#[test]
fn a_client_that_takes_a_port_again_is_not_refused_though_its_older_connection_was_reset() {
    for family in FAMILIES {
        let model = Model::new(1);
        let slot = model.only_slot(family.service(1));
        slot.set_owners(Owners { current: 1, base: 3 });
        let client = Client::new(1);
        let (syn, ack) = (client.tcp(family, WEB, SYN), client.tcp(family, WEB, ACK));
        model.forwarded(&syn);
        model.forwarded(&ack);
        // Its backend resets it, which goes to the client by another way, and is soft down.
        slot.set_owners(Owners { current: 2, base: 3 });
        soft_down(&model, 1);
        assert_eq!(model.decide(&syn), UNPINNABLE, "{family:?}");
        model.pass_seconds(1);
        for frame in [&syn, &ack] {
            assert_eq!(model.forwarded(frame).id, 2, "{family:?}: the SYN that is sent again");
        }
        // One that takes new flows gets it, as it has the connection if that lives.
        let model = Model::new(1);
        model.only_slot(family.service(1)).set_owners(Owners { current: 1, base: 3 });
        model.forwarded(&syn);
        model.forwarded(&ack);
        model.only_slot(family.service(1)).set_owners(Owners { current: 2, base: 3 });
        assert_eq!(model.forwarded(&syn).id, 1, "{family:?}");
    }
}

#[test]
fn a_hello_that_is_sent_again_leaves_a_backend_that_refuses_by_now() {
    for family in FAMILIES {
        // As base owner, and by a pin.
        for (before, after) in [((1, 0), (2, 1)), ((1, 3), (2, 3))] {
            for answered in [false, true] {
                let model = Model::new(1);
                let slot = model.only_slot(family.service(4));
                slot.set_owners(Owners { current: before.0, base: before.1 });
                let client = Client::new(1);
                let hello = client.udp(family, QUIC, &initial(9));
                let reply = client.udp(family, QUIC, &initial(5));
                assert_eq!(model.forwarded(&hello).id, 1);
                slot.set_owners(Owners { current: after.0, base: after.1 });
                soft_down(&model, 1);
                let (frames, home) =
                    if answered { ([&reply, &reply], 1) } else { ([&hello, &reply], 2) };
                for frame in frames {
                    let case = (family, before, answered);
                    assert_eq!(model.forwarded(frame).id, home, "{case:?}");
                }
            }
        }
    }
}

#[test]
fn a_hello_that_is_sent_again_and_cannot_be_pinned_is_left_to_the_next() {
    for family in FAMILIES {
        let model = Model::new(1);
        let hello = Client::new(1).udp(family, QUIC, &initial(9));
        assert_eq!(model.forwarded(&hello).id, 1);
        model.move_rings_to(2);
        soft_down(&model, 1);
        model.pin_capacity.set(0);
        assert_eq!(model.decide(&hello), UNPINNABLE, "{family:?}");
        model.pin_capacity.set(1);
        assert_eq!(model.forwarded(&hello).id, 2, "{family:?}");
    }
}

#[test]
fn the_flows_that_the_base_owner_has_stay_there() {
    for family in FAMILIES {
        let model = model(family);
        for flags in [ACK, FIN, ACK] {
            let to = model.forwarded(&Client::new(1).tcp(family, WEB, flags));
            assert_eq!((to.id, to.events), (1, events::UNPINNED), "{family:?}");
        }
        assert!(model.pins.borrow().is_empty());
    }
}

#[test]
fn a_new_flow_that_cannot_be_pinned_is_left_to_the_client_s_next_syn() {
    for family in FAMILIES {
        for full in [false, true] {
            let mut model = model(family);
            let id = family.service(1);
            if full {
                model.pin_capacity.set(0);
            } else {
                model.change_service(id, |service| service.syn_budget = 0);
            }
            let syn = Client::new(1).tcp(family, WEB, SYN);
            assert_eq!(model.decide(&syn), UNPINNABLE, "{family:?}, full {full}");
            assert_eq!(model.decide(&syn), UNPINNABLE, "{family:?}, full {full}: sent again");
            assert_eq!(model.only_slot(id).unpinned(), 0, "no flow has begun");
            model.pin_capacity.set(usize::MAX);
            model.change_service(id, |service| service.syn_budget = 1);
            model.pass_seconds(1);
            assert_eq!(model.forwarded(&syn).id, 2, "{family:?}, full {full}");
            assert_eq!(model.forwarded(&Client::new(1).tcp(family, WEB, ACK)).id, 2);
        }
    }
}

#[test]
fn a_new_flow_while_pinning_is_paused_is_left_to_the_peer_that_takes_over() {
    for family in FAMILIES {
        let model = model_with_pinning_paused(family);
        let client = Client::new(1);
        assert_eq!(model.decide(&client.tcp(family, WEB, SYN)), UNPINNABLE, "{family:?}");
        assert!(model.pins.borrow().is_empty() && model.notes.borrow().is_empty());
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 1, "an older flow");
    }
}

#[test]
fn a_new_flow_on_a_closed_pin_while_pinning_is_paused_is_left_to_the_peer() {
    for family in FAMILIES {
        let mut model = Model::new(1);
        let slot = model.only_slot(family.service(1));
        slot.set_owners(Owners { current: 1, base: 3 });
        let client = Client::new(1);
        for flags in [SYN, ACK, FIN | ACK] {
            assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, 1);
        }
        slot.set_owners(Owners { current: 2, base: 3 });
        soft_down(&model, 1);
        model.change_service(family.service(1), |service| {
            service.flags |= service_flags::PINNING_PAUSED
        });
        assert_eq!(model.decide(&client.tcp(family, WEB, SYN)), UNPINNABLE, "{family:?}");
        assert_eq!(
            model.forwarded(&client.tcp(family, WEB, ACK)).id,
            1,
            "what is left of the old one"
        );
    }
}

#[test]
fn a_base_owner_that_is_up_again_gets_what_cannot_be_pinned() {
    for family in FAMILIES {
        let model = model(family);
        model.set_flags(1, backend_flags::USABLE);
        let to = model.forwarded(&Client::new(1).tcp(family, WEB, SYN));
        assert_eq!((to.id, to.events), (1, events::NEW_FLOW | events::UNPINNED), "{family:?}");
    }
}

#[test]
fn a_new_flow_on_the_closed_pin_of_a_backend_that_is_soft_down_takes_the_pin_along() {
    for family in FAMILIES {
        for base in [0, 3] {
            let model = Model::new(1);
            let slot = model.only_slot(family.service(1));
            slot.set_owners(Owners { current: 1, base: 3 });
            let client = Client::new(1);
            for flags in [SYN, ACK, FIN | ACK] {
                assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, 1);
            }
            slot.set_owners(Owners { current: 2, base });
            soft_down(&model, 1);
            model.lease.set(model.nanos.get() - 1);
            model.pin_capacity.set(1);
            let (syn, ack) = (client.tcp(family, WEB, SYN), client.tcp(family, WEB, ACK));
            assert_eq!(model.forwarded(&ack).id, 1, "what is left of the old one, base {base}");
            assert_eq!(model.forwarded(&syn).id, 2, "{family:?}, base {base}");
            assert_eq!(model.forwarded(&ack).id, 2, "{family:?}, base {base}");
        }
    }
}

#[test]
fn a_new_flow_on_the_pin_of_a_dead_backend_is_not_sent_to_a_base_owner_that_is_soft_down() {
    for family in FAMILIES {
        let model = model(family);
        let client = Client::new(1);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 2);
        model.set_flags(2, 0);
        model.only_slot(family.service(1)).set_owners(Owners { current: 3, base: 1 });
        for flags in [SYN, ACK, SYN, ACK] {
            assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, 3, "{family:?}");
        }
    }
}

proptest! {
    /// Backends that fail their checks and come back, changes of the ring, a lease that comes and
    /// goes, room and budget for few pins: no new flow begins at a base owner that is soft down,
    /// and none moves.
    #[test]
    fn no_new_flow_begins_at_a_base_owner_that_is_soft_down(
        steps in prop::collection::vec((0..8_u8, 0..30_u32, 1..=BACKENDS), 1..200),
        v6: bool, capacity in 0..40_usize, budget in 0..20_u32,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut model = Model::new(5);
        model.pin_capacity.set(capacity);
        model.change_service(family.service(1), |service| service.syn_budget = budget);
        let mut down = [false; BACKENDS as usize + 1];
        let mut homes = [None; 30];
        for (step, n, owner) in steps {
            let client = Client::new(n);
            let home = &mut homes[n as usize];
            match (step, *home) {
                // As the daemon has it: up before it owns a slot, down after the slots have moved.
                (0, _) => {
                    down[usize::from(owner)] = false;
                    model.set_flags(owner, backend_flags::USABLE);
                    model.move_rings_to(owner);
                }
                (1, _) => {
                    let owns = |slot: &Rc<Slot>| slot.owners().current == owner;
                    if !model.rings.values().flatten().any(owns) {
                        down[usize::from(owner)] = true;
                        soft_down(&model, owner);
                    }
                }
                (2, _) => model.pass_seconds(n % 3),
                (3, _) => model.lease.set(if n % 2 == 0 { 0 } else { 1 }),
                (_, None) => match model.decide(&client.tcp(family, WEB, SYN)) {
                    Verdict::Forward(to) => {
                        prop_assert!(!down[usize::from(to.id)], "at backend {}", to.id);
                        *home = Some(to.id);
                    }
                    dropped => prop_assert_eq!(dropped, UNPINNABLE),
                },
                (_, Some(id)) => {
                    prop_assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, id);
                }
            }
        }
    }
}
