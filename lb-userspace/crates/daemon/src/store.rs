//! The services that are desired of this node: the configuration, the changes by `lbctl` over it, and the state file that
//! keeps both over a restart.
//!
//! A [`Store`] decides what is in force. It writes no map and sends no event: its functions return the events, and the
//! daemon passes the services on to the engine.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use lb_api::{
    event::{EventBody, Kind},
    status::{Node, Totals},
};
use lb_config::{Config, Text, http};
use lb_model::{
    desired::{Desired, ServiceKey},
    log::Settings,
    overrides::{Conflict, Ending, Merged, Overrides, merge},
    refusal::{Refusal, RefusalKind},
    router, rules,
    settings::Limits,
    units::{counted, format_duration},
};

use crate::{
    clock::Jump,
    state_file::{
        self, Loaded, State,
        writer::{Kept, Outcome, Writer},
    },
};

/// See the module's description.
pub(crate) struct Store {
    file: PathBuf,
    config: Config,
    limits: Limits,
    overrides: Overrides,
    desired: Desired,
    node: Node,
    writer: Writer,
    write_error: Option<String>,
    /// The sums of removed backends that the state file has.
    written_sums: BTreeMap<ServiceKey, Totals>,
}

impl Store {
    /// The services of a configuration that was read from `file`, without changes. `limits` are those of the maps as
    /// they are: a reload does not change them, and a start may keep larger ones.
    ///
    /// # Errors
    ///
    /// The thread that writes the state file can't be started.
    pub fn new(file: PathBuf, config: Config, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            file,
            limits,
            overrides: Overrides::default(),
            desired: config.desired.clone(),
            node: Node::default(),
            writer: Writer::start(&config.state_file)?,
            write_error: None,
            written_sums: BTreeMap::new(),
            config,
        })
    }

    /// The configuration's file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The configuration in force.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// The services in force: the configuration's with the changes by `lbctl`.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Whether the node drains.
    pub(crate) const fn node(&self) -> Node {
        self.node
    }

    /// The sums of removed backends that the state file has.
    pub(crate) const fn written_sums(&self) -> &BTreeMap<ServiceKey, Totals> {
        &self.written_sums
    }

    /// The error of the last write of the state file, or that one takes too long.
    pub(crate) const fn write_error(&self) -> Option<&String> {
        self.write_error.as_ref()
    }

    /// Takes up the changes of an earlier run from the state file. The jump is that of a clock that is behind the time
    /// at which the file was written: it was set meanwhile, or not yet.
    ///
    /// # Errors
    ///
    /// The file can't be read, or not be set aside.
    pub fn load(&mut self, wall: SystemTime) -> Result<(Vec<EventBody>, Option<Jump>)> {
        let path = self.config.state_file.clone();
        let written_at = fs::metadata(&path).and_then(|meta| meta.modified());
        let state = match state_file::load(&path)? {
            Loaded::Absent => return Ok((Vec::new(), None)),
            Loaded::SetAside { to, reason } => {
                let message = format!(
                    "the state file {} can't be used, and is {} from here on: changes by lbctl \
                     are lost, the configuration is in force",
                    path.display(),
                    to.display()
                );
                return Ok((vec![EventBody::new(Kind::StateFileSetAside, message, reason)], None));
            }
            Loaded::State(state) => state,
        };
        self.node = state.node;
        self.written_sums.clone_from(&state.retired);
        let events = self.resume(&path, &state, wall)?;
        let jump = written_at.ok().and_then(|at| Jump::between(at, wall, Duration::ZERO));
        Ok((events, jump.filter(|jump| matches!(jump, Jump::Back(_)))))
    }

    fn resume(&mut self, path: &Path, state: &State, wall: SystemTime) -> Result<Vec<EventBody>> {
        let runtime = state.overrides.apply(&state.configured);
        let configured = &self.config.desired;
        let mut merged = merge(&state.configured, configured, &runtime, wall, &self.config.unsaid);
        if let Err(violation) = merged.enforce_rules(configured, &self.limits) {
            let to = state_file::set_aside(path)?;
            let message = format!(
                "the state file {} does not go with the configuration, and is {} from here on: \
                 changes by lbctl are lost",
                path.display(),
                to.display()
            );
            return Ok(vec![EventBody::new(
                Kind::StateFileSetAside,
                message,
                violation.to_string(),
            )]);
        }
        self.set_desired(merged.desired);
        Ok(merged.conflicts.iter().map(overruled).collect())
    }

    /// Whether these services can be in force beside a configuration.
    ///
    /// # Errors
    ///
    /// All rules that they break.
    pub(crate) fn check(&self, config: &Config, wanted: &Desired) -> Result<(), Refusal> {
        let violations = rules::violations_beside(&config.desired, wanted, &self.limits);
        let mut all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        let services = wanted.services.iter();
        let splits = services.filter_map(|(name, service)| {
            router::split(name, &service.key, &config.routers.routers)
        });
        all.extend(splits.map(|split| split.to_string()));
        if all.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::Invalid, all.join("; ")))
    }

    /// The services that are in force with another configuration; nothing is changed.
    pub(crate) fn merge(&self, config: &Config, wall: SystemTime) -> Merged {
        merge(&self.config.desired, &config.desired, &self.desired, wall, &config.unsaid)
    }

    /// Puts services in force. The state file is not written.
    pub fn set_desired(&mut self, desired: Desired) {
        self.desired = desired;
        self.overrides = Overrides::between(&self.config.desired, &self.desired);
    }

    /// Puts another configuration in force, but for the keys that take a restart. Its services are for
    /// [`Self::set_desired`].
    pub(crate) fn set_config(&mut self, config: Config) {
        let kept = self.config.clone();
        self.config = Config {
            interfaces: kept.interfaces,
            xdp: kept.xdp,
            allow_generic_gro: kept.allow_generic_gro,
            reattach: kept.reattach,
            local_clients: kept.local_clients,
            pin_dir: kept.pin_dir,
            limits: kept.limits,
            tunnel: kept.tunnel,
            seed: kept.seed,
            socket: kept.socket,
            group: kept.group,
            state_file: kept.state_file,
            sync: kept.sync,
            text_at_start: kept.text_at_start,
            log: Settings { form: kept.log.form, ..config.log },
            ..config
        };
    }

    /// The files that `[http]` names can be read by now.
    pub(crate) fn set_http(&mut self, http: http::Config) {
        self.config.http_lacks = None;
        self.config.http = Some(http);
    }

    /// The configuration's file was replaced by this text, which has these services.
    pub(crate) fn set_saved(&mut self, text: String, services: Desired) {
        self.config.text = Text(text);
        self.config.desired = services;
        self.overrides = Overrides::between(&self.config.desired, &self.desired);
    }

    /// The node drains, or no more.
    pub(crate) const fn set_node(&mut self, node: Node) {
        self.node = node;
    }

    /// Moves the deadlines of drains by a jump of the time of day; the event, and whether there are any.
    pub(crate) fn shift_deadlines(&mut self, jump: Jump) -> (EventBody, bool) {
        let mut desired = self.desired.clone();
        let shifted = jump.shift(&mut desired);
        let (by, way) = match jump {
            Jump::Forward(by) => (by, "forward"),
            Jump::Back(by) => (by, "back"),
        };
        let by = format_duration(Duration::from_secs(by.as_secs()));
        let deadlines = counted(shifted, "deadline");
        let message = format!("the time of day went {way} by {by}; {deadlines} of drains with it");
        if shifted > 0 {
            self.set_desired(desired);
        }
        (EventBody::new(Kind::ClockJumped, message, "the clock was set"), shifted > 0)
    }

    /// Has the state file written, with these sums of removed backends.
    pub(crate) fn keep(&mut self, sums: &BTreeMap<ServiceKey, Totals>) -> Kept {
        self.written_sums.clone_from(sums);
        self.writer.post(State {
            configured: self.config.desired.clone(),
            overrides: self.overrides.clone(),
            node: self.node,
            retired: sums.clone(),
        })
    }

    /// The write of the state file that was ordered last.
    pub(crate) fn last_write(&self) -> Kept {
        self.writer.last()
    }

    /// Looks how the last write of the state file went; the event if that has changed. One that takes too long counts as
    /// failed.
    pub(crate) fn look_at_writer(&mut self, now: Instant) -> Option<EventBody> {
        let Outcome { error, .. } = self.writer.outcome(now)?;
        let event = match (&error, &self.write_error) {
            (Some(error), before) if before.as_ref() != Some(error) => Some(EventBody::new(
                Kind::StateFileFailing,
                "changes are not kept over a restart of lbd; trying again each second",
                error.as_str(),
            )),
            (None, Some(error)) => Some(EventBody::new(
                Kind::StateFileWritten,
                "changes are kept again",
                format!("it did not work before: {error}"),
            )),
            _ => None,
        };
        self.write_error = error;
        event
    }
}

/// The event of a change by `lbctl` that the configuration overrules.
pub(crate) fn overruled(conflict: &Conflict) -> EventBody {
    let cause = match conflict.ending {
        Ending::Misfit(_) => "it can't be in force beside the configuration",
        _ => "it was changed in the configuration later than by lbctl",
    };
    let event = EventBody::new(Kind::ConfigConflict, conflict.to_string(), cause);
    let (service, backend) = (Some(conflict.service.clone()), conflict.backend);
    EventBody { service, backend, ..event }
}
