//! `docs/BENCHMARKS.md` and `docs/RELIABILITY.md`: written of the records in `docs/results`, and of nothing
//! else, so that no figure in them is typed by hand.
//!
//! The text of a chapter is a template ([`templates`]) with the name of its record; a file here that has this name
//! adds plots, and figures that are computed of several. A command with `--save` keeps its record and writes both
//! documents anew.

mod attack;
mod book;
mod datapath;
mod failover;
mod http;
mod instructions;
#[cfg(test)]
mod names;
pub mod plot;
#[cfg(test)]
mod prose;
mod scale;
mod soak;
mod summary;
pub mod templates;
mod vrrp;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use kit::{
    record::Record,
    reports::{advertisements, health, metrics},
};
use minijinja::{Value, context};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use crate::{fuzz, kernels};
use summary::Row;

/// The records' folder in the workspace.
const RESULTS: &str = "docs/results";

/// How a benchmark prints its results.
#[derive(clap::Args, Clone, Copy)]
pub struct Saving {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Keep the results in docs/results, and write docs/BENCHMARKS.md and docs/RELIABILITY.md anew
    #[arg(long)]
    pub save: bool,
}

/// Plots as SVG, by name.
type Plots = BTreeMap<String, String>;

/// The values of a chapter's template, from a record's results; and the plots that it shows.
type Prepare = fn(&Json, &mut Plots) -> Result<Value>;

/// A chapter: the record that it is about, which its template is named for, and the template's values.
struct Chapter {
    record: &'static str,
    prepare: Prepare,
}

const fn chapter(record: &'static str, prepare: Prepare) -> Chapter {
    Chapter { record, prepare }
}

/// A document: its file in `docs`, the template of its beginning, the rows of the table in that, its chapters.
struct Document {
    file: &'static str,
    begin: &'static str,
    summary: fn(&BTreeMap<String, Record>) -> Result<Vec<Row>>,
    chapters: &'static [Chapter],
}

const DOCUMENTS: [Document; 2] = [
    Document {
        file: "BENCHMARKS.md",
        begin: "benchmarks",
        summary: summary::speed::rows,
        chapters: &[
            chapter("datapath", datapath::prepare),
            chapter("instructions", instructions::prepare),
            chapter("http", http::prepare),
            chapter("scale", scale::prepare),
            chapter("health", report_alone::<health::Report>),
            chapter("metrics", report_alone::<metrics::Report>),
        ],
    },
    Document {
        file: "RELIABILITY.md",
        begin: "reliability",
        summary: summary::faults::rows,
        chapters: &[
            chapter("failover", failover::prepare),
            chapter("vrrp", vrrp::prepare),
            chapter("advertisements", report_alone::<advertisements::Report>),
            chapter("attack", attack::prepare),
            chapter("soak", soak::prepare),
            chapter("fuzz", report_alone::<fuzz::report::Report>),
            chapter("kernels", report_alone::<kernels::Report>),
        ],
    },
];

/// Keeps a record of a command's results, and writes the documents.
///
/// # Errors
///
/// If `results` is not of the command's type, or a file can't be written.
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
/// If the records can't be read, or this one is something else.
pub fn kept<R: DeserializeOwned>(name: &str) -> Result<Option<R>> {
    let records = Record::all(&crate::workspace().join(RESULTS))?;
    records.get(name).map(|record| typed(&record.results)).transpose()
}

/// Options that do not change the results. A repeated measurement may not want the files of the tree
/// overwritten, either.
const NOT_REPEATED: [&str; 4] = ["--save", "--json", "--update", "--keep"];

/// The command line, without options that are not to be repeated.
fn command() -> String {
    let words = ["cargo".to_owned(), "xtask".to_owned()].into_iter();
    let words: Vec<_> = words.chain(std::env::args().skip(1)).collect();
    repeated(&words.join(" "))
}

/// A command, without options that are not to be repeated.
fn repeated(command: &str) -> String {
    let words: Vec<_> = command.split(' ').filter(|word| !NOT_REPEATED.contains(word)).collect();
    words.join(" ")
}

