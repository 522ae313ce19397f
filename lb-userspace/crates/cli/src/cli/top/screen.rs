//! The input and output of `lbctl top`: the terminal, which is given back whatever happens, keys, signals,
//! and the answers of the daemon.

use std::{
    fs,
    io::{self, Stdout},
    panic,
    pin::Pin,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use crossterm::{
    cursor, event::Event as Input, event::EventStream, execute, terminal, terminal::ClearType,
};
use futures_util::StreamExt as _;
use lb_api::paths;
use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, getpgid, getppid, getsid},
};
use ratatui::{Terminal, backend::CrosstermBackend};
use tokio::{
    signal::unix::{SignalKind, signal as listen},
    time::sleep_until,
};

use super::{
    app::{Action, App, Event, Place},
    looks::Looks,
    view,
};
use crate::cli::flows;
use lb_api::client::{Client, Error};
use lb_api::status::Status;
use lb_inspect::flows::Found;

/// Flows that are shown at most.
const FLOWS: usize = 1_000;
/// A walk through the flows may take this part of the time.
const FLOWS_SHARE: u32 = 10;
/// How soon `lbd` is polled again while it does not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// Whether the terminal is this program's. It is given back once: a second time would put the cursor
/// to where it was before, over what was written since, as the message of a panic.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is this program's.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn take() -> Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()));
        let mut screen = Self { terminal: terminal.context("use the terminal")? };
        screen.enter()?;
        Ok(screen)
    }

    /// Takes the whole terminal, and draws everything anew.
    fn enter(&mut self) -> Result<()> {
        TAKEN.store(true, Ordering::Relaxed);
        terminal::enable_raw_mode().context("take keys one by one")?;
        let all = terminal::Clear(ClearType::All);
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide, all)?;
        self.redraw()
    }

    /// Draws everything anew with the next frame. `Terminal::clear` would query the terminal's
    /// cursor, and the answer goes to the reader of keys.
    fn redraw(&mut self) -> Result<()> {
        let size = self.terminal.size().context("read the terminal's size")?;
        Ok(self.terminal.resize(size.into())?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Leaves the terminal as it was found, if that was not done yet.
fn give_back() {
    if !TAKEN.swap(false, Ordering::Relaxed) {
        return;
    }
    // Nothing better can be done about a terminal that is gone.
    let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

/// A request to the daemon that is under way.
type Request = Pin<Box<dyn Future<Output = Event>>>;

/// Polls the daemon, one request at a time for each kind.
struct Poller {
    client: Client,
    status: Option<Request>,
    status_at: Instant,
    flows: Option<Request>,
    flows_at: Instant,
    flows_requested: Instant,
}

impl Poller {
    fn new(client: &Client) -> Self {
        let now = Instant::now();
        Self {
            client: client.clone(),
            status: None,
            status_at: now,
            flows: None,
            flows_at: now,
            flows_requested: now,
        }
    }

    /// Sends the requests that are due.
    fn poll(&mut self, app: &App, now: Instant) {
        if app.pauses {
            return;
        }
        if self.status.is_none() && now >= self.status_at {
            let client = self.client.clone();
            self.status = Some(Box::pin(async move {
                match client.get::<Box<Status>>(paths::STATUS).await {
                    Ok(status) => Event::Status(status),
                    Err(error) => Event::Away(error.to_string()),
                }
            }));
        }
        let place = &app.page().place;
        if self.flows.is_none() && now >= self.flows_at && matches!(place, Place::Flows(..)) {
            self.flows_requested = now;
            self.flows = Some(Box::pin(flows_of(self.client.clone(), place.clone())));
        }
    }

    /// When something is due again, if nothing is under way that makes it due.
    fn due(&self, app: &App) -> Option<Instant> {
        let shows_flows = matches!(app.page().place, Place::Flows(..));
        let status = self.status.is_none().then_some(self.status_at);
        let flows = (self.flows.is_none() && shows_flows).then_some(self.flows_at);
        status.into_iter().chain(flows).min().filter(|_| !app.pauses)
    }

    /// The next answer.
    async fn answer(&mut self, interval: Duration) -> Event {
        let Self { status, flows, .. } = self;
        let (event, of_flows) = tokio::select! {
            event = pending(status) => (event, false),
            event = pending(flows) => (event, true),
        };
        let now = Instant::now();
        if of_flows {
            self.flows = None;
            // However long a walk takes, most of the time there is none.
            self.flows_at = now + interval.max((now - self.flows_requested) * FLOWS_SHARE);
        } else {
            self.status = None;
            let away = matches!(event, Event::Away(_));
            self.status_at = now + if away { interval.min(AGAIN) } else { interval };
        }
        event
    }

    fn poll_now(&mut self) {
        let now = Instant::now();
        (self.status_at, self.flows_at) = (now, now);
        // The pending request is of a place that was left.
        self.flows = None;
    }
}

async fn pending(request: &mut Option<Request>) -> Event {
    match request {
        Some(request) => request.await,
        None => std::future::pending().await,
    }
}

async fn flows_of(client: Client, place: Place) -> Event {
    let Place::Flows(service, backend) = &place else { return std::future::pending().await };
    let parameters = [
        ("service", service.clone()),
        ("backend", backend.to_string()),
        ("limit", FLOWS.to_string()),
    ];
    match client.get::<Found>(&flows::path(parameters.into_iter())).await {
        Ok(found) => Event::Flows(place, found),
        Err(error) => Event::NoFlows(place, error.to_string()),
    }
}

/// Watches until a key or a signal ends it. A daemon that is not there to begin with is an error, one
/// that goes away is waited for.
pub(super) async fn run(interval: Duration, client: &Client) -> Result<ExitCode> {
    let mut app = App::new(super::host(), interval);
    match client.get::<Box<Status>>(paths::STATUS).await {
        Ok(status) => drop(app.handle(Event::Status(status), Instant::now())),
        Err(error @ (Error::Permission { .. } | Error::NotRunning { .. })) => {
            return Err(error.into());
        }
        Err(error) => drop(app.handle(Event::Away(error.to_string()), Instant::now())),
    }
    print_panics_after_give_back();
    let mut screen = Screen::take()?;
    let ended = watch(&mut screen, &mut app, client).await;
    drop(screen);
    ended
}

fn print_panics_after_give_back() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        give_back();
        before(info);
    }));
}

