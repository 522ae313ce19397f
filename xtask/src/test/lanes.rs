//! Tests with hosts of their own: a process for each, several at a time.
//!
//! cargo-nextest does the like, and would have to be compiled on a fresh machine first: hundreds of crates, more
//! minutes of two CPUs than the tests gain. Its other features are not needed yet.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use kit::signals;

use super::Program;
use crate::side_by_side::side_by_side;

/// The tests that may run beside a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// As many others as there are jobs.
    Beside,
    /// Two others: it asserts how long something takes that waits most of the time.
    Timed,
    /// None: it asserts the rate of a starved machine, or times of milliseconds.
    Alone,
}

/// All of them, in the order in which they are run.
pub(super) const LANES: [Lane; 3] = [Lane::Beside, Lane::Timed, Lane::Alone];

/// Beginnings of the names of tests of failovers, within what RFC 9568 and keepalived at 100 ms allow: namespaces that
/// are made and removed hold the kernel's lock on addresses and links (RTNL), of all namespaces, for seconds in all.
const TIMED: &[&str] = &[
    "interop::keepalived_leads_lbd",
    "interop::lbd_leads_keepalived",
    "interop::unicast_over",
    "interop::without_preemption",
    "lab_failover::",
    "pair::faults::failovers_take_no_longer_than_the_protocol_says",
    "pair::partition::when_parted_nodes_meet_again_one_is_left_and_clients_go_to_it",
];

/// Beginnings of the names of tests of floods, of faults that are found within milliseconds, and of flows of which TCP
/// sends nothing again.
///
/// Also of those in which both `lbd` of a pair settle a hundred thousand slots. With three labs on two CPUs they are a
/// second late, with five ten, and then only an `lbd` that is killed knows the flows of that time.
const ALONE: &[&str] = &[
    "attack::",
    "doors::flood::",
    "health::a_host_that_is_cut_off_fails_no_request_though_checks_are_slow",
    "health::a_killed_nginx_is_found_at_once_and_comes_back",
    "pair::rolling::",
    "router::takeover::at_10_ms",
    "tc::a_reload_exchanges_xdp_and_tc_and_loses_no_packet",
];

/// Beginnings of the names of tests that use a resource that a machine has once, and so run one after the other: the lab
/// that stands, which `cargo xtask run` and `cargo xtask lab` show.
const ONE_BY_ONE: &[&str] = &["commands::", "lab::"];

/// Beginnings of the names of tests that take longest: they begin first, so that the end does not wait for them.
const LONG: &[&str] = &[
    "ecmp::",
    "rolling::",
    "interop::version_2",
    "interop::lbd_with",
    "pair::",
    "handover::crash::",
];

/// A test is ended after this time.
const LIMIT: Duration = Duration::from_secs(600);

impl Lane {
    fn of(test: &str) -> Self {
        match () {
            () if begins(test, ALONE) => Self::Alone,
            () if begins(test, TIMED) => Self::Timed,
            () => Self::Beside,
        }
    }

    /// How many of its tests run at a time where `jobs` may.
    pub(super) fn width(self, jobs: usize) -> usize {
        match self {
            Self::Beside => jobs,
            Self::Timed => jobs.min(3),
            Self::Alone => 1,
        }
    }
}

fn begins(test: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| test.starts_with(beginning))
}

/// A test of one of the programs.
#[derive(Clone, Debug)]
pub(super) struct Test<'a> {
    pub(super) program: &'a Program,
    pub(super) name: String,
    pub(super) lane: Lane,
}

/// The result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// It printed that it lacks something.
    Skipped,
    Failed,
}

/// The programs' tests whose names have one of these parts; without parts, all.
///
/// # Errors
///
/// If a program can't be run, or a beginning in this file's lists is that of no test.
pub(super) fn list<'a>(
    programs: &[&'a Program],
    parts: &[String],
) -> anyhow::Result<Vec<Test<'a>>> {
    let mut tests = Vec::new();
    for &program in programs {
        let named = program.tests(parts)?.into_iter();
        tests.extend(named.map(|name| Test { program, lane: Lane::of(&name), name }));
    }
    if parts.is_empty() {
        for beginning in [ALONE, TIMED, ONE_BY_ONE, LONG].concat() {
            let is_one = tests.iter().any(|test| test.name.starts_with(beginning));
            ensure!(is_one, "{}: {beginning} begins no test's name", file!());
        }
    }
    Ok(tests)
}

