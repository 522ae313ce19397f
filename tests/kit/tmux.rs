//! A real terminal for programs that draw: tmux, with a server of its own.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{balancer::Balancer, command, namespace::Namespace, wait};

/// How long a program may take to draw the awaited text.
const PATIENCE: Duration = Duration::from_secs(10);

/// A terminal in which a shell runs. When dropped, the server ends, and all that runs in it.
#[derive(Debug)]
pub struct Terminal {
    namespace: Namespace,
    socket: PathBuf,
}

impl Terminal {
    /// A terminal of this size, on the balancer's host. The shell is `sh` with the prompt `$ `, in a
    /// UTF-8 locale, and knows `lbctl` as the one that talks to the balancer.
    ///
    /// # Errors
    ///
    /// If tmux does not start.
    pub fn open(balancer: &Balancer, width: u16, height: u16) -> Result<Self> {
        let lbctl = balancer.lbctl_command();
        let at = lbctl.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let line: Vec<String> = at.skip_while(|arg| !arg.ends_with("/lbctl")).collect();
        let socket = balancer.socket().with_file_name(format!("tmux-{}", unique()));
        let terminal = Self { namespace: balancer.namespace(), socket };
        let (x, y) = (width.to_string(), height.to_string());
        let shell = ["new-session", "-d", "-x", &x, "-y", &y, "env", "PS1=$ ", "sh"];
        let started = terminal.tmux(&shell);
        started.context("start tmux")?;
        // The program keeps the window's size when no terminal is attached.
        terminal.tmux(&["set-option", "-g", "window-size", "manual"])?;
        terminal.resize(width, height)?;
        terminal.wait_for("$")?;
        // A prompt is there before this, too: the shell must not clear the next input.
        let define = format!("lbctl() {{ {} \"$@\"; }}; clear; echo ready", line.join(" "));
        terminal.types(&define)?;
        terminal.wait_until("the shell is ready", |screen| screen.trim() == "ready\n$")?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        command::run(self.command().args(args))
    }

    fn command(&self) -> Command {
        let mut tmux = self.namespace.command("tmux");
        // The names of keys and the screen are UTF-8, whatever the caller's locale.
        tmux.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket);
        tmux.env("LC_ALL", "C.UTF-8").env("SHELL", "/bin/sh").env_remove("TMUX");
        tmux.env_remove("NO_COLOR");
        tmux
    }

    /// Types a line, and presses Enter.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn types(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", line])?;
        self.press(&["Enter"])
    }

    /// Presses keys, by their names in tmux: `q`, `Enter`, `Down`, `C-z`.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// The text on the screen.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the escape sequences of colours.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn coloured(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-e", "-p"])
    }

    /// Whether a program has the whole screen, and the former screen is kept aside.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn is_taken(&self) -> Result<bool> {
        let flag = self.tmux(&["display-message", "-p", "#{alternate_on}"])?;
        Ok(flag.trim() == "1")
    }

    /// Gives it another size.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let (x, y) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &x, "-y", &y]).map(drop)
    }

    /// Waits until a text is on the screen; the screen.
    ///
    /// # Errors
    ///
    /// If it does not come; the error has the screen.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_until(&format!("{text:?} is on the screen"), |screen| screen.contains(text))
    }

    /// Waits until the screen is as it should be; the screen.
    ///
    /// # Errors
    ///
    /// If that does not come to pass; the error has the screen.
    pub fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(PATIENCE, what, || {
            let screen = self.screen()?;
            ensure!(is(&screen), "the screen is:\n{screen}");
            Ok(screen)
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

/// The backends of the first service in `lbctl top` with their colours, as a terminal of this size shows them some
/// seconds after it was asked for them: for a picture.
///
/// # Errors
///
/// If there is no terminal, or they do not come.
pub fn picture_of_top(
    balancer: &Balancer,
    (width, height): (u16, u16),
    after: Duration,
) -> Result<String> {
    let terminal = Terminal::open(balancer, width, height)?;
    terminal.types("lbctl top --interval 250ms")?;
    terminal.wait_for("services (")?;
    terminal.press(&["Enter"])?;
    terminal.wait_for("backends of")?;
    // Rates take time to be seen: this is shown, and not waited for.
    std::thread::sleep(after);
    terminal.coloured()
}

/// A number for each terminal of this process.
fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
