//! The results of `bench metrics`, as a text for people and as JSON for programs.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Between two scrapes: `lbd` makes a new answer ten times a second at most.
pub const PAUSE: Duration = Duration::from_millis(250);

/// The results.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// Backends that it exports.
    pub backends: usize,
    /// Samples of an answer.
    pub samples: usize,
    /// Bytes of an answer.
    pub bytes: usize,
    /// How often it was scraped.
    pub scrapes: u32,
    /// From the request to the answer's last byte: minimum.
    pub min_ms: f64,
    /// The same: median.
    pub median_ms: f64,
    /// The same: maximum.
    pub max_ms: f64,
    /// CPU time of all of `lbd`, for each scrape and the pause after it.
    pub cpu_ms: f64,
    /// Memory of `lbd` in RAM.
    pub resident_mib: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backends, samples, bytes, scrapes, .. } = self;
        let mib = *bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{scrapes} scrapes of {backends} backends: {samples} samples, {mib:.1} MiB\n\
             from the request to the answer's last byte: min {:.1} ms, median {:.1} ms, max {:.1} ms\n\
             CPU time of lbd for each, with all else that it does in {} ms: {:.1} ms\n\
             resident memory of lbd: {:.1} MiB",
            self.min_ms,
            self.median_ms,
            self.max_ms,
            PAUSE.as_millis(),
            self.cpu_ms,
            self.resident_mib,
        )
    }
}