/// Runs tests, `jobs` at a time, and prints the result of each when it ends; the output of a failed one is shown, and
/// all of it stays in `target/tests`.
///
/// # Errors
///
/// If one can't be run.
pub(super) fn run<'t, 'a>(
    tests: &[&'t Test<'a>],
    jobs: usize,
    in_ci: bool,
) -> anyhow::Result<Vec<(&'t Test<'a>, Outcome)>> {
    let folder = crate::workspace().join("target/tests");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let results = side_by_side(&queue(tests), jobs, |tests| {
        let mut done = Vec::new();
        for &test in tests.iter().take_while(|_| !signals::caught()) {
            done.push((test, carry_out(test, &folder, in_ci)?));
        }
        Ok(done)
    });
    let results: Vec<_> = results.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(results.concat())
}

/// The order in which tests begin; those of one entry run one after the other.
fn queue<'t, 'a>(tests: &[&'t Test<'a>]) -> Vec<Vec<&'t Test<'a>>> {
    let (one_by_one, others): (Vec<_>, Vec<_>) =
        tests.iter().copied().partition(|test| begins(&test.name, ONE_BY_ONE));
    let (first, then): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|test| begins(&test.name, LONG));
    let each = first.into_iter().chain(then).map(|test| vec![test]);
    std::iter::once(one_by_one).chain(each).filter(|tests| !tests.is_empty()).collect()
}

fn carry_out(test: &Test<'_>, folder: &std::path::Path, in_ci: bool) -> anyhow::Result<Outcome> {
    let log = folder.join(format!("{}-{}.log", test.program.name(), test.name.replace("::", "-")));
    let file = File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let mut command = test.program.command(&["--exact", &test.name, "--show-output"], in_ci)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| kit::command::line(&command))?;
    let status = end(&mut child)?;
    let text = read(&log);
    let (outcome, word) = judge(status, &text);
    let seconds = start.elapsed().as_secs_f64();
    let title = format!("{word:<6} {seconds:>6.1} s  {} {}\n", test.program.name(), test.name);
    // One write: others write, too.
    match outcome {
        Outcome::Passed => print!("{title}"),
        Outcome::Skipped | Outcome::Failed => println!("{title}{text}"),
    }
    Ok(outcome)
}

/// Waits for the end of a test, and ends it when it takes too long; none then.
fn end(child: &mut Child) -> anyhow::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().context("wait for a test")? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(20));
    }
    // Through sudo, which hands SIGTERM on.
    let pid = child.id().to_string();
    kit::command::run(std::process::Command::new("kill").args(["-TERM", &pid]))?;
    child.wait().context("wait for a test that was ended")?;
    Ok(None)
}

fn judge(status: Option<ExitStatus>, text: &str) -> (Outcome, &'static str) {
    match status {
        None => (Outcome::Failed, "LATE"),
        // With a name that no test has, a program succeeds.
        Some(status) if !status.success() || !text.contains("test result: ok. 1 passed") => {
            (Outcome::Failed, "FAILED")
        }
        Some(_) if text.lines().any(|line| line.starts_with("SKIPPED: ")) => {
            (Outcome::Skipped, "skip")
        }
        Some(_) => (Outcome::Passed, "ok"),
    }
}

fn read(log: &PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_test_passes_only_if_it_ran() {
        let judged = |code, text| judge(Some(ExitStatus::from_raw(code << 8)), text).0;
        let passed = "test a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(judged(0, passed), Outcome::Passed);
        assert_eq!(judged(101, passed), Outcome::Failed);
        assert_eq!(judged(0, "test result: ok. 0 passed; 0 failed; 0 ignored\n"), Outcome::Failed);
        let skipped = format!("---- a stdout ----\nSKIPPED: needs root\n{passed}");
        assert_eq!(judged(0, &skipped), Outcome::Skipped);
        assert_eq!(judge(None, passed).0, Outcome::Failed);
    }

    #[test]
    fn long_tests_begin_first_and_those_of_one_thing_run_in_turn() {
        let program = Program::named("network");
        let names = ["arp::a", "commands::b", "ecmp::c", "lab::d", "mtu::e", "rolling::f"];
        let test = |name: &&str| Test {
            program: &program,
            name: (*name).to_owned(),
            lane: Lane::of(name),
        };
        let tests: Vec<_> = names.iter().map(test).collect();
        let queue = queue(&tests.iter().collect::<Vec<_>>());
        let queue: Vec<Vec<_>> = queue
            .iter()
            .map(|entry| entry.iter().map(|test| test.name.as_str()).collect())
            .collect();
        let expected: [&[&str]; 5] =
            [&["commands::b", "lab::d"], &["ecmp::c"], &["rolling::f"], &["arp::a"], &["mtu::e"]];
        assert_eq!(queue, expected);
    }

    #[test]
    fn a_test_that_asserts_a_time_runs_beside_few() {
        let width = |test| Lane::of(test).width(4);
        assert_eq!(width("attack::nothing_pinned_is_lost_to_a_flood"), 1);
        assert_eq!(width("interop::lbd_leads_keepalived_over_ipv4"), 3);
        assert_eq!(width("interop::version_2_with_a_password"), 4);
    }
}
