//! Interfaces without Ethernet header: clients that come by a tun, and web hosts that are reached by one.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    http::Connection,
    lab::{Lab, Options},
    namespace::Namespace,
    nginx,
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    tun::{Cable, Change, Layer, Tun},
    udp::Echo,
    uploads::{self, PORT},
    wait,
    ways::{self, FORWARDING, Way},
};
use lb_inspect::explain::{Snap, saved};

use crate::nat::{self, FAMILIES};

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an upload.
const UPLOAD: usize = 1 << 20;

/// Joins the balancer to another host by a tun of this name on both.
fn join(lab: &Lab, name: &str, other: &Namespace, to_other: Change) -> Result<Cable> {
    let tun = |namespace: &Namespace| namespace.enter(|| Tun::new(name, Layer::Ip, None))?;
    Ok(Cable::lay(tun(&lab.balancer.namespace)?, tun(other)?, to_other))
}

/// Has the client's requests by these ways go by a tun to the balancer. Web hosts answer it on the switch.
fn by_tun(lab: &Lab, ways: &[Way]) -> Result<Cable> {
    let client = &lab.client;
    let cable = join(lab, "tun0", &client.namespace, |packet| packet)?;
    let route = |way: &Way| {
        let (vip, source) = (way.vip(), client.address(way.vip()));
        format!("route add {vip} dev tun0 src {source}\n")
    };
    client.namespace.ip(&ways.iter().map(route).collect::<String>())?;
    Ok(cable)
}

/// The balancer with its program on these interfaces, beside the lab's.
fn start(lab: &Lab, more: &[&str], services: &[Service]) -> Result<Balancer> {
    let mut balancer = Balancer::new(lab, services)?;
    let text = fs::read_to_string(balancer.config())?;
    let names: Vec<_> = ["eth0"].iter().chain(more).map(|name| format!("\"{name}\"")).collect();
    let text = text.replace("[\"eth0\"]", &format!("[{}]", names.join(", ")));
    fs::write(balancer.config(), text)?;
    balancer.launch()?;
    Ok(balancer)
}

fn at_tc() -> Options {
    Options { attach: "tc", ..Options::default() }
}

#[test]
fn clients_that_come_by_a_tun_reach_all_web_hosts_in_each_mode() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let _cable = by_tun(&lab, &Way::DIRECT_RETURN)?;
    let balancer = start(&lab, &["tun0"], &Way::DIRECT_RETURN.map(|way| way.service(&lab)))?;
    balancer.wait_usable()?;
    ways::decapsulate(&lab)?;
    ways::all_reach_all(&lab, &balancer, 40)
}

/// Segments that fill the link are too big for a tunnel: the balancer sends the client an ICMP error by the tun.
#[test]
fn uploads_by_a_tun_fit_the_tunnel_after_an_icmp_error() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let ways = [Way::IpipV4, Way::IpipV6];
    let _cable = by_tun(&lab, &ways)?;
    let services = ways.map(|way| Service { port: PORT, ..way.service(&lab) });
    let balancer = start(&lab, &["tun0"], &services)?;
    balancer.wait_usable()?;
    ways::decapsulate(&lab)?;
    for way in ways {
        let address = SocketAddr::new(way.vip(), PORT);
        uploads::take(&lab, address)?;
        uploads::send(&lab, address, UPLOAD, 1, PATIENCE).with_context(|| address.to_string())?;
    }
    let status = balancer.status()?;
    let replied = status.dropped.get("too_big_replied").map_or(0, |count| count.packets);
    ensure!(replied >= 2, "{:?}", status.dropped);
    Ok(())
}

/// Takes the outer header off, as the tunnel's far end does.
fn decapsulated(packet: Vec<u8>) -> Vec<u8> {
    match (packet.first().map(|first| first >> 4), packet.get(6), packet.get(9)) {
        (Some(4), _, Some(4)) => packet[20..].to_vec(),
        (Some(6), Some(41 | 4), _) => packet[40..].to_vec(),
        _ => packet,
    }
}

/// The address of the first web host behind its tun, of each family.
const FAR: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// A lab whose first web host has such addresses.
fn far_web(lab: &Lab) -> Result<Cable> {
    let web = &lab.webs[0].host.namespace;
    let cable = join(lab, "tun1", web, decapsulated)?;
    let addresses = |last| {
        format!(
            "address add 10.77.0.{last}/24 dev tun1\naddress add fd77::{last}/64 dev tun1 nodad\n"
        )
    };
    lab.balancer.namespace.ip(&addresses(1))?;
    web.ip(&addresses(2))?;
    Ok(cable)
}

