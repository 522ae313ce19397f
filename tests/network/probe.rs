//! Probes of checks between real hosts: through the VIP to real nginx, and where a network reports
//! an unreachable host.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use kit::{
    can_run, command,
    lab::{INTERFACE, Lab, Options},
    ways::Way,
};
use lb_health::{
    probe::{self, Failure, Outcome, Probe, Route, tls},
    vip,
};
use lb_model::{
    check::{Http, Kind, Udp},
    desired::{Mode, Protocol, ServiceKey},
    hop::NextHop,
    seen::BackendKey,
    settings::Tunnel,
};

/// Long enough for a host that answers, and for one that has gone.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The VIPs that the lab's hosts have on their loopback, which are reached by their MACs.
const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];

fn one_web() -> Result<Option<Lab>> {
    if !can_run() {
        return Ok(None);
    }
    Ok(Some(Lab::new(&Options { webs: 1, ..Options::default() })?))
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().with_context(|| text.to_owned())?;
    bytes.try_into().ok().with_context(|| text.to_owned())
}

/// The path of the balancer's frames to the web host.
fn path(lab: &Lab, way: Way) -> Result<vip::ProbePath> {
    let node = &lab.balancer.namespace;
    let link = node.ip(&format!("link show {INTERFACE}"))?;
    let ifindex = link.split(':').next().unwrap_or_default().trim().parse().context(link)?;
    let web = &lab.webs[0];
    let to = mac(&web.host.namespace.mac(INTERFACE)?)?;
    let ether_type: [u8; 2] = if way.vip().is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let l2 = [&to[..], &mac(&node.mac(INTERFACE)?)?, &ether_type].concat();
    let hop = NextHop { ifindex, interface: INTERFACE.into(), mac: to, l2, mtu: 1_500 };
    let (vip, backend) = (way.vip(), way.backend(web));
    Ok(vip::ProbePath { vip, backend, mode: Mode::Dsr, hop, tunnel: Tunnel::default() })
}

fn make_probe(kind: Kind, backend: IpAddr, vip: IpAddr, port: u16, route: Route) -> Probe {
    let service = ServiceKey::new(vip, 80, Protocol::Tcp);
    let target = BackendKey { service, backend: backend.into() };
    Probe { service: "web".into(), target, kind, port, route, timeout: TIMEOUT }
}

/// Sends probes from the balancer's namespace.
fn send_probe(lab: &Lab, probe: &Probe) -> Result<Outcome> {
    let started = Instant::now();
    let outcome = lab.balancer.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let network = vip::Network::new();
            network.set_vips(WAYS.map(Way::vip).into());
            anyhow::Ok(probe::run(probe, &network, &tls::Cache::new()).await)
        })
    })??;
    // A loaded machine may stop this process for a while; an error takes for ever.
    assert!(started.elapsed() < TIMEOUT + Duration::from_secs(5), "{:?}", started.elapsed());
    Ok(outcome)
}

fn probe_vip(lab: &Lab, way: Way, kind: Kind, port: u16) -> Result<Outcome> {
    let path = path(lab, way)?;
    send_probe(lab, &make_probe(kind, path.backend, path.vip, port, Route::Vip(path.clone())))
}

fn kinds() -> [Kind; 2] {
    let http = Http { path: "/health".into(), body: Some("ok web1".into()), ..Http::default() };
    [Kind::Tcp, Kind::Http(http)]
}

fn failure(outcome: Outcome, expected: Failure) -> Result<String> {
    match outcome {
        Outcome::Failed { how, reason } if how == expected => Ok(reason),
        other => bail!("{other:?}"),
    }
}

#[test]
fn nginx_is_asked_through_the_vip_and_at_its_own_address() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    for way in WAYS {
        for kind in kinds() {
            assert_eq!(probe_vip(&lab, way, kind.clone(), 80)?, Outcome::Up, "{way:?} {kind:?}");
            let at = way.backend(&lab.webs[0]);
            let own = make_probe(kind.clone(), at, way.vip(), 80, Route::Backend);
            assert_eq!(send_probe(&lab, &own)?, Outcome::Up, "{way:?} {kind:?}");
        }
    }
    let wrong = Http { status: vec![204..=204], ..Http::default() };
    let outcome = probe_vip(&lab, Way::DsrV4, Kind::Http(wrong), 80)?;
    assert_eq!(failure(outcome, Failure::Wrong)?, "status 200 OK");
    Ok(())
}

#[test]
fn a_vip_that_is_missing_on_the_loopback_is_named() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    for way in WAYS {
        let (vip, at) = (way.vip(), way.backend(&lab.webs[0]));
        let length = if vip.is_ipv4() { 32 } else { 128 };
        lab.webs[0].host.namespace.ip(&format!("addr del {vip}/{length} dev lo"))?;
        for kind in kinds() {
            let reason = failure(probe_vip(&lab, way, kind, 80)?, Failure::Wrong)?;
            assert_eq!(
                reason,
                format!(
                    "does not answer for {vip}, though it answers at {at}: is the VIP on its loopback?"
                )
            );
        }
    }
    Ok(())
}

