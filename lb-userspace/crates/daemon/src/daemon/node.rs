//! The node as a whole: whether it is drained for maintenance.

use std::collections::BTreeSet;

use lb_api::{
    event::{EventBody, Kind},
    requests::{Done, NodeChange, Terms},
    status::Node,
};
use lb_model::{desired::Vips, plan::Plan, units::rfc3339};
use lb_plane::DataPlane;

use super::{
    Daemon, Reply,
    handover::Initiator,
    roles::{holder_of, holders},
};

impl<D: DataPlane> Daemon<D> {
    /// Drains the node, or enables it again. One that drains hands its virtual routers over, and
    /// answers when that is over.
    pub(super) fn change_node(&mut self, change: NodeChange, terms: Terms, reply: Reply<Done>) {
        let (message, mut notes) = match (change.draining, self.store.node().draining_since) {
            (true, Some(since)) => {
                (format!("this node is draining since {}", rfc3339::format(since)), self.advice())
            }
            (true, None) => ("this node drains".to_owned(), self.advice()),
            (false, _) => ("this node is enabled".to_owned(), Vec::new()),
        };
        let is_new = change.draining != self.store.node().draining_since.is_some();
        if terms.dry_run {
            let mut changes = if is_new { vec![message.clone()] } else { Vec::new() };
            if change.draining {
                let active = self.active_routers();
                let active = active.into_iter().map(|key| self.router_name(key));
                changes.extend(active.map(|name| format!("{name} is handed over")));
                changes.extend(self.lost_by(&self.units(&self.active_routers())));
            }
            let plan = Some(Plan { changes, ..Plan::default() });
            // The client may be gone, here and below.
            let _ = reply.send(Ok(Done { message, notes, plan }));
            return;
        }
        let mut kept = None;
        if is_new {
            let draining_since = change.draining.then(|| self.now().wall);
            self.store.set_node(Node { draining_since });
            let (kind, message) = match change.draining {
                true => (
                    Kind::NodeDraining,
                    "this node drains: its virtual routers are handed over, and it goes on forwarding",
                ),
                false => (Kind::NodeEnabled, "this node is enabled"),
            };
            self.record_event(EventBody::new(kind, message, "lbctl"));
            kept = Some(self.keep());
        }
        let active = self.active_routers();
        if change.draining && !self.handovers.is_under_way() {
            notes.extend(self.lost_by(&self.units(&active)));
        }
        let mut done = Done { message, notes, plan: None };
        let begins = change.draining && !active.is_empty() && !self.handovers.is_under_way();
        if begins {
            // An event is recorded if it can't be kept.
            self.hand_over(self.units(&active), Initiator::Drain(reply, done));
        } else {
            tokio::spawn(async move {
                if let Some(kept) = kept {
                    done.notes.extend(kept.note().await);
                }
                let _ = reply.send(Ok(done));
            });
        }
        self.sync_roles();
    }

    /// The steps that make the traffic leave.
    fn advice(&self) -> Vec<String> {
        let holders_by_vip = holders(self.routers());
        let keys = self.store.desired().services.values().map(|service| service.key);
        let keys = keys.filter(|key| holder_of(&holders_by_vip, key).is_none());
        let vips: BTreeSet<Vips> = keys.map(|key| key.vips()).collect();
        let wait = "'lbctl node drain --wait' returns when no packet comes any more";
        if vips.is_empty() {
            return if holders_by_vip.is_empty() { Vec::new() } else { vec![wait.to_owned()] };
        }
        let list: Vec<String> = vips.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        let one = vips.iter().find(|vips| vips.first() == vips.last());
        let step = match one {
            Some(vip) => format!(
                "move the VIPs ({list}): take each off here, as by 'ip address delete {}/{} \
                 dev INTERFACE', and put it on the other node; or withdraw its route",
                vip.first(),
                vip.prefix_len()
            ),
            None => {
                format!("move the VIPs ({list}): have routers send their packets to the other node")
            }
        };
        vec![
            format!(
                "nothing takes over by itself: no virtual router holds {list}; forwarding goes on here"
            ),
            step,
            wait.to_owned(),
        ]
    }
}
