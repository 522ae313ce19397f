//! The other balancers: packets that they forward to a backend on this node are delivered here ([`lb_common::deliver`]).

use std::{collections::BTreeSet, net::IpAddr};

use super::Daemon;
use lb_plane::DataPlane;

impl<D: DataPlane> Daemon<D> {
    /// Sets the other balancers that are known in the engine: the peers of the flow sync, of virtual routers by unicast,
    /// and the nodes that advertise a virtual router.
    pub(super) fn look_at_balancers(&mut self) {
        let synced =
            self.store.config().sync.iter().flat_map(|sync| &sync.peers).map(|peer| peer.ip());
        let unicast = self.routers().iter().flat_map(|router| router.peers.iter().copied());
        let advertisers = self.vrrp.advertisers().into_values();
        let mut found: BTreeSet<IpAddr> = synced.chain(unicast).chain(advertisers).collect();
        // A link-local address has no route without its interface; such a node has others.
        found.retain(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        if found != self.balancers {
            self.engine.set_peers(found.clone());
            self.balancers = found;
            self.want();
            self.reconcile();
        }
    }

    /// Sends the wanted next hops to the resolver, if they have changed.
    pub(super) fn want(&mut self) {
        let wants = self.engine.wants();
        if self.wanted.as_ref() != Some(&wants) {
            (self.effects.want)(wants.clone());
            self.wanted = Some(wants);
        }
    }
}
