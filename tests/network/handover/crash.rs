//! A start that ends in the middle of a migration, at every step: the next one finds the maps in use.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_common::abi::ABI_VERSION;
use lb_datapath::{Step, Xdp};
use lb_model::settings::Limits;
use lb_plane::Maps as _;

use super::{
    content::Content,
    migration::{LARGER, decisions, frame},
    older::{self, WEB},
    testbed::{LIMITS, Testbed},
    wire::{Kind, Wire},
};

const STEPS: [Step; 8] = [
    Step::Made,
    Step::Copied,
    Step::Loaded,
    Step::Swapped,
    Step::CaughtUp,
    Step::SetAside,
    Step::Renamed,
    Step::Removed,
];

/// Opens, and ends as by SIGKILL when so much is done: clean-up after an error does not run.
fn crash(testbed: &Testbed, at: Step) -> bool {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        Xdp::open_by_steps(&testbed.settings, &mut |step| {
            assert_ne!(step, at, "this is the crash");
            Ok(())
        })
        .map(drop)
    }));
    opened.is_err()
}

/// Crashes at this step on the way to these limits, then starts with `then`. `round` keeps the flows
/// of several calls apart.
fn survives(testbed: &mut Testbed, from: &str, at: Step, limits: Limits, then: Limits, round: u16) {
    let (vb, vd) = (Wire::at("vb"), Wire::at("vd"));
    let decided = decisions(&vb);
    let before = Content::of(&testbed.settings.pin_dir.join(from));
    testbed.settings.limits = limits;
    assert!(crash(testbed, at), "{at:?} is no step of a migration from {from}");

    // Whatever runs on which interface decides as before, and opens flows.
    assert_eq!(decisions(&vb), decided, "{at:?}");
    let newcomers = 20_000 + 100 * round..20_020 + 100 * round;
    for client in newcomers.clone() {
        let wire = if client % 2 == 0 { &vb } else { &vd };
        assert_eq!(wire.ask_by(&vb, frame(Kind::Syn, client, WEB)), Some(2), "{at:?}");
    }

    testbed.settings.limits = then;
    assert_eq!(testbed.open().limits(), then, "{at:?}");
    assert_eq!(testbed.pinned(), testbed.whole(), "{at:?}");
    testbed.check_pins();
    let after = Content::of(&testbed.current());
    assert_eq!(after.pins.len(), before.pins.len() + newcomers.len(), "{at:?}");
    assert_eq!(after.tracked.len(), before.tracked.len(), "{at:?}");
    let sent = decided.len() + newcomers.len();
    assert_eq!(after.packets() - before.packets(), sent as u64, "{at:?}");
    assert_eq!(decisions(&vb), decided, "{at:?}");
    for client in newcomers {
        assert_eq!(vb.ask(frame(Kind::Ack, client, WEB)), Some(2), "{at:?}: {client}");
    }
}

// The verifier takes a second for each load of the program, so a test takes as few as will do.

#[test]
fn a_crash_at_any_step_from_an_older_layout_loses_no_flow() {
    let layouts = [older::LAST, 1].into_iter().cycle();
    for (at, layout) in STEPS.into_iter().filter(|step| *step != Step::SetAside).zip(layouts) {
        let Some(mut testbed) = Testbed::new() else { return };
        drop(older::start(&testbed.settings, layout));
        survives(&mut testbed, &format!("v{layout}"), at, LARGER, LARGER, 0);
    }
}

#[test]
fn a_crash_at_any_step_to_other_limits_loses_no_flow() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    drop(testbed.open());
    for (round, at) in (0..).zip(STEPS) {
        let limits = if round % 2 == 0 { LARGER } else { LIMITS };
        survives(&mut testbed, &format!("v{ABI_VERSION}"), at, limits, limits, round);
    }
}

#[test]
fn a_start_after_a_crash_may_ask_for_yet_other_limits() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    drop(testbed.open());
    for (round, at) in (0..).zip([Step::Made, Step::Swapped, Step::SetAside]) {
        let then = Limits { pins: 5_000 + u32::from(round), backends: 70, ..LARGER };
        survives(&mut testbed, &format!("v{ABI_VERSION}"), at, LARGER, then, round);
    }
}
