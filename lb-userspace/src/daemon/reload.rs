//! What the configuration and the changes by `lbctl` are together, at a start and at a reload, and
//! that it is kept.

use std::{path::Path, time::SystemTime};

use anyhow::Result;

use super::{Balancer, Daemon};
use crate::{
    api::{Done, Reloaded},
    config::{self, Config},
    diff::{Intent, diff},
    edit::{Refusal, RefusalKind},
    events::{Kind, News},
    overrides::{Merged, Overrides, merge},
    rules,
    state_file::{self, State},
};

impl<B: Balancer> Daemon<B> {
    /// What is in force.
    pub(super) const fn in_force(&self) -> Intent<'_> {
        Intent { desired: &self.desired, deadlines: &self.deadlines }
    }

    /// Takes up the changes of an earlier run.
    pub(super) fn resume(&mut self, path: &Path, state: State) -> Result<()> {
        let (desired, deadlines) = state.overrides.apply(state.configured());
        let runtime = Intent { desired: &desired, deadlines: &deadlines };
        let merged = merge(state.configured(), self.config.intent(), runtime, SystemTime::now());
        if let Some(violation) = rules::violations(&merged.desired, &self.limits).first() {
            let to = state_file::set_aside(path)?;
            self.effects.events.record(News::new(
                Kind::StateFileSetAside,
                format!(
                    "the state file {} does not go with the configuration, and is {} from here \
                     on: changes by lbctl are lost",
                    path.display(),
                    to.display()
                ),
                violation.to_string(),
            ));
            return Ok(());
        }
        for conflict in &merged.conflicts {
            tracing::warn!("{conflict}");
        }
        self.overrides = Overrides::between(self.config.intent(), merged.intent());
        self.desired = merged.desired;
        self.deadlines = merged.deadlines;
        Ok(())
    }

    /// What a reload would put in force.
    pub(super) fn plan_reload(&self) -> Result<(Config, Merged), Refusal> {
        let invalid = |error: config::Error| {
            Refusal::new(RefusalKind::Invalid, format!("{:#}", anyhow::Error::from(error)))
        };
        let config = Config::load(&self.file).map_err(invalid)?;
        let merged =
            merge(self.config.intent(), config.intent(), self.in_force(), SystemTime::now());
        self.check(&merged.desired)?;
        Ok((config, merged))
    }

    /// Reads the file again and puts in force what it changes.
    pub(super) fn reload(&mut self) -> Result<Reloaded, Refusal> {
        let (config, merged) =
            self.plan_reload().map_err(|refusal| refusal.hint("nothing was changed"))?;
        let differences = diff(self.in_force(), merged.intent());
        let restart = self.config.needs_restart(&config);
        let kept = self.config.clone();
        self.config = Config {
            interfaces: kept.interfaces,
            xdp: kept.xdp,
            pin_dir: kept.pin_dir,
            limits: kept.limits,
            tunnel: kept.tunnel,
            seed: kept.seed,
            socket: kept.socket,
            group: kept.group,
            state_file: kept.state_file,
            ..config
        };
        let mut notes: Vec<String> = differences.iter().map(ToString::to_string).collect();
        let gone = self.desired.services.iter();
        let gone = gone.filter(|(name, service)| {
            !merged.desired.services.contains_key(*name) && !service.backends.is_empty()
        });
        notes.extend(gone.map(|(name, _)| {
            format!("the flows of service {name} end: nothing is forwarded for it any more")
        }));
        notes.extend(merged.conflicts.iter().map(ToString::to_string));
        self.deadlines = merged.deadlines;
        notes.extend(self.enact(merged.desired, "configuration reloaded")?);
        if !restart.is_empty() {
            notes.push(format!("restart lbd for the change of {}", restart.join(", ")));
        }
        notes.extend(self.config.warnings.iter().map(ToString::to_string));
        let nothing = if differences.is_empty() { ", nothing changed" } else { "" };
        let message = format!("configuration reloaded{nothing}: {}", self.config.summary());
        let done = Done { message, notes, plan: None };
        Ok(Reloaded { done, differences, conflicts: merged.conflicts })
    }
}
