//! A change of the configuration under the changes by `lbctl`: key by key, the last change wins.
//!
//! Three states meet: the configuration as it was, as it is, and what was in force. A key whose value
//! the configuration has changed gets that value; any other keeps the one in force. That a service
//! or a backend is there is a key as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend_address::BackendAddress,
    check::Check,
    desired::{Admin, Backend, Desired, Service},
    keys,
    policy::Policy,
    rules::{self, DRAIN_DEADLINE, Owners, Violation},
    units::exact_duration,
};

/// The state in force after a change of the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// The services.
    pub desired: Desired,
    /// The changes by `lbctl` that have gone.
    pub conflicts: Vec<Conflict>,
}

/// The keys of backends that a configuration does not specify: service, backend and key.
pub type Unsaid = BTreeSet<(String, BackendAddress, &'static str)>;

/// A change by `lbctl` that the configuration has overruled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The service.
    pub service: String,
    /// The backend, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// How it ended.
    pub ending: Ending,
}

/// How a change by `lbctl` ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The configuration has another value.
    Replaced {
        /// The key.
        key: String,
        /// The value of the configuration.
        configured: String,
        /// The value that `lbctl` had set.
        runtime: String,
    },
    /// The changed object is not there any more.
    Gone,
    /// The removed object is there again, since the configuration has changed it.
    Back,
    /// The added or moved object does not go with the configuration.
    Misfit(String),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        if let Some(backend) = self.backend {
            write!(f, " {backend}")?;
        }
        f.write_str(": ")?;
        match &self.ending {
            Ending::Replaced { key, configured, runtime } => {
                write!(
                    f,
                    "{key} {configured} of the configuration replaces {runtime}, set by lbctl"
                )
            }
            Ending::Gone => f.write_str(
                "the configuration has removed it, and with it what lbctl changed of it",
            ),
            Ending::Back => f.write_str(
                "it was removed by lbctl, and is back: the configuration has changed it since",
            ),
            Ending::Misfit(why) => {
                write!(f, "what lbctl changed of it does not go with the configuration: {why}")
            }
        }
    }
}

/// Puts the configuration `after` in the place of `before`, where `runtime` was in force.
///
/// Backends that the configuration no longer has drain, and leave when their last flow has ended;
/// those of a service that it no longer has go with it, since nothing is left that would send to
/// them. A service or backend that `lbctl` has added and the configuration has since keeps the keys that
/// `after` leaves `unsaid`: a default does not override a change.
#[must_use]
pub fn merge(
    before: &Desired,
    after: &Desired,
    runtime: &Desired,
    wall: SystemTime,
    unsaid: &Unsaid,
) -> Merged {
    let mut merge = Merge { conflicts: Vec::new(), wall, unsaid };
    let mut desired = Desired::default();
    let of = |desired: &Desired| desired.services.keys().cloned().collect::<BTreeSet<_>>();
    for name in &(&of(before) | &of(after)) | &of(runtime) {
        let find = |desired: &Desired| desired.services.get(&name).cloned();
        let merged = merge.service(&name, find(before), find(after), find(runtime));
        desired.services.extend(merged.map(|service| (name, service)));
    }
    merge.mend(&mut desired, after);
    merge.name(&mut desired, after);
    merge.evict(&mut desired, after);
    for (name, service) in &mut desired.services {
        if let Some(deadline) = service.drain_deadline.take_if(|it| !DRAIN_DEADLINE.contains(it)) {
            let why = format!("drain_deadline: {} is not possible", exact_duration(deadline));
            merge.note((name, None), Ending::Misfit(why));
        }
    }
    Merged { desired, conflicts: merge.conflicts }
}

struct Merge<'u> {
    conflicts: Vec<Conflict>,
    wall: SystemTime,
    unsaid: &'u Unsaid,
}

/// The service, and the backend if it is about one.
type At<'a> = (&'a str, Option<BackendAddress>);

