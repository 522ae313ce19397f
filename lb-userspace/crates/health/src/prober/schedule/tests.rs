use std::net::Ipv4Addr;

use lb_model::{
    backend_address::BackendAddress,
    check::Check,
    desired::{Mode, Protocol, ServiceKey},
    hop::NextHop,
    settings::Tunnel,
};

use super::*;
use crate::vip::ProbePath;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn target(n: u16) -> BackendKey {
    let vip = Ipv4Addr::new(10, 0, 0, 100).into();
    let service = ServiceKey::new(vip, 80, Protocol::Tcp);
    BackendKey {
        service,
        backend: BackendAddress::from(Ipv4Addr::from(0x0a01_0000 + u32::from(n))),
    }
}

fn check() -> Check {
    Check { kind: Kind::Tcp, jitter: 0, ..Check::default() }
}

fn assignment(check: Check) -> Assignment {
    Assignment {
        service: "web".into(),
        check,
        route: Some(Route::Backend),
        half_life: Duration::from_secs(60),
        on_down: OnDown::Keep,
        initial: Condition::Up,
        is_adopted: false,
    }
}

fn backends(many: u16, check: &Check) -> BTreeMap<BackendKey, Assignment> {
    (0..many).map(|n| (target(n), assignment(check.clone()))).collect()
}

fn through_vip(mac: u8) -> Option<Route> {
    let hop = NextHop {
        ifindex: 2,
        interface: "eth0".into(),
        mac: [2, 0, 0, 0, 0, mac],
        l2: vec![0; 14],
        mtu: 1500,
    };
    let BackendKey { service, backend } = target(0);
    let tunnel = Tunnel::default();
    Some(Route::Vip(ProbePath {
        vip: service.vip,
        backend: backend.ip,
        mode: Mode::Dsr,
        hop,
        tunnel,
    }))
}

fn silent() -> Outcome {
    Outcome::Failed { how: Failure::Wrong, reason: "no answer".into() }
}

/// A schedule with its clock, and the probes that wait.
struct Bench {
    schedule: Schedule,
    now: Instant,
    waiting: BTreeMap<u64, (BackendKey, Arc<Probe>)>,
    reports: Vec<Report>,
    vips: Vec<BTreeSet<IpAddr>>,
}

impl Bench {
    fn new(limit: usize, assignments: BTreeMap<BackendKey, Assignment>) -> Self {
        let mut bench = Self {
            schedule: Schedule::new(limit, 1),
            now: Instant::now(),
            waiting: BTreeMap::new(),
            reports: Vec::new(),
            vips: Vec::new(),
        };
        bench.assign(assignments);
        bench
    }

    fn assign(&mut self, assignments: BTreeMap<BackendKey, Assignment>) {
        self.schedule.assign(assignments, self.now);
        self.work();
    }

    fn work(&mut self) -> usize {
        let mut probes = 0;
        for work in mem::take(&mut self.schedule.work) {
            match work {
                Work::SetVips(vips) => self.vips.push(vips),
                Work::Probe { target, serial, probe } => {
                    probes += 1;
                    assert!(self.waiting.insert(serial, (target, probe)).is_none());
                }
                Work::Abandon(serial) => {
                    assert!(self.waiting.remove(&serial).is_some(), "it was asked");
                }
                Work::Report(report) => self.reports.push(report),
            }
        }
        probes
    }

    /// A turn; how many probes it began.
    fn turn(&mut self, answers: Vec<Answer>) -> usize {
        self.schedule.turn(answers.into_iter(), self.now);
        self.work()
    }

    /// Turns until `end`; every probe is answered so in the turn after it was sent. How many
    /// probes there were.
    fn run_until(&mut self, end: Instant, answer: impl Fn(BackendKey) -> Outcome) -> usize {
        let mut probes = 0;
        loop {
            let answers = self.answers(&answer);
            probes += self.turn(answers);
            if self.waiting.is_empty() {
                match self.schedule.next(self.now) {
                    Some(next) if next <= end => self.now = self.now.max(next),
                    _ => break,
                }
            }
        }
        self.now = end;
        probes
    }

