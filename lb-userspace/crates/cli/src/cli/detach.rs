//! Ends forwarding: through the daemon if it answers, otherwise by the links and pins in the kernel.
//!
//! Pins are found by their folder. Addresses, macvlans and the table of nftables are found by their
//! marks, which are the same for every lbd of a network namespace. So one that does not answer, since it
//! has another socket, may live by them: a confirmation comes first.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use lb_api::{
    client, paths,
    requests::{Done, Terms},
};
use lb_config::Config;
use lb_model::{defaults, plan::Plan};
use lb_vrrp::leftovers;

use super::change::{self, Changer};

/// Detaches through the daemon if it answers, otherwise by the links and pins in the kernel. `pin_dir` is where an
/// lbd that does not answer has pinned; none: the configured folder.
pub(super) async fn detach(changer: &Changer<'_>, pin_dir: Option<&Path>) -> Result<()> {
    let made = changer.make(Method::POST, paths::DETACH).await;
    let Err(error) = made else { return Ok(()) };
    if !matches!(error.downcast_ref(), Some(client::Error::NotRunning { .. })) {
        return Err(error);
    }
    let pin_dir = pin_dir.map_or_else(configured_pin_dir, Path::to_owned);
    let (pinned, left) = (pinned(&pin_dir), leftovers::left());
    let running = Running::find();
    let mut losses = Vec::new();
    if !pinned.is_empty() {
        losses.push("this ends forwarding: the connections of all services break".to_owned());
    }
    if let Some(running) = running.text().filter(|_| !pinned.is_empty() || !left.is_empty()) {
        losses.push(format!("{running}, and what is removed may be its own"));
    }
    let message = "detached; nothing is forwarded any more".to_owned();
    let changes = pinned.into_iter().chain(left).collect();
    let plan = Plan { changes, ..Plan::default() };
    let done = match changer.terms {
        Terms { dry_run: true, .. } => Done { message, notes: losses, plan: Some(plan) },
        Terms { yes, .. } => {
            let loss = losses.join("; ");
            if !losses.is_empty() && !yes && !change::is_asked() {
                bail!("{loss}; pass --yes to do it all the same");
            }
            if !losses.is_empty() && !yes {
                change::confirm(&loss, &plan)?;
            }
            let mut notes = lb_datapath::detach(&pin_dir).context("detach")?;
            // A daemon that was stopped or killed has left what it had in the kernel.
            let (released, problems) = leftovers::remove_all();
            notes.extend(released);
            ensure!(problems.is_empty(), "{}", problems.join("; "));
            let message = match notes.is_empty() {
                true => format!("nothing is pinned in {}", pin_dir.display()),
                false => message,
            };
            notes.extend(running.text());
            Done { message, notes, plan: None }
        }
    };
    changer.printer.done(&done)
}

/// Where lbd pins by its configuration, or by default if that can't be read.
fn configured_pin_dir() -> PathBuf {
    let config = Config::load(Path::new(defaults::CONFIG));
    config.map_or_else(|_| defaults::PIN_DIR.into(), |config| config.pin_dir)
}

/// The pins there, for people.
fn pinned(pin_dir: &Path) -> Vec<String> {
    // The removal itself reports a folder that can't be read.
    let entries = fs::read_dir(pin_dir).into_iter().flatten().flatten();
    let mut pinned: Vec<_> =
        entries.map(|entry| format!("{} is removed", entry.path().display())).collect();
    pinned.sort();
    pinned
}

/// Signs of an lbd that runs in this network namespace.
#[derive(Debug, Default)]
struct Running {
    /// Processes of its name.
    pids: Vec<u32>,
    /// Where one listens. A container has processes of its own, but no sockets.
    sockets: Vec<String>,
}

impl Running {
    fn find() -> Self {
        let own = fs::read_link("/proc/self/ns/net").ok();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_lbd = |pid: &u32| {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            let is_here = match fs::read_link(format!("/proc/{pid}/ns/net")) {
                Ok(namespace) => own.as_ref().is_none_or(|own| *own == namespace),
                // One that has ended has none. One that may not be looked at may be here.
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            };
            name.trim_ascii_end() == b"lbd" && is_here
        };
        let mut pids: Vec<_> = pids.filter(is_lbd).collect();
        pids.sort_unstable();
        let sockets = fs::read("/proc/self/net/unix").unwrap_or_default();
        Self { pids, sockets: listening(&String::from_utf8_lossy(&sockets)) }
    }

    /// That one runs, for people; none if none does.
    fn text(&self) -> Option<String> {
        let pids = self.pids.iter().map(|pid| format!("pid {pid}"));
        let sockets = self.sockets.iter().map(|path| format!("socket {path}"));
        let signs: Vec<_> = pids.chain(sockets).collect();
        let text = format!(
            "an lbd runs in this network namespace ({}); stop it first, or reach it with \
             `lbctl --socket`",
            signs.join(", ")
        );
        (!signs.is_empty()).then_some(text)
    }
}

/// The paths of listening sockets with the name of lbd's, from the kernel's table.
fn listening(table: &str) -> Vec<String> {
    /// `__SO_ACCEPTCON` of linux/net.h.
    const LISTENS: &str = "00010000";
    let name = Path::new(defaults::SOCKET).file_name();
    let paths = table.lines().filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3)?;
        let path = fields.nth(3)?;
        (flags == LISTENS && Path::new(path).file_name() == name).then(|| path.to_owned())
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_lbd_are_told_from_others() {
        let table = "Num               RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 22034 /run/other/lbd.sock\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 22035 /run/client/lbd.sock\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 22036 /run/dbus.sock\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 22037\n";
        assert_eq!(listening(table), ["/run/other/lbd.sock"]);
    }

    #[test]
    fn one_that_runs_is_told_by_its_signs() {
        assert_eq!(Running::default().text(), None);
        let running = Running { pids: vec![7], sockets: vec!["/run/other/lbd.sock".into()] };
        let text = running.text().expect("it runs");
        assert!(text.contains("(pid 7, socket /run/other/lbd.sock)"), "{text}");
    }
}
