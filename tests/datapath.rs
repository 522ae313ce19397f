//! Does the BPF object decide and rewrite as the core does on the host, byte for byte?

use std::{collections::HashMap, rc::Rc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::datapath::{
    Twins,
    generate::{self, BACKENDS, INGRESS, Random},
    kernel::{self, Kernel},
    model::{Action, BackendCount},
    steady_nanos,
};
use lb_common::{forward::decide, verdict::Verdict};
use lb_userspace::objects;

const PINS: u32 = 180;
/// Random states, each with frames of its own.
const EPOCHS: u64 = 30;
/// Frames after which the lease of pins changes.
const LEASES: usize = 150;
/// No frame takes longer.
const MARGIN: Duration = Duration::from_millis(50);

/// Runs `frames` random frames over one random state through both. What went to backends, and how many
/// pins were made.
fn run_epoch(
    seed: u64,
    frames: usize,
    met: &mut HashMap<u32, u64>,
) -> Result<(BackendCount, usize)> {
    let mut random = Random(seed);
    // Time passes for the program while it does not for the core: either no ICMP error may be sent, or
    // any number.
    let icmp_rate = if seed % 4 == 3 { 0 } else { u32::MAX };
    let mut twins = Twins::load_limited(objects::BALANCER, PINS, icmp_rate)?;
    let nanos = steady_nanos(MARGIN);
    let state = generate::state(&mut random, (nanos / 1_000_000_000) as u32);
    twins.install(&state)?;
    ensure!(twins.kernel.index_is_of_use()?, "the buckets of the services' index are all alike");
    let mut sent: Vec<Vec<u8>> = Vec::new();
    // Pins that were made within the lease, and past it.
    let mut made = [0, 0];
    for number in 0..frames {
        // Some of those that were sent on are sent again.
        let frame = if random.one_in(4) && !sent.is_empty() {
            sent[random.below(sent.len())].clone()
        } else {
            generate::frame(&mut random)
        };
        if number % LEASES == 0 {
            // In turn there is none, one that lasts, and one that is over.
            let lease = [0, u64::MAX, 1][number / LEASES % 3];
            twins.kernel.lease_pins(lease)?;
            twins.model.lease.set(lease);
        }
        twins.model.nanos.set(steady_nanos(MARGIN));
        let pins = twins.model.pins.borrow().len();
        let action = twins.run(&frame).with_context(|| format!("frame {number}"))?;
        let model = &twins.model;
        made[usize::from(model.lease.get() == 1)] += model.pins.borrow().len() - pins;
        if matches!(action, Action::Tx | Action::Redirect) {
            sent.push(frame);
        }
        if number % 100 == 99 {
            twins.compare_tables().with_context(|| format!("after {number}"))?;
        }
    }
    twins.compare_tables()?;
    let model = &twins.model;
    ensure!(made[1] == 0, "{} pins were made past the lease", made[1]);
    let noted = !model.notes.borrow().is_empty();
    ensure!(noted || made[0] == 0, "{} pins were made without a note", made[0]);
    for (&reason, count) in &model.verdicts {
        *met.entry(reason).or_default() += count[0];
    }
    let mut sum = BackendCount::default();
    for mut count in model.counts.values().copied() {
        // What is unanswered is no number: there is a moment in it, and no sum.
        count[5] = 0;
        for (sum, count) in sum.iter_mut().zip(count) {
            *sum += count;
        }
    }
    sum[5] = model.silences_ended;
    Ok((sum, made[0]))
}

/// `LB_EPOCHS` asks for fewer, for a machine on which all take minutes; they are the same ones.
fn epochs() -> Result<u64> {
    let Ok(asked) = std::env::var("LB_EPOCHS") else { return Ok(EPOCHS) };
    asked.parse().with_context(|| format!("LB_EPOCHS={asked} is no number"))
}

#[test]
fn program_and_core_agree_on_every_frame_and_table() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let mut met = HashMap::new();
    let mut sums = BackendCount::default();
    let mut pins = 0;
    let epochs = epochs()?;
    for epoch in 0..epochs {
        let seed = 0x1b_0000 + epoch;
        let (sum, made) =
            run_epoch(seed, 1_500, &mut met).with_context(|| format!("seed {seed:#x}"))?;
        pins += made;
        for (all, one) in sums.iter_mut().zip(sum) {
            *all += one;
        }
    }
    if epochs < EPOCHS {
        return Ok(());
    }
    // What was compared must have met everything that there is.
    use lb_common::verdict::{Drop, Pass};
    for reason in Pass::ALL {
        ensure!(met.contains_key(&reason.index()), "no frame was passed as {}", reason.name());
    }
    for reason in Drop::ALL.iter().filter(|&&reason| reason != Drop::NoHeadroom) {
        ensure!(met.contains_key(&reason.index()), "no frame was dropped as {}", reason.name());
    }
    let names = [
        "packets",
        "bytes",
        "new flows",
        "unpinned",
        "SYNs sent again",
        "silences that ended",
        "second choices",
    ];
    for (name, sum) in names.iter().zip(sums) {
        ensure!(sum > 20, "{sum} {name} in all runs");
    }
    ensure!(pins > 50, "{pins} pins in all runs");
    Ok(())
}

