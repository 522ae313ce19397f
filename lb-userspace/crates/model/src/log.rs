//! The log's levels and its format: a level for all, and levels for parts.
//!
//! A filter is checked part by part, since the library would take a misspelt level for the name of a part.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::units::nearest;

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
/// The parts of the user side that log, and `xdp`, the balancer's program.
pub const PARTS: [&str; 18] = [
    "api", "daemon", "datapath", "egress", "engine", "events", "health", "logs", "netlink",
    "notify", "path_mtu", "samples", "seed", "sync", "threads", "vrrp", "web", XDP,
];
/// The parts that are crates of their own or modules of one, and where their events come from.
pub const CRATES: [(&str, &str); 12] = [
    ("datapath", "lb_datapath"),
    ("engine", "lb_control::engine"),
    ("events", "lb_observe::events"),
    ("health", "lb_health"),
    ("netlink", "lb_netlink"),
    ("notify", "lb_threads::systemd"),
    ("path_mtu", "lb_netlink::path_mtu"),
    ("samples", "lb_observe::samples"),
    ("seed", "lb_config::seed"),
    ("sync", "lb_sync"),
    ("threads", "lb_threads"),
    ("vrrp", "lb_vrrp"),
];
/// Where the other parts' events come from.
const REST: &str = "lb_daemon";
/// The part of the balancer's program.
pub const XDP: &str = "xdp";
/// Libraries that log.
const LIBRARIES: [&str; 6] = ["aya", "hyper", "hyper_util", "mio", "rustls", "tokio"];

/// The settings of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The level.
    pub filter: Filter,
    /// The format.
    pub form: Form,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// For people: text, then fields as `name=value`.
    #[default]
    Text,
    /// For programs: an object.
    Json,
}

/// A filter of log lines: `info`, or `warn,vrrp=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl Default for Filter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Filter {
    type Err = String;

    /// Refuses a filter with a mistake: it would log nothing at all.
    fn from_str(text: &str) -> Result<Self, String> {
        let directives: Result<Vec<_>, _> =
            text.split(',').map(|one| directive(one.trim())).collect();
        let directives: Vec<_> = directives?.into_iter().map(|(text, _)| text).collect();
        Ok(Self(directives.join(",")))
    }
}

/// A directive as it was given, and those that the library takes.
fn directive(text: &str) -> Result<(String, Vec<String>), String> {
    let Some((part, level)) = text.split_once('=') else {
        let level = check_level(text)?;
        return Ok((level.clone(), vec![level]));
    };
    let (part, level) = (part.trim(), check_level(level.trim())?);
    let (first, rest) = part.split_once("::").unwrap_or((part, ""));
    let is_path = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
    let targets = match first {
        // All that is the project's own.
        "lb_userspace" if rest.is_empty() => {
            let crates = CRATES.iter().filter_map(|(_, target)| target.split("::").next());
            let crates: BTreeSet<_> = crates.chain([REST]).collect();
            crates.into_iter().map(str::to_owned).collect()
        }
        "lb_userspace" => vec![target(rest)],
        XDP | "lbd" => vec![part.to_owned()],
        first if LIBRARIES.contains(&first) => vec![part.to_owned()],
        first if PARTS.contains(&first) => vec![target(part)],
        _ => {
            let known = PARTS.iter().chain(&LIBRARIES).copied();
            return Err(match nearest(first, known) {
                Some(near) => format!("`{first}` is no part that logs; did you mean {near}?"),
                None => format!("`{first}` is no part that logs; these are {}", PARTS.join(", ")),
            });
        }
    };
    if !is_path {
        return Err(format!("`{part}` is no part that logs; write one as vrrp or vrrp::machine"));
    }
    let taken = targets.iter().map(|target| format!("{target}={level}")).collect();
    Ok((format!("{part}={level}"), taken))
}

/// Where a part's events come from.
fn target(part: &str) -> String {
    let (first, rest) = part.split_at(part.find("::").unwrap_or(part.len()));
    match CRATES.iter().find(|(name, _)| *name == first) {
        Some((_, target)) => format!("{target}{rest}"),
        None => format!("{REST}::{part}"),
    }
}

fn check_level(text: &str) -> Result<String, String> {
    let level = text.to_ascii_lowercase();
    if LEVELS.contains(&level.as_str()) {
        return Ok(level);
    }
    let all = "error, warn, info, debug, trace or off";
    Err(match nearest(&level, LEVELS) {
        Some(near) => format!("`{text}` is no level; did you mean {near}?"),
        None => format!("`{text}` is no level; write {all}, or a part and one, as vrrp=debug"),
    })
}

impl Filter {
    /// As tracing-subscriber's `EnvFilter` takes it: directives with the targets of this project's crates.
    #[must_use]
    pub fn directives(&self) -> String {
        let directives = self.0.split(',').filter_map(|one| directive(one).ok());
        let directives: Vec<_> = directives.flat_map(|(_, taken)| taken).collect();
        directives.join(",")
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_for_all_and_for_parts() {
        for (given, kept, taken) in [
            ("info", "info", "info"),
            (" WARN , web=debug", "warn,web=debug", "warn,lb_daemon::web=debug"),
            ("info,xdp=debug,hyper=off", "info,xdp=debug,hyper=off", "hyper=off,xdp=debug,info"),
            ("vrrp::machine=trace", "vrrp::machine=trace", "lb_vrrp::machine=trace"),
            ("lb_userspace::web=info", "lb_userspace::web=info", "lb_daemon::web=info"),
            ("lb_userspace::vrrp=info", "lb_userspace::vrrp=info", "lb_vrrp=info"),
            ("path_mtu=off", "path_mtu=off", "lb_netlink::path_mtu=off"),
            (
                "lb_userspace=debug",
                "lb_userspace=debug",
                "lb_daemon=debug,lb_vrrp=debug,lb_observe=debug,lb_threads=debug,lb_netlink=debug,lb_sync=debug,lb_health=debug,lb_config=debug,lb_control=debug,lb_datapath=debug",
            ),
        ] {
            let filter: Filter = given.parse().expect(given);
            assert_eq!(filter.to_string(), kept);
            let sorted = |text: &str| {
                let mut all: Vec<_> = text.split(',').map(str::to_owned).collect();
                all.sort_unstable();
                all
            };
            assert_eq!(sorted(&filter.directives()), sorted(taken));
        }
    }

    #[test]
    fn a_slip_is_told_with_what_is_meant() {
        for (given, expected) in [
            ("inof", "`inof` is no level; did you mean info?"),
            (
                "",
                "`` is no level; write error, warn, info, debug, trace or off, or a part and one, as vrrp=debug",
            ),
            ("vrpp=debug", "`vrpp` is no part that logs; did you mean vrrp?"),
            (
                "vrrp=loud",
                "`loud` is no level; write error, warn, info, debug, trace or off, or a part and one, as vrrp=debug",
            ),
            (
                "vrrp::a b=info",
                "`vrrp::a b` is no part that logs; write one as vrrp or vrrp::machine",
            ),
            (
                "info,[span]=debug",
                "`[span]` is no part that logs; these are api, daemon, datapath, egress, engine, events, health, logs, netlink, notify, path_mtu, samples, seed, sync, threads, vrrp, web, xdp",
            ),
        ] {
            assert_eq!(given.parse::<Filter>().expect_err(given), expected);
        }
    }
}
