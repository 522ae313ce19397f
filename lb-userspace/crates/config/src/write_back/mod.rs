//! Writes another state of the services into the text of a configuration, and leaves all else as it
//! is: comments, order, line ends.
//!
//! [`write_back`] edits the parsed document in one pass. [`layout`] knows where in the text a key or a table goes, and
//! which comments belong to it.

mod layout;

use std::num::NonZeroU16;

use anyhow::{Context as _, Result, ensure};
use lb_model::{
    backend_address::BackendAddress,
    check::Check,
    desired::{Admin, Backend, Desired, Service},
    keys::{self, Keys, Value},
};
use toml_edit::{Array, DocumentMut, InlineTable, Item, TableLike};

use self::layout::{Place, Sections};
use super::{Config, Problem, check::implied, former::with_present_keys};

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
            let (policy, target_port) = (&service.policy, service.target_port);
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
                if at.port.is_none() && target_port.is_some() {
                    note("that it has no port; the file's target_port gives it one");
                    return false;
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

/// The text of a configuration that is as that of `text`, but means `wanted`. Keys have their present names where anything
/// is written.
///
/// # Errors
///
/// It can't be written so that it is read as the wanted state.
pub fn write_back(text: &str, wanted: &Desired) -> Result<String> {
    let all = |problems: Vec<Problem>| {
        let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
        all.join("; ")
    };
    let config = Config::parse(text).map_err(|problems| anyhow::anyhow!(all(problems)))?;
    let written = if config.desired == *wanted {
        text.to_owned()
    } else {
        let text = with_present_keys(text);
        edit(&text, |document| write_services(document, &config.desired, wanted))?
    };
    let read = Config::parse(&written).map_err(|problems| {
        anyhow::anyhow!("what is in force makes no valid file: {}", all(problems))
    })?;
    let expected = Config {
        desired: wanted.clone(),
        unsaid: read.unsaid.clone(),
        warnings: read.warnings.clone(),
        ..config
    };
    ensure!(read == expected, "the file would not mean what is in force; edit it by hand");
    Ok(written)
}

/// The text with its document changed. `toml_edit` writes "\n" alone, behind every value, and no byte order mark, so
/// all lines end as the first one does. It also writes the dotted keys of a table one below the other.
fn edit(text: &str, change: impl FnOnce(&mut DocumentMut)) -> Result<String> {
    let body = text.trim_start_matches('\u{feff}');
    let mark = &text[..text.len() - body.len()];
    let is_crlf = body.split_once('\n').is_some_and(|(first, _)| first.ends_with('\r'));
    let is_last_ended = body.ends_with('\n');
    let mut lines = body.replace("\r\n", "\n");
    if !is_last_ended {
        lines.push('\n');
    }
    let mut document: DocumentMut = lines.parse().context("parse the configuration")?;
    let sections = Sections::of(&mut document);
    change(&mut document);
    sections.lay_out(&mut document);
    let mut written = document.to_string();
    if !is_last_ended && written.ends_with('\n') {
        written.pop();
    }
    if is_crlf {
        written = written.replace('\n', "\r\n");
    }
    Ok(format!("{mark}{written}"))
}

fn write_services(document: &mut DocumentMut, before: &Desired, wanted: &Desired) {
    let mut root = Place::Section(document);
    for mut table in root.tables("service") {
        let name = name_of(table.keys());
        let old_and_new = before.services.get(name).zip(wanted.services.get(name));
        if let Some((old, new)) = old_and_new {
            write_service(&mut table, old, new);
        }
    }
    let added = wanted.services.iter().filter(|(name, _)| !before.services.contains_key(*name));
    let added = added.map(|(name, service)| new_service(name, service)).collect();
    let is_wanted = |table: &dyn TableLike| wanted.services.contains_key(name_of(table));
    root.replace_tables("service", is_wanted, added);
}

fn write_service(table: &mut Place<'_>, old: &Service, new: &Service) {
    write_keys(table, &keys::service(old), &keys::service(new), &keys::service_defaults(new));
    let (was, is) = (&old.policy.check, &new.policy.check);
    if table.keys().contains_key("check") || *is != Check::default() {
        write_check(table, Some(was), is, &Check::default());
    }
    let defaults = keys::backend(&Backend::default());
    for mut table in table.tables("backend") {
        let Some(at) = address_of(table.keys(), old.target_port) else { continue };
        if address_of(table.keys(), new.target_port) != Some(at) {
            // It had the service's port, which goes.
            if let Some(old) = table.keys().get_mut("address").and_then(Item::as_value_mut) {
                let decor = old.decor().clone();
                *old = toml(&at.to_string().into());
                *old.decor_mut() = decor;
            }
        }
        let (Some(was), Some(now)) = (old.backends.get(&at), new.backends.get(&at)) else {
            continue;
        };
        write_keys(&mut table, &keys::backend(was), &keys::backend(now), &defaults);
        match &now.check {
            Some(check) => write_check(&mut table, was.check.as_deref(), check, is),
            None => table.remove(&["check"]),
        }
    }
    let added = new.backends.iter().filter(|(at, _)| !old.backends.contains_key(*at));
    let added = added.map(|(at, backend)| new_backend(*at, backend, is)).collect();
    let is_wanted = |table: &dyn TableLike| {
        address_of(table, old.target_port).is_none_or(|at| new.backends.contains_key(&at))
    };
    table.replace_tables("backend", is_wanted, added);
}

/// Makes the check of a service or a backend `after`, where a missing key is as in `base`.
fn write_check(table: &mut Place<'_>, before: Option<&Check>, after: &Check, base: &Check) {
    match (table.inner("check"), before) {
        (Some(mut inner), Some(before)) => {
            let implied = implied_keys(base, after, inner.keys().contains_key("interval"));
            write_keys(&mut inner, &keys::check(before), &keys::check(after), &implied);
        }
        _ => table.insert("check", new_check(after, base).into()),
    }
}

/// Makes the keys of a table those of `after`; a missing key is as in `implied`.
fn write_keys(table: &mut Place<'_>, before: &Keys, after: &Keys, implied: &Keys) {
    let gone = before.iter().map(|(key, _)| key).filter(|key| after.value(key).is_none());
    table.remove(&gone.collect::<Vec<_>>());
    for (key, value) in after.iter() {
        match table.keys().get_mut(key).and_then(Item::as_value_mut) {
            Some(_) if before.value(key) == Some(value) => {}
            Some(old) => {
                let decor = old.decor().clone();
                *old = toml(value);
                *old.decor_mut() = decor;
            }
            None if implied.value(key) == Some(value) => {}
            None => table.insert(key, toml(value)),
        }
    }
}

fn name_of(service: &dyn TableLike) -> &str {
    service.get("name").and_then(Item::as_str).unwrap_or_default()
}

/// The address of a backend's table in a service with this `target_port`.
fn address_of(backend: &dyn TableLike, target_port: Option<NonZeroU16>) -> Option<BackendAddress> {
    let address: BackendAddress = backend.get("address")?.as_str()?.parse().ok()?;
    let port = backend.get("port").and_then(Item::as_integer);
    let port = port.and_then(|port| NonZeroU16::try_from(u16::try_from(port).ok()?).ok());
    Some(address.or_port(port).or_port(target_port))
}

fn new_service(name: &str, service: &Service) -> InlineTable {
    let mut table = InlineTable::from_iter([("name", name)]);
    table.extend(entries(&keys::service(service), &keys::service_defaults(service)));
    let check = &service.policy.check;
    if *check != Check::default() {
        table.insert("check", new_check(check, &Check::default()).into());
    }
    if !service.backends.is_empty() {
        let backends = service.backends.iter();
        let backends = backends.map(|(at, backend)| new_backend(*at, backend, check));
        table.insert("backend", toml_edit::Value::Array(backends.collect()));
    }
    table
}

fn new_backend(at: BackendAddress, backend: &Backend, base: &Check) -> InlineTable {
    let mut table = InlineTable::from_iter([("address", toml(&at.to_string().into()))]);
    table.extend(entries(&keys::backend(backend), &keys::backend(&Backend::default())));
    table.extend(backend.check.as_ref().map(|check| ("check", new_check(check, base))));
    table
}

fn new_check(check: &Check, base: &Check) -> InlineTable {
    entries(&keys::check(check), &implied_keys(base, check, false)).collect()
}

/// The keys that `implied` does not have, or has with another value.
fn entries(keys: &Keys, implied: &Keys) -> impl Iterator<Item = (&'static str, toml_edit::Value)> {
    let own = keys.iter().filter(|(key, value)| implied.value(key) != Some(*value));
    own.map(|(key, value)| (key, toml(value)))
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

fn toml(value: &Value) -> toml_edit::Value {
    match value {
        Value::Flag(flag) => (*flag).into(),
        Value::Number(number) => i64::try_from(*number).unwrap_or(i64::MAX).into(),
        Value::Text(text) => string(text),
        Value::Words(words) => words.iter().map(|word| string(word)).collect::<Array>().into(),
    }
}

/// A string in TOML, in one line: a line break in it would become another one in a file with "\r\n".
fn string(text: &str) -> toml_edit::Value {
    if !text.contains('\n') {
        return text.into();
    }
    let escaped = text.chars().map(|letter| match letter {
        '\n' => "\\n".to_owned(),
        '"' | '\\' => format!("\\{letter}"),
        _ if letter.is_control() => format!("\\u{:04X}", u32::from(letter)),
        _ => letter.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>()).parse().unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests;
