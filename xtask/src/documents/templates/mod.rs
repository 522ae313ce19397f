//! The texts of the documents: a Markdown file with placeholders for each chapter, in `templates`, which
//! minijinja fills in.
//!
//! A template has the command's whole report as `report`, its record as `record`, the line of its origin as
//! `origin`, and figures that take more than a filter as its chapter adds them.

use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use minijinja::{Environment, Error, UndefinedBehavior, Value};
use serde::Serialize;

macro_rules! templates {
    ($($name:literal),*) => { [$(($name, include_str!(concat!($name, ".md")))),*] };
}

const TEMPLATES: [(&str, &str); 18] = templates![
    "advertisements",
    "attack",
    "benchmarks",
    "checks",
    "datapath",
    "failover",
    "fuzz",
    "health",
    "http",
    "instructions",
    "kernels",
    "metrics",
    "origin",
    "reliability",
    "scale",
    "soak",
    "sweep",
    "vrrp"
];

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    for (name, text) in TEMPLATES {
        environment.add_template(name, text).expect("the templates are tested");
    }
    environment.add_filter("at_most_ms", at_most_ms);
    environment.add_filter("commas", |number: f64| commas(number.round() as u64));
    environment.add_filter("fixed", fixed);
    environment.add_filter("judged", |is_met: bool| if is_met { "met" } else { "missed" });
    environment.add_filter("mib", |bytes: f64, decimals: usize| mib(bytes, decimals));
    environment.add_filter("of", |some: u64, all: u64| of(some, all));
    environment.add_filter("seconds", seconds);
    environment.add_filter("signed", signed);
    environment.add_filter("total", total);
    environment
});

/// A template with these values.
///
/// # Errors
///
/// If the template asks for a value that is not among them.
pub fn fill(name: &str, values: impl Serialize) -> Result<String> {
    let text = ENVIRONMENT.get_template(name).and_then(|template| template.render(values));
    text.with_context(|| format!("the template {name}.md"))
}

/// A whole number with commas: 16,777,216.
pub fn commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part and the whole: 3 of 1,000.
pub fn of(some: u64, all: u64) -> String {
    format!("{} of {}", commas(some), commas(all))
}

/// Bytes in MiB, with so many decimals.
pub fn mib(bytes: f64, decimals: usize) -> String {
    format!("{:.decimals$}", bytes / f64::from(1 << 20))
}

/// A number with so many decimals; a dash for none.
fn fixed(number: Option<f64>, decimals: usize) -> String {
    number.map_or_else(|| "-".into(), |number| format!("{number:.decimals$}"))
}

/// The same with its sign.
fn signed(number: Option<f64>, decimals: usize) -> String {
    number.map_or_else(|| "-".into(), |number| format!("{number:+.decimals$}"))
}

/// Milliseconds in seconds; a dash for none.
fn seconds(ms: Option<f64>) -> String {
    fixed(ms.map(|ms| ms / 1e3), 3)
}

/// The bound of a histogram's bucket, in microseconds, in milliseconds; above all bounds for none.
fn at_most_ms(us: Option<f64>) -> String {
    us.map_or_else(|| "> 1000".into(), |us| format!("≤ {}", us / 1e3))
}

/// The sum of a map's values.
fn total(counts: &Value) -> Result<u64, Error> {
    counts.try_iter()?.map(|key| u64::try_from(counts.get_item(&key)?)).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 999, 1_000, 65_537, 16_777_216].map(commas);
        assert_eq!(texts, ["0", "999", "1,000", "65,537", "16,777,216"]);
    }

    #[test]
    fn every_template_is_well_formed() {
        for (name, _) in TEMPLATES {
            assert!(ENVIRONMENT.get_template(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_value_that_is_missing_is_an_error_that_names_the_template() {
        let err = fill("metrics", BTreeMap::<&str, u64>::new()).expect_err("there is no report");
        assert!(format!("{err:#}").contains("metrics.md"), "{err:#}");
    }

    #[test]
    fn figures_that_are_not_there_are_told_as_such() {
        assert_eq!([fixed(None, 2), signed(None, 1), seconds(None)], ["-"; 3]);
        assert_eq!([at_most_ms(Some(1_500.0)), at_most_ms(None)], ["≤ 1.5", "> 1000"]);
        assert_eq!([fixed(Some(0.125), 1), signed(Some(0.26), 1)], ["0.1", "+0.3"]);
    }
}
