//! IPVS with its Maglev scheduler on the same wire: the balancer that the kernel comes with.
//!
//! Its packets leave by a dummy interface, which takes them and does nothing: what a driver's
//! transmission costs is not charged to it. Those of tc leave by the same. Tuned as a guide would: no connection tracking, a large
//! table of connections.

use std::fs;

use anyhow::{Context as _, Result};
use kit::command::{command, run_with_input};

use super::rig::{NODE, call, ip};
use crate::frames::VIP_V4;

/// Takes the frames that the network stack sends.
pub const OUT: &str = "out";
/// As many backends as the balancer's services have here.
pub const BACKENDS: u8 = 100;

/// The port of a service with one backend, of which answers are measured: every connection is that backend's.
pub const ANSWERS: u16 = 83;
/// That backend.
pub const ANSWERING: [u8; 4] = [192, 168, 1, 1];

/// How IPVS forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By the MAC address.
    Dr,
    /// IP in IP.
    Tunnel,
    /// By another destination address (masquerading).
    Nat,
}

impl Method {
    /// The port of its service.
    pub const fn port(self) -> u16 {
        match self {
            Self::Dr => 80,
            Self::Tunnel => 81,
            Self::Nat => 82,
        }
    }
}

/// Sets the kernel up: the way of packets to the VIP and on, and a service for each method.
pub fn set_up() -> Result<()> {
    // 2^20 buckets, the most that there can be.
    call("modprobe", &["ip_vs", "conn_tab_bits=20"])?;
    call("modprobe", &["ip_vs_mh"])?;
    let vip = VIP_V4.map(|byte| byte.to_string()).join(".");
    let lines = format!(
        "link add {OUT} type dummy\nlink set {OUT} up\naddr add 192.168.0.1/16 dev {OUT}\n\
         addr add {vip}/32 dev lo\nroute add 20.0.0.0/8 dev {OUT}\n"
    );
    ip(&lines)?;
    for (name, value) in [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        (&format!("ipv4/conf/{NODE}/rp_filter"), "0"),
        ("ipv4/vs/conntrack", "0"),
        // A packet in the middle of a connection that it does not know begins one.
        ("ipv4/vs/sloppy_tcp", "1"),
    ] {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("{path} = {value}"))?;
    }
    // Small packets are nothing to be joined; to try would be charged to it.
    call("ethtool", &["-K", NODE, "gro", "off"])?;
    let mut lines = String::new();
    for (method, flag) in [(Method::Dr, "-g"), (Method::Tunnel, "-i"), (Method::Nat, "-m")] {
        let port = method.port();
        // With the port of the client in the hash, as here.
        lines += &format!("-A -t {vip}:{port} -s mh -b mh-port\n");
        for n in 1..=BACKENDS {
            lines += &format!("-a -t {vip}:{port} -r 192.168.1.{n}:{port} {flag}\n");
        }
    }
    let backend = ANSWERING.map(|byte| byte.to_string()).join(".");
    lines +=
        &format!("-A -t {vip}:{ANSWERS} -s mh\n-a -t {vip}:{ANSWERS} -r {backend}:{ANSWERS} -m\n");
    run_with_input(command("ipvsadm").arg("-R"), &lines).map(drop)
}

/// Packets that have left so far.
pub fn sent() -> Result<u64> {
    let path = format!("/sys/class/net/{OUT}/statistics/tx_packets");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().context(path)
}
