//! The source of silence: a port, a network, or a host.

use kit::http::Connection;
use lb_model::seen::Condition;

use super::*;

/// A check that detects silence soon.
const TCP: &str = "[service.check]\ntype = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"200ms\"\nrise = 2\nfall = 2";
/// Enough for a handshake.
const SHORT: Duration = Duration::from_millis(300);

/// Waits until the checks of a backend have failed so often as would move its flows if its host were silent, and then
/// returns the reason.
fn fails_on(balancer: &Balancer, way: Way, at: IpAddr) -> Result<String> {
    let failed = |backend: &Backend| backend.check.as_ref().map_or(0, |check| check.counts.failed);
    let before = failed(&wait_until_down(balancer, way, at, Condition::SoftDown)?);
    wait::until(SOON, "checks fail on", || {
        let now = backend(balancer, way, at)?;
        ensure!(now.condition == Condition::SoftDown && failed(&now) > before + 4, "{now:?}");
        now.check.and_then(|check| check.last).context("a reason")
    })
}

#[test]
fn a_port_that_answers_nothing_moves_no_flow() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let mut lab = Lab::new(&Options::default())?;
    // So that a full accept queue is a matter of two connections.
    let orphan = lab.orphan();
    let web = &mut lab.webs[1];
    web.host.namespace.sysctl(&[("core/somaxconn", "1")])?;
    web.nginx.kill()?;
    web.nginx.restart(&web.host.namespace, orphan)?;
    let balancer = Balancer::start(&lab, &[way.service(&lab).with(TCP)])?;
    for web in &lab.webs {
        wait_for(&balancer, way, way.backend(web), Condition::Up)?;
    }
    let (web, at) = (&lab.webs[1], way.backend(&lab.webs[1]));

    let plan = downloads::Plan {
        target: way.target(),
        each: 4,
        time: Duration::from_secs(10),
        patience: Duration::from_secs(20),
    };
    let downloads = Downloads::start(&lab, plan)?;
    web.nginx.freeze()?;
    let to = std::net::SocketAddr::new(at, way.target().port());
    let mut waiting = Vec::new();
    while let Ok(connection) = Connection::open(&lab.client.namespace, to, SHORT) {
        waiting.push(connection);
    }
    let (ping, rst) = ("icmp type echo-request", "alive (RST to a bare ACK)");
    web.host.namespace.keep_out(INTERFACE, &[ping])?;
    let reason = fails_on(&balancer, way, at)?;
    assert!(reason.contains(rst), "{reason}");
    drop(waiting);
    web.host.namespace.let_in()?;
    web.nginx.thaw()?;
    wait_for(&balancer, way, at, Condition::Up)?;

    let node = lab.balancer.address(at);
    let from_node = format!("ip saddr {node}");
    let dropped: [(&[&str], &str); 3] = [
        (&["tcp dport 80 tcp flags & (syn | ack) == syn", ping], rst),
        (&["tcp dport 80"], "alive (ping)"),
        (&[&from_node], "its address resolves"),
    ];
    for (packets, sign) in dropped {
        web.host.namespace.keep_out(INTERFACE, packets)?;
        let reason = fails_on(&balancer, way, at).with_context(|| packets.concat())?;
        assert!(reason.contains(sign), "{packets:?}: {reason}");
        web.host.namespace.let_in()?;
        wait_for(&balancer, way, at, Condition::Up)?;
    }
    none_broke(downloads)?;

    lab.cut(&web.host.name)?;
    wait_until_down(&balancer, way, at, Condition::HardDown).map(drop)
}

#[test]
fn flows_of_a_host_that_answers_nothing_move_and_those_of_an_outage_of_all_stay() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    // Slow enough for all hosts to fall silent before a first one is given up.
    let check = "[service.check]\ntype = \"tcp\"\ninterval = \"500ms\"\nrise = 2\nfall = 3";
    let (lab, balancer) = balanced(&Options::default(), &[way], check)?;
    let hosts: Vec<IpAddr> = lab.webs.iter().map(|web| way.backend(web)).collect();
    for at in &hosts {
        wait_for(&balancer, way, *at, Condition::Up)?;
    }
    let downloads = downloads(&lab, way)?;
    // Links and neighbours stay.
    let drop_ip = |web: &Web| web.host.namespace.keep_out(INTERFACE, &["meta protocol ip"]);
    lab.webs.iter().try_for_each(drop_ip)?;
    for at in &hosts {
        wait_until_down(&balancer, way, *at, Condition::SoftDown)?;
    }
    lab.webs.iter().try_for_each(|web| web.host.namespace.let_in())?;
    for at in &hosts {
        wait_for(&balancer, way, *at, Condition::Up)?;
    }
    none_broke(downloads)?;
    // A switch may answer for a host that is gone: then failing clients show it, too.
    let arrivals = clients(&lab, way)?;
    drop_ip(&lab.webs[1])?;
    wait_until_down(&balancer, way, hosts[1], Condition::HardDown)?;
    arrivals.finish().map(drop)
}