impl Merge<'_> {
    fn note(&mut self, (service, backend): At<'_>, ending: Ending) {
        self.conflicts.push(Conflict { service: service.into(), backend, ending });
    }

    /// The value of a key; `before` is none if there was no configured value.
    fn pick<T: PartialEq + Clone>(
        &mut self,
        at: At<'_>,
        key: &'static str,
        (before, after, runtime): (Option<&T>, &T, &T),
        show: impl Fn(&T) -> String,
    ) -> T {
        let (service, backend) = at;
        let is_unsaid = |backend| self.unsaid.contains(&(service.to_owned(), backend, key));
        if before == Some(after) || (before.is_none() && backend.is_some_and(is_unsaid)) {
            return runtime.clone();
        }
        if before != Some(runtime) && after != runtime {
            let (configured, runtime) = (show(after), show(runtime));
            self.note(at, Ending::Replaced { key: key.into(), configured, runtime });
        }
        after.clone()
    }

    fn service(
        &mut self,
        name: &str,
        before: Option<Service>,
        after: Option<Service>,
        runtime: Option<Service>,
    ) -> Option<Service> {
        match (before, after, runtime) {
            (Some(before), None, Some(mut runtime)) => {
                let known = &before.backends;
                runtime.backends.retain(|at, backend| {
                    known.contains_key(at) || !matches!(backend.admin, Admin::Removing { .. })
                });
                if runtime != before {
                    self.note((name, None), Ending::Gone);
                }
                None
            }
            (None, None, runtime) => runtime,
            (_, None, None) => None,
            (None, Some(after), None) => Some(after),
            (Some(before), Some(after), None) if before == after => None,
            (Some(_), Some(after), None) => {
                self.note((name, None), Ending::Back);
                Some(after)
            }
            (before, Some(after), Some(runtime)) => {
                Some(self.keys_of_service(name, before.as_ref(), &after, &runtime))
            }
        }
    }

    fn keys_of_service(
        &mut self,
        name: &str,
        before: Option<&Service>,
        after: &Service,
        runtime: &Service,
    ) -> Service {
        let at = (name, None);
        macro_rules! pick {
            ($key:literal, $($field:ident).+, $show:expr) => {{
                let old = before.map(|before| &before.$($field).+);
                self.pick(at, $key, (old, &after.$($field).+, &runtime.$($field).+), $show)
            }};
        }
        let share = |percent: &u8| format!("{percent}%");
        let time = |time: &Duration| exact_duration(*time);
        let drain = pick!("drain_deadline", drain_deadline, |drain| drain
            .map_or_else(|| "none".to_owned(), exact_duration));
        let mut service = Service {
            key: pick!("address", key, ToString::to_string),
            mode: pick!("mode", mode, ToString::to_string),
            udp_policy: pick!("udp", udp_policy, |policy| keys::udp_word(*policy).into()),
            ring_slots: pick!("ring_slots", ring_slots, ToString::to_string),
            idle_timeout: pick!("idle_timeout", idle_timeout, time),
            syn_budget: pick!("syn_budget", syn_budget, ToString::to_string),
            drain_deadline: drain,
            target_port: pick!("target_port", target_port, |port| port
                .map_or_else(|| "none".into(), |port| port.to_string())),
            drain_silence: pick!("drain_silence", drain_silence, time),
            policy: Policy {
                check: pick!("check", policy.check, |check| show_check(Some(check))),
                slow_start: pick!("slow_start", policy.slow_start, time),
                panic_threshold: pick!("panic_threshold", policy.panic_threshold, share),
                min_healthy: pick!("min_healthy", policy.min_healthy, ToString::to_string),
                flap_half_life: pick!("flap_half_life", policy.flap_half_life, time),
                on_down: pick!("on_down", policy.on_down, |on_down| on_down.word().into()),
                second_choice: pick!("syn_failover", policy.second_choice, ToString::to_string),
            },
            backends: BTreeMap::new(),
        };
        // Flows of another key or mode have ended: nothing of them can drain.
        let runtime_flows = runtime.key == service.key && runtime.mode == service.mode;
        let until = drain.filter(|_| runtime_flows).and_then(|drain| self.wall.checked_add(drain));
        let retire = runtime_flows.then_some(until);
        let none = BTreeMap::new();
        let old = before.map_or(&none, |before| &before.backends);
        let (new, now) = (&after.backends, &runtime.backends);
        let addresses: BTreeSet<&BackendAddress> =
            old.keys().chain(new.keys()).chain(now.keys()).collect();
        for address in addresses {
            let triple = (old.get(address), new.get(address), now.get(address));
            if let Some(backend) = self.backend((name, Some(*address)), triple, retire) {
                service.backends.insert(*address, backend);
            }
        }
        service
    }

    /// `retire` is the deadline of a drain, if what the configuration no longer has can drain.
    fn backend(
        &mut self,
        at: At<'_>,
        triple: (Option<&Backend>, Option<&Backend>, Option<&Backend>),
        retire: Option<Option<SystemTime>>,
    ) -> Option<Backend> {
        match triple {
            (None, None, runtime) => runtime.cloned(),
            (_, None, None) => None,
            (Some(before), None, Some(runtime)) => {
                let like = Backend { admin: before.admin, ..runtime.clone() };
                if like != *before {
                    self.note(at, Ending::Gone);
                }
                let deadline = retire?;
                let admin = match runtime.admin {
                    // Its flows are not there any more.
                    Admin::Down => return None,
                    Admin::Removing { .. } => runtime.admin,
                    Admin::Draining { deadline: own } => {
                        Admin::Removing { deadline: own.or(deadline) }
                    }
                    Admin::Enabled | Admin::Disabled => Admin::Removing { deadline },
                };
                Some(Backend { admin, ..runtime.clone() })
            }
            (None, Some(after), None) => Some(after.clone()),
            // It was on its way out; there is nothing of it that was meant to stay.
            (None, Some(after), Some(runtime))
                if matches!(runtime.admin, Admin::Removing { .. }) =>
            {
                Some(after.clone())
            }
            (Some(before), Some(after), None) if before == after => None,
            (Some(_), Some(after), None) => {
                self.note(at, Ending::Back);
                Some(after.clone())
            }
            (before, Some(after), Some(runtime)) => {
                macro_rules! pick {
                    ($key:literal, $field:ident, $show:expr) => {{
                        let old = before.map(|before| &before.$field);
                        self.pick(at, $key, (old, &after.$field, &runtime.$field), $show)
                    }};
                }
                Some(Backend {
                    name: pick!("name", name, |name| name.clone().unwrap_or_else(|| "none".into())),
                    weight: pick!("weight", weight, ToString::to_string),
                    admin: pick!("state", admin, keys::state),
                    backup: pick!("backup", backup, ToString::to_string),
                    check: pick!("check", check, |check| show_check(check.as_deref())),
                })
            }
        }
    }

    /// Takes back how backends are checked where that can't be: nothing else of a service depends on it.
    fn mend(&mut self, desired: &mut Desired, configured: &Desired) {
        for (name, service) in &mut desired.services {
            let base = configured.services.get(name);
            let mut found = rules::check::violations_of_policy(name, service);
            found.extend(rules::check::foreign_commands(name, service, base));
            for Violation { backend, field, message, .. } in found {
                let policy = &mut service.policy;
                let own = base.map(|base| &base.policy);
                let default = Policy::default();
                match (backend.and_then(|at| service.backends.get_mut(&at)), field) {
                    (Some(own), _) => {
                        let base = backend.and_then(|at| base?.backends.get(&at));
                        own.check = base.and_then(|base| base.check.clone());
                        // A leaving backend needs no command that the file has no more.
                        if matches!(own.admin, Admin::Removing { .. }) {
                            continue;
                        }
                    }
                    (None, "check") => {
                        let mended = || rules::check::mended(&policy.check);
                        policy.check = own.map_or_else(mended, |own| own.check.clone());
                    }
                    (None, "slow_start") => {
                        policy.slow_start = own.unwrap_or(&default).slow_start;
                    }
                    (None, "flap_half_life") => {
                        policy.flap_half_life = own.unwrap_or(&default).flap_half_life;
                    }
                    (None, _) => policy.panic_threshold = own.unwrap_or(&default).panic_threshold,
                }
                self.note((name, backend), Ending::Misfit(message));
            }
        }
    }

    /// Takes names that the configuration gives to others from the backends that had them.
    fn name(&mut self, desired: &mut Desired, configured: &Desired) {
        for (name, service) in &mut desired.services {
            let Some(base) = configured.services.get(name) else { continue };
            let own = |at: &BackendAddress| base.backends.get(at).and_then(|one| one.name.clone());
            // One that gets its own name back may take it from another.
            loop {
                let theirs = service.backends.iter().filter(|(at, one)| one.name == own(at));
                let theirs: BTreeSet<_> = theirs.filter_map(|(_, one)| one.name.clone()).collect();
                let taken = service.backends.iter_mut().find(|(at, one)| {
                    one.name != own(at) && one.name.as_ref().is_some_and(|it| theirs.contains(it))
                });
                let Some((at, backend)) = taken else { break };
                let old = std::mem::replace(&mut backend.name, own(at));
                // One that leaves needs no name.
                if !matches!(backend.admin, Admin::Removing { .. }) {
                    let show =
                        |name: &Option<String>| name.clone().unwrap_or_else(|| "none".into());
                    let (configured, runtime) = (show(&backend.name), show(&old));
                    let ending = Ending::Replaced { key: "name".into(), configured, runtime };
                    self.note((name, Some(*at)), ending);
                }
            }
        }
    }

    /// Takes out what was in force and can't be beside what the configuration has.
    fn evict(&mut self, desired: &mut Desired, configured: &Desired) {
        while let Some((name, why)) = taken(desired, configured) {
            self.note((&name, None), Ending::Misfit(why));
            match configured.services.get(&name) {
                Some(service) => drop(desired.services.insert(name, service.clone())),
                None => drop(desired.services.remove(&name)),
            }
        }
        let owners = Owners::of(desired);
        let backends = desired.services.values().flat_map(|service| service.backends.keys());
        let vips = backends.map(|at| at.ip).filter(|ip| owners.of_vip(*ip).is_some());
        let vips: BTreeSet<IpAddr> = vips.collect();
        for (name, service) in &mut desired.services {
            let base = configured.services.get(name).map(|service| &service.backends);
            let configured = |at: &BackendAddress| base.is_some_and(|base| base.contains_key(at));
            let vips = service.backends.keys().filter(|at| vips.contains(&at.ip));
            let mut bad: BTreeMap<BackendAddress, String> =
                vips.map(|at| (*at, format!("{} is a VIP", at.ip))).collect();
            let sockets = service.backends.keys().filter(|at| configured(at));
            let sockets: BTreeMap<_, _> =
                sockets.map(|at| (at.socket(service.key.port), *at)).collect();
            bad.extend(service.backends.iter().filter_map(|(at, backend)| {
                let other =
                    sockets.get(&at.socket(service.key.port)).filter(|other| *other != at)?;
                let leaves = matches!(backend.admin, Admin::Removing { .. });
                (!leaves).then(|| (*at, format!("it is the backend {other}")))
            }));
            let violations = rules::violations_of(name, service).into_iter();
            for found in violations {
                if let Some(at) = found.backend {
                    bad.entry(at).or_insert(found.message);
                }
            }
            for (at, why) in bad {
                if !configured(&at) {
                    service.backends.remove(&at);
                    self.note((name, Some(at)), Ending::Misfit(why));
                }
            }
        }
    }
}

/// A service whose VIPs and ports are not the configuration's, and clash with those of another in the configuration.
fn taken(desired: &Desired, configured: &Desired) -> Option<(String, String)> {
    let own = |name: &str, service: &Service| {
        configured.services.get(name).is_some_and(|base| base.key == service.key)
    };
    desired.services.iter().find_map(|(name, service)| {
        let mut others = desired.services.iter();
        let (other, its) = others.find(|(other, o)| {
            *other != name && o.key.clashes(&service.key) && own(other, o) && !own(name, service)
        })?;
        let why = match its.key == service.key {
            true => format!("{} is its service {other}", service.key),
            false => format!("{} has ports of its service {other}, {}", service.key, its.key),
        };
        Some((name.clone(), why))
    })
}

fn show_check(check: Option<&Check>) -> String {
    match check {
        None => "of the service".into(),
        Some(check) => format!("{} every {}", check.kind.name(), exact_duration(check.interval)),
    }
}

#[cfg(test)]
mod tests;
