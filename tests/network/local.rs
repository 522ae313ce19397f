//! Backends on the balancer's own node: beside others, and in containers on it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::{Lab, Options},
    namespace::Namespace,
    nginx::Nginx,
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};

use crate::short::spread;

const PATIENCE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);
const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];

/// A balancer with nginx on it, and two web hosts.
fn serving(attach: &'static str) -> Result<(Lab, Balancer)> {
    let lab = Lab::new(&Options { webs: 2, serve: true, attach, ..Options::default() })?;
    let settings = "check = { type = \"http\", interval = \"200ms\" }";
    let services: Vec<_> = WAYS.iter().map(|way| way.service(&lab).with(settings)).collect();
    let balancer = Balancer::start(&lab, &services)?;
    Ok((lab, balancer))
}

/// The balancer's own address.
fn own(lab: &Lab, way: Way) -> IpAddr {
    lab.balancer.address(way.vip())
}

/// Waits until the backend on the node is up or not by its checks, and the ring in the maps agrees.
fn wait_is(lab: &Lab, balancer: &Balancer, up: bool, reason: &str) -> Result<()> {
    wait::until(SOON, &format!("its own backend is up: {up}"), || {
        let status = balancer.status()?;
        for way in WAYS {
            let backend = status.service(way.name())?.backend(own(lab, way))?;
            let last = backend.check.as_ref().and_then(|check| check.last.clone());
            let last = last.unwrap_or_default();
            let is_in_ring = backend.slots > 0;
            ensure!(
                backend.is_up() == up && is_in_ring == up && last.contains(reason),
                "{backend:?}"
            );
        }
        Ok(())
    })
}

fn a_backend_on_the_node_serves_its_share(attach: &'static str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (mut lab, balancer) = serving(attach)?;
    wait_is(&lab, &balancer, true, "")?;
    for way in WAYS {
        let answers = spread(&lab, way, 90)?;
        let status = balancer.status()?;
        let service = status.service(way.name())?;
        for web in &lab.webs {
            let backend = service.backend(way.backend(web))?;
            let answered = answers.get(&web.host.name).copied().unwrap_or_default();
            ensure!(answered > 10, "{}: {answers:?}", way.name());
            assert_eq!(backend.new_flows, answered as u64, "{}: {}", way.name(), web.host.name);
        }
        let own = service.backend(own(&lab, way))?;
        ensure!(own.unusable.is_none() && own.mac.is_none(), "{own:?}");
    }
    let client = lab.client.v4;
    let explained = (1..=64).map(|n| {
        let (from, to) = (format!("{client}:{}", 40_000 + n), Way::DsrV4.target().to_string());
        balancer.lbctl(&["explain", "tcp", &from, &to])
    });
    let explained: Vec<_> = explained.collect::<Result<_>>()?;
    let here: Vec<_> =
        explained.iter().filter(|explanation| explanation.contains("this node itself")).collect();
    ensure!(!here.is_empty() && here.len() < 64, "{} of 64; {}", here.len(), explained[0]);
    ensure!(
        here.iter().all(|explanation| explanation.contains("XDP_PASS") || attach == "tc"),
        "{}",
        here[0]
    );

    // It is drained as others are, and its nginx is looked after as theirs.
    for way in WAYS {
        let address = own(&lab, way).to_string();
        balancer.lbctl(&["backend", "drain", way.name(), &address])?;
        ensure!(!spread(&lab, way, 30)?.contains_key("balancer"), "drained");
        balancer.lbctl(&["backend", "enable", way.name(), &address])?;
        ensure!(spread(&lab, way, 60)?.contains_key("balancer"), "enabled");
    }
    let orphan = lab.orphan();
    let web = lab.webs.last_mut().context("the balancer is the last of them")?;
    web.nginx.kill()?;
    wait_is(&lab, &balancer, false, "refused")?;
    for way in WAYS {
        ensure!(!spread(&lab, way, 30)?.contains_key("balancer"), "killed");
    }
    let web = lab.webs.last_mut().context("as above")?;
    web.nginx.restart(&web.host.namespace, orphan)?;
    wait_is(&lab, &balancer, true, "")
}

#[test]
fn a_backend_on_the_node_serves_its_share_by_xdp() -> Result<()> {
    a_backend_on_the_node_serves_its_share("xdp")
}

