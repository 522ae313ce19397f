//! The documents' commands: those that set up and operate a node or a pair do what the chapters describe, on machines with
//! the package; the others are marked as examples.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    can_run, http::Connection, lab::Lab, markdown::Markdown, status::PairExt as _, wait, ways::Way,
};
use lb_api::status::Pair;

use super::{document, documents};
use crate::package::{booted, booted_pair, install, machine::Machine};

const SOON: Duration = Duration::from_secs(20);

/// A part of a document, whose commands are run one after the other.
struct Section {
    path: &'static str,
    /// Its first heading.
    from: &'static str,
    /// The heading behind it; empty: it goes on to the end.
    until: &'static str,
    /// A line for a shell that makes the section's requirements.
    before: &'static str,
}

const fn section(path: &'static str, from: &'static str, until: &'static str) -> Section {
    Section { path, from, until, before: "true" }
}

const NODE: [Section; 10] = [
    section("README.md", "## Single node", "## Pair of nodes"),
    Section {
        before: "ip address del 10.0.0.100/32 dev eth0",
        ..section("docs/guide/first-service.md", "## Balancer", "")
    },
    section("docs/guide/health-checks.md", "# Health checks", ""),
    section("docs/guide/operations.md", "# Operations", ""),
    section("docs/guide/configuration.md", "# Configuration", ""),
    section("docs/guide/metrics.md", "# Metrics", ""),
    section("docs/guide/kernels.md", "# Kernels", ""),
    section("docs/guide/http.md", "# HTTP", ""),
    Section {
        before: "lbctl capture -w saved.pcap --duration 1s",
        ..section("docs/guide/troubleshooting.md", "# Troubleshooting", "")
    },
    Section {
        before: "lbctl service remove web --yes",
        ..section("docs/guide/from-ipvs.md", "# Coming from IPVS", "")
    },
];

/// Sections for a pair.
const SETUP: Section = section("docs/guide/high-availability.md", "## Setup", "## Operation");
const OPERATION: Section =
    section("docs/guide/high-availability.md", "## Operation", "## Failover time");
const README_PAIR: Section = section("README.md", "## Pair of nodes", "## Figures");

/// Commands in these sections that are examples only, with the reason: whole, or as far as the space at the end.
const EXAMPLES: [(&str, &str); 7] = [
    ("cargo ", "xtask has a grammar and tests of its own"),
    ("curl -sS ", "it is for another host, where the client here does the same"),
    ("htpasswd ", "the machine has no apache2-utils"),
    ("lbctl top", "it needs a terminal, which its own tests have"),
    ("lbctl vrrp status", "it needs a pair, which has a test of its own here"),
    ("scp ", "the test copies the files"),
    ("systemctl restart nginx", "it is for a backend"),
];

impl Section {
    fn blocks(&self, info: &str) -> Result<Vec<String>> {
        let text = document(self.path);
        let (_, text) = text.split_once(self.from).context(self.from).context(self.path)?;
        let end = if self.until.is_empty() { Some(text.len()) } else { text.find(self.until) };
        let text = &text[..end.context(self.until)?];
        let blocks = Markdown::parse(text).blocks.into_iter();
        Ok(blocks.filter(|block| block.info == info).map(|block| block.text).collect())
    }
}

