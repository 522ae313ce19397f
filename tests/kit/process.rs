//! A process of a host: started in its namespace, killed by its pid when dropped.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{command, namespace::Namespace, wait};

/// A running program; its output goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    kept: bool,
}

/// The fate of a process when the process (or the thread) that started it ends without
/// dropping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// It is killed with it.
    Dies,
    /// It stays.
    Stays,
}

impl Process {
    /// Starts `program` with `args` in the namespace; its output is appended to `log`.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(
        namespace: &Namespace,
        program: &Path,
        args: &[&str],
        log: &Path,
        orphan: Orphan,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        // nsenter and setpriv become the program: its pid is the child's.
        let mut command = match orphan {
            Orphan::Stays => namespace.command(program),
            Orphan::Dies => {
                let mut setpriv = namespace.command("setpriv");
                setpriv.args(["--pdeathsig", "KILL", "--"]).arg(program);
                setpriv
            }
        };
        command.args(args).stdin(Stdio::null());
        command.stdout(file.try_clone().context("a second handle of the log")?).stderr(file);
        // A group of its own: Ctrl-C reaches the starter alone, which stops things in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| command::line(&command))?;
        Ok(Self { name: name.into_owned(), child, log: log.to_owned(), kept: false })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// That it still runs.
    ///
    /// # Errors
    ///
    /// If it has ended; the error has its output.
    pub fn check(&mut self) -> Result<()> {
        let status = self.child.try_wait().context("ask for a process's end")?;
        if let Some(status) = status {
            anyhow::bail!("{} has ended ({status}):\n{}", self.name, self.log());
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid")?;
        // SAFETY: the child has not been waited for, so the pid is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        let cause = std::io::Error::last_os_error();
        ensure!(sent == 0, "signal {signal} to {} ({pid}): {cause}", self.name);
        Ok(())
    }

    /// Stops it (SIGTERM) and waits for its end.
    ///
    /// # Errors
    ///
    /// If it does not within ten seconds.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        wait::until(Duration::from_secs(10), &format!("{} ends", self.name), || {
            self.child.try_wait()?.context("it still runs")
        })
    }

    /// Kills its process group (SIGKILL), and waits for its end.
    ///
    /// # Errors
    ///
    /// If it can't be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.kill_group();
        self.child.wait().map(drop).with_context(|| format!("wait for {}", self.name))
    }

    /// Kills all of its group, which is its own.
    fn kill_group(&mut self) {
        if let (Ok(None), Ok(group)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // SAFETY: the child has not been waited for, so the group is still its own.
            let _ = unsafe { libc::kill(-group, libc::SIGKILL) };
        }
    }

    /// Lets the process run on when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            // It may have ended by itself; there is no caller left for another error.
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// When the living process with this pid started, in ticks since the boot: with the pid, its
/// identity.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    // Field 22 of proc_pid_stat(5), after the state, which is field 3.
    let alive = !matches!(state(pid)?, 'Z' | 'X');
    alive.then_some(fields(pid)?.get(19)?.parse().ok()?)
}

/// The state of a process, as a letter: `T` for one that is stopped (SIGSTOP).
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    fields(pid)?.first()?.chars().next()
}

/// The fields of /proc/PID/stat behind the process's name, which stands in parentheses and may hold
/// anything.
fn fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Kills processes that are not this process's children, and waits until they are gone.
///
/// # Errors
///
/// If one still runs after ten seconds.
pub fn kill_all(pids: &[u32]) -> Result<()> {
    let known: Vec<(u32, u64)> =
        pids.iter().filter_map(|&pid| Some((pid, started(pid)?))).collect();
    for &(pid, _) in &known {
        command::run(Command::new("kill").args(["-KILL", &pid.to_string()])).ok();
    }
    wait::until_true(Duration::from_secs(10), "killed processes end", || {
        Ok(known.iter().all(|&(pid, start)| started(pid) != Some(start)))
    })
}
