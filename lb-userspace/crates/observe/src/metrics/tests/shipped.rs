//! The shipped files for Prometheus and Grafana use only exported metrics.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{super::*, exported, promql::uses, workspace};

/// The scraper's labels, and the rules' own names.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// Fails at a metric, a label or a label's value in a query that is not exported.
fn check(query: &str, from: &str) {
    let exported = exported(Names::Own);
    let page = super::write(Names::Own, super::node(), Process::read(), Format::Text);
    let uses = uses(query);
    let mut labels: BTreeSet<&str> = ADDED.into();
    for (metric, used) in &uses.metrics {
        if metric == "up" {
            continue;
        }
        // The samples of a histogram have its name with something behind it.
        let suffixes = ["_bucket", "_sum", "_count"];
        let whole = suffixes.iter().find_map(|suffix| metric.strip_suffix(suffix));
        let family = exported
            .families
            .get(metric)
            .or_else(|| exported.families.get(whole?).filter(|family| family.kind == "histogram"));
        let family = family.unwrap_or_else(|| panic!("{from}: {metric} is not exported: {query}"));
        labels.extend(family.labels.iter().map(String::as_str));
        for (label, values) in used {
            let known = family.labels.contains(label) || ADDED.contains(&label.as_str());
            assert!(known, "{from}: {metric} has no label {label}: {query}");
            let fixed = ["state", "reason", "mode", "result", "map", "kind", "at", "to"];
            for value in values.iter().filter(|value| !value.starts_with('$')) {
                if !fixed.contains(&label.as_str()) {
                    continue;
                }
                let pair = format!("{label}=\"{value}\"");
                let mut lines = page.lines().filter(|line| line.starts_with(metric.as_str()));
                assert!(
                    lines.any(|line| line.contains(&pair)),
                    "{from}: {metric} never has {pair}"
                );
            }
        }
    }
    for group in &uses.groups {
        assert!(labels.contains(group.as_str()), "{from}: no label {group}: {query}");
    }
}

/// The values of `expr:` in a file of rules.
fn expressions(rules: &str) -> Vec<String> {
    let mut lines = rules.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(value) = line.trim_start().strip_prefix("expr:") else { continue };
        let indent = line.len() - line.trim_start().len();
        let mut query = match value.trim() {
            "|" | ">" | "|-" | ">-" => String::new(),
            value => value.to_owned(),
        };
        let is_more = |line: &&str| line.len() - line.trim_start().len() > indent;
        while let Some(more) = lines.next_if(is_more) {
            query += " ";
            query += more.trim();
        }
        found.push(query);
    }
    found
}

#[test]
fn alert_rules_use_what_is_exported() {
    let path = workspace().join("deploy/prometheus/lb.rules.yml");
    let rules = fs::read_to_string(&path).expect("the rules are there");
    let found = expressions(&rules);
    assert_eq!(found.len(), rules.matches("- alert: ").count(), "each alert has an expression");
    assert!(found.len() >= 10);
    found.iter().for_each(|query| check(query, "lb.rules.yml"));
}

#[test]
fn each_alert_has_a_test() {
    let folder = workspace().join("deploy/prometheus");
    let read = |name| fs::read_to_string(folder.join(name)).expect("it is there");
    let (rules, tests) = (read("lb.rules.yml"), read("lb.rules.test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let tested = |kind: &str| tests.contains(&format!("alertname: {alert}\n{kind}"));
        assert!(tested("        exp_alerts:\n"), "{alert} is never expected");
        assert!(tested("        exp_alerts: []\n"), "{alert} is never expected to be silent");
    }
}

/// All values of this key, anywhere.
fn values<'v>(json: &'v Value, key: &str, found: &mut Vec<&'v Value>) {
    match json {
        Value::Object(fields) => {
            found.extend(fields.get(key));
            fields.values().for_each(|value| values(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| values(value, key, found)),
        _ => {}
    }
}

#[test]
fn dashboards_use_what_is_exported() {
    let folder = workspace().join("deploy/grafana/dashboards");
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&folder).expect("the dashboards are there") {
        let path = entry.expect("it is read").path();
        let name = path.file_name().expect("it is a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect(&name);
        let dashboard: Value = serde_json::from_str(&text).expect(&name);
        let mut queries = Vec::new();
        values(&dashboard, "expr", &mut queries);
        assert!(queries.len() >= 8, "{name} has {} queries", queries.len());
        for query in queries {
            check(query.as_str().expect("a query is a text"), &name);
        }
        for variable in dashboard["templating"]["list"].as_array().expect("it has variables") {
            let Some(query) = variable["query"]["query"].as_str() else { continue };
            let inner = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')'));
            let (metric, label) = inner.and_then(|q| q.rsplit_once(", ")).expect(query);
            check(&format!("count by ({label}) ({metric})"), &name);
        }
        provisionable(&dashboard, &name);
        seen.insert(name);
    }
    let all = ["lb-overview.json", "lb-pair.json", "lb-service.json"].map(str::to_owned);
    assert_eq!(seen, all.into());
}

/// The parts that a dashboard needs in order to be read from a file: no id, a fixed uid, panels that stand beside
/// each other, and a source of data that is chosen where it is read.
fn provisionable(dashboard: &Value, name: &str) {
    assert!(dashboard["id"].is_null(), "{name}: the id is Grafana's");
    assert_eq!(dashboard["uid"].as_str(), name.strip_suffix(".json"), "{name}");
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36), "{name}");
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect(name) {
        let title = panel["title"].as_str().expect("a panel has a title");
        assert!(ids.insert(panel["id"].as_u64()), "{name}: {title}: an id comes twice");
        let side = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        assert!(side("x") + side("w") <= 24, "{name}: {title} is too wide");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(cells.insert((x, y)), "{name}: {title} covers another panel");
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
        }
        // A step as short as Grafana likes holds no two samples, and an increase takes two.
        if panel.to_string().contains("[$__interval]") {
            assert_eq!(panel["interval"], "1m", "{name}: {title}");
        }
    }
    let mut sources = Vec::new();
    values(dashboard, "datasource", &mut sources);
    for source in sources {
        let uid = source["uid"].as_str();
        assert!(matches!(uid, Some("${datasource}" | "-- Grafana --")), "{name}: {source}");
    }
}
