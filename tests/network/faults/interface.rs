//! The balancer's own interface: down, gone, stripped of the program.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run, command,
    lab::{INTERFACE, Lab, Options},
    status::{BackendExt as _, StatusExt as _},
    wait,
    ways::balanced,
    xdp,
};
use lb_netlink::query;

use super::{
    AT_ONCE, CHECK, SOON, WAY, ask, backend, clients, events, load, none_failed, run_for,
    wait_all_serve, wait_answered, wait_for,
};

/// Checks that no backend is, or was, taken for down because of the interface.
fn nobody_is_blamed(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let held = events(balancer, "backend_held")?;
    ensure!(held.is_empty(), "{held:?}");
    for web in &lab.webs {
        let backend = backend(balancer, WAY, WAY.backend(web))?;
        let went_down = backend.check.as_ref().context("it is checked")?.went_down;
        ensure!(went_down == 0, "a check has failed: {backend:?}\n{}", balancer.log());
    }
    Ok(())
}

/// The changes `down` and `up` of the link, again and again, break no connection and no backend.
fn link_that_flaps_breaks_nothing(
    down: impl Fn(&Lab) -> Result<()>,
    up: impl Fn(&Lab) -> Result<()>,
) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let load = load(&lab)?;
    // Oftener than a backend may go down before it is held for it.
    for _ in 0..5 {
        down(&lab)?;
        let at = WAY.backend(&lab.webs[0]);
        wait_for(&balancer, WAY, at, "can't be reached", |backend| backend.unusable.is_some())?;
        run_for(Duration::from_millis(300));
        up(&lab)?;
        wait_all_serve(&lab, &balancer, WAY)?;
    }
    wait_answered(&lab, WAY)?;
    nobody_is_blamed(&lab, &balancer)?;
    load.finish().check()
}

#[test]
fn interface_that_goes_down_and_up_breaks_no_connection_and_costs_no_backend() -> Result<()> {
    let set = |lab: &Lab, state: &str| {
        lab.balancer.namespace.ip(&format!("link set {INTERFACE} {state}")).map(drop)
    };
    link_that_flaps_breaks_nothing(|lab| set(lab, "down"), |lab| set(lab, "up"))
}

#[test]
fn cable_that_is_pulled_and_plugged_breaks_no_connection_and_costs_no_backend() -> Result<()> {
    link_that_flaps_breaks_nothing(
        |lab| lab.cut(&lab.balancer.name),
        |lab| lab.mend(&lab.balancer.name),
    )
}

#[test]
fn network_that_goes_silent_again_and_again_leaves_every_backend_serving() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let load = load(&lab)?;
    // The carrier stays: only the checks notice.
    let port = |state: &str| {
        let mut bridge = lab.switch().command("bridge");
        let args = ["link", "set", "dev", &lab.balancer.name, "state", state];
        command::run(bridge.args(args)).map(drop)
    };
    // The fourth time in a minute is one too often for a backend.
    for _ in 0..4 {
        port("0")?;
        for web in &lab.webs {
            wait_for(&balancer, WAY, WAY.backend(web), "is down", |backend| !backend.is_up())?;
        }
        port("3")?;
        for web in &lab.webs {
            wait_for(&balancer, WAY, WAY.backend(web), "is up", |backend| backend.is_up())?;
        }
    }
    wait_all_serve(&lab, &balancer, WAY)?;
    // Nor is the node less ready for it.
    let held = events(&balancer, "backend_held")?;
    ensure!(held.is_empty(), "{held:?}");
    let standing = balancer.status()?.service(WAY.name())?.standing;
    ensure!(standing.ready && usize::from(standing.up) == lab.webs.len(), "{standing:?}");
    wait_answered(&lab, WAY)?;
    load.finish().check()
}

#[test]
fn interface_that_is_made_anew_carries_traffic_again_without_a_restart() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let index = || -> Result<u32> {
        let interfaces = lab.balancer.namespace.enter(query::interfaces)??;
        Ok(interfaces.get(INTERFACE).context("no interface")?.ifindex)
    };
    let (before, mac) = (index()?, lab.balancer.namespace.mac(INTERFACE)?);
    lab.unplug_balancer()?;
    wait::until(SOON, "the loss is logged", || {
        let lost = events(&balancer, "interface_lost")?;
        ensure!(lost.len() == 1, "{lost:?}");
        Ok(())
    })?;
    lab.plug_balancer(&mac)?;
    ensure!(index()? != before, "it has another index");
    wait_answered(&lab, WAY)?;
    wait_all_serve(&lab, &balancer, WAY)?;
    balancer.check()?;
    ensure!(events(&balancer, "interface_back")?.len() == 1, "{}", balancer.log());
    nobody_is_blamed(&lab, &balancer)?;
    let arrivals = clients(&lab, WAY)?;
    run_for(AT_ONCE);
    none_failed(arrivals)
}

/// Takes the program off the balancer's interface behind `lbd`'s back.
fn strip(balancer: &Balancer) -> Result<()> {
    xdp::detach(&balancer.pins().join(format!("link-{INTERFACE}")))
}

#[test]
fn program_that_somebody_takes_off_is_told_and_attached_again_under_traffic() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    strip(&balancer)?;
    wait::until(SOON, "it is back", || {
        let back = events(&balancer, "interface_back")?;
        ensure!(back.len() == 1, "{back:?}");
        Ok(())
    })?;
    let lost = events(&balancer, "interface_lost")?;
    ensure!(lost.len() == 1 && lost[0].contains("detached"), "{lost:?}");
    wait_answered(&lab, WAY)?;
    let status = balancer.status()?;
    ensure!(status.interfaces.iter().all(|interface| interface.attached), "{status:?}");
    nobody_is_blamed(&lab, &balancer)?;
    let arrivals = clients(&lab, WAY)?;
    run_for(AT_ONCE);
    none_failed(arrivals)
}

#[test]
fn program_that_somebody_takes_off_stays_off_where_that_is_configured() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let mut balancer = Balancer::new(&lab, &[WAY.service(&lab).with(CHECK)])?;
    let config = fs::read_to_string(balancer.config()).context("read lbd.toml")?;
    fs::write(balancer.config(), format!("reattach = false\n{config}"))
        .context("write lbd.toml")?;
    balancer.launch()?;
    balancer.wait_usable()?;
    wait_answered(&lab, WAY)?;
    strip(&balancer)?;
    wait::until(SOON, "the loss is logged", || {
        let lost = events(&balancer, "interface_lost")?;
        ensure!(lost.len() == 1, "{lost:?}");
        Ok(())
    })?;
    let uptime = balancer.status()?.uptime_secs;
    wait::until_true(SOON, "two looks at the interfaces have passed", || {
        Ok(balancer.status()?.uptime_secs > uptime + 2)
    })?;
    ensure!(events(&balancer, "interface_back")?.is_empty(), "{}", balancer.log());
    ensure!(balancer.status()?.interfaces.iter().all(|interface| !interface.attached));
    ensure!(ask(&lab, WAY, AT_ONCE).is_err(), "nobody forwards");
    // A new start is the operator's word.
    balancer.stop()?;
    balancer.launch()?;
    balancer.wait_usable()?;
    wait_answered(&lab, WAY)
}
