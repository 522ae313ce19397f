//! Sync groups, and what a machine waits for.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use lb_model::router::{Routers, State, SyncGroup, Track, Tracked};
use lb_vrrp::{
    ExternalState, Order, Yield,
    fsm::Action,
    machine::{Machine, Out},
    observed::{Observed, ObservedLink},
};

use crate::world::{LISTENING, NAMES, Operation, Plan, World, address, key, router};

const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

fn plan(priority: u8) -> Plan {
    Plan { priority, interval: TENTH, preempt: true }
}

fn pair() -> World {
    let mut world = World::new(&[plan(150), plan(100)], true, 3);
    world.does(0, &Operation::Start);
    world.does(1, &Operation::Start);
    world.run(LISTENING);
    assert_eq!([world.holders(0), world.holders(1)], [[0], [0]]);
    world
}

#[test]
fn a_group_is_handed_over_whole() {
    let mut world = pair();
    world.does(1, &Operation::Handover);
    world.run(SECOND);
    assert_eq!([world.holders(0), world.holders(1)], [[1], [1]]);
    let transitions = world.transitions;
    world.run(10 * SECOND);
    assert_eq!(world.transitions, transitions, "{:#?}", world.log);
}

#[test]
fn a_group_that_was_handed_over_fails_over_by_weight() {
    let mut world = pair();
    world.does(1, &Operation::Handover);
    world.run(SECOND);
    assert_eq!([world.holders(0), world.holders(1)], [[1], [1]]);
    world.does(1, &Operation::Priority(50));
    world.run(SECOND);
    assert_eq!([world.holders(0), world.holders(1)], [[0], [0]], "{:#?}", world.log);
}

#[test]
fn a_group_stays_where_it_is_while_the_nodes_hear_each_other_anywhere() {
    let mut world = pair();
    world.does(1, &Operation::Side(1, 1));
    let transitions = world.transitions;
    world.run(10 * SECOND);
    assert_eq!(world.transitions, transitions, "{:#?}", world.log);
    world.does(1, &Operation::Side(0, 1));
    world.run(SECOND);
    assert_eq!(
        [world.holders(0), world.holders(1)],
        [[0, 1], [0, 1]],
        "nothing is received at all"
    );
    world.does(1, &Operation::Side(1, 0));
    world.run(3 * TENTH);
    assert_eq!([world.holders(0), world.holders(1)], [[0], [0]], "{:#?}", world.log);
}

struct Node {
    machine: Machine,
    routers: Routers,
    observed: Observed,
    now: Instant,
}

impl Node {
    fn new(change: impl FnOnce(&mut Routers)) -> Self {
        let routers = [0, 1].map(|number| router(&plan(100), number));
        let group = SyncGroup { name: "all".into(), routers: NAMES.map(str::to_owned).to_vec() };
        let mut routers = Routers { routers: routers.to_vec(), groups: vec![group] };
        change(&mut routers);
        let sources = [0, 1].map(|number| (NAMES[number].to_owned(), address(0, number)));
        let link = ObservedLink { up: true, ..ObservedLink::default() };
        let observed = Observed {
            links: [("eth0".to_owned(), link)].into(),
            sources: sources.into(),
            ..Observed::default()
        };
        Self { machine: Machine::new(), routers, observed, now: Instant::now() }
    }

    fn states(&self) -> [State; 2] {
        NAMES.map(|name| self.machine.state(name).expect("it is there"))
    }

    fn begin(&mut self, inherited: &[&str]) -> Out {
        let inherited: BTreeSet<_> = inherited.iter().map(|name| (*name).to_owned()).collect();
        let mut out = Out::new();
        self.machine.configure(&self.routers, &inherited, self.now, &mut out);
        self.machine.set_external(&ExternalState::default(), self.now, &mut out);
        self.machine.observe(&self.observed, self.now, &mut out);
        out
    }

    fn wait(&mut self) -> Out {
        let mut out = Out::new();
        self.now = self.machine.deadline().expect("something is due");
        self.machine.tick(self.now, &mut out);
        out
    }

