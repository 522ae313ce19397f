//! Writes another state of the services into the text of a configuration, and leaves all else as it
//! is: comments, order, line ends.
//!
//! The text is edited in place by the spans of its parsed tree. That takes three passes, each over a
//! tree of its own: removed, changed and added values.

mod node;
mod text;

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_model::{
    check::Check,
    desired::{Admin, Backend, Desired, Service},
    keys::{self, Keys, Value},
};
use toml_edit::{Array, Document, Item};

use self::{
    node::{Node, Place},
    text::Edits,
};
use super::{Config, Problem, check::implied};

/// The part of a state that the configuration can express.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writable {
    /// The services.
    pub desired: Desired,
    /// The parts that it can't express, as text.
    pub left: Vec<String>,
}

impl Writable {
    /// The part of `wanted` that the configuration can express; the rest is as in `configured`.
    #[must_use]
    pub fn of(configured: &Desired, wanted: &Desired) -> Self {
        let mut desired = wanted.clone();
        let mut left = Vec::new();
        for (name, service) in &mut desired.services {
            let old = configured.services.get(name).map(|service| &service.backends);
            let policy = &service.policy;
            service.backends.retain(|at, backend| {
                let mut note = |what: &str| left.push(format!("backend {at} of {name}: {what}"));
                let state = keys::state(&backend.admin);
                match backend.admin {
                    Admin::Enabled | Admin::Disabled | Admin::Draining { deadline: None } => {}
                    Admin::Draining { .. } => {
                        note(&format!("state {state}; the file has draining, without an end"));
                        backend.admin = Admin::Draining { deadline: None };
                    }
                    Admin::Down => {
                        note("state down; the file has disabled, which keeps flows");
                        backend.admin = Admin::Disabled;
                    }
                    Admin::Removing { .. } => {
                        note(&format!("state {state}; the file does not have it"));
                        return false;
                    }
                }
                let fits = |check: &Check| is_expressible(check, &policy.check);
                if !backend.check.as_deref().is_none_or(fits) {
                    note("its check; it has less than the service's, which a file can't express");
                    let before = old.and_then(|old| old.get(at)?.check.clone());
                    backend.check = before.filter(|check| fits(check));
                }
                true
            });
        }
        Self { desired, left }
    }
}

/// Whether a table can make `check` of `base`: it can give a key a value, and take none away.
fn is_expressible(check: &Check, base: &Check) -> bool {
    let implied = keys::check(&implied(base, check.kind.name(), Some(check.interval)));
    let keys = keys::check(check);
    implied.iter().all(|(key, _)| keys.value(key).is_some())
}

/// The text of a configuration that is as that of `text`, but means `wanted`.
///
/// # Errors
///
/// It can't be written so that it is read as the wanted state.
pub fn fold(text: &str, wanted: &Desired) -> Result<String> {
    let all = |problems: Vec<Problem>| {
        let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
        all.join("; ")
    };
    let config = Config::parse(text).map_err(|problems| anyhow::anyhow!(all(problems)))?;
    let before = &config.desired;
    let folded = remove(text, before, wanted)?;
    let folded = change(&folded, before, wanted)?;
    let folded = add(&folded, before, wanted)?;
    let read = Config::parse(&folded).map_err(|problems| {
        anyhow::anyhow!("what is in force makes no valid file: {}", all(problems))
    })?;
    let expected = Config {
        desired: wanted.clone(),
        unsaid: read.unsaid.clone(),
        warnings: read.warnings.clone(),
        ..config
    };
    ensure!(read == expected, "the file would not mean what is in force; edit it by hand");
    Ok(folded)
}

fn parse(text: &str) -> Result<Document<&str>> {
    Document::parse(text).context("parse the configuration")
}

fn name_of<'d>(service: Node<'d>) -> &'d str {
    service.item("name").and_then(Item::as_str).unwrap_or_default()
}

fn address_of(backend: Node<'_>) -> Option<IpAddr> {
    backend.item("address")?.as_str()?.parse().ok()
}

