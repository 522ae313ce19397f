//! The policies `oneshot` and `tracked`.

use lb_common::verdict::events;

use crate::{
    frames::{Client, FAMILIES},
    model::{DNS, GAME, IDLE, Model},
};

#[test]
fn oneshot_follows_the_current_owner_at_once() {
    for family in FAMILIES {
        let model = Model::new(7);
        let frame = Client::new(1).udp(family, DNS, b"question");
        for owner in [1, 2, 3] {
            model.move_rings_to(owner);
            let to = model.forwarded(&frame);
            assert_eq!((to.id, to.events), (owner, 0), "{family:?}");
        }
        assert!(model.pins.borrow().is_empty() && model.tracked.borrow().is_empty());
    }
}

#[test]
fn a_tracked_flow_stays_until_it_is_idle() {
    for family in FAMILIES {
        let model = Model::new(7);
        let frame = Client::new(1).udp(family, GAME, b"move");
        assert_eq!(model.forwarded(&frame).events, events::NEW_FLOW);
        for owner in [2, 3, 4] {
            model.move_rings_to(owner);
            model.pass_seconds(IDLE);
            let to = model.forwarded(&frame);
            assert_eq!((to.id, to.events), (1, 0), "{family:?}");
        }
        model.pass_seconds(IDLE + 1);
        let to = model.forwarded(&frame);
        assert_eq!((to.id, to.events), (4, events::NEW_FLOW), "{family:?}");
        model.move_rings_to(5);
        assert_eq!(model.forwarded(&frame).id, 4, "{family:?}");
        assert!(model.pins.borrow().is_empty(), "UDP can't take the room of TCP's pins");
    }
}

#[test]
fn a_tracked_flow_leaves_a_dead_backend() {
    for family in FAMILIES {
        let model = Model::new(7);
        let frame = Client::new(1).udp(family, GAME, b"move");
        model.forwarded(&frame);
        model.set_flags(1, 0);
        model.move_rings_to(2);
        assert_eq!(model.forwarded(&frame).id, 2, "{family:?}");
        model.set_flags(1, 1);
        assert_eq!(model.forwarded(&frame).id, 2, "{family:?}: it does not go back");
    }
}