    fn status(&self, router: usize) -> lb_api::routers::RouterStatus {
        self.machine.status(self.now, SystemTime::UNIX_EPOCH + SECOND)[router].clone()
    }
}

#[test]
fn a_fault_of_one_is_a_fault_of_all_and_so_is_its_end() {
    let mut node = Node::new(|_| {});
    node.begin(&[]);
    node.wait();
    assert_eq!(node.states(), [State::Active; 2]);
    let source = node.observed.sources.remove("other").expect("it has one");
    let mut out = Out::new();
    node.machine.observe(&node.observed, node.now, &mut out);
    assert_eq!(node.states(), [State::Fault; 2]);
    let status = node.status(0);
    assert_eq!(
        status.cause,
        "other, of its sync group: interface eth0 has no IPv4 address to advertise from"
    );
    assert_eq!((status.problems.len(), node.status(1).problems.len()), (0, 1));
    assert_eq!(out.iter().filter(|(_, action)| *action == Action::Release).count(), 2);
    node.observed.sources.insert("other".into(), source);
    node.machine.observe(&node.observed, node.now, &mut out);
    assert_eq!(node.states(), [State::Backup; 2]);
}

#[test]
fn a_group_has_the_priority_of_its_lowest() {
    let mut node = Node::new(|routers| {
        routers.routers[1].priority = std::num::NonZeroU8::new(60).expect("not 0");
    });
    node.begin(&[]);
    assert_eq!([0, 1].map(|router| node.status(router).priority), [60, 60]);
    assert_eq!([0, 1].map(|router| node.status(router).base_priority), [100, 60]);
}

#[test]
fn a_router_is_lowered_by_what_lowers_its_group_and_not_by_a_mate_that_has_less() {
    let tracked = Track { weight: -50, what: Tracked::Interface("eth1".into()) };
    let mut node = Node::new(|routers| {
        routers.routers[1].priority = std::num::NonZeroU8::new(60).expect("not 0");
        routers.routers[0].tracks.push(tracked.clone());
    });
    node.begin(&[]);
    let assessment =
        |node: &Node| [0, 1].map(|n| (node.status(n).priority, node.status(n).lowered));
    assert_eq!(assessment(&node), [(50, true); 2]);
    let mut out = Out::new();
    node.observed.links.insert("eth1".into(), ObservedLink { up: true, ..ObservedLink::default() });
    node.machine.observe(&node.observed, node.now, &mut out);
    assert_eq!(assessment(&node), [(60, false); 2]);
    // A node that drains is low for another reason.
    let draining = ExternalState { draining: true, ..ExternalState::default() };
    node.machine.set_external(&draining, node.now, &mut out);
    assert_eq!(assessment(&node), [(1, false); 2]);
}

fn script() -> Track {
    let what = Tracked::Script {
        command: vec!["/bin/check".into()],
        interval: SECOND,
        timeout: SECOND,
        rise: 1,
        fall: 1,
    };
    Track { what, weight: 0 }
}

#[test]
fn routers_wait_for_what_could_be_their_fault_and_keep_inherited_addresses_meanwhile() {
    let mut node = Node::new(|routers| routers.routers[1].tracks.push(script()));
    assert_eq!(node.begin(&NAMES), [], "nothing is done");
    assert_eq!(node.states(), [State::Initialize; 2]);
    assert_eq!(node.status(0).cause, "it waits until what it tracks is known");
    let (command, mut out) = (["/bin/check".to_owned()], Out::new());
    node.machine.script_ended("other", &command, &Ok(()), node.now, &mut out);
    assert_eq!(node.states(), [State::Backup; 2]);
    node.wait();
    assert_eq!(node.states(), [State::Active; 2], "no other router has advertised");
}

#[test]
fn inherited_addresses_go_when_another_router_is_heard_even_before_the_start() {
    let mut node = Node::new(|routers| routers.routers[1].tracks.push(script()));
    node.begin(&NAMES);
    let advert = lb_vrrp::fsm::ReceivedAdvertisement {
        from: address(1, 0),
        own: address(0, 0),
        second_path: false,
        priority: 50,
        interval: TENTH,
    };
    let mut out = Out::new();
    node.machine.receive("main", advert, node.now, &mut out);
    assert_eq!(out, [("main".into(), Action::Release)]);
}

