//! Floods beside real connections, while a backend drains and the table of pins is full.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    arrivals::{self, Arrival, Arrivals},
    balancer::{Balancer, Service},
    can_run,
    flood::{self, Aim, Attacker, Kind},
    lab::{INTERFACE, Lab, Options, VIPS_V4},
    load::{Load, Plan},
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};

const WAY: Way = Way::DsrV4;
const UDP: u16 = 5_353;
/// So few that a second of a flood fills the table.
const PINS: u64 = 2_048;
/// The entries that a flood of [`SYNS`] fills in seconds, if each pin that it makes is kept.
const ROOM: u64 = 32_768;
/// SYNs in a second; a third of them comes to a backend of three.
const SYNS: u32 = 20_000;
/// As long as a flood of handshakes may take until the last slot gives way, and half as long again.
const FLOOD: Duration = Duration::from_secs(90);
const CHECK: &str = "[service.check]\ntype = \"tcp\"\ninterval = \"200ms\"\nrise = 1\nfall = 2";
const SOON: Duration = Duration::from_secs(10);
const PLAN: Plan =
    Plan { target: WAY.target(), steady: 40, passing: 0, pause: Duration::from_millis(50) };

/// A lab with an attacker, and the balancer at work on it, with room for so many pins.
fn testbed(pins: u64) -> Result<(Lab, Attacker, Balancer)> {
    let lab = Lab::new(&Options::default())?;
    let attacker = Attacker::new(&lab)?;
    let web = WAY.service(&lab);
    let udp = Service { name: "udp".into(), port: UDP, protocol: "udp", ..web.clone() };
    let web = web.with(CHECK);
    let limits = format!("\n[limits]\npins = {pins}\n");
    let services = [web, udp.with("udp = \"tracked\"")];
    let mut balancer = Balancer::on(&lab, &lab.balancer, &services, &limits)?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok((lab, attacker, balancer))
}

fn drain(lab: &Lab, balancer: &Balancer, host: &str) -> Result<()> {
    let backend = WAY.backend(lab.web(host)?).to_string();
    balancer.lbctl(&["backend", "drain", WAY.name(), &backend]).map(drop)
}

/// Ends web2's nginx, and waits until the balancer knows that it refuses.
fn stop_web2(lab: &mut Lab, balancer: &Balancer) -> Result<()> {
    lab.webs[1].nginx.stop()?;
    let at = WAY.backend(&lab.webs[1]);
    wait::until(SOON, "web2 refuses", || {
        let status = balancer.status()?;
        let backend = status.service(WAY.name())?.backend(at)?.clone();
        ensure!(!backend.is_up() && backend.slots == 0, "{backend:?}");
        Ok(())
    })
}

/// New clients for a while, who don't wait until a SYN that was dropped is sent again, which is after a second.
fn clients(lab: &Lab, time: Duration) -> Result<Vec<Arrival>> {
    let plan = arrivals::Plan {
        target: WAY.target(),
        every: Duration::from_millis(20),
        limit: Duration::from_millis(900),
    };
    let arrivals = Arrivals::start(&lab.client.namespace, plan)?;
    sleep(time);
    arrivals.finish()
}

/// The target of the flood.
fn aim(lab: &Lab) -> Result<Aim> {
    Ok(Aim {
        mac: flood::mac(&lab.balancer.namespace, INTERFACE)?,
        vip: VIPS_V4[0],
        tcp: WAY.target().port(),
        udp: UDP,
        client: lab.client.v4,
    })
}

