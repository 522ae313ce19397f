//! A reader of the text format that takes nothing that is not as it should be.

use std::collections::{BTreeMap, BTreeSet};

/// The exported families, by name.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    pub families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// All labels that its samples have; not `le`.
    pub labels: BTreeSet<String>,
    pub samples: usize,
}

/// Reads a page.
///
/// # Panics
///
/// Where it is not well formed: a family twice, a sample twice or of no family, labels that differ.
pub fn parse(page: &str) -> Exposition {
    let mut exposition = Exposition::default();
    let mut name = String::new();
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (family, help) = help.split_once(' ').expect(line);
            name = family.to_owned();
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(exposition.families.insert(name.clone(), family).is_none(), "{name} twice");
            continue;
        }
        let family = exposition.families.get_mut(&name).expect("a head comes first");
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (of, kind) = kind.split_once(' ').expect(line);
            assert_eq!(of, name);
            family.kind = kind.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(series.to_owned()), "{series} twice");
        let (of, labels) = series.split_once('{').unwrap_or((series, "}"));
        let suffix = of.strip_prefix(name.as_str()).expect(line);
        let suffixes: &[&str] =
            if family.kind == "histogram" { &["_sum", "_count", "_bucket"] } else { &[""] };
        assert!(suffixes.contains(&suffix), "{line} of a {}", family.kind);
        let mut labels = keys(labels.strip_suffix('}').expect(line));
        assert_eq!(labels.remove("le"), suffix == "_bucket", "{line}");
        assert!(family.samples == 0 || family.labels == labels, "{line}: labels differ");
        family.labels = labels;
        family.samples += 1;
    }
    exposition
}

/// The keys of `a="b",c="d"`.
fn keys(mut labels: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    while let Some((key, rest)) = labels.split_once("=\"") {
        assert!(keys.insert(key.trim_start_matches(',').to_owned()), "{key} twice");
        let mut escaped = false;
        let ends = |c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        };
        let end = rest.find(ends).expect("a quote ends it");
        labels = &rest[end + 1..];
    }
    assert_eq!(labels, "");
    keys
}
