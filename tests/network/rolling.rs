//! Changes of every backend while hundreds of real TCP connections run through nginx: none breaks.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::{Lab, Options},
    load::{Load, Plan},
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::{Way, balanced},
};
use lb_api::status::Service;

/// How long a silent flow is kept. The load's pauses are much shorter, the tests' waits longer.
const IDLE: Duration = Duration::from_secs(3);
/// How long no packet comes when a drain is over by estimate, in [`LASTING`].
const QUIET: Duration = Duration::from_secs(20);
const SETTINGS: &str = "idle_timeout = \"3s\"";
const LASTING: &str = "idle_timeout = \"900s\"\ndrain_silence = \"20s\"";

fn plan(way: Way) -> Plan {
    Plan { target: way.target(), steady: 250, passing: 50, pause: Duration::from_millis(200) }
}

fn service(balancer: &Balancer, way: Way) -> Result<Service> {
    Ok(balancer.status()?.service(way.name())?.clone())
}

fn no_connection_breaks_while_every_backend_is_changed(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[way], SETTINGS)?;
    let load = Load::start(&lab.client.namespace, plan(way))?;
    let beat = Duration::from_millis(700);
    for web in &lab.webs {
        let backend = way.backend(web);
        let address = backend.to_string();
        let change = |what: &[&str]| -> Result<()> {
            balancer.lbctl(&[&["backend", what[0], way.name(), &address], &what[1..]].concat())?;
            load.run_for(beat);
            load.report().check().with_context(|| format!("{what:?} of {address}"))
        };

        change(&["drain"])?;
        let before = service(&balancer, way)?.backend(backend)?.new_flows;
        load.run_for(beat);
        let drained = service(&balancer, way)?;
        assert_eq!(drained.backend(backend)?.slots, 0, "no slot gives it new flows");
        assert_eq!(drained.backend(backend)?.new_flows, before, "it gets no new flow");
        assert!(drained.backend(backend)?.base_slots > 0, "it keeps the flows that it has");
        assert!(drained.slots_in_flux > 0);

        change(&["enable"])?;
        change(&["weight", "5"])?;
        change(&["weight", "1"])?;
        change(&["disable"])?;
        change(&["enable"])?;
        // Removed with flows on it, it stays until they end; added again, it takes new ones.
        change(&["remove"])?;
        change(&["add"])?;
        assert!(service(&balancer, way)?.backend(backend)?.slots > 0, "it takes new flows again");
    }
    // All at once, and longer than idle flows live.
    for web in &lab.webs[1..] {
        balancer.lbctl(&["backend", "drain", way.name(), &way.backend(web).to_string()])?;
    }
    load.run_for(IDLE * 2);
    let busy = service(&balancer, way)?;
    assert!(busy.slots_in_flux > 0, "flows of drained backends live on");

    let report = load.finish();
    report.check()?;
    assert_eq!(report.by_backend.len(), 3, "{:?}", report.by_backend);
    // When the flows have ended, so has all state.
    wait::until(IDLE * 4, "the rings are steady again", || {
        let status = balancer.status()?;
        let service = status.service(way.name())?;
        ensure!(service.slots_in_flux == 0, "{} slots in flux", service.slots_in_flux);
        ensure!(status.pins.used == 0, "{} pins", status.pins.used);
        Ok(())
    })
}

#[test]
fn no_connection_breaks_while_every_backend_is_changed_by_dsr_over_ipv4() -> Result<()> {
    no_connection_breaks_while_every_backend_is_changed(Way::DsrV4)
}

#[test]
fn no_connection_breaks_while_every_backend_is_changed_by_dsr_over_ipv6() -> Result<()> {
    no_connection_breaks_while_every_backend_is_changed(Way::DsrV6)
}

#[test]
fn no_connection_breaks_while_every_backend_is_changed_by_ipip_over_ipv4() -> Result<()> {
    no_connection_breaks_while_every_backend_is_changed(Way::IpipV4)
}

#[test]
fn no_connection_breaks_while_every_backend_is_changed_by_ipip_over_ipv6() -> Result<()> {
    no_connection_breaks_while_every_backend_is_changed(Way::IpipV6)
}

#[test]
fn drain_wait_returns_when_no_flow_is_left_and_not_before() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], SETTINGS)?;
    let load = Load::start(&lab.client.namespace, Plan { passing: 0, ..plan(way) })?;
    ensure!(load.report().by_backend.contains_key("web1"), "{:?}", load.report());
    let backend = way.backend(&lab.webs[0]);
    let mut drain = balancer.lbctl_command();
    drain.args(["backend", "drain", way.name(), &backend.to_string(), "--wait"]);
    let mut drain = drain.stdout(Stdio::null()).spawn().context("lbctl")?;
    let early = Instant::now() + IDLE * 3;
    while Instant::now() < early {
        if let Some(status) = drain.try_wait()? {
            bail!("it returned ({status}) while connections were on the backend");
        }
        thread::sleep(Duration::from_millis(100));
    }
    load.finish().check()?;
    let ended = Instant::now();
    let status = wait::until(IDLE * 4, "drain --wait returns", || {
        drain.try_wait()?.context("it still waits")
    })?;
    assert!(status.success(), "{status}");
    let took = ended.elapsed();
    assert!(took + Duration::from_secs(1) >= IDLE, "a flow may still have been there: {took:?}");
    let service = service(&balancer, way)?;
    let drained = service.backend(backend)?;
    assert_eq!((drained.slots, drained.base_slots, drained.pins), (0, 0, 0));
    Ok(())
}

