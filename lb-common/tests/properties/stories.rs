//! Whole lives of TCP flows while rings change.

use lb_common::{abi::Owners, verdict::events};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, FIN, Family, RST, SYN},
    model::{BACKENDS, IDLE, Model, WEB},
};

#[test]
fn a_flow_older_than_every_change_keeps_its_backend() {
    for family in FAMILIES {
        let model = Model::new(13);
        let client = Client::new(1);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 1);
        for owner in [2, 3, 4, 1, 5] {
            model.move_rings_to(owner);
            let to = model.forwarded(&client.tcp(family, WEB, ACK));
            assert_eq!(to.id, 1, "{family:?}, after the change to {owner}");
        }
        assert!(model.pins.borrow().is_empty(), "never insert on a packet that is no SYN");
    }
}

#[test]
fn a_flow_born_in_flux_keeps_its_backend_through_three_more_changes() {
    for family in FAMILIES {
        let model = Model::new(13);
        let client = Client::new(1);
        model.move_rings_to(2);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 2);
        for owner in [3, 4, 1] {
            model.move_rings_to(owner);
            model.pass_seconds(10);
            let to = model.forwarded(&client.tcp(family, WEB, ACK));
            assert_eq!((to.id, to.events), (2, 0), "{family:?}, after the change to {owner}");
        }
    }
}

#[test]
fn a_pinned_flow_stays_when_its_slot_is_steady_again() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        // Back to the base owner: no base, but the pin lives.
        model.move_rings_to(1);
        assert_eq!(model.only_slot(family.service(1)).owners(), Owners { current: 1, base: 0 });
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 2);
        assert_eq!(model.forwarded(&Client::new(2).tcp(family, WEB, SYN)).id, 1);
    }
}

#[test]
fn a_reset_does_not_lose_a_pin() {
    // It may be forged: the flow's next packets must find their backend.
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        model.forwarded(&client.tcp(family, WEB, ACK));
        for flags in [RST, RST | ACK, FIN | ACK] {
            assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, 2);
            assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 2);
        }
        assert_eq!(model.pins.borrow().len(), 1);
    }
}

#[test]
fn a_spent_budget_sends_a_flow_to_the_base_owner_and_its_later_packets_too() {
    for family in FAMILIES {
        let mut model = Model::new(1);
        model.change_service(family.service(1), |service| service.syn_budget = 3);
        model.move_rings_to(2);
        let clients: Vec<_> = (0..10).map(Client::new).collect();
        let born: Vec<_> =
            clients.iter().map(|c| model.forwarded(&c.tcp(family, WEB, SYN)).id).collect();
        assert_eq!(born, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1], "{family:?}");
        model.pass_seconds(1);
        for owner in [2, 3, 4] {
            model.move_rings_to(owner);
            let later = clients.iter().map(|c| model.forwarded(&c.tcp(family, WEB, ACK)).id);
            assert_eq!(later.collect::<Vec<_>>(), born, "{family:?}, after the change to {owner}");
        }
    }
}

#[test]
fn the_share_of_a_cpu_takes_the_place_of_the_even_one() {
    for family in FAMILIES {
        let mut model = Model::new(1);
        model.change_service(family.service(1), |service| service.syn_budget = 3);
        model.move_rings_to(2);
        model.budgets[&family.service(1)].share.store(7);
        let born = (0..10).map(|n| model.forwarded(&Client::new(n).tcp(family, WEB, SYN)).id);
        assert_eq!(born.collect::<Vec<_>>(), [2, 2, 2, 2, 2, 2, 2, 1, 1, 1], "{family:?}");
    }
}

#[test]
fn a_full_pin_table_is_consistent() {
    for family in FAMILIES {
        let model = Model::new(7);
        model.pin_capacity.set(20);
        model.move_rings_to(2);
        let clients: Vec<_> = (0..100).map(Client::new).collect();
        let born: Vec<_> =
            clients.iter().map(|c| model.forwarded(&c.tcp(family, WEB, SYN))).collect();
        assert_eq!(born.iter().filter(|to| to.id == 2).count(), 20);
        for to in &born {
            assert_eq!(to.id == 1, to.events & events::UNPINNED != 0, "{to:?}");
        }
        model.move_rings_to(3);
        for (client, to) in clients.iter().zip(&born) {
            assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, to.id);
        }
        assert_eq!(model.pins.borrow().len(), 20);
    }
}

