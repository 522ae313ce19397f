//! Merges the configuration with the changes by `lbctl`, at a start and at a reload, and keeps the result.

use std::time::Instant;

use anyhow::Result;
use lb_api::{
    event::{EventBody, Kind},
    requests::{Done, Reloaded},
};
use lb_config::Config;
use lb_model::{
    diff::diff,
    overrides::Merged,
    refusal::{Refusal, RefusalKind},
};
use lb_plane::DataPlane;

use super::{Daemon, vrrp::changes};
use crate::{logs, state_file::writer::Kept, store::overruled};

impl<D: DataPlane> Daemon<D> {
    /// Takes up the configuration that was read again, and records an event.
    ///
    /// A refusal comes before any change. From then on the configuration is in force;
    /// maps that can't be written are tried again, as after any other change.
    pub(super) fn reload_for(
        &mut self,
        read: Result<Config, lb_config::Error>,
        origin: &str,
    ) -> Result<(Reloaded, Kept), Refusal> {
        self.look_at_clocks();
        self.effects.notifier.reloading();
        let planned = self.plan_reload(read).and_then(|(config, merged)| {
            self.change_hooks(&config)?;
            Ok((config, merged))
        });
        let done = match planned {
            Ok((config, merged)) => self.commit_reload(config, merged, origin),
            Err(refusal) => {
                let refusal = refusal.hint("nothing was changed");
                let event = EventBody::new(
                    Kind::ConfigRefused,
                    "configuration not reloaded",
                    refusal.to_string(),
                );
                self.record_event(event);
                Err(refusal)
            }
        };
        self.effects.notifier.ready(&self.ready_line());
        if let Some(error) = self.writing.error() {
            self.effects.notifier.status(&format!("the maps can't be written: {error}"));
        }
        done
    }

    /// Gives interfaces the hooks of a configuration.
    fn change_hooks(&mut self, config: &Config) -> Result<(), Refusal> {
        if config.hooks == self.store.config().hooks {
            return Ok(());
        }
        let changed = self.engine.data_plane_mut().set_hooks(&config.hooks);
        (self.effects.at_tc)(self.engine.at_tc());
        changed.map_err(|error| Refusal::new(RefusalKind::Failed, format!("{error:#}")))
    }

    /// The state that a reload of the configuration that was read would put in force.
    pub(super) fn plan_reload(
        &self,
        read: Result<Config, lb_config::Error>,
    ) -> Result<(Config, Merged), Refusal> {
        let invalid = |error: lb_config::Error| {
            Refusal::new(RefusalKind::Invalid, format!("{:#}", anyhow::Error::from(error)))
        };
        let config = read.map_err(invalid)?;
        let merged = self.store.merge(&config, self.now().wall);
        self.check(&config, &merged.desired)?;
        Ok((config, merged))
    }

    /// The plan of a reload; nothing is changed.
    pub(super) fn try_reload(
        &self,
        read: Result<Config, lb_config::Error>,
    ) -> Result<Reloaded, Refusal> {
        let (config, merged) = self.plan_reload(read)?;
        let differences = diff(self.store.desired(), &merged.desired);
        let routers = changes(&self.store.config().routers, &config.routers);
        let tables = tables(self.store.config(), &config);
        let nothing = differences.is_empty() && routers.is_empty() && tables.is_empty();
        let message = reloaded(&config, nothing);
        let mut plan = self.plan(&merged.desired)?;
        // They include keys without an event.
        let all = differences.iter().map(ToString::to_string);
        plan.changes = all.chain(routers.iter().chain(&tables).cloned()).collect();
        let notes = self.notes_of_reload(&config, &merged);
        let done = Done { message, notes, plan: Some(plan) };
        Ok(Reloaded { done, differences, routers, tables, conflicts: merged.conflicts })
    }

