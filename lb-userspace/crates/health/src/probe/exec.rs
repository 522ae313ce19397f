//! A command that finds out itself: status 0 is good.
//!
//! It runs without a shell, in a process group of its own, which is killed when its time is over.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt as _,
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{FusedFuture as _, FutureExt as _};
use lb_model::units::format_duration;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::{Probe, check, reason::ProbeError};

/// Bytes of the first line that are kept.
const LINE: usize = 200;

/// How long the pipes of a command that has ended are waited for: what it wrote is in them, and only
/// a process that it left behind keeps them open.
const DRAIN: Duration = Duration::from_millis(50);

/// How long a killed command may take to go.
const REAP: Duration = Duration::from_secs(1);

/// How many threads start the same program at a time: those that a frozen disk holds stay that few.
const STARTS_AT_A_TIME: usize = 4;

/// The permits to start each program.
static STARTS: Mutex<BTreeMap<String, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());

/// Where programs are looked for, if this process does not know.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a command.
pub(super) async fn run(
    probe: &Probe,
    exec: &check::Exec,
    deadline: Instant,
) -> Result<(), ProbeError> {
    let Some((program, arguments)) = exec.command.split_first() else {
        return Err(ProbeError::unknown("exec: no command"));
    };
    let key = probe.target.service;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()))
        .env("LB_SERVICE", &probe.service)
        .env("LB_VIP", key.vip.to_string())
        .env("LB_BACKEND", probe.target.backend.to_string())
        .env("LB_PORT", probe.port.to_string())
        .env("LB_PROTOCOL", key.protocol.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut group = match timeout_at(deadline, start(program, command)).await {
        Ok(Ok(group)) => group,
        Ok(Err(error)) => {
            return Err(ProbeError::unknown(format!("exec: {program}: {}", text_of(&error))));
        }
        Err(_) => {
            let limit = format_duration(probe.timeout);
            return Err(ProbeError::unknown(format!("exec: {program}: not started after {limit}")));
        }
    };
    let mut lines = [FirstLine::default(), FirstLine::default()];
    let status = match timeout_at(deadline, end(&mut group.0, &mut lines)).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            return Err(ProbeError::unknown(format!("exec: {program}: {}", text_of(&error))));
        }
        Err(_) => {
            group.kill();
            // Bounded: a process in the middle of a system call to dead storage goes when it can.
            let _ = timeout(REAP, group.0.wait()).await;
            let limit = format_duration(probe.timeout);
            return Err(ProbeError::failed(format!("exec: still running after {limit}")));
        }
    };
    if status.success() {
        return Ok(());
    }
    let line = lines.iter().map(FirstLine::text).find(|line| !line.is_empty());
    Err(ProbeError::failed(match line {
        Some(line) => format!("{}: {line}", words(status)),
        None => words(status),
    }))
}

/// Starts a command on a thread of its own, since that waits until its file is read from the disk. One that is
/// started too late is killed.
async fn start(program: &str, mut command: Command) -> io::Result<Group> {
    let starts = {
        let mut all = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that no thread starts at this moment.
        all.retain(|_, starts| Arc::strong_count(starts) > 1);
        let new = || Arc::new(Semaphore::new(STARTS_AT_A_TIME));
        Arc::clone(all.entry(program.to_owned()).or_insert_with(new))
    };
    let place = starts.acquire_owned().await.map_err(io::Error::other)?;
    let start = move || {
        let _place = place;
        command.spawn().map(Group)
    };
    spawn_blocking(start).await.map_err(io::Error::other)?
}

/// Waits for the end of a command, and reads what it prints to standard output and error.
async fn end(child: &mut Child, [first, second]: &mut [FirstLine; 2]) -> io::Result<ExitStatus> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let output = async {
        tokio::join!(read(stdout.as_mut(), first), read(stderr.as_mut(), second));
    };
    let mut output = pin!(output.fuse());
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status?,
            // Closed pipes are no end.
            () = &mut output, if !output.is_terminated() => {}
        }
    };
    if !status.success() && !output.is_terminated() {
        let _ = timeout(DRAIN, output).await;
    }
    Ok(status)
}

/// A child and what it started, which end when this is dropped before the child is reaped.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // No id: it is reaped, and its number may be another's.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The beginning of the first line that is not empty.
#[derive(Default)]
struct FirstLine {
    bytes: Vec<u8>,
    over: bool,
}

impl FirstLine {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.over || self.bytes.len() == LINE {
                return;
            }
            match byte {
                b'\n' | b'\r' => self.over = !self.bytes.is_empty(),
                byte => self.bytes.push(byte),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

/// Reads a pipe to its end, so that its writer is never held up, and keeps the first line.
async fn read(pipe: Option<impl AsyncRead + Unpin>, line: &mut FirstLine) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 1_024];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        line.take(&buffer[..length]);
    }
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => "ended without a status".into(),
    }
}

/// The system's words, without the number.
fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_first_that_says_something_and_is_cut() {
        let mut line = FirstLine::default();
        for part in [&b"\n\r\nbro"[..], b"ken\nmore", b"\n"] {
            line.take(part);
        }
        assert_eq!(line.text(), "broken");
        let mut line = FirstLine::default();
        for _ in 0..10_000 {
            line.take(&[b'x'; 100]);
        }
        assert_eq!(line.text().len(), LINE);
        assert!(line.bytes.capacity() < 2 * LINE);
    }

    #[test]
    fn statuses_are_named() {
        assert_eq!(words(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(words(ExitStatus::from_raw(11)), "killed by SIGSEGV");
        assert_eq!(words(ExitStatus::from_raw(64)), "killed by signal 64");
    }
}