#[test]
fn a_backend_on_the_node_serves_its_share_by_tc() -> Result<()> {
    a_backend_on_the_node_serves_its_share("tc")
}

/// A check that connected to the VIP by the kernel's routes would reach the node that has it.
#[test]
fn a_backend_on_a_node_without_the_vip_is_down_though_others_answer_for_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = serving("xdp")?;
    wait_is(&lab, &balancer, true, "")?;
    // The VIP is the first web host's now, for everybody.
    let node = &lab.balancer.namespace;
    let web = &lab.webs[0].host.namespace;
    for way in WAYS {
        let (vip, length) = (way.vip(), if way.vip().is_ipv4() { 32 } else { 128 });
        let nodad = if vip.is_ipv4() { "" } else { " nodad" };
        for device in ["lo", "eth0"] {
            node.ip(&format!("address delete {vip}/{length} dev {device}"))?;
        }
        web.ip(&format!("address add {vip}/{length} dev eth0{nodad}"))?;
        let reached =
            Connection::open(&lab.client.namespace, way.target(), PATIENCE)?.get("/")?.ok()?;
        assert_eq!(reached.text(), "web1");
    }
    wait_is(&lab, &balancer, false, "is not on this node")
}

/// A container with nginx on the balancer's node: behind a bridge with addresses of its own, the VIP on its loopback, the
/// node its gateway. Returns its addresses with its process.
fn contained(lab: &Lab) -> Result<(Namespace, Nginx, [IpAddr; 2])> {
    let (node, container) = (&lab.balancer.namespace, Namespace::new("container")?);
    // While its link-local address is tentative (RFC 4862, 5.4), it can't look for its gateway: its first SYN-ACK would
    // leave a second late, after the SYN was sent again and failed over to the other backend, which resets that client.
    container.sysctl(&[("ipv6/conf/default/accept_dad", "0")])?;
    node.ip(&format!(
        "link add br1 type bridge\naddr add 172.18.0.1/24 dev br1\n\
         addr add fd18::1/64 dev br1 nodad\nlink set br1 up\n\
         link add port1 type veth peer name eth0 netns {}\nlink set port1 master br1 up",
        container.name()
    ))?;
    // The node has the VIP itself, from which the container answers.
    node.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/br1/accept_local", "1"),
    ])?;
    container.sysctl(&[("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")])?;
    container.ip(&format!(
        "addr add 172.18.0.2/24 dev eth0\naddr add fd18::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 172.18.0.1\nroute add default via fd18::1\n\
         addr add {}/32 dev lo\naddr add {}/128 dev lo nodad",
        Way::DsrV4.vip(),
        Way::DsrV6.vip()
    ))?;
    let (folder, big) = (lab.folder().join("container"), lab.folder().join("big"));
    let nginx = Nginx::start(&container, "container", &folder, &big, lab.orphan())?;
    Ok((container, nginx, ["172.18.0.2".parse()?, "fd18::2".parse()?]))
}

fn a_backend_in_a_container_on_the_node_serves_its_share(attach: &'static str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { webs: 1, attach, ..Options::default() })?;
    let (container, _nginx, addresses) = contained(&lab)?;
    let services = WAYS.iter().zip(addresses).map(|(way, container)| {
        let mut service = way.service(&lab);
        service.backends.push(container);
        service
    });
    let services: Vec<_> = services.collect();
    if attach == "xdp" {
        // Without a program there, the container's end of the wire takes no frames from XDP.
        kit::xdp::pass(&container, "eth0", &lab.pins().join("container"))?;
    }
    let _balancer = Balancer::start(&lab, &services)?;
    for way in WAYS {
        let answers = spread(&lab, way, 40)?;
        ensure!(answers.len() == 2 && answers["container"] > 5, "{}: {answers:?}", way.name());
    }
    Ok(())
}

#[test]
fn a_backend_in_a_container_on_the_node_serves_its_share_by_tc() -> Result<()> {
    a_backend_in_a_container_on_the_node_serves_its_share("tc")
}

#[test]
fn a_backend_in_a_container_on_the_node_serves_its_share_by_xdp() -> Result<()> {
    a_backend_in_a_container_on_the_node_serves_its_share("xdp")
}
