//! Options and values that several commands take.

use std::{net::IpAddr, ops::RangeInclusive};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use lb_api::{paths, requests::Terms};
use lb_model::{rules, units::unknown_word};

use super::complete;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Tables.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// For what changes something.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Dry {
    /// Change nothing, and show what would change.
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// For what may take a service from its clients.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Confirm {
    /// Change nothing, and show what would change.
    #[arg(long)]
    dry_run: bool,
    /// Don't ask before the last backend of a service, or more, is taken away.
    #[arg(short, long)]
    yes: bool,
}

impl From<Dry> for Terms {
    fn from(Dry { dry_run }: Dry) -> Self {
        Self { dry_run, yes: false }
    }
}

impl From<Confirm> for Terms {
    fn from(Confirm { dry_run, yes }: Confirm) -> Self {
        Self { dry_run, yes }
    }
}

/// A backend by its service and address.
#[derive(Clone, Debug, Args)]
pub(super) struct BackendSelector {
    /// The service's name.
    #[arg(add = ArgValueCandidates::new(complete::services))]
    pub(super) service: String,
    /// The backend's address.
    #[arg(value_parser = rules::backend_address, add = ArgValueCandidates::new(complete::backends))]
    pub(super) address: IpAddr,
}

impl BackendSelector {
    /// Its path in the API.
    pub(super) fn path(&self) -> String {
        paths::backend(&self.service, self.address)
    }
}

/// A number within a range, refused with the configuration's messages.
pub(super) fn number<T: TryFrom<u64> + Clone + Send + Sync + 'static>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            let wrong = match text.parse::<i128>() {
                Ok(number) => format!("{number} is out of range"),
                Err(_) => format!("`{text}` is no number"),
            };
            format!("{wrong}; a number from {least} to {most} is expected")
        })
    }
}

/// The name of an enum's variant, as in JSON.
pub(super) fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| {
        // Each known name is in quotes there.
        let error = error.to_string();
        let known = error.split_once(", expected").map_or("", |(_, known)| known);
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        unknown_word(text, &known)
    })
}
