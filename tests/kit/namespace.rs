//! A network namespace: one host of a test.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::command::{command, run, run_with_input};

/// Where `ip netns` keeps the namespaces.
const NETNS: &str = "/run/netns";

/// The prefix of all namespaces' names; the pid of their maker follows.
pub const PREFIX: &str = "lbt-";

/// A network namespace, named `lbt-<pid>-<n>-<role>`; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    kept: bool,
}

impl Namespace {
    /// Makes a namespace with nothing in it but a loopback device, which is up.
    ///
    /// # Errors
    ///
    /// If the kernel or `ip` refuses.
    pub fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{n}-{role}", process::id());
        run(command("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name, kept: false };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A namespace that exists already, and stays when this is dropped.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), kept: true }
    }

    /// Lets the namespace stay when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// The name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS).join(&self.name)
    }

    /// Runs lines of `ip` commands (without the word `ip`) in the namespace; the first failure ends
    /// it.
    ///
    /// # Errors
    ///
    /// If one of them fails.
    pub fn ip(&self, lines: &str) -> Result<String> {
        run_with_input(command("ip").args(["-n", &self.name, "-batch", "-"]), lines)
            .with_context(|| format!("in {}: {lines}", self.name))
    }

    /// Writes settings of the kernel's network, `net/` being understood:
    /// `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    ///
    /// If one does not exist or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        self.enter(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
            }
            Ok(())
        })?
    }

    /// Drops packets as they come in by an interface, each kind in nft's words (`tcp dport 80`), until
    /// [`Self::let_in`].
    ///
    /// # Errors
    ///
    /// If `nft` fails.
    pub fn keep_out(&self, interface: &str, packets: &[&str]) -> Result<()> {
        let nft = |rule: &str| run(self.command("nft").arg(rule)).map(drop);
        nft("add table netdev keep-out")?;
        let hook = format!("type filter hook ingress device {interface} priority 0;");
        nft(&format!("add chain netdev keep-out in {{ {hook} }}"))?;
        packets.iter().try_for_each(|kind| nft(&format!("add rule netdev keep-out in {kind} drop")))
    }

    /// Drops nothing any more.
    ///
    /// # Errors
    ///
    /// If `nft` fails.
    pub fn let_in(&self) -> Result<()> {
        run(self.command("nft").args(["delete", "table", "netdev", "keep-out"])).map(drop)
    }

    /// Switches the offloads of an interface: `["tx", "off"]`.
    ///
    /// # Errors
    ///
    /// If `ethtool` fails.
    pub fn ethtool(&self, interface: &str, features: &[&str]) -> Result<()> {
        run(self.command("ethtool").args(["-K", interface]).args(features)).map(drop)
    }

    /// A command that runs in the namespace. Everything but the network is the caller's: files,
    /// /sys/fs/bpf, pids.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // `ip netns exec` would mount another /sys, in which there is no bpffs.
        let mut nsenter = command("nsenter");
        nsenter.arg(format!("--net={}", self.path().display())).arg("--");
        nsenter.arg(command(program).get_program());
        nsenter
    }

    /// Calls `f` on a thread of its own in the namespace. A socket that it opens stays in the
    /// namespace wherever it is used.
    ///
    /// # Errors
    ///
    /// If the namespace can't be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                join(&path)?;
                Ok(f())
            });
            thread.join().map_err(|_| anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// The processes in the namespace.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let pids = run(command("ip").args(["netns", "pids", &self.name]))?;
        pids.split_whitespace().map(|pid| pid.parse().context("a pid")).collect()
    }

    /// The MAC address of an interface.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let shown = run(command("ip").args(["-n", &self.name, "-j", "link", "show", interface]))?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("output of ip -j")?;
        let mac = shown[0]["address"].as_str();
        mac.map(str::to_owned).with_context(|| format!("{interface} has no address"))
    }

    /// How many frames an interface has received, as its driver counts them.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn received(&self, interface: &str) -> Result<u64> {
        self.counted(interface, "rx")
    }

    /// How many frames an interface has sent, likewise.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn sent(&self, interface: &str) -> Result<u64> {
        self.counted(interface, "tx")
    }

    fn counted(&self, interface: &str, direction: &str) -> Result<u64> {
        // Not from /sys, which shows the interfaces of another namespace: that of its mount.
        let show = ["-n", &self.name, "-s", "-j", "link", "show", interface];
        let shown: serde_json::Value =
            serde_json::from_str(&run(command("ip").args(show))?).context("output of ip -j")?;
        let count = shown[0]["stats64"][direction]["packets"].as_u64();
        count.with_context(|| format!("{interface} has no counters: {shown}"))
    }

    /// Removes the namespace now.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn remove(mut self) -> Result<()> {
        self.kept = true;
        run(command("ip").args(["netns", "delete", &self.name])).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept
            && let Err(err) = run(command("ip").args(["netns", "delete", &self.name]))
        {
            eprintln!("namespace {} stays: {err:#}", self.name);
        }
    }
}

/// Moves the calling thread into the namespace at `path`, for good.
///
/// # Errors
///
/// If there is none, or this is not root.
pub fn join(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // SAFETY: the descriptor is open until the end of this function; the call touches no memory.
    let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    let cause = std::io::Error::last_os_error();
    ensure!(entered == 0, "enter {}: {cause}", path.display());
    Ok(())
}

/// The names of all namespaces that tests or labs made, with the pid of the maker.
///
/// # Errors
///
/// If their folder can't be read.
pub fn all() -> Result<Vec<(String, u32)>> {
    let Ok(entries) = fs::read_dir(NETNS) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.context("read /run/netns")?.file_name().to_string_lossy().into_owned();
        found.extend(maker(&name).map(|pid| (name, pid)));
    }
    Ok(found)
}

/// The pid of the process that gave this name.
#[must_use]
pub fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gone_when_dropped() -> Result<()> {
        if !crate::can_run() {
            return Ok(());
        }
        let namespace = Namespace::new("drop")?;
        let path = namespace.path();
        assert!(path.exists());
        assert!(all()?.contains(&(namespace.name().to_owned(), process::id())));
        drop(namespace);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn settings_are_the_namespaces_own() -> Result<()> {
        if !crate::can_run() {
            return Ok(());
        }
        let (one, other) = (Namespace::new("one")?, Namespace::new("other")?);
        one.sysctl(&[("ipv4/ip_forward", "1")])?;
        other.sysctl(&[("ipv4/ip_forward", "0")])?;
        let read = |ns: &Namespace| run(ns.command("sysctl").args(["-n", "net.ipv4.ip_forward"]));
        assert_eq!(read(&one)?.trim(), "1");
        assert_eq!(read(&other)?.trim(), "0");
        Ok(())
    }
}
