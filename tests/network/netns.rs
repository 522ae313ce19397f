//! A network namespace of one test: named `lbt-<pid>-<n>`, deleted when dropped.

use std::{
    env,
    fs::File,
    io::Write as _,
    os::fd::AsRawFd as _,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace.
pub struct Netns {
    /// Its name.
    pub name: String,
}

impl Netns {
    /// Makes one with `lo` up.
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbt-{}-{number}", process::id());
        run(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in it; returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run(&all)
    }

    /// Runs many commands of `ip` in it, one a line.
    pub fn batch(&self, lines: &str) {
        let mut ip = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("run ip");
        // The pipe is closed behind it.
        let mut input = ip.stdin.take().expect("a pipe");
        input.write_all(lines.as_bytes()).expect("write to ip");
        drop(input);
        assert!(ip.wait().expect("ip ends").success());
    }

    /// Runs `work` in a thread of its own in this namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(&path).expect("open the namespace");
                // SAFETY: the descriptor is open; only this thread changes its namespace.
                let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
                work()
            });
            thread.join()
        });
        match entered {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Joins two namespaces by a veth pair, `near` here and `far` in the other, both up.
    pub fn join(&self, near: &str, other: &Self, far: &str) {
        let far_end = format!("name {far} netns {}", other.name);
        self.ip(&format!("link add {near} type veth peer {far_end}"));
        self.ip(&format!("link set {near} up"));
        other.ip(&format!("link set {far} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The test may be failing already, for a reason that matters more.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("run ip (package iproute2)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {text}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the tests that need root can run. Where they can't they print the reason, and in CI they fail.
pub fn is_root() -> bool {
    // SAFETY: it takes no arguments and can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: needs root; run the tests with sudo");
        assert!(env::var_os("CI").is_none(), "a test was skipped: it needs root");
    }
    root
}
