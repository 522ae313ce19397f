//! In what two desired states differ, key by key, as the configuration names the keys.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::write::{self, Keys, Value},
    desired::{Backend, Desired, Service},
    units::counted,
};

/// Services, and how long their backends may drain: what a configuration says, or what is in force.
#[derive(Clone, Copy, Debug)]
pub struct Intent<'a> {
    /// The services.
    pub desired: &'a Desired,
    /// How long backends of a service may drain, for the services that say so.
    pub deadlines: &'a BTreeMap<String, Duration>,
}

impl Intent<'_> {
    /// How long backends of this service may drain.
    #[must_use]
    pub fn deadline(&self, service: &str) -> Option<Duration> {
        self.deadlines.get(service).copied()
    }
}

/// One thing in which two states differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The service.
    pub service: String,
    /// The backend, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<IpAddr>,
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
pub fn diff(before: Intent<'_>, after: Intent<'_>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut names: Vec<&String> = before.desired.services.keys().collect();
    names.extend(after.desired.services.keys());
    names.sort();
    names.dedup();
    for name in names {
        let mut list = List { service: name, found: &mut found };
        let of = |intent: &Intent<'_>| intent.deadline(name);
        match (before.desired.services.get(name), after.desired.services.get(name)) {
            (Some(old), Some(new)) => {
                list.service((old, of(&before)), (new, of(&after)));
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

/// One line about a backend: the weight, and what is not as usual.
fn backend_summary(backend: &Backend) -> Value {
    let mut text = format!("weight {}", backend.weight);
    for (key, _, value) in write::backend(&Backend::default()).differences(&write::backend(backend))
    {
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
        backend: Option<IpAddr>,
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

    fn keys(&mut self, backend: Option<IpAddr>, prefix: &str, before: &Keys, after: &Keys) {
        for (key, before, after) in before.differences(after) {
            self.push(backend, Some(format!("{prefix}{key}")), before, after);
        }
    }

    fn service(
        &mut self,
        before: (&Service, Option<Duration>),
        after: (&Service, Option<Duration>),
    ) {
        let ((old, old_drain), (new, new_drain)) = (before, after);
        self.keys(None, "", &write::service(old, old_drain), &write::service(new, new_drain));
        if old.policy.check != new.policy.check {
            let check = |service: &Service| write::check(&service.policy.check);
            self.keys(None, "check.", &check(old), &check(new));
        }
        let mut addresses: Vec<IpAddr> = old.backends.keys().copied().collect();
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

    fn backend(&mut self, at: IpAddr, before: (&Service, &Backend), after: (&Service, &Backend)) {
        self.keys(Some(at), "", &write::backend(before.1), &write::backend(after.1));
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
            |(service, backend): (&Service, &Backend)| write::check(service.check_of(backend));
        self.keys(Some(at), "check.", &check(before), &check(after));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(service: &str) -> Config {
        let text = format!("interfaces = [\"eth0\"]\n{service}");
        Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    fn texts(before: &Config, after: &Config) -> Vec<String> {
        diff(before.intent(), after.intent()).iter().map(ToString::to_string).collect()
    }

    const WEB: &str = r#"
        [[service]]
        name = "web"
        vip = "10.0.0.100"
        port = 80
        protocol = "tcp"
        mode = "dsr"
        check = { type = "http" }
        backend = [{ address = "10.0.0.11" }, { address = "10.0.0.12", check = { port = 81 } }]
        "#;
    const DNS: &str = r#"
        [[service]]
        name = "dns"
        vip = "10.0.0.100"
        port = 53
        protocol = "udp"
        mode = "ipip"
        "#;

    #[test]
    fn equal_states_do_not_differ() {
        assert_eq!(texts(&config(WEB), &config(WEB)), [""; 0]);
    }

    #[test]
    fn every_difference_is_one_line() {
        let after = WEB
            .replace("port = 80\n", "port = 8080\ndrain_deadline = \"1h30m5s\"\n")
            .replace("type = \"http\"", "type = \"tcp\", interval = \"1s\"")
            .replace(
                "{ address = \"10.0.0.11\" }",
                "{ address = \"10.0.0.11\", weight = 3, state = \"draining\", backup = true, check = { type = \"none\" } }, { address = \"10.0.0.14\", weight = 2, backup = true }",
            )
            .replace(", { address = \"10.0.0.12\", check = { port = 81 } }", "");
        assert_eq!(
            texts(&config(&format!("{WEB}{DNS}")), &config(&after)),
            [
                "service dns removed",
                "service web: port 80 -> 8080",
                "service web: drain_deadline none -> 1h30m5s",
                "service web: check: type http -> tcp",
                "service web: check: method GET -> none",
                "service web: check: path / -> none",
                "service web: check: status 200-399 -> none",
                "service web: check: interval 2s -> 1s",
                "service web: check: fast_interval 500ms -> 250ms",
                "service web: check: down_interval 2s -> 1s",
                "service web: weight of 10.0.0.11 1 -> 3",
                "service web: state of 10.0.0.11 enabled -> draining",
                "service web: backup of 10.0.0.11 false -> true",
                "service web: check of 10.0.0.11 the service's -> its own",
                "service web: check of 10.0.0.11: type http -> none",
                "service web: check of 10.0.0.11: method GET -> none",
                "service web: check of 10.0.0.11: path / -> none",
                "service web: check of 10.0.0.11: status 200-399 -> none",
                "service web: check of 10.0.0.11: interval 2s -> 1s",
                "service web: check of 10.0.0.11: fast_interval 500ms -> 250ms",
                "service web: check of 10.0.0.11: down_interval 2s -> 1s",
                "service web: backend 10.0.0.12 removed",
                "service web: backend 10.0.0.14 added with weight 2, backup",
            ]
        );
        assert_eq!(
            texts(&config(WEB), &config(&format!("{WEB}{DNS}"))),
            ["service dns added: udp 10.0.0.100:53 by ipip, 0 backends"]
        );
    }

    #[test]
    fn differences_travel_as_json() {
        let (before, after) = (config(WEB), config(DNS));
        let found = diff(before.intent(), after.intent());
        let json = serde_json::to_string(&found).expect("it is JSON");
        assert_eq!(serde_json::from_str::<Vec<Difference>>(&json).expect(&json), found);
    }
}
