//! The balancer between real hosts: HTTP over three nginx in every mode, and everything that is not
//! for a service.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Balancer,
    can_run, command,
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::{Way, balanced},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// The hosts that answer these requests, with counts, each on a connection of its own.
fn spread(lab: &Lab, target: SocketAddr, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for n in 0..requests {
        let page = Connection::open(&lab.client.namespace, target, PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n} to {target}"))?;
        *answers.entry(page.text()).or_default() += 1;
    }
    Ok(answers)
}

fn http_reaches_all_web_hosts(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[way], "")?;
    let answers = spread(&lab, way.target(), 150)?;
    assert_eq!(answers.len(), 3, "every host answers: {answers:?}");
    for (host, count) in &answers {
        // A fair third is 50; 20 is more than five standard deviations away.
        assert!(*count > 20, "{host} answered {count} of 150: {answers:?}");
    }
    let status = balancer.status()?;
    assert!(status.interfaces.iter().all(|interface| interface.mode == "native"));
    let service = status.service(way.name())?;
    for web in &lab.webs {
        let backend = service.backend(way.backend(web))?;
        let answered = answers[&web.host.name] as u64;
        assert_eq!(backend.new_flows, answered, "one SYN for each connection to {}", web.host.name);
        assert!(backend.sent.packets >= 4 * answered, "SYN, ACK, request, FIN");
    }
    Ok(())
}

#[test]
fn http_by_dsr_over_ipv4() -> Result<()> {
    http_reaches_all_web_hosts(Way::DsrV4)
}

#[test]
fn http_by_dsr_over_ipv6() -> Result<()> {
    http_reaches_all_web_hosts(Way::DsrV6)
}

#[test]
fn http_by_ipip_over_ipv4() -> Result<()> {
    http_reaches_all_web_hosts(Way::IpipV4)
}

#[test]
fn http_by_ipip_over_ipv6() -> Result<()> {
    http_reaches_all_web_hosts(Way::IpipV6)
}

#[test]
fn http_by_ipip_of_ipv4_in_ipv6() -> Result<()> {
    http_reaches_all_web_hosts(Way::IpipV4InV6)
}

/// Echoes every connection, as long as the test runs.
fn echo(lab: &Lab, address: SocketAddr) -> Result<()> {
    let listener = lab.balancer.namespace.enter(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("listen on {address}"))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 5];
    stream.write_all(b"hello").context("write")?;
    stream.read_exact(&mut answer).context("read")?;
    ensure!(&answer == b"hello", "got {answer:?}");
    Ok(())
}

#[test]
fn connections_to_the_balancer_itself_live_on() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6];
    let lab = Lab::new(&Options::default())?;
    // Its own address, and another port of the VIP.
    let targets: [SocketAddr; 4] = [
        (lab.balancer.v4, 22).into(),
        (lab.balancer.v6, 22).into(),
        (Way::DsrV4.vip(), 2222).into(),
        (Way::DsrV6.vip(), 2222).into(),
    ];
    let mut open = Vec::new();
    for target in targets {
        echo(&lab, target)?;
        let stream = lab.client.namespace.enter(|| TcpStream::connect(target))?;
        let mut stream = stream.with_context(|| format!("connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE)).context("read timeout")?;
        exchange(&mut stream)?;
        open.push(stream);
    }
    let services: Vec<_> = ways.iter().map(|way| way.service(&lab)).collect();
    let balancer = Balancer::start(&lab, &services)?;
    for (stream, target) in open.iter_mut().zip(targets) {
        exchange(stream).with_context(|| format!("{target}, opened before the program came"))?;
        let fresh = lab.client.namespace.enter(|| TcpStream::connect(target))?;
        exchange(&mut fresh.with_context(|| format!("connect to {target}"))?)?;
    }
    for address in [lab.balancer.v4.into(), lab.balancer.v6.into(), ways[0].vip(), ways[1].vip()] {
        ping(&lab, address)?;
    }
    // The balancer as a client: answers to it are for no service.
    let own = SocketAddr::new(lab.webs[0].host.v4.into(), 80);
    let page = Connection::open(&lab.balancer.namespace, own, PATIENCE)?.get("/")?.ok()?;
    assert_eq!(page.text(), "web1");
    spread(&lab, ways[0].target(), 3)?;
    let status = balancer.status()?;
    assert!(status.passed["not_a_service"].packets > 0);
    assert_eq!(status.dropped.values().map(|count| count.packets).sum::<u64>(), 0);
    Ok(())
}

fn ping(lab: &Lab, address: IpAddr) -> Result<()> {
    let mut ping = lab.client.namespace.command("ping");
    command::run(ping.args(["-c", "3", "-i", "0.2", "-W", "2", &address.to_string()])).map(drop)
}

#[test]
fn a_service_without_usable_backends_drops_and_counts() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[Way::DsrV4, Way::DsrV6], "")?;
    let way = Way::DsrV4;
    for web in &lab.webs {
        let address = way.backend(web).to_string();
        balancer.lbctl(&["backend", "disable", way.name(), &address, "--yes"])?;
    }
    let patience = Duration::from_millis(500);
    let refused = Connection::open(&lab.client.namespace, way.target(), patience);
    assert!(refused.is_err(), "nobody is there to answer");
    let status = balancer.status()?;
    assert!(status.dropped("no_backend") > 0, "{:?}", status.dropped);
    // The other service has all of its own.
    assert_eq!(spread(&lab, Way::DsrV6.target(), 60)?.len(), 3);
    let address = way.backend(&lab.webs[1]).to_string();
    balancer.lbctl(&["backend", "enable", way.name(), &address])?;
    assert_eq!(spread(&lab, way.target(), 10)?, BTreeMap::from([("web2".to_owned(), 10)]));
    Ok(())
}

#[test]
fn a_backend_that_changes_its_mac_address_is_followed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6];
    let (lab, balancer) = balanced(&Options::default(), &ways, "")?;
    let web = &lab.webs[0].host;
    // As a host does that is well set up: it announces its new address.
    web.namespace
        .sysctl(&[("ipv4/conf/eth0/arp_notify", "1"), ("ipv6/conf/eth0/ndisc_notify", "1")])?;
    let (old, new) = (web.namespace.mac(INTERFACE)?, "02:00:00:00:00:77");
    web.namespace.ip(&format!("link set {INTERFACE} address {new}"))?;
    for way in ways {
        wait::until(Duration::from_secs(40), "the new address is known", || {
            let status = balancer.status()?;
            let backend = status.service(way.name())?.backend(way.backend(&lab.webs[0]))?;
            match backend.mac.as_deref() {
                Some(mac) if mac == new => Ok(()),
                mac => bail!("{way:?}: {mac:?}, was {old}"),
            }
        })?;
        assert_eq!(spread(&lab, way.target(), 60)?.len(), 3, "{way:?}");
    }
    Ok(())
}