#[test]
fn routers_that_are_no_more_end_at_once_and_the_others_go_on() {
    let mut node = Node::new(|routers| routers.groups.clear());
    node.begin(&[]);
    while node.states() != [State::Active; 2] {
        node.wait();
    }
    let mut fewer = node.routers.clone();
    fewer.routers.truncate(1);
    let mut out = Out::new();
    node.machine.retire(&fewer, node.now, &mut out);
    assert!(out.iter().all(|(name, _)| &**name == "other"), "{out:?}");
    assert_eq!(
        out[..2].iter().map(|(_, action)| action).collect::<Vec<_>>(),
        [&Action::Advertise { priority: 0 }, &Action::Release]
    );
    out.clear();
    node.machine.configure(&fewer, &BTreeSet::new(), node.now, &mut out);
    assert_eq!((out, node.machine.state("main")), (Out::new(), Some(State::Active)));
}

#[test]
fn all_have_stopped_when_each_has() {
    let mut node = Node::new(|_| {});
    node.begin(&[]);
    node.wait();
    let mut out = Out::new();
    node.machine.order(&Order::Yield(key(0), Yield::Requested), node.now, &mut out);
    node.machine.order(&Order::Stop { release: false }, node.now, &mut out);
    assert!(!node.machine.is_stopped(), "somebody may still take over");
    while !node.machine.is_stopped() {
        out.extend(node.wait());
    }
    let count = |what: &Action| out.iter().filter(|(_, action)| action == what).count();
    assert_eq!((count(&Action::Stopped), count(&Action::Release)), (2, 0));
    assert_eq!(node.machine.deadline(), None);
}

fn service(name: &str) -> Track {
    Track { what: Tracked::Service { name: name.into(), min_healthy: 1 }, weight: 0 }
}

fn active() -> Node {
    let mut node = Node::new(|_| {});
    node.begin(&[]);
    node.wait();
    assert_eq!(node.states(), [State::Active; 2]);
    node
}

/// Reloads with another configuration, as the driver does.
fn reload(node: &mut Node, change: impl FnOnce(&mut Routers)) -> Out {
    let mut out = Out::new();
    change(&mut node.routers);
    node.machine.observe(&node.observed, node.now, &mut out);
    node.machine.configure(&node.routers, &BTreeSet::new(), node.now, &mut out);
    out
}

#[test]
fn a_new_track_on_a_new_service_keeps_the_addresses_until_the_service_is_known() {
    let mut node = active();
    let out = reload(&mut node, |routers| routers.routers[0].tracks.push(service("web")));
    assert_eq!(out, [], "the daemon reports the service after that");
    let mut out = Out::new();
    let external =
        |up| ExternalState { healthy: [("web".to_owned(), up)].into(), ..ExternalState::default() };
    node.machine.set_external(&external(1), node.now, &mut out);
    assert_eq!(node.states(), [State::Active; 2]);
    node.machine.set_external(&external(0), node.now, &mut out);
    assert_eq!(node.states(), [State::Fault; 2]);
    node.machine.set_external(&external(1), node.now, &mut out);
    node.machine.set_external(&ExternalState::default(), node.now, &mut out);
    assert_eq!(node.states(), [State::Fault; 2], "it was known, and is gone");
}

/// Another router in the group.
fn grow(routers: &mut Routers) {
    let mut third = routers.routers[1].clone();
    third.name = "third".into();
    third.key.vrid = std::num::NonZeroU8::new(3).expect("not 0");
    routers.routers.push(third);
    routers.groups[0].routers.push("third".into());
}