async fn watch(screen: &mut Screen, app: &mut App, client: &Client) -> Result<ExitCode> {
    let looks = Looks::from_env();
    let mut inputs = EventStream::new();
    let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()]
        .map(|kind| listen(kind).map(|signal| (kind, signal)))
        .into_iter()
        .collect::<io::Result<Vec<_>>>()
        .context("listen to signals")?;
    let [(_, terminate), (_, hangup), (_, interrupt)] = ends.as_mut_slice() else {
        unreachable!("there are three")
    };
    let mut stop = listen(SignalKind::from_raw(libc::SIGTSTP)).context("listen to SIGTSTP")?;
    let mut goes_on = listen(SignalKind::from_raw(libc::SIGCONT)).context("listen to SIGCONT")?;
    let mut poller = Poller::new(client);
    poller.status_at += app.interval;
    loop {
        app.room = {
            let mut room = 0;
            screen.terminal.draw(|frame| room = view::draw(frame, app, looks, Instant::now()))?;
            room
        };
        poller.poll(app, Instant::now());
        // While lbd is away, each second counts on.
        let tick = app.away.is_some().then(|| Instant::now() + AGAIN);
        let wake = poller.due(app).into_iter().chain(tick).min();
        let event = tokio::select! {
            input = inputs.next() => match input {
                Some(Ok(Input::Key(key))) => Event::Key(key),
                // A new size, or the focus: it is drawn again.
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error).context("read a key"),
                None => return Ok(ExitCode::SUCCESS),
            },
            event = poller.answer(app.interval) => event,
            () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => continue,
            _ = terminate.recv() => return Ok(ended_by(libc::SIGTERM)),
            _ = hangup.recv() => return Ok(ended_by(libc::SIGHUP)),
            _ = interrupt.recv() => return Ok(ended_by(libc::SIGINT)),
            _ = stop.recv() => {
                suspend(screen, Pid::this())?;
                continue;
            }
            // By a SIGSTOP, which no process can catch.
            _ = goes_on.recv() => {
                screen.enter()?;
                continue;
            }
        };
        match app.handle(event, Instant::now()) {
            Some(Action::Quit) => return Ok(ExitCode::SUCCESS),
            // The whole group, as the terminal does it where keys are its own.
            Some(Action::Suspend) => suspend(screen, Pid::from_raw(0))?,
            Some(Action::Redraw) => screen.redraw()?,
            Some(Action::Refresh) => poller.poll_now(),
            None => {}
        }
    }
}

