//! `cargo xtask soak`: random operations on a pair of balancers under checked traffic.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use kit::signals;

use crate::{
    cargo,
    documents::{self, Saving},
    root, setup, workspace,
};

/// The programs that it runs beside the lab's own.
pub const PROGRAMS: [&str; 1] = ["nft"];

#[derive(clap::Args)]
pub struct Arguments {
    /// How long operations are carried out, in minutes
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// Replays a run: the seed of the operations [default: the time of day]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    saving: Saving,
    /// Print the operations of the seed and end
    #[arg(long)]
    plan: bool,
    /// With lbd optimised, as it is used; the first time takes minutes
    #[arg(long)]
    release: bool,
}

/// Builds it and runs it. It fails when a connection broke that may not have, or anything else was that
/// must not be; the operations, the nodes' logs and the violations are then in `target/soak`.
///
/// # Errors
///
/// If it does not build, or something was that must not be.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { minutes, seed, saving, plan, release } = arguments;
    setup::tools()?;
    setup::lab_with(&PROGRAMS)?;
    eprintln!("soak: building lbd, lbctl and lb-soak; the first time takes minutes");
    if *release {
        let build = ["build", "--release", "--bin", "lbd", "--bin", "lbctl", "--bin", "lb-soak"];
        cargo::call(&[&build, cargo::quiet()].concat())?;
    } else {
        cargo::build_for_tests(&["lb-soak"])?;
    }
    let folder = cargo::folder(*release)?;
    let mut command = Command::new(folder.join("lb-soak"));
    command.env("LB_BIN_DIR", &folder);
    command.arg("--minutes").arg(minutes.to_string());
    command.arg("--folder").arg(workspace().join("target/soak"));
    command.args(seed.iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
    for (flag, is_set) in [("--json", &saving.json), ("--plan", plan)] {
        command.args(is_set.then_some(flag));
    }
    if *plan {
        return cargo::run(&mut command);
    }
    // It removes its objects before it ends.
    signals::catch();
    let results = folder.join("lb-soak-results.json");
    if saving.save {
        // Made by the calling user, so that files written by root stay theirs.
        fs::write(&results, "").with_context(|| format!("write {}", results.display()))?;
        command.arg("--json-file").arg(&results);
    }
    cargo::run(&mut root::as_root(command, "a lab of network namespaces")?)?;
    if saving.save {
        let text =
            fs::read_to_string(&results).with_context(|| format!("read {}", results.display()))?;
        documents::save("soak", &["nginx"], &text)?;
    }
    Ok(())
}