    /// Puts a configuration in force that was found to be right.
    ///
    /// # Errors
    ///
    /// The maps can't be written. The configuration is in force all the same.
    fn commit_reload(
        &mut self,
        config: Config,
        merged: Merged,
        origin: &str,
    ) -> Result<(Reloaded, Kept), Refusal> {
        let differences = diff(self.store.desired(), &merged.desired);
        let routers = changes(&self.store.config().routers, &config.routers);
        let tables = tables(self.store.config(), &config);
        let nothing = differences.is_empty() && routers.is_empty() && tables.is_empty();
        let message = reloaded(&config, nothing);
        let mut notes: Vec<String> = differences.iter().map(ToString::to_string).collect();
        notes.extend(routers.iter().chain(&tables).cloned());
        let others = self.notes_of_reload(&config, &merged);
        self.store.set_config(config);
        // Their files may have changed while the configuration has not.
        (self.effects.set_http)(self.store.config().http.as_ref());
        logs::configure(&self.store.config().log);
        let conflicts = merged.conflicts.iter().map(overruled);
        conflicts.for_each(|event| self.record_event(event));
        if !routers.is_empty() {
            self.configure_routers();
        }
        let kept = self.put_in_force(merged.desired, "configuration reloaded");
        self.record_event(EventBody::new(Kind::ConfigReloaded, message.as_str(), origin));
        for change in routers.iter().chain(&tables) {
            tracing::info!("{change}");
        }
        // The differences and conflicts are events of their own.
        let conflicts: Vec<String> = merged.conflicts.iter().map(ToString::to_string).collect();
        for note in others.iter().filter(|note| !conflicts.contains(note)) {
            tracing::warn!("{note}");
        }
        notes.extend(others);
        let kept = kept.map_err(|refusal| Refusal {
            error: format!("{message}, but {}", refusal.error),
            hint: Some(
                "the configuration is in force, and the maps are tried again each second; see \
                 'lbctl status'"
                    .into(),
            ),
            ..refusal
        })?;
        let reloaded = Reloaded {
            done: Done { message, notes, plan: None },
            differences,
            routers,
            tables,
            conflicts: merged.conflicts,
        };
        Ok((reloaded, kept))
    }

    /// The notes on a reload beside the differences.
    fn notes_of_reload(&self, config: &Config, merged: &Merged) -> Vec<String> {
        let gone = self.store.desired().services.iter().filter(|(name, service)| {
            !merged.desired.services.contains_key(*name) && !service.backends.is_empty()
        });
        let mut notes: Vec<String> = gone
            .map(|(name, _)| {
                format!("the flows of service {name} end: nothing is forwarded for it any more")
            })
            .collect();
        notes.extend(merged.conflicts.iter().map(ToString::to_string));
        let restart = self.store.config().needs_restart(config);
        if !restart.is_empty() {
            notes.push(format!("restart lbd for the change of {}", restart.join(", ")));
        }
        notes.extend(config.warnings.iter().map(ToString::to_string));
        notes
    }

    /// Has the state file written.
    pub(super) fn keep(&mut self) -> Kept {
        self.store.keep(self.engine.retired())
    }

    /// Records an event if the writes of the state file begin or cease to fail.
    pub(super) fn look_at_state_file(&mut self) {
        let events = self.store.look_at_writer(Instant::now());
        self.record(events);
    }
}

/// A reload in one line.
fn reloaded(config: &Config, nothing: bool) -> String {
    let nothing = if nothing { ", nothing changed" } else { "" };
    format!("configuration reloaded{nothing}: {}", config.summary())
}

/// The texts of the differences in the tables that take effect at once and are no services.
pub(super) fn tables(before: &Config, after: &Config) -> Vec<String> {
    let mut all = Vec::new();
    if before.http != after.http {
        all.push(match &after.http {
            None => "[http]: nobody is answered over TCP any more".to_owned(),
            Some(http) => {
                let listen: Vec<_> = http.listen.iter().map(ToString::to_string).collect();
                format!("[http]: it has changed, and listens on {}", listen.join(", "))
            }
        });
    }
    for interface in &before.interfaces {
        let (from, to) = (before.hooks.of(interface), after.hooks.of(interface));
        if from != to {
            all.push(format!("attach: {interface} {from} -> {to}"));
        }
    }
    if before.hooks.tc_order != after.hooks.tc_order {
        all.push(format!("tc_order: {} -> {}", before.hooks.tc_order, after.hooks.tc_order));
    }
    if before.log.filter != after.log.filter {
        all.push(format!("[log]: level {} -> {}", before.log.filter, after.log.filter));
    }
    all
}
