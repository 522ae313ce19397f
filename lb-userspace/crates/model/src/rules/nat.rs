//! The rules for mode `nat`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::Found;
use crate::{
    backend_address::BackendAddress,
    desired::{Desired, Mode, Ports, Protocol, ServiceKey},
};

/// Where the answers to a service's clients come from, on one host.
struct Source<'a> {
    service: &'a str,
    key: ServiceKey,
    backend: BackendAddress,
    ports: Ports,
}

impl Source<'_> {
    /// Whether some answers could be of either service.
    ///
    /// Where the VIP is the same and the ports stay as they are, an answer has the same translation by both, and the more
    /// specific service is found first for it, as for the client's packet.
    fn clashes(&self, other: &Self) -> bool {
        let keeps = |one: &Self| one.ports == one.key.ports();
        let is_same = self.key.vip == other.key.vip && keeps(self) && keeps(other);
        !is_same && self.ports.overlaps(&other.ports)
    }
}

impl Found {
    /// Two services in mode `nat` can't share a backend's port: by the source of an answer its VIP would not be known.
    pub(super) fn in_nat(&mut self, desired: &Desired) {
        let mut single: BTreeMap<(Protocol, SocketAddr), Source<'_>> = BTreeMap::new();
        let mut ranges: BTreeMap<(Protocol, IpAddr), Vec<Source<'_>>> = BTreeMap::new();
        let services = || desired.services.iter().filter(|(_, service)| service.mode == Mode::Nat);
        for (name, service) in services() {
            let key = service.key;
            for address in service.backends.keys() {
                let of = |ports| Source { service: name, key, backend: *address, ports };
                if !key.ports().is_one() {
                    let others = ranges.entry((key.protocol, address.ip)).or_default();
                    let source = of(key.ports());
                    if let Some(first) = others.iter().find(|other| source.clashes(other)) {
                        self.push_shared(&source, first.service);
                    }
                    others.push(source);
                    continue;
                }
                let socket = address.socket(key.port);
                let source = of(Ports::one(socket.port()));
                match single.get(&(key.protocol, socket)) {
                    Some(first) if first.service != name => {
                        self.push_shared(&source, first.service)
                    }
                    _ => _ = single.insert((key.protocol, socket), source),
                }
            }
        }
        for ((protocol, socket), source) in &single {
            let around = ranges.get(&(*protocol, socket.ip())).into_iter().flatten();
            if let Some(range) = around.clone().find(|range| range.clashes(source)) {
                self.push_shared(source, range.service);
            }
        }
    }

    fn push_shared(&mut self, source: &Source<'_>, other: &str) {
        let Source { service, key, backend, ports } = source;
        let message = format!(
            "{} {}:{ports} is a backend of service {other}, too: by nat its answers could be of either; let it listen at \
             another port for one of them",
            key.protocol,
            match backend.ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
        );
        self.push(service, Some(*backend), "address", message);
    }
}
