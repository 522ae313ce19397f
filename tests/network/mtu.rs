//! Path MTU discovery through the balancer, in both directions, with large transfers.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service, program},
    can_run, can_run_lab, command,
    http::Connection,
    lab::{Host, Lab, Options},
    nginx,
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::{Way, balanced},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// MTU of the router's link to the client. No less: IPv6 has no smaller (RFC 8200, 5).
pub(crate) const NARROW: usize = 1300;

/// The MTU that a host has learned for the way to an address.
pub(crate) fn learned(host: &Host, from: Option<&str>, to: &str) -> Result<Option<u64>> {
    let mut ip = host.namespace.command("ip");
    ip.args(["-j", "route", "get", to]).args(from.iter().flat_map(|from| ["from", from]));
    let shown: serde_json::Value =
        serde_json::from_str(&command::run(&mut ip)?).context("ip -j")?;
    Ok(shown[0]["metrics"][0]["mtu"].as_u64())
}

/// Makes the router's way to the client narrow: the router answers a packet that is too big with an
/// error to the VIP, which the balancer gets.
pub(crate) fn narrow(lab: &Lab) -> Result<()> {
    let router = lab.router.as_ref().context("a lab with a router")?;
    router.namespace.ip(&format!(
        "route replace 10.1.0.0/24 dev eth1 proto kernel scope link src 10.1.0.1 mtu lock {NARROW}\n\
         route replace fd00:1::/64 dev eth1 proto kernel metric 256 mtu lock {NARROW}"
    ))?;
    Ok(())
}

fn a_large_download_fits_a_narrow_link(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options { router: true, ..Options::default() }, &[way], "")?;
    narrow(&lab)?;
    let big = nginx::big();
    let client = lab.client.address(way.vip()).to_string();
    let vip = way.vip().to_string();
    for web in &lab.webs {
        // Until this host is the one that answers; each must learn for itself.
        let mut tries = 0;
        loop {
            let mut connection = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
            if connection.get("/")?.ok()?.text() == web.host.name {
                let download = connection.get("/big")?.ok()?;
                assert!(download.body == big, "{} sent something else", web.host.name);
                break;
            }
            tries += 1;
            ensure!(tries < 200, "{} never answered", web.host.name);
        }
        let mtu = learned(&web.host, Some(&vip), &client)?;
        assert_eq!(mtu, Some(NARROW as u64), "the MTU that {} received", web.host.name);
    }
    assert_eq!(balancer.status()?.dropped("no_backend"), 0);
    Ok(())
}

#[test]
fn a_large_download_fits_a_narrow_link_by_dsr_over_ipv4() -> Result<()> {
    a_large_download_fits_a_narrow_link(Way::DsrV4)
}

#[test]
fn a_large_download_fits_a_narrow_link_by_dsr_over_ipv6() -> Result<()> {
    a_large_download_fits_a_narrow_link(Way::DsrV6)
}

#[test]
fn a_large_download_fits_a_narrow_link_by_ipip_over_ipv4() -> Result<()> {
    a_large_download_fits_a_narrow_link(Way::IpipV4)
}

#[test]
fn a_large_download_fits_a_narrow_link_by_ipip_over_ipv6() -> Result<()> {
    a_large_download_fits_a_narrow_link(Way::IpipV6)
}

#[test]
fn a_large_download_fits_a_narrow_link_by_ipip_of_ipv4_in_ipv6() -> Result<()> {
    a_large_download_fits_a_narrow_link(Way::IpipV4InV6)
}

/// MTU of the router's link to the backend, which the tunnel's packets outgrow.
const NARROW_TUNNEL: u16 = 1400;

/// Puts a second way to the first web host behind the router, by a link that is narrower than the
/// balancer's; the host's address there. The network routes the tunnel's outer sources to the balancer.
fn behind_a_narrow_link(lab: &Lab, v6: bool) -> Result<IpAddr> {
    let router = lab.router.as_ref().context("a lab with a router")?;
    let web = &lab.webs[0].host;
    router.namespace.ip(&format!(
        "link add eth2 mtu {NARROW_TUNNEL} type veth peer name eth1 netns {}\n\
         addr add 10.2.0.1/24 dev eth2\naddr add fd00:2::1/64 dev eth2 nodad\nlink set eth2 up\n\
         route add 10.9.0.0/16 via {}\nroute add fd00:9::/64 via {}",
        web.namespace.name(),
        lab.balancer.v4,
        lab.balancer.v6
    ))?;
    web.namespace.ip(
        "link set eth1 up\naddr add 10.2.0.11/24 dev eth1\naddr add fd00:2::11/64 dev eth1 nodad",
    )?;
    let mut attach = program(&web.namespace, "lbctl")?;
    attach.args(["decap", "attach", "--dev", "eth1", "--from", "10.9.0.0/16", "fd00:9::/64"]);
    command::run(attach.arg("--pin-dir").arg(lab.pins().join(&web.name)))?;
    let address = if v6 { "fd00:2::11" } else { "10.2.0.11" };
    Ok(address.parse()?)
}

