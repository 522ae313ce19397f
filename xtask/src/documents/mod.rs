//! `docs/BENCHMARKS.md` and `docs/RELIABILITY.md`: written of the records in `docs/results`, and of nothing
//! else, so that no figure in them is typed by hand.
//!
//! Each kind of record has a file here that renders it. A command with `--save` keeps its record and
//! writes both documents anew.

mod advertisements;
mod attack;
mod book;
mod datapath;
mod failover;
mod fuzz;
mod health;
mod http;
mod instructions;
mod kernels;
mod metrics;
#[cfg(test)]
mod names;
pub mod plot;
#[cfg(test)]
mod prose;
mod scale;
mod soak;
pub mod table;
mod vrrp;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use kit::record::{Machine, Record};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The records' folder in the workspace.
const RESULTS: &str = "docs/results";

/// How a benchmark tells what it measured.
#[derive(clap::Args, Clone, Copy)]
pub struct Saving {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Keep the results in docs/results, and write docs/BENCHMARKS.md and docs/RELIABILITY.md anew
    #[arg(long)]
    pub save: bool,
}

/// What is written of a document: its text, and its plots by name.
#[derive(Default)]
pub struct Page {
    /// Markdown.
    pub text: String,
    /// The command that measured what the chapter tells.
    pub command: String,
    /// The CPUs that it could use.
    pub cores: usize,
    plots: BTreeMap<String, String>,
}

impl Page {
    /// Adds a paragraph.
    pub fn say(&mut self, paragraph: &str) {
        let _ = writeln!(self.text, "\n{paragraph}");
    }

    /// Adds a plot, with a text for who can't see it.
    pub fn plot(&mut self, name: &str, text: &str, svg: String) {
        let _ = writeln!(self.text, "\n![{text}](plots/{name}.svg)");
        self.plots.insert(name.to_owned(), svg);
    }

    /// Whether the command has this word.
    pub fn has(&self, word: &str) -> bool {
        self.command.split([' ', '=']).any(|one| one == word)
    }
}

/// How a record's results are written.
type Render = fn(&Value, &mut Page) -> Result<()>;

/// A chapter: the record that it is about, its title, how it is written.
struct Chapter {
    record: &'static str,
    title: &'static str,
    render: Render,
}

const fn chapter(record: &'static str, title: &'static str, render: Render) -> Chapter {
    Chapter { record, title, render }
}

/// A document: its file in `docs`, its title, what is said before all, its chapters.
struct Document {
    file: &'static str,
    title: &'static str,
    begin: &'static str,
    chapters: &'static [Chapter],
}

const DOCUMENTS: [Document; 2] = [
    Document {
        file: "BENCHMARKS.md",
        title: "Benchmarks",
        begin: include_str!("benchmarks.md"),
        chapters: &[
            chapter("datapath", "A packet in the program", datapath::render),
            chapter("instructions", "A packet in instructions", instructions::render),
            chapter("http", "Beside the alternatives", http::render),
            chapter("scale", "More of everything", scale::render),
            chapter("health", "Health checks", health::render),
            chapter("metrics", "A scrape", metrics::render),
        ],
    },
    Document {
        file: "RELIABILITY.md",
        title: "Reliability",
        begin: include_str!("reliability.md"),
        chapters: &[
            chapter("failover", "A backend fails", failover::render),
            chapter("vrrp", "A node of the pair fails", vrrp::render),
            chapter("advertisements", "Advertisements of a pair", advertisements::render),
            chapter("attack", "Floods", attack::render),
            chapter("soak", "Anything at any time", soak::render),
            chapter("fuzz", "Any bytes", fuzz::render),
            chapter("kernels", "Other kernels", kernels::render),
        ],
    },
];

/// Keeps a record of what a command measured, and writes the documents.
///
/// # Errors
///
/// If `results` is not what the command tells, or a file can't be written.
pub fn save(name: &str, programs: &[&str], results: &str) -> Result<()> {
    let results = serde_json::from_str(results).with_context(|| format!("results of {name}"))?;
    let workspace = crate::workspace();
    let record = Record::new(name, command(), programs, results)?;
    let record = Record { revision: revision(&workspace), ..record };
    let path = record.save(&workspace.join(RESULTS))?;
    println!("kept: {}", path.strip_prefix(&workspace).unwrap_or(&path).display());
    write()
}

/// The results in the record of this name, if there is one.
///
/// # Errors
///
/// If the records can't be read.
pub fn kept(name: &str) -> Result<Option<Value>> {
    let mut records = Record::all(&crate::workspace().join(RESULTS))?;
    Ok(records.remove(name).map(|record| record.results))
}

/// What does not change the results. Whoever repeats a measurement may not want the files of the tree
/// overwritten, either.
const NOT_REPEATED: [&str; 4] = ["--save", "--json", "--update", "--keep"];

/// What was typed, less what is not to be repeated.
fn command() -> String {
    let words = ["cargo".to_owned(), "xtask".to_owned()].into_iter();
    let words: Vec<_> = words.chain(std::env::args().skip(1)).collect();
    repeated(&words.join(" "))
}

/// A command, less what is not to be repeated.
fn repeated(command: &str) -> String {
    let words: Vec<_> = command.split(' ').filter(|word| !NOT_REPEATED.contains(word)).collect();
    words.join(" ")
}

/// The commit of the tree, with a `+` if the tree differs from it in what is not documents. None
/// without git.
fn revision(workspace: &Path) -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").arg("-C").arg(workspace).args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--", ".", ":(exclude)docs"])?;
    Some(if changes.is_empty() { commit } else { commit + "+" })
}

