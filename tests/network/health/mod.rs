//! Backends that die, hang, vanish and come back, under real clients: the detection, its time, and
//! what it costs.

mod silence;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    arrivals::{Arrivals, Plan},
    balancer::Balancer,
    can_run, command,
    downloads::{self, Downloads},
    lab::{INTERFACE, Lab, Options, Web},
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
    ways::{Way, balanced, decapsulate},
};
use lb_api::status::Backend;
use lb_model::seen::Condition;

/// A check that is as slow as the guides have it.
const SLOW: &str = "[service.check]\ntype = \"tcp\"\ninterval = \"2s\"\nrise = 2\nfall = 3";
/// One that is as fast as they come.
const FAST: &str = "[service.check]\ntype = \"http\"\ninterval = \"100ms\"\nrise = 2\nfall = 2";

/// Long enough for a change that should take a second.
const SOON: Duration = Duration::from_secs(10);

fn backend(balancer: &Balancer, way: Way, at: IpAddr) -> Result<Backend> {
    Ok(balancer.status()?.service(way.name())?.backend(at)?.clone())
}

/// Waits until the checks find a backend in this condition.
fn wait_for(balancer: &Balancer, way: Way, at: IpAddr, condition: Condition) -> Result<Backend> {
    wait::until(SOON, &format!("{at} is {condition:?}"), || {
        let backend = backend(balancer, way, at)?;
        ensure!(backend.condition == condition, "{backend:?}");
        Ok(backend)
    })
}

/// Waits until a backend is down and its ring is written: soft down it keeps the flows that it has and gets no new ones,
/// hard down it has none.
fn wait_until_down(
    balancer: &Balancer,
    way: Way,
    at: IpAddr,
    condition: Condition,
) -> Result<Backend> {
    wait::until(SOON, &format!("{at} is {condition:?} and gets no new flows"), || {
        let down = backend(balancer, way, at)?;
        let keeps_flows = down.base_slots > 0;
        let as_specified = down.slots == 0 && keeps_flows == (condition == Condition::SoftDown);
        ensure!(down.condition == condition && as_specified, "{down:?}");
        Ok(down)
    })
}

/// A client every five milliseconds.
fn clients(lab: &Lab, way: Way) -> Result<Arrivals> {
    let plan = Plan {
        target: way.target(),
        every: Duration::from_millis(5),
        limit: Duration::from_secs(8),
    };
    Arrivals::start(&lab.client.namespace, plan)
}

/// Lets time pass in which clients come; they make load, no moment counts.
fn run_for(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn a_killed_nginx_is_found_at_once_and_comes_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (mut lab, balancer) = balanced(&Options::default(), &[way], FAST)?;
    let at = way.backend(&lab.webs[1]);
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_millis(500));
    let killed = Instant::now();
    lab.webs[1].nginx.kill()?;
    let down = wait_until_down(&balancer, way, at, Condition::SoftDown)?;
    let reason = down.check.and_then(|check| check.last).unwrap_or_default();
    assert!(reason.contains("refused"), "{reason}");
    run_for(Duration::from_millis(500));
    let orphan = lab.orphan();
    let web = &mut lab.webs[1];
    web.nginx.restart(&web.host.namespace, orphan)?;
    wait_for(&balancer, way, at, Condition::Up)?;
    run_for(Duration::from_millis(500));
    let arrivals = arrivals.finish()?;
    let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
    let last = failed.iter().map(|arrival| arrival.at - killed).max().unwrap_or_default();
    // Two intervals, and the delay of this machine.
    let late = arrivals.iter().map(|arrival| arrival.late).max().unwrap_or_default();
    assert!(last < Duration::from_millis(200) + late.max(Duration::from_millis(300)), "{last:?}");
    Ok(())
}

#[test]
fn a_host_that_is_cut_off_fails_no_request_though_checks_are_slow() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], SLOW)?;
    let at = way.backend(&lab.webs[1]);
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_secs(1));
    lab.cut(&lab.webs[1].host.name)?;
    // Three checks in a row would take four seconds and more.
    let cut = Instant::now();
    wait_for(&balancer, way, at, Condition::SoftDown)?;
    let found = cut.elapsed();
    run_for(Duration::from_secs(2));
    lab.mend(&lab.webs[1].host.name)?;
    wait_for(&balancer, way, at, Condition::Up)?;
    let arrivals = arrivals.finish()?;
    // Requests that had a connection to the host when it went can't be saved by a balancer.
    let begun = |at: Instant| at + Duration::from_millis(20) > cut || at > cut;
    let failed: Vec<_> =
        arrivals.iter().filter(|a| a.end.is_err() && begun(a.at) && a.at > cut).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), arrivals.len());
    assert!(found < Duration::from_millis(3500), "found after {found:?}");
    Ok(())
}

