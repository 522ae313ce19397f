//! The log: its destination, form and level.
//!
//! It goes to the standard error, a line for each event. On a terminal lines have colours; where the
//! journal listens they begin with their priority, as `<4>`, and have no time, since the journal has
//! it. The level can be changed while `lbd` runs, for a while or till the next start.

mod line;
#[cfg(test)]
pub(crate) mod written;

use std::{
    env,
    io::{self, IsTerminal as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_api::log::{Change, Current};
use lb_model::log::{Filter, Form, Settings};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        self,
        format::{Format, JsonFields},
    },
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use self::line::Line;

/// The variable that goes before the configuration.
const VARIABLE: &str = "LB_LOG";

/// The log of this process. There is one, as there is one standard error.
static LOGS: OnceLock<Logs> = OnceLock::new();

/// A log whose filter can be changed.
#[derive(Debug)]
struct Logs {
    handle: reload::Handle<EnvFilter, Registry>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    configured: Filter,
    /// Whether that is of the environment, which goes before the file.
    is_fixed: bool,
    set: Option<(Filter, Option<SystemTime>)>,
    /// The number of the last change, so that the end of an earlier one has no effect.
    number: u64,
}

impl State {
    fn filter(&self) -> &Filter {
        self.set.as_ref().map_or(&self.configured, |(filter, _)| filter)
    }

    fn current(&self) -> Current {
        let configured = self.set.as_ref().map(|_| self.configured.to_string());
        let until = self.set.as_ref().and_then(|(_, until)| *until);
        Current { filter: self.filter().to_string(), configured, until }
    }

    /// Takes the filter of a configuration.
    fn configure(&mut self, filter: &Filter) {
        if !self.is_fixed {
            self.configured = filter.clone();
        }
    }

    /// Sets a filter over the configured one, or removes it; returns its number.
    fn set(&mut self, set: Option<(Filter, Option<SystemTime>)>) -> u64 {
        self.set = set;
        self.number += 1;
        self.number
    }

    /// The time of the change with this number is over.
    fn expire(&mut self, number: u64) {
        if self.number == number {
            self.set = None;
        }
    }
}

/// Begins to log.
///
/// # Errors
///
/// The environment's filter is none, or this process has another subscriber already.
pub fn start(settings: &Settings) -> Result<()> {
    let given = env::var(VARIABLE).ok().filter(|given| !given.is_empty());
    let is_fixed = given.is_some();
    let configured = match given {
        Some(given) => given.parse().map_err(|why: String| anyhow::anyhow!("{VARIABLE}: {why}"))?,
        None => settings.filter.clone(),
    };
    let (filter, handle) = reload::Layer::new(made(&configured));
    let registry = tracing_subscriber::registry().with(filter).with(layer(settings.form));
    registry.try_init().context("begin to log")?;
    let state = Mutex::new(State { configured, is_fixed, set: None, number: 0 });
    let logs = Logs { handle, state };
    LOGS.set(logs).map_err(|_| anyhow::anyhow!("the log has begun already"))
}

/// The layer that writes lines, by the kind of the standard error.
fn layer<S>(form: Form) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'l> tracing_subscriber::registry::LookupSpan<'l>,
{
    let is_journal = is_journal();
    let layer = fmt::layer().with_writer(io::stderr);
    let format = Format::default().with_target(false);
    match form {
        Form::Json => {
            let format = Line { inner: format.json().flatten_event(true), form, is_journal };
            layer.with_ansi(false).fmt_fields(JsonFields::new()).event_format(format).boxed()
        }
        Form::Text if is_journal => {
            let format = Line { inner: format.without_time().with_level(true), form, is_journal };
            layer.with_ansi(false).event_format(format).boxed()
        }
        Form::Text if io::stderr().is_terminal() => layer.event_format(format).boxed(),
        Form::Text => {
            let format = Line { inner: format, form, is_journal };
            layer.with_ansi(false).event_format(format).boxed()
        }
    }
}

/// Whether the journal reads the standard error: `JOURNAL_STREAM` names the file (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let meta = std::fs::File::from(stderr).metadata();
    meta.is_ok_and(|meta| named == format!("{}:{}", meta.dev(), meta.ino()))
}

