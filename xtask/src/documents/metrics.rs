//! The chapter of `bench metrics`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{Page, table::commas, typed};

#[derive(Deserialize)]
struct Report {
    backends: u64,
    samples: u64,
    bytes: u64,
    scrapes: u64,
    min_ms: f64,
    median_ms: f64,
    max_ms: f64,
    cpu_ms: f64,
    resident_mib: f64,
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let Report { min_ms, median_ms, max_ms, cpu_ms, resident_mib, .. } = typed(results)?;
    let Report { backends, samples, bytes, scrapes, .. } = typed(results)?;
    let [backends, samples] = [backends, samples].map(commas);
    let kib = commas(bytes >> 10);
    page.say(&format!(
        "{scrapes} scrapes of `/metrics` with {backends} backends: {samples} samples, {kib} KiB. From the \
         request to the answer's last byte {median_ms:.1} ms in the median, {min_ms:.1} at least, \
         {max_ms:.1} at most; {cpu_ms:.1} ms of `lbd`'s CPU time each, with all else that it did meanwhile. \
         Resident memory of `lbd`: {resident_mib:.1} MiB."
    ));
    Ok(())
}
