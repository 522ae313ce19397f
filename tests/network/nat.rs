//! Mode `nat`: backends without the VIP, at another port, whose route to clients leads through the balancer.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    ha_pair::{HaPair, Plan},
    http::Connection,
    lab::{Lab, OFFLOADS, Options, VIPS_V4, VIPS_V6},
    nginx,
    status::{ServiceExt as _, StatusExt as _},
    udp::{Echo, Probe},
    wait,
    ways::{FORWARDING, Way},
};
use lb_model::backend_address::BackendAddress;

use crate::mtu::{NARROW, learned, narrow};

pub const PATIENCE: Duration = Duration::from_secs(10);
/// The port that backends listen at; clients connect to 80.
pub const PORT: u16 = nginx::PORTS[1];
/// The port of the UDP service, and that of its backends.
pub const UDP: [u16; 2] = [5300, 5353];

/// The ways whose VIPs and addresses are of either family.
pub const FAMILIES: [Way; 2] = [Way::DsrV4, Way::DsrV6];

/// The web hosts as any other host of the network: without a VIP, and with a route to clients by these gateways.
pub fn backends_behind(lab: &Lab, v4: &str, v6: &str) -> Result<()> {
    for web in &lab.webs {
        let vips = VIPS_V4.map(|vip| format!("addr del {vip}/32 dev lo\n")).concat()
            + &VIPS_V6.map(|vip| format!("addr del {vip}/128 dev lo\n")).concat();
        let lines =
            format!("{vips}route replace 10.1.0.0/24 via {v4}\nroute replace fd00:1::/64 via {v6}");
        web.host.namespace.ip(&lines)?;
        web.host.namespace.sysctl(&[
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv6/conf/all/accept_redirects", "0"),
            ("ipv6/conf/eth0/accept_redirects", "0"),
        ])?;
    }
    Ok(())
}

/// The HTTP service of a family; `way` gives VIP and addresses.
pub fn service(lab: &Lab, way: Way) -> Service {
    let mut service = way.service(lab);
    service.mode = "nat";
    service.with(&format!("target_port = {PORT}"))
}

/// The UDP service beside an HTTP service.
pub fn echo_of(service: &Service) -> Service {
    Service {
        name: format!("echo-{}", service.name),
        protocol: "udp",
        port: UDP[0],
        settings: format!("target_port = {}\ncheck = {{ type = \"none\" }}\n", UDP[1]),
        ..service.clone()
    }
}

/// A lab whose client is behind a router, and the balancer the backends' gateway.
pub fn lab_of_gateways(attach: &'static str) -> Result<Lab> {
    let lab = Lab::new(&Options { router: true, attach, ..Options::default() })?;
    lab.balancer.namespace.sysctl(FORWARDING)?;
    backends_behind(&lab, "10.0.0.5", "fd00::5")?;
    Ok(lab)
}

/// The same with its services in mode `nat`.
fn translated(attach: &'static str) -> Result<(Lab, Balancer)> {
    let lab = lab_of_gateways(attach)?;
    let mut services: Vec<_> = FAMILIES.map(|way| service(&lab, way)).into();
    let echoes: Vec<_> = services.iter().map(echo_of).collect();
    services.extend(echoes);
    let balancer = Balancer::start(&lab, &services)?;
    Ok((lab, balancer))
}

/// The hosts that answer requests of new connections.
fn serving(lab: &Lab, way: Way, requests: usize) -> Result<BTreeSet<String>> {
    let one = |n| {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        open.get("/")?.backend().with_context(|| format!("request {n} by {}", way.name()))
    };
    (0..requests).map(one).collect()
}

fn names(lab: &Lab) -> BTreeSet<String> {
    lab.webs.iter().map(|web| web.host.name.clone()).collect()
}

