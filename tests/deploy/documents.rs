//! The documents' examples: configurations and commands are what the programs take, and the commands of the chapters
//! that operate one node do what they say, on a machine with the package.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use kit::{can_run, http::Connection, lab::Lab, markdown::Markdown, wait, ways::Way};
use lb_userspace::{
    cli::{Cli, Lbd},
    config::Config,
};

use crate::package::{booted, install, machine::Machine};

const SOON: Duration = Duration::from_secs(20);

/// The chapters whose commands are run, one after the other, and where to begin in each.
const RUN: [(&str, &str); 5] = [
    ("README.md", "## Single node"),
    ("docs/guide/first-service.md", "## Proof"),
    ("docs/guide/health-checks.md", "# Health checks"),
    ("docs/guide/operations.md", "# Operations"),
    ("docs/guide/configuration.md", "# Configuration"),
];

/// Commands in these chapters that are examples only, with the reason: whole, or as far as the space at the end.
const EXAMPLES: [(&str, &str); 6] = [
    ("cargo ", "xtask has a grammar and tests of its own"),
    ("curl ", "the client does the same, below"),
    ("lbctl top", "it needs a terminal, which its own tests have"),
    ("lbctl vrrp ", "it needs a pair, as those of the virtual routers have"),
    ("systemctl restart lbd", "the same"),
    ("systemctl restart nginx", "it is for a backend"),
];

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

/// The commands of a block for a shell: without comments, with the lines of each joined.
fn commands(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn commands_in_the_documents_are_what_the_grammars_take() {
    let mut checked = 0;
    for (path, markdown) in documents() {
        for block in markdown.blocks.iter().filter(|block| block.info == "sh") {
            let lines = commands(&block.text);
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
const SHOWN: [&str; 20] = [
    "seed",
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
fn a_reader_gets_an_answer_by_the_readmes_commands_and_operates_the_node_by_the_guides()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, machine, [package, _]) = booted()?;
    install(&machine, &package)?;
    let readme = document("README.md");
    let (_, node) = readme.split_once(RUN[0].1).context("README has the section")?;
    let markdown = Markdown::parse(node);
    let toml = markdown.blocks.iter().find(|block| block.info == "toml").context("a file")?;
    // By default the ends of drains take minutes.
    let times = "mode = \"dsr\"\nidle_timeout = \"3s\"\ndrain_silence = \"1s\"\n";
    let config = toml.text.replace("mode = \"dsr\"\n", times);
    ensure!(config != toml.text, "the example has a mode: {config}");
    // The README has the operator add it.
    machine.output("ip address del 10.0.0.100/32 dev eth0")?;

    let mut run = 0;
    for (path, from) in RUN {
        machine.write("/etc/lb/lb.toml", &config)?;
        if run > 0 {
            machine.run("systemctl stop lbd; rm /var/lib/lb/state.json; systemctl start lbd")?;
            serves(&lab, &machine)?;
        }
        let text = document(path);
        let (_, text) = text.split_once(from).with_context(|| format!("{path} has {from}"))?;
        for block in Markdown::parse(text).blocks.iter().filter(|block| block.info == "sh") {
            for line in commands(&block.text).iter().filter(|line| !is_example(line)) {
                // A command that goes on until it is stopped is stopped.
                let is_endless = line.contains("--follow");
                let typed = if is_endless {
                    format!("timeout 1 {line}; test $? = 124")
                } else {
                    line.clone()
                };
                machine.run(&typed).with_context(|| format!("{path}: {line}"))?;
                run += 1;
                if line.starts_with("systemctl enable --now lbd") {
                    serves(&lab, &machine)?;
                }
            }
        }
    }
    ensure!(run > 40, "{run} commands were run");
    Ok(())
}

fn is_example(line: &str) -> bool {
    EXAMPLES.iter().any(|(text, _)| line == *text || text.ends_with(' ') && line.starts_with(text))
}

/// Waits until both backends are up, and has the client ask.
fn serves(lab: &Lab, machine: &Machine) -> Result<()> {
    wait::until_true(SOON, "both backends are up", || {
        Ok(machine.run("lbctl backend list web")?.matches(" up").count() == 2)
    })
    .with_context(|| machine.run("lbctl backend list web").unwrap_or_default())?;
    let mut connection = Connection::open(&lab.client.namespace, Way::DsrV4.target(), SOON)?;
    connection.get("/")?.ok()?;
    Ok(())
}