    fn answers(&mut self, answer: &impl Fn(BackendKey) -> Outcome) -> Vec<Answer> {
        let waiting = mem::take(&mut self.waiting).into_iter();
        let answers = waiting.map(|(serial, (target, _))| {
            let took = ms(1);
            Answer { target, serial, outcome: answer(target), took }
        });
        answers.collect()
    }

    fn run(&mut self, time: Duration, answer: impl Fn(BackendKey) -> Outcome) -> usize {
        self.run_until(self.now + time, answer)
    }
}

#[test]
fn first_questions_are_spread_over_the_interval() {
    let check = Check { interval: ms(1_000), ..check() };
    let mut bench = Bench::new(10_000, backends(1_000, &check));
    for hundred in 1..=10 {
        let end = bench.now + ms(100);
        let probes = bench.run_until(end - Duration::from_nanos(1), |_| Outcome::Up);
        bench.now = end;
        assert_eq!(probes, 100, "in the {hundred}th tenth");
    }
    // But a few are probed at once, and nobody waits for longer than an interval.
    let mut bench = Bench::new(10_000, backends(3, &check));
    assert_eq!(bench.run(ms(3), |_| Outcome::Up), 3);
    let often = Check { interval: ms(50), ..check };
    let mut bench = Bench::new(10_000, backends(1_000, &often));
    bench.run(ms(50), |_| Outcome::Up);
    let status = bench.schedule.status(bench.now, SystemTime::now());
    assert!(status.values().all(|status| status.counts.ok > 0));
}

#[test]
fn only_changes_are_reported() {
    let mut bench = Bench::new(100, backends(10, &check()));
    bench.run(ms(60_000), |_| Outcome::Up);
    assert!(bench.reports.is_empty(), "{:?}", bench.reports);
    bench.run(ms(60_000), |probes| if probes == target(3) { silent() } else { Outcome::Up });
    let changes: Vec<_> = bench.reports.iter().map(|r| (r.target, r.seen.condition)).collect();
    assert_eq!(changes, [(target(3), Condition::SoftDown)]);
}

#[test]
fn questions_never_have_more_descriptors_than_they_may() {
    let mut bench = Bench::new(40, backends(100, &check()));
    bench.now += ms(2_000);
    for _ in 0..5 {
        bench.turn(Vec::new());
        assert_eq!(bench.waiting.len(), 10);
        assert!(bench.schedule.next(bench.now) > Some(bench.now), "it does not turn for nothing");
    }
    // Those whose turn it is longest are probed as soon as others are answered.
    let probes = bench.run(ms(100), |_| Outcome::Up);
    assert_eq!(probes, 90);
}

#[test]
fn suspicion_is_asked_about_however_many_questions_wait() {
    let mut bench = Bench::new(1, backends(2, &check()));
    bench.turn(Vec::new());
    assert_eq!(bench.waiting.len(), 1);
    bench.schedule.suspect(target(1), "clients repeat their SYNs".into(), bench.now);
    bench.work();
    assert_eq!(bench.waiting.len(), 2);
}

#[test]
fn route_that_changes_keeps_the_state_and_drops_the_question() {
    let with = |route: &Option<Route>| {
        BTreeMap::from([(target(0), Assignment { route: route.clone(), ..assignment(check()) })])
    };
    let mut bench = Bench::new(100, with(&through_vip(1)));
    bench.run(ms(10_000), |_| silent());
    bench.turn(Vec::new());
    assert_eq!(bench.reports.len(), 1);
    bench.run(ms(1_999), |_| silent());
    bench.now += ms(10);
    bench.turn(Vec::new());
    let (&serial, _) = bench.waiting.first_key_value().expect("it is asked");
    bench.assign(with(&through_vip(2)));
    assert!(bench.waiting.is_empty(), "the question was dropped");
    bench.turn(vec![Answer { target: target(0), serial, outcome: Outcome::Up, took: ms(1) }]);
    let (_, (_, probe)) = bench.waiting.first_key_value().expect("it is asked again at once");
    assert_eq!(Some(&probe.route), through_vip(2).as_ref());
    let status = &bench.schedule.status(bench.now, SystemTime::now())[&target(0)];
    assert_eq!(status.condition, Condition::SoftDown);
    assert_eq!(status.counts.ok, 0, "the late answer was ignored");
    assert_eq!(bench.vips, [BTreeSet::from([target(0).service.vip])], "reported once");
}

