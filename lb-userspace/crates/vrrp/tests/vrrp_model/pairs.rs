//! Every situation with every event: what a router does, and when it is due next.

use std::collections::BTreeSet;

use lb_model::router::State;
use lb_vrrp::{Yield, fsm::Event};

use crate::common::{Desk, SECOND, settings};

/// Where a router is: the states, and what there is within Backup and Active.
const SITUATIONS: [&str; 9] = [
    "initialize",
    "fault",
    "backup",
    "inherited",
    "behind",
    "active",
    "asked",
    "advertised",
    "stopping",
];

/// What happens to it. It has priority 100 and 10.0.0.2.
const EVENTS: [&str; 19] = [
    "startup",
    "startup inherited",
    "timer",
    "early timer",
    "lower",
    "equal, lower address",
    "equal, higher address",
    "higher",
    "leaves",
    "yield asked",
    "yield advertised",
    "take",
    "stop",
    "stop and release",
    "mate active",
    "mate backup",
    "fault begins",
    "fault ends",
    "retired",
];

fn in_situation(name: &str) -> Desk {
    let mut desk = match name {
        "initialize" => Desk::new(settings()),
        "fault" => {
            let mut desk = Desk::new(settings());
            desk.assess(|assessment| assessment.fault = Some("broken".into()));
            desk.does(Event::Startup { inherited: false });
            desk
        }
        "backup" => Desk::backup(settings()),
        "inherited" => {
            let mut desk = Desk::new(settings());
            desk.does(Event::Startup { inherited: true });
            desk
        }
        // Backup, and knows the Active router.
        "behind" => {
            let mut desk = Desk::backup(settings());
            desk.receives(3, 150);
            desk
        }
        _ => Desk::active(settings()),
    };
    match name {
        "asked" => desk.does(Event::Yield(Yield::Requested)),
        "advertised" => desk.does(Event::Yield(Yield::Advertised)),
        "stopping" => desk.does(Event::Stop { release: false }),
        _ => String::new(),
    };
    desk.after(SECOND / 10);
    desk
}

fn happens(desk: &mut Desk, event: &str) -> String {
    let done = match event {
        "startup" => desk.does(Event::Startup { inherited: false }),
        "startup inherited" => desk.does(Event::Startup { inherited: true }),
        "timer" if desk.router.deadline().is_some() => desk.wait(),
        "timer" | "early timer" => desk.does(Event::Timer),
        "lower" => desk.receives(3, 50),
        "equal, lower address" => desk.receives(1, 100),
        "equal, higher address" => desk.receives(3, 100),
        "higher" => desk.receives(3, 150),
        "leaves" => desk.receives(3, 0),
        "yield asked" => desk.does(Event::Yield(Yield::Requested)),
        "yield advertised" => desk.does(Event::Yield(Yield::Advertised)),
        "take" => desk.does(Event::Take),
        "stop" => desk.does(Event::Stop { release: false }),
        "stop and release" => desk.does(Event::Stop { release: true }),
        "mate active" => desk.does(Event::MateActive("other".into())),
        "mate backup" => desk.does(Event::MateBackup("other".into())),
        "fault begins" => desk.assess(|assessment| assessment.fault = Some("broken".into())),
        "fault ends" => desk.assess(|assessment| assessment.fault = None),
        "retired" => {
            let now = desk.now;
            desk.router.retire(now, &mut desk.out);
            desk.done()
        }
        other => panic!("no event: {other}"),
    };
    match desk.due() {
        Some(due) => format!("{done} / {} ms", due.as_millis()),
        None => done,
    }
}

#[test]
fn every_event_in_every_situation_has_one_known_answer() {
    let table = include_str!("pairs.txt");
    let mut seen = BTreeSet::new();
    let mut wrong = String::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [situation, event, answer] = line.split(" | ").map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("not a line of the table: {line}");
        };
        assert!(seen.insert((situation, event)), "{situation} | {event}: twice");
        let is = happens(&mut in_situation(situation), event);
        let is = is.trim();
        if is != answer {
            wrong += &format!("{situation} | {event} | {is}\n    instead of {answer}\n");
        }
    }
    let all: BTreeSet<_> = SITUATIONS
        .into_iter()
        .flat_map(|situation| EVENTS.map(|event| (situation, event)))
        .collect();
    for (situation, event) in all.difference(&seen) {
        let is = happens(&mut in_situation(situation), event);
        let is = is.trim();
        wrong += &format!("{situation} | {event} | {is}\n");
    }
    assert!(wrong.is_empty(), "these lines are wrong or missing:\n{wrong}");
}

#[test]
fn the_situations_reach_every_state() {
    let reached: BTreeSet<_> =
        SITUATIONS.into_iter().map(|name| in_situation(name).router.state()).collect();
    assert_eq!(reached, State::ALL.into());
}
