//! The documents' examples: the programs take all configurations and commands, settings and alerts are all listed.

mod commands;

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::Parser as _;
use kit::markdown::Markdown;
use lb_api::event::Kind;
use lb_cli::cli::{Cli, Lbd};
use lb_common::{
    tx_errors,
    verdict::{Drop, Pass},
};
use lb_config::Config;

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).expect(path)
}

/// The README and the guide, by their paths.
fn documents() -> Vec<(String, Markdown)> {
    let mut paths = vec!["README.md".to_owned()];
    for folder in ["docs/guide", "docs/dev"] {
        for entry in fs::read_dir(workspace().join(folder)).expect(folder) {
            let name = entry.expect(folder).file_name().into_string().expect("a name");
            if name.ends_with(".md") {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.into_iter().map(|path| (path.clone(), Markdown::parse(&document(&path)))).collect()
}

#[test]
fn commands_in_the_documents_are_what_the_grammars_take() {
    let mut checked = 0;
    for (path, markdown) in documents() {
        for block in markdown.blocks.iter().filter(|block| block.info.starts_with("sh")) {
            let lines = commands::of(&block.text);
            let parts = lines.iter().flat_map(|line| line.split(['|', ';', '>', '&', '(']));
            for part in parts.map(str::trim) {
                let words = part.split_whitespace().map(|word| word.trim_matches(['\'', ')']));
                let error = match part.split(' ').next() {
                    Some("lbctl") => Cli::try_parse_from(words).err(),
                    Some("lbd") => Lbd::try_parse_from(words).err(),
                    _ => continue,
                };
                checked += 1;
                assert!(error.is_none(), "{path}, line {}: {part}: {error:?}", block.line);
            }
        }
    }
    assert!(checked > 80, "{checked}");
}

#[test]
fn configurations_in_the_documents_are_valid() {
    const INTERFACES: &str = "interfaces = [\"eth0\"]\n";
    const SERVICE: &str =
        "[[service]]\nname = \"web\"\nvip = \"10.0.0.9\"\nport = 9\nprotocol = \"tcp\"\n";
    const ROUTER: &str = "mode = \"dsr\"\n[[virtual_router]]\nname = \"a\"\ninterface = \"eth0\"\nvrid = 9\n\
        addresses = [\"10.0.0.9\"]\n";
    // A part of a file stands where such a part may.
    let around = [
        String::new(),
        INTERFACES.to_owned(),
        format!("{INTERFACES}{SERVICE}"),
        format!("{INTERFACES}{SERVICE}{ROUTER}"),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("key");
    fs::write(&key, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n")
        .expect("written");
    let mut checked = 0;
    for (path, markdown) in documents() {
        for block in markdown.blocks.iter().filter(|block| block.info == "toml") {
            let text = block.text.replace("/etc/lb/sync.key", &key.display().to_string());
            let results: Vec<_> = around
                .iter()
                .map(|before| Config::parse_to_start(&format!("{before}{text}")))
                .collect();
            let mistakes: Vec<_> = results.iter().map(|result| result.as_ref().err()).collect();
            assert!(
                results.iter().any(Result::is_ok),
                "{path}, line {}: {mistakes:#?}\n{text}",
                block.line
            );
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

/// A setting: its table, its key, and its default if the example shows one.
type Setting = (String, String, Option<String>);

/// Keys whose value in the example is no default.
const SHOWN: [&str; 22] = [
    "seed",
    "target_port",
    "name",
    "drain_deadline",
    "family",
    "host",
    "body",
    "port",
    "peers",
    "source",
    "password",
    "notify",
    "second_path",
    "hmac_key_file",
    "min_ttl",
    "hmac_key_id",
    "multicast",
    "node",
    "allowed_hosts",
    "bearer_token_file",
    "basic_auth_file",
    "tls",
];

/// The settings of `deploy/lb.toml`, which `lbd` takes with every key commented in.
fn example() -> BTreeSet<Setting> {
    let mut table = String::new();
    let mut found = BTreeSet::new();
    for line in document("deploy/lb.toml").lines() {
        let is_comment = line.trim_start().starts_with('#');
        let line = line.trim_start().trim_start_matches('#').trim();
        if let Some(name) =
            line.strip_prefix('[').filter(|_| line.contains(']') && !line.contains('='))
        {
            let name = name.trim_start_matches('[').split(']').next().unwrap_or_default();
            table = if name.ends_with(".check") { "check" } else { name }.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || b"_46".contains(&byte))
        {
            let value = value.split(" #").next().unwrap_or(value).trim().to_owned();
            let is_default = is_comment && !SHOWN.contains(&key);
            found.insert((table.clone(), key.to_owned(), is_default.then_some(value)));
        }
    }
    found
}

#[test]
fn the_guide_lists_every_setting_with_its_default() {
    let text = document("docs/guide/settings.md");
    let mut table = String::new();
    let mut listed = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            let name = title.trim_matches(['`', '[', ']']);
            table = match name {
                "Top level" => "",
                "Checks" => "check",
                name => name,
            }
            .to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let (key, rest) = row.split_once("` | ").expect(line);
            let default = rest.split(" | ").next().unwrap_or_default().trim_matches(['|', ' ']);
            let default = default.strip_prefix('`').and_then(|value| value.strip_suffix('`'));
            listed.push((table.clone(), key.to_owned(), default.map(str::to_owned)));
        }
    }
    for (table, key, default) in example() {
        let row = listed.iter().find(|row| row.0 == table && row.1 == key);
        let row = row.unwrap_or_else(|| panic!("settings.md has no `{key}` of [{table}]"));
        if default.is_some() && !["sync", "http", "sync_group"].contains(&table.as_str()) {
            assert_eq!(row.2, default, "`{key}` of [{table}]");
        }
    }
    let known: BTreeSet<_> = example().into_iter().map(|(table, key, _)| (table, key)).collect();
    // Keys that the example names in a sentence only.
    let in_prose = ["insecure", "server_name", "ca_file", "send", "expect", "command"];
    for (table, key, _) in listed {
        let is_known =
            known.contains(&(table.clone(), key.clone())) || in_prose.contains(&key.as_str());
        assert!(is_known, "lb.toml has no `{key}` of [{table}]");
    }
}

#[test]
fn the_guide_lists_every_alert() {
    let rules = document("deploy/prometheus/lb.rules.yml");
    let of_rules: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let chapter = document("docs/guide/metrics.md");
    let listed: BTreeSet<_> =
        chapter.split('`').filter(|word| word.starts_with("Lb") && !word.contains(' ')).collect();
    assert_eq!(listed, of_rules);
}

#[test]
fn the_guide_lists_every_kind_of_event_and_every_reason() {
    let chapter = document("docs/guide/events.md");
    let mut title = "";
    let mut listed = BTreeSet::new();
    for line in chapter.lines() {
        title = line.strip_prefix("## ").unwrap_or(title);
        let cells: Vec<_> = line.split(" | ").collect();
        let Some(names) = cells[0].strip_prefix("| `") else { continue };
        let names: Vec<_> = names.split('`').step_by(2).filter(|name| !name.is_empty()).collect();
        let levels: Vec<_> = if title.ends_with("events") {
            cells[1].split(", ").cycle().take(names.len()).collect()
        } else {
            vec![title; names.len()]
        };
        listed.extend(levels.into_iter().zip(names).map(|(of, name)| (of.to_lowercase(), name)));
    }
    let events =
        Kind::ALL.iter().map(|kind| (kind.level().to_string().to_lowercase(), kind.name()));
    let drops = Drop::ALL.iter().map(|reason| reason.name());
    let drops = drops.chain(tx_errors::Reason::ALL.iter().map(|error| error.name()));
    let drops = drops.map(|name| ("drop reasons".to_owned(), name));
    let passes = Pass::ALL.iter().map(|reason| ("pass reasons".to_owned(), reason.name()));
    let of_code: BTreeSet<_> = events.chain(drops).chain(passes).collect();
    let others = ["vrrp reasons", "synchronisation reasons"];
    listed.retain(|(of, _)| !others.contains(&of.as_str()));
    assert_eq!(listed, of_code);
}
