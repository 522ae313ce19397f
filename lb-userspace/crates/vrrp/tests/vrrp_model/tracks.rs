//! What a router depends on, and what that makes of its priority.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, Instant},
};

use lb_model::router::{
    Announce, Auth, Checksum, Family, OWNER, Router, RouterKey, Track, Tracked, Version,
    VirtualAddress,
};
use lb_vrrp::{
    ExternalState,
    observed::{Observed, ObservedLink},
    track::{Change, TrackOutcome, Tracks},
};

fn address(address: IpAddr) -> VirtualAddress {
    VirtualAddress {
        address,
        prefix: 32,
        interface: None,
        label: None,
        nodad: false,
        advertised: true,
    }
}

const SECOND: Duration = Duration::from_secs(1);

struct Desk {
    router: Router,
    tracks: Tracks,
    external: ExternalState,
    observed: Observed,
    now: Instant,
    changes: Vec<Change>,
}

impl Desk {
    /// A router with priority 100 on eth0, where all is well.
    fn new(tracked: Vec<(Tracked, i16)>) -> Self {
        let tracks = tracked.into_iter().map(|(what, weight)| Track { what, weight }).collect();
        let router = Router {
            name: "main".into(),
            interface: "eth0".into(),
            key: RouterKey { family: Family::V4, vrid: NonZeroU8::MIN },
            version: Version::V3,
            priority: NonZeroU8::new(100).expect("not 0"),
            interval: SECOND,
            preempt: true,
            preempt_delay: Duration::ZERO,
            accept: true,
            addresses: Vec::new(),
            source: None,
            peers: Vec::new(),
            min_ttl: 255,
            second_path: None,
            auth: Auth::None,
            checksum: Checksum::default(),
            virtual_mac: None,
            announce: Announce::default(),
            tracks,
            notify: None,
        };
        let mut desk = Self {
            tracks: Tracks::default(),
            external: ExternalState::default(),
            observed: Observed::default(),
            now: Instant::now(),
            changes: Vec::new(),
            router,
        };
        desk.tracks.configure(&desk.router);
        desk.observed.sources.insert("main".into(), [10, 0, 0, 2].into());
        desk.link("eth0", true);
        desk
    }

    fn link(&mut self, name: &str, up: bool) {
        self.observed.links.insert(name.into(), ObservedLink { up, ..ObservedLink::default() });
    }

    fn look(&mut self) -> TrackOutcome {
        let (external, observed) = (Some(&self.external), Some(&self.observed));
        self.tracks.look(&self.router, external, observed, self.now, &mut self.changes);
        self.tracks.outcome(self.router.priority.get())
    }

    fn fault(&mut self) -> Option<String> {
        self.look().fault
    }

    fn ran(&mut self, well: bool) -> u8 {
        let result = if well { Ok(()) } else { Err("exit status 1".into()) };
        let command = ["/bin/check".to_owned()];
        self.tracks.script_ended(&command, &result, self.now, &mut self.changes);
        self.tracks.outcome(100).priority
    }
}

fn script(rise: u32, fall: u32) -> Tracked {
    let command = vec!["/bin/check".to_owned()];
    Tracked::Script { command, interval: SECOND, timeout: SECOND, rise, fall }
}

#[test]
fn the_own_interface_and_source_are_always_needed() {
    let mut desk = Desk::new(vec![]);
    assert_eq!(desk.fault(), None);
    desk.link("eth0", false);
    assert_eq!(desk.fault().as_deref(), Some("interface eth0 is down"));
    desk.observed.links.clear();
    assert_eq!(desk.fault().as_deref(), Some("interface eth0 does not exist"));
    let mut desk = Desk::new(vec![]);
    desk.observed.sources.clear();
    let fault = desk.fault();
    assert_eq!(fault.as_deref(), Some("interface eth0 has no IPv4 address to advertise from"));
    desk.router.source = Some([10, 0, 0, 3].into());
    let fault = desk.fault();
    assert_eq!(fault.as_deref(), Some("its source 10.0.0.3 is no address of this node"));
    desk.observed.lacks.insert("main".into(), "no filter".into());
    assert_eq!(desk.fault().as_deref(), Some("no filter"), "its addresses are no matter then");
}

#[test]
fn every_interface_that_an_address_is_to_be_on_is_needed() {
    let mut desk = Desk::new(vec![]);
    desk.router.addresses.push(VirtualAddress {
        address: [10, 0, 1, 100].into(),
        prefix: 32,
        interface: Some("eth1".into()),
        label: None,
        nodad: true,
        advertised: false,
    });
    assert_eq!(desk.fault().as_deref(), Some("interface eth1 does not exist"));
    desk.link("eth1", true);
    assert_eq!(desk.fault(), None);
    desk.link("eth1", false);
    assert_eq!(desk.fault().as_deref(), Some("interface eth1 is down"));
    let messages: Vec<_> = desk.changes.iter().map(|change| change.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "interface eth1 does not exist",
            "every interface is well again",
            "interface eth1 is down"
        ]
    );
}

