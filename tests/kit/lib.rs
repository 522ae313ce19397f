//! The kit of the integration tests and of the lab: hosts as network namespaces, the wires between
//! them, real nginx, the balancer under test, and the load on it.
//!
//! [`lab::Lab`] is the network of `cargo xtask run` and of the network tests; everything that it is
//! made of cleans up after itself when dropped. Leftovers of a killed run are found by
//! [`lab::sweep`].

pub mod arrivals;
pub mod balancer;
pub mod browser;
pub mod command;
#[cfg(feature = "datapath")]
pub mod datapath;
pub mod downloads;
pub mod flood;
pub mod ha_pair;
pub mod haproxy;
pub mod http;
pub mod keepalived;
pub mod lab;
pub mod load;
pub mod markdown;
pub mod mounts;
pub mod namespace;
pub mod nginx;
pub mod nics;
pub mod owners;
pub mod pair;
pub mod postgres;
pub mod probes;
pub mod process;
pub mod progress;
pub mod prometheus;
pub mod record;
pub mod reports;
pub mod router;
pub mod serving;
pub mod signals;
pub mod status;
pub mod tmux;
pub mod tun;
pub mod udp;
#[cfg(feature = "datapath")]
pub mod uploads;
pub mod wait;
pub mod ways;
pub mod wide;
pub mod xdp;

/// Whether the requirements of tests in namespaces are there: root, and the programs of [`PROGRAMS`].
///
/// Where it is not, prints the reason and returns false; in CI (`CI=true`) a test that can't run has failed.
///
/// # Panics
///
/// In CI, when something is missing.
#[must_use]
pub fn can_run() -> bool {
    can_run_without(&missing_of(PROGRAMS.iter().map(|(program, _)| *program)))
}

/// The same for tests that need the lab and none of the other programs.
///
/// # Panics
///
/// In CI, when something is missing.
#[must_use]
pub fn can_run_lab() -> bool {
    can_run_without(&missing(&[]))
}

/// The missing ones of root, the lab's programs and these others.
#[must_use]
pub fn missing(others: &[&'static str]) -> Vec<&'static str> {
    missing_of(LAB.iter().chain(others).copied())
}

fn missing_of(programs: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let root = (!is_root()).then_some("root");
    root.into_iter().chain(programs.filter(|program| command::find(program).is_none())).collect()
}

fn can_run_without(missing: &[&str]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let why = format!("needs {}; `cargo xtask test` sees to it", missing.join(", "));
    assert!(!in_ci(), "{why}");
    eprintln!("SKIPPED: {why}");
    false
}

/// Whether this run is CI, where a skipped test counts as failed.
#[must_use]
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false" && ci != "0")
}

/// The programs that the lab itself runs, and `cargo xtask run` with it.
pub const LAB: &[&str] = &["nginx", "ip", "ethtool", "curl", "nsenter"];

/// All programs that tests run, and the Debian package of each.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("keepalived", "keepalived"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("pg_ctlcluster", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("tmux", "tmux"),
    ("nsenter", "util-linux"),
    ("chromium", "chromium"),
    ("tshark", "tshark"),
    ("systemd-nspawn", "systemd-container"),
    ("strip", "binutils"),
    ("iperf3", "iperf3"),
];

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and can't fail.
    unsafe { libc::geteuid() == 0 }
}
