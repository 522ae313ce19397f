//! The exported metrics: their names, formats and size.

mod exposition;
mod node;
mod promql;
mod shipped;

use std::{collections::BTreeSet, fs, path::Path};

use self::{
    exposition::{Exposition, parse},
    node::node,
};
use super::*;

/// A page in one piece.
fn write(names: Names, status: Status, process: Option<Process>, format: Format) -> String {
    let (writer, pieces) = pieces::open(format);
    let drops = BTreeMap::from([("eth0".to_owned(), Drops { qdisc: 5, device: 7 })]);
    super::write(Snapshot { names, status, process, drops }, writer);
    pieces.join().expect("it is whole")
}

/// All that is exported of the node that has everything, in the text format.
fn exported(names: Names) -> Exposition {
    parse(&write(names, node(), Process::read(), Format::Text))
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).expect("the crate is in the workspace")
}

/// A table of the exported metrics.
fn table(exported: &Exposition) -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for (name, family) in &exported.families {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        table += &format!("| `{name}` | {} | {labels} | {} |\n", family.kind, family.help);
    }
    table
}

#[test]
fn the_tables_of_metrics_are_what_is_exported() {
    let path = workspace().join("docs/METRICS.md");
    let document = fs::read_to_string(&path).expect("the document is there");
    let mut wanted = document.clone();
    for (mark, names) in [("lb", Names::Own), ("haproxy", Names::HaProxy)] {
        let (begin, end) = (format!("<!-- {mark}: begin -->\n"), format!("<!-- {mark}: end -->"));
        let from = wanted.find(&begin).expect(&begin) + begin.len();
        let to = wanted.find(&end).expect(&end);
        wanted.replace_range(from..to, &table(&exported(names)));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &wanted).expect("it is written");
    }
    assert!(document == wanted, "UPDATE_GOLDEN=1 writes {}", path.display());
}

#[test]
fn names_and_helps_follow_the_rules_of_prometheus() {
    for (name, family) in exported(Names::Own).families {
        assert!(name.starts_with("lb_") || name.starts_with("process_"), "{name}");
        assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
        let allowed = |c: char| c.is_ascii_graphic() || c == ' ';
        assert!(family.help.chars().all(allowed) && !family.help.contains(['\\', '|']), "{name}");
        assert!(family.help.len() > 10 && !family.help.ends_with('.'), "{name}");
        // A scraper adds the node and the job; labels of these names would be renamed.
        for label in ["instance", "job", "node"] {
            let excepted = name == "lb_sync_peer_info" && label == "node";
            assert!(excepted || !family.labels.contains(label), "{name} has {label}");
        }
    }
}

#[test]
fn both_formats_have_the_same_samples() {
    for names in [Names::Own, Names::HaProxy] {
        let page = |format| write(names, node(), None, format);
        let (text, openmetrics) = (page(Format::Text), page(Format::OpenMetrics));
        let samples = |page: &str| -> Vec<String> {
            let samples = page.lines().filter(|line| !line.starts_with('#'));
            // These are ages, and a second may begin in between.
            samples.filter(|line| !line.contains("last_change")).map(str::to_owned).collect()
        };
        assert_eq!(samples(&text), samples(&openmetrics));
        assert!(openmetrics.ends_with("\n# EOF\n"));
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }
    let openmetrics = write(Names::Own, node(), None, Format::OpenMetrics);
    assert!(openmetrics.contains("# UNIT lb_service_bytes bytes\nlb_service_bytes_total{"));
}

#[test]
fn what_a_peer_calls_itself_breaks_no_line() {
    let mut status = node();
    status.peers[0].session.node = Some("a\"} 1\n# HELP lb_pins \\".into());
    let page = write(Names::Own, status, None, Format::Text);
    assert!(page.contains(r#",node="a\"} 1\n# HELP lb_pins \\"} 1"#), "{page}");
    assert_eq!(parse(&page).families.len(), exported_without_process());
}

fn exported_without_process() -> usize {
    parse(&write(Names::Own, node(), None, Format::Text)).families.len()
}

#[test]
fn a_node_without_anything_is_told_without_empty_families() {
    for names in [Names::Own, Names::HaProxy] {
        let page = write(names, Status::default(), None, Format::Text);
        for (name, family) in parse(&page).families {
            assert!(family.samples > 0, "{name} has no samples");
        }
    }
}

#[test]
fn a_peer_that_follows_knows_all_though_the_last_is_on_its_way() {
    for (complete_there, follows, value) in [(true, true, 1), (false, true, 1), (false, false, 0)] {
        let mut status = node();
        let session = &mut status.peers[0].session;
        (session.complete_there, session.follows) = (complete_there, follows);
        let page = write(Names::Own, status, None, Format::Text);
        let line = format!("lb_sync_complete{{peer=\"10.0.0.3:3780\",at=\"there\"}} {value}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
}

/// Sixty bytes a sample and forty samples a backend are what a scrape of a thousand must stay near to.
#[test]
fn the_number_of_samples_depends_on_the_configuration_alone() {
    let samples = |status: Status| {
        let page = write(Names::Own, status, None, Format::Text);
        parse(&page).families.values().map(|family| family.samples).sum::<usize>()
    };
    let before = samples(node());
    let mut busy = node();
    busy.pins.used = 200_000;
    busy.events.extend([("backend_down".to_owned(), 1 << 40), ("what is no kind".into(), 7)]);
    busy.services.values_mut().flat_map(|s| s.backends.values_mut()).for_each(|b| b.pins = 70_000);
    assert_eq!(samples(busy), before);
    let mut more = node();
    let web = more.services.get_mut("web").expect("it is there");
    let backend = web.backends.values().next().expect("it has some").clone();
    assert!(backend.check.is_some());
    web.backends.insert("10.9.9.9".parse().expect("an address"), backend);
    assert_eq!(samples(more) - before, 38, "samples of a backend that is checked");
}

#[test]
fn a_backend_has_one_state_at_a_time() {
    let page = write(Names::Own, node(), None, Format::Text);
    let states: Vec<_> =
        page.lines().filter(|line| line.starts_with("lb_backend_state{")).collect();
    let backends: usize = node().services.values().map(|service| service.backends.len()).sum();
    assert_eq!(states.iter().filter(|line| line.ends_with(" 1")).count(), backends);
    let found: BTreeSet<_> = states
        .iter()
        .filter(|line| line.ends_with(" 1"))
        .filter_map(|line| line.split("state=\"").nth(1)?.split('"').next())
        .collect();
    let all = [
        "backup",
        "disabled",
        "down",
        "draining",
        "held",
        "removing",
        "taken_down",
        "unresolved",
        "up",
    ];
    assert_eq!(found, all.into(), "the node that has everything has backends in every state");
}
