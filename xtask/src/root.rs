//! Commands that need root, when the caller is not: through sudo, which is printed.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

/// Variables that sudo would drop and the tests read.
const KEPT: [&str; 5] = ["CI", "LB_BIN_DIR", "RUST_BACKTRACE", "RUST_LOG", "UPDATE_GOLDEN"];

/// Makes of `command` one that runs as root; `what` names its purpose.
///
/// # Errors
///
/// If this is not root and there is no sudo; the error names the command.
pub fn as_root(command: Command, what: &str) -> Result<Command> {
    if kit::is_root() {
        return Ok(command);
    }
    let Some(sudo) = kit::command::find("sudo") else {
        bail!("{what} needs root, and there is no sudo; run this as root: {}", line());
    };
    println!("{what} needs root: through sudo");
    let mut through = Command::new(sudo);
    through.arg("--").arg("env");
    let set = command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
    let kept = KEPT.iter().filter_map(|name| Some(((*name).into(), env::var_os(name)?)));
    for (name, value) in kept.chain(set) {
        let mut pair: std::ffi::OsString = name;
        pair.push("=");
        pair.push(value);
        through.arg(pair);
    }
    through.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        through.current_dir(folder);
    }
    Ok(through)
}

/// Goes on as root: does not return where this is not root already, but becomes this program with
/// `args` under sudo.
///
/// # Errors
///
/// If there is no sudo.
pub fn become_root(args: &[&str], what: &str) -> Result<()> {
    if kit::is_root() {
        return Ok(());
    }
    let program = env::current_exe().context("path of this program")?;
    let mut command = Command::new(program);
    command.args(args);
    let mut command = as_root(command, what)?;
    Err(command.exec()).context("sudo")
}

/// The command line.
fn line() -> String {
    let args: Vec<_> = env::args().skip(1).collect();
    format!("cargo xtask {}", args.join(" "))
}
