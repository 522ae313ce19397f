//! What `lbctl` changed against the configuration: told, and folded into its file.

use super::{Balancer, Daemon, vrrp::changes};
use crate::{
    api::{ConfigDiff, Done, Pending, Saved, Shown},
    config::{
        Config, Text,
        fold::{Writable, fold},
        save::replace,
        show::show,
    },
    diff::diff,
    edit::{Refusal, RefusalKind},
    overrides::Overrides,
    state_file::writer::Kept,
    units::counted,
};

/// How many differences a refusal tells.
const TOLD: usize = 3;

impl<B: Balancer> Daemon<B> {
    /// What differs between the file, the configuration in force, and what is in force.
    pub(super) fn config_diff(&self) -> ConfigDiff {
        let pending = match self.plan_reload() {
            Err(refusal) => Pending { error: Some(refusal.error), ..Pending::default() },
            Ok((config, merged)) => Pending {
                error: None,
                differences: diff(self.in_force(), merged.intent()),
                routers: changes(&self.config.routers, &config.routers),
                tables: super::reload::tables(&self.config, &config),
                restart: self
                    .config
                    .needs_restart(&config)
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                conflicts: merged.conflicts,
            },
        };
        ConfigDiff {
            file: self.file.clone(),
            runtime: diff(self.config.intent(), self.in_force()),
            reload: pending,
        }
    }

    /// What is in force, as a file would say it.
    pub(super) fn show_config(&self) -> Result<Shown, Refusal> {
        let writable = Writable::of(self.config.intent(), self.in_force());
        let toml = show(&self.config.text.0, &self.config.text_at_start.0, &writable)
            .map_err(|error| Refusal::new(RefusalKind::Failed, format!("{error:#}")))?;
        Ok(Shown { file: self.file.clone(), toml })
    }

    /// Writes what is in force into the configuration's file, as far as that can say it.
    pub(super) fn save_config(&mut self, dry_run: bool) -> Result<(Saved, Option<Kept>), Refusal> {
        let file = self.file.display().to_string();
        let failed = |error: anyhow::Error| {
            Refusal::new(RefusalKind::Failed, format!("{error:#}")).hint("nothing was changed")
        };
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| failed(anyhow::anyhow!("read {file}: {error}")))?;
        let on_disk = Config::parse_to_start(&text).map_err(|problems| {
            let all: Vec<String> =
                problems.iter().map(|problem| format!("{file}:{problem}")).collect();
            Refusal::new(RefusalKind::Invalid, all.join("\n")).hint("nothing was changed")
        })?;
        let edited = diff(self.config.intent(), on_disk.intent());
        if !edited.is_empty() {
            let told: Vec<String> = edited.iter().take(TOLD).map(ToString::to_string).collect();
            let more = if edited.len() > TOLD { "; ..." } else { "" };
            let error =
                format!("{file} was edited since it was loaded ({}{more})", told.join("; "));
            return Err(Refusal::new(RefusalKind::Conflict, error)
                .hint("run 'lbctl config reload' first; 'lbctl config diff' shows what it does"));
        }
        let writable = Writable::of(self.config.intent(), self.in_force());
        let folded = fold(&text, writable.intent()).map_err(failed)?;
        let differences = diff(self.config.intent(), writable.intent());
        let unified = similar::TextDiff::from_lines(&text, &folded);
        let unified = unified.unified_diff().header(&file, &file).to_string();
        let count = match differences.len() {
            1 => "1 change".to_owned(),
            count => counted(count, "change"),
        };
        let message = match (differences.is_empty(), dry_run) {
            (true, _) => format!("nothing to save: {file} says what is in force"),
            (false, true) => format!("{count} would be written into {file}"),
            (false, false) => format!("{count} written into {file}"),
        };
        let mut notes: Vec<String> = differences.iter().map(ToString::to_string).collect();
        notes.extend(writable.left.iter().map(|left| format!("kept beside the file: {left}")));
        let mut kept = None;
        if !dry_run {
            if folded != text {
                let doubt = replace(&self.file, &text, &folded).map_err(|error| {
                    failed(error).hint(
                        "nothing was changed; 'lbctl config save --dry-run' shows what to write by hand",
                    )
                })?;
                notes.extend(doubt);
            }
            self.config.text = Text(folded);
            self.config.desired = writable.desired;
            self.config.drain_deadlines = writable.deadlines;
            self.overrides = Overrides::between(self.config.intent(), self.in_force());
            kept = Some(self.keep());
            tracing::info!(?notes, "{message}");
        }
        let saved = Saved {
            done: Done { message, notes, plan: None },
            differences,
            diff: unified,
            left: writable.left,
        };
        Ok((saved, kept))
    }
}
