//! Packets: the core on the host against the programs in the kernel for XDP and tc, verdict by verdict and byte by
//! byte, and the tables that both have written.
//!
//! An input is a state of the tables and operations, apart by [`APART`]: frames, as they are
//! or made by a few bytes and changed in places; and `lbd`'s writes into the tables.

use std::{mem, time::Duration};

use anyhow::{Context as _, Result};
use kit::datapath::{
    Twins, coarse_nanos, frames,
    generate::{self, BACKENDS, OWN, Random, State, VIP_V4, VIP_V6},
    hook::Hook,
    is_same_moment,
    kernel::stay_on_one_cpu,
    slot_of, steady_nanos,
};
use lb_common::{
    abi::{Owners, backend_flags, stamp},
    packet::{ethernet, ipv4, ipv6},
    rewrite,
};
use lb_datapath::objects;

use crate::{Target, input::Input};

/// The separator of two operations of an input.
const APART: &[u8] = b"\xfb\xfa\xfb";
/// The most operations of an input.
const OPERATIONS: usize = 64;
/// The states of the tables: seeds of [`generate::state`]. The second one has no MAC address of its
/// own, and so takes every frame.
const STATES: [u64; 3] = [1, 11, 3];
const PINS: u32 = 128;
/// The longest frame: more than one buffer of the kernel.
const LONGEST: usize = 6_000;
/// An input takes no longer, unless the machine is busy: then it is run again.
const MARGIN: Duration = Duration::from_millis(10);
/// How often it is run again at most.
const TRIES: usize = 20;

/// The program of a hook with one of [`STATES`].
struct Place {
    twins: Twins,
    seed: u64,
    /// The second that its ages are counted from.
    second: u32,
    state: State,
}

/// Loads the programs, one for each hook and state.
///
/// # Errors
///
/// The kernel refuses them.
pub fn target() -> Result<Target> {
    stay_on_one_cpu()?;
    // The last ones move this thread to namespaces of their own.
    let hooks = [Hook::Xdp, Hook::Tc, Hook::RawIp];
    let places = hooks.iter().flat_map(|&hook| STATES.map(|seed| Place::new(hook, seed)));
    let mut places = places.collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move |bytes| {
        let mut input = Input(bytes);
        let count = places.len();
        let place = &mut places[input.below(count)];
        if let Err(error) = place.agree(input.0) {
            panic!("{error:#}");
        }
    }))
}

impl Place {
    fn new(hook: Hook, seed: u64) -> Result<Self> {
        let mut twins = Twins::load_at(hook, objects::BALANCER, PINS, u32::MAX)?;
        let second = (steady_nanos(MARGIN) / 1_000_000_000) as u32;
        let state = state(hook, seed, second);
        twins.install(&state)?;
        Ok(Self { twins, seed, second, state })
    }

    /// Runs an input, again if the program may have seen another time than the core. What breaks
    /// counts if it does so twice, from tables that are surely alike.
    fn agree(&mut self, bytes: &[u8]) -> Result<()> {
        let mut has_broken = false;
        for _ in 0..TRIES {
            let nanos = steady_nanos(MARGIN);
            let second = (nanos / 1_000_000_000) as u32;
            if second != self.second {
                self.state = state(self.twins.model.hook, self.seed, second);
                self.second = second;
            }
            self.twins.reset(&self.state).context("reset the tables")?;
            self.twins.model.tables.nanos.set(nanos);
            let Err(error) = self.live(bytes) else { return Ok(()) };
            let is_judged = is_same_moment(nanos, coarse_nanos());
            if is_judged && has_broken {
                return Err(error);
            }
            self.twins.adopt().context("read the tables")?;
            if is_judged {
                has_broken = true;
                self.twins.forget_syns().context("forget SYNs")?;
            }
        }
        eprintln!("the machine is too busy: an input was not judged");
        Ok(())
    }

    fn live(&mut self, mut bytes: &[u8]) -> Result<()> {
        for number in 0..OPERATIONS {
            if bytes.is_empty() {
                break;
            }
            let end = bytes.windows(APART.len()).position(|window| window == APART);
            let operation = &bytes[..end.unwrap_or(bytes.len())];
            bytes = end.map_or(&[], |end| &bytes[end + APART.len()..]);
            self.act(&mut Input(operation)).with_context(|| format!("operation {number}"))?;
        }
        self.twins.compare_tables()
    }

