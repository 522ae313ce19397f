//! `lbd`'s metrics, and the shipped rules and dashboards, in Prometheus.

mod haproxy;
mod size;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    ha_pair::{HaPair, Plan},
    http::Connection,
    lab::{Host, Lab, Options},
    prometheus::{Prometheus, fetch, promtool},
    status::StatusExt as _,
    wait,
    ways::Way,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 9105;
/// A check that probes often, so that its metrics have values.
const CHECK: &str = "[service.check]\ntype = \"http\"\ninterval = \"200ms\"";

fn shipped(path: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests are in it");
    workspace.join("deploy").join(path)
}

/// The table of the configuration that has metrics served at a node's own address.
fn http(host: &Host) -> String {
    format!(
        "\n[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\nhaproxy_metrics = true\n",
        host.v4
    )
}

/// The metrics of a node, as a scraper that accepts this gets them.
fn metrics(lab: &Lab, host: &Host, path: &str, accept: &str) -> Result<String> {
    let url = format!("http://{}:{PORT}{path}", host.v4);
    fetch(&lab.client.namespace, &url, &["--header", &format!("Accept: {accept}")])
}

#[test]
fn the_alert_rules_are_well_formed_and_pass_their_tests() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let folder = shipped("prometheus");
    promtool(&folder, &["check", "rules", "--lint-fatal", "lb.rules.yml"], "")?;
    promtool(&folder, &["test", "rules", "lb.rules.test.yml"], "").map(drop)
}

/// Two nodes with everything that is exported, clients, and a Prometheus that scrapes both.
#[test]
fn prometheus_scrapes_a_pair_and_each_shipped_query_finds_something() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let mut plan = Plan::new(&[way], Duration::from_millis(100));
    plan.settings = CHECK.into();
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    for n in 0..2 {
        let tables = ha_pair.plan.tables(&ha_pair.lab, n)? + &http(ha_pair.host(n));
        let services = ha_pair.plan.services(&ha_pair.lab);
        let node = &mut ha_pair.nodes[n];
        node.set_more(&tables);
        node.configure(&services)?;
        node.launch()?;
        node.wait_usable()?;
    }
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    let nodes = [ha_pair.host(0), ha_pair.host(1)];
    let lab = &ha_pair.lab;

    for host in nodes {
        let page = metrics(lab, host, "/metrics", "text/plain")?;
        let output = promtool(&shipped(""), &["check", "metrics"], &page)?;
        ensure!(output.is_empty(), "promtool check metrics: {output}");
        let openmetrics = metrics(lab, host, "/metrics", "application/openmetrics-text")?;
        ensure!(openmetrics.ends_with("# EOF\n"), "{openmetrics}");
    }

    let targets = nodes.map(|host| format!("{}:{PORT}", host.v4));
    let rules = shipped("prometheus/lb.rules.yml");
    let prometheus = Prometheus::start(lab, &lab.client, &targets, &rules)?;
    wait::until(SOON, "both nodes are scraped", || {
        let up = prometheus.query("sum(up{job=\"lb\"}) == 2")?;
        ensure!(up.len() == 1, "{}", prometheus.api("targets", &[])?);
        Ok(())
    })?;
    browse(lab, way)?;
    scraped_as_openmetrics(&prometheus)?;
    each_rule_is_evaluated(&prometheus)?;
    each_query_finds_something(&prometheus, way)?;
    counts_agree(&prometheus, &ha_pair.nodes[0], way)
}

/// Sends some requests through the balancer.
fn browse(lab: &Lab, way: Way) -> Result<()> {
    for _ in 0..20 {
        let mut connection = Connection::open(&lab.client.namespace, way.target(), SOON)?;
        connection.get("/")?.ok()?;
    }
    Ok(())
}

/// The older format has no units.
fn scraped_as_openmetrics(prometheus: &Prometheus) -> Result<()> {
    let metadata = prometheus.api("targets/metadata", &["metric=lb_service_bytes"])?;
    let metadata = metadata.as_array().context("a list")?.clone();
    ensure!(metadata.len() == 2, "{metadata:?}");
    ensure!(
        metadata.iter().all(|one| one["unit"] == "bytes" && one["type"] == "counter"),
        "{metadata:?}"
    );
    Ok(())
}

fn each_rule_is_evaluated(prometheus: &Prometheus) -> Result<()> {
    wait::until(SOON, "each rule was evaluated", || {
        let groups = prometheus.api("rules", &[])?;
        let rules = groups["groups"][0]["rules"].as_array().context("rules")?.clone();
        ensure!(rules.len() >= 10, "{groups}");
        for rule in rules {
            ensure!(rule["health"] == "ok", "{rule}");
        }
        Ok(())
    })?;
    // No alert fires.
    let firing = prometheus.query("ALERTS{alertstate=\"firing\",severity=\"page\"}")?;
    ensure!(firing.is_empty(), "{firing:?}");
    Ok(())
}

/// All queries of a dashboard.
fn queries<'j>(json: &'j Value, found: &mut BTreeSet<&'j str>) {
    match json {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str));
            fields.values().for_each(|value| queries(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

fn each_query_finds_something(prometheus: &Prometheus, way: Way) -> Result<()> {
    let mut seen = 0;
    for entry in fs::read_dir(shipped("grafana/dashboards")).context("the dashboards")? {
        let path = entry.context("an entry")?.path();
        let dashboard = fs::read_to_string(&path).context("a dashboard")?;
        let dashboard: Value = serde_json::from_str(&dashboard).context("a dashboard")?;
        let mut found = BTreeSet::new();
        queries(&dashboard, &mut found);
        for query in found {
            let asked = query
                .replace("$job", "lb")
                .replace("$instance", ".*")
                .replace("$router", ".*")
                .replace("$service", way.name())
                .replace("$__rate_interval", "10s")
                .replace("$__interval", "10s");
            // A query for values other than zero may find none.
            let all = asked.trim_end_matches(" > 0").trim_end_matches(" == 1");
            wait::until(SOON, "a query finds something", || {
                ensure!(!prometheus.query(all)?.is_empty(), "{}: {all}", path.display());
                Ok(())
            })?;
            seen += 1;
        }
    }
    ensure!(seen > 50, "only {seen} queries");
    Ok(())
}

/// The values in Prometheus are those that `lbctl` prints.
fn counts_agree(prometheus: &Prometheus, node: &Balancer, way: Way) -> Result<()> {
    wait::until(SOON, "Prometheus has the counts that lbctl prints", || {
        let status = node.status()?;
        let flows: u64 = status.service(way.name())?.backends.values().map(|b| b.new_flows).sum();
        ensure!(flows >= 20, "{flows} flows");
        let query = format!("max(lb_service_new_flows_total{{service=\"{}\"}})", way.name());
        let found = prometheus.query(&query)?;
        let value = found.first().and_then(|one| one["value"][1].as_str()).unwrap_or_default();
        ensure!(value == flows.to_string(), "{value} and {flows}");
        Ok(())
    })
}