#[test]
fn a_cpu_sends_as_many_icmp_errors_as_its_bucket_has() -> Result<()> {
    const RATE: u32 = 5;
    kernel::stay_on_one_cpu()?;
    let mut random = Random(3);
    let mut twins = Twins::load_limited(objects::BALANCER, PINS, RATE)?;
    // One token in 200 ms, so that none comes within the margin.
    let nanos = steady_nanos(MARGIN);
    twins.install(&generate::state(&mut random, (nanos / 1_000_000_000) as u32))?;
    twins.model.nanos.set(nanos);
    let mut frame = generate::frame(&mut random);
    for _ in 0..10_000 {
        if matches!(decide(&*frame, &twins.model), Verdict::Reply(_)) {
            break;
        }
        frame = generate::frame(&mut random);
        twins.model.icmp_budget = Rc::default();
    }
    twins.model.icmp_budget = Rc::default();
    twins.model.nanos.set(steady_nanos(MARGIN));
    for number in 0..2 * RATE {
        let action = twins.run(&frame).with_context(|| format!("frame {number}"))?;
        ensure!((action == Action::Tx) == (number < RATE), "{action:?} for frame {number}");
    }
    let limited = lb_common::verdict::Drop::IcmpRateLimited.index();
    ensure!(twins.model.verdicts[&limited][0] == u64::from(RATE));
    twins.compare_tables()
}

#[test]
fn maps_of_the_object_have_the_sizes_of_the_types() -> Result<()> {
    Kernel::load(objects::BALANCER, u32::from(BACKENDS), PINS)?.check_sizes()
}

#[test]
fn frame_of_several_buffers_is_forwarded_whole() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let mut random = Random(7);
    let mut twins = Twins::load(objects::BALANCER, PINS)?;
    let now = (steady_nanos(MARGIN) / 1_000_000_000) as u32;
    let mut state = generate::state(&mut random, now);
    for backend in &mut state.backends {
        backend.mtu = 9_000;
        backend.flags |= lb_common::abi::backend_flags::USABLE;
    }
    twins.install(&state)?;
    let Twins { kernel, model } = &mut twins;
    let mut sent = 0;
    for _ in 0..2_000 {
        let frame = generate::frame(&mut random);
        model.nanos.set(steady_nanos(MARGIN));
        kernel.run(&frame)?;
        if model.run(&frame, INGRESS).0 != Action::Tx || frame[12..14] != [8, 0] {
            continue;
        }
        // The same headers with 8,000 bytes more: what the first buffer does not hold.
        let mut long = frame.clone();
        let len = u16::from_be_bytes([frame[16], frame[17]]);
        if usize::from(len) + 14 != frame.len() {
            continue;
        }
        long[16..18].copy_from_slice(&(len + 7_000).to_be_bytes());
        long.resize(frame.len() + 7_000, 0xa5);
        model.nanos.set(steady_nanos(MARGIN));
        let (action, out) = kernel.run(&long)?;
        let (expected, expected_out) = model.run(&long, INGRESS);
        ensure!(action == expected as u32, "the program says {action}, the core {expected:?}");
        let at = out.iter().zip(&expected_out).position(|(a, b)| a != b);
        ensure!(
            out == expected_out,
            "{} bytes, the core {}; the first that differs is {at:?}",
            out.len(),
            expected_out.len()
        );
        sent += 1;
    }
    ensure!(sent > 50, "only {sent} frames were of use");
    Ok(())
}
