//! What keeps the thread from being late: a real-time priority and memory that is never paged out.
//!
//! Both are granted only where the process may have them; where it may not, advertisements can be late
//! under load, which is logged once and is no error.

use std::{fs, io, sync::Once, time::Duration};

use lb_model::{router::Router, units::format_duration};
use tracing::{info, warn};

/// The real-time priority: above ordinary threads, below those of the kernel that handle interrupts
/// (50).
const PRIORITY: i32 = 40;
/// The nice value where no real-time priority is to be had.
const NICE: i32 = -20;
/// A node that is late by three intervals loses its addresses. Load makes threads late by tens of
/// milliseconds, seldom by seconds.
const SHORT: Duration = Duration::from_secs(1);
/// `CAP_IPC_LOCK` of linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

/// How the calling thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduling {
    /// Before all ordinary threads.
    Fifo,
    /// With more than its share.
    Nice,
    /// As any thread.
    Ordinary,
}

/// Puts the calling thread before all others, as far as the process may, and locks the memory of the
/// process. What is not allowed is logged, once in a process.
pub(crate) fn prefer() -> Scheduling {
    static LOGGED: Once = Once::new();
    let scheduling = schedule();
    let locked = lock_memory();
    LOGGED.call_once(|| log_scheduling(scheduling, &locked));
    scheduling
}

/// That a router's interval is short for a thread that is scheduled so, and what follows: in words,
/// with the reason.
#[must_use]
pub(crate) fn short_interval(
    scheduling: Scheduling,
    routers: &[Router],
) -> Option<(String, String)> {
    let shortest = routers.iter().min_by_key(|router| router.interval)?;
    if scheduling == Scheduling::Fifo || shortest.interval >= SHORT {
        return None;
    }
    let interval = format_duration(shortest.interval);
    let late = format_duration(shortest.interval * 3);
    let message =
        format!("{} advertises every {interval} without a real-time priority", shortest.name);
    let cause = format!(
        "load that keeps lbd from running for {late} makes a peer take over: give it CAP_SYS_NICE or \
         LimitRTPRIO={PRIORITY}, or set interval = \"1s\" on all nodes"
    );
    Some((message, cause))
}

fn log_scheduling(scheduling: Scheduling, locked: &Result<(), String>) {
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

/// Whether /proc/.../status shows that a capability is effective.
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
    fn an_interval_below_a_second_without_a_real_time_priority_is_told() {
        let key = lb_model::router::RouterKey {
            family: lb_model::router::Family::V4,
            vrid: 51.try_into().expect("not 0"),
        };
        let router = |name, interval| Router {
            interval: Duration::from_millis(interval),
            ..crate::thread::test_router(name, key)
        };
        let routers = [router("slow", 1_000), router("quick", 100)];
        for scheduling in [Scheduling::Nice, Scheduling::Ordinary] {
            assert_eq!(short_interval(scheduling, &routers[..1]), None);
            let (message, cause) = short_interval(scheduling, &routers).expect("it is short");
            assert_eq!(message, "quick advertises every 100ms without a real-time priority");
            assert!(cause.contains("for 300ms") && cause.contains("CAP_SYS_NICE"), "{cause}");
        }
        assert_eq!(short_interval(Scheduling::Fifo, &routers), None);
        assert_eq!(short_interval(Scheduling::Ordinary, &[]), None);
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
