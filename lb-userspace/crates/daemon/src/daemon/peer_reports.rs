//! The daemon and its peers: effects of their reports, and of changes of roles.

use std::{collections::BTreeSet, time::Instant};

use lb_api::event::{EventBody, Kind};
use lb_model::{desired::ServiceKey, router::RouterKey};
use lb_plane::DataPlane;
use lb_sync::Report;

use super::{
    Daemon,
    peers::PeerGroup,
    roles::{RoleInputs, services_of},
};

impl<D: DataPlane> Daemon<D> {
    pub(super) fn services_of(
        &self,
        routers: impl IntoIterator<Item = RouterKey>,
    ) -> BTreeSet<ServiceKey> {
        services_of(self.store.desired(), self.routers(), &routers.into_iter().collect())
    }

    /// Brings everything in line with the roles of the nodes and the known flows: the state sent to the peers, the
    /// sources of flow records, the external state of the virtual routers.
    pub(super) fn sync_roles(&mut self) {
        let routers = &self.store.config().routers.routers;
        if let Some(group) = &mut self.group {
            let draining = self.store.node().draining_since.is_some();
            let status = self.vrrp.driver.status();
            group.send_state(routers, &self.vrrp.states, status, draining);
            let events = group.compare(self.store.desired(), routers, Instant::now());
            self.record(events);
        }
        self.assign_roles();
        self.update_routers();
        self.give_way(Instant::now());
    }

    /// Another desired state is in force: computes its fingerprint for the peers.
    pub(super) fn update_fingerprint(&mut self) {
        if let Some(group) = &mut self.group {
            group.set_desired(self.store.desired());
        }
    }

    /// Sets the sources of flow records, and requests records that were not taken.
    pub(super) fn assign_roles(&mut self) {
        let candidates = self.group.as_ref().map(PeerGroup::candidates).unwrap_or_default();
        let inputs = RoleInputs {
            desired: self.store.desired(),
            routers: &self.store.config().routers.routers,
            states: &self.vrrp.states,
            advertisers: &self.vrrp.advertisers(),
            has_peers: self.group.is_some(),
            candidates: &candidates,
        };
        let flow_sources = inputs.flow_sources();
        let unsynced = inputs.unsynced(&flow_sources);
        if self.roles.set_unsynced(&unsynced) {
            self.engine.set_unsynced(unsynced, self.now());
        }
        if flow_sources != *self.roles.flow_sources() {
            let left = self.roles.left_with(&flow_sources);
            if !left.is_empty() {
                self.send_last(&left);
            }
            let roles = flow_sources.iter().map(|(key, source)| (*key, source.role())).collect();
            let set = self.engine.set_roles(roles, self.now());
            self.roles.set_flow_sources(flow_sources);
            if let Err(error) = set {
                self.set_write_error(Some(format!("{error:#}")));
            }
        }
        if let Some(group) = &mut self.group {
            group.request_missing(self.roles.flow_sources(), Instant::now());
        }
    }

    /// Takes a report of the sessions with the peers.
    pub(super) fn on_peer_report(&mut self, report: Report) {
        let Some(group) = &mut self.group else { return };
        match report {
            Report::Joined(id) => {
                let events = group.joined(id);
                self.record(events);
            }
            Report::Lost(id, why) => {
                let event = group.lost(id, why);
                if !group.is_connected() {
                    // No other node knows this node's flows, so none can be missed.
                    self.engine.lease_pins(None);
                }
                self.record_event(event);
                self.answered(id, &Err("it is gone".into()));
            }
            Report::NodeState(id, node_state) => group.take_state(id, node_state),
            Report::TransferRequested(id) => self.send_transfer(id),
            Report::TransferBegins(id) => {
                let services = group.transfer_begins(id, self.roles.flow_sources());
                self.engine.begin_import(&services);
            }
            Report::Records(id, records, mark) => self.import_and_acknowledge(id, records, mark),
            Report::Complete(id, complete) => {
                let events = group.set_complete(id, complete);
                self.record(events);
            }
            Report::TakeOver(id, routers) => self.take_over(id, &routers),
            Report::Answer(id, answer) => self.answered(id, &answer),
            Report::Unreadable(id, why) => {
                let message = format!("what comes from {} can't be taken", group.name(id));
                self.record_event(EventBody::new(Kind::PeerRefused, message, why));
            }
        }
    }

    /// Records an event for routers that this node and a peer both hold, for longer than a handover takes.
    pub(super) fn look_for_two(&mut self, now: Instant) {
        let Some(group) = &mut self.group else { return };
        let long = group.both_active_for_long(&self.vrrp.states, now);
        let long = long.into_iter().map(|(key, id)| (key, group.name(id)));
        for (key, peer) in long.collect::<Vec<_>>() {
            self.record_event(EventBody::new(
                Kind::VrrpTwoActive,
                format!(
                    "{} is active here and on {peer}: both hold its addresses",
                    self.router_name(key)
                ),
                "advertisements don't arrive, but messages between the peers do",
            ));
        }
    }

    /// Sets the state of the peers that share services in the engine, before anything ends that they may use.
    pub(super) fn look_at_sharers(&mut self) {
        let now = self.now().mono_secs();
        if let Some(group) = &mut self.group {
            self.engine.set_sharers(group.sharers(now));
        }
    }

    /// The state of the peers.
    pub(super) fn status_of_peers(&self) -> Vec<lb_api::status::Peer> {
        let name_of = |key| self.router(key).map(|router| router.name.clone());
        self.group
            .as_ref()
            .map_or_else(Vec::new, |group| group.status(self.roles.flow_sources(), name_of))
    }

    pub(super) fn record(&self, events: impl IntoIterator<Item = EventBody>) {
        events.into_iter().for_each(|event| self.record_event(event));
    }
}