/// The commit of the tree, with a `+` if the tree differs from it in other files than documents. None
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
/// If a record is not as its command prints it, or a file can't be written.
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
        let (summary, hooks) = ((document.summary)(records)?, summary::hooks::ratios(records)?);
        let mut text = templates::fill(document.begin, context! { summary, hooks })?;
        let mut plots = Plots::new();
        for Chapter { record: name, prepare } in document.chapters {
            // A record that was never measured has no chapter.
            let Some(record) = records.get(*name) else { continue };
            let chapter = fill(record, *prepare, &mut plots);
            text = text + "\n" + &chapter.with_context(|| format!("{RESULTS}/{name}.json"))?;
        }
        for (name, svg) in plots {
            files.insert(Path::new("plots").join(name + ".svg"), svg);
        }
        files.insert(document.file.into(), text);
    }
    Ok(files)
}

/// A record's chapter.
fn fill(record: &Record, prepare: Prepare, plots: &mut Plots) -> Result<String> {
    let values = prepare(&record.results, plots)?;
    let origin = origin(record)?;
    templates::fill(&record.name, context! { record, origin, ..values })
}

/// Where the figures are from, and how to repeat them.
fn origin(record: &Record) -> Result<String> {
    let command = repeated(&record.command);
    let revision = record.revision.as_deref().unwrap_or_default();
    let commit = revision.trim_end_matches('+');
    let is_changed = revision.ends_with('+');
    let line = templates::fill("origin", context! { record, command, commit, is_changed })?;
    Ok(line.trim_end().to_owned())
}

/// The report itself, of which the template takes all figures.
fn report_alone<R: Serialize + DeserializeOwned>(results: &Json, _: &mut Plots) -> Result<Value> {
    let report: R = typed(results)?;
    Ok(context! { report })
}

/// The results, as the command's own types.
///
/// # Errors
///
/// If they are something else.
fn typed<T: DeserializeOwned>(results: &Json) -> Result<T> {
    T::deserialize(results).context("not what the command prints today; run it again with --save")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the chapter of these results.
    pub fn rendered(name: &str, command: &str, report: &impl Serialize) -> Result<String> {
        let record = Record::new(name, command.into(), &[], serde_json::to_value(report)?)?;
        let mut chapters = DOCUMENTS.iter().flat_map(|document| document.chapters);
        let chapter = chapters.find(|chapter| chapter.record == name).context("no such chapter")?;
        fill(&record, chapter.prepare, &mut Plots::new())
    }

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
            let mut chapters = DOCUMENTS.iter().flat_map(|document| document.chapters);
            assert!(chapters.any(|chapter| chapter.record == name), "{name}");
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
    fn a_report_holds_all_that_its_record_has() -> Result<()> {
        fn check<R: Serialize + DeserializeOwned>(
            records: &BTreeMap<String, Record>,
            name: &str,
        ) -> Result<()> {
            let Some(record) = records.get(name) else { return Ok(()) };
            let report: R = typed(&record.results).context(name.to_owned())?;
            assert_eq!(serde_json::to_value(report)?, record.results, "{name}");
            Ok(())
        }
        let all = Record::all(&crate::workspace().join(RESULTS))?;
        check::<advertisements::Report>(&all, "advertisements")?;
        check::<kit::reports::attack::Report>(&all, "attack")?;
        check::<kit::reports::datapath::Report>(&all, "datapath")?;
        check::<kit::reports::failover::Report>(&all, "failover")?;
        check::<fuzz::report::Report>(&all, "fuzz")?;
        check::<health::Report>(&all, "health")?;
        check::<kit::reports::http::Report>(&all, "http")?;
        check::<kit::reports::instructions::Report>(&all, "instructions")?;
        check::<kernels::Report>(&all, "kernels")?;
        check::<metrics::Report>(&all, "metrics")?;
        check::<kit::reports::scale::Report>(&all, "scale")?;
        check::<kit::reports::soak::Report>(&all, "soak")?;
        check::<kit::reports::vrrp::Report>(&all, "vrrp")
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