    fn act(&mut self, input: &mut Input<'_>) -> Result<()> {
        match input.byte() {
            b'S' => self.set_slot(input),
            b'B' => self.set_backend(input),
            b'L' => {
                let lease = input.of(&[0, u64::MAX, 1]);
                self.twins.kernel.lease_pins(lease)?;
                self.twins.model.tables.lease.set(lease);
                Ok(())
            }
            b'R' => {
                let mut frame = frames::frame(&mut Random(input.long()));
                while !input.is_empty() {
                    let (at, change) = (input.below(frame.len().min(128)), input.byte());
                    frame[at] ^= change;
                }
                self.send(frame)
            }
            b'F' => self.send(input.0.to_vec()),
            kind => self.send(framed(kind, input)),
        }
    }

    fn send(&mut self, mut frame: Vec<u8>) -> Result<()> {
        frame.truncate(LONGEST);
        // The kernel's test run takes no shorter one.
        frame.resize(frame.len().max(ethernet::LEN), 0);
        let hook = self.twins.model.hook;
        hook.fit_frame(&mut frame);
        if !hook.takes(&frame) {
            return Ok(());
        }
        self.twins.run(&frame).map(|_| ())
    }

    /// A slot is given other owners, as by a change of the ring, or is stamped.
    fn set_slot(&mut self, input: &mut Input<'_>) -> Result<()> {
        let rings = &self.state.rings;
        let (service, slots) = &rings[input.below(rings.len())];
        let index = usize::from(input.short()) % slots.len();
        let mut backend = || u16::from(input.byte()) % BACKENDS;
        let owners = Owners { current: backend(), base: backend() };
        let mut age = || match input.byte() {
            0 => 0,
            age => stamp(self.second.wrapping_sub(u32::from(age - 1))),
        };
        let word = u64::from(owners.to_word()) | u64::from(age()) << 32 | u64::from(age()) << 48;
        self.twins.kernel.put_slot(*service, index as u32, word)?;
        let ring = self.twins.model.tables.rings.get_mut(service).context("it has a ring")?;
        ring[index] = slot_of(word);
        Ok(())
    }

    /// A backend changes, as when its next hop does.
    fn set_backend(&mut self, input: &mut Input<'_>) -> Result<()> {
        let id = 1 + u16::from(input.byte()) % (BACKENDS - 1);
        let mut backend = self.state.backends[usize::from(id)];
        let flags = input.byte();
        let bits = [
            (1, backend_flags::USABLE),
            (2, backend_flags::SUSPECT),
            (8, backend_flags::SOFT_DOWN),
        ];
        for (bit, flag) in bits {
            if flags & bit != 0 {
                backend.flags ^= flag;
            }
        }
        if flags & 4 != 0 {
            backend.mtu = input.short();
        }
        backend.l2_len = input.of(&[14, 18, 22, 0]);
        generate::set_tags(&mut backend.l2, backend.l2_len);
        backend.ifindex = input.of(&[generate::INGRESS, 7]);
        self.twins.model.hook.fit_backend(&mut backend);
        self.twins.kernel.put_backend(id, backend)?;
        self.twins.model.tables.backends.get_mut()[usize::from(id)] = backend;
        Ok(())
    }
}

/// The tables of a seed, with ages from `second`.
fn state(hook: Hook, seed: u64, second: u32) -> State {
    let mut state = generate::state(&mut Random(seed), second);
    hook.fit_state(&mut state);
    state
}

/// A packet in a frame to this node: the lengths and the VIP are put right for some kinds.
fn framed(kind: u8, input: &mut Input<'_>) -> Vec<u8> {
    let v6 = kind & 1 != 0;
    let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let mut frame = OWN.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    for _ in 0..kind >> 1 & 3 {
        frame.extend(ethernet::VLAN.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(ethertype.to_be_bytes());
    let mut packet = mem::take(&mut input.0).to_vec();
    let len = packet.len();
    if v6 && len >= ipv6::LEN {
        packet[4..6].copy_from_slice(&((len - ipv6::LEN) as u16).to_be_bytes());
        if kind & 8 != 0 {
            packet[24..40].copy_from_slice(&VIP_V6);
        }
    } else if !v6 && len >= ipv4::LEN {
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        if kind & 8 != 0 {
            packet[16..20].copy_from_slice(&VIP_V4);
        }
        packet[10..12].fill(0);
        let check = !rewrite::fold(rewrite::sum(&packet[..ipv4::LEN]));
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
    frame.extend(packet);
    frame
}
