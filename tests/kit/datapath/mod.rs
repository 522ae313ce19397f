//! The loaded object beside the core: the same tables in both, the same frames through both, and
//! whatever differs is an error.

pub mod frames;
pub mod generate;
pub mod hook;
pub mod kernel;
pub mod model;
mod raw_ip;
pub mod routes;
mod wide;

use std::{collections::HashMap, hash::Hash, rc::Rc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{
    BackendCounter, Flow, FlowValue, NatConnection, Owners, SYN_MARKS, Slot, TokenBucket,
    Unanswered,
};

use self::{
    generate::{BACKENDS, State},
    hook::Hook,
    kernel::{FLOWS, Kernel},
    model::{Action, BackendCount, Model},
};

/// Nanoseconds of the clock that the program reads.
#[must_use]
pub fn coarse_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec; the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether the program takes two moments for one: the second and the tick are the same.
#[must_use]
pub fn is_same_moment(one: u64, other: u64) -> bool {
    one / 1_000_000_000 == other / 1_000_000_000 && Unanswered::tick(one) == Unanswered::tick(other)
}

/// A moment at which neither the second nor the tick changes within `margin`.
#[must_use]
pub fn steady_nanos(margin: Duration) -> u64 {
    loop {
        let now = coarse_nanos();
        if is_same_moment(now, now + margin.as_nanos() as u64) {
            return now;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The object and the core, with the same tables.
pub struct Twins {
    /// The object in the kernel.
    pub kernel: Kernel,
    /// The core.
    pub model: Model,
    /// Answers at tc to clients of known MAC addresses: that the kernel has written, and that the program has.
    pub resolved: [u64; 2],
}

impl Twins {
    /// Loads the object, with room for so many pins; the tables are empty.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load(object: &[u8], pins: u32) -> Result<Self> {
        Self::load_limited(object, pins, u32::MAX)
    }

    /// The same where each CPU may send so many ICMP errors in a second.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load_limited(object: &[u8], pins: u32, icmp_rate: u32) -> Result<Self> {
        Self::load_at(Hook::Xdp, object, pins, icmp_rate)
    }

    /// The same for a program at this hook.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load_at(hook: Hook, object: &[u8], pins: u32, icmp_rate: u32) -> Result<Self> {
        let backends = u32::from(BACKENDS);
        let kernel = Kernel::load_at(hook, object, backends, pins, FLOWS, icmp_rate)?;
        let model = Model { hook, ..Model::new(pins as usize, icmp_rate) };
        Ok(Self { kernel, model, resolved: [0; 2] })
    }

    /// Puts a state into both, whose tables are empty.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn install(&mut self, state: &State) -> Result<()> {
        let Self { kernel, model, .. } = self;
        let tables = &mut model.tables;
        for &(key, value) in &state.services_v4 {
            kernel.put_service_v4(key, value).context("put a service")?;
            tables.services_v4.insert(key, value);
        }
        for &(key, value) in &state.services_v6 {
            kernel.put_service_v6(key, value)?;
            tables.services_v6.insert(key, value);
        }
        kernel.put_wide(&state.wide).context("put services with several ports")?;
        tables.wide.clone_from(&state.wide);
        for value in state.services() {
            tables.budgets.insert(value.id, Rc::new(TokenBucket::default()));
            if value.syn_budget > 0 {
                // The CPU's own share is as large, or makes few pins.
                let share = [0, value.syn_budget, 40][usize::from(value.id) % 3];
                kernel.put_share(value.id, share)?;
                tables.budgets[&value.id].share.store(share);
            }
        }
        for (service, slots) in &state.rings {
            kernel.put_ring(*service, slots).context("publish a ring")?;
            let ring = slots.iter().map(|&word| slot_of(word));
            tables.rings.insert(*service, ring.collect());
        }
        for (id, &backend) in state.backends.iter().enumerate() {
            kernel.put_backend(u16::try_from(id)?, backend)?;
            tables.backends.get_mut().push(backend);
            tables.counters.push(BackendCounter::default());
        }
        for &(key, value) in &state.pins {
            kernel.put_pin(key, value).context("put a pin")?;
            tables.pins.get_mut().insert(key, Rc::new(Flow::new(value)));
        }
        for &(key, value) in &state.tracked {
            kernel.put_tracked(key, value)?;
            tables.tracked.get_mut().insert(key, Rc::new(Flow::new(value)));
        }
        for &(key, value) in &state.connections {
            kernel.put_connection(key, value)?;
            tables.connections.get_mut().insert(key, Rc::new(Flow::new(value)));
        }
        for &(key, value) in &state.fragments {
            kernel.put_fragment(key, value).context("put a fragment")?;
            tables.fragments.get_mut().insert(key, value);
        }
        for &vip in &state.vips {
            kernel.put_vip(vip)?;
            tables.vips.insert(vip);
        }
        for &(key, id) in &state.reverse_nat {
            kernel.put_reverse_nat(key, id)?;
            tables.reverse_nat.insert(key, id);
        }
        kernel.put_reverse_ranges(&state.reverse_ranges).context("put ranges of sources")?;
        tables.reverse_ranges.extend(state.reverse_ranges.iter().copied());
        for &(id, unanswered) in &state.unanswered {
            kernel.put_unanswered(id, unanswered.0)?;
        }
        for (index, &mac) in state.own_macs.iter().enumerate() {
            kernel.put_own_mac(u32::try_from(index)?, mac)?;
        }
        tables.own_macs = state.own_macs.iter().map(|own| own.mac).collect();
        for &(key, id) in &state.peer_macs {
            kernel.put_peer_mac(key, id)?;
            tables.peer_macs.insert(key, id);
        }
        model.set_counts(counts_of(state));
        Ok(())
    }

    /// Runs a frame through both, which must do the same with it; [`Model::segment`] shows whether it is a GSO frame.
    ///
    /// # Errors
    ///
    /// They do not, or the kernel refuses the frame.
    pub fn run(&mut self, frame: &[u8]) -> Result<Action> {
        let Self { kernel, model, resolved } = self;
        let (action, out) = kernel.run_segmented(frame, model.segment)?;
        let (expected, mut expected_out) = model.run(frame, model.hook.ingress());
        if model.is_resolved && expected_out[..12] != frame[..12] {
            let by_kernel = out.get(..12) == frame.get(..12);
            resolved[usize::from(!by_kernel)] += 1;
            if by_kernel {
                expected_out[..12].copy_from_slice(&frame[..12]);
            }
        }
        ensure!(
            action == model.hook.code(expected),
            "the program returns {action}, the core {expected:?}\n{}",
            hex(frame)
        );
        ensure!(
            out == expected_out,
            "{expected:?}\nin      {}\nprogram {}\ncore    {}",
            hex(frame),
            hex(&out),
            hex(&expected_out)
        );
        Ok(expected)
    }

    /// Compares the writes of both.
    ///
    /// # Errors
    ///
    /// They have not written the same.
    pub fn compare_tables(&mut self) -> Result<()> {
        let Self { kernel, model, .. } = self;
        let tables = &model.tables;
        ensure!(kernel.pins()? == plain(&tables.pins.borrow()), "pins differ");
        ensure!(kernel.tracked()? == plain(&tables.tracked.borrow()), "tracked flows differ");
        ensure!(kernel.connections()? == plain(&tables.connections.borrow()), "connections differ");
        for (&place, mark) in &*tables.handshakes.borrow() {
            ensure!(kernel.handshake(place)? == mark.load(), "the handshake at {place} differs");
        }
        ensure!(kernel.fragments()? == *tables.fragments.borrow(), "fragments differ");
        for (&service, slots) in &tables.rings {
            let slots: Vec<u64> = slots.iter().map(|slot| word_of(slot)).collect();
            ensure!(kernel.ring(service)? == slots, "the ring of service {service} differs");
        }
        ensure!(kernel.notes()? == *tables.notes.borrow(), "notes of pins differ");
        let (verdicts, counts) = (kernel.verdicts()?, kernel.counts()?);
        ensure!(
            verdicts == model.verdicts,
            "verdicts: {verdicts:?}, the core {:?}",
            model.verdicts
        );
        ensure!(counts == model.counts, "counts: {counts:?}, the core {:?}", model.counts);
        let known = kernel.nat_connections()?;
        let of_core = tables.nat_connections.borrow();
        let of_core: HashMap<_, _> =
            of_core.iter().map(|(key, value)| (*key, value.get())).collect();
        ensure!(known == of_core, "connections in mode nat: {known:?}, the core {of_core:?}");
        let returns = kernel.returns()?;
        ensure!(returns == model.returns, "answers: {returns:?}, the core {:?}", model.returns);
        Ok(())
    }

    /// Copies the program's writes to the core, when both have not seen the same time.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn adopt(&mut self) -> Result<()> {
        let Self { kernel, model, .. } = self;
        let tables = &mut model.tables;
        *tables.pins.get_mut() = shared(kernel.pins()?);
        *tables.tracked.get_mut() = shared(kernel.tracked()?);
        *tables.connections.get_mut() = shared(kernel.connections()?);
        for (&place, mark) in &*tables.handshakes.borrow() {
            mark.store(kernel.handshake(place)?);
        }
        *tables.fragments.get_mut() = kernel.fragments()?;
        for (service, ring) in &mut tables.rings {
            *ring = kernel.ring(*service)?.into_iter().map(slot_of).collect();
        }
        let known = kernel.nat_connections()?.into_iter();
        *tables.nat_connections.get_mut() =
            known.map(|(key, value)| (key, Rc::new(NatConnection::new(value)))).collect();
        model.verdicts = kernel.verdicts()?;
        model.set_counts(kernel.counts()?);
        model.returns = kernel.returns()?;
        Ok(())
    }

    /// Forgets every SYN that the program has marked, those included that the core knows nothing of.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn forget_syns(&mut self) -> Result<()> {
        for index in 0..SYN_MARKS {
            self.kernel.clear_syn_mark(index)?;
        }
        self.model.tables.seen.borrow_mut().clear();
        Ok(())
    }

    /// Brings both back to a state that was installed in them, which their services, VIPs and MAC
    /// addresses are still of; the ages of flows may be others. Both have written the same since.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn reset(&mut self, state: &State) -> Result<()> {
        let Self { kernel, model, .. } = self;
        let tables = &mut model.tables;
        let pins = tables.pins.get_mut();
        undo(pins, &state.pins, |key, value| match value {
            Some(value) => kernel.put_pin(*key, value),
            None => kernel.remove_pin(key),
        })?;
        let tracked = tables.tracked.get_mut();
        undo(tracked, &state.tracked, |key, value| match value {
            Some(value) => kernel.put_tracked(*key, value),
            None => kernel.remove_tracked(key),
        })?;
        let connections = tables.connections.get_mut();
        undo(connections, &state.connections, |key, value| match value {
            Some(value) => kernel.put_connection(*key, value),
            None => kernel.remove_connection(key),
        })?;
        for (key, _) in tables.nat_connections.get_mut().drain() {
            kernel.remove_nat_connection(&key)?;
        }
        for (index, _) in tables.nat_recent.get_mut().drain() {
            kernel.clear_nat_recent(index)?;
        }
        for (place, _) in tables.handshakes.get_mut().drain() {
            kernel.clear_handshake(place)?;
        }
        let fragments = tables.fragments.get_mut();
        let initial: HashMap<_, _> = state.fragments.iter().copied().collect();
        for key in fragments.keys().filter(|key| !initial.contains_key(key)) {
            kernel.remove_fragment(key)?;
        }
        for (key, value) in &initial {
            if fragments.get(key) != Some(value) {
                kernel.put_fragment(*key, *value)?;
            }
        }
        *fragments = initial;
        for (service, words) in &state.rings {
            let ring = tables.rings.entry(*service).or_default();
            for (index, (slot, &word)) in ring.iter_mut().zip(words).enumerate() {
                if word_of(slot) != word {
                    kernel.put_slot(*service, u32::try_from(index)?, word)?;
                    *slot = slot_of(word);
                }
            }
        }
        let backends = tables.backends.get_mut().iter_mut();
        for (id, (backend, &initial)) in backends.zip(&state.backends).enumerate() {
            if *backend != initial {
                kernel.put_backend(u16::try_from(id)?, initial)?;
                *backend = initial;
            }
        }
        let counts = counts_of(state);
        for id in model.counts.keys().chain(counts.keys()) {
            kernel.put_unanswered(*id, counts.get(id).map_or(0, |count| count[5]))?;
        }
        for (index, _) in tables.seen.get_mut().drain() {
            kernel.clear_syn_mark(index)?;
        }
        kernel.clear_notes()?;
        tables.notes.get_mut().clear();
        kernel.lease_pins(0)?;
        tables.lease.set(0);
        model.set_counts(counts);
        Ok(())
    }
}

