//! Counts of frames that were lost after an XDP program had sent them, with the kernel's tracepoints.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{can_run_lab, command, namespace::Namespace, wait, xdp};
use lb_common::tx_errors::Reason;
use lb_datapath::TxErrors;

const PATIENCE: Duration = Duration::from_secs(10);
/// No interface has this index.
const NOBODY: u32 = 1_000_000;

/// A pin that goes with the test.
struct Pin(PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Has everything that comes by `eth0` sent to another interface.
fn redirect(node: &Namespace, to: u32) -> Result<Pin> {
    let pin = Pin(PathBuf::from(format!("/sys/fs/bpf/{}-{to}", node.name())));
    xdp::redirect(node, "eth0", to, &pin.0)?;
    Ok(pin)
}

fn index(node: &Namespace, interface: &str) -> Result<u32> {
    let shown = command::run(node.command("ip").args(["-o", "link", "show", interface]))?;
    shown.split(':').next().and_then(|n| n.trim().parse().ok()).context("an index")
}

#[test]
fn counts_of_an_interface_that_is_gone_are_taken_out_of_the_map_and_no_others() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let (node, host) = (Namespace::new("node")?, Namespace::new("host")?);
    // Only the test's packets come.
    host.sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
    for (number, name) in [(1, "eth0"), (2, "eth1")] {
        node.ip(&format!(
            "link add {name} type veth peer name {name} netns {}\nlink set {name} up",
            host.name()
        ))?;
        host.ip(&format!("link set {name} up\naddr add 10.0.{number}.2/24 dev {name}"))?;
    }
    host.ip("neigh add 10.0.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")?;
    let (own, exit) = (index(&node, "eth0")?, index(&node, "eth1")?);
    let tx_errors = node.enter(TxErrors::attach)??;
    // Frames by the exit interface, each with the error and their number.
    let lost = |to: u32| -> Result<Vec<(i32, u64)>> {
        let all = tx_errors.read()?;
        ensure!(
            all.iter().all(|one| one.ingress == own && one.reason == Reason::Redirect),
            "{all:?}"
        );
        let of = all.iter().filter(|one| one.egress == to);
        Ok(of.map(|one| (one.errno, one.frames)).collect())
    };
    let until_lost = |to: u32, errno: i32| {
        wait::until(PATIENCE, &format!("frames to {to} are lost"), || {
            let mut ping = host.command("ping");
            command::output(ping.args(["-c1", "-W0.1", "-n", "10.0.1.1"]), "")?;
            let lost = lost(to)?;
            ensure!(lost.iter().any(|one| one.0 == errno && one.1 > 0), "{lost:?}");
            Ok(())
        })
    };

    let to_nobody = redirect(&node, NOBODY)?;
    until_lost(NOBODY, libc::EINVAL)?;
    drop(to_nobody);
    // The other end of the exit has no program, so it takes nothing; and then it is gone.
    let _to_exit = redirect(&node, exit)?;
    until_lost(exit, libc::EOPNOTSUPP)?;
    node.ip("link del eth1")?;
    until_lost(exit, libc::EINVAL)?;

    let (before, nobody) = (lost(exit)?, lost(NOBODY)?);
    let forgotten = tx_errors.forget(&BTreeSet::from([exit]))?;
    let sum = |all: &[(i32, u64)]| all.iter().map(|one| one.1).sum::<u64>();
    assert!(forgotten.iter().all(|one| (one.ingress, one.egress) == (own, exit)), "{forgotten:?}");
    assert_eq!(forgotten.len(), 2, "by both errors: {forgotten:?}");
    assert_eq!(forgotten.iter().map(|one| one.frames).sum::<u64>(), sum(&before));
    assert_eq!((lost(exit)?, lost(NOBODY)?), (vec![], nobody));
    // Later losses are counted again.
    until_lost(exit, libc::EINVAL)?;
    // By the interface that they came by, all of it goes.
    tx_errors.forget(&BTreeSet::from([own]))?;
    assert_eq!(tx_errors.read()?, []);
    Ok(())
}
