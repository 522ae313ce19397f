//! Floods beside real connections, while a backend drains and the table of pins is full.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    flood::{self, Aim, Attacker, Kind},
    lab::{INTERFACE, Lab, Options, VIPS_V4},
    load::{Load, Plan},
    wait,
    ways::Way,
};

const WAY: Way = Way::DsrV4;
const UDP: u16 = 5_353;
/// So few that a second of a flood fills the table.
const PINS: u64 = 2_048;
const SOON: Duration = Duration::from_secs(10);
const PLAN: Plan =
    Plan { target: WAY.target(), steady: 40, passing: 0, pause: Duration::from_millis(50) };

/// A lab with an attacker, and the balancer at work on it.
fn site() -> Result<(Lab, Attacker, Balancer)> {
    let lab = Lab::new(&Options::default())?;
    let attacker = Attacker::new(&lab)?;
    let web = WAY.service(&lab);
    let udp = Service { name: "udp".into(), port: UDP, protocol: "udp", ..web.clone() };
    let limits = format!("\n[limits]\npins = {PINS}\n");
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

#[test]
fn nothing_pinned_is_lost_to_a_flood() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, attacker, balancer) = site()?;
    let client = &lab.client.namespace;
    let older = Load::start(client, PLAN)?;
    drain(&lab, &balancer, "web2")?;
    let younger = Load::start(client, PLAN)?;
    let pinned = || balancer.open_flows(lab.client.v4, "pin");
    // A connection's pin is there before it is answered.
    let before = pinned()?;
    ensure!(before.len() > PLAN.steady / 10, "{} of the flows are pinned", before.len());

    let aim = Aim {
        mac: flood::mac(&lab.balancer.namespace, INTERFACE)?,
        vip: VIPS_V4[0],
        tcp: WAY.target().port(),
        udp: UDP,
        client: lab.client.v4,
    };
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
        ensure!(status.pins.used > PINS * 9 / 10, "{} of {PINS} pins", status.pins.used);
        ensure!(status.dropped("fragment_without_first") > 1_000, "{:?}", status.dropped);
        let malformed = status.passed.get("malformed").map_or(0, |count| count.packets);
        ensure!(malformed > 1_000, "{:?}", status.passed);
        Ok(status)
    })?;
    assert_eq!(status.pins.capacity, PINS);

    // Flows that find no room for a pin are where they began, after another change as well.
    let late = Load::start(client, PLAN)?;
    drain(&lab, &balancer, "web3")?;
    late.run_for(Duration::from_secs(1));
    for (load, what) in [(older, "older"), (younger, "younger"), (late, "late")] {
        load.finish().check().with_context(|| format!("the {what} connections"))?;
    }
    Ok(())
}