/// Restores a table of flows; `write` sets each value that differs in the kernel, or deletes a flow.
fn undo<K: Copy + Eq + Hash>(
    flows: &mut HashMap<K, Rc<Flow>>,
    initial: &[(K, FlowValue)],
    mut write: impl FnMut(&K, Option<FlowValue>) -> Result<()>,
) -> Result<()> {
    let initial: HashMap<K, FlowValue> = initial.iter().copied().collect();
    for key in flows.keys().filter(|key| !initial.contains_key(key)) {
        write(key, None)?;
    }
    flows.retain(|key, _| initial.contains_key(key));
    for (key, &value) in &initial {
        if flows.get(key).is_none_or(|flow| flow.get() != value) {
            write(key, Some(value))?;
            flows.insert(*key, Rc::new(Flow::new(value)));
        }
    }
    Ok(())
}

/// The backends' counts before any packet.
fn counts_of(state: &State) -> HashMap<u16, BackendCount> {
    let count = |&(id, word): &(u16, Unanswered)| (id, [0, 0, 0, 0, 0, word.0, 0]);
    state.unanswered.iter().map(count).collect()
}

fn plain<K: Copy + Eq + Hash>(flows: &HashMap<K, Rc<Flow>>) -> HashMap<K, FlowValue> {
    flows.iter().map(|(&key, flow)| (key, flow.get())).collect()
}

fn shared<K: Eq + Hash>(flows: HashMap<K, FlowValue>) -> HashMap<K, Rc<Flow>> {
    flows.into_iter().map(|(key, value)| (key, Rc::new(Flow::new(value)))).collect()
}

/// A slot of this word.
#[must_use]
pub fn slot_of(word: u64) -> Rc<Slot> {
    let slot = Slot::new(Owners::from_word(word as u32));
    slot.set_stamps((word >> 32) as u16, (word >> 48) as u16);
    Rc::new(slot)
}

/// The word of a slot.
#[must_use]
pub fn word_of(slot: &Slot) -> u64 {
    u64::from(slot.owners().to_word())
        | u64::from(slot.unpinned()) << 32
        | u64::from(slot.pinned()) << 48
}

/// Bytes for people.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
