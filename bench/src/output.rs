//! The output of results: tables for people, JSON for programs, and JSON beside the tables for the record.

use std::{fmt::Display, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The format and the file of the output.
#[derive(clap::Args)]
pub struct Output {
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write the JSON here as well
    #[arg(long, hide = true)]
    json_file: Option<PathBuf>,
}

impl Output {
    /// Prints a report, and writes it to the file.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn print<R: Serialize + Display>(&self, report: &R) -> Result<()> {
        let text = serde_json::to_string_pretty(report)?;
        if let Some(path) = &self.json_file {
            fs::write(path, &text).with_context(|| format!("write {}", path.display()))?;
        }
        if self.json {
            println!("{text}");
        } else {
            print!("{report}");
        }
        Ok(())
    }
}
