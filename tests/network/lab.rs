//! The lab itself, without a balancer: the requirements of the network tests.

use std::{
    collections::BTreeSet,
    env, fs,
    net::SocketAddr,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    arrivals::{self, Arrival, Arrivals, Failure},
    can_run, command,
    downloads::{self, Downloads},
    haproxy::{self, Haproxy},
    http::Connection,
    in_ci,
    lab::{self, Lab, Options},
    load::{Load, Plan},
    namespace, nginx, wait,
};

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_test_reaches_no_interface_of_this_machine() -> Result<()> {
    // By hand, `cargo test` runs where it was typed; the kit still starts everything in namespaces.
    let Ok(runners) = env::var("LB_NETWORK_OF_RUNNER") else {
        assert!(!in_ci(), "the runner has not named its own network");
        return Ok(());
    };
    let ours = fs::read_link("/proc/self/ns/net").context("the namespace of this test")?;
    assert_ne!(ours.to_string_lossy(), runners, "it runs in the network of this machine");
    Ok(())
}

#[test]
fn every_web_host_answers_the_client_under_its_own_name() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    for web in &lab.webs {
        for address in [web.host.v4.into(), web.host.v6.into()] {
            let address = SocketAddr::new(address, 80);
            let mut connection = Connection::open(&lab.client.namespace, address, PATIENCE)?;
            let page = connection.get("/")?.ok()?;
            assert_eq!(page.text(), web.host.name);
            assert_eq!(page.backend()?, web.host.name);
            assert_eq!(connection.get("/health")?.ok()?.text(), format!("ok {}", web.host.name));
            assert!(connection.get("/big")?.ok()?.body == nginx::big());
            let length = connection.post("/upload", &nginx::big())?.ok()?;
            assert_eq!(length.text(), nginx::BIG_BYTES.to_string());
        }
    }
    Ok(())
}

#[test]
fn a_client_behind_the_router_reaches_the_web_hosts() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { router: true, ..Options::default() })?;
    for web in &lab.webs {
        for address in [web.host.v4.into(), web.host.v6.into()] {
            let address = SocketAddr::new(address, 80);
            let mut connection = Connection::open(&lab.client.namespace, address, PATIENCE)?;
            assert_eq!(connection.get("/")?.ok()?.text(), web.host.name);
        }
    }
    let balancer = lab.balancer.v4.to_string();
    command::run(lab.client.namespace.command("ping").args(["-c1", "-W2", &balancer]))?;
    Ok(())
}

#[test]
fn load_reports_a_backend_that_dies() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let target = SocketAddr::new(lab.webs[0].host.v4.into(), 80);
    let pause = Duration::from_millis(20);
    let plan = Plan { target, steady: 20, passing: 0, pause };
    let load = Load::start(&lab.client.namespace, plan)?;
    load.report().check()?;
    lab.webs[0].nginx.kill()?;
    load.run_for(pause * 5);
    let report = load.finish();
    assert_eq!(report.broken.len(), 20, "{report:?}");
    assert_eq!(report.by_backend.get("web1"), Some(&20));
    Ok(())
}

/// Two seconds of requests to the only web host, to which `fault` happens after one.
fn requests_through(
    limit: Duration,
    fault: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<Vec<Arrival>> {
    let mut lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let target = SocketAddr::new(lab.webs[0].host.v4.into(), 80);
    let plan = arrivals::Plan { target, every: Duration::from_millis(20), limit };
    let arrivals = Arrivals::start(&lab.client.namespace, plan)?;
    thread::sleep(Duration::from_secs(1));
    fault(&mut lab)?;
    thread::sleep(Duration::from_secs(1));
    arrivals.finish()
}

#[test]
fn requests_to_a_killed_nginx_are_refused_and_no_other() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut killed = Instant::now();
    let arrivals = requests_through(PATIENCE, |lab| {
        killed = Instant::now();
        lab.webs[0].nginx.kill()
    })?;
    let margin = Duration::from_millis(100);
    for arrival in &arrivals {
        match &arrival.end {
            Ok(backend) => assert_eq!(backend, "web1"),
            Err(_) => assert!(arrival.at + margin > killed, "{arrival:?} before {killed:?}"),
        }
        if arrival.at > killed + margin {
            assert_eq!(arrival.end, Err(Failure::Refused));
        }
    }
    assert!(arrivals.first().is_some_and(|first| first.end.is_ok()));
    assert!(arrivals.last().is_some_and(|last| last.end.is_err()));
    Ok(())
}