#[test]
fn negative_weights_count_while_it_fails_and_positive_ones_while_it_is_well() {
    let eth = |name: &str| Tracked::Interface(name.into());
    let mut desk = Desk::new(vec![(eth("eth1"), -30), (eth("eth2"), 20)]);
    assert_eq!(desk.look().priority, 70);
    desk.link("eth1", true);
    desk.link("eth2", true);
    assert_eq!(desk.look().priority, 120);
    desk.link("eth2", false);
    let outcome = desk.look();
    assert_eq!((outcome.priority, outcome.fault), (100, None));
    assert_eq!(outcome.problems, ["interface eth2 is down"]);
}

#[test]
fn priorities_stay_between_1_and_254_and_an_owner_is_one() {
    let eth = |name: &str| Tracked::Interface(name.into());
    let mut desk = Desk::new(vec![(eth("eth1"), -250), (eth("eth0"), 1)]);
    assert_eq!(desk.look().priority, 1);
    desk.link("eth1", true);
    desk.router.tracks[1].weight = 250;
    desk.tracks.configure(&desk.router);
    assert_eq!(desk.look().priority, 254);
    desk.router.priority = NonZeroU8::new(OWNER).expect("not 0");
    desk.link("eth1", false);
    assert_eq!(desk.look().priority, OWNER);
}

#[test]
fn a_node_that_does_not_forward_is_faulty_and_an_interface_forwards_by_what_is_below() {
    let mut desk = Desk::new(vec![(Tracked::Forwarding, 0)]);
    let fault = desk.fault();
    assert_eq!(fault.as_deref(), Some("the balancer's program does not forward on eth0"));
    desk.external.forwarding.insert("eth0".into());
    assert_eq!(desk.fault(), None);
    desk.external.forwarding = ["eth9".to_owned()].into();
    let above = ObservedLink { up: true, below: ["eth9".into()].into() };
    desk.observed.links.insert("eth0".into(), above);
    assert_eq!(desk.fault(), None);
}

#[test]
fn a_service_needs_so_many_backends() {
    let service = Tracked::Service { name: "web".into(), min_healthy: 2 };
    let mut desk = Desk::new(vec![(service, 0)]);
    desk.look();
    assert!(!desk.tracks.are_known(), "the external state lacks a new service yet");
    assert_eq!(desk.fault(), None);
    desk.external.healthy.insert("web".into(), 1);
    let fault = desk.fault();
    assert_eq!(fault.as_deref(), Some("service web has 1 healthy backends, and needs 2"));
    desk.external.healthy.insert("web".into(), 2);
    assert_eq!(desk.fault(), None);
}

#[test]
fn a_service_that_is_not_served_takes_the_addresses_from_no_other_unless_the_peer_is_better_off() {
    let web = Tracked::Service { name: "web".into(), min_healthy: 1 };
    let mut desk = Desk::new(vec![(web, 0)]);
    let vip = IpAddr::from([10, 0, 0, 100]);
    desk.router.addresses.push(address(vip));
    desk.external.healthy = [("web".to_owned(), 1), ("dns".to_owned(), 1)].into();
    desk.external.served = [(vip, "web".to_owned()), (vip, "dns".to_owned())].into();
    assert_eq!((desk.look().priority, desk.fault()), (100, None));
    desk.external.healthy.insert("web".into(), 0);
    desk.external.served = [(vip, "dns".to_owned())].into();
    let outcome = desk.look();
    assert_eq!((outcome.priority, &outcome.fault), (1, &None), "it is the last choice");
    assert_eq!(outcome.problems[0], "service web has 0 healthy backends, and needs 1");
    assert!(outcome.problems[1].contains("a router that is better off"), "{outcome:?}");
    let change = desk.changes.last().expect("it is reported");
    assert!(change.cause.contains("a router that is better off"), "{change:?}");
    // A peer that does not preempt takes nothing from a router of any priority.
    desk.router.preempt = false;
    assert!(desk.fault().is_some());
    desk.router.preempt = true;
    desk.external.served = [(IpAddr::from([10, 0, 0, 101]), "dns".to_owned())].into();
    assert!(desk.fault().is_some(), "nothing is served there");
}

#[test]
fn the_first_run_of_a_script_counts_and_then_as_many_as_are_asked_for() {
    let mut desk = Desk::new(vec![(script(2, 3), -40)]);
    assert_eq!(desk.ran(false), 60);
    assert_eq!(
        [desk.ran(true), desk.ran(false), desk.ran(true), desk.ran(true)],
        [60, 60, 60, 100]
    );
    assert_eq!([desk.ran(false), desk.ran(false), desk.ran(true)], [100, 100, 100]);
    assert_eq!([desk.ran(false), desk.ran(false), desk.ran(false)], [100, 100, 60]);
}

