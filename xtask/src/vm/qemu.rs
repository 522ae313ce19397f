//! QEMU: one machine from boot to its end.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kit::command;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{End, Machine, Output, apt, mac};
use crate::root;

/// How long QEMU may take to end after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of the console that are shown when something went wrong.
const LINES: usize = 50;

/// Boots a machine and waits for its end; how it ended, and the kernel's last lines.
pub(super) fn run(
    machine: &Machine<'_>,
    initrd: &Path,
    work: &Path,
    output: Output<'_>,
) -> Result<(End, String)> {
    let console = work.join("console");
    let errors = work.join("errors");
    // Made here, so that they are this user's and not root's.
    let errors_file = File::create(&errors).context("create a file for QEMU's errors")?;
    File::create(&console).context("create a file for the console")?;
    let mut qemu = command::command("qemu-system-x86_64");
    let nothing = work.join("nothing");
    fs::create_dir(&nothing).context("create a folder to share")?;
    let folder = machine.folder.unwrap_or(&nothing);
    qemu.args(arguments(machine, folder, initrd, &console, has_kvm()));
    // It reads files of this machine that are root's alone, and its files are root's.
    let mut qemu = root::as_root(qemu, "a machine over this one's files")?;
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors_file);
    let to: Box<dyn Write + Send> = match output {
        Output::Stdout => Box::new(io::stdout()),
        Output::Stderr => Box::new(io::stderr()),
        Output::File(path) => {
            Box::new(File::create(path).with_context(|| path.display().to_string())?)
        }
    };
    let mut child = qemu.spawn().context("qemu-system-x86_64")?;
    let stdout = child.stdout.take().context("standard output is a pipe")?;
    // Through a pipe: QEMU makes its output non-blocking, for all processes that share it.
    let reader = thread::spawn(move || forward(stdout, to));
    let in_time = wait(&mut child, machine.limit)?;
    let _ = reader.join();
    let text =
        String::from_utf8_lossy(&fs::read(&console).context("read the console")?).into_owned();
    let end = match exit_code(&text) {
        Some(code) => End::Exited(code),
        None if in_time => End::Died,
        None => End::TimedOut,
    };
    let errors = fs::read_to_string(&errors).unwrap_or_default();
    let lines: Vec<_> = errors.lines().chain(text.lines()).map(str::trim_end).collect();
    Ok((end, lines[lines.len().saturating_sub(LINES)..].join("\n")))
}

/// Whether the processor's own virtualisation can be used: KVM without VMX or SVM can't run the
/// kernels of distributions.
pub fn has_kvm() -> bool {
    let modules = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"];
    modules.iter().any(|module| Path::new(module).exists())
        && (File::options().read(true).write(true).open("/dev/kvm").is_ok() || !kit::is_root())
}

fn arguments(
    machine: &Machine<'_>,
    folder: &Path,
    initrd: &Path,
    console: &Path,
    kvm: bool,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &str| arguments.extend(words.split(' ').map(OsString::from));
    add("-nodefaults -no-user-config -display none -no-reboot -machine q35");
    add(&format!("-m {}", machine.memory_mib));
    if machine.counted {
        // shift=0: an instruction takes a nanosecond; sleep=off: idle time is passed over.
        add("-smp 1 -icount shift=0,sleep=off -accel tcg,thread=single -cpu max,la57=off");
    } else if kvm {
        add(&format!("-smp {} -accel kvm -cpu host", machine.cpus));
    } else {
        // All CPUs on one thread: with one each, a kernel that patches its own code, as it does when
        // a program is swapped under traffic, now and then meets an instruction that is half of each.
        // Work takes a nanosecond an instruction by the guest's clock, so that no deadline in it is
        // missed because this machine is slow; waiting takes as long as it does.
        add(&format!("-smp {} -icount shift=0 -accel tcg,thread=single", cpus_counted(machine)));
        add("-cpu max,la57=off");
    }
    let e1000 = machine.e1000.then_some((machine.nics, "e1000"));
    let port = machine.e1000.then_some((machine.nics + 1, VIRTIO));
    let nics = (0..machine.nics).map(|nic| (nic, VIRTIO)).chain(e1000).chain(port);
    for (nic, model) in nics {
        add(&format!("-netdev hubport,id=n{nic},hubid={}", nic / 2));
        add(&format!("-device {model},netdev=n{nic},mac={}", mac(nic)));
    }
    let shares = [
        ("root", Path::new("/"), "on"),
        ("modules", &machine.kernel.lib.join("modules"), "on"),
        ("host", folder, "off"),
    ];
    for (tag, path, readonly) in shares {
        // A comma in a value is doubled.
        let path = path.to_string_lossy().replace(',', ",,");
        arguments.push("-fsdev".into());
        let device = format!(
            "local,id={tag},path={path},security_model=none,readonly={readonly},multidevs=remap"
        );
        arguments.push(device.into());
        arguments.push("-device".into());
        arguments.push(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}").into());
    }
    for (option, path) in [("-kernel", machine.kernel.image.as_path()), ("-initrd", initrd)] {
        arguments.extend([option.into(), path.into()]);
    }
    arguments.push("-append".into());
    arguments.push("console=ttyS0 quiet loglevel=4 panic=-1 oops=panic".into());
    let mut console_to = OsString::from("file:");
    console_to.push(console);
    arguments.extend(["-serial".into(), console_to]);
    let output = ["-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"];
    arguments.extend(output.map(OsString::from));
    arguments
}

