//! The process: the names that all exporters share, from `/proc/self`.

use std::{fmt, fs, os::unix::fs::MetadataExt as _, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

use super::page::{Family, Page};

/// The resources that the process uses, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    cpu: Duration,
    /// Since 1970.
    started: Duration,
    virtual_bytes: u64,
    resident_bytes: u64,
    threads: u64,
    open_fds: u64,
    /// None: unlimited.
    max_fds: Option<u64>,
}

impl Process {
    /// This process; none where `/proc` can't be read.
    pub(super) fn read() -> Option<Self> {
        let unit = |var| sysconf(var).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let units = Units { ticks: unit(SysconfVar::CLK_TCK)?, page: unit(SysconfVar::PAGE_SIZE)? };
        let read = |path: &str| fs::read_to_string(path).ok();
        let boot = read("/proc/stat")?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        let parsed = Self::parse(&read("/proc/self/stat")?, Duration::from_secs(boot), units)?;
        Some(Self {
            open_fds: open_fds()?,
            max_fds: max_fds(&read("/proc/self/limits")?),
            ..parsed
        })
    }

    /// When it was started, since 1970.
    pub(super) fn started_secs(&self) -> f64 {
        self.started.as_secs_f64()
    }

    /// Parses `/proc/PID/stat`, by proc_pid_stat(5).
    fn parse(stat: &str, boot: Duration, units: Units) -> Option<Self> {
        // The name, which may hold anything, ends with the last parenthesis; it is field 2.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |count: u64| Duration::from_secs_f64(count as f64 / units.ticks as f64);
        Some(Self {
            cpu: ticks(field(14)?.checked_add(field(15)?)?),
            threads: field(20)?,
            started: boot.checked_add(ticks(field(22)?))?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.checked_mul(units.page)?,
            ..Self::default()
        })
    }
}

#[derive(Clone, Copy)]
struct Units {
    /// Clock ticks in a second.
    ticks: u64,
    /// Bytes of a page.
    page: u64,
}

fn open_fds() -> Option<u64> {
    // Since Linux 6.2 the folder's size is their number; before, they have to be listed.
    match fs::metadata("/proc/self/fd").ok()?.size() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

/// The soft limit in `/proc/PID/limits`.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

pub(super) fn write(page: &mut Page<'_>, process: &Process) -> fmt::Result {
    page.counter_f64(
        Family::seconds(
            "process_cpu",
            "Time that lbd has spent on CPUs; the XDP program's is not in it",
        ),
        process.cpu.as_secs_f64(),
    )?;
    page.gauge(
        Family::bytes("process_resident_memory", "Memory of lbd that is resident"),
        process.resident_bytes,
    )?;
    page.gauge(
        Family::bytes("process_virtual_memory", "Virtual memory of lbd"),
        process.virtual_bytes,
    )?;
    page.gauge(Family::new("process_threads", "Threads of lbd"), process.threads)?;
    page.gauge(Family::new("process_open_fds", "File descriptors of lbd"), process.open_fds)?;
    if let Some(max) = process.max_fds {
        page.gauge(Family::new("process_max_fds", "File descriptors that lbd may have"), max)?;
    }
    page.gauge(
        Family::seconds("process_start_time", "When lbd started, since 1970"),
        process.started_secs(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_no_field() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1000 8192000 300 \
                    18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";
        let units = Units { ticks: 100, page: 4096 };
        let process = Process::parse(stat, Duration::from_secs(50), units).expect(stat);
        assert_eq!((process.cpu, process.threads), (Duration::from_secs(3), 4));
        assert_eq!(process.started, Duration::from_secs(60));
        assert_eq!((process.virtual_bytes, process.resident_bytes), (8_192_000, 1_228_800));
        assert_eq!(Process::parse("7 (short) S 1", Duration::ZERO, units), None);
    }

    #[test]
    fn this_process_is_told() {
        let process = Process::read().expect("there is /proc");
        assert!(process.open_fds >= 3 && process.threads >= 1, "{process:?}");
        assert!(process.resident_bytes > 100_000, "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes, "{process:?}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
        let age = now.abs_diff(process.started);
        assert!(age < Duration::from_secs(3_600), "{process:?}");
    }

    #[test]
    fn the_limit_of_descriptors_is_the_soft_one() {
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files   unlimited   unlimited   files\n"), None);
    }
}