#[test]
fn the_best_priority_is_that_of_a_router_of_which_nothing_fails() {
    let eth = |name: &str| Tracked::Interface(name.into());
    let file = Tracked::File("/run/load".into());
    let mut desk =
        Desk::new(vec![(eth("eth1"), -30), (eth("eth2"), 20), (file, 1), (script(1, 1), 5)]);
    let both = |outcome: TrackOutcome| (outcome.priority, outcome.best);
    assert_eq!(both(desk.look()), (70, 120), "what is not known has not failed");
    desk.link("eth1", true);
    desk.link("eth2", true);
    assert_eq!(both(desk.look()), (120, 120));
    desk.ran(true);
    assert_eq!(both(desk.look()), (125, 125));
    desk.ran(false);
    assert_eq!(both(desk.look()), (120, 125));
    // Its operator may add as much as he wants.
    desk.observed.files.insert("/run/load".into(), Ok(15));
    assert_eq!(both(desk.look()), (135, 140));
    desk.observed.files.insert("/run/load".into(), Ok(-15));
    assert_eq!(both(desk.look()), (105, 125));
}

#[test]
fn a_router_is_known_when_all_that_could_be_its_fault_is() {
    let mut desk = Desk::new(vec![(script(1, 1), 0), (Tracked::File("/no".into()), -1)]);
    assert!(!desk.tracks.are_known());
    desk.look();
    assert!(!desk.tracks.are_known(), "the script has not run");
    desk.ran(true);
    assert!(desk.tracks.are_known(), "the file is no fault");
}

#[test]
fn a_file_multiplies_its_weight_and_one_that_cannot_be_read_says_0_aloud() {
    let path = || Tracked::File("/run/load".into());
    let mut desk = Desk::new(vec![(path(), -2)]);
    desk.observed.files.insert("/run/load".into(), Ok(15));
    assert_eq!(desk.look().priority, 70);
    desk.observed.files.insert("/run/load".into(), Err("no such file".into()));
    let outcome = desk.look();
    assert_eq!(outcome.priority, 100);
    assert_eq!(outcome.problems, ["file /run/load: no such file"]);
    let mut desk = Desk::new(vec![(path(), 0)]);
    desk.observed.files.insert("/run/load".into(), Ok(1));
    assert_eq!(desk.fault().as_deref(), Some("file /run/load says 1"));
}

#[test]
fn a_carrier_that_comes_and_goes_for_an_hour_makes_a_few_changes_only() {
    let mut desk = Desk::new(vec![]);
    desk.look();
    let (mut faults, mut well, end) = (0, true, desk.now + 3_600 * SECOND);
    let mut up = true;
    while desk.now < end {
        desk.now += SECOND / 5;
        up = !up;
        desk.link("eth0", up);
        desk.tracks.tick(desk.now, &mut desk.changes);
        let is = desk.fault().is_none();
        faults += u32::from(well && !is);
        well = is;
    }
    assert_eq!(faults, 2, "once freely, and once more after that");
    assert!(desk.changes.len() <= 4, "{:?}", desk.changes);
    desk.link("eth0", true);
    assert!(desk.fault().is_some(), "it is well, but for a moment only");
    desk.now = desk.tracks.deadline().expect("it is waited for");
    desk.tracks.tick(desk.now, &mut desk.changes);
    assert_eq!(desk.fault(), None);
}

#[test]
fn what_fails_rarely_is_well_again_at_once() {
    let mut desk = Desk::new(vec![]);
    desk.look();
    for _ in 0..5 {
        desk.now += 61 * SECOND;
        desk.link("eth0", false);
        assert!(desk.fault().is_some());
        desk.now += SECOND;
        desk.link("eth0", true);
        assert_eq!(desk.fault(), None);
    }
}

#[test]
fn what_stays_well_for_a_second_each_time_is_believed_later_and_later() {
    let mut desk = Desk::new(vec![]);
    desk.look();
    let mut faults = 0;
    for _ in 0..300 {
        desk.link("eth0", false);
        desk.look();
        desk.link("eth0", true);
        desk.look();
        desk.now += SECOND;
        desk.tracks.tick(desk.now, &mut desk.changes);
        faults += u32::from(desk.fault().is_none());
    }
    assert!((1..10).contains(&faults), "{faults}");
}

#[test]
fn a_change_says_what_it_means() {
    let mut desk = Desk::new(vec![(Tracked::Interface("eth1".into()), -30)]);
    desk.link("eth1", true);
    desk.look();
    desk.link("eth1", false);
    desk.look();
    desk.link("eth1", true);
    desk.look();
    let change = |message: &str| Change { message: message.into(), cause: "it weighs -30".into() };
    assert_eq!(
        desk.changes,
        [change("interface eth1 is down"), change("interface eth1 is well again")]
    );
}

#[test]
fn what_is_known_survives_a_new_configuration() {
    let mut desk = Desk::new(vec![(script(1, 1), 0)]);
    desk.look();
    desk.ran(false);
    desk.router.tracks.insert(0, Track { what: Tracked::Forwarding, weight: -5 });
    desk.tracks.configure(&desk.router);
    let outcome = desk.look();
    assert_eq!(outcome.fault.as_deref(), Some("script /bin/check: exit status 1"));
    assert_eq!(outcome.priority, 95);
}
