//! Options and values that several commands take.

use std::{collections::BTreeMap, ops::RangeInclusive};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use lb_api::{
    client::Client,
    paths,
    requests::Terms,
    status::{Service, Status},
};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    edit::{no_backend, no_service},
    refusal::Refusal,
    units::{nearest, unknown_word},
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
    address_among(&client.get::<Status>(paths::STATUS).await?.services, service, name).map(Some)
}

/// The address of the backend with this name in a service, or in any.
fn address_among(
    services: &BTreeMap<String, Service>,
    service: Option<&str>,
    name: &str,
) -> Result<BackendAddress> {
    if let Some(one) = service.filter(|one| !services.contains_key(*one)) {
        bail!(text_of(no_service(one, services.keys().map(String::as_str))));
    }
    let services = services.iter().filter(|(known, _)| service.is_none_or(|one| one == *known));
    let backends: Vec<_> = services
        .flat_map(|(service, it)| it.backends.iter().map(move |(at, one)| (service, *at, one)))
        .collect();
    let named: Vec<_> =
        backends.iter().filter(|(_, _, one)| one.name.as_deref() == Some(name)).collect();
    match named.as_slice() {
        [] => {
            let known = backends.iter().map(|(_, at, one)| (*at, one.name.as_deref()));
            if let Some(service) = service {
                bail!(text_of(no_backend(service, &BackendRef::Name(name.to_owned()), known)));
            }
            match nearest(name, known.filter_map(|(_, name)| name)) {
                Some(near) => bail!("no backend {name}; did you mean {near}?"),
                None => bail!("no backend {name}; 'lbctl backend list' shows all"),
            }
        }
        [(_, address, _), others @ ..] if others.iter().all(|(_, other, _)| other == address) => {
            Ok(*address)
        }
        several => {
            let several: Vec<_> =
                several.iter().map(|(service, at, _)| format!("{at} of {service}")).collect();
            let several = several.join(" and ");
            bail!("{name} is backend {several}; name the service too, or give the address")
        }
    }
}

/// A refusal with its remedy.
fn text_of(Refusal { error, hint, .. }: Refusal) -> String {
    match hint {
        Some(hint) => format!("{error}; {hint}"),
        None => error,
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

#[cfg(test)]
mod tests {
    use lb_api::status::Backend;
    use serde_json::json;

    use super::*;

    fn service(backends: &[(&str, Option<&str>)]) -> Service {
        let mut service: Service = serde_json::from_value(json!({
            "key": {"vip": "10.0.0.100", "port": 80, "protocol": "tcp"}, "mode": "dsr",
            "ring_slots": 1_009, "slots_in_flux": 0, "idle_timeout_secs": 900, "backends": {},
        }))
        .expect("a service");
        for (at, name) in backends {
            let backend = Backend { name: name.map(str::to_owned), ..Backend::default() };
            service.backends.insert(at.parse().expect(at), backend);
        }
        service
    }

    #[test]
    fn a_name_is_an_address_in_a_service_or_in_all_that_have_it() {
        let services = BTreeMap::from([
            (
                "db".to_owned(),
                service(&[("10.0.0.1:5432", Some("one")), ("10.0.0.2", Some("two"))]),
            ),
            ("web".to_owned(), service(&[("10.0.0.1", Some("one")), ("10.0.0.2", Some("two"))])),
        ]);
        let found = |service: Option<&str>, name: &str| {
            let found = address_among(&services, service, name);
            found.map_or_else(|error| error.to_string(), |at| at.to_string())
        };
        for (service, name, expected) in [
            (Some("db"), "one", "10.0.0.1:5432"),
            (Some("web"), "one", "10.0.0.1"),
            (None, "two", "10.0.0.2"),
            (
                None,
                "one",
                "one is backend 10.0.0.1:5432 of db and 10.0.0.1 of web; name the service too, or give the address",
            ),
            (None, "tow", "no backend tow; did you mean two?"),
            (None, "others", "no backend others; 'lbctl backend list' shows all"),
            (Some("web"), "tow", "service web has no backend tow; did you mean two?"),
            (Some("wbe"), "two", "no service wbe; did you mean web?"),
        ] {
            assert_eq!(found(service, name), expected);
        }
    }
}
