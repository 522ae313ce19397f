//! The end: of the daemon, or of forwarding.
//!
//! Before either, the addresses go to another node, if there is one. The end of the daemon alone leaves
//! them where they are otherwise, since forwarding goes on; that of forwarding takes them off.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_api::requests::{Done, Terms};
use lb_model::{
    desired::Desired,
    plan::Plan,
    refusal::{Refusal, RefusalKind},
};
use lb_plane::DataPlane;
use lb_vrrp::{Order, notify_program::LIMIT_AT_END};

use super::{
    Daemon, Ended, Reply,
    handover::{HandoverMethod, Initiator, Unit},
};

/// How long the virtual routers may take to end: they wait for another Active router for 5 s at most,
/// and for the programs that are notified.
const PATIENCE: Duration = Duration::from_millis(5_500).saturating_add(LIMIT_AT_END);

/// An end that has begun.
pub(super) struct Leaving {
    /// Where the answer to a request to end forwarding goes; none: the daemon alone ends.
    reply: Option<Reply<Done>>,
    /// Until when the virtual routers may take; none: they are still handed over.
    until: Option<Instant>,
}

impl<D: DataPlane> Daemon<D> {
    /// Begins the end.
    pub(super) fn leave(&mut self, reply: Option<Reply<Done>>) {
        if self.leaving.is_some() {
            if let Some(reply) = reply {
                let refusal = Refusal::new(RefusalKind::Stopping, "lbd is stopping");
                let _ = reply.send(Err(refusal));
            }
            return;
        }
        self.leaving = Some(Leaving { reply, until: None });
        if !self.routers().is_empty() {
            self.effects.notifier.stopping("the virtual routers end");
        }
        // The end of a handover that is under way goes on here.
        if !self.handovers.is_under_way() {
            self.hand_all_over();
        }
    }

    /// Hands over the routers that another node can take with all flows, and goes on.
    pub(super) fn hand_all_over(&mut self) {
        let mut units = self.units(&self.active_routers());
        // Routers that are given up by an advertisement send it when they end.
        units.retain(|(_, method)| matches!(method, HandoverMethod::Requested(..)));
        match units.is_empty() {
            true => self.go_on_leaving(),
            false => {
                self.effects.notifier.status("the addresses are handed over to another node");
                self.hand_over(units, Initiator::End);
            }
        }
    }

    /// Ends the virtual routers, when nothing is handed over any more.
    pub(super) fn go_on_leaving(&mut self) {
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.until.is_some() {
            return;
        }
        let release = leaving.reply.is_some();
        leaving.until = Some(Instant::now() + PATIENCE);
        match self.routers().is_empty() {
            true => self.vrrp.stopped = true,
            false => {
                self.flush_if_connected();
                self.vrrp.driver.order(Order::Stop { release });
            }
        }
    }

    /// Until when an end that has begun waits for the virtual routers.
    pub(super) fn leaves_until(&self) -> Option<Instant> {
        self.leaving.as_ref()?.until
    }

    /// Whether the end has come.
    pub(super) fn has_left(&self) -> bool {
        let over = |until: Instant| self.vrrp.stopped || Instant::now() >= until;
        self.leaves_until().is_some_and(over)
    }

    pub(super) fn end(mut self) -> Result<Ended> {
        match self.leaving.take().and_then(|leaving| leaving.reply) {
            Some(reply) => self.detach(reply),
            None => Ok(Ended::Stopped),
        }
    }

    /// Why nothing is detached, or the plan of it; none: it is to be done.
    pub(super) fn try_detach(&self, terms: Terms) -> Option<Result<Done, Refusal>> {
        if terms.yes && !terms.dry_run {
            return None;
        }
        let units = self.units(&self.active_routers());
        let elsewhere = self.services_elsewhere(&units);
        let plan = self.plan(&Desired::default()).map(|mut plan: Plan| {
            plan.preview.services.retain(|name, _| !elsewhere.contains(name));
            let interfaces = self.engine.data_plane().interfaces();
            let leaves = interfaces.iter().map(|i| format!("the program leaves {}", i.name));
            plan.changes.splice(0..0, leaves);
            plan.changes.extend(units.iter().map(|unit| self.destination(unit)));
            plan.changes.extend(self.lost_by(&units));
            let routers = self.routers().iter();
            plan.changes.extend(routers.map(|r| format!("virtual router {} ends", r.name)));
            plan.changes.push("lbd ends".into());
            plan
        });
        Some(plan.and_then(|plan| {
            if terms.dry_run {
                let message = "detached; nothing is forwarded any more".into();
                let notes = vec!["it takes --yes".into()];
                return Ok(Done { message, notes, plan: Some(plan) });
            }
            Err(Refusal::unconfirmed(self.loss_by_detaching(&elsewhere), plan))
        }))
    }

    /// Services whose packets another node gets when this one ends: those of routers that are handed
    /// over to a peer, or that another node is Active for.
    fn services_elsewhere(&self, units: &[Unit]) -> BTreeSet<String> {
        let requested =
            units.iter().filter(|(_, method)| matches!(method, HandoverMethod::Requested(..)));
        let handed_over = requested.flat_map(|(keys, _)| keys.iter().copied());
        let active = self.active_routers();
        let others = self.vrrp.advertisers().into_keys().filter(|key| !active.contains(key));
        let keys = self.services_of(handed_over.chain(others));
        let services = self.store.desired().services.iter();
        services.filter(|(_, one)| keys.contains(&one.key)).map(|(name, _)| name.clone()).collect()
    }

    fn loss_by_detaching(&self, elsewhere: &BTreeSet<String>) -> String {
        let break_here =
            self.store.desired().services.keys().filter(|name| !elsewhere.contains(*name));
        let break_here: Vec<&str> = break_here.map(String::as_str).collect();
        match (elsewhere.is_empty(), break_here.is_empty()) {
            (true, _) => "this ends forwarding: the connections of all services break".into(),
            (false, true) => {
                "this ends forwarding on this node; another node goes on with all services".into()
            }
            (false, false) => {
                let names = break_here.join(", ");
                format!(
                    "this ends forwarding on this node: the connections of {names} break, \
                         and another node goes on with the other services"
                )
            }
        }
    }

    pub(super) fn detach(self, reply: Reply<Done>) -> Result<Ended> {
        // As long as the engine holds the links, the program stays.
        drop(self.engine);
        let removed = (self.effects.detach)().context("detach");
        // The client may be gone.
        drop(reply.send(match &removed {
            Ok(removed) => Ok(Done {
                message: "detached; nothing is forwarded any more".into(),
                notes: removed.clone(),
                plan: None,
            }),
            Err(error) => Err(Refusal::new(RefusalKind::Failed, format!("{error:#}"))),
        }));
        removed.map(|_| Ended::Detached)
    }
}