impl Logs {
    fn state(&self) -> MutexGuard<'_, State> {
        // A state is whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and puts the filter in force.
    fn put<T>(&self, why: &str, change: impl FnOnce(&mut State) -> T) -> T {
        // Till the end, or two changes at once could put the older one in force.
        let mut state = self.state();
        let before = state.filter().clone();
        let changed = change(&mut state);
        let filter = state.filter();
        if before != *filter {
            // Before and after, since one of the two levels may hide it.
            tracing::info!(%before, %filter, "the log's level changes: {why}");
            // An error is that of a subscriber that is gone, with the process.
            let _ = self.handle.reload(made(filter));
            if tracing_subscriber::filter::LevelFilter::current() < tracing::Level::INFO {
                tracing::error!(%before, %filter, "the log's level has changed: {why}");
            }
        }
        changed
    }
}

/// The level; none before [`start`].
pub(crate) fn current() -> Option<Current> {
    LOGS.get().map(|logs| logs.state().current())
}

/// Takes the filter of a reloaded configuration. A filter of [`set`] stays.
pub fn configure(settings: &Settings) {
    let Some(logs) = LOGS.get() else { return };
    logs.put("configuration reloaded", |state| state.configure(&settings.filter));
}

/// Changes the level, for a while or until the process ends. Takes a runtime for the former.
///
/// # Errors
///
/// There is no log.
pub fn set(change: Change) -> Result<Current, String> {
    let logs = LOGS.get().ok_or("there is no log")?;
    let lasts = change.for_secs.map(Duration::from_secs);
    // A time beyond the clock's range does not come.
    let until = lasts.and_then(|lasts| SystemTime::now().checked_add(lasts));
    let filter = change.filter.map(|filter| (filter, until));
    let (number, current) =
        logs.put("lbctl log level", |state| (state.set(filter), state.current()));
    if let Some(lasts) = lasts.filter(|_| until.is_some()) {
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            logs.put("its time is over", |state| state.expire(number));
        });
    }
    Ok(current)
}

/// A filter as the library takes it.
fn made(filter: &Filter) -> EnvFilter {
    EnvFilter::new(filter.directives())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use lb_model::log::{CRATES, PARTS, XDP};

    use super::*;

    /// Whether a file, or one in a folder, has something to log.
    fn logs(path: &Path) -> bool {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("it is there");
            return entries.map(|entry| entry.expect("it is read").path()).any(|path| logs(&path));
        }
        let text = fs::read_to_string(path).expect("it is text");
        let text = text.split("mod tests {").next().unwrap_or_default();
        let macros = ["error!", "warn!", "info!", "debug!", "trace!", "$level!"];
        text.contains("use tracing::")
            || macros.iter().any(|name| text.contains(&format!("tracing::{name}(")))
    }

    #[test]
    fn the_parts_are_those_that_log() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let crates = own.parent().expect("it stands beside the others");
        let names = |folder: &Path| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).expect("the folder is there");
            let parts =
                entries.map(|entry| entry.expect("it is read").path()).filter(|path| logs(path));
            let name =
                |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
            parts.map(|path| name(&path)).collect()
        };
        let mut found = names(&own.join("src"));
        for name in names(crates).into_iter().filter(|name| name != "daemon") {
            // A crate is one part, unless the table has modules of it.
            let target = format!("lb_{name}");
            let parts = CRATES.iter().filter(|(_, at)| at.split("::").next() == Some(&target));
            let parts: Vec<_> = parts.map(|(part, _)| (*part).to_owned()).collect();
            assert!(!parts.is_empty(), "{name} logs");
            found.extend(parts);
        }
        found.insert(XDP.to_owned());
        assert_eq!(found, PARTS.iter().map(ToString::to_string).collect());
    }

    fn filter(text: &str) -> Filter {
        text.parse().expect(text)
    }

    fn state(is_fixed: bool) -> State {
        State { configured: filter("info"), is_fixed, set: None, number: 0 }
    }

    #[test]
    fn what_is_set_for_a_while_ends_though_the_configuration_changes_meanwhile() {
        let mut state = state(false);
        let number = state.set(Some((filter("debug"), None)));
        state.configure(&filter("warn"));
        assert_eq!(state.filter(), &filter("debug"), "what lbctl has set stays");
        assert_eq!(state.current().configured.as_deref(), Some("warn"));
        state.expire(number);
        assert_eq!(state.filter(), &filter("warn"));
    }

    #[test]
    fn the_end_of_what_was_set_before_ends_nothing() {
        let mut state = state(false);
        let first = state.set(Some((filter("debug"), None)));
        let second = state.set(Some((filter("trace"), None)));
        state.expire(first);
        assert_eq!(state.filter(), &filter("trace"));
        state.expire(second);
        assert_eq!(state.filter(), &filter("info"));
    }

    #[test]
    fn the_environment_goes_before_the_configuration() {
        let mut state = state(true);
        state.configure(&filter("trace"));
        assert_eq!(state.filter(), &filter("info"));
    }
}