/// The NIC that has native XDP.
const VIRTIO: &str = "virtio-net-pci";

/// How many CPUs it can have on one thread with a clock of instructions.
///
/// QEMU before 8.1 gives what is left until the next timer to the CPUs in their order, and a CPU that does not
/// pause takes all of it. Linux before 6.5 waits like that for the second CPU to come up: for ever.
fn cpus_counted(machine: &Machine<'_>) -> u8 {
    let release = apt::numbers(&machine.kernel.release);
    if release.get(..2).is_some_and(|release| release < &[6, 5][..]) { 1 } else { machine.cpus }
}

/// Waits for a process at most so long; false if it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid")?);
    let ended = |child: &mut Child, until: Instant| -> Result<bool> {
        loop {
            if child.try_wait().context("wait for QEMU")?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= until || kit::signals::caught() {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
    };
    if ended(child, deadline)? {
        return Ok(true);
    }
    // sudo, where it runs through that, passes it on.
    let _ = kill(pid, Signal::SIGTERM);
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        if child.try_wait().context("wait for QEMU")?.is_some() {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill().context("end QEMU")?;
    child.wait().context("wait for QEMU")?;
    Ok(false)
}

/// Passes bytes on, as they come.
fn forward(mut from: impl Read, mut to: impl Write) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..length]).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}

/// The exit code that the guest printed; lines of the kernel may stand before it.
fn exit_code(console: &str) -> Option<i32> {
    let (_, printed) = console.rsplit_once("lb-vm-exit ")?;
    printed.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A line of a command, for a test.
#[cfg(test)]
fn line(machine: &Machine<'_>, kvm: bool) -> String {
    let mut command = std::process::Command::new("qemu");
    let [folder, initrd, console] = ["/shared", "/initrd", "/console"].map(Path::new);
    command.args(arguments(machine, folder, initrd, console, kvm));
    command::line(&command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernel::Kernel;

    #[test]
    fn the_exit_code_is_found_among_what_the_kernel_says() {
        assert_eq!(
            exit_code("[ 1.0] boot\r\n[ 2.0] x lb-vm-exit 101\r\n[ 3.0] off\r\n"),
            Some(101)
        );
        assert_eq!(exit_code("Kernel panic - not syncing"), None);
        assert_eq!(exit_code("lb-vm-exit "), None);
    }

    #[test]
    fn nics_are_joined_two_by_two_and_reach_nothing_else() {
        let kernel =
            Kernel { release: "6.12".into(), image: "/vmlinuz".into(), lib: "/a,b/lib".into() };
        let machine = Machine {
            kernel: &kernel,
            folder: None,
            cpus: 2,
            memory_mib: 512,
            nics: 4,
            e1000: false,
            counted: false,
            limit: Duration::from_secs(1),
        };
        let plain = line(&machine, false);
        for (nic, hub) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
            assert!(plain.contains(&format!("hubport,id=n{nic},hubid={hub}")), "{plain}");
        }
        assert_eq!(plain.matches("-netdev").count(), 4);
        assert!(plain.contains("path=/a,,b/lib/modules"), "{plain}");
        assert!(plain.contains("thread=single") && plain.contains("-smp 2"), "{plain}");
        assert!(line(&machine, true).contains("-accel kvm"));
        let counted = line(&Machine { counted: true, ..machine }, true);
        let more = line(&Machine { e1000: true, ..machine }, true);
        for device in ["e1000,netdev=n4,mac=52:54:00:00:00:05", "virtio-net-pci,netdev=n5"] {
            assert!(more.contains(&format!("-device {device}")), "{more}");
        }
        assert!(counted.contains("-icount shift=0,sleep=off") && counted.contains("-smp 1"));
        assert!(!counted.contains("kvm"), "{counted}");
    }

    #[test]
    fn a_kernel_that_would_wait_for_ever_for_a_second_cpu_has_one() {
        for (release, kvm, cpus) in [
            ("5.10.0-39-amd64", false, 1),
            ("6.1.0-56-amd64", false, 1),
            ("6.1.0-56-amd64", true, 2),
            ("6.5.0-1-amd64", false, 2),
            ("6.12.117+deb12-amd64", false, 2),
            ("7.0.1-amd64", false, 2),
        ] {
            let kernel =
                Kernel { release: release.into(), image: "/vmlinuz".into(), lib: "/lib".into() };
            let machine = Machine {
                kernel: &kernel,
                folder: None,
                cpus: 2,
                memory_mib: 512,
                nics: 0,
                e1000: false,
                counted: false,
                limit: Duration::from_secs(1),
            };
            let line = line(&machine, kvm);
            assert!(line.contains(&format!("-smp {cpus} ")), "{release}: {line}");
        }
    }
}
