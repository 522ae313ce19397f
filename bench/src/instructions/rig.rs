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
/// Measurements of each case, of which the median is told.
const ROUNDS: usize = 3;

/// What a run of frames cost.
pub struct Measured {
    /// Instructions of one packet: median of the rounds.
    pub instructions: f64,
    /// The largest deviation of a round from it, as a part of it.
    pub spread: f64,
}

/// Makes the wire.
///
/// # Errors
///
/// If the kernel refuses; both ends are gone with the machine.
pub fn wire() -> Result<()> {
    // What the kernel sends by itself would be counted.
    for setting in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{setting}/disable_ipv6");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    let own = OWN.map(|byte| format!("{byte:02x}")).join(":");
    let lines = format!(
        "link add {WIRE} type veth peer name {NODE}\nlink set {NODE} address {own}\n\
         link set {WIRE} up\nlink set {NODE} up\n"
    );
    run_with_input(command("ip").args(["-batch", "-"]), &lines).map(drop)
}

/// The index of an interface.
///
/// # Errors
///
/// If there is none.
pub fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
}

/// Whether the clock of this machine counts instructions, which only a virtual one's can.
///
/// # Errors
///
/// If it does not.
pub fn ensure_counted() -> Result<()> {
    // A chain of dependent steps, far slower than one a tick on any real processor's clock: there a
    // round takes different times, here always the same.
    let round = || {
        let start = instructions();
        let mut x = std::hint::black_box(1_u64);
        for _ in 0..100_000 {
            x = std::hint::black_box(x.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        std::hint::black_box(x);
        instructions() - start
    };
    let rounds: Vec<u64> = (0..8).map(|_| round()).collect();
    let (least, most) = (rounds.iter().min(), rounds.iter().max());
    let (least, most) = (least.copied().unwrap_or_default(), most.copied().unwrap_or_default());
    ensure!(
        // An interrupt may come in between.
        most - least <= least / 4 && least < 2_000_000,
        "this machine's clock does not count instructions ({least} to {most} for the same work); \
         `cargo xtask bench instructions` starts one whose clock does"
    );
    Ok(())
}

/// Instructions since the machine was started.
pub fn instructions() -> u64 {
    // SAFETY: every x86-64 processor has a time-stamp counter, and a process may read it unless it
    // has asked the kernel to forbid that.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Measures a case: `arrived` tells how many frames have come out at its far end so far.
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
    let mut send = |harness: &mut Harness, packets: u32| -> Result<u64> {
        let before = arrived(harness)?;
        let start = instructions();
        harness.generate(plan, packets)?;
        let took = instructions() - start;
        let came = arrived(harness)? - before;
        ensure!(came == u64::from(packets), "{name}: of {packets} frames {came} came out");
        Ok(took)
    };
    if warm > 0 {
        send(harness, warm)?;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(send(harness, PACKETS)? as f64 / f64::from(PACKETS));
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