/// New connections reach all hosts, large answers arrive whole, and both directions are counted.
pub fn all_serve(lab: &Lab, balancer: &Balancer, way: Way) -> Result<()> {
    ensure!(serving(lab, way, 60)? == names(lab), "every host serves");
    let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
    ensure!(open.get("/big")?.ok()?.body == nginx::big(), "what was sent arrives");
    let status = balancer.status()?;
    for web in &lab.webs {
        let at = BackendAddress::from(way.backend(web)).or_port(PORT.try_into().ok());
        let backend = status.service(way.name())?.backend(at)?;
        let returned = backend.returned.context("answers are counted")?;
        ensure!(backend.sent.packets > 0 && returned.packets > 0, "{backend:?}");
    }
    Ok(())
}

#[test]
fn backends_without_the_vip_serve_at_another_port_and_clients_see_only_the_vip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let (lab, balancer) = translated(attach)?;
        if attach == "tc" {
            lab.with_offloads()?;
        }
        for way in FAMILIES {
            all_serve(&lab, &balancer, way).with_context(|| format!("{attach}, {}", way.name()))?;
        }
        ensure!(balancer.status()?.dropped("no_backend") == 0);
    }
    Ok(())
}

#[test]
fn hosts_that_leave_checksums_to_their_nics_are_served_through_veth() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = translated("xdp")?;
    lab.without_checksums()?;
    // XDP sends answers; then the node's own stack does, by an interface that takes none of XDP.
    for stack in [false, true] {
        if stack {
            // The VIPs stay those of eth0.
            let settings = [("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")];
            lab.balancer.namespace.sysctl(&settings)?;
            lab.balancer.namespace.ip(BY_STACK)?;
            // As a NIC does, the kernel then computes what is left to it; over veth nobody would.
            lab.balancer.namespace.ethtool("eth0", OFFLOADS)?;
        }
        for way in FAMILIES {
            let at = || format!("{}, by the stack: {stack}", way.name());
            all_serve(&lab, &balancer, way).with_context(at)?;
            for bytes in [0, 101, 1_023] {
                echoes(&lab, way, bytes).with_context(at)?;
            }
        }
    }
    let sent = lab.balancer.namespace.sent("mv0")?;
    ensure!(sent > 1_000, "the stack has sent {sent} packets");
    Ok(())
}

/// Routes to clients that lead out of an interface without the program.
const BY_STACK: &str = "link add mv0 link eth0 type macvlan mode bridge
addr add 10.0.0.15/32 dev mv0
addr add fd00::15/128 dev mv0 nodad
link set mv0 up
route replace 10.1.0.0/24 via 10.0.0.1 dev mv0 onlink
route add fd00::1/128 dev mv0
route replace fd00:1::/64 via fd00::1 dev mv0
";

/// Every packet of some UDP flows is answered, each flow's by one host.
fn echoes(lab: &Lab, way: Way, bytes: usize) -> Result<()> {
    let _echo = Echo::start_at(lab, |web| SocketAddr::new(way.backend(web), UDP[1]))?;
    all_echoed(lab, way, bytes)
}

/// The same of echoes that run.
pub fn all_echoed(lab: &Lab, way: Way, bytes: usize) -> Result<()> {
    let target = SocketAddr::new(way.vip(), UDP[0]);
    let pause = Duration::from_millis(2);
    let probe = Probe::start_of_size(&lab.client.namespace, target, 20, pause, bytes)?;
    thread::sleep(Duration::from_secs(1));
    let tally = probe.finish()?;
    ensure!(tally.sent > 100 && tally.lost.is_empty() && tally.moved.is_empty(), "{tally:?}");
    Ok(())
}

#[test]
fn udp_packets_and_their_fragments_are_translated_both_ways() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let (lab, _balancer) = translated(attach)?;
        for way in FAMILIES {
            for bytes in [0, 1_900] {
                let at = || format!("{attach}, {}, {bytes} bytes", way.name());
                echoes(&lab, way, bytes).with_context(at)?;
            }
        }
    }
    Ok(())
}

