//! The written documents, as files that a reader goes through: links, headings, sizes, commands and figures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use clap::Parser as _;
use kit::markdown::Markdown;

use super::book::GUIDE;
use crate::{Arguments, without_separator, workspace};

/// The documents with a bound, and their largest size in bytes.
const SIZES: [(&str, usize); 2] = [("README.md", 10_240), ("ARCHITECTURE.md", 15_360)];
/// The same of a chapter of the guide.
const CHAPTER: usize = 12_288;

/// All documents, by their paths in the workspace.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for folder in ["", "docs", GUIDE, "docs/dev"] {
        for entry in fs::read_dir(workspace().join(folder)).expect(folder) {
            let path = entry.expect(folder).path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).expect("a document is text");
                let path = path.strip_prefix(workspace()).expect("it is in the workspace");
                found.insert(path.to_owned(), text);
            }
        }
    }
    found
}

/// `a/b/../c` as `a/c`; none outside of the workspace.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if !normal.pop() => return None,
            Component::Normal(name) => normal.push(name),
            _ => {}
        }
    }
    Some(normal)
}

#[test]
fn no_link_is_dead() {
    let documents = documents();
    let parsed: BTreeMap<_, _> =
        documents.iter().map(|(path, text)| (path, Markdown::parse(text))).collect();
    let mut dead = Vec::new();
    for (path, markdown) in &parsed {
        for link in markdown.links.iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = path.parent().expect("a document is in a folder");
            let target =
                if file.is_empty() { Some(path.to_path_buf()) } else { normal(&folder.join(file)) };
            let there = target.is_some_and(|target| match parsed.get(&target) {
                Some(to) => anchor.is_empty() || to.anchors().iter().any(|one| one == anchor),
                None => anchor.is_empty() && workspace().join(target).exists(),
            });
            if !there {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn each_chapter_of_the_guide_is_in_its_contents_under_its_title() {
    let documents = documents();
    let of = |path: &Path| documents.get(path).expect("it is there");
    let contents = of(&Path::new(GUIDE).join("SUMMARY.md"));
    for (path, text) in documents.iter().filter(|(path, _)| path.starts_with(GUIDE)) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let Some((1, title)) = Markdown::parse(text).headings.first().cloned() else {
            panic!("{} begins with no title", path.display());
        };
        let line = format!("[{title}]({name})");
        assert!(name == "SUMMARY.md" || contents.contains(&line), "SUMMARY.md has no {line}");
    }
    let listed = Markdown::parse(contents).links.len();
    assert_eq!(listed + 1, documents.keys().filter(|path| path.starts_with(GUIDE)).count());
}

#[test]
fn a_document_has_no_heading_twice() {
    let generated = ["docs/BENCHMARKS.md", "docs/RELIABILITY.md", "CHANGELOG.md"].map(Path::new);
    for (path, text) in documents().iter().filter(|(path, _)| !generated.contains(&path.as_path()))
    {
        let headings = Markdown::parse(text).headings;
        let mut titles: Vec<_> = headings.iter().map(|(_, title)| title).collect();
        titles.sort();
        let twice: Vec<_> = titles.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{}: {twice:?}", path.display());
    }
}

#[test]
fn what_a_newcomer_reads_is_short() {
    for (path, text) in documents() {
        let name = path.to_str().expect("a name");
        let most = SIZES.iter().find(|(file, _)| *file == name).map(|(_, most)| *most);
        let most = most.or_else(|| path.starts_with(GUIDE).then_some(CHAPTER));
        assert!(most.is_none_or(|most| text.len() <= most), "{name} has {} bytes", text.len());
    }
}

#[test]
fn commands_of_xtask_in_the_documents_are_what_its_grammar_takes() {
    let mut checked = 0;
    for (path, text) in documents() {
        for block in
            Markdown::parse(&text).blocks.iter().filter(|block| block.info.starts_with("sh"))
        {
            for line in block.text.lines().filter(|line| line.starts_with("cargo xtask ")) {
                let words = line
                    .split(" #")
                    .next()
                    .unwrap_or(line)
                    .split_whitespace()
                    .skip(1)
                    .map(str::to_owned)
                    .collect();
                let parsed = Arguments::try_parse_from(without_separator(words));
                assert!(parsed.is_ok(), "{}: {line}: {}", path.display(), parsed.err().unwrap());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

/// The README's figures are typed; the documents that they link to are written of the records.
#[test]
fn the_readmes_figures_are_in_the_documents_that_they_link_to() {
    let documents = documents();
    let readme = &documents[Path::new("README.md")];
    let (_, figures) = readme.split_once("\n## Figures\n").expect("it has figures");
    let (figures, _) = figures.split_once("\n## ").expect("there is more");
    let mut linked = String::new();
    let mut checked = 0;
    for row in figures.lines().filter(|line| line.starts_with("| ")).skip(1) {
        if let Some(link) = Markdown::parse(row).links.first() {
            let (file, anchor) = link.split_once('#').expect("a figure links to a chapter");
            linked = chapter(&documents[Path::new(file)], anchor);
        }
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for figure in cells[2..].iter().flat_map(|cell| cell.split(' ')) {
            let digits = figure.replace(',', "");
            if digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && digits.len() > 1
            {
                let known = [figure.to_owned(), digits].iter().any(|one| has_number(&linked, one));
                assert!(known, "{figure} is in no table of what the row links to: {row}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 6, "{checked}");
}

/// A chapter of a document, by the anchor of its heading, as far as the next of its level.
fn chapter(text: &str, anchor: &str) -> String {
    let markdown = Markdown::parse(text);
    let at = markdown.anchors().iter().position(|one| one == anchor).expect("links are alive");
    let (level, title) = &markdown.headings[at];
    let sign = "#".repeat(*level);
    let (_, rest) = text.split_once(&format!("\n{sign} {title}\n")).expect("the heading");
    rest.split(&format!("\n{sign} ")).next().unwrap_or(rest).to_owned()
}

/// Whether a number stands in a text by itself, or before its decimals.
fn has_number(text: &str, number: &str) -> bool {
    text.match_indices(number).any(|(at, _)| {
        let before = text[..at].bytes().next_back();
        let after = text[at + number.len()..].bytes().next();
        let is_part =
            |sign: Option<u8>| sign.is_some_and(|sign| sign.is_ascii_digit() || sign == b',');
        !is_part(before) && before != Some(b'.') && !is_part(after)
    })
}