#[test]
fn a_server_that_hangs_is_found_by_http_and_keeps_its_flows() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], FAST)?;
    let at = way.backend(&lab.webs[0]);
    let plan = downloads::Plan {
        target: way.target(),
        each: 2,
        time: Duration::from_secs(5),
        patience: Duration::from_secs(5),
    };
    let downloads = Downloads::start(&lab, plan)?;
    lab.webs[0].nginx.freeze()?;
    wait_until_down(&balancer, way, at, Condition::SoftDown)?;
    lab.webs[0].nginx.thaw()?;
    wait_for(&balancer, way, at, Condition::Up)?;
    for download in downloads.finish()? {
        assert_eq!(download.end, Ok(()), "from {}", download.host);
    }
    Ok(())
}

/// Downloads of some seconds through several connections to each host.
fn downloads(lab: &Lab, way: Way) -> Result<Downloads> {
    let plan = downloads::Plan {
        target: way.target(),
        each: 3,
        time: Duration::from_secs(5),
        patience: Duration::from_secs(20),
    };
    let downloads = Downloads::start(lab, plan)?;
    let begun = Instant::now();
    wait::until_true(SOON, "every download is under way", || {
        Ok(downloads.silent_since(begun) == 0)
    })?;
    Ok(downloads)
}

fn none_broke(downloads: Downloads) -> Result<()> {
    for download in downloads.finish()? {
        ensure!(download.end.is_ok(), "from {}: {:?}", download.host, download.end);
    }
    Ok(())
}

/// The lab with every nginx started as a distribution does, so that it can end gracefully, and all of them up.
fn lab_of_services(way: Way) -> Result<(Lab, Balancer)> {
    let mut lab = Lab::new(&Options::default())?;
    let orphan = lab.orphan();
    lab.webs.iter_mut().try_for_each(|web| web.nginx.serve(&web.host.namespace, orphan))?;
    let balancer = Balancer::start(&lab, &[way.service(&lab).with(FAST)])?;
    for web in &lab.webs {
        wait_for(&balancer, way, way.backend(web), Condition::Up)?;
    }
    Ok((lab, balancer))
}

#[test]
fn a_graceful_end_of_nginx_breaks_no_download() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (mut lab, balancer) = lab_of_services(way)?;
    let at = way.backend(&lab.webs[1]);
    let downloads = downloads(&lab, way)?;
    lab.webs[1].nginx.quit()?;
    wait_until_down(&balancer, way, at, Condition::SoftDown)?;
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_secs(1));
    let gone = &lab.webs[1].host.name;
    for arrival in arrivals.finish()? {
        assert!(arrival.end.as_ref().is_ok_and(|host| host != gone), "{arrival:?}");
    }
    let shown = balancer.lbctl(&["backend", "show", way.name(), &at.to_string()])?;
    assert!(shown.contains("no new flows; it keeps those that it has"), "{shown}");
    none_broke(downloads)
}

#[test]
fn backends_that_are_stopped_and_started_in_turn_break_no_download() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (mut lab, balancer) = lab_of_services(way)?;
    let downloads = downloads(&lab, way)?;
    let orphan = lab.orphan();
    for web in &mut lab.webs {
        let at = way.backend(web);
        web.nginx.quit()?;
        wait_for(&balancer, way, at, Condition::SoftDown)?;
        web.nginx.serve(&web.host.namespace, orphan)?;
        let up = wait_for(&balancer, way, at, Condition::Up)?;
        assert_eq!(up.unusable, None);
    }
    none_broke(downloads)
}

#[test]
fn flows_of_a_backend_that_refuses_move_where_the_service_says_so() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let settings = format!("on_down = \"move\"\n{FAST}");
    let (mut lab, balancer) = balanced(&Options::default(), &[way], &settings)?;
    let at = way.backend(&lab.webs[1]);
    wait_for(&balancer, way, at, Condition::Up)?;
    lab.webs[1].nginx.kill()?;
    wait_until_down(&balancer, way, at, Condition::HardDown).map(drop)
}