#[test]
fn web_host_that_is_reached_by_a_tun_serves_by_tunnel_and_its_checks_go_there() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let _cable = far_web(&lab)?;
    const CHECK: &str = "[service.check]\ntype = \"http\"\nvia = \"vip\"\ninterval = \"200ms\"\n";
    let services: Vec<_> = [Way::IpipV4, Way::IpipV6, Way::IpipV4InV6]
        .into_iter()
        .map(|way| {
            let far = FAR[usize::from(way != Way::IpipV4)].parse().expect("an address");
            Service { backends: vec![far], ..way.service(&lab) }.with(CHECK)
        })
        .collect();
    let balancer = start(&lab, &[], &services)?;
    balancer.wait_usable()?;
    let is_up = |up: bool| {
        wait::until(PATIENCE * 2, "all backends have their condition", || {
            let status = balancer.status()?;
            for service in &services {
                let backend = status.service(&service.name)?.backend(service.backends[0])?;
                ensure!(backend.is_up() == up, "{}: {backend:?}", service.name);
            }
            Ok(())
        })
    };
    is_up(true)?;
    for service in &services {
        let target = SocketAddr::new(service.vip, 80);
        let page = Connection::open(&lab.client.namespace, target, PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("by {}", service.name))?;
        assert_eq!(page.text(), lab.webs[0].host.name);
    }
    lab.webs[0].host.namespace.ip("link set tun1 down")?;
    is_up(false)
}

/// The services in mode `nat` of the first web host behind its tun: HTTP, and a UDP echo.
fn nat_by_tun(lab: &Lab) -> Vec<Service> {
    let http = FAMILIES.into_iter().zip(FAR).map(|(way, far)| Service {
        backends: vec![far.parse().expect("an address")],
        ..nat::service(lab, way)
    });
    let http: Vec<_> = http.collect();
    let echoes: Vec<_> = http.iter().map(nat::echo_of).collect();
    [http, echoes].concat()
}

#[test]
fn web_host_in_mode_nat_that_is_reached_by_a_tun_answers_through_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { router: true, ..at_tc() })?;
    lab.balancer.namespace.sysctl(FORWARDING)?;
    let _cable = far_web(&lab)?;
    let web = &lab.webs[0].host;
    web.namespace
        .ip("route replace 10.1.0.0/24 via 10.77.0.1\nroute replace fd00:1::/64 via fd77::1")?;
    let balancer = start(&lab, &["tun1"], &nat_by_tun(&lab))?;
    balancer.wait_usable()?;
    for way in FAMILIES {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)
            .with_context(|| way.name())?;
        ensure!(open.get("/big")?.ok()?.body == nginx::big(), "{}: a large answer", way.name());
    }
    let echo_at = |far: &str| {
        let far: IpAddr = far.parse()?;
        Echo::start_at(&lab, |web| {
            let is_far = web.host.name == lab.webs[0].host.name;
            SocketAddr::new(if is_far { far } else { web.host.v4.into() }, nat::UDP[1])
        })
    };
    for (way, far) in FAMILIES.into_iter().zip(FAR) {
        let _echo = echo_at(far)?;
        for bytes in [0, 1_900] {
            nat::all_echoed(&lab, way, bytes).with_context(|| format!("{bytes} bytes"))?;
        }
    }
    // Answers that the node's own stack has to fragment.
    web.namespace.sysctl(&[("ipv4/ip_no_pmtu_disc", "1")])?;
    lab.balancer.namespace.ip("route replace 10.1.0.0/24 via 10.0.0.1 mtu lock 1000")?;
    let created = || fragments_created(&lab);
    let before = created()?;
    let _echo = echo_at(FAR[0])?;
    nat::all_echoed(&lab, FAMILIES[0], 1_200)?;
    ensure!(created()? > before + 200, "no answer was fragmented");
    Ok(())
}

