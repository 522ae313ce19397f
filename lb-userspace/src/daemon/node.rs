//! The node as a whole: whether it is to leave for maintenance.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Balancer, Daemon};
use crate::{
    api::{Done, NodeChange, Plan, Terms},
    edit::Refusal,
    events::{Kind, News},
    status::Node,
    units::rfc3339,
};

impl<B: Balancer> Daemon<B> {
    /// Marks the node as leaving, or takes that back.
    pub(super) fn change_node(
        &mut self,
        change: NodeChange,
        terms: Terms,
    ) -> Result<Done, Refusal> {
        let (message, mut notes) = match (change.draining, self.node.draining_since) {
            (true, Some(since)) => {
                (format!("this node is draining since {}", rfc3339::format(since)), self.advice())
            }
            (true, None) => ("this node drains".to_owned(), self.advice()),
            (false, _) => ("this node stays".to_owned(), Vec::new()),
        };
        let is_new = change.draining != self.node.draining_since.is_some();
        if terms.dry_run {
            let changes = if is_new { vec![message.clone()] } else { Vec::new() };
            let plan = Some(Plan { changes, ..Plan::default() });
            return Ok(Done { message, notes, plan });
        }
        if is_new {
            let draining_since = change.draining.then(|| self.now().wall);
            self.node = Node { draining_since };
            let (kind, message) = match change.draining {
                true => (Kind::NodeDraining, "the node is to leave, and forwards until then"),
                false => (Kind::NodeEnabled, "the node stays"),
            };
            self.effects.events.record(News::new(kind, message, "lbctl"));
            notes.extend(self.keep());
        }
        Ok(Done { message, notes, plan: None })
    }

    /// What there is to be done for the traffic to leave.
    fn advice(&self) -> Vec<String> {
        let vips: BTreeSet<IpAddr> = self.desired.services.values().map(|s| s.key.vip).collect();
        let mut notes = vec![
            "nothing takes over by itself: lbd has no peer; forwarding goes on here".to_owned(),
        ];
        if let Some(first) = vips.first() {
            let list: Vec<String> = vips.iter().map(ToString::to_string).collect();
            let length = if first.is_ipv4() { 32 } else { 128 };
            notes.push(format!(
                "move the VIPs ({}): take each off here, as by 'ip address delete {first}/{length} \
                 dev INTERFACE', and put it on the other node; or withdraw its route",
                list.join(", ")
            ));
            notes.push("'lbctl node drain --wait' tells when no packet comes any more".to_owned());
        }
        notes
    }
}
