//! The lab itself, without a balancer: what the network tests take for granted.

use std::{net::SocketAddr, process, time::Duration};

use anyhow::{Result, ensure};
use kit::{
    can_run, command,
    http::Connection,
    lab::{self, Lab, Options},
    load::{Load, Plan},
    namespace, nginx,
};

const PATIENCE: Duration = Duration::from_secs(5);

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
            assert_eq!(page.backend, web.host.name);
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