#[test]
fn a_vip_that_is_missing_on_a_backend_shows_as_down_with_its_reason() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for way in [Way::DsrV4, Way::DsrV6] {
        let (lab, balancer) = balanced(&Options::default(), &[way], FAST)?;
        let web = &lab.webs[2];
        let at = way.backend(web);
        wait_for(&balancer, way, at, Condition::Up)?;
        let length = if way.vip().is_ipv4() { 32 } else { 128 };
        web.host.namespace.ip(&format!("addr del {}/{length} dev lo", way.vip()))?;
        wait_for(&balancer, way, at, Condition::SoftDown)?;
        let output = wait::until(SOON, "the reason names the VIP", || {
            let output = balancer.lbctl(&["backend", "show", way.name(), &at.to_string()])?;
            ensure!(output.contains("loopback"), "{output}");
            Ok(output)
        })?;
        assert!(output.contains(&way.vip().to_string()), "{output}");
        web.host.namespace.ip(&format!("addr add {}/{length} dev lo", way.vip()))?;
        wait_for(&balancer, way, at, Condition::Up)?;
    }
    Ok(())
}

#[test]
fn a_tunnel_that_is_missing_on_a_backend_shows_as_down_with_its_reason() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for way in [Way::IpipV4, Way::IpipV6, Way::IpipV4InV6] {
        let lab = Lab::new(&Options::default())?;
        let balancer = Balancer::start(&lab, &[way.service(&lab).with(FAST)])?;
        let at = way.backend(&lab.webs[0]);
        wait_for(&balancer, way, at, Condition::SoftDown)?;
        wait::until(SOON, "the reason names the tunnel", || {
            let output = balancer.lbctl(&["backend", "show", way.name(), &at.to_string()])?;
            ensure!(output.contains("tunnel"), "{output}");
            Ok(())
        })?;
        decapsulate(&lab)?;
        for web in &lab.webs {
            wait_for(&balancer, way, way.backend(web), Condition::Up)?;
        }
    }
    Ok(())
}

#[test]
fn a_lossy_network_of_the_clients_ejects_nobody() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (lab, balancer) = balanced(&Options::default(), &[way], SLOW)?;
    let client = &lab.client.namespace;
    let nft = |rule: &str| command::run(client.command("nft").arg(rule)).map(drop);
    nft("add table inet loss")?;
    nft("add chain inet loss in { type filter hook input priority 0; }")?;
    nft(&format!("add rule inet loss in iifname {INTERFACE} numgen random mod 100 < 20 drop"))?;
    nft("add chain inet loss out { type filter hook output priority 0; }")?;
    nft(&format!("add rule inet loss out oifname {INTERFACE} numgen random mod 100 < 20 drop"))?;
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_secs(6));
    let arrivals = arrivals.finish()?;
    let slow = arrivals.iter().filter(|a| a.took > Duration::from_millis(900)).count();
    assert!(slow > arrivals.len() / 10, "{slow} of {} sent again: loss it was", arrivals.len());
    let status = balancer.status()?;
    for web in &lab.webs {
        let backend = status.service(way.name())?.backend(way.backend(web))?;
        assert!(backend.is_up() && backend.slots > 0, "{backend:?}");
        let check = backend.check.as_ref().context("it is checked")?;
        assert_eq!(check.went_down, 0, "{backend:?}");
    }
    Ok(())
}

#[test]
fn a_restart_of_lbd_gives_no_flow_to_a_dead_backend() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let (mut lab, mut balancer) = balanced(&Options::default(), &[way], FAST)?;
    let at = way.backend(&lab.webs[1]);
    lab.webs[1].nginx.kill()?;
    wait_for(&balancer, way, at, Condition::SoftDown)?;
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_millis(300));
    balancer.stop()?;
    run_for(Duration::from_millis(300));
    balancer.launch()?;
    wait_for(&balancer, way, at, Condition::SoftDown)?;
    run_for(Duration::from_secs(1));
    let arrivals = arrivals.finish()?;
    let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    Ok(())
}

#[test]
fn backups_serve_when_all_others_are_dead() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let mut lab = Lab::new(&Options::default())?;
    let mut service = way.service(&lab).with(FAST);
    let spare = service.backends.remove(2);
    let service =
        service.with(&format!("[[service.backend]]\naddress = \"{spare}\"\nbackup = true"));
    let balancer = Balancer::start(&lab, &[service])?;
    assert_eq!(backend(&balancer, way, spare)?.slots, 0);
    for n in 0..2 {
        lab.webs[n].nginx.kill()?;
    }
    wait::until(SOON, "the backup serves", || {
        let status = balancer.status()?;
        let service = status.service(way.name())?;
        ensure!(service.standing.on_backups, "{:?}", service.standing);
        ensure!(service.backend(spare)?.slots == service.ring_slots, "not all slots");
        Ok(())
    })?;
    let arrivals = clients(&lab, way)?;
    run_for(Duration::from_millis(500));
    let arrivals = arrivals.finish()?;
    assert!(
        arrivals.iter().all(|a| a.end.as_deref() == Ok(&lab.webs[2].host.name)),
        "{arrivals:?}"
    );
    Ok(())
}
