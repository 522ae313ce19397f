//! The differences of two desired states, key by key, as the configuration names the keys.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    backend_address::BackendAddress,
    desired::{Backend, Desired, Service},
    keys::{self, Keys, Value},
    units::counted,
};

/// One thing in which two states differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The service.
    pub service: String,
    /// The backend, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// The key, as `weight` or `check.interval`; none: the service or the backend as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The value before; none: there was none.
    pub before: Option<Value>,
    /// The value after; none: there is none.
    pub after: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, backend, key, before, after } = self;
        write!(f, "service {service}")?;
        let Some(key) = key else {
            if let Some(backend) = backend {
                write!(f, ": backend {backend}")?;
            }
            return match (after, backend) {
                (None, _) => f.write_str(" removed"),
                (Some(what), None) => write!(f, " added: {what}"),
                (Some(what), Some(_)) => write!(f, " added with {what}"),
            };
        };
        f.write_str(": ")?;
        match (key.strip_prefix("check."), backend) {
            (Some(key), Some(backend)) => write!(f, "check of {backend}: {key}")?,
            (Some(key), None) => write!(f, "check: {key}")?,
            (None, Some(backend)) => write!(f, "{key} of {backend}")?,
            (None, None) => f.write_str(key)?,
        }
        let value = |f: &mut fmt::Formatter<'_>, value: &Option<Value>| match value {
            Some(value) => value.fmt(f),
            None => f.write_str("none"),
        };
        f.write_str(" ")?;
        value(f, before)?;
        f.write_str(" -> ")?;
        value(f, after)
    }
}

/// Everything in which two states differ, by service and backend; empty if they are equal.
#[must_use]
pub fn diff(before: &Desired, after: &Desired) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut names: Vec<&String> = before.services.keys().collect();
    names.extend(after.services.keys());
    names.sort();
    names.dedup();
    for name in names {
        let mut list = List { service: name, found: &mut found };
        match (before.services.get(name), after.services.get(name)) {
            (Some(old), Some(new)) => {
                list.service(old, new);
            }
            (old, new) => {
                list.push(None, None, old.map(summary).as_ref(), new.map(summary).as_ref());
            }
        }
    }
    found
}

/// One line about a service.
fn summary(service: &Service) -> Value {
    let count = service.backends.len();
    format!("{} by {}, {}", service.key, service.mode, counted(count, "backend")).into()
}

/// One line about a backend: the weight, and the values that are not the defaults.
fn backend_summary(backend: &Backend) -> Value {
    let mut text = format!("weight {}", backend.weight);
    for (key, _, value) in keys::backend(&Backend::default()).differences(&keys::backend(backend)) {
        match (key, value) {
            ("weight", _) | (_, None) => {}
            (_, Some(Value::Flag(true))) => text += &format!(", {key}"),
            (_, Some(value)) => text += &format!(", {key} {value}"),
        }
    }
    if backend.check.is_some() {
        text += ", its own check";
    }
    text.into()
}

/// The differences of one service.
struct List<'a> {
    service: &'a str,
    found: &'a mut Vec<Difference>,
}

impl List<'_> {
    fn push(
        &mut self,
        backend: Option<BackendAddress>,
        key: Option<String>,
        before: Option<&Value>,
        after: Option<&Value>,
    ) {
        self.found.push(Difference {
            service: self.service.into(),
            backend,
            key,
            before: before.cloned(),
            after: after.cloned(),
        });
    }

    fn keys(&mut self, backend: Option<BackendAddress>, prefix: &str, before: &Keys, after: &Keys) {
        for (key, before, after) in before.differences(after) {
            self.push(backend, Some(format!("{prefix}{key}")), before, after);
        }
    }

    fn service(&mut self, old: &Service, new: &Service) {
        self.keys(None, "", &keys::service(old), &keys::service(new));
        if old.policy.check != new.policy.check {
            let check = |service: &Service| keys::check(&service.policy.check);
            self.keys(None, "check.", &check(old), &check(new));
        }
        let mut addresses: Vec<BackendAddress> = old.backends.keys().copied().collect();
        addresses.extend(new.backends.keys().copied());
        addresses.sort();
        addresses.dedup();
        for at in addresses {
            match (old.backends.get(&at), new.backends.get(&at)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => self.backend(at, (old, a), (new, b)),
                (a, b) => {
                    let (a, b) = (a.map(backend_summary), b.map(backend_summary));
                    self.push(Some(at), None, a.as_ref(), b.as_ref());
                }
            }
        }
    }

    fn backend(
        &mut self,
        at: BackendAddress,
        before: (&Service, &Backend),
        after: (&Service, &Backend),
    ) {
        self.keys(Some(at), "", &keys::backend(before.1), &keys::backend(after.1));
        if before.1.check == after.1.check {
            return;
        }
        let whose = |backend: &Backend| match backend.check {
            None => Value::from("the service's"),
            Some(_) => Value::from("its own"),
        };
        let (old, new) = (whose(before.1), whose(after.1));
        if old != new {
            self.push(Some(at), Some("check".into()), Some(&old), Some(&new));
        }
        let check =
            |(service, backend): (&Service, &Backend)| keys::check(service.check_of(backend));
        self.keys(Some(at), "check.", &check(before), &check(after));
    }
}
