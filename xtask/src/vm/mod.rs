//! Virtual machines that run a Debian kernel over this machine's own files: what the tests and
//! benchmarks meet on kernels that people run.
//!
//! [`kernel`] fetches a packaged kernel into `target/vm` and installs nothing; [`initramfs`] holds the
//! modules for the machine's own devices and the guest's first program; [`qemu`] boots both, lets the
//! guest run one script as root over a scratch copy of this machine's root, and brings its exit code
//! home by the serial console. Nothing reaches the network.

mod apt;
mod initramfs;
pub mod kernel;
mod qemu;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use kit::signals;

use self::kernel::Kernel;
pub use self::qemu::has_kvm;
use crate::setup;

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A series (6.12), `newest`, or the folder of an unpacked kernel package
    kernel: String,
    /// Its clock counts instructions, and it has one CPU
    #[arg(long)]
    counted: bool,
    /// How many virtio NICs it has, joined two by two
    #[arg(long, default_value_t = 0)]
    nics: u8,
    /// It has an Intel e1000, too, joined with a virtio NIC
    #[arg(long)]
    e1000: bool,
    /// The script to run as root
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Runs a command on another kernel.
///
/// # Errors
///
/// If it fails, or the machine can't be had.
pub fn run(arguments: &Arguments) -> Result<()> {
    packages()?;
    let kernel = Kernel::obtain(&arguments.kernel)?;
    let machine = Machine {
        kernel: &kernel,
        folder: None,
        cpus: 2,
        memory_mib: 2_048,
        nics: arguments.nics,
        e1000: arguments.e1000,
        counted: arguments.counted,
        limit: Duration::from_secs(3_600),
    };
    let words: Vec<_> = arguments.command.iter().map(|word| quoted(word)).collect();
    machine.run(&format!("exec {}", words.join(" ")), Output::Stdout)
}

/// The programs and files that it takes, and the Debian package of each.
const NEEDED: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("wg", "wireguard-tools"),
    ("xz", "xz-utils"),
    (apt::KEYRING, "debian-archive-keyring"),
];

/// Where the guest sees [`Machine::folder`].
pub const SHARED: &str = "/host";

/// A machine to be booted.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// A folder of this machine that the guest may write to, as [`SHARED`].
    pub folder: Option<&'a Path>,
    /// How many CPUs it has.
    pub cpus: u8,
    /// Its memory.
    pub memory_mib: u32,
    /// Virtio NICs, joined two by two: the first with the second, and so on. [`mac`] distinguishes them.
    pub nics: u8,
    /// Whether it has two more: an Intel e1000, whose driver has no XDP, joined with a virtio NIC.
    pub e1000: bool,
    /// Whether its clock counts instructions: one CPU, on which an instruction takes a nanosecond and
    /// idle time none. Its measurements are the same however busy this machine is.
    pub counted: bool,
    /// For boot and script together.
    pub limit: Duration,
}

/// How a machine has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The script ended with this exit code.
    Exited(i32),
    /// It took too long.
    TimedOut,
    /// The machine ended before the script did: it did not boot, or it panicked.
    Died,
}

/// Where the output of the script goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// To the standard output.
    Stdout,
    /// To the standard error, where the standard output is for something else.
    Stderr,
    /// To a file, where several machines run at a time.
    File(&'a Path),
}

impl Machine<'_> {
    /// Boots it and runs a shell script as root.
    ///
    /// # Errors
    ///
    /// If the script fails or the machine does not come to its end; its last output is then shown.
    pub fn run(&self, script: &str, output: Output<'_>) -> Result<()> {
        // A signal ends the machine first.
        signals::catch();
        let work = Work::new()?;
        let initrd = initramfs::build(self.kernel, script, &work.0)?;
        let (end, console) = qemu::run(self, &initrd, &work.0, output)?;
        let release = &self.kernel.release;
        match end {
            _ if signals::caught() => bail!("interrupted"),
            End::Exited(0) => Ok(()),
            End::Exited(code) => bail!("Linux {release}: exit code {code}"),
            End::TimedOut => {
                bail!(
                    "Linux {release}: not done within {:?}; its last output:\n{console}",
                    self.limit
                )
            }
            End::Died => {
                bail!(
                    "Linux {release}: the machine ended before its work; its last output:\n{console}"
                )
            }
        }
    }
}

/// The MAC address of NIC `n`, from 0.
pub fn mac(n: u8) -> String {
    format!("52:54:00:00:00:{:02x}", n + 1)
}

/// How many machines with several CPUs this one can run at a time.
pub fn at_a_time() -> usize {
    let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).get();
    // Without KVM, a machine takes one CPU whatever it has.
    if has_kvm() { cpus.div_ceil(2) } else { cpus }
}

/// Installs missing programs for machines.
///
/// # Errors
///
/// If it can't be; the error names the command.
pub fn packages() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("machines for other kernels are made on x86-64 only");
    }
    setup::these(NEEDED)
}

/// The folder that keeps kernels and lists of packages.
pub fn cache() -> PathBuf {
    crate::workspace().join("target/vm")
}

/// A folder for the time of one run.
struct Work(PathBuf);

impl Work {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = cache().join(format!("run-{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_quoted_words_back() -> Result<()> {
        for word in ["plain", "two words", "it's", "$HOME `id`", ""] {
            let mut shell = kit::command::command("sh");
            let read =
                kit::command::run(shell.args(["-c", &format!("printf %s {}", quoted(word))]))?;
            assert_eq!(read, word);
        }
        Ok(())
    }
}
