//! Programs that are run to their end.

use std::{
    env,
    ffi::OsStr,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Where a program is: in `PATH`, or where Debian keeps the administrator's programs.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A command for a program that [`find`] finds.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    program.to_str().and_then(find).map_or_else(|| Command::new(program), Command::new)
}

/// Runs a command to its end; returns its standard output.
///
/// # Errors
///
/// If it does not start or ends with a failure; the error has its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command, "")?;
    if !output.status.success() {
        bail!("{}: {}{}", line(command), output.status, error_output(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Errors
///
/// If it does not start or ends with a failure; the error has its output.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let output = output(command, input)?;
    if !output.status.success() {
        bail!("{}: {}{}", line(command), output.status, error_output(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, however that is, with `input` on its standard input.
///
/// It is in a process group of its own, so that a Ctrl-C does not cut it short: clean-up must
/// end its work.
///
/// # Errors
///
/// If it does not start.
pub fn output(command: &mut Command, input: &str) -> Result<Output> {
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| line(command))?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    // A program that ends without reading its input breaks the pipe; its exit status shows the error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().with_context(|| line(command))
}

/// Both outputs of a program, for an error.
fn error_output(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let text = text.join("\n");
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The command as a person would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
