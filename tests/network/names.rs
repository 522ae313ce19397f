//! Backends with a port and a name: either stands for the backend wherever one is named.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::{Lab, Options},
    status::{ServiceExt as _, StatusExt as _},
    ways::{Way, balanced},
};
use lb_model::backend_address::BackendAddress;

const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the backend on this host.
fn connection_to(lab: &Lab, way: Way, host: &str) -> Result<Connection> {
    loop {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        if open.get("/")?.backend()? == host {
            return Ok(open);
        }
    }
}

/// The hosts that serve new connections.
fn serving(lab: &Lab, way: Way) -> Result<BTreeSet<String>> {
    let answers = (0..40).map(|_| {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        open.get("/")?.backend()
    });
    answers.collect()
}

fn lives_by_its_name(lab: &Lab, balancer: &mut Balancer, way: Way) -> Result<()> {
    let (service, third) = (way.name(), &lab.webs[2]);
    let ip = way.backend(third);
    let at = BackendAddress::from(ip).or_port(80.try_into().ok());
    let text = at.to_string();
    // What had no port is another backend than what has one, and there is room for one of them.
    let twice = balancer.lbctl_output(&["backend", "add", service, &text])?;
    let refused = String::from_utf8_lossy(&twice.stderr).into_owned();
    ensure!(refused.contains(&format!("{text} is the backend {ip} already")), "{refused}");
    balancer.lbctl(&["backend", "remove", service, &ip.to_string(), "--force"])?;
    balancer.lbctl(&["backend", "add", service, &text, "--name", "third"])?;
    balancer.wait_usable()?;
    let hosts: BTreeSet<_> = lab.webs.iter().map(|web| web.host.name.clone()).collect();
    let served = serving(lab, way)?;
    ensure!(served == hosts, "{served:?}");

    let mut open = connection_to(lab, way, &third.host.name)?;
    balancer.lbctl(&["backend", "drain", service, "third"])?;
    let others = serving(lab, way)?;
    ensure!(!others.contains(&third.host.name) && others.len() == 2, "{others:?}");
    ensure!(open.get("/")?.backend()? == third.host.name, "an open connection stays");
    // A start knows both from the state file and the maps.
    balancer.stop()?;
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(open.get("/")?.backend()? == third.host.name, "it stays over a start");
    let shown = balancer.lbctl(&["backend", "show", service, "third"])?;
    ensure!(shown.contains(&format!("backend {text}")) && shown.contains("draining"), "{shown}");
    balancer.lbctl(&["backend", "enable", service, &ip.to_string()])?;
    ensure!(serving(lab, way)? == hosts, "all serve again");

    let status = balancer.status()?;
    let one = status.service(service)?.backend(at)?;
    ensure!(one.name.as_deref() == Some("third") && one.sent.packets > 0, "{one:?}");
    let metrics = balancer.metrics()?;
    for line in [
        format!("lb_backend_up{{service=\"{service}\",backend=\"{text}\"}} 1"),
        format!("lb_backend_info{{service=\"{service}\",backend=\"{text}\",name=\"third\"}} 1"),
    ] {
        ensure!(metrics.contains(&line), "{line} is missing");
    }
    let list = balancer.lbctl(&["backend", "list", service])?;
    ensure!(list.contains(&format!("{text} (third)")), "{list}");
    let events = balancer.lbctl(&["events", "--service", service, "--backend", "third"])?;
    ensure!(events.contains(&format!("backend {text} of {service} takes new flows")), "{events}");
    balancer.lbctl(&["flows", service, "--backend", "third"])?;
    let unknown = balancer.lbctl_output(&["flows", "--backend", "forth"])?;
    let refused = String::from_utf8_lossy(&unknown.stderr).into_owned();
    ensure!(refused.contains("no backend forth"), "{refused}");
    Ok(())
}

#[test]
fn a_backend_is_drained_shown_and_filtered_by_its_name_and_keeps_its_port_over_a_restart()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for way in [Way::DsrV4, Way::DsrV6] {
        let (lab, mut balancer) = balanced(&Options::default(), &[way], "")?;
        lives_by_its_name(&lab, &mut balancer, way).context(way.name())?;
    }
    Ok(())
}
