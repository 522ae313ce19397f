//! The inputs of the engine: the state that the maps are brought to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_model::{
    desired::{Desired, Mode, ServiceKey},
    hop::{Neighbourhood, Resolution, Want},
    seen::View,
    settings::Settings,
};

/// The inputs of the engine, each as the daemon has set it last.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) settings: Settings,
    /// None before it is set: no map is written until then.
    pub(super) desired: Option<Desired>,
    /// None before the first dump of the kernel's tables.
    pub(super) neighbourhood: Option<Neighbourhood>,
    /// Addresses of the other balancers.
    pub(super) peers: BTreeSet<IpAddr>,
    /// The health of the backends.
    pub(super) view: View,
}

impl Wanted {
    /// No input yet but the settings.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            desired: None,
            neighbourhood: None,
            peers: BTreeSet::new(),
            view: View::default(),
        }
    }

    /// The desired state.
    pub(super) fn desired(&self) -> &Desired {
        static NOTHING: Desired = Desired { services: BTreeMap::new() };
        self.desired.as_ref().unwrap_or(&NOTHING)
    }

    /// A service's name in the configuration, or its key.
    pub(super) fn name_of(&self, key: &ServiceKey) -> String {
        let services = self.desired().services.iter();
        let mut named = services.filter(|(_, service)| service.key == *key);
        named.next().map(|(name, _)| name.clone()).unwrap_or_else(|| key.to_string())
    }

    /// The backends whose next hops must be known; with one of them on this node, also the other balancers.
    pub(super) fn wants(&self) -> BTreeSet<Want> {
        let services = self.desired().services.values();
        let wants = services.flat_map(|service| {
            service.backends.keys().map(|&address| Want { address: address.ip, mode: service.mode })
        });
        let mut wants: BTreeSet<Want> = wants.collect();
        let mut hops = self.neighbourhood.iter().flat_map(|known| known.hops.values());
        if hops.any(|hop| matches!(hop, Resolution::Resolved(hop) if hop.is_local())) {
            let peer = |&address| Want { address, mode: Mode::Dsr };
            wants.extend(self.peers.iter().map(peer));
        }
        wants
    }
}