/// The exit code of an end by a signal, as in a shell.
fn ended_by(signal: i32) -> ExitCode {
    ExitCode::from(128 + signal as u8)
}

/// Gives the terminal back and stops; takes it again when the shell continues it. Without a shell
/// that could, nothing is done.
fn suspend(screen: &mut Screen, whom: Pid) -> Result<()> {
    if is_orphan() {
        return Ok(());
    }
    give_back();
    signal::kill(whom, Signal::SIGSTOP).context("stop")?;
    screen.enter()
}

/// Whether no process could continue this program, as where it is all that a terminal was opened for. The
/// kernel keeps such a group of processes from stopping by SIGTSTP (POSIX: orphaned process group), but
/// not by SIGSTOP. An unknown group counts as such: a user who can't stop it may still end it.
fn is_orphan() -> bool {
    let (Ok(group), Ok(session)) = (getpgid(None), getsid(None)) else { return true };
    let mut parent = getppid();
    // Up to the first one outside of this group: a shell, if it is of the same session.
    while parent.as_raw() > 0 && getsid(Some(parent)) == Ok(session) {
        if getpgid(Some(parent)) != Ok(group) {
            return false;
        }
        let status = fs::read_to_string(format!("/proc/{parent}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent = Pid::from_raw(line.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0));
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        process::{Command, Stdio},
    };

    use super::*;

    /// Set for a run of this program that only takes the terminal, and panics.
    const PANICS: &str = "LB_TEST_TOP_PANICS";
    const MESSAGE: &str = "something has gone wrong in a test";

    #[test]
    fn a_panic_is_told_on_the_terminal_as_it_was_before() {
        if env::var_os(PANICS).is_some() {
            print_panics_after_give_back();
            let _screen = Screen::take().expect("there is a terminal");
            panic!("{MESSAGE}");
        }
        let this = env::current_exe().expect("it is a file");
        let name = "cli::top::screen::tests::a_panic_is_told_on_the_terminal_as_it_was_before";
        let line = format!("{} --exact {name} --nocapture; stty -a", this.display());
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &line, "/dev/null"]).stdin(Stdio::null());
        let done = script.env(PANICS, "1").output().expect("script gives it a terminal");
        let output = String::from_utf8_lossy(&done.stdout);
        let at =
            |what: &str| output.find(what).unwrap_or_else(|| panic!("no {what:?} in {output:?}"));
        let (taken, given_back) = ("\x1b[?1049h", "\x1b[?1049l");
        assert!(at(taken) < at(given_back) && at(given_back) < at(MESSAGE), "{output:?}");
        assert_eq!(output.matches(given_back).count(), 1, "{output:?}");
        assert!(output.contains(" icanon") && output.contains(" echo "), "{output:?}");
    }
}