/// A router behind the balancer reports that tunnelled packets are too big: the backend gets smaller ones from
/// then on, and clients get the smaller MTU.
fn a_large_upload_fits_a_narrow_link_behind_the_balancer(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { router: true, webs: 1, ..Options::default() })?;
    let backend = behind_a_narrow_link(&lab, way.overhead() == 40)?;
    let service = Service::tcp(way.name(), way.vip(), 80, "ipip", vec![backend]);
    let mut balancer = Balancer::new(&lab, &[])?;
    balancer.set_more("[tunnel]\nsource_v4 = \"10.9.0.0/16\"\nsource_v6 = \"fd00:9::/64\"\n");
    balancer.configure(&[service])?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let known = || -> Result<Option<u16>> {
        let status = balancer.status()?;
        Ok(status.service(way.name())?.backend(backend)?.path_mtu)
    };
    assert_eq!(known()?, None, "nothing is known of the path yet");

    let big = nginx::big();
    let mut connection = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
    let length = connection.post("/upload", &big)?.ok()?;
    assert_eq!(length.text(), big.len().to_string());
    assert_eq!(known()?, Some(NARROW_TUNNEL));
    let mtu = learned(&lab.client, None, &way.vip().to_string())?;
    let inside = u64::from(NARROW_TUNNEL) - way.overhead() as u64;
    assert_eq!(mtu, Some(inside), "the MTU that the client received");
    let shown = balancer.lbctl(&["backend", "show", way.name(), &backend.to_string()])?;
    ensure!(shown.contains("path MTU") && shown.contains("1400 bytes"), "{shown}");
    let events = balancer.lbctl(&["events", "--kind", "backend_path_mtu"])?;
    ensure!(events.contains("has a path that takes packets of 1400 bytes"), "{events}");
    balancer.check()
}

/// The EtherTypes of the packet sockets without link headers in the balancer's network namespace.
fn packet_sockets(balancer: &Balancer) -> Result<Vec<String>> {
    let path = format!("/proc/{}/net/packet", balancer.pid()?);
    let sockets = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // sk, RefCnt, Type (SOCK_DGRAM is 2), Proto
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let cooked = sockets.lines().map(fields).filter(|fields| fields[2] == "2");
    Ok(cooked.map(|fields| fields[3].clone()).collect())
}

#[test]
fn icmp_errors_about_tunnels_are_read_while_there_are_tunnels_of_their_family() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let service = |way: Way, mode| {
        let backend = lab.webs[0].host.address(way.vip());
        Service::tcp("web", way.vip(), 80, mode, vec![backend])
    };
    let balancer = Balancer::start(&lab, &[service(Way::DsrV4, "dsr")])?;
    assert_eq!(packet_sockets(&balancer)?, [""; 0]);
    for (services, expected) in [
        (vec![service(Way::IpipV4, "ipip")], &["0800"][..]),
        (vec![service(Way::IpipV6, "ipip")], &["86dd"]),
        (vec![], &[]),
    ] {
        balancer.configure(&services)?;
        balancer.lbctl(&["config", "reload"])?;
        wait::until(Duration::from_secs(5), "the sockets are those of the tunnels", || {
            let sockets = packet_sockets(&balancer)?;
            ensure!(sockets == expected, "{sockets:?}, and not {expected:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_large_upload_fits_a_narrow_link_behind_the_balancer_over_ipv4() -> Result<()> {
    a_large_upload_fits_a_narrow_link_behind_the_balancer(Way::IpipV4)
}

#[test]
fn a_large_upload_fits_a_narrow_link_behind_the_balancer_over_ipv6() -> Result<()> {
    a_large_upload_fits_a_narrow_link_behind_the_balancer(Way::IpipV6)
}

#[test]
fn a_large_upload_fits_a_narrow_link_behind_the_balancer_of_ipv4_in_ipv6() -> Result<()> {
    a_large_upload_fits_a_narrow_link_behind_the_balancer(Way::IpipV4InV6)
}

/// Packets of a client that fill its link don't fit the tunnel: the balancer sends it a smaller MTU.
pub fn a_large_upload_fits_the_tunnel(options: &Options, way: Way) -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let (lab, balancer) = balanced(options, &[way], "")?;
    let big = nginx::big();
    for _ in 0..5 {
        let mut connection = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        let length = connection.post("/upload", &big)?.ok()?;
        assert_eq!(length.text(), big.len().to_string());
    }
    let mtu = learned(&lab.client, None, &way.vip().to_string())?;
    assert_eq!(mtu, Some((1500 - way.overhead()) as u64), "the MTU that the client received");
    assert!(balancer.status()?.dropped("too_big_replied") > 0);
    Ok(())
}

#[test]
fn a_large_upload_fits_the_tunnel_over_ipv4() -> Result<()> {
    a_large_upload_fits_the_tunnel(&Options::default(), Way::IpipV4)
}

#[test]
fn a_large_upload_fits_the_tunnel_over_ipv6() -> Result<()> {
    a_large_upload_fits_the_tunnel(&Options::default(), Way::IpipV6)
}

#[test]
fn a_large_upload_fits_the_tunnel_of_ipv4_in_ipv6() -> Result<()> {
    a_large_upload_fits_the_tunnel(&Options::default(), Way::IpipV4InV6)
}
