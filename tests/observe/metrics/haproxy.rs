//! HAProxy's own exporter, and `lbd`'s metrics by its names.

use std::{collections::BTreeMap, collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer, can_run, command, lab::Lab, lab::Options, process::Process,
    prometheus::fetch, wait, ways::Way,
};

use super::{CHECK, http, metrics};

/// A family: its type, and the labels of its samples.
type Family = (String, BTreeSet<String>);

/// The metrics of a page, by name.
fn families(page: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context(line.to_owned())?;
            families.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else if !line.starts_with('#') {
            let series = line.rsplit_once(' ').context(line.to_owned())?.0;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = families.get_mut(name).with_context(|| format!("no head: {line}"))?;
            let keys = labels.split("=\"").filter_map(|part| part.rsplit(['"', ',']).next());
            let keys = keys.filter(|key| !key.is_empty() && *key != "}");
            family.1.extend(keys.map(str::to_owned));
        }
    }
    Ok(families)
}

/// HAProxy's own metrics.
fn exported_by_haproxy(lab: &Lab) -> Result<String> {
    let program = command::find("haproxy").context("HAProxy is not installed")?;
    let config = lab.folder().join("exporter.cfg");
    fs::write(
        &config,
        "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n\
         listen web\n  bind 127.0.0.1:8080\n  server one 127.0.0.1:9 check\n\
         frontend exporter\n  mode http\n  bind 127.0.0.1:8405\n  \
         http-request use-service prometheus-exporter\n",
    )
    .context("write exporter.cfg")?;
    let config = config.to_string_lossy();
    let log = lab.folder().join("exporter.log");
    let host = &lab.client.namespace;
    let args = ["-db", "-f", &*config];
    let mut process = Process::start(host, &program, &args, &log, lab.orphan())?;
    wait::until(Duration::from_secs(10), "HAProxy exports", || {
        process.check()?;
        fetch(host, "http://127.0.0.1:8405/metrics", &[])
    })
}

#[test]
fn names_types_and_labels_are_those_of_haproxys_exporter() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let service = Way::DsrV4.service(&lab).with(CHECK);
    let mut balancer = Balancer::new(&lab, &[])?;
    balancer.set_more(&http(&lab.balancer));
    balancer.configure(&[service])?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let theirs = families(&exported_by_haproxy(&lab)?)?;
    let ours = wait::until(Duration::from_secs(10), "backends have answered checks", || {
        let page = metrics(&lab, &lab.balancer, "/metrics/haproxy", "")?;
        ensure!(page.contains("haproxy_server_check_duration_seconds{"), "{page}");
        Ok(page)
    })?;
    let up = ours.lines().filter(|line| line.starts_with("haproxy_server_status{"));
    let up = up.filter(|line| line.ends_with("state=\"UP\"} 1")).count();
    ensure!(up == 3, "{ours}");
    let ours = families(&ours)?;
    ensure!(ours.len() >= 30, "{ours:?}");
    for (name, family) in ours {
        let same = theirs.get(&name).with_context(|| format!("HAProxy has no {name}"))?;
        ensure!(*same == family, "{name}: {family:?} here, {same:?} there");
    }
    Ok(())
}