#[test]
fn a_new_flow_on_a_closed_pin_takes_the_pin_along() {
    // Also with no room for another pin, and with no budget.
    for family in FAMILIES {
        let mut model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        model.forwarded(&client.tcp(family, WEB, FIN | ACK));
        model.pin_capacity.set(1);
        model.change_service(family.service(1), |service| service.syn_budget = 0);
        model.move_rings_to(3);
        for (flags, what) in [(SYN, "SYN"), (SYN, "SYN again"), (ACK, "data")] {
            assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, 3, "{family:?} {what}");
        }
        model.move_rings_to(4);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 3);
    }
}

#[test]
fn without_the_lease_a_syn_on_the_pin_of_a_dead_backend_renames_nothing() {
    // A peer that takes over knows the pin as it was: it sends the flow where this node does.
    for family in FAMILIES {
        for base in [0, 1] {
            let model = Model::new(1);
            let client = Client::new(1);
            model.move_rings_to(2);
            model.forwarded(&client.tcp(family, WEB, SYN));
            model.set_flags(2, 0);
            model.only_slot(family.service(1)).set_owners(Owners { current: 3, base });
            model.lease.set(model.nanos.get() - 1);
            let pins = || model.pins.borrow().values().map(|pin| pin.get()).collect::<Vec<_>>();
            let (before, notes) = (pins(), model.notes.borrow().len());
            let to = if base == 0 { 3 } else { base };
            for (flags, what) in [(SYN, "SYN"), (SYN, "SYN again"), (ACK, "data"), (FIN, "FIN")] {
                assert_eq!(model.forwarded(&client.tcp(family, WEB, flags)).id, to, "{what}");
            }
            assert_eq!(pins(), before, "{family:?}, base {base}");
            assert_eq!(model.notes.borrow().len(), notes, "{family:?}, base {base}");
            // With the lease the next connection takes the pin along.
            model.lease.set(0);
            assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 3, "{family:?}");
            assert_eq!(model.notes.borrow().len(), notes + 1, "{family:?}");
        }
    }
}

#[test]
fn a_syn_sent_again_keeps_its_backend_across_a_change() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        let first = model.forwarded(&client.tcp(family, WEB, SYN));
        model.move_rings_to(3);
        model.pass_seconds(3);
        let again = model.forwarded(&client.tcp(family, WEB, SYN));
        assert_eq!((first.id, again.id), (2, 2));
        assert_eq!(first.events & events::SYN_RETRANSMISSION, 0);
        assert_ne!(again.events & events::SYN_RETRANSMISSION, 0);
    }
}

#[test]
fn an_idle_pin_gives_way_to_a_new_flow_only() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        model.move_rings_to(3);
        model.pass_seconds(IDLE + 1);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 2, "however idle");
        model.pass_seconds(IDLE + 1);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 3);
    }
}

#[test]
fn flows_of_a_dead_backend_find_a_living_one() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        model.set_flags(2, 0);
        model.move_rings_to(3);
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 1, "the base owner");
        assert_eq!(model.forwarded(&client.tcp(family, WEB, SYN)).id, 3, "a new flow");
        assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, 3);
    }
}

#[test]
fn only_a_plain_syn_opens_a_flow() {
    for flags in [SYN | ACK, SYN | RST, SYN | FIN, 0, FIN, RST, ACK] {
        let model = Model::new(1);
        model.move_rings_to(2);
        let to = model.forwarded(&Client::new(1).tcp(Family::V4, WEB, flags));
        assert_eq!((to.id, to.events), (1, events::UNPINNED), "flags {flags:#x}");
        assert!(model.pins.borrow().is_empty(), "flags {flags:#x}");
    }
}

proptest! {
    /// Any order of births, packets, changes of the ring and pauses: no flow ever moves.
    #[test]
    fn no_order_of_changes_moves_a_flow(
        steps in prop::collection::vec((0..4_u8, 0..30_u32, 1..=BACKENDS), 1..200),
        v6: bool, capacity in 0..40_usize, budget in 0..20_u32,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut model = Model::new(5);
        model.pin_capacity.set(capacity);
        model.change_service(family.service(1), |service| service.syn_budget = budget);
        let mut homes = [None; 30];
        for (step, n, owner) in steps {
            let client = Client::new(n);
            let home = &mut homes[n as usize];
            match (step, *home) {
                (0, _) => model.move_rings_to(owner),
                (1, _) => model.pass_seconds(n % 3),
                (_, None) => *home = Some(model.forwarded(&client.tcp(family, WEB, SYN)).id),
                (_, Some(id)) => {
                    prop_assert_eq!(model.forwarded(&client.tcp(family, WEB, ACK)).id, id);
                }
            }
        }
    }
}