#[test]
fn requests_that_hang_delay_none_that_follow() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    // Longer than a connection that is refused or lost takes to fail; one that hangs takes longer.
    let limit = Duration::from_millis(700);
    let faults: [fn(&mut Lab) -> Result<()>; 2] =
        [|lab| lab.webs[0].nginx.freeze(), |lab| lab.cut("web1")];
    for fault in faults {
        let arrivals = requests_through(limit, fault)?;
        let hung: Vec<_> =
            arrivals.iter().filter(|arrival| arrival.end == Err(Failure::TimedOut)).collect();
        // A second of them, fifty in all; as many at once as the limit lasts.
        assert!(hung.len() > 35, "{} of {}", hung.len(), arrivals.len());
        let last = hung[hung.len() - 1].at.duration_since(hung[0].at);
        assert!(last > limit, "they came while the first hung: {last:?}");
        let margin = Duration::from_millis(20);
        assert!(hung.iter().all(|arrival| arrival.took + margin > limit), "{hung:?}");
        assert!(arrivals.iter().all(|arrival| !matches!(arrival.end, Err(Failure::Refused))));
    }
    Ok(())
}

#[test]
fn a_host_answers_again_when_it_is_mended_thawed_or_restarted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let get = |lab: &Lab, patience| {
        let target = SocketAddr::new(lab.webs[0].host.v4.into(), 80);
        Connection::open(&lab.client.namespace, target, patience)?.get("/")?.ok()
    };
    let soon = Duration::from_millis(300);
    get(&lab, PATIENCE)?;
    lab.cut("web1")?;
    assert!(get(&lab, soon).is_err());
    lab.mend("web1")?;
    get(&lab, PATIENCE)?;
    lab.webs[0].nginx.freeze()?;
    assert!(get(&lab, soon).is_err());
    lab.webs[0].nginx.thaw()?;
    get(&lab, PATIENCE)?;
    lab.webs[0].nginx.kill()?;
    assert!(get(&lab, soon).is_err());
    let orphan = lab.orphan();
    let web = &mut lab.webs[0];
    web.nginx.restart(&web.host.namespace, orphan)?;
    get(&lab, soon).map(drop)
}

#[test]
fn downloads_tell_whose_host_died() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lab = Lab::new(&Options { webs: 2, ..Options::default() })?;
    let target = SocketAddr::new(lab::VIPS_V4[0].into(), 80);
    let _haproxy = Haproxy::start(&lab, target, &haproxy::Settings::default())?;
    let time = Duration::from_secs(3);
    let plan = downloads::Plan { target, each: 2, time, patience: PATIENCE };
    let downloads = Downloads::start(&lab, plan)?;
    lab.webs[1].nginx.kill()?;
    let ended = downloads.finish()?;
    assert_eq!(ended.len(), 4);
    for download in ended {
        assert_eq!(download.end.is_ok(), download.host == "web1", "{download:?}");
    }
    Ok(())
}

#[test]
fn haproxy_sends_to_every_host_but_those_that_are_drained_or_dead() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lab = Lab::new(&Options::default())?;
    let target = SocketAddr::new(lab::VIPS_V4[0].into(), 80);
    let server = "check inter 100ms fall 2".to_owned();
    let settings = haproxy::Settings { server, ..haproxy::Settings::default() };
    let haproxy = Haproxy::start(&lab, target, &settings)?;
    let hosts = || -> Result<BTreeSet<String>> {
        let host = |_| {
            let mut connection = Connection::open(&lab.client.namespace, target, PATIENCE)?;
            connection.get("/")?.ok()?.backend()
        };
        (0..12).map(host).collect()
    };
    assert_eq!(hosts()?.len(), 3);
    haproxy.drain("web1")?;
    assert!(!hosts()?.contains("web1"));
    assert!(haproxy.drain("web9").is_err(), "a server that there is not");
    lab.webs[1].nginx.kill()?;
    wait::until_true(PATIENCE, "HAProxy notices", || {
        Ok(haproxy.states()?.get("web2").is_some_and(|state| !haproxy::is_up(state)))
    })?;
    let mut connection = Connection::open(&lab.client.namespace, target, PATIENCE)?;
    assert_eq!(connection.get("/")?.ok()?.backend()?, "web3");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let (folder, name) = (lab.folder().to_owned(), lab.name().to_owned());
    assert!(lab::labs()?.iter().any(|record| record.name == name && record.alive()));
    let hosts: Vec<_> = lab.hosts().map(|host| host.namespace.name().to_owned()).collect();
    drop(lab);
    assert!(!folder.exists());
    for (namespace, pid) in namespace::all()? {
        ensure!(pid != process::id() || !hosts.contains(&namespace), "{namespace} is left");
    }
    assert!(lab::labs()?.iter().all(|record| record.name != name));
    Ok(())
}
