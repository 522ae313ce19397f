//! `lbctl decap run`: the decapsulator's lists follow the addresses of its host.

use std::{
    net::{IpAddr, UdpSocket},
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, command, namespace::Namespace, wait};
use lb_datapath::decap::{DecapStatus, Followed, detach, status};

use super::{
    decap_loader::{Host, addresses, received, send_tunnelled},
    netns::is_root,
};

const SOON: Duration = Duration::from_secs(10);
const BALANCER: [u8; 4] = [172, 16, 3, 4];

/// A running `lbctl decap run`; killed when it is dropped.
struct Run(Child);

impl Run {
    fn start(host: &Host, more: &[&str]) -> Result<Self> {
        let mut run = lbctl(host, "run", more)?;
        Ok(Self(run.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        wait::until(SOON, "`lbctl decap run` ends", || self.0.try_wait()?.context("it runs"))
    }

    /// Ends it as systemd does.
    fn stop(mut self) -> Result<ExitStatus> {
        let pid = i32::try_from(self.0.id())?;
        // SAFETY: the child has not been waited for, so the pid is still its own.
        let sent = unsafe { libc::kill(pid, libc::SIGTERM) };
        ensure!(sent == 0, "{}", std::io::Error::last_os_error());
        self.ended()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `lbctl decap` with the usual sources.
fn lbctl(host: &Host, operation: &str, more: &[&str]) -> Result<std::process::Command> {
    let mut lbctl = balancer::program(&Namespace::existing(&host.host.name), "lbctl")?;
    lbctl.args(["decap", operation, "--dev", "eth0", "--from", "172.16.0.0/16", "100::/64"]);
    lbctl.arg("--pin-dir").arg(&host.pins).args(more);
    Ok(lbctl)
}

fn shown(host: &Host) -> Result<DecapStatus> {
    let all = host.host.enter(|| status(&host.pins))?;
    all.into_iter().next().context("there is no decapsulator")
}

/// Waits until these are the lists.
fn lists_are(host: &Host, outer: &[&str], vips: &[&str]) -> Result<()> {
    let expected = (addresses(outer), Some(addresses(vips)));
    wait::until(SOON, "the lists follow the addresses", || {
        let shown = shown(host)?;
        ensure!((&shown.addresses, &shown.vips) == (&expected.0, &expected.1), "{shown:?}");
        Ok(())
    })
}

/// That a balancer's packet for the VIP comes out of its tunnel.
fn is_unwrapped(host: &Host, vip: [u8; 4]) -> Result<bool> {
    let address = IpAddr::from(vip);
    let socket = host.host.enter(|| UdpSocket::bind((address, 7000)))?;
    host.peer.enter(|| send_tunnelled(BALANCER, vip));
    Ok(received(&socket, SOON))
}

/// A host whose addresses come later, and that takes any source by `rp_filter`.
fn bare() -> Host {
    let host = Host::new();
    host.host.ip("addr flush dev eth0 scope global");
    host.host.ip("addr del 10.0.0.100/32 dev lo");
    host.host.ip("addr del fd00::100/128 dev lo");
    host.peer.ip("addr add 10.0.0.1/24 dev eth0");
    host.host.enter(|| {
        for of in ["all", "eth0"] {
            let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
            std::fs::write(path, "0").expect("set a sysctl");
        }
    });
    host
}

#[test]
fn a_vip_is_unwrapped_from_when_it_comes_onto_the_loopback_until_it_goes() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = bare();
    // As at boot: the unit may start before the addresses are there.
    let run = Run::start(&host, &[])?;
    lists_are(&host, &[], &[])?;
    let both = Followed { addresses: true, vips: true };
    assert_eq!(shown(&host)?.followed, both);
    let link = host.link();
    host.host.ip("addr add 10.0.0.2/24 dev eth0");
    host.host.ip("addr add 10.0.0.100/32 dev lo");
    lists_are(&host, &["10.0.0.2"], &["10.0.0.100"])?;
    ensure!(is_unwrapped(&host, [10, 0, 0, 100])?, "the first VIP");
    host.host.ip("addr add 10.0.0.101/32 dev lo");
    lists_are(&host, &["10.0.0.2"], &["10.0.0.100", "10.0.0.101"])?;
    ensure!(is_unwrapped(&host, [10, 0, 0, 101])?, "the second VIP");
    host.host.ip("addr add fd00::100/128 dev lo scope host nodad");
    host.host.ip("addr del 10.0.0.100/32 dev lo");
    lists_are(&host, &["10.0.0.2"], &["10.0.0.101", "fd00::100"])?;
    ensure!(is_unwrapped(&host, [10, 0, 0, 101])?, "the one that stays");
    assert_eq!(host.link(), link, "it was not attached again");

    ensure!(run.stop()?.success(), "SIGTERM is no failure");
    assert_eq!(shown(&host)?.followed, Followed::default());
    ensure!(is_unwrapped(&host, [10, 0, 0, 101])?, "a stop of the unit interrupts nothing");
    // No process follows meanwhile; the next start, as after an upgrade, takes the changes.
    host.host.ip("addr add 10.0.0.102/32 dev lo");
    let _run = Run::start(&host, &[])?;
    lists_are(&host, &["10.0.0.2"], &["10.0.0.101", "10.0.0.102", "fd00::100"])?;
    assert_eq!(host.link().0, link.0, "the same link has the program of the new start");
    Ok(())
}

#[test]
fn named_vips_stay_as_they_are_while_addresses_are_followed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = bare();
    let _run = Run::start(&host, &["--vip", "10.0.0.100"])?;
    lists_are(&host, &[], &["10.0.0.100"])?;
    host.host.ip("addr add 10.0.0.101/32 dev lo");
    // Addresses come in their order.
    host.host.ip("addr add 10.0.0.2/24 dev eth0");
    lists_are(&host, &["10.0.0.2"], &["10.0.0.100"])?;
    assert_eq!(shown(&host)?.followed, Followed { addresses: true, vips: false });
    let mut lbctl = balancer::program(&Namespace::existing(&host.host.name), "lbctl")?;
    let status = command::run(lbctl.args(["decap", "status", "--pin-dir"]).arg(&host.pins))?;
    ensure!(
        status.contains("10.0.0.2 (followed)") && status.contains("10.0.0.100 (fixed)"),
        "{status}"
    );
    Ok(())
}

#[test]
fn who_attaches_beside_a_running_one_is_told_to_restart_the_unit() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new();
    let _run = Run::start(&host, &[])?;
    lists_are(&host, &["10.0.0.2", "fd00::2"], &["10.0.0.100", "fd00::100"])?;
    let refused = command::run(&mut lbctl(&host, "attach", &["--vip", "10.0.0.101"])?);
    let message = format!("{:#}", refused.err().context("it is refused")?);
    ensure!(message.contains("systemctl restart lb-decap@eth0"), "{message}");
    lists_are(&host, &["10.0.0.2", "fd00::2"], &["10.0.0.100", "fd00::100"])
}

#[test]
fn a_detach_ends_it_well_and_an_interface_that_goes_ends_it_for_a_restart() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::new();
    let mut run = Run::start(&host, &[])?;
    lists_are(&host, &["10.0.0.2", "fd00::2"], &["10.0.0.100", "fd00::100"])?;
    ensure!(host.host.enter(|| detach("eth0", &host.pins))?, "there was one");
    ensure!(run.ended()?.success(), "a unit with Restart=on-failure stays down");

