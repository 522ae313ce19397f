//! What keeps the thread from being late: a real-time priority and memory that is never paged out.
//!
//! Both are for the asking only where the process may; where it may not, advertisements can be late
//! under load, which is said once and is no error.

use std::{fs, io, sync::Once};

use tracing::{info, warn};

/// The real-time priority: above ordinary threads, below those of the kernel that handle interrupts
/// (50).
const PRIORITY: i32 = 40;
/// The nice value where no real-time priority is to be had.
const NICE: i32 = -20;
/// `CAP_IPC_LOCK` of linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

/// How the calling thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// Before all ordinary threads.
    Fifo,
    /// With more than its share.
    Nice,
    /// As any thread.
    Ordinary,
}

/// Puts the calling thread before all others, as far as the process may, and locks the memory of the
/// process. What is not allowed is logged, once in a process.
pub fn prefer() -> Scheduling {
    static TOLD: Once = Once::new();
    let scheduling = schedule();
    let locked = lock_memory();
    TOLD.call_once(|| tell(scheduling, &locked));
    scheduling
}

fn tell(scheduling: Scheduling, locked: &Result<(), String>) {
    match scheduling {
        Scheduling::Fifo => info!(priority = PRIORITY, "VRRP has a real-time priority"),
        Scheduling::Nice => warn!(
            "VRRP has no real-time priority (that takes CAP_SYS_NICE or LimitRTPRIO={PRIORITY}): nice \
             {NICE} instead"
        ),
        Scheduling::Ordinary => warn!(
            "VRRP has no real-time priority (that takes CAP_SYS_NICE or LimitRTPRIO={PRIORITY}): load \
             may make its advertisements late"
        ),
    }
    if let Err(why) = locked {
        warn!("memory is not locked ({why}): paging may make advertisements late");
    }
}

fn schedule() -> Scheduling {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // What the thread starts must not inherit it: a script in an endless loop would take a CPU.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread, and the parameters are read only.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
        return Scheduling::Fifo;
    }
    // SAFETY: touches no memory; 0 is the calling thread, as Linux has a nice value for each.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } == 0 {
        return Scheduling::Nice;
    }
    Scheduling::Ordinary
}

/// Locks what the process has and will have, each page when it is first used.
fn lock_memory() -> Result<(), String> {
    // With a limit, locking what is mapped later would make that mapping fail, anywhere in the process.
    if !may_lock_all() {
        return Err("that takes CAP_IPC_LOCK or LimitMEMLOCK=infinity".to_owned());
    }
    // SAFETY: changes no content of memory.
    let result =
        unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

fn may_lock_all() -> bool {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let unlimited =
        getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    unlimited || has_capability(&status, CAP_IPC_LOCK)
}

/// Whether /proc/.../status tells that a capability is effective.
fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << capability) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_is_read_from_the_effective_set() {
        let status = "Name:\tlbd\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK));
        assert!(!has_capability(status, 15));
        assert!(!has_capability("", CAP_IPC_LOCK));
    }

    #[test]
    fn what_the_thread_starts_does_not_inherit_its_priority() {
        let policy = || {
            // SAFETY: touches no memory; 0 is the calling thread.
            unsafe { libc::sched_getscheduler(0) }
        };
        let (own, started, expected) = std::thread::spawn(move || {
            let expected = prefer();
            let started = std::thread::spawn(policy).join().expect("a thread that only asks");
            (policy(), started, expected)
        })
        .join()
        .expect("a thread that only asks");
        if expected == Scheduling::Fifo {
            assert_eq!(own, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK);
        }
        assert_eq!(started, libc::SCHED_OTHER);
    }
}
