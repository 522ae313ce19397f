//! Holds `ARCHITECTURE.md` to the code: its paths, and the items that it names.
//!
//! A path is text in backticks that ends in `.rs` or in a slash, relative to the workspace's folder; one that begins
//! with the name of a crate of the user side is relative to that crate's. An item is text in backticks that follows a
//! path, or another item, after a comma: as `walk` in "(`lb-ebpf/src/walk.rs`, `walk`)". The file must define it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::workspace;

/// The words before the name of an item in its definition.
const KINDS: [&str; 9] =
    ["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "macro_rules!"];

/// The document.
fn architecture() -> String {
    fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable")
}

/// Where a path is.
fn file(path: &str) -> PathBuf {
    let part =
        path.strip_prefix("lb-").map(|rest| workspace().join("lb-userspace/crates").join(rest));
    part.filter(|part| part.exists()).unwrap_or_else(|| workspace().join(path))
}

/// The texts in backticks, each with the text between it and the one before.
fn spans(text: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = text.split('`').collect();
    let (pairs, _) = parts.as_chunks::<2>();
    pairs.iter().map(|&[before, code]| (before, code)).collect()
}

fn is_path(code: &str) -> bool {
    code.ends_with('/') || Path::new(code).extension().is_some_and(|extension| extension == "rs")
}

/// The items that a text names, each with the path of its file.
fn items(text: &str) -> Vec<(&str, &str)> {
    let mut file = None;
    let mut items = Vec::new();
    for (before, code) in spans(text) {
        if is_path(code) {
            file = Some(code);
        } else if before.trim() == "," {
            items.extend(file.map(|file| (file, code)));
        } else {
            file = None;
        }
    }
    items
}

/// Whether a source defines an item, which may be named with its module: `module::function`.
fn defines(source: &str, item: &str) -> bool {
    let name = item.rsplit("::").next().unwrap_or(item);
    let definitions = KINDS.map(|kind| format!("{kind} {name}"));
    let is_part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut code = source.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    code.any(|line| {
        definitions.iter().any(|definition| {
            line.split_once(definition.as_str()).is_some_and(|(before, after)| {
                !before.ends_with(is_part_of_a_name) && !after.starts_with(is_part_of_a_name)
            })
        })
    })
}

#[test]
fn every_path_in_the_architecture_exists() {
    let text = architecture();
    let paths = spans(&text).into_iter().map(|(_, code)| code).filter(|code| is_path(code));
    let missing: Vec<_> = paths.filter(|path| !file(path).exists()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names paths that do not exist: {missing:?}");
}

#[test]
fn every_item_in_the_architecture_is_defined_in_its_file() {
    let text = architecture();
    let is_undefined = |(path, item): &(&str, &str)| {
        let source = fs::read_to_string(file(path)).unwrap_or_default();
        !defines(&source, item)
    };
    let missing: Vec<_> = items(&text).into_iter().filter(is_undefined).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names items that are not there: {missing:?}");
}

#[test]
fn an_item_follows_its_file_after_a_comma() {
    let text = "`a/b.rs`, `one`,\n   `two` calls `three`; `a/`, `c.rs` and `four`; `d.rs`: `five`";
    assert_eq!(items(text), [("a/b.rs", "one"), ("a/b.rs", "two")]);
    let codes = spans(text).into_iter().map(|(_, code)| code);
    let paths: Vec<_> = codes.filter(|code| is_path(code)).collect();
    assert_eq!(paths, ["a/b.rs", "a/", "c.rs", "d.rs"]);
}

#[test]
fn a_definition_is_found_by_its_whole_name_outside_of_comments() {
    let source = "/// fn sent() {}\npub(super) fn walk_all() {}\n    const fn step() {}\nmod exit;";
    assert!(["walk_all", "ring::step", "exit"].iter().all(|item| defines(source, item)));
    assert!(!["walk", "all", "sent", "tep"].iter().any(|item| defines(source, item)));
}