#[test]
fn a_port_that_nobody_listens_on_refuses_through_the_vip() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    for way in WAYS {
        for kind in [Kind::Tcp, Kind::Http(Http::default())] {
            assert_eq!(
                failure(probe_vip(&lab, way, kind, 9)?, Failure::Refusal)?,
                "connection refused"
            );
        }
        let datagram = Kind::Udp(Udp { send: b"x".into(), expect: Vec::new() });
        assert_eq!(
            failure(probe_vip(&lab, way, datagram, 9)?, Failure::Refusal)?,
            "port unreachable"
        );
    }
    Ok(())
}

#[test]
fn a_host_that_is_cut_off_is_silent_for_the_vip_as_at_its_own_address() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    let way = Way::DsrV4;
    assert_eq!(probe_vip(&lab, way, Kind::Tcp, 80)?, Outcome::Up);
    let path = path(&lab, way)?;
    lab.cut(&lab.webs[0].host.name)?;
    let probe = make_probe(Kind::Tcp, path.backend, path.vip, 80, Route::Vip(path.clone()));
    let reason = failure(send_probe(&lab, &probe)?, Failure::Silence)?;
    assert_eq!(
        reason,
        format!("no answer within 2s, for {} as at {} itself", path.vip, path.backend)
    );
    Ok(())
}

#[test]
fn a_host_that_drops_the_packets_of_a_port_is_alive_by_whatever_else_it_answers() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    let web = &lab.webs[0].host.namespace;
    let pings = ["icmp type echo-request", "icmpv6 type echo-request"];
    let syns = "tcp flags & (syn | ack) == syn";
    let everything = ["meta l4proto { tcp, udp }", pings[0], pings[1]];
    let dropped: [(&[&str], Failure, &str); 3] = [
        (&[syns, pings[0], pings[1]], Failure::Wrong, "its host is alive (RST to a bare ACK)"),
        (&[everything[0]], Failure::Wrong, "its host is alive (ping)"),
        (&everything, Failure::Resolves, "its address resolves"),
    ];
    for (packets, how, sign) in dropped {
        web.keep_out(INTERFACE, packets)?;
        for way in WAYS {
            let path = path(&lab, way)?;
            for route in [Route::Vip(path.clone()), Route::Backend] {
                let mut probe = make_probe(Kind::Tcp, path.backend, path.vip, 80, route);
                probe.timeout = Duration::from_millis(600);
                let reason = failure(send_probe(&lab, &probe)?, how)?;
                assert!(reason.ends_with(sign), "{packets:?}: {reason}");
            }
        }
        web.let_in()?;
    }
    Ok(())
}

#[test]
fn a_port_that_the_hosts_firewall_rejects_is_an_answer() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    let web = &lab.webs[0].host.namespace;
    for rule in [
        "add table inet firewall",
        "add chain inet firewall in { type filter hook input priority 0; }",
        "add rule inet firewall in tcp dport 80 reject with icmpx type admin-prohibited",
    ] {
        command::run(web.command("nft").arg(rule))?;
    }
    for way in WAYS {
        let path = path(&lab, way)?;
        let refused = failure(probe_vip(&lab, way, Kind::Tcp, 80)?, Failure::Refusal)?;
        assert_eq!(refused, "connection refused");
        // The kernel has the same error for IPv4 as for a host without an ARP reply.
        let own = make_probe(Kind::Tcp, path.backend, path.vip, 80, Route::Backend);
        let reason = failure(send_probe(&lab, &own)?, Failure::Wrong)?;
        let output = ["its host is alive", "administratively prohibited"];
        assert!(output.iter().any(|words| reason.contains(words)), "{reason}");
    }
    Ok(())
}

#[test]
fn what_the_network_says_is_told_from_what_this_node_lacks() -> Result<()> {
    let Some(lab) = one_web()? else { return Ok(()) };
    let vip = Way::DsrV4.vip();
    let (unreachable, no_route) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1));
    let node = &lab.balancer.namespace;
    node.ip(&format!("route add unreachable {unreachable}/32"))?;
    node.ip(&format!("route add throw {no_route}/32"))?;
    for kind in [Kind::Tcp, Kind::Http(Http::default()), Kind::Udp(Udp::default())] {
        let probe = make_probe(kind.clone(), unreachable.into(), vip, 80, Route::Backend);
        assert_eq!(
            failure(send_probe(&lab, &probe)?, Failure::Silence)?,
            "host unreachable",
            "{kind:?}"
        );
        let probe = make_probe(kind.clone(), no_route.into(), vip, 80, Route::Backend);
        let reason = String::from("network is unreachable");
        assert_eq!(send_probe(&lab, &probe)?, Outcome::Unknown { reason }, "{kind:?}");
    }
    Ok(())
}
