//! `cargo xtask run`: the balancer at work, in the lab or on this machine.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    lab::{self, Lab, Options},
};

use crate::{cargo, pair, root, setup, signals, smoke, view};

/// Time between two looks at the balancer.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Arguments {
    /// Send 1,000 requests in the lab, print the hosts that answered, and end
    #[arg(long, conflicts_with = "config")]
    pub smoke: bool,
    /// Two balancers, and the clients' errors when one dies; with --smoke, it does by itself
    #[arg(long, conflicts_with = "config")]
    pub pair: bool,
    /// Where the balancer's program runs in the lab
    #[arg(long, value_name = "HOOK", conflicts_with = "config", value_parser = ["xdp", "tc"])]
    attach: Option<String>,
    /// Run lbd with this configuration on this machine, in the foreground
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// All is set up and built
    #[arg(long, hide = true)]
    built: bool,
}

/// Does its own set-up and build, then runs the command.
///
/// # Errors
///
/// If something is missing, does not build or fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(config) = &arguments.config {
        return on_this_machine(config);
    }
    if !arguments.built {
        setup::tools()?;
        setup::lab_with(&[])?;
        cargo::build(false)?;
    }
    let chosen = [("--smoke", arguments.smoke), ("--pair", arguments.pair)];
    let chosen = chosen.iter().filter(|(_, chosen)| *chosen).map(|(option, _)| *option);
    let attach = arguments.attach.iter().flat_map(|attach| ["--attach", attach]);
    let again: Vec<_> = ["run", "--built"].into_iter().chain(chosen).chain(attach).collect();
    root::become_root(&again, "the lab")?;
    signals::catch();
    for name in lab::sweep()? {
        println!("removed {name}, which a run left behind that was killed");
    }
    let attach = if arguments.attach.as_deref() == Some("tc") { "tc" } else { "xdp" };
    if arguments.pair {
        return pair::run(arguments.smoke, attach);
    }
    let lab = Lab::new(&Options { attach, ..Options::default() })?;
    let balancer = Balancer::start(&lab, &services(&lab))?;
    if arguments.smoke { smoke::run(&lab, &balancer) } else { watch(&lab, balancer) }
}

/// How the web hosts are checked.
const CHECK: &str = "[service.check]\ntype = \"http\"\ninterval = \"1s\"";

/// The services of the lab: HTTP on one VIP of each family.
pub fn services(lab: &Lab) -> [Service; 2] {
    let v4 = lab.webs.iter().map(|web| web.host.v4.into()).collect();
    let v6 = lab.webs.iter().map(|web| web.host.v6.into()).collect();
    [
        Service::tcp("web", lab::VIPS_V4[0], 80, "dsr", v4).with(CHECK),
        Service::tcp("web6", lab::VIPS_V6[0], 80, "dsr", v6).with(CHECK),
    ]
}

/// The terminal's other screen, so that the view leaves nothing in the scrollback.
struct Screen;

impl Screen {
    fn enter() -> Self {
        print!("\x1b[?1049h");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?1049l");
        let _ = io::stdout().flush();
    }
}

/// Shows the balancer's status until a signal comes.
fn watch(lab: &Lab, mut balancer: Balancer) -> Result<()> {
    let terminal = io::stdout().is_terminal();
    let names = view::names(lab);
    let _screen = terminal.then(Screen::enter);
    let mut before = None;
    while !signals::caught() {
        let now = Instant::now();
        balancer.check()?;
        let status = balancer.status()?;
        let frame = view::View { status: &status, before: before.as_ref(), names: &names };
        let mut out = io::stdout().lock();
        let shown = if terminal {
            write!(out, "\x1b[H\x1b[J{}\n{}\n", frame.table(), view::advice())
        } else if before.is_none() {
            write!(out, "{}{}\n{}", frame.header(), view::advice(), frame.lines())
        } else {
            write!(out, "{}", frame.lines())
        };
        // The reader of the view is gone.
        if shown.and_then(|()| out.flush()).is_err() {
            break;
        }
        drop(out);
        before = Some((now, status));
        while !signals::caught() && now.elapsed() < INTERVAL {
            thread::sleep(Duration::from_millis(50));
        }
    }
    // To the error output: the reader of the view may be gone.
    eprintln!("\nremoving the lab");
    Ok(())
}

/// Becomes `lbd` on the machine's own interfaces.
fn on_this_machine(config: &Path) -> Result<()> {
    let config = config.canonicalize().with_context(|| format!("open {}", config.display()))?;
    setup::tools()?;
    let lbd = cargo::build(true)?.join("lbd");
    ensure!(lbd.is_file(), "{} was not built", lbd.display());
    let mut command = Command::new(lbd);
    command.arg("--config").arg(config);
    let mut command = root::as_root(command, "lbd")?;
    Err(command.exec()).context("start lbd")
}
