//! Does the BPF object decide and rewrite as the core does on the host, byte for byte?

mod generate;
mod kernel;
mod model;

use std::{collections::HashMap, rc::Rc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use generate::{BACKENDS, INGRESS, Random, State};
use kernel::Kernel;
use lb_common::abi::{Flow, FlowValue, Owners, Slot, SynBudget, Unanswered};
use model::{Action, BackendCount, Model};

const PINS: u32 = 180;
/// Random states, each with frames of its own.
const EPOCHS: u64 = 30;
/// Frames after which the lease of pins changes.
const LEASES: usize = 150;

/// Nanoseconds of the clock that the program reads.
fn coarse_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec; the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A moment at which neither the second nor the tick changes before the program has run.
fn steady_nanos() -> u64 {
    const MARGIN: u64 = 50_000_000;
    let is_steady = |now: u64| {
        let soon = now + MARGIN;
        now / 1_000_000_000 == soon / 1_000_000_000
            && Unanswered::tick(now) == Unanswered::tick(soon)
    };
    loop {
        let now = coarse_nanos();
        if is_steady(now) {
            return now;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn install(state: &State, kernel: &mut Kernel, model: &mut Model) -> Result<()> {
    for &(key, value) in &state.services_v4 {
        kernel.put_service_v4(key, value).context("put a service")?;
        model.services_v4.insert(key, value);
        model.budgets.insert(value.id, Rc::new(SynBudget::default()));
    }
    for &(key, value) in &state.services_v6 {
        kernel.put_service_v6(key, value)?;
        model.services_v6.insert(key, value);
        model.budgets.insert(value.id, Rc::new(SynBudget::default()));
    }
    for (service, slots) in &state.rings {
        kernel.put_ring(*service, slots).context("publish a ring")?;
        let ring = slots.iter().map(|&word| {
            let slot = Slot::new(Owners::from_word(word as u32));
            slot.set_stamps((word >> 32) as u16, (word >> 48) as u16);
            Rc::new(slot)
        });
        model.rings.insert(*service, ring.collect());
    }
    for (id, &backend) in state.backends.iter().enumerate() {
        kernel.put_backend(u16::try_from(id)?, backend)?;
        model.backends.push(backend);
    }
    for &(key, value) in &state.pins {
        kernel.put_pin(key, value).context("put a pin")?;
        model.pins.borrow_mut().insert(key, Rc::new(Flow::new(value)));
    }
    for &(key, value) in &state.tracked {
        kernel.put_tracked(key, value)?;
        model.tracked.borrow_mut().insert(key, Rc::new(Flow::new(value)));
    }
    for &(key, value) in &state.connections {
        kernel.put_connection(key, value)?;
        model.connections.borrow_mut().insert(key, Rc::new(Flow::new(value)));
    }
    for &(key, value) in &state.fragments {
        kernel.put_fragment(key, value).context("put a fragment")?;
        model.fragments.borrow_mut().insert(key, value);
    }
    for &vip in &state.vips {
        kernel.put_vip(vip)?;
        model.vips.insert(vip, 1);
    }
    for &(id, unanswered) in &state.unanswered {
        kernel.put_unanswered(id, unanswered.0)?;
        model.counts.insert(id, [0, 0, 0, 0, 0, unanswered.0, 0]);
    }
    for (index, &mac) in state.own_macs.iter().enumerate() {
        kernel.put_own_mac(u32::try_from(index)?, mac)?;
        model.own_macs[index] = mac;
    }
    Ok(())
}

fn plain<K: Copy + Eq + std::hash::Hash>(flows: &HashMap<K, Rc<Flow>>) -> HashMap<K, FlowValue> {
    flows.iter().map(|(&key, flow)| (key, flow.get())).collect()
}

/// Compares what both have written.
fn compare_tables(kernel: &mut Kernel, model: &Model) -> Result<()> {
    ensure!(kernel.pins()? == plain(&model.pins.borrow()), "pins differ");
    ensure!(kernel.tracked()? == plain(&model.tracked.borrow()), "tracked flows differ");
    ensure!(kernel.connections()? == plain(&model.connections.borrow()), "connections differ");
    ensure!(kernel.fragments()? == *model.fragments.borrow(), "fragments differ");
    for (&service, slots) in &model.rings {
        let slots: Vec<u64> = slots
            .iter()
            .map(|slot| {
                u64::from(slot.owners().to_word())
                    | u64::from(slot.unpinned()) << 32
                    | u64::from(slot.pinned()) << 48
            })
            .collect();
        ensure!(kernel.ring(service)? == slots, "the ring of service {service} differs");
    }
    ensure!(kernel.notes()? == *model.notes.borrow(), "notes of pins differ");
    let (verdicts, counts) = (kernel.verdicts()?, kernel.counts()?);
    ensure!(verdicts == model.verdicts, "verdicts: {verdicts:?}, the core {:?}", model.verdicts);
    ensure!(counts == model.counts, "counts: {counts:?}, the core {:?}", model.counts);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `frames` random frames over one random state through both. What went to backends, and how many
/// pins were made.
fn run_epoch(
    seed: u64,
    frames: usize,
    met: &mut HashMap<u32, u64>,
) -> Result<(BackendCount, usize)> {
    let mut random = Random(seed);
    let mut kernel = Kernel::load(u32::from(BACKENDS), PINS)?;
    let mut model = Model::new(PINS as usize);
    let nanos = steady_nanos();
    let state = generate::state(&mut random, (nanos / 1_000_000_000) as u32);
    install(&state, &mut kernel, &mut model)?;
    ensure!(kernel.index_is_of_use()?, "the buckets of the services' index are all alike");
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
            kernel.lease_pins(lease)?;
            model.lease.set(lease);
        }
        model.nanos.set(steady_nanos());
        let pins = model.pins.borrow().len();
        let (action, out) = kernel.run(&frame)?;
        let (expected, expected_out) = model.run(&frame, INGRESS);
        made[usize::from(model.lease.get() == 1)] += model.pins.borrow().len() - pins;
        ensure!(
            action == expected as u32,
            "frame {number}: the program says {action}, the core {expected:?}\n{}",
            hex(&frame)
        );
        ensure!(
            out == expected_out,
            "frame {number}, {expected:?}\nin      {}\nprogram {}\ncore    {}",
            hex(&frame),
            hex(&out),
            hex(&expected_out)
        );
        if matches!(expected, Action::Tx | Action::Redirect) {
            sent.push(frame);
        }
        if number % 100 == 99 {
            compare_tables(&mut kernel, &model).with_context(|| format!("after {number}"))?;
        }
    }
    compare_tables(&mut kernel, &model)?;
    ensure!(made[1] == 0, "{} pins were made past the lease", made[1]);
    let noted = !model.notes.borrow().is_empty();
    ensure!(noted || made[0] == 0, "{} pins were made without a note", made[0]);
    for (&reason, count) in &model.verdicts {
        *met.entry(reason).or_default() += count[0];
    }
    let mut sum = BackendCount::default();
    for count in model.counts.values() {
        for (sum, count) in sum.iter_mut().zip(count) {
            *sum += count;
        }
    }
    // In place of what is unanswered, of which there is no sum.
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
fn maps_of_the_object_have_the_sizes_of_the_types() -> Result<()> {
    Kernel::load(u32::from(BACKENDS), PINS)?.check_sizes()
}

#[test]
fn frame_of_several_buffers_is_forwarded_whole() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let mut random = Random(7);
    let mut kernel = Kernel::load(u32::from(BACKENDS), PINS)?;
    let mut model = Model::new(PINS as usize);
    let mut state = generate::state(&mut random, (steady_nanos() / 1_000_000_000) as u32);
    for backend in &mut state.backends {
        backend.mtu = 9_000;
        backend.flags |= lb_common::abi::backend_flags::USABLE;
    }
    install(&state, &mut kernel, &mut model)?;
    let mut sent = 0;
    for _ in 0..2_000 {
        let frame = generate::frame(&mut random);
        model.nanos.set(steady_nanos());
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
        model.nanos.set(steady_nanos());
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
