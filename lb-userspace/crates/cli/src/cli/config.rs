//! `lbctl config`: what differs between the file, the configuration in force and what is in force.

use std::{fmt::Display, path::Path, process::ExitCode};

use anyhow::Result;
use hyper::{Method, body::Bytes};
use lb_api::paths;

use super::{Printer, args::ConfigCommand, done_text, options::Dry};
use lb_api::client::Client;
use lb_api::requests::{ConfigDiff, Reloaded, Saved, Shown};
use lb_config::{Config, Error, host};
use lb_model::units::counted;

pub(super) async fn run(
    command: &ConfigCommand,
    client: &Client,
    printer: Printer,
) -> Result<ExitCode> {
    match command {
        ConfigCommand::Check { file } => return Ok(check(file)),
        ConfigCommand::Reload(Dry { dry_run }) => {
            let path = format!("{}?dry_run={dry_run}", paths::RELOAD);
            let reloaded: Reloaded = client.send(Method::POST, &path, Bytes::new()).await?;
            printer.print(&reloaded, || done_text(&reloaded.done))?;
        }
        ConfigCommand::Show => {
            let shown: Shown = client.get(paths::CONFIG).await?;
            printer.print(&shown, || shown.toml.clone())?;
        }
        ConfigCommand::Diff { exit_code } => {
            let diff: ConfigDiff = client.get(paths::CONFIG_DIFF).await?;
            printer.print(&diff, || text(&diff))?;
            if *exit_code && !diff.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        ConfigCommand::Save { dry_run } => {
            let path = format!("{}?dry_run={dry_run}", paths::CONFIG_SAVE);
            let saved: Saved = client.send(Method::POST, &path, Bytes::new()).await?;
            printer.print(&saved, || match dry_run {
                false => done_text(&saved.done),
                true if saved.diff.is_empty() => done_text(&saved.done),
                true => {
                    let left = saved.left.iter().map(|left| format!("# kept beside it: {left}\n"));
                    format!("{}{}", saved.diff, left.collect::<String>())
                }
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints every mistake of a file, and the interfaces and files that this host lacks: 0 for none, 2 for
/// mistakes, 1 if `lbd` would not start with it here for another reason.
pub fn check(file: &Path) -> ExitCode {
    let shown = file.display();
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(Error::Invalid(invalid)) => {
            eprintln!("{invalid}");
            return if invalid.is_mistaken() { ExitCode::from(2) } else { ExitCode::FAILURE };
        }
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::from(error));
            return ExitCode::FAILURE;
        }
    };
    let lacks = host::lacks(&config, file);
    let warnings =
        config.warnings.iter().map(|warning| format!("{shown}:{}", warning.as_warning()));
    warnings.chain(lacks.warnings).for_each(|line| eprintln!("{line}"));
    lacks.errors.iter().for_each(|line| eprintln!("{line}"));
    if !lacks.errors.is_empty() {
        eprintln!("{shown}: {}", counted(lacks.errors.len(), "error"));
        return ExitCode::FAILURE;
    }
    println!("{shown}: ok: {}", config.summary());
    ExitCode::SUCCESS
}

/// Both sections, for people.
fn text(diff: &ConfigDiff) -> String {
    let ConfigDiff { file, runtime, reload } = diff;
    let mut text = String::from("changed by lbctl against the configuration in force:\n");
    text += &lines(runtime);
    if let Some(error) = &reload.error {
        text += &format!("{} can't be loaded:\n", file.display());
        text += &lines(&error.lines().collect::<Vec<_>>());
        return text;
    }
    text += &format!("what a reload of {} would change:\n", file.display());
    let mut all: Vec<String> = reload.differences.iter().map(ToString::to_string).collect();
    all.extend(reload.routers.iter().chain(&reload.tables).cloned());
    all.extend(reload.conflicts.iter().map(ToString::to_string));
    if !reload.restart.is_empty() {
        all.push(format!("a restart of lbd is needed for {}", reload.restart.join(", ")));
    }
    text + &lines(&all)
}

fn lines(items: &[impl Display]) -> String {
    if items.is_empty() {
        return "  nothing\n".into();
    }
    items.iter().map(|item| format!("  {item}\n")).collect()
}
