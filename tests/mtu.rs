//! Path MTU discovery through the balancer, in both directions, with large transfers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run, command,
    http::Connection,
    lab::{Host, Lab, Options},
    nginx,
    ways::{Way, balanced},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// MTU of the router's link to the client. No less: IPv6 has no smaller (RFC 8200, 5).
const NARROW: usize = 1300;

/// The MTU that a host has learned for the way to an address.
fn learned(host: &Host, from: Option<&str>, to: &str) -> Result<Option<u64>> {
    let mut ip = host.namespace.command("ip");
    ip.args(["-j", "route", "get", to]).args(from.iter().flat_map(|from| ["from", from]));
    let shown: serde_json::Value =
        serde_json::from_str(&command::run(&mut ip)?).context("ip -j")?;
    Ok(shown[0]["metrics"][0]["mtu"].as_u64())
}

/// Makes the router's way to the client narrow: what is too big is answered by the router with an
/// error to the VIP, which the balancer gets.
fn narrow(lab: &Lab) -> Result<()> {
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
        assert_eq!(mtu, Some(NARROW as u64), "what {} was told", web.host.name);
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

/// Packets of a client that fill its link don't fit the tunnel: the balancer tells it so.
fn a_large_upload_fits_the_tunnel(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[way], "")?;
    let big = nginx::big();
    for _ in 0..5 {
        let mut connection = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        let length = connection.post("/upload", &big)?.ok()?;
        assert_eq!(length.text(), big.len().to_string());
    }
    let mtu = learned(&lab.client, None, &way.vip().to_string())?;
    assert_eq!(mtu, Some((1500 - way.overhead()) as u64), "what the client was told");
    assert!(balancer.status()?.dropped("too_big_replied") > 0);
    Ok(())
}

#[test]
fn a_large_upload_fits_the_tunnel_over_ipv4() -> Result<()> {
    a_large_upload_fits_the_tunnel(Way::IpipV4)
}

#[test]
fn a_large_upload_fits_the_tunnel_over_ipv6() -> Result<()> {
    a_large_upload_fits_the_tunnel(Way::IpipV6)
}

#[test]
fn a_large_upload_fits_the_tunnel_of_ipv4_in_ipv6() -> Result<()> {
    a_large_upload_fits_the_tunnel(Way::IpipV4InV6)
}
