//! keepalived on a node of a pair: to compare with, and as the other node's peer.
//!
//! Each has a configuration, pid files and a log of its own, so any number run at the same time, and
//! none knows of the host's.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    lab::{Host, INTERFACE, Lab},
    namespace::Namespace,
    process::{Orphan, Process},
    wait,
};

/// A virtual router of keepalived.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Version of the protocol: 2 or 3.
    pub version: u8,
    /// Its VRID.
    pub vrid: u8,
    /// Its priority.
    pub priority: u8,
    /// Between advertisements.
    pub interval: Duration,
    /// The virtual addresses, of one family.
    pub addresses: Vec<IpAddr>,
    /// More lines of its section: `nopreempt`.
    pub lines: String,
}

/// keepalived on a node. Killed with its children when dropped.
#[derive(Debug)]
pub struct Keepalived {
    process: Option<Process>,
    namespace: Namespace,
    folder: PathBuf,
    orphan: Orphan,
    globals: String,
}

impl Instance {
    /// A virtual router of version 3 that multicasts on the nodes' first interface.
    #[must_use]
    pub fn new(vrid: u8, priority: u8, interval: Duration, addresses: &[IpAddr]) -> Self {
        Self {
            name: format!("router{vrid}"),
            version: 3,
            vrid,
            priority,
            interval,
            addresses: addresses.to_vec(),
            lines: String::new(),
        }
    }

    /// With more lines in its section.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.lines.push_str(lines);
        self.lines.push('\n');
        self
    }

    /// By unicast, from an address of the node to these.
    #[must_use]
    pub fn unicast(self, from: IpAddr, to: &[IpAddr]) -> Self {
        let to: String = to.iter().map(|peer| format!("  {peer}\n")).collect();
        self.with(&format!("unicast_src_ip {from}\nunicast_peer {{\n{to}}}"))
    }

    /// Of version 2, with a password in each advertisement.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.version = 2;
        self.with(&format!("authentication {{\n  auth_type PASS\n  auth_pass {password}\n}}"))
    }

    fn section(&self) -> String {
        let Self { name, version, vrid, priority, .. } = self;
        let interval = self.interval.as_secs_f64();
        let mut text = format!(
            "vrrp_instance {name} {{\n  state BACKUP\n  interface {INTERFACE}\n  version {version}\n  \
             virtual_router_id {vrid}\n  priority {priority}\n  advert_int {interval}\n"
        );
        if *version == 3 {
            // Without it, a firewall's rule takes all packets to the addresses away.
            text.push_str("  accept\n");
        }
        for line in self.lines.lines() {
            let _ = writeln!(text, "  {line}");
        }
        text.push_str("  virtual_ipaddress {\n");
        for address in &self.addresses {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let _ = writeln!(text, "    {address}/{prefix} dev {INTERFACE}");
        }
        text.push_str("  }\n}\n");
        text
    }
}

