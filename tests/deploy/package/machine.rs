//! A machine with systemd: the tree of this one under a layer that goes with it, started in a namespace
//! of the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use kit::{
    lab::{Host, Lab},
    process::{Orphan, Process},
    wait,
};

const BOOT: Duration = Duration::from_secs(60);

/// The machine; when dropped, it is killed, and its mounts go with it.
pub struct Machine {
    process: Process,
    leader: u32,
}

impl Machine {
    /// Starts it at the place of a host of the lab, with `packages` at /packages.
    pub fn boot(lab: &Lab, host: &Host, packages: &Path) -> Result<Self> {
        let folder = lab.folder().join(format!("machine-{}", host.name));
        fs::create_dir(&folder)?;
        // In a mount namespace of its own, so that everything ends with it: the layer, and a BPF file
        // system that is not this machine's. What sets the kernel's own switches stays off: there is one kernel.
        // Nor does it matter here whether packages may start services on this machine.
        let script = format!(
            "set -e; mount -t tmpfs tmpfs {folder}; cd {folder}; mkdir upper work root bpf\n\
             mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root\n\
             mount -t bpf -o mode=0700 bpf bpf\n\
             rm -f root/usr/sbin/policy-rc.d\n\
             for unit in sysctl modules-load binfmt; do\n\
             ln -s /dev/null root/etc/systemd/system/systemd-$unit.service\ndone\n\
             exec systemd-nspawn --quiet --directory=root --machine={name} --register=no --keep-unit \
             --resolv-conf=off --timezone=off --link-journal=no --capability=all \
             --system-call-filter='bpf perf_event_open' --bind={folder}/bpf:/sys/fs/bpf \
             --bind-ro={packages}:/packages --console=pipe --boot systemd.unit=basic.target\n",
            folder = folder.display(),
            packages = packages.display(),
            name = host.namespace.name(),
        );
        let start = folder.with_extension("sh");
        fs::write(&start, script)?;
        let start = start.to_string_lossy().into_owned();
        let process = Process::start(
            &host.namespace,
            Path::new("/usr/bin/env"),
            // Real files of /sys and /proc/sys: the network is configured by them.
            &[
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
                "unshare",
                "--mount",
                // The machine outlives nspawn, but not a namespace of pids whose first process is nspawn.
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                &start,
            ],
            &folder.with_extension("log"),
            Orphan::Dies,
        )?;
        let mut machine = Self { process, leader: 0 };
        let booted = wait::until(BOOT, "the machine is up", || {
            machine.process.check()?;
            machine.leader =
                child_of(child_of(machine.process.pid(), "systemd-nspawn")?, "systemd")?;
            let state = machine.output("systemctl is-system-running")?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            match state.as_str() {
                "running" | "degraded" => Ok(()),
                _ => bail!("it is {state}"),
            }
        });
        booted.with_context(|| machine.process.log())?;
        Ok(machine)
    }

    /// Runs a line for a shell in it.
    pub fn output(&self, line: &str) -> Result<Output> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &self.leader.to_string(), "--all", "--", "/bin/sh", "-c", line]);
        nsenter.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        nsenter.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        nsenter.output().with_context(|| line.to_owned())
    }

    /// The output of a line for a shell; it must succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(line)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}: {}\n{text}{error}", output.status);
        Ok(text)
    }

    /// Whether a line for a shell succeeds.
    pub fn holds(&self, line: &str) -> Result<bool> {
        Ok(self.output(line)?.status.success())
    }

    /// A file of the machine's as a path outside of it.
    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{file}", self.leader))
    }

    /// The id of the link that is pinned in a folder of lb's pins.
    pub fn link(&self, folder: &str) -> Result<u32> {
        let pin = self.path(&format!("/sys/fs/bpf/lb/{folder}/link"));
        let link = PinnedLink::from_pin(&pin).with_context(|| pin.display().to_string())?;
        Ok(FdLink::from(link).info()?.id())
    }

    /// Reads a file.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Writes a file.
    pub fn write(&self, file: &str, content: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, content).with_context(|| path.display().to_string())
    }
}

/// The one child of a process, when it runs this program.
fn child_of(pid: u32, program: &str) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next().context("it has no process yet")?;
    let child: u32 = child.parse()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm"))?;
    // The kernel keeps 15 characters of a name.
    ensure!(!name.trim().is_empty() && program.starts_with(name.trim()), "it is {name} yet");
    Ok(child)
}
