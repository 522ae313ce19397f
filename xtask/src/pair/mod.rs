//! `cargo xtask run -- --pair`: two balancers in the lab, one of which dies.
//!
//! Downloads run all the time and a client sends a request every two milliseconds; the view shows each second which node
//! is Active, and the clients' errors. Each fault of the Active node has a key; with `--smoke` it
//! comes by itself, and nothing may break.

mod keys;
mod operations;
mod smoke;
mod view;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use kit::{
    downloads::{self, Downloads},
    ha_pair::{HaPair, Plan},
    lab::Options,
    probes::Probes,
    ways::Way,
};

use crate::signals;

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// The services of the lab: HTTP on one VIP of each family.
const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];

/// Between two advertisements.
const ADVERTISEMENTS: Duration = Duration::from_millis(100);

/// How a pair in the lab is set up.
pub fn plan() -> Plan {
    let check = "[service.check]\ntype = \"http\"\ninterval = \"1s\"";
    Plan { settings: check.to_owned(), ..Plan::new(&WAYS, ADVERTISEMENTS) }
}

/// Downloads from each web host and by each way.
const EACH: usize = 4;

/// The pair, and the clients that are to notice nothing.
struct Show {
    // The clients end before the hosts do.
    probes: Probes,
    downloads: Vec<Downloads>,
    ha_pair: HaPair,
    tally: view::Tally,
}

/// Shows the pair until a signal ends it, or with `smoke` runs a fixed sequence.
///
/// # Errors
///
/// If the lab does not come up, or a smoke test fails.
pub fn run(smoke: bool, attach: &'static str) -> Result<()> {
    println!("starting lb1, lb2, three web hosts and a client");
    let ha_pair = HaPair::start(&Options { attach, ..Options::default() }, plan())?;
    let probes = Probes::start(&ha_pair.lab.client.namespace, WAYS[0].target())?;
    let mut show = Show { probes, downloads: Vec::new(), ha_pair, tally: view::Tally::default() };
    show.download()?;
    if smoke { smoke::run(show) } else { watch(show) }
}

impl Show {
    /// Starts downloads by every way.
    fn download(&mut self) -> Result<()> {
        for way in WAYS {
            let (time, patience) = (Duration::from_secs(60), Duration::from_secs(10));
            let plan = downloads::Plan { target: way.target(), each: EACH, time, patience };
            self.downloads.push(Downloads::start(&self.ha_pair.lab, plan)?);
        }
        Ok(())
    }

    /// Takes in those that have ended, and starts others when all have.
    fn renew(&mut self) -> Result<()> {
        let all = WAYS.len() * EACH * self.ha_pair.lab.webs.len();
        let ended: usize = self.downloads.iter().map(Downloads::ended).sum();
        if ended == all {
            for downloads in self.downloads.drain(..) {
                self.tally.add(&downloads.finish()?);
            }
            self.download()?;
        }
        Ok(())
    }

    /// The view at this moment.
    fn look(&mut self) -> view::Line {
        let running = |downloads: &Downloads| downloads.silent_since(far()) - downloads.ended();
        let silent = Instant::now().checked_sub(INTERVAL * 2).unwrap_or_else(Instant::now);
        view::Line {
            nodes: [0, 1].map(|n| view::Node::of(&self.ha_pair, n)),
            probes: self.probes.tally(),
            running: self.downloads.iter().map(running).sum(),
            silent: self.downloads.iter().map(|one| one.silent_since(silent)).sum(),
            tally: self.tally,
        }
    }
}

/// A moment that no download has lived to.
fn far() -> Instant {
    Instant::now() + INTERVAL * 3_600
}

/// Shows a line each second, and performs the operations of keys, until a signal comes.
fn watch(mut show: Show) -> Result<()> {
    let terminal = io::stdout().is_terminal();
    let keys = keys::Keys::listen();
    let mut lines = 0;
    while !signals::caught() {
        let now = Instant::now();
        show.renew()?;
        let line = show.look();
        let mut out = io::stdout().lock();
        let header = lines % 20 == 0;
        let head = if header { view::header(keys.is_some()) } else { String::new() };
        // The reader of the view is gone.
        if writeln!(out, "{head}{line}").and_then(|()| out.flush()).is_err() {
            break;
        }
        drop(out);
        lines += 1;
        while !signals::caught() && now.elapsed() < INTERVAL {
            let Some(key) = keys.as_ref().and_then(keys::Keys::pressed) else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            if key == 'q' {
                return end(show, terminal);
            }
            match operations::by_key(key) {
                Some(operation) => {
                    println!("  -> {}", operations::perform(&mut show.ha_pair, operation))
                }
                None => print!("{}", view::header(true)),
            }
        }
    }
    end(show, terminal)
}

fn end(show: Show, terminal: bool) -> Result<()> {
    if terminal {
        // To the error output: the reader of the view may be gone.
        eprintln!("\nremoving the lab");
    }
    drop(show);
    Ok(())
}