impl Keepalived {
    /// Writes the configuration of these virtual routers. keepalived is not started.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn new(lab: &Lab, node: &Host, instances: &[Instance]) -> Result<Self> {
        let keepalived = Self {
            process: None,
            namespace: Namespace::existing(node.namespace.name()),
            folder: lab.folder_of(node)?,
            orphan: lab.orphan(),
            globals: String::new(),
        };
        keepalived.configure(instances)?;
        Ok(keepalived)
    }

    /// As [`Self::new`], and starts it and waits until its virtual routers run.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not come to that.
    pub fn start(lab: &Lab, node: &Host, instances: &[Instance]) -> Result<Self> {
        let mut keepalived = Self::new(lab, node, instances)?;
        keepalived.launch()?;
        Ok(keepalived)
    }

    /// Lets its virtual routers run before everything else from the next [`Self::configure`] and start
    /// on, as `lbd`'s do. A reload kills it then: it spends more time at once than it allows itself.
    #[must_use]
    pub fn in_real_time(mut self) -> Self {
        self.globals = "  vrrp_no_swap\n  vrrp_rt_priority 50\n".to_owned();
        self
    }

    /// Writes the configuration; [`Self::reload`] lets it be read.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn configure(&self, instances: &[Instance]) -> Result<()> {
        let mut text = format!("global_defs {{\n{}}}\n", self.globals);
        text.extend(instances.iter().map(Instance::section));
        fs::write(self.path("keepalived.conf"), text).context("write keepalived.conf")
    }

    /// Starts it and waits until its virtual routers run.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not come to that.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "keepalived runs already");
        let program = command::find("keepalived").context(
            "keepalived is not installed; `apt-get install keepalived` on Debian and Ubuntu",
        )?;
        // Of one that was killed; they would be taken for those of this one.
        for file in ["keepalived.pid", "vrrp.pid"] {
            let _ = fs::remove_file(self.path(file));
        }
        let paths = ["keepalived.conf", "keepalived.pid", "vrrp.pid", "checkers.pid", "bfd.pid"]
            .map(|file| self.path(file).to_string_lossy().into_owned());
        let [config, parent, vrrp, checkers, bfd] = paths.each_ref().map(String::as_str);
        let args = [
            "--dont-fork",
            "--log-console",
            "--log-detail",
            "--no-syslog",
            "--vrrp",
            "--use-file",
            config,
            "--pid",
            parent,
            "--vrrp_pid",
            vrrp,
            "--checkers_pid",
            checkers,
            "--bfd_pid",
            bfd,
        ];
        let log = self.path("keepalived.log");
        let length = fs::metadata(&log).map_or(0, |file| file.len());
        let mut process = Process::start(&self.namespace, &program, &args, &log, self.orphan)?;
        wait::until(Duration::from_secs(10), "keepalived's virtual routers run", || {
            process.check()?;
            let log = process.log();
            let log = log.get(usize::try_from(length)?..).unwrap_or_default();
            ensure!(log.contains("Entering BACKUP STATE"), "it has not entered a state");
            Ok(())
        })
        .with_context(|| format!("keepalived wrote:\n{}", process.log()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Lets it read its configuration again.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn reload(&self) -> Result<()> {
        self.running()?.signal(libc::SIGHUP)
    }

    /// Stops it in order (SIGTERM): it gives up its addresses.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.take().context("keepalived does not run")?.stop()
    }

    /// Kills it with its children (SIGKILL); its addresses stay behind.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        // A child whose parent dies gets a signal and ends in order; a parent whose child dies
        // starts another one.
        self.running()?.signal(libc::SIGSTOP)?;
        signal(self.vrrp()?, libc::SIGKILL)?;
        self.process.take().context("keepalived does not run")?.kill()
    }

    /// Kills the process of its virtual routers (SIGKILL), which it starts again.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn crash(&self) -> Result<()> {
        signal(self.vrrp()?, libc::SIGKILL)
    }

    /// Sends a signal to both of its processes.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn signal(&self, number: i32) -> Result<()> {
        signal(self.vrrp()?, number)?;
        self.running()?.signal(number)
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("keepalived.log")).unwrap_or_default()
    }

    /// That it still runs.
    ///
    /// # Errors
    ///
    /// If it does not; the error has its output.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().context("keepalived does not run")?.check()
    }

    /// Whether it was started and neither stopped nor killed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().context("keepalived does not run")
    }

    /// The process of the virtual routers.
    fn vrrp(&self) -> Result<i32> {
        self.running()?;
        let pid = fs::read_to_string(self.path("vrrp.pid")).context("read vrrp.pid")?;
        pid.trim().parse().context("vrrp.pid is no number")
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(&self.folder).join(file)
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if self.orphan == Orphan::Dies && self.process.is_some() {
            // There is no caller left for the error that it has ended by itself.
            let _ = self.kill();
        }
    }
}

/// Sends a signal to a child of keepalived's.
fn signal(pid: i32, number: i32) -> Result<()> {
    // SAFETY: a call with two integers. The pid is that of a child whose parent, which would reap it,
    // has just been seen running.
    let sent = unsafe { libc::kill(pid, number) };
    let cause = std::io::Error::last_os_error();
    ensure!(sent == 0, "signal {number} to keepalived's child {pid}: {cause}");
    Ok(())
}
