//! The backends' end of the wire: no host there, another MAC address, a router in between.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{self, Balancer},
    can_run, command,
    lab::{INTERFACE, Lab, Options},
    namespace::Namespace,
    nginx::{self, Nginx},
    status::BackendExt as _,
    ways::{Way, balanced, decapsulate},
};
use lb_model::seen::Condition;

use super::{
    AT_ONCE, CHECK, SOON, WAY, ask, clients, load, none_failed, run_for, wait_all_serve,
    wait_answered, wait_for,
};

#[test]
fn backend_without_a_host_is_told_with_its_reason_and_fails_no_request() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let nobody = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 99));
    // With checks, and with none that could notice it.
    for check in [CHECK, ""] {
        let (lab, balancer) = balanced(&Options::default(), &[WAY], check)?;
        let arrivals = clients(&lab, WAY)?;
        balancer.lbctl(&["backend", "add", WAY.name(), &nobody.to_string()])?;
        let lost = wait_for(&balancer, WAY, nobody, "does not answer", |backend| {
            backend.unusable.as_deref().is_some_and(|why| why.contains("does not answer"))
        })?;
        ensure!(lost.slots == 0 && lost.mac.is_none(), "{lost:?}");
        let shown = balancer.lbctl(&["backend", "show", WAY.name(), &nobody.to_string()])?;
        ensure!(shown.contains("neighbour 10.0.0.99 on eth0 does not answer"), "{shown}");
        wait_all_serve(&lab, &balancer, WAY)?;
        run_for(AT_ONCE);
        none_failed(arrivals)?;
    }
    Ok(())
}

/// Gives a web host another MAC address; its flows and all others go on.
fn mac_that_changes_breaks_nothing(announced: bool) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let web = &lab.webs[1];
    let at = WAY.backend(web);
    let load = load(&lab)?;
    web.host
        .namespace
        .sysctl(&[("ipv4/conf/eth0/arp_notify", if announced { "1" } else { "0" })])?;
    let new = "02:00:00:00:00:77";
    web.host.namespace.ip(&format!("link set {INTERFACE} address {new}"))?;
    wait_for(&balancer, WAY, at, "has the new address", |backend| {
        backend.mac.as_deref() == Some(new)
    })?;
    wait_all_serve(&lab, &balancer, WAY)?;
    wait_answered(&lab, WAY)?;
    load.finish().check()
}

#[test]
fn mac_of_a_backend_that_changes_with_an_announcement_breaks_no_connection() -> Result<()> {
    mac_that_changes_breaks_nothing(true)
}

#[test]
fn mac_of_a_backend_that_changes_silently_breaks_no_connection() -> Result<()> {
    mac_that_changes_breaks_nothing(false)
}

/// A web host in another network, 10.2.0.0/24, behind the lab's router.
struct Far {
    namespace: Namespace,
    nginx: Nginx,
}

impl Far {
    const NAME: &str = "far";
    const AT: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 21);

    fn new(lab: &Lab, way: Way) -> Result<Self> {
        let router = &lab.router.as_ref().context("a lab with a router")?.namespace;
        let namespace = Namespace::new(Self::NAME)?;
        namespace.sysctl(&[
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/arp_ignore", "1"),
        ])?;
        router.ip(&format!(
            "link add {far} type veth peer name {INTERFACE} netns {netns}\n\
             addr add 10.2.0.1/24 dev {far}\nlink set {far} up",
            far = Self::NAME,
            netns = namespace.name(),
        ))?;
        let vip = way.vip();
        namespace.ip(&format!(
            "addr add {}/24 dev {INTERFACE}\naddr add {vip}/32 dev lo\nlink set {INTERFACE} up\n\
             route add default via 10.2.0.1",
            Self::AT
        ))?;
        for (at, interface) in [(router, Self::NAME), (&namespace, INTERFACE)] {
            at.ethtool(interface, &["tx", "off", "tso", "off", "gso", "off"])?;
        }
        let mut attach = balancer::program(&namespace, "lbctl")?;
        attach.args(["decap", "attach", "--dev", INTERFACE]);
        attach.args(["--from", "172.16.0.0/16", "--pin-dir"]);
        command::run(attach.arg(lab.pins().join(Self::NAME)))?;
        let (folder, big) = (lab.folder().join(Self::NAME), lab.folder().join("far-big"));
        std::fs::write(&big, nginx::big()).with_context(|| format!("write {}", big.display()))?;
        let nginx = Nginx::start(&namespace, Self::NAME, &folder, &big, lab.orphan())?;
        Ok(Self { namespace, nginx })
    }
}

#[test]
fn backend_behind_a_router_is_checked_by_the_way_of_its_traffic_and_its_death_is_found()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::IpipV4;
    let lab = Lab::new(&Options { webs: 2, router: true, ..Options::default() })?;
    let mut far = Far::new(&lab, way)?;
    decapsulate(&lab)?;
    let at = IpAddr::V4(Far::AT);
    let mut service = way.service(&lab).with(CHECK);
    service.backends.push(at);
    let balancer = Balancer::start(&lab, &[service])?;
    let is_up = || wait_for(&balancer, way, at, "is up", |b| b.is_up() && b.slots > 0);
    let is_down = || wait_for(&balancer, way, at, "is down", |b| !b.is_up() && b.slots == 0);
    let checked = || {
        wait_for(&balancer, way, at, "has answered", |backend| {
            backend.check.as_ref().is_some_and(|check| check.last.as_deref() == Some("ok"))
        })
    };
    is_up()?;
    checked()?;
    while ask(&lab, way, SOON)? != Far::NAME {}

    // Its web server dies.
    far.nginx.kill()?;
    let down = is_down()?;
    ensure!(down.condition == Condition::SoftDown, "{down:?}");
    far.nginx.restart(&far.namespace, lab.orphan())?;
    is_up()?;

    // The VIP is missing there: only a check by the way of the traffic can find it.
    far.namespace.ip(&format!("addr del {}/32 dev lo", way.vip()))?;
    is_down()?;
    far.namespace.ip(&format!("addr add {}/32 dev lo", way.vip()))?;
    is_up()?;

    // It loses power: the router still answers ARP for it.
    let nft = |what: &str| command::run(far.namespace.command("nft").arg(what)).map(drop);
    nft("add table inet dead")?;
    nft("add chain inet dead in { type filter hook prerouting priority -300; }")?;
    nft("add rule inet dead in drop")?;
    is_down()?;
    let arrivals = clients(&lab, way)?;
    run_for(AT_ONCE);
    none_failed(arrivals)?;
    nft("delete table inet dead")?;
    is_up().map(drop)
}
