//! The end of forwarding.

use anyhow::{Context as _, Result};

use super::{Balancer, Daemon, Ended, Tell};
use crate::{
    api::{Done, Plan, Terms},
    desired::Desired,
    edit::{Refusal, RefusalKind},
};

impl<B: Balancer> Daemon<B> {
    /// Why nothing is detached, or what that would do; none: it is to be done.
    pub(super) fn try_detach(&self, terms: Terms) -> Option<Result<Done, Refusal>> {
        if terms.yes && !terms.dry_run {
            return None;
        }
        let plan = self.plan(&Desired::default()).map(|mut plan: Plan| {
            let interfaces = self.balancer.interfaces();
            let leaves = interfaces.iter().map(|i| format!("the program leaves {}", i.name));
            plan.changes.splice(0..0, leaves);
            plan.changes.push("lbd ends".into());
            plan
        });
        Some(plan.and_then(|plan| {
            if terms.dry_run {
                let message = "detached; nothing is forwarded any more".into();
                let notes = vec!["it takes --yes".into()];
                return Ok(Done { message, notes, plan: Some(plan) });
            }
            let loss = "this ends forwarding: the connections of all services break";
            Err(Refusal::unconfirmed(loss, plan))
        }))
    }

    pub(super) fn detach(self, tell: Tell<Done>) -> Result<Ended> {
        // As long as the engine holds the links, the program stays.
        drop(self.balancer);
        let removed = (self.effects.detach)().context("detach");
        // Who asked may be gone.
        drop(tell.send(match &removed {
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
