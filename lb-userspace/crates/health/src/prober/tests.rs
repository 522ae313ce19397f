//! The thread itself, with answers by script and with real sockets.

use std::{
    collections::BTreeSet,
    env,
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener},
    pin::Pin,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use lb_model::{
    check::Kind,
    desired::{Protocol, ServiceKey},
};

use super::*;
use crate::probe::Failure;

const PATIENCE: Duration = Duration::from_secs(20);

type Answers = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Answers by script.
struct Script<F>(F);

impl<F: Fn(Arc<Probe>) -> Answers + Send + Sync + 'static> ProbeRunner for Script<F> {
    fn run(&self, probe: Arc<Probe>) -> impl Future<Output = Outcome> + Send + 'static {
        (self.0)(probe)
    }

    fn set_vips(&self, _: BTreeSet<IpAddr>) {}
}

fn backend(n: u8) -> BackendKey {
    let vip = Ipv4Addr::new(10, 0, 0, 100).into();
    let service = ServiceKey::new(vip, 80, Protocol::Tcp);
    BackendKey { service, backend: Ipv4Addr::new(127, 0, 77, n).into() }
}

fn check(millis: u64) -> Check {
    let interval = Duration::from_millis(millis);
    Check {
        kind: Kind::Tcp,
        interval,
        fast_interval: interval,
        down_interval: interval,
        timeout: Duration::from_millis(500),
        ..Check::default()
    }
}

fn assignments(
    backends: impl IntoIterator<Item = u8>,
    check: &Check,
) -> BTreeMap<BackendKey, Assignment> {
    let assignment = |_| Assignment {
        service: "web".into(),
        check: check.clone(),
        route: Some(Route::Backend),
        half_life: Duration::ZERO,
        on_down: OnDown::Keep,
        initial: Condition::Up,
        is_adopted: false,
    };
    backends.into_iter().map(|n| (backend(n), assignment(n))).collect()
}

fn silent() -> Outcome {
    Outcome::Failed { how: Failure::Wrong, reason: "no answer".into() }
}

/// The next report, which must come.
fn report(reports: &mut mpsc::UnboundedReceiver<Report>) -> Report {
    let end = Instant::now() + PATIENCE;
    loop {
        match reports.try_recv() {
            Ok(report) => return report,
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("no report: {error}"),
        }
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn server_that_stops_and_starts_goes_down_and_up() {
    let is_up = Arc::new(AtomicUsize::new(1));
    let script = Arc::clone(&is_up);
    let script = Script(move |_| -> Answers {
        let is_up = script.load(Ordering::Relaxed) == 1;
        Box::pin(async move { if is_up { Outcome::Up } else { silent() } })
    });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments([1], &check(50)));
    wait_for("it is asked", || prober.status()[&backend(1)].counts.ok > 2);
    is_up.store(0, Ordering::Relaxed);
    let down = report(&mut reports).change.expect("a change");
    assert_eq!((down.from, down.to), (Condition::Up, Condition::SoftDown));
    is_up.store(1, Ordering::Relaxed);
    let up = report(&mut reports).change.expect("a change");
    assert_eq!((up.from, up.to), (Condition::SoftDown, Condition::Up));
}

#[test]
fn suspicion_is_decided_long_before_the_next_question() {
    let dies_after_one = AtomicUsize::new(0);
    let script = Script(move |probe: Arc<Probe>| -> Answers {
        if dies_after_one.fetch_add(1, Ordering::Relaxed) == 0 {
            return Box::pin(async { Outcome::Up });
        }
        Box::pin(async move {
            time::sleep(probe.timeout).await;
            silent()
        })
    });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments([1], &check(3_600_000)));
    wait_for("it is asked", || prober.status()[&backend(1)].counts.ok == 1);
    prober.suspect(backend(1), "clients repeat their SYNs".into());
    assert!(report(&mut reports).seen.suspect);
    assert!(report(&mut reports).seen.doubted, "the first question has no answer");
    let decided = report(&mut reports);
    assert!(!decided.seen.suspect);
    let cause = decided.change.expect("a change").cause;
    assert_eq!(cause, "2 failures in a row: no answer; asked because clients repeat their SYNs");
}

#[test]
fn prober_that_could_not_run_blames_nobody() {
    // The first probe to each is answered; the second blocks the thread for longer than the
    // other's probe may take.
    let count = AtomicUsize::new(0);
    let script = Script(move |probe: Arc<Probe>| -> Answers {
        match count.fetch_add(1, Ordering::Relaxed) {
            2 => Box::pin(async move {
                time::sleep(probe.timeout).await;
                silent()
            }),
            3 => Box::pin(async {
                thread::sleep(Duration::from_secs(1));
                Outcome::Up
            }),
            _ => Box::pin(async { Outcome::Up }),
        }
    });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    let check = Check { fall: 1.try_into().expect("one"), ..check(200) };
    prober.assign(assignments([1, 2], &check));
    wait_for("it goes on", || prober.status().values().all(|status| status.counts.ok > 3));
    assert!(prober.load().pauses >= 1);
    assert_eq!(prober.load().counts.failed, 1);
    assert!(reports.try_recv().is_err(), "nobody is down");
}