#[test]
fn vips_that_nobody_is_asked_by_are_told_too() {
    let mut bench = Bench::new(100, BTreeMap::new());
    let other = BackendKey {
        service: ServiceKey { vip: Ipv4Addr::new(10, 0, 0, 101).into(), ..target(0).service },
        ..target(0)
    };
    let nowhere = Assignment { route: None, ..assignment(check()) };
    let own = assignment(Check { kind: Kind::None, ..check() });
    bench.assign([(target(0), nowhere), (other, own)].into());
    assert_eq!(bench.vips, [BTreeSet::from([target(0).service.vip, other.service.vip])]);
}

#[test]
fn backend_without_a_next_hop_is_not_asked_and_nothing_is_said() {
    let nowhere = Assignment { route: None, ..assignment(check()) };
    let mut bench = Bench::new(100, BTreeMap::from([(target(0), nowhere)]));
    assert_eq!(bench.run(ms(60_000), |_| silent()), 0);
    bench.schedule.suspect(target(0), "clients repeat their SYNs".into(), bench.now);
    assert_eq!(bench.work(), 0);
    assert!(bench.reports.is_empty());
    assert!(bench.schedule.status(bench.now, SystemTime::now())[&target(0)].waiting);
    bench.assign(backends(1, &check()));
    assert_eq!(bench.turn(Vec::new()), 1, "then it is asked at once");
}

#[test]
fn removed_backend_is_forgotten_and_its_late_answer_ignored() {
    let mut bench = Bench::new(100, backends(2, &check()));
    bench.now += ms(10);
    bench.turn(Vec::new());
    let waiting = bench.waiting.clone();
    bench.assign(backends(1, &check()));
    assert_eq!(bench.waiting.len(), 1);
    // It comes back, and the answer to the first one's probe comes late.
    bench.assign(backends(2, &check()));
    let late = waiting.iter().map(|(&serial, &(target, _))| Answer {
        target,
        serial,
        outcome: silent(),
        took: ms(1),
    });
    let late = late.filter(|answer| answer.target == target(1)).collect();
    bench.turn(late);
    assert!(bench.reports.is_empty());
    let status = bench.schedule.status(bench.now, SystemTime::now());
    assert_eq!(status[&target(1)].counts, Counts::default());
    bench.assign(BTreeMap::new());
    assert!(bench.waiting.is_empty());
    assert_eq!(bench.schedule.next(bench.now), None);
    assert_eq!(bench.schedule.load().in_flight, 0);
}

#[test]
fn pause_of_the_process_brings_nobody_down() {
    let mut bench =
        Bench::new(10_000, backends(500, &Check { fall: 1.try_into().expect("1"), ..check() }));
    bench.run(ms(10_000), |_| Outcome::Up);
    bench.now += ms(2_000);
    while bench.turn(Vec::new()) > 0 {}
    assert_eq!(bench.waiting.len(), 500);
    let pauses = bench.schedule.load().pauses;
    bench.now += Duration::from_secs(3_600);
    let timed_out = bench.answers(&|_| silent());
    bench.turn(timed_out);
    assert!(bench.reports.is_empty(), "{} are down", bench.reports.len());
    bench.run(ms(10_000), |_| Outcome::Up);
    assert!(bench.reports.is_empty());
    assert_eq!(bench.schedule.load().pauses, pauses + 1);
}