/// The text without the services, backends and keys that are not wanted.
fn remove(text: &str, before: &Desired, wanted: &Desired) -> Result<String> {
    let document = parse(text)?;
    let root = Node::Section(document.as_table());
    let mut edits = Edits::new(text);
    let services = &wanted.services;
    root.cut_tables(&mut edits, "service", |table| !services.contains_key(name_of(table)));
    for table in root.tables("service") {
        let name = name_of(table);
        let (Some(old), Some(new)) = (before.services.get(name), services.get(name)) else {
            continue;
        };
        let (old_keys, new_keys) = (keys::service(old), keys::service(new));
        let place = Place::of(table);
        place.cut_keys(&mut edits, |key| is_gone(key, &old_keys, &new_keys));
        let (old_check, new_check) =
            (keys::check(&old.policy.check), keys::check(&new.policy.check));
        if let Some(place) = place.inner("check") {
            place.cut_keys(&mut edits, |key| is_gone(key, &old_check, &new_check));
        }
        table.cut_tables(&mut edits, "backend", |table| {
            address_of(table).is_some_and(|at| !new.backends.contains_key(&at))
        });
        for table in table.tables("backend") {
            let Some(at) = address_of(table) else { continue };
            let (Some(was), Some(is)) = (old.backends.get(&at), new.backends.get(&at)) else {
                continue;
            };
            let place = Place::of(table);
            match (was.check.as_deref(), is.check.as_deref()) {
                (_, None) => place.cut_keys(&mut edits, |key| key == "check"),
                (Some(was), Some(is)) => {
                    let (was, is) = (keys::check(was), keys::check(is));
                    if let Some(place) = place.inner("check") {
                        place.cut_keys(&mut edits, |key| is_gone(key, &was, &is));
                    }
                }
                (None, Some(_)) => {}
            }
        }
    }
    edits.apply()
}

fn is_gone(key: &str, before: &Keys, after: &Keys) -> bool {
    before.value(key).is_some() && after.value(key).is_none()
}

/// The text with the keys changed that differ, of services and backends that it has.
fn change(text: &str, before: &Desired, wanted: &Desired) -> Result<String> {
    let document = parse(text)?;
    let mut edits = Edits::new(text);
    for table in Node::Section(document.as_table()).tables("service") {
        let name = name_of(table);
        let (Some(old), Some(new)) = (before.services.get(name), wanted.services.get(name)) else {
            continue;
        };
        let (old_keys, new_keys) = (keys::service(old), keys::service(new));
        let place = Place::of(table);
        fold_keys(&mut edits, &place, &old_keys, &new_keys, &keys::service_defaults(new));
        let (was, is) = (&old.policy.check, &new.policy.check);
        if place.inner("check").is_some() || *is != Check::default() {
            fold_check(&mut edits, &place, Some(was), is, &Check::default());
        }
        for table in table.tables("backend") {
            let Some(at) = address_of(table) else { continue };
            let (Some(was), Some(now)) = (old.backends.get(&at), new.backends.get(&at)) else {
                continue;
            };
            let place = Place::of(table);
            let defaults = keys::backend(&Backend::default());
            fold_keys(&mut edits, &place, &keys::backend(was), &keys::backend(now), &defaults);
            if let Some(check) = &now.check {
                fold_check(&mut edits, &place, was.check.as_deref(), check, is);
            }
        }
    }
    edits.apply()
}

/// Makes the keys of a table those of `after`; a missing key is as in `implied`.
fn fold_keys(
    edits: &mut Edits<'_>,
    place: &Place<'_>,
    before: &Keys,
    after: &Keys,
    implied: &Keys,
) {
    for (key, value) in after.iter() {
        match place.span_of(key) {
            Some(_) if before.value(key) == Some(value) => {}
            Some(span) => edits.replace(span, toml(value)),
            None if implied.value(key) == Some(value) => {}
            None => place.insert(edits, key, &toml(value)),
        }
    }
}

/// Makes the check of a service or a backend `after`, where a missing key is as in `base`.
fn fold_check(
    edits: &mut Edits<'_>,
    place: &Place<'_>,
    before: Option<&Check>,
    after: &Check,
    base: &Check,
) {
    match (place.inner("check"), before) {
        (Some(inner), Some(before)) => {
            let implied = implied_keys(base, after, inner.span_of("interval").is_some());
            fold_keys(edits, &inner, &keys::check(before), &keys::check(after), &implied);
        }
        _ => place.insert(edits, "check", &inline_check(after, base)),
    }
}