/// The commands of a block for a shell: without comments, with the lines of each joined.
pub fn of(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn is_example(line: &str) -> bool {
    EXAMPLES.iter().any(|(text, _)| line == *text || text.ends_with(' ') && line.starts_with(text))
}

/// Runs the commands of a block that are no examples, and returns how many.
fn run(machine: &Machine, block: &str) -> Result<usize> {
    let mut run = 0;
    for line in of(block).iter().filter(|line| !is_example(line)) {
        // A command that goes on until it is stopped is stopped; a capture may be shorter.
        let typed = if line.contains("--follow") {
            format!("timeout 1 {line}; test $? = 124")
        } else {
            line.replace("--duration 10s", "--duration 1s")
                .replace("--duration 1m", "--duration 1s")
        };
        machine.run(&typed).with_context(|| line.clone())?;
        run += 1;
    }
    Ok(run)
}

#[test]
fn every_command_is_run_or_marked_as_an_example() -> Result<()> {
    let mut run = BTreeSet::new();
    for section in NODE.iter().chain([&SETUP, &OPERATION, &README_PAIR]) {
        let blocks = section.blocks("sh")?;
        ensure!(!blocks.is_empty(), "{} has commands below {}", section.path, section.from);
        run.extend(blocks.into_iter().map(|block| (section.path.to_owned(), block)));
    }
    for (path, markdown) in documents() {
        for block in markdown.blocks.into_iter().filter(|block| block.info == "sh") {
            let line = block.line;
            let are_examples = of(&block.text).iter().all(|command| is_example(command));
            ensure!(
                are_examples || run.contains(&(path.clone(), block.text)),
                "{path}, line {line}: no test runs this; have one do it, or mark the block as `sh example`"
            );
        }
    }
    Ok(())
}

/// The configuration of README's node. By default the ends of drains take minutes.
fn node_config() -> Result<String> {
    let toml = NODE[0].blocks("toml")?;
    let toml = toml.first().context("a file")?;
    let times = "mode = \"dsr\"\nidle_timeout = \"3s\"\ndrain_silence = \"1s\"\n";
    let config = toml.replace("mode = \"dsr\"\n", times);
    ensure!(config != *toml, "the example has a mode: {config}");
    Ok(config)
}

#[test]
fn a_reader_gets_an_answer_by_the_readmes_commands_and_operates_the_node_by_the_guides()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, machine, [package, _]) = booted()?;
    install(&machine, &package)?;
    let config = node_config()?;
    // The README has the operator add it.
    machine.output("ip address del 10.0.0.100/32 dev eth0")?;

    let mut count = 0;
    for section in NODE {
        machine.write("/etc/lb/lb.toml", &config)?;
        if count > 0 {
            machine.run("systemctl stop lbd; rm /var/lib/lb/state.json; systemctl start lbd")?;
            serves(&lab, &machine)?;
        }
        machine.run(section.before)?;
        for block in section.blocks("sh")? {
            count += run(&machine, &block).context(section.path)?;
            if block.contains("systemctl enable --now lbd") {
                serves(&lab, &machine)?;
            }
        }
    }
    ensure!(count > 60, "{count} commands were run");
    Ok(())
}

/// Addresses of the pair in the documents, and in the lab.
const ADDRESSES: [(&str, &str); 2] = [("10.0.0.2:", "10.0.0.5:"), ("10.0.0.3:", "10.0.0.6:")];