#[test]
fn short_pause_brings_nobody_down_whose_timeout_is_short() {
    let timeout = ms(50);
    let check = Check { fall: 1.try_into().expect("1"), timeout, ..check() };
    let mut bench = Bench::new(100, backends(10, &check));
    bench.run(ms(10_000), |_| Outcome::Up);
    bench.now += ms(2_000);
    bench.turn(Vec::new());
    assert_eq!(bench.waiting.len(), 10);
    let pauses = bench.schedule.load().pauses;
    assert!(bench.schedule.next(bench.now) <= Some(bench.now + timeout / 4));
    bench.now += timeout;
    let timed_out = bench.answers(&|_| silent());
    bench.turn(timed_out);
    assert!(bench.reports.is_empty(), "{} are down", bench.reports.len());
    assert_eq!(bench.schedule.load().pauses, pauses + 1);
    // Silence of a process that runs counts.
    bench.run(ms(1_000), |_| Outcome::Up);
    bench.run(ms(10_000), |_| silent());
    assert_eq!(bench.reports.len(), 10);
}

#[test]
fn exhaustion_is_one_trouble_and_changes_nobody() {
    let mut bench = Bench::new(100, backends(50, &check()));
    bench.run(ms(10_000), |_| Outcome::Up);
    let unknown = |_| Outcome::Unknown { reason: "too many open files".into() };
    bench.run(ms(60_000), unknown);
    assert!(bench.reports.is_empty());
    assert_eq!(bench.schedule.load().troubles, ["too many open files"]);
    bench.run(ms(20_000), |_| Outcome::Up);
    assert!(bench.schedule.load().troubles.is_empty());
    let status = bench.schedule.status(bench.now, SystemTime::now());
    assert!(status.values().all(|status| status.counts.unknown > 10));
    assert!(status.values().all(|status| status.last.as_deref() == Some("ok")));
}

#[test]
fn status_tells_what_was_seen_and_since_when() {
    let mut bench = Bench::new(100, backends(1, &check()));
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    bench.run(ms(3_000), |_| silent());
    let begun = bench.now - ms(3_000);
    let status = bench.schedule.status(begun + ms(9_000), wall).remove(&target(0));
    let status = status.expect("it is known");
    assert_eq!(status.kind, "tcp");
    assert_eq!(status.condition, Condition::SoftDown);
    assert!(!status.assumed);
    assert_eq!(status.last.as_deref(), Some("no answer"));
    assert_eq!(status.since, 1_000_000 - 9);
    assert_eq!(status.latency_us, Some(1_000));
    assert_eq!((status.went_up, status.went_down), (0, 1));
    assert_eq!(status.counts, Counts { failed: 2, ..Counts::default() });
    assert_eq!(status.latency.count(), 0, "only good answers are timed");
}

#[test]
fn other_check_asks_the_other_question() {
    let mut bench = Bench::new(100, backends(1, &check()));
    bench.run(ms(10), |_| Outcome::Up);
    bench.assign(backends(1, &Check { port: Some(8_080), ..check() }));
    bench.now += ms(500);
    bench.turn(Vec::new());
    let (_, (_, probe)) = bench.waiting.first_key_value().expect("it is asked soon");
    assert_eq!(probe.port, 8_080);
}

#[test]
fn who_goes_down_with_all_others_is_not_held_and_who_goes_alone_is() {
    let often = Check { interval: ms(50), fast_interval: ms(50), down_interval: ms(50), ..check() };
    let mut assigned = backends(4, &often);
    // One can't be probed all the while.
    assigned.insert(target(3), Assignment { route: None, ..assignment(often) });
    let mut bench = Bench::new(100, assigned);
    let held = |bench: &Bench| -> Vec<BackendKey> {
        let status = bench.schedule.status(bench.now, SystemTime::now());
        let held = status.into_iter().filter(|(_, status)| status.held_secs.is_some());
        held.map(|(target, _)| target).collect()
    };
    for _ in 0..6 {
        bench.run(ms(1_000), |_| silent());
        bench.run(ms(1_000), |_| Outcome::Up);
    }
    let status = bench.schedule.status(bench.now, SystemTime::now());
    assert_eq!(status[&target(0)].went_down, 6);
    assert_eq!(held(&bench), []);
    for _ in 0..6 {
        bench.run(ms(1_000), |probes| if probes == target(1) { silent() } else { Outcome::Up });
        bench.run(ms(1_000), |_| Outcome::Up);
    }
    assert_eq!(held(&bench), [target(1)]);
}