#[test]
fn nothing_pinned_is_lost_to_a_flood() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, attacker, balancer) = testbed(PINS)?;
    let client = &lab.client.namespace;
    let older = Load::start(client, PLAN)?;
    drain(&lab, &balancer, "web2")?;
    let younger = Load::start(client, PLAN)?;
    let pinned = || balancer.open_flows(lab.client.v4, "pin");
    // A connection's pin is there before it is answered.
    let before = pinned()?;
    ensure!(before.len() > PLAN.steady / 10, "{} of the flows are pinned", before.len());

    let aim = aim(&lab)?;
    // Those that a flood has pinned end soon, so it goes on until the end.
    let time = Duration::from_secs(60);
    let fills = flood::Plan { kind: Kind::SynNew, aim, per_second: 10_000, time };
    let fills = attacker.flood(fills)?;
    wait::until(SOON, "the table is full", || {
        let pins = balancer.status()?.pins;
        ensure!(pins.used > PINS / 2, "{} of {PINS} pins", pins.used);
        Ok(())
    })?;
    for kind in Kind::ALL {
        let time = Duration::from_secs(1);
        let sent = attacker.flood(flood::Plan { kind, aim, per_second: 20_000, time })?.finish()?;
        ensure!(sent.frames > 5_000, "{kind:?}: this machine sent {} frames", sent.frames);
        let lost: Vec<_> = before.difference(&pinned()?).cloned().collect();
        assert!(lost.is_empty(), "{kind:?} cost {lost:?} of {} pins", before.len());
        for load in [&older, &younger] {
            load.report().check().with_context(|| format!("{kind:?}"))?;
        }
    }
    let status = wait::until(SOON, "the floods are counted", || {
        let status = balancer.status()?;
        ensure!(status.pins.used > PINS / 2, "{} of {PINS} pins", status.pins.used);
        ensure!(status.dropped("fragment_without_first") > 1_000, "{:?}", status.dropped);
        let malformed = status.passed.get("malformed").map_or(0, |count| count.packets);
        ensure!(malformed > 1_000, "{:?}", status.passed);
        Ok(status)
    })?;
    assert_eq!(status.pins.capacity, PINS);

    // Flows that find no room for a pin are where they began, after another change as well.
    let mut late = Vec::new();
    wait::until(SOON, "none of a load's flows finds room", || {
        let before = pinned()?.len();
        late.push(Load::start(client, PLAN)?);
        let found = pinned()?.len() - before;
        ensure!(found == 0, "{found} of them do");
        Ok(())
    })?;
    drain(&lab, &balancer, "web3")?;
    sleep(Duration::from_secs(1));
    let late = late.into_iter().map(|load| (load, "late"));
    for (load, what) in [(older, "older"), (younger, "younger")].into_iter().chain(late) {
        load.finish().check().with_context(|| format!("the {what} connections"))?;
    }
    drop(fills);
    Ok(())
}

#[test]
fn new_flows_in_place_of_a_backend_that_refuses_find_room_beside_a_flood_of_syns() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (mut lab, attacker, balancer) = testbed(ROOM)?;
    let aim = aim(&lab)?;
    stop_web2(&mut lab, &balancer)?;
    let time = Duration::from_secs(14);
    let plan = flood::Plan { kind: Kind::SynNew, aim, per_second: SYNS, time };
    let flood = attacker.flood(plan)?;
    // By then it has sent more than there is room for.
    sleep(time / 2);
    let arrivals = clients(&lab, time * 2 / 5)?;
    let sent = flood.finish()?;
    let status = balancer.status()?;
    let seen = (sent, &status.pins, &status.dropped);
    ensure!(sent.frames / 3 > ROOM * 2, "this machine sent too little: {seen:?}");
    let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
    ensure!(failed.is_empty(), "{} of {}: {failed:?}; {seen:?}", failed.len(), arrivals.len());
    ensure!(arrivals.len() > 200, "{} clients came", arrivals.len());
    ensure!(status.dropped("unpinnable") == 0, "{seen:?}");
    Ok(())
}

#[test]
fn new_flows_in_place_of_a_backend_that_refuses_are_served_again_beside_a_flood_of_handshakes()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (mut lab, attacker, balancer) = testbed(PINS)?;
    let aim = aim(&lab)?;
    stop_web2(&mut lab, &balancer)?;
    let plan = flood::Plan { kind: Kind::Handshakes, aim, per_second: 6_000, time: FLOOD };
    let flood = attacker.flood(plan)?;
    wait::until(SOON, "the table is full", || {
        let status = balancer.status()?;
        ensure!(status.dropped("unpinnable") > 100, "{:?}, {:?}", status.pins, status.dropped);
        Ok(())
    })?;
    let failures = |time: Duration| -> Result<(usize, usize)> {
        let arrivals = clients(&lab, time)?;
        let failed = arrivals.iter().filter(|arrival| arrival.end.is_err()).count();
        Ok((failed, arrivals.len()))
    };
    // Those whose slots are web2's wait for another SYN.
    let before = failures(Duration::from_secs(3))?;
    ensure!(before.0 * 5 > before.1, "the flood leaves room: {before:?}");
    let (mut after, mut log) = ((0, 0), String::new());
    wait::until(FLOOD, "clients are served again", || {
        after = failures(Duration::from_secs(3))?;
        log = balancer.log();
        ensure!(after.0 * 20 < after.1, "{after:?} after {before:?}");
        Ok(())
    })?;
    let status = balancer.status()?;
    ensure!(status.pins.used > PINS * 9 / 10, "the table is full all the while: {:?}", status.pins);
    ensure!(log.contains("new flows find no room for a pin"), "{log}");
    drop(flood);
    Ok(())
}