#[test]
fn a_new_router_of_a_group_follows_those_that_are_active() {
    let mut node = active();
    node.observed.sources.insert("third".into(), address(0, 0));
    let out = reload(&mut node, grow);
    assert_eq!(node.states(), [State::Active; 2], "{out:?}");
    assert_eq!(node.machine.state("third"), Some(State::Active), "{out:?}");
    assert!(!out.iter().any(|(_, action)| *action == Action::Release), "{out:?}");
}

#[test]
fn routers_that_become_a_group_are_active_together_unless_one_hears_another_node() {
    for sees_other in [false, true] {
        let mut node = Node::new(|routers| routers.groups.clear());
        node.begin(&[]);
        let mut out = Out::new();
        node.machine.order(&Order::Take(key(0)), node.now, &mut out);
        if sees_other {
            node.machine.receive("other", advert(100, SECOND), node.now, &mut out);
        }
        assert_eq!(node.states(), [State::Active, State::Backup]);
        reload(&mut node, |routers| {
            let routers_of = NAMES.map(str::to_owned).to_vec();
            routers.groups.push(SyncGroup { name: "all".into(), routers: routers_of });
        });
        let expected = if sees_other { State::Backup } else { State::Active };
        assert_eq!(node.states(), [expected; 2]);
    }
}

fn advert(priority: u8, interval: Duration) -> lb_vrrp::fsm::ReceivedAdvertisement {
    lb_vrrp::fsm::ReceivedAdvertisement {
        from: address(1, 0),
        own: address(0, 0),
        second_path: false,
        priority,
        interval,
    }
}

/// A router with ten times the interval of its mate.
fn slow(routers: &mut Routers) {
    routers.routers[0].interval = SECOND;
}

#[test]
fn inherited_addresses_stay_while_a_mate_only_listens() {
    for inherited in [&NAMES[..], &NAMES[..1], &NAMES[1..]] {
        let mut node = Node::new(slow);
        let mut out = node.begin(inherited);
        while node.states() != [State::Active; 2] {
            out.extend(node.wait());
        }
        let released = out.iter().any(|(_, action)| *action == Action::Release);
        assert!(!released, "{inherited:?}: {out:?}");
    }
}

#[test]
fn inherited_addresses_go_when_a_mate_hears_the_active_router() {
    let mut node = Node::new(slow);
    let mut out = node.begin(&NAMES);
    node.machine.receive("main", advert(100, SECOND), node.now, &mut out);
    out.extend(node.wait());
    let released = out.iter().filter(|(_, action)| *action == Action::Release);
    let released: Vec<_> = released.map(|(name, _)| &**name).collect();
    assert_eq!(released, NAMES, "the other node has all of the group");
    assert_eq!(node.states(), [State::Backup; 2]);
}

#[test]
fn what_is_tracked_says_nothing_once_all_is_stopped_but_links_do() {
    let stopping = || {
        let mut node = Node::new(|routers| {
            routers.routers[0].tracks.extend([script(), service("web")]);
        });
        node.begin(&[]);
        let (command, mut out) = (["/bin/check".to_owned()], Out::new());
        let external =
            ExternalState { healthy: [("web".to_owned(), 1)].into(), ..ExternalState::default() };
        node.machine.set_external(&external, node.now, &mut out);
        node.machine.script_ended("main", &command, &Ok(()), node.now, &mut out);
        node.wait();
        assert_eq!(node.states(), [State::Active; 2]);
        node.machine.order(&Order::Stop { release: false }, node.now, &mut out);
        out.clear();
        node.machine.script_ended("main", &command, &Err("killed".into()), node.now, &mut out);
        node.machine.set_external(&ExternalState::default(), node.now, &mut out);
        assert_eq!((node.states(), &out), ([State::Active; 2], &Out::new()));
        node
    };
    let mut node = stopping();
    let out = node.wait();
    assert!(!out.iter().any(|(_, action)| *action == Action::Release), "{out:?}");
    let mut node = stopping();
    node.observed.links.clear();
    let mut out = Out::new();
    node.machine.observe(&node.observed, node.now, &mut out);
    let released = out.iter().filter(|(_, action)| *action == Action::Release).count();
    assert_eq!((released, node.machine.is_stopped()), (2, true), "{out:?}");
}
