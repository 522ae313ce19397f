//! Shell completions that only the daemon knows: names of services, and addresses of backends.

use std::{collections::BTreeMap, thread, time::Duration};

use clap_complete::CompletionCandidate;
use lb_api::{
    client::Client,
    paths,
    status::{Backend, Status},
};
use lb_model::{backend_address::BackendAddress, defaults};

/// A completion takes no longer than this.
const PATIENCE: Duration = Duration::from_millis(500);

/// The services by name, with the addresses and names of their backends.
type Services = BTreeMap<String, Vec<String>>;

/// The names of services.
pub(super) fn services() -> Vec<CompletionCandidate> {
    known().unwrap_or_default().into_keys().map(CompletionCandidate::new).collect()
}

/// The backends of all services: which service was typed is not known here.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    backends_of(&known().unwrap_or_default())
}

fn backends_of(services: &Services) -> Vec<CompletionCandidate> {
    let mut served: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, backends) in services {
        for backend in backends {
            served.entry(backend).or_default().push(name);
        }
    }
    let candidate = |(backend, services): (&str, Vec<&str>)| {
        CompletionCandidate::new(backend).help(Some(services.join(", ").into()))
    };
    served.into_iter().map(candidate).collect()
}

/// The daemon's services; none if it does not answer, which is no error in a completion.
fn known() -> Option<Services> {
    // The line that is completed is not parsed yet.
    let socket = std::env::var_os("LB_SOCKET").unwrap_or_else(|| defaults::SOCKET.into());
    // A thread of its own: the caller may be inside a runtime, where one can't block on another.
    let request = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let client = Client::new(socket);
        let answer = client.get(paths::STATUS);
        let status: Status =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await.ok()?.ok() })?;
        let backends = |(address, backend): (BackendAddress, Backend)| {
            [Some(address.to_string()), backend.name].into_iter().flatten()
        };
        let services = status.services.into_iter();
        Some(
            services
                .map(|(name, one)| (name, one.backends.into_iter().flat_map(backends).collect()))
                .collect(),
        )
    });
    request.join().ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_of_two_services_is_offered_once() {
        let services = ["dns", "web"].map(|name| (name.to_owned(), vec!["10.0.0.1".to_owned()]));
        let backends = backends_of(&services.into());
        assert_eq!(backends.len(), 1);
        assert_eq!(backends[0].get_value(), "10.0.0.1");
        assert_eq!(backends[0].get_help().map(ToString::to_string), Some("dns, web".into()));
    }
}