#[test]
fn a_drain_ends_by_estimate_soon_after_its_connections_and_moves_none() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], LASTING)?;
    let (first, third) = (&lab.webs[0], way.backend(&lab.webs[2]));
    // It is older than any change, so it has no pin.
    let mut silent = connection_to(&lab, way, &first.host.name)?;
    // In slots in flux, flows are pinned.
    balancer.lbctl(&["backend", "drain", way.name(), &third.to_string()])?;
    let small = Plan { steady: 60, passing: 10, ..plan(way) };
    let load = Load::start(&lab.client.namespace, small)?;
    ensure!(load.report().by_backend.contains_key("web1"), "{:?}", load.report());
    let backend = way.backend(first);
    let mut drain = balancer.lbctl_command();
    drain.args(["backend", "drain", way.name(), &backend.to_string(), "--wait"]);
    let drain = drain.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut drain = drain.spawn().context("lbctl")?;
    let early = Instant::now() + QUIET + IDLE;
    while Instant::now() < early {
        if let Some(status) = drain.try_wait()? {
            bail!("it returned ({status}) while connections on the backend sent");
        }
        thread::sleep(Duration::from_millis(100));
    }
    load.finish().check()?;
    let ended = Instant::now();
    wait::until(QUIET + IDLE * 4, "drain --wait returns", || {
        drain.try_wait()?.context("it still waits")
    })?;
    let took = ended.elapsed();
    let output = drain.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("estimated: safe to stop unless a client is silent"), "{text}");
    assert!(took + Duration::from_secs(2) >= QUIET, "packets came until {took:?} before");
    // Finished connections don't count as live, and silent flows are where they were.
    let drained = service(&balancer, way)?.backend(backend)?.clone();
    assert!(drained.base_slots > 0 && drained.pins_closing > 0, "{drained:?}");
    assert_eq!(drained.pins, drained.pins_closing, "{drained:?}");
    assert_eq!(silent.get("/")?.backend()?, first.host.name);
    // The certain end is far.
    let output = balancer.lbctl_output(&[
        "backend",
        "drain",
        way.name(),
        &backend.to_string(),
        "--wait",
        "--until",
        "proven",
        "--timeout",
        "2s",
    ])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    Ok(())
}

/// A connection on which a backend has answered.
fn connection_to(lab: &Lab, way: Way, name: &str) -> Result<Connection> {
    loop {
        let mut open = Connection::open(&lab.client.namespace, way.target(), IDLE * 5)?;
        if open.get("/")?.backend()? == name {
            return Ok(open);
        }
    }
}

#[test]
fn a_drain_does_not_end_by_estimate_while_a_pinned_connection_is_open() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let silence = Duration::from_secs(5);
    let settings = "idle_timeout = \"900s\"\ndrain_silence = \"5s\"";
    let (lab, balancer) = balanced(&Options::default(), &[way], settings)?;
    let (first, third) = (&lab.webs[0], way.backend(&lab.webs[2]));
    let backend = way.backend(first);
    balancer.lbctl(&["backend", "drain", way.name(), &third.to_string()])?;
    let open_pins = || {
        let one = service(&balancer, way)?.backend(backend)?.clone();
        anyhow::Ok(one.pins - one.pins_closing)
    };
    // A third of them is in slots in flux, and pinned.
    let connections = (0..30).map(|_| connection_to(&lab, way, &first.host.name));
    let mut connections = connections.collect::<Result<Vec<_>>>()?;
    wait::until_true(IDLE * 2, "one is pinned", || Ok(open_pins()? > 0))?;
    let mut drain = balancer.lbctl_command();
    drain.args(["backend", "drain", way.name(), &backend.to_string(), "--wait"]);
    let drain = drain.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut drain = drain.spawn().context("lbctl")?;
    let silent_since = Instant::now();
    let early = silent_since + silence * 2;
    while Instant::now() < early {
        if let Some(status) = drain.try_wait()? {
            bail!("it returned ({status}) while a pinned connection was open");
        }
        thread::sleep(Duration::from_millis(100));
    }
    for open in &mut connections {
        assert_eq!(open.get("/")?.backend()?, first.host.name);
    }
    // Those without a pin have been silent for so long and go on, so twice that is waited for.
    let silent = silent_since.elapsed();
    drop(connections);
    let closed = Instant::now();
    wait::until(silent * 2 + IDLE * 4, "drain --wait returns", || {
        drain.try_wait()?.context("it still waits")
    })?;
    let took = closed.elapsed() + Duration::from_secs(4);
    assert!(took >= silence * 4, "{took:?} after a silence of {silent:?}");
    let output = drain.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("pinned flows are open, though silent"), "{text}");
    assert!(text.contains("estimated: safe to stop unless a client is silent"), "{text}");
    Ok(())
}

#[test]
fn a_removed_backend_is_gone_when_its_flows_have_ended() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], SETTINGS)?;
    let load = Load::start(&lab.client.namespace, Plan { passing: 0, ..plan(way) })?;
    let backend = way.backend(&lab.webs[2]);
    balancer.lbctl(&["backend", "remove", way.name(), &backend.to_string()])?;
    load.run_for(IDLE * 2);
    let removing = service(&balancer, way)?;
    assert!(removing.backend(backend)?.base_slots > 0, "it serves the flows that it has");
    load.finish().check()?;
    wait::until_true(IDLE * 4, "the backend is gone", || {
        Ok(!service(&balancer, way)?.backends.contains_key(&backend.into()))
    })
}