/// Writes both documents of the records that there are.
///
/// # Errors
///
/// If a record is not as its command tells it, or a file can't be written.
pub fn write() -> Result<()> {
    let docs = crate::workspace().join("docs");
    let records = Record::all(&crate::workspace().join(RESULTS))?;
    for (path, text) in render(&records)? {
        let path = docs.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("written: docs/BENCHMARKS.md, docs/RELIABILITY.md");
    Ok(())
}

/// `cargo xtask documents`: writes the documents, and the guide as a book.
///
/// # Errors
///
/// If one of them can't be written.
pub fn run() -> Result<()> {
    write()?;
    book::build()
}

/// The files of all documents, by their paths in `docs`.
fn render(records: &BTreeMap<String, Record>) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for document in &DOCUMENTS {
        let mut page = Page::default();
        let _ = writeln!(page.text, "# {}\n\n{}", document.title, document.begin.trim_end());
        for chapter in document.chapters {
            // What was never measured has nothing to say.
            let Some(record) = records.get(chapter.record) else { continue };
            let _ = writeln!(page.text, "\n## {}", chapter.title);
            page.command.clone_from(&record.command);
            page.cores = record.machine.cores;
            (chapter.render)(&record.results, &mut page)
                .with_context(|| format!("{RESULTS}/{}.json", chapter.record))?;
            origin(record, &mut page);
        }
        for (name, svg) in page.plots {
            files.insert(Path::new("plots").join(name + ".svg"), svg);
        }
        files.insert(document.file.into(), page.text);
    }
    Ok(files)
}

/// Where the figures are from, and how to repeat them.
fn origin(record: &Record, page: &mut Page) {
    let Machine { cpu, cores, memory_bytes, kernel, virtualised } = &record.machine;
    let gib = *memory_bytes as f64 / f64::from(1 << 30);
    let guest = if *virtualised { ", a virtual machine" } else { "" };
    let versions: Vec<_> =
        record.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let (name, command, date) = (&record.name, repeated(&record.command), &record.date);
    let revision = record.revision.as_ref().map_or_else(String::new, |revision| {
        let (commit, changes) = match revision.strip_suffix('+') {
            Some(commit) => (commit, " and changes that are not in it"),
            None => (revision.as_str(), ""),
        };
        format!("; commit {commit}{changes}")
    });
    page.say(&format!(
        "<sub>`{command}`, {date}{revision}; {cores} cores of {cpu}, {gib:.0} GiB{guest}; Linux {kernel}; {}. \
         Raw figures: [results/{name}.json](results/{name}.json).</sub>",
        versions.join(", "),
    ));
}

/// The results, as the command's own types.
///
/// # Errors
///
/// If they are something else.
fn typed<T: DeserializeOwned>(results: &Value) -> Result<T> {
    T::deserialize(results).context("not what the command tells today; run it again with --save")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_those_of_the_records() -> Result<()> {
        let workspace = crate::workspace();
        let records = Record::all(&workspace.join(RESULTS))?;
        for (path, text) in render(&records)? {
            let path = workspace.join("docs").join(path);
            let kept = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            assert!(kept == text, "{}: `cargo xtask documents` writes it anew", path.display());
        }
        Ok(())
    }

    #[test]
    fn every_record_has_a_chapter() -> Result<()> {
        for name in Record::all(&crate::workspace().join(RESULTS))?.keys() {
            let chapters = || DOCUMENTS.iter().flat_map(|document| document.chapters);
            assert!(chapters().any(|chapter| chapter.record == name), "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_chapter_without_a_record_is_not_printed() -> Result<()> {
        for (path, text) in render(&BTreeMap::new())? {
            assert!(
                !text.contains("\n## ") && !text.contains("Not measured."),
                "{}",
                path.display()
            );
        }
        Ok(())
    }

    #[test]
    fn a_record_is_told_with_its_command_and_its_commit() -> Result<()> {
        let results = serde_json::json!({ "cells": [] });
        let command = "cargo xtask bench failover --rounds 3 --update --keep --save --json";
        let record = Record::new("failover", command.into(), &[], results)?;
        let line = |record: &Record| -> Result<String> {
            let files = render(&BTreeMap::from([("failover".to_owned(), record.clone())]))?;
            let text = &files[Path::new("RELIABILITY.md")];
            let line = text.lines().find(|line| line.starts_with("<sub>"));
            Ok(line.unwrap_or_default().to_owned())
        };
        let date = &record.date;
        let begin = format!("<sub>`cargo xtask bench failover --rounds 3`, {date}; ");
        assert!(line(&record)?.starts_with(&begin), "{}", line(&record)?);
        let of = |revision: &str| Record { revision: Some(revision.into()), ..record.clone() };
        let commit = line(&of("1455f7c0a1b2"))?;
        assert!(commit.contains(&format!("{date}; commit 1455f7c0a1b2; ")), "{commit}");
        let changed = line(&of("1455f7c0a1b2+"))?;
        assert!(changed.contains("1455f7c0a1b2 and changes that are not in it; "), "{changed}");
        Ok(())
    }

    #[test]
    fn a_page_knows_the_words_of_its_command() {
        let command = "cargo xtask fuzz api --jobs 6".into();
        let page = Page { command, ..Page::default() };
        assert!(page.has("api") && page.has("--jobs") && !page.has("--seconds"));
    }

    #[test]
    fn results_of_another_shape_are_refused_with_what_to_do() -> Result<()> {
        let results = serde_json::json!({ "cells": 7 });
        let record = Record::new("vrrp", "cargo xtask bench vrrp".into(), &[], results)?;
        let err = render(&BTreeMap::from([("vrrp".to_owned(), record)])).expect_err("no cells");
        let err = format!("{err:#}");
        assert!(err.contains("docs/results/vrrp.json") && err.contains("--save"), "{err}");
        Ok(())
    }
}