    let mut run = Run::start(&host, &[])?;
    lists_are(&host, &["10.0.0.2", "fd00::2"], &["10.0.0.100", "fd00::100"])?;
    host.host.ip("link del eth0");
    assert_eq!(run.ended()?.code(), Some(1), "the unit tries again");
    Ok(())
}

#[test]
fn a_source_that_is_not_listed_is_named_by_status_and_doctor() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = bare();
    host.host.ip("addr add 10.0.0.2/24 dev eth0");
    host.host.ip("addr add 10.0.0.100/32 dev lo");
    command::run(&mut lbctl(&host, "attach", &[])?)?;
    assert_eq!(shown(&host)?.unlisted, None);
    for last in [3, 4, 5] {
        host.peer.enter(|| send_tunnelled([10, 1, 2, last], [10, 0, 0, 100]));
    }
    let unlisted = wait::until(SOON, "all are counted", || {
        shown(&host)?.unlisted.filter(|one| one.packets == 3).context("not yet")
    })?;
    assert_eq!(unlisted.source, IpAddr::from([10, 1, 2, 5]));
    ensure!(unlisted.seconds_ago <= SOON.as_secs(), "{unlisted:?}");
    let namespace = Namespace::existing(&host.host.name);
    let run = |words: &[&str]| -> Result<String> {
        let mut lbctl = balancer::program(&namespace, "lbctl")?;
        let output = lbctl.args(words).arg("--pin-dir").arg(&host.pins).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let named = "3 packets came from sources that are not listed, the last one from 10.1.2.5, ";
    for words in [["decap", "status"], ["doctor", "backend"]] {
        let message = run(&words)?;
        ensure!(message.contains(named), "{words:?}: {message}");
    }
    // Once it is listed, there is no warning any more.
    command::run(&mut lbctl(&host, "attach", &["--from", "10.1.0.0/16"])?)?;
    assert_eq!(shown(&host)?.unlisted, None);
    host.peer.enter(|| send_tunnelled([10, 1, 2, 5], [10, 0, 0, 100]));
    ensure!(is_unwrapped(&host, [10, 0, 0, 100])?, "the balancer's comes behind it");
    assert_eq!(shown(&host)?.unlisted, None);
    ensure!(!run(&["doctor", "backend"])?.contains("not listed"), "it is mended");
    Ok(())
}