/// The ring gives a host to itself, which would take the packets for its own.
#[test]
fn a_backend_that_is_its_own_client_is_refused_with_the_reason() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let lab = lab_of_gateways(attach)?;
        let services = FAMILIES.map(|way| {
            let mut service = service(&lab, way);
            service.backends.truncate(1);
            service
        });
        let balancer = Balancer::start(&lab, &services)?;
        for way in FAMILIES {
            let at = || format!("{attach}, {}", way.name());
            ensure!(serving(&lab, way, 1)?.len() == 1, "{}: others are served", at());
            let before = balancer.status()?.dropped("hairpin");
            let web = &lab.webs[0].host;
            let opened = Connection::open(&web.namespace, way.target(), Duration::from_millis(300));
            ensure!(opened.is_err(), "{}: it is its own client", at());
            let count = balancer.status()?.dropped("hairpin");
            ensure!(count > before, "{}: {count} packets", at());
            let from = SocketAddr::new(way.backend(&lab.webs[0]), 40_000).to_string();
            let to = way.target().to_string();
            let explained = balancer.lbctl(&["explain", "tcp", &from, &to, "--syn"])?;
            ensure!(
                explained.contains("its client is this backend itself"),
                "{}: {explained}",
                at()
            );
        }
    }
    Ok(())
}

/// The router's new MAC address is in no packet that the kernel sees: XDP takes the clients' and sends the answers.
#[test]
fn a_router_whose_mac_address_changes_unannounced_gets_answers_again() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_of_gateways("xdp")?;
    for version in ["ipv4", "ipv6"] {
        lab.balancer.namespace.sysctl(&[
            (&format!("{version}/neigh/eth0/base_reachable_time_ms"), "1000"),
            (&format!("{version}/neigh/eth0/delay_first_probe_time"), "1"),
            (&format!("{version}/neigh/eth0/retrans_time_ms"), "200"),
        ])?;
    }
    let mut balancer = Balancer::new(&lab, &FAMILIES.map(|way| service(&lab, way)))?;
    balancer.confine();
    balancer.launch()?;
    balancer.wait_usable()?;
    let answered = |way: Way| {
        let mut open =
            Connection::open(&lab.client.namespace, way.target(), Duration::from_millis(500))?;
        open.get("/")?.ok().map(drop)
    };
    FAMILIES.into_iter().try_for_each(answered)?;
    let router = &lab.router.as_ref().context("no router")?.namespace;
    // It asks for no MAC address with its new one.
    let mac = lab.balancer.namespace.mac("eth0")?;
    let known = FAMILIES
        .map(|way| format!("neigh replace {} lladdr {mac} dev eth0 nud permanent\n", way.vip()));
    let known = known.concat();
    router.ip(&format!("link set eth0 address 02:00:00:00:99:01\n{known}"))?;
    for way in FAMILIES {
        ensure!(answered(way).is_err(), "{}: answers go to the old MAC address", way.name());
    }
    for way in FAMILIES {
        wait::until(Duration::from_secs(30), "answers come again", || answered(way))
            .with_context(|| way.name())?;
    }
    Ok(())
}

#[test]
fn a_backend_learns_the_path_mtu_from_an_icmp_error_to_the_vip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let (lab, _balancer) = translated(attach)?;
        narrow(&lab)?;
        for way in FAMILIES {
            let client = lab.client.address(way.vip()).to_string();
            let mut waiting = names(&lab);
            for _ in 0..200 {
                let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
                let host = open.get("/")?.backend()?;
                if waiting.remove(&host) {
                    ensure!(open.get("/big")?.ok()?.body == nginx::big(), "what was sent arrives");
                    let mtu = learned(&lab.web(&host)?.host, None, &client)?;
                    ensure!(mtu == Some(NARROW as u64), "{attach}, {}: {mtu:?}", way.name());
                }
            }
            ensure!(waiting.is_empty(), "{waiting:?} never answered");
        }
    }
    Ok(())
}

