//! Options and values that several commands take.

use std::ops::RangeInclusive;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use lb_api::{client::Client, paths, requests::Terms, status::Status};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    units::unknown_word,
};

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

/// A backend by its service, and its address or name.
#[derive(Clone, Debug, Args)]
pub(super) struct BackendSelector {
    /// The service's name.
    #[arg(add = ArgValueCandidates::new(complete::services))]
    pub(super) service: String,
    /// The backend's address, or its name.
    #[arg(value_name = "BACKEND", add = ArgValueCandidates::new(complete::backends))]
    pub(super) backend: BackendRef,
}

impl BackendSelector {
    /// Its path in the API.
    pub(super) fn path(&self) -> String {
        paths::backend(&self.service, &self.backend)
    }
}

/// The address by which a filter takes packets, flows or events of a backend: as given, or that of the backend with this
/// name.
pub(super) async fn address_of(
    client: &Client,
    service: Option<&str>,
    backend: Option<&BackendRef>,
) -> Result<Option<BackendAddress>> {
    let name = match backend {
        None => return Ok(None),
        Some(BackendRef::Address(address)) => return Ok(Some(*address)),
        Some(BackendRef::Name(name)) => name,
    };
    let services = client.get::<Status>(paths::STATUS).await?.services;
    let services = services.iter().filter(|(known, _)| service.is_none_or(|one| one == *known));
    let named = services.flat_map(|(service, it)| {
        let its = it.backends.iter().filter(|(_, backend)| backend.name.as_ref() == Some(name));
        its.map(move |(address, _)| (service, *address))
    });
    let named: Vec<_> = named.collect();
    match named.as_slice() {
        [] => bail!("no backend {name}; 'lbctl backend list' shows all"),
        [(_, address), others @ ..] if others.iter().all(|(_, other)| other == address) => {
            Ok(Some(*address))
        }
        several => {
            let services: Vec<_> = several.iter().map(|(service, _)| service.as_str()).collect();
            bail!("{name} is a backend of {}; say which by --service", services.join(" and of "))
        }
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