#[test]
fn question_that_breaks_off_is_asked_again() {
    let count = AtomicUsize::new(0);
    let script = Script(move |_| -> Answers {
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            assert!(!is_first, "a mistake in a check");
            Outcome::Up
        })
    });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments([1], &check(50)));
    wait_for("it is asked again", || prober.status()[&backend(1)].counts.ok > 0);
    assert_eq!(prober.status()[&backend(1)].counts.unknown, 1);
    assert!(reports.try_recv().is_err());
}

#[test]
fn removed_backend_is_not_asked_any_more() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let script = Script(move |_| -> Answers {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Outcome::Up })
    });
    let (prober, _reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments([1], &check(50)));
    wait_for("it is asked", || count.load(Ordering::SeqCst) > 2);
    prober.assign(assignments([2], &check(3_600_000)));
    // The probe in flight when it was removed was begun before the probe to the other one.
    wait_for("the other is asked", || prober.status()[&backend(2)].counts.ok == 1);
    let before = count.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(count.load(Ordering::SeqCst), before);
    assert_eq!(prober.status().len(), 1);
}

#[test]
fn thread_that_dies_ends_the_reports() {
    let script = Script(|_| -> Answers { panic!("a mistake in the prober") });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments([1], &check(50)));
    assert_eq!(reports.blocking_recv(), None);
}

#[test]
fn end_does_not_wait_for_questions() {
    let script = Script(|_| -> Answers { Box::pin(std::future::pending()) });
    let (prober, mut reports) = Prober::start_with(script).expect("a thread");
    prober.assign(assignments(1..=100, &check(50)));
    wait_for("all are asked", || prober.load().in_flight == 100);
    let begun = Instant::now();
    drop(prober);
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(reports.blocking_recv(), None, "the reports end");
}

#[test]
fn listener_that_is_gone_is_down_and_its_flows_stay() {
    let server = TcpListener::bind((Ipv4Addr::new(127, 0, 77, 1), 0)).expect("an address");
    let port = server.local_addr().expect("it is bound").port();
    let (prober, mut reports) = Prober::start().expect("a thread");
    prober.assign(assignments([1], &Check { port: Some(port), ..check(50) }));
    wait_for("it is asked", || prober.status()[&backend(1)].counts.ok > 0);
    drop(server);
    let change = report(&mut reports).change.expect("a change");
    assert_eq!(change.to, Condition::SoftDown, "{}", change.cause);
}

/// Passes the server's port to the child of the next test.
const PORT_OF_SERVER: &str = "LB_TEST_PORT";

#[test]
fn exhausted_descriptors_change_nobody_are_logged_once_and_pass() {
    if let Ok(port) = env::var(PORT_OF_SERVER) {
        return exhaust(port.parse().expect("a port"));
    }
    let server = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let port = server.local_addr().expect("it is bound").port();
    thread::spawn(move || server.incoming().for_each(drop));
    // Limits are those of a process, and other tests run in this one.
    let name = thread::current().name().expect("tests have names").to_owned();
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", &name, "--nocapture"])
        .env(PORT_OF_SERVER, port.to_string())
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// Where the child logs to.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, words: &str) -> usize {
        let text = self.0.lock().expect("nobody panicked");
        String::from_utf8_lossy(&text).lines().filter(|line| line.contains(words)).count()
    }
}

/// The child: all descriptors are taken, and given back.
fn exhaust(port: u16) {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).init();
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).expect("it is lower than before");
    let (prober, mut reports) = Prober::start().expect("a thread");
    assert_eq!(prober.load().limit, 32);
    let check = Check { port: Some(port), fall: 1.try_into().expect("one"), ..check(50) };
    prober.assign(assignments(1..=8, &check));
    let every = |is_so: &dyn Fn(&CheckStatus) -> bool| prober.status().values().all(is_so);
    wait_for("all are asked", || every(&|status| status.counts.ok > 1));
    let mut taken = Vec::new();
    // A probe that ends gives one back.
    let exhausted = || loop {
        match File::open("/dev/null") {
            Ok(file) => taken.push(file),
            Err(_) => break every(&|status| status.counts.unknown > 3),
        }
    };
    wait_for("none can be asked", exhausted);
    assert_eq!(prober.load().troubles.len(), 1, "{:?}", prober.load().troubles);
    assert_eq!(log.lines_with("checks can't be asked"), 1);
    drop(taken);
    let before = prober.status();
    wait_for("all are asked again", || {
        prober.status().iter().all(|(target, now)| now.counts.ok > before[target].counts.ok + 1)
    });
    wait_for("it is over", || prober.load().troubles.is_empty());
    assert_eq!(log.lines_with("checks can be asked again"), 1);
    assert!(reports.try_recv().is_err(), "nobody changed");
}
