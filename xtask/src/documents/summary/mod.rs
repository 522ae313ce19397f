//! The table at the beginning of each document: a question in a row, with its answer from the records.
//!
//! A row whose record, or whose case in that, is not there is left out. Where lb does worse than what is beside
//! it, or misses an aim, the verdict is in bold.

pub mod faults;
pub mod hooks;
pub mod speed;

use std::{cmp::Ordering, collections::BTreeMap};

use anyhow::{Context as _, Result};
use kit::record::Record;
use serde::{Serialize, de::DeserializeOwned};

use super::{templates::of, typed};

/// A row.
#[derive(Debug, PartialEq, Serialize)]
pub struct Row {
    subject: String,
    /// Of the chapter that has the figures.
    anchor: &'static str,
    lb: String,
    beside: String,
    verdict: String,
}

type Records = BTreeMap<String, Record>;

/// The report in the record of this name, if there is one.
fn report<R: DeserializeOwned>(records: &Records, name: &str) -> Result<Option<R>> {
    let report = records.get(name).map(|record| typed(&record.results)).transpose();
    report.with_context(|| format!("docs/results/{name}.json"))
}

fn row(subject: impl Into<String>, anchor: &'static str, cells: [String; 3]) -> Row {
    let [lb, beside, verdict] = cells;
    Row { subject: subject.into(), anchor, lb, beside, verdict }
}

/// The ratio of lb's value to another's, where more is better.
fn more(lb: f64, name: &str, other: f64) -> String {
    let factor = lb / other;
    if factor < 1.0 {
        format!("**behind** {name}: {factor:.2} times")
    } else {
        format!("{factor:.1} times {name}")
    }
}

/// How many times less lb takes than another.
fn less(lb: f64, name: &str, other: f64) -> String {
    let factor = other / lb;
    if factor < 1.0 {
        return format!("**behind** {name}: {:.2} times as much", lb / other);
    }
    format!("{factor:.1} times less than {name}")
}

/// The comparison of a count of failures with another's.
fn broken(lb: usize, name: &str, other: usize) -> String {
    match lb.cmp(&other) {
        Ordering::Less if lb == 0 => "none".into(),
        Ordering::Less => format!("fewer than {name}"),
        Ordering::Equal if lb == 0 => format!("none, as with {name}"),
        Ordering::Equal => format!("as many as with {name}"),
        Ordering::Greater => format!("**behind** {name}"),
    }
}

/// How many of all broke, in a word.
fn some(broken: usize, all: usize) -> String {
    match broken {
        0 => "none",
        _ if broken == all => "**all**",
        _ => "**some**",
    }
    .into()
}

fn part(some: usize, all: usize) -> String {
    of(some as u64, all as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_row_without_a_record() -> Result<()> {
        assert_eq!(speed::rows(&Records::new())?, []);
        assert_eq!(faults::rows(&Records::new())?, []);
        Ok(())
    }

    #[test]
    fn a_verdict_says_where_lb_is_behind() {
        assert_eq!(more(3.0, "HAProxy", 1.5), "2.0 times HAProxy");
        assert_eq!(more(1.0, "HAProxy", 2.0), "**behind** HAProxy: 0.50 times");
        assert_eq!(less(2.0, "IPVS", 4.0), "2.0 times less than IPVS");
        assert_eq!(less(2.0, "IPVS", 1.0), "**behind** IPVS: 2.00 times as much");
        let verdicts = [(0, 0), (0, 3), (2, 3), (3, 3), (4, 3)].map(|(lb, x)| broken(lb, "x", x));
        let expected =
            ["none, as with x", "none", "fewer than x", "as many as with x", "**behind** x"];
        assert_eq!(verdicts, expected);
        assert_eq!([some(0, 7), some(3, 7), some(7, 7)], ["none", "**some**", "**all**"]);
    }
}