/// Where answers come by XDP, the node's own stack sends them by the tun.
#[test]
fn clients_that_come_by_a_tun_are_answered_by_it_in_mode_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["tc", "auto"] {
        let lab = Lab::new(&Options { attach, ..Options::default() })?;
        lab.balancer.namespace.sysctl(FORWARDING)?;
        nat::backends_behind(&lab, "10.0.0.5", "fd00::5")?;
        let _cable = by_tun(&lab, &FAMILIES)?;
        for way in FAMILIES {
            let client = lab.client.address(way.vip());
            let to_client = |by: &str| format!("route add {client} {by}");
            lab.balancer.namespace.ip(&to_client("dev tun0"))?;
            let gateway = if client.is_ipv4() { "10.0.0.5" } else { "fd00::5" };
            for web in &lab.webs {
                web.host.namespace.ip(&to_client(&format!("via {gateway}")))?;
            }
        }
        let services = FAMILIES.map(|way| nat::service(&lab, way));
        let balancer = start(&lab, &["tun0"], &services)?;
        balancer.wait_usable()?;
        for way in FAMILIES {
            let at = || format!("{attach}, {}", way.name());
            nat::all_serve(&lab, &balancer, way).with_context(at)?;
        }
    }
    Ok(())
}

/// IPv4 fragments that the balancer's stack has made so far.
fn fragments_created(lab: &Lab) -> Result<u64> {
    let text =
        lab.balancer.namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut ip = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (ip.next().context("no names")?, ip.next().context("no values")?);
    let mut named = names.split(' ').zip(values.split(' '));
    let (_, count) = named.find(|(name, _)| *name == "FragCreates").context("no FragCreates")?;
    Ok(count.parse()?)
}

#[test]
fn backend_in_mode_dsr_that_is_reached_by_a_tun_is_refused_with_its_line() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let _cable = far_web(&lab)?;
    const WHY: &str = "leaves by tun1, which has no Ethernet header: dsr needs the backend's MAC address; use mode ipip or nat";
    let mut service = Way::DsrV4.service(&lab);
    service.backends.push(FAR[0].parse()?);
    let balancer = start(&lab, &[], &[service])?;
    let checked =
        balancer.lbctl_output(&["config", "check", &balancer.config().to_string_lossy()])?;
    let output = String::from_utf8(checked.stderr)?;
    let text = fs::read_to_string(balancer.config())?;
    let line = 1 + text.lines().position(|line| line.contains(FAR[0])).context("no such line")?;
    ensure!(!checked.status.success() && output.contains(WHY), "{output}");
    ensure!(output.contains(&format!("lbd.toml:{line}:")), "line {line}: {output}");
    wait::until(PATIENCE, "the backend is refused, and the others are not", || {
        let status = balancer.status()?;
        let service = status.service(Way::DsrV4.name())?;
        let unusable = |address: IpAddr| anyhow::Ok(service.backend(address)?.unusable.clone());
        ensure!(unusable(FAR[0].parse()?)?.as_deref() == Some(WHY), "{service:?}");
        for web in &lab.webs {
            ensure!(unusable(web.host.v4.into())?.is_none(), "{service:?}");
        }
        Ok(())
    })
}

#[test]
fn packets_of_a_tun_are_captured_behind_a_header_of_zeros_and_explained() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let way = Way::DsrV4;
    let _cable = by_tun(&lab, &[way])?;
    let balancer = start(&lab, &["tun0"], &[way.service(&lab)])?;
    balancer.wait_usable()?;
    let file = lab.folder().join("tun.pcapng");
    let path = file.to_string_lossy();
    let mut lbctl = balancer.lbctl_command();
    lbctl.args(["capture", "-w", &path, "--service", way.name(), "-c", "12", "--duration", "20s"]);
    let mut capture = lbctl.stdout(Stdio::null()).spawn()?;
    let ended = wait::until(PATIENCE * 4, "the capture has its packets", || {
        Connection::open(&lab.client.namespace, way.target(), PATIENCE)?.get("/")?.ok()?;
        capture.try_wait()?.context("it goes on")
    })?;
    ensure!(ended.success(), "{ended}");
    let saved = saved::read(&file, 100)?;
    let (came, left): (Vec<_>, Vec<_>) =
        saved.packets.iter().partition(|packet| packet.bytes.starts_with(&[0; 12]));
    ensure!((came.len(), left.len()) == (12, 12), "{} came, {} left", came.len(), left.len());
    let to_a_web = |packet: &&Snap| packet.bytes[12..15] == [8, 0, 0x45];
    ensure!(came.iter().chain(&left).all(to_a_web), "{saved:?}");
    // Frames that have left are for other hosts.
    let explained = balancer.lbctl(&["explain", "--pcap", &path, "--verify", "--verbose"])?;
    for words in ["comes     no Ethernet header", "verdict   forwarded by dsr-v4"] {
        ensure!(explained.matches(words).count() == 12, "{words}: {explained}");
    }
    Ok(())
}
