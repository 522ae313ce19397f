//! Commands: their input, their output, and that nothing of them is left.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lb_health::{
    probe::{self, Outcome, tls},
    vip,
};
use lb_model::check::{Exec, Kind};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::kit::{LONG, SHORT, failure, make_probe, peak_bytes, run, unknown};

const BACKEND: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11)), 8_080);

fn shell(script: &str) -> Kind {
    command(&["/bin/sh", "-c", script])
}

fn command(words: &[&str]) -> Kind {
    Kind::Exec(Exec { command: words.iter().map(|word| (*word).into()).collect() })
}

#[tokio::test]
async fn status_zero_is_good_and_others_are_told_with_the_first_line() {
    assert_eq!(run(shell("echo fine"), BACKEND, LONG).await, Outcome::Up);
    let reason = |script| async move { failure(run(shell(script), BACKEND, LONG).await) };
    assert_eq!(reason("exit 3").await, "exit status 3");
    assert_eq!(reason("echo; echo disk full; echo more; exit 3").await, "exit status 3: disk full");
    assert_eq!(reason("echo no mount >&2; exit 1").await, "exit status 1: no mount");
    assert_eq!(reason("echo out; echo err >&2; exit 1").await, "exit status 1: out");
    assert_eq!(reason("printf 'a\\033[2Jb'; exit 1").await, "exit status 1: a\\u{1b}[2Jb");
    assert_eq!(reason("kill -SEGV $$").await, "killed by SIGSEGV");
}

#[tokio::test]
async fn there_is_no_shell() {
    assert_eq!(
        run(command(&["/usr/bin/test", "$HOME", "=", "$HOME"]), BACKEND, LONG).await,
        Outcome::Up
    );
    let literal = command(&["/usr/bin/test", "a b;c", "=", "a"]);
    assert_eq!(failure(run(literal, BACKEND, LONG).await), "exit status 1");
}

#[tokio::test]
async fn the_environment_says_what_is_asked_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("environment");
    let script = format!("tr '\\0' '\\n' </proc/self/environ >{}; cat", file.display());
    assert_eq!(run(shell(&script), BACKEND, LONG).await, Outcome::Up);
    let text = fs::read_to_string(file).unwrap();
    // The shell adds its own.
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("PWD=") && !line.starts_with("PATH="))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "LB_BACKEND=10.0.0.11",
            "LB_PORT=8080",
            "LB_PROTOCOL=tcp",
            "LB_SERVICE=web",
            "LB_VIP=10.0.0.100"
        ]
    );
    assert!(text.contains("PATH=/"), "{text}");
}

#[tokio::test]
async fn a_program_that_cannot_be_run_says_nothing_of_the_backend() {
    let missing = run(command(&["/nonexistent/check"]), BACKEND, LONG).await;
    assert_eq!(unknown(missing), "exec: /nonexistent/check: No such file or directory");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("check");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    let reason = unknown(run(command(&[file.to_str().unwrap()]), BACKEND, LONG).await);
    assert_eq!(reason, format!("exec: {}: Permission denied", file.display()));
    unknown(run(command(&[]), BACKEND, LONG).await);
}

/// Waits until a file holds a line, and gives the number in it.
async fn number_in(file: &Path) -> u32 {
    loop {
        if let Ok(text) = fs::read_to_string(file)
            && let Some(line) = text.strip_suffix('\n')
        {
            return line.parse().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs; one that is dead and not reaped does not.
fn runs(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}

async fn until_gone(id: u32) {
    let started = Instant::now();
    while runs(id) {
        assert!(started.elapsed() < LONG, "{id} still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A script whose child sleeps; the child's id goes to a file in `folder`.
fn sleeping(folder: &Path, then: &str) -> (Kind, PathBuf) {
    let file = folder.join("child");
    let kind = shell(&format!("sleep 1000 & echo $! >{}; {then}", file.display()));
    (kind, file)
}

#[tokio::test]
async fn at_the_timeout_the_whole_group_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (kind, file) = sleeping(folder.path(), "wait");
    let second = Duration::from_secs(1);
    assert_eq!(failure(run(kind, BACKEND, second).await), "exec: still running after 1s");
    until_gone(number_in(&file).await).await;
    let deaf = shell("trap '' TERM INT HUP; while :; do sleep 1; done");
    assert_eq!(failure(run(deaf, BACKEND, SHORT).await), "exec: still running after 200ms");
}

#[tokio::test]
async fn a_question_that_is_dropped_kills_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let (kind, file) = sleeping(folder.path(), "wait");
    let make_probe = make_probe(kind, BACKEND, LONG);
    let (network, tls) = (vip::Network::new(), tls::Cache::new());
    let child = tokio::select! {
        outcome = probe::run(&make_probe, &network, &tls) => panic!("{outcome:?}"),
        child = number_in(&file) => child,
    };
    until_gone(child).await;
}

/// Opening a program waits for a lease on it to be given up, as for a disk that hangs.
#[tokio::test]
async fn a_command_that_does_not_start_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("frozen");
    fs::write(&program, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    // The kernel reports waiting processes by a signal, which is to end nothing.
    // SAFETY: a handler is replaced by none.
    unsafe { signal(Signal::SIGIO, SigHandler::SigIgn) }.unwrap();
    let lease = fs::File::open(&program).unwrap();
    // SAFETY: only integers are passed, and the descriptor is open.
    assert_eq!(unsafe { libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }, 0);
    let command = vec![program.to_str().unwrap().to_owned()];
    let kind = Kind::Exec(Exec { command });
    let begun = Instant::now();
    let (frozen, other) =
        tokio::join!(async { (run(kind.clone(), BACKEND, SHORT).await, begun.elapsed()) }, async {
            (run(shell("exit 0"), BACKEND, LONG).await, begun.elapsed())
        },);
    assert!(unknown(frozen.0).ends_with("frozen: not started after 200ms"));
    assert!(frozen.1 < LONG / 2, "{:?}", frozen.1);
    assert_eq!(other.0, Outcome::Up);
    assert!(other.1 < LONG / 2, "{:?}", other.1);
    // Closing it would not do: the process that is to become the program has it, too.
    // SAFETY: only integers are passed, and the descriptor is open.
    assert_eq!(unsafe { libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }, 0);
}

#[tokio::test]
async fn a_process_that_is_left_behind_does_not_hold_up_the_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let (kind, file) = sleeping(folder.path(), "echo broken; exit 3");
    assert_eq!(failure(run(kind, BACKEND, LONG).await), "exit status 3: broken");
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    let child = number_in(&file).await;
    assert!(runs(child));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[tokio::test]
async fn endless_output_is_read_and_thrown_away() {
    let (outcome, bytes) = peak_bytes(run(command(&["/usr/bin/yes"]), BACKEND, SHORT)).await;
    assert_eq!(failure(outcome), "exec: still running after 200ms");
    assert!(bytes < 64 << 10, "{bytes} bytes held");
    let much = shell("head -c 20000000 /dev/zero | tr '\\0' x; exit 1");
    let (outcome, bytes) = peak_bytes(run(much, BACKEND, LONG)).await;
    let reason = failure(outcome);
    assert!(reason.starts_with("exit status 1: xxx") && reason.chars().count() <= 200, "{reason}");
    assert!(bytes < 64 << 10, "{bytes} bytes held");
}

#[tokio::test]
async fn closed_pipes_are_no_end() {
    let kind = shell("exec >&- 2>&-; sleep 0.2; exit 4");
    assert_eq!(failure(run(kind, BACKEND, LONG).await), "exit status 4");
}
