//! What the configuration and the changes by `lbctl` are together, at a start and at a reload.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Result;

use super::{Balancer, Daemon};
use crate::{
    api::Done,
    config::{self, Config},
    desired::Desired,
    edit::{Refusal, RefusalKind},
    overrides::Overrides,
    rules,
    state_file::{self, State},
};

impl<B: Balancer> Daemon<B> {
    /// Takes up the changes of an earlier run.
    pub(super) fn resume(&mut self, path: &Path, state: State) -> Result<()> {
        let State { configured, overrides } = state;
        let overrides = self.retired(overrides, &configured, &self.config);
        let desired = overrides.apply(&self.config.desired);
        if let Some(violation) = rules::violations(&desired, &self.limits).first() {
            let to = state_file::set_aside(path)?;
            tracing::error!(
                file = %path.display(), moved_to = %to.display(), reason = %violation,
                "the state file does not go with the configuration: changes by lbctl are lost"
            );
            return Ok(());
        }
        self.deadlines = deadlines(&self.config, &overrides);
        self.overrides = overrides;
        self.desired = desired;
        Ok(())
    }

    /// Overrides that keep what `config` no longer has until its flows have ended.
    fn retired(&self, overrides: Overrides, before: &Desired, config: &Config) -> Overrides {
        let wall = SystemTime::now();
        let deadline = |name: &str| wall.checked_add(*config.drain_deadlines.get(name)?);
        overrides.retire(before, &config.desired, deadline)
    }

    /// Reads the file again and puts in force what it changes.
    pub(super) fn reload(&mut self) -> Result<Done, Refusal> {
        let invalid = |error: config::Error| {
            let chain = format!("{:#}", anyhow::Error::from(error));
            Refusal::new(RefusalKind::Invalid, chain).hint("nothing was changed")
        };
        let config = Config::load(&self.file).map_err(invalid)?;
        let overrides = self.retired(self.overrides.clone(), &self.config.desired, &config);
        let desired = overrides.apply(&config.desired);
        self.check(&desired).map_err(|refusal| refusal.hint("nothing was changed"))?;
        let restart = self.config.needs_restart(&config);
        let kept = self.config.clone();
        self.deadlines = deadlines(&config, &overrides);
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
        let mut notes = self.enact(desired)?;
        if !restart.is_empty() {
            notes.push(format!("restart lbd for the change of {}", restart.join(", ")));
        }
        notes.extend(self.config.warnings.iter().map(ToString::to_string));
        Ok(Done { message: format!("configuration reloaded: {}", self.config.summary()), notes })
    }
}

/// Drain deadlines of all services, configured and added.
fn deadlines(config: &Config, overrides: &Overrides) -> BTreeMap<String, Duration> {
    let added = overrides.services.iter().filter_map(|(name, change)| {
        let secs = change.added.as_ref()?.drain_deadline_secs?;
        Some((name.clone(), Duration::from_secs(secs)))
    });
    let mut deadlines: BTreeMap<_, _> = added.collect();
    deadlines.extend(config.drain_deadlines.clone());
    deadlines
}