/// An open connection goes on through a drain and a restart of `lbd`, and new ones go to the other hosts.
fn connection_outlives(lab: &Lab, balancer: &mut Balancer, way: Way) -> Result<()> {
    let web = &lab.webs[0];
    let mut open = loop {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        if open.get("/")?.backend()? == web.host.name {
            break open;
        }
    };
    let address = way.backend(web).to_string();
    balancer.lbctl(&["backend", "drain", way.name(), &address])?;
    let others = serving(lab, way, 60)?;
    ensure!(others.len() == 2 && !others.contains(&web.host.name), "{others:?}");
    ensure!(open.get("/")?.backend()? == web.host.name, "an open connection stays");
    balancer.stop()?;
    ensure!(open.get("/")?.backend()? == web.host.name, "it stays without lbd");
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(open.get("/big")?.ok()?.body == nginx::big(), "it stays over a start");
    balancer.lbctl(&["backend", "enable", way.name(), &address])?;
    ensure!(serving(lab, way, 60)? == names(lab), "all serve again");
    Ok(())
}

#[test]
fn a_translated_connection_outlives_a_drain_and_a_restart_of_lbd() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = translated("xdp")?;
    for way in FAMILIES {
        connection_outlives(&lab, &mut balancer, way).with_context(|| way.name())?;
    }
    Ok(())
}

/// A pair whose services have these settings, and whose backends have these gateways.
pub fn translated_by_a_pair(
    settings: &str,
    gateways: impl Fn(&Lab) -> Result<[String; 2]>,
) -> Result<HaPair> {
    pair_of_gateways(
        gateways,
        |lab| FAMILIES.map(|way| service(lab, way).with(settings)),
        |_| String::new(),
    )
}

/// A pair with these services, and the tables of further ones.
pub fn pair_of_gateways<const N: usize>(
    gateways: impl Fn(&Lab) -> Result<[String; 2]>,
    services: impl Fn(&Lab) -> [Service; N],
    tables: impl Fn(&Lab) -> String,
) -> Result<HaPair> {
    let lab = Lab::new(&Options { router: true, pair: true, ..Options::default() })?;
    let plan = Plan::new(&FAMILIES, Duration::from_millis(100));
    for node in lab.pair()? {
        node.namespace.sysctl(FORWARDING)?;
    }
    let [v4, v6] = gateways(&lab)?;
    backends_behind(&lab, &v4, &v6)?;
    let services = services(&lab);
    let tables = |n| Ok::<_, anyhow::Error>(tables(&lab) + &plan.tables(&lab, n)?);
    let node = |n: usize| Balancer::on(&lab, lab.pair()?[n], &services, &tables(n)?);
    let nodes = [node(0)?, node(1)?];
    let mut ha_pair = HaPair { nodes, lab, plan };
    ha_pair.launch()?;
    Ok(ha_pair)
}

/// The virtual routers have the VIPs, which are the backends' gateways, too.
pub fn vips_for_gateways(_: &Lab) -> Result<[String; 2]> {
    Ok([VIPS_V4[0].to_string(), VIPS_V6[0].to_string()])
}

#[test]
fn translated_connections_outlive_the_loss_of_the_active_node_and_its_return() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ha_pair = translated_by_a_pair("", vips_for_gateways)?;
    let lab = &ha_pair.lab;
    let mut all = Vec::new();
    for way in FAMILIES {
        for _ in 0..12 {
            let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
            let host = open.get("/")?.backend()?;
            all.push((way, open, host));
        }
    }
    let mut stay = |when: &str| -> Result<()> {
        for (way, open, host) in &mut all {
            let at = || format!("{}, {when}", way.name());
            ensure!(open.get("/")?.backend().with_context(at)? == *host, "{} moved", at());
        }
        Ok(())
    };
    stay("before")?;
    lab.cut(&ha_pair.host(0).name)?;
    ha_pair.wait_holds(1)?;
    stay("on the other node")?;
    for way in FAMILIES {
        ensure!(serving(lab, way, 40)? == names(lab), "new connections reach all");
    }
    lab.mend(&ha_pair.host(0).name)?;
    ha_pair.wait_active(0)?;
    stay("back")
}