/// The keys of a check with nothing of its own but, maybe, the type and the interval of
/// `check`, as a table that lacks them implies them.
fn implied_keys(base: &Check, check: &Check, has_interval: bool) -> Keys {
    let follows = has_interval || check.interval != base.interval;
    let implied = implied(base, check.kind.name(), follows.then_some(check.interval));
    let mut keys = keys::check(&implied);
    keys.set("type", base.kind.name());
    keys.set("interval", base.interval);
    keys
}

/// A check as an inline table.
fn inline_check(check: &Check, base: &Check) -> String {
    let implied = implied_keys(base, check, false);
    inline(&entries(&keys::check(check), &implied))
}

/// The lines of the keys that are not as in `implied`.
fn entries(keys: &Keys, implied: &Keys) -> Vec<String> {
    let own = keys.iter().filter(|(key, value)| implied.value(key) != Some(*value));
    own.map(|(key, value)| format!("{key} = {}", toml(value))).collect()
}

fn inline(entries: &[String]) -> String {
    if entries.is_empty() { "{}".into() } else { format!("{{ {} }}", entries.join(", ")) }
}

fn backend_entries(at: IpAddr, backend: &Backend, base: &Check) -> Vec<String> {
    let mut lines = vec![format!("address = {}", toml(&at.into()))];
    lines.extend(entries(&keys::backend(backend), &keys::backend(&Backend::default())));
    let check = backend.check.as_ref();
    lines.extend(check.map(|check| format!("check = {}", inline_check(check, base))));
    lines
}

fn service_entries(name: &str, service: &Service) -> Vec<String> {
    let mut lines = vec![format!("name = {}", toml(&name.into()))];
    let defaults = keys::service_defaults(service);
    lines.extend(entries(&keys::service(service), &defaults));
    let default = Check::default();
    let check = &service.policy.check;
    if *check != default {
        lines.push(format!("check = {}", inline_check(check, &default)));
    }
    lines
}

/// The text with the services and backends that it lacks.
fn add(text: &str, before: &Desired, wanted: &Desired) -> Result<String> {
    let document = parse(text)?;
    let root = Node::Section(document.as_table());
    let mut edits = Edits::new(text);
    for table in root.tables("service") {
        let name = name_of(table);
        let Some(service) = wanted.services.get(name) else { continue };
        let old = before.services.get(name).map(|service| &service.backends);
        let new = service.backends.iter();
        let new = new.filter(|(at, _)| old.is_none_or(|old| !old.contains_key(at)));
        let new: Vec<_> =
            new.map(|(at, backend)| backend_entries(*at, backend, &service.policy.check)).collect();
        if !new.is_empty() {
            table.add_tables(&mut edits, "service.backend", &new);
        }
    }
    let old = &before.services;
    let new = wanted.services.iter().filter(|(name, _)| !old.contains_key(*name));
    let new: Vec<_> = new.collect();
    if let Some(Item::Value(array)) = root.item("service")
        && let Some(array) = array.as_array()
        && let Some(span) = array.span()
    {
        let elements: Vec<_> = new
            .iter()
            .map(|(name, service)| {
                let mut entries = service_entries(name, service);
                let backends = service.backends.iter();
                let backends = backends.map(|(at, backend)| {
                    inline(&backend_entries(*at, backend, &service.policy.check))
                });
                let backends: Vec<_> = backends.collect();
                if !backends.is_empty() {
                    entries.push(format!("backend = [{}]", backends.join(", ")));
                }
                inline(&entries)
            })
            .collect();
        if !elements.is_empty() {
            let last = array.iter().filter_map(toml_edit::Value::span).last();
            edits.push_elements(span, last, &elements);
        }
        return edits.apply();
    }
    for (name, service) in new {
        let mut lines = vec![String::new(), "[[service]]".to_owned()];
        lines.extend(service_entries(name, service));
        for (at, backend) in &service.backends {
            lines.push("    [[service.backend]]".into());
            let entries = backend_entries(*at, backend, &service.policy.check);
            lines.extend(entries.iter().map(|entry| format!("    {entry}")));
        }
        edits.insert_lines(text.len(), &lines);
    }
    edits.apply()
}

/// A value in TOML.
fn toml(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => toml_edit::Value::from(text.as_str()).to_string(),
        Value::Words(words) => words.iter().map(String::as_str).collect::<Array>().to_string(),
    }
}

#[cfg(test)]
mod tests;
