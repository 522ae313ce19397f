//! The wire: two joined interfaces of one machine, and the clock that counts instructions.
//!
//! ```text
//!  generate ──► wire ════ node ──► the program that is measured ──┐
//!                                                                 │ transmits
//!                    sink ◄── wire ════ node ◄────────────────────┘
//! ```
//!
//! All of it runs on one CPU, within the call that sends the frames: each batch of 64 is received,
//! decided on, sent back and counted before the next is made.

use anyhow::{Context as _, Result, ensure};
use kit::command::{command, run, run_with_input};

use crate::{
    frames::{OWN, Plan},
    harness::Harness,
};

/// The end at which frames are sent off, and counted when they are back.
pub const WIRE: &str = "wire";
/// The end of the node that is measured.
pub const NODE: &str = "node";

/// Packets of one measurement.
const PACKETS: u32 = 32_768;
/// Measurements of each case, of which the median is reported.
const ROUNDS: usize = 3;

/// Walks through memory of each size, of which the shortest counts.
const WALKS: usize = 10;

/// The cost of a run of frames.
pub struct Measured {
    /// Instructions of one packet: median of the rounds.
    pub instructions: f64,
    /// The largest deviation of a round from it, as a part of it.
    pub spread: f64,
}

/// Makes the wire, and the route to clients by it.
///
/// # Errors
///
/// If the kernel refuses; both ends are gone with the machine.
pub fn wire() -> Result<()> {
    // Packets that the kernel sends by itself would be counted.
    for setting in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{setting}/disable_ipv6");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    let own = OWN.map(|byte| format!("{byte:02x}")).join(":");
    let lines = format!(
        "link add {WIRE} type veth peer name {NODE}\nlink set {NODE} address {own}\n\
         link set {WIRE} up\nlink set {NODE} up\n\
         addr add 172.16.0.1/24 dev {NODE}\n\
         neigh add 172.16.0.2 lladdr 02:00:00:00:00:09 nud permanent dev {NODE}\n\
         route add default via 172.16.0.2 dev {NODE}\n"
    );
    let forwards = "/proc/sys/net/ipv4/ip_forward";
    std::fs::write(forwards, "1").context(forwards)?;
    // An interpreted program costs ten times as much.
    let jit = "/proc/sys/net/core/bpf_jit_enable";
    std::fs::write(jit, "1").context(jit)?;
    ip(&lines)
}

/// The index of an interface.
///
/// # Errors
///
/// If there is none.
pub fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
}

/// That the clock of this machine counts instructions, which only a virtual one's can.
///
/// # Errors
///
/// If it does not.
pub fn ensure_counted() -> Result<()> {
    // The same steps through little memory and through much: on a real processor the latter waits for
    // memory at each.
    let walk = |places: usize| {
        // An odd stride visits every place of a power of two.
        let next: Vec<usize> = (0..places).map(|at| (at + 1_000_003) & (places - 1)).collect();
        // The kernel may have something else to do in between, some milliseconds long: soon after its boot most
        // of all. That only adds to a walk.
        let walks = (0..WALKS).map(|_| {
            let start = ticks();
            let mut at = 0;
            for _ in 0..100_000 {
                at = next[at];
            }
            std::hint::black_box(at);
            ticks() - start
        });
        walks.min().unwrap_or_default()
    };
    let (little, much) = (walk(1 << 8), walk(1 << 22));
    ensure!(
        little.abs_diff(much) < little / 10,
        "this machine's clock does not count instructions ({little} and {much} for the same work); \
         `cargo xtask bench instructions` starts one whose clock does"
    );
    Ok(())
}

/// The processor's clock.
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has a time-stamp counter, and a process may read it unless it
    // has set the kernel to forbid that.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Measures a case: `arrived` returns how many frames have come out at its far end so far.
///
/// # Errors
///
/// If not every frame has come out.
pub fn measure(
    harness: &mut Harness,
    name: &str,
    plan: &mut Plan,
    warm: u32,
    mut arrived: impl FnMut(&mut Harness) -> Result<u64>,
) -> Result<Measured> {
    plan.ifindex = index(WIRE)?;
    let mut send = |harness: &mut Harness, packets: u32| -> Result<f64> {
        let before = arrived(harness)?;
        let took = harness.generate(plan, packets)?;
        let came = arrived(harness)? - before;
        ensure!(came == u64::from(packets), "{name}: of {packets} frames {came} came out");
        Ok(took)
    };
    if warm > 0 {
        send(harness, warm)?;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(send(harness, PACKETS)?);
    }
    rounds.sort_by(f64::total_cmp);
    let median = rounds[ROUNDS / 2];
    let spread = (rounds[ROUNDS - 1] - median).max(median - rounds[0]) / median;
    Ok(Measured { instructions: median, spread })
}

/// Runs lines of `ip`.
///
/// # Errors
///
/// If one fails.
pub fn ip(lines: &str) -> Result<()> {
    run_with_input(command("ip").args(["-batch", "-"]), lines).map(drop)
}

/// Runs a program.
///
/// # Errors
///
/// If it fails.
pub fn call(program: &str, args: &[&str]) -> Result<()> {
    run(command(program).args(args)).map(drop)
}
