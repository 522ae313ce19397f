//! The changes by `lbctl` against the configuration: their report, and the write back into its file.

use std::{fs, path::Path};

use lb_api::requests::{ConfigDiff, Done, Pending, Saved, Shown};
use lb_config::{
    Config,
    save::replace,
    show::show,
    write_back::{Writable, write_back},
};
use lb_model::{
    diff::{Difference, diff},
    refusal::{Refusal, RefusalKind},
    units::counted,
};
use lb_plane::DataPlane;

use super::{Daemon, Reply, vrrp::changes};
use crate::state_file::writer::Kept;

/// How many differences a refusal lists.
const LISTED: usize = 3;

impl<D: DataPlane> Daemon<D> {
    /// The differences between the file, the configuration in force, and the state in force.
    pub(super) fn config_diff(&self, read: Result<Config, lb_config::Error>) -> ConfigDiff {
        let pending = match self.plan_reload(read) {
            Err(refusal) => Pending { error: Some(refusal.error), ..Pending::default() },
            Ok((config, merged)) => Pending {
                error: None,
                differences: diff(self.store.desired(), &merged.desired),
                routers: changes(&self.store.config().routers, &config.routers),
                tables: super::reload::tables(self.store.config(), &config),
                restart: self
                    .store
                    .config()
                    .needs_restart(&config)
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                conflicts: merged.conflicts,
            },
        };
        ConfigDiff {
            file: self.store.file().to_owned(),
            runtime: diff(&self.store.config().desired, self.store.desired()),
            reload: pending,
        }
    }

    /// The state in force, in the form of a configuration file.
    pub(super) fn show_config(&mut self, reply: Reply<Shown>) {
        let writable = Writable::of(&self.store.config().desired, self.store.desired());
        let (loaded, at_start) =
            (self.store.config().text.clone(), self.store.config().text_at_start.clone());
        let shown = move || show(&loaded.0, &at_start.0, &writable);
        self.on_disk(shown, |daemon, shown| {
            let shown = shown.map(|toml| Shown { file: daemon.store.file().to_owned(), toml });
            let shown =
                shown.map_err(|error| Refusal::new(RefusalKind::Failed, format!("{error:#}")));
            // The client may be gone.
            let _ = reply.send(shown);
        });
    }

    /// Writes the state in force into the configuration's file, as far as that has keys for it.
    pub(super) fn save_config(&mut self, dry_run: bool, reply: Reply<Saved>) {
        let file = self.store.file().to_owned();
        self.on_disk(
            move || read(&file),
            move |daemon, read| match read
                .and_then(|(text, on_disk)| daemon.unless_edited(&on_disk).map(|()| text))
            {
                Err(refusal) => drop(reply.send(Err(refusal))),
                Ok(text) => daemon.write_config_back(text, dry_run, reply),
            },
        );
    }

    /// Refuses to write a file that was edited since it was loaded.
    fn unless_edited(&self, on_disk: &Config) -> Result<(), Refusal> {
        let edited = diff(&self.store.config().desired, &on_disk.desired);
        if edited.is_empty() {
            return Ok(());
        }
        let file = self.store.file().display();
        let listed: Vec<String> = edited.iter().take(LISTED).map(ToString::to_string).collect();
        let more = if edited.len() > LISTED { "; ..." } else { "" };
        let error = format!("{file} was edited since it was loaded ({}{more})", listed.join("; "));
        Err(Refusal::new(RefusalKind::Conflict, error)
            .hint("run 'lbctl config reload' first; 'lbctl config diff' shows what it does"))
    }

    /// Writes the state in force back into the file's text, and that into the file unless this is a dry run.
    fn write_config_back(&mut self, text: String, dry_run: bool, reply: Reply<Saved>) {
        let writable = Writable::of(&self.store.config().desired, self.store.desired());
        let differences = diff(&self.store.config().desired, &writable.desired);
        let file = self.store.file().to_owned();
        let write = move || write(&file, &text, &writable, dry_run).map(|done| (done, writable));
        self.next_on_disk(write, move |daemon, written| match written {
            Err(refusal) => drop(reply.send(Err(refusal))),
            Ok((written, writable)) => {
                let (mut saved, kept) = daemon.saved(written, writable, differences, dry_run);
                tokio::spawn(async move {
                    if let Some(kept) = kept {
                        saved.done.notes.extend(kept.note().await);
                    }
                    let _ = reply.send(Ok(saved));
                });
            }
        });
    }

    /// Takes the file as it was written for the configuration in force; the answer for `lbctl`.
    fn saved(
        &mut self,
        written: Written,
        writable: Writable,
        differences: Vec<Difference>,
        dry_run: bool,
    ) -> (Saved, Option<Kept>) {
        let file = self.store.file().display();
        let count = match differences.len() {
            1 => "1 change".to_owned(),
            count => counted(count, "change"),
        };
        let message = match (differences.is_empty(), dry_run) {
            (true, _) => format!("nothing to save: {file} matches the state in force"),
            (false, true) => format!("{count} would be written into {file}"),
            (false, false) => format!("{count} written into {file}"),
        };
        let mut notes: Vec<String> = differences.iter().map(ToString::to_string).collect();
        notes.extend(writable.left.iter().map(|left| format!("kept beside the file: {left}")));
        notes.extend(written.doubt);
        let mut kept = None;
        if !dry_run {
            self.store.set_saved(written.text, writable.desired);
            kept = Some(self.keep());
            tracing::info!(?notes, "{message}");
        }
        let done = Done { message, notes, plan: None };
        (Saved { done, differences, diff: written.diff, left: writable.left }, kept)
    }
}

/// The outcome of a save.
struct Written {
    /// The text with the state in force.
    text: String,
    /// How it differs from the file's.
    diff: String,
    /// A warning for the answer.
    doubt: Option<String>,
}

fn failed(error: &anyhow::Error) -> Refusal {
    Refusal::new(RefusalKind::Failed, format!("{error:#}")).hint("nothing was changed")
}

/// Reads the file that is to be replaced.
fn read(file: &Path) -> Result<(String, Config), Refusal> {
    let name = file.display();
    let text = fs::read_to_string(file)
        .map_err(|error| failed(&anyhow::anyhow!("read {name}: {error}")))?;
    let config = Config::parse_to_start(&text).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(|problem| format!("{name}:{problem}")).collect();
        Refusal::new(RefusalKind::Invalid, all.join("\n")).hint("nothing was changed")
    })?;
    Ok((text, config))
}

/// Writes `writable` back into the file's text, and that into the file unless this is a dry run.
fn write(file: &Path, text: &str, writable: &Writable, dry_run: bool) -> Result<Written, Refusal> {
    let new = write_back(text, &writable.desired).map_err(|error| failed(&error))?;
    let name = file.display().to_string();
    let diff = similar::TextDiff::from_lines(text, &new);
    let diff = diff.unified_diff().header(&name, &name).to_string();
    let mut doubt = None;
    if !dry_run && new != text {
        doubt = replace(file, text, &new).map_err(|error| {
            failed(&error).hint(
                "nothing was changed; 'lbctl config save --dry-run' shows what to write by hand",
            )
        })?;
    }
    Ok(Written { text: new, diff, doubt })
}