#[test]
fn a_reader_makes_a_pair_of_a_node_that_serves_by_the_guides_commands_and_no_connection_breaks()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, [first, second]) = booted_pair()?;
    let node = node_config()?;
    first.write("/etc/lb/lb.toml", &node)?;
    first.run("ip address add 10.0.0.100/32 dev eth0; systemctl enable --now lbd")?;
    serves(&lab, &first)?;
    let mut connection = Connection::open(&lab.client.namespace, Way::DsrV4.target(), SOON)?;
    let backend = connection.get("/")?.ok()?.backend()?;

    // The first line above all tables.
    let toml = SETUP.blocks("toml")?;
    let (top, tables) = toml[0].split_once("\n\n").context("a line above the tables")?;
    let of_first =
        ADDRESSES.iter().fold(format!("{top}\n{node}{tables}"), |text, (written, here)| {
            text.replace(written, here)
        });
    let of_second = of_first
        .replace("priority = 150 ", "priority = 100 ")
        .replace(":3780\"]", ":PEER\"]")
        .replace("10.0.0.6:PEER", "10.0.0.5:3780")
        .replace("listen = \"10.0.0.5:", "listen = \"10.0.0.6:");
    let setup = SETUP.blocks("sh")?;
    let [on_first, on_second, handover] = &setup[..] else { bail!("three blocks: {setup:#?}") };

    first.write("/etc/lb/lb.toml", &of_first)?;
    run(&first, on_first)?;
    for file in ["/etc/lb/sync.key", "/etc/lb/seed"] {
        second.write(file, &first.read(file)?)?;
        second.run(&format!("chmod 0640 {file}"))?;
    }
    second.write("/etc/lb/lb.toml", &of_second)?;
    unreadable_keys_are_named_and_mended(&second)?;
    run(&second, on_second)?;
    active(&first)?;
    // Its last command, and back on the other node.
    run(&first, handover)?;
    assert_eq!(connection.get("/")?.ok()?.backend()?, backend);
    active(&second)?;
    run(&second, "lbctl vrrp failover --all")?;
    active(&first)?;
    assert_eq!(connection.get("/")?.ok()?.backend()?, backend);

    for block in OPERATION.blocks("sh")?.iter().chain(&README_PAIR.blocks("sh")?) {
        for line in of(block) {
            // A node that was drained or restarted takes the addresses back when it knows all flows.
            if line.contains("failover") {
                active(&first)?;
            }
            run(&first, &line)?;
            if line.contains("failover") {
                active(&second)?;
                run(&second, &line)?;
            }
            assert_eq!(connection.get("/")?.ok()?.backend()?, backend, "{line}");
        }
    }
    active(&first)
}

/// The reader has forgotten `chgrp`: root's checks name the files that `lbd` of the package can't read, and the doctor's
/// commands fix it.
fn unreadable_keys_are_named_and_mended(machine: &Machine) -> Result<()> {
    const FILES: [&str; 2] = ["/etc/lb/sync.key", "/etc/lb/seed"];
    let check = machine.output("lbd --check /etc/lb/lb.toml 2>&1")?;
    let text = String::from_utf8_lossy(&check.stdout);
    ensure!(check.status.code() == Some(1), "{text}");
    for file in FILES {
        ensure!(text.contains(&format!("'chgrp lb {file}; chmod 0640 {file}'")), "{text}");
    }
    ensure!(!machine.holds("systemctl start lbd")?, "lbd does not start with these");
    // Each second systemd starts it again, for a moment.
    wait::until_true(SOON, "lbctl names the command that shows the reason", || {
        let text = machine.output("lbctl status 2>&1")?;
        Ok(String::from_utf8_lossy(&text.stdout).contains("'journalctl -u lbd -n 20' shows why"))
    })?;
    let text = machine.output("lbctl doctor -q")?;
    let text = String::from_utf8_lossy(&text.stdout);
    let fixes = text.lines().filter_map(|line| line.trim_start().strip_prefix("fix: chgrp"));
    let fixes: Vec<_> = fixes.map(|fix| format!("chgrp{fix}")).collect();
    ensure!(fixes.len() == FILES.len(), "{text}");
    machine.run(&fixes.join(" && "))?;
    machine.run("lbd --check /etc/lb/lb.toml && systemctl stop lbd").map(drop)
}

/// Waits until the node can hand over: its virtual router is Active, and each node knows all flows of the other.
fn active(machine: &Machine) -> Result<()> {
    wait::until_true(SOON, "the node is Active and its peer knows all flows", || {
        let pair: Pair = serde_json::from_str(&machine.run("lbctl -o json vrrp status")?)?;
        Ok(pair.is_active() && pair.synced())
    })
    .with_context(|| machine.run("lbctl vrrp status").unwrap_or_default())
}

/// Waits until both backends are up, and has the client send requests.
fn serves(lab: &Lab, machine: &Machine) -> Result<()> {
    wait::until_true(SOON, "both backends are up", || {
        Ok(machine.run("lbctl backend list web")?.matches(" up").count() == 2)
    })
    .with_context(|| machine.run("lbctl backend list web").unwrap_or_default())?;
    let mut connection = Connection::open(&lab.client.namespace, Way::DsrV4.target(), SOON)?;
    connection.get("/")?.ok()?;
    Ok(())
}
