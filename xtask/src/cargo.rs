//! Calls of cargo, with the toolchain that runs this program.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Cargo, in the workspace's folder.
pub fn cargo() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(crate::workspace()).stdin(Stdio::null());
    command
}

/// Runs cargo with these arguments, its output going where ours goes.
///
/// # Errors
///
/// If it does not succeed.
pub fn call(args: &[&str]) -> Result<()> {
    run(cargo().args(args))
}

/// Runs a command, its output going where ours goes.
///
/// # Errors
///
/// If it does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let line = kit::command::line(command);
    let status = command.status().with_context(|| line.clone())?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// The flags that make cargo quiet, unless the output is a terminal, where it shows the progress.
pub fn quiet() -> &'static [&'static str] {
    if io::stderr().is_terminal() { &[] } else { &["--quiet"] }
}

/// Builds `lbd` and `lbctl`; the folder that they are in.
///
/// # Errors
///
/// If they don't build.
pub fn build(release: bool) -> Result<PathBuf> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    println!("building lbd and lbctl; the first time takes minutes");
    call(&[&["build", "--package", "lb-userspace", "--bins"], quiet(), profile].concat())?;
    folder(release)
}

/// Builds `lbd`, `lbctl` and these programs out of what the tests are built of: with the features that tests want of
/// others' crates, which are those of one target that is a test.
///
/// # Errors
///
/// If they don't build.
pub fn build_for_tests(programs: &[&str]) -> Result<()> {
    let programs = ["lbd", "lbctl", "lb-documents"].iter().chain(programs);
    let programs: Vec<_> = programs.flat_map(|name| ["--bin", name]).collect();
    call(&[&["build", "--test", "deploy"], quiet(), &programs].concat())
}

/// The folder of the binaries: that of this program, or its neighbour.
///
/// # Errors
///
/// If this program has no path.
pub fn folder(release: bool) -> Result<PathBuf> {
    let program = env::current_exe().context("path of this program")?;
    let folder = program.parent().context("folder of this program")?;
    Ok(if release { folder.with_file_name("release") } else { folder.to_owned() })
}
