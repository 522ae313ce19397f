//! A flood through the loaded program, frame by frame, without a network: which flows of clients are sent
//! elsewhere afterwards, with pins and with a table of all flows.
//!
//! The table of all flows is the program's own for tracked UDP, a hash map of the kernel that lets the
//! least recently used go first: each packet looks its flow up, and one that is not found is chosen by the
//! ring and put in. That is what balancers with a flow table do for TCP. Here it gets the same ring, the
//! same changes and the same tuples, as datagrams, and as many entries as there are pins; the kernel reports
//! the memory of each.
//!
//! Clients' flows are opened before a backend drains and after that; then comes the flood, during which
//! every other flow sends a packet now and then; then another change, and a packet of every flow.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    datapath::kernel::{Kernel, stay_on_one_cpu},
    flood::{self, ACK, Aim, FIN, Kind, SYN},
    reports::attack::{Forged, Moved, Run, Tables},
    signals,
};
use lb_common::{
    abi::{
        DEFAULT_ICMP_ERRORS, DEFAULT_PINS, FlowKey, FlowValue, OwnMac, Owners, Service,
        ServiceKeyV4, proto, service_flags, udp_policy,
    },
    hash::FlowKeys,
};
use lb_datapath::objects;
use lb_model::{
    maglev::{self, Member},
    ring,
};

use crate::{
    frames::{OWN, VIP_V4},
    harness::{SLOTS, backend},
};

/// Flows that are opened before the first change, and after it.
const FLOWS: u32 = 20_000;
/// Flows that are opened at the end of the flood.
const LATE: u32 = 2_000;
/// Frames of the floods, and how many in a row have the same tuple. A map that lets the least recently used
/// go first keeps what was looked up since it was put in; a flood that sends everything twice takes that away.
const FLOODS: [(u64, u64); 4] = [(0, 1), (262_144, 1), (1_048_576, 1), (1_048_576, 2)];
/// Frames of a flood between two packets of a flow that is not silent.
const ROUND: u64 = 65_536;
/// Pins that a CPU may make in a second, by default.
const BUDGET: u32 = 20_000;
const BACKENDS: u16 = 3;
const PORT: u16 = 80;
const SEED: [u8; 16] = *b"the node's seed.";
/// The program's return value for a frame that it sends back out.
const XDP_TX: u32 = 3;

/// The table that keeps flows where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    /// Pins, of which each CPU makes so many in a second.
    Lb(u32),
    /// A table of all flows.
    FullTable,
    /// The ring alone.
    Ring,
}

/// A flow of a client, and the backend that it was opened on.
#[derive(Clone, Copy, Debug)]
struct Flow {
    from: (Ipv4Addr, u16),
    backend: u8,
}

/// The program with one service.
struct Rig {
    kernel: Kernel,
    system: System,
    aim: Aim,
}

/// Runs all floods through all systems.
///
/// # Errors
///
/// If the kernel refuses something, or a signal came.
pub fn measure() -> Result<Tables> {
    // In a thread of its own: the rest of the program runs on all CPUs.
    let thread = std::thread::spawn(|| {
        stay_on_one_cpu()?;
        let mut runs = Vec::new();
        for system in [System::Lb(BUDGET), System::Lb(u32::MAX), System::FullTable, System::Ring] {
            // The ring alone remembers nothing, so it is the same with a flood.
            let floods = if system == System::Ring { &FLOODS[..1] } else { &FLOODS[..] };
            for &flood in floods {
                runs.push(run(system, flood, FLOWS)?);
            }
        }
        Ok(Tables { runs, forged: forge(FLOWS)? })
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread of the tables panicked"))?
}

fn run(system: System, (flood_frames, frames_per_tuple): (u64, u64), flows: u32) -> Result<Run> {
    let mut rig = Rig::new(system)?;
    let mut open = rig.open(0..flows)?;
    rig.change(&[1, 3])?;
    open.extend(rig.open(flows..2 * flows)?);
    let before = rig.entries(&open)?.1;

    for number in 0..flood_frames {
        rig.kernel.run(&rig.flood_frame(number / frames_per_tuple))?;
        if number % ROUND == ROUND - 1 {
            ensure!(!signals::caught(), "interrupted");
            for flow in open.iter().step_by(2) {
                rig.send(flow.from, ACK)?;
            }
        }
    }
    let (entries_after, after) = rig.entries(&open)?;
    let late = rig.open(2 * flows..2 * flows + LATE)?;
    rig.change(&[1, 2])?;
    let (mut busy, mut silent) = (Moved::default(), Moved::default());
    for (n, flow) in open.iter().enumerate() {
        let group = if n % 2 == 0 { &mut busy } else { &mut silent };
        group.count(rig.send(flow.from, ACK)? != flow.backend);
    }
    Ok(Run {
        system: system.name(),
        capacity: if system == System::Ring { 0 } else { DEFAULT_PINS },
        table_bytes: system.table().map_or(Ok(0), |table| rig.kernel.memory_bytes(table))?,
        flood_frames,
        frames_per_tuple,
        entries_before: before.len(),
        entries_lost: before.difference(&after).count(),
        entries_after,
        silent,
        busy,
        late: rig.moved(&late)?,
    })
}

/// Forges segments of clients' flows, and counts the flows that change their backend by that.
fn forge(flows: u32) -> Result<Forged> {
    let mut rig = Rig::new(System::Lb(u32::MAX))?;
    let old = rig.open(0..flows)?;
    rig.strike(&old, &[SYN])?;
    let syn_steady = rig.moved(&old)?;
    rig.change(&[1, 3])?;
    let young = rig.open(flows..2 * flows)?;
    let pins = rig.entries(&young)?.1;
    let pinned: Vec<_> = young.into_iter().filter(|flow| pins.contains(&flow.from)).collect();
    // Those on the host that drains are in slots in flux, and only they.
    let draining: Vec<_> = old.into_iter().filter(|flow| flow.backend == 2).collect();
    rig.strike(&draining, &[SYN])?;
    let syn_in_flux = rig.moved(&draining)?;
    rig.change(&[1, 2])?;
    rig.strike(&pinned, &[SYN])?;
    let syn_pinned = rig.moved(&pinned)?;
    rig.strike(&pinned, &[FIN | ACK, SYN])?;
    let fin_and_syn_pinned = rig.moved(&pinned)?;
    Ok(Forged { syn_steady, syn_in_flux, syn_pinned, fin_and_syn_pinned })
}

impl System {
    fn name(self) -> String {
        match self {
            Self::Lb(BUDGET) => "lb".into(),
            Self::Lb(_) => "lb, no SYN budget".into(),
            Self::FullTable => "table of all flows".into(),
            Self::Ring => "ring alone".into(),
        }
    }

    fn table(self) -> Option<&'static str> {
        match self {
            Self::Lb(_) => Some("PINS"),
            Self::FullTable => Some("TRACKED"),
            Self::Ring => None,
        }
    }
}

impl Rig {
    fn new(system: System) -> Result<Self> {
        let mut kernel = Kernel::load_with(
            objects::BALANCER,
            8,
            DEFAULT_PINS,
            DEFAULT_PINS,
            DEFAULT_ICMP_ERRORS,
        )?;
        kernel.put_own_mac(0, OwnMac { mac: OWN, reserved: [0; 2] })?;
        for id in 1..=BACKENDS {
            kernel.put_backend(id, backend(0, id as u8, 1))?;
        }
        let (proto, udp_policy, syn_budget) = match system {
            System::Lb(budget) => (proto::TCP, 0, budget),
            System::FullTable => (proto::UDP, udp_policy::TRACKED, 0),
            System::Ring => (proto::UDP, udp_policy::ONESHOT, 0),
        };
        let service = Service {
            keys: FlowKeys::derive(&SEED, b"web").0,
            slots: SLOTS,
            id: 0,
            udp_policy,
            flags: service_flags::SECOND_CHOICE,
            idle_timeout: 900,
            syn_budget,
        };
        let key = ServiceKeyV4 { address: VIP_V4, port: PORT.into(), proto, reserved: 0 };
        kernel.put_service_v4(key, service)?;
        let owners = table(&[1, 2, 3]).into_iter();
        let slots: Vec<_> =
            owners.map(|current| u64::from(Owners { current, base: 0 }.to_word())).collect();
        kernel.put_ring(0, &slots)?;
        let vip = VIP_V4.into();
        let aim = Aim { mac: OWN, vip, tcp: PORT, udp: PORT, client: Ipv4Addr::UNSPECIFIED };
        Ok(Self { kernel, system, aim })
    }

    /// Lets the ring be that of these backends. The others keep what they have.
    fn change(&mut self, backends: &[u16]) -> Result<()> {
        let slots = self.kernel.ring(0)?.into_iter().zip(table(backends));
        let slots = slots.map(|(word, current)| {
            let owners = ring::step(Owners::from_word(word as u32), current, |_| true);
            // The stamps stay.
            word & !0xffff_ffff | u64::from(owners.to_word())
        });
        self.kernel.put_ring(0, &slots.collect::<Vec<_>>())
    }

    fn flood_frame(&self, number: u64) -> Vec<u8> {
        let kind = if let System::Lb(_) = self.system { Kind::SynNew } else { Kind::Udp };
        flood::frame(kind, &self.aim, number)
    }

    /// Sends a packet of a client; the backend that gets it.
    fn send(&self, from: (Ipv4Addr, u16), flags: u8) -> Result<u8> {
        let frame = match self.system {
            System::Lb(_) => flood::tcp_frame(&self.aim, from, flags, from.0.to_bits()),
            _ => flood::udp_frame(&self.aim, from),
        };
        self.run(&frame)
    }

    fn run(&self, frame: &[u8]) -> Result<u8> {
        let (action, out) = self.kernel.run(frame)?;
        ensure!(action == XDP_TX, "the program answered {action} for a packet of a client");
        // The backends' MAC addresses end in their numbers.
        out.get(5).copied().context("a frame without an address")
    }

    fn open(&self, clients: std::ops::Range<u32>) -> Result<Vec<Flow>> {
        let flows = clients.map(|n| {
            let from = (Ipv4Addr::from(0x0a40_0000 | n), 20_000);
            let backend = self.send(from, SYN)?;
            ensure!(self.send(from, ACK)? == backend, "a flow moved that has just begun");
            Ok(Flow { from, backend })
        });
        flows.collect()
    }

    /// Sends forged segments for each of these.
    fn strike(&self, flows: &[Flow], segments: &[u8]) -> Result<()> {
        for flow in flows {
            for &flags in segments {
                // The client alone knows its sequence numbers.
                let sequence = !flow.from.0.to_bits();
                self.run(&flood::tcp_frame(&self.aim, flow.from, flags, sequence))?;
            }
        }
        Ok(())
    }

    /// Sends a packet of each of these.
    fn moved(&self, flows: &[Flow]) -> Result<Moved> {
        let mut moved = Moved::default();
        for flow in flows {
            moved.count(self.send(flow.from, ACK)? != flow.backend);
        }
        Ok(moved)
    }

    /// How many entries the table has, and which of them are of these flows and name their backends.
    fn entries(&mut self, flows: &[Flow]) -> Result<(usize, HashSet<(Ipv4Addr, u16)>)> {
        let entries: HashMap<FlowKey, FlowValue> = match self.system {
            System::Lb(_) => self.kernel.pins()?,
            System::FullTable => self.kernel.tracked()?,
            System::Ring => HashMap::new(),
        };
        let known = flows.iter().filter(|flow| {
            let source = flow.from.0.to_ipv6_mapped().octets();
            let key = FlowKey::new(source, flow.from.1.into(), 0);
            entries.get(&key).is_some_and(|value| value.backend == u16::from(flow.backend))
        });
        Ok((entries.len(), known.map(|flow| flow.from).collect()))
    }
}

/// The owners of all slots, if these are the backends.
fn table(backends: &[u16]) -> Vec<u16> {
    let member =
        |&id: &u16| Member { address: IpAddr::from([10, 0, 0, id as u8]).into(), weight: 1 };
    let members: Vec<_> = backends.iter().map(member).collect();
    let owners = maglev::table(&members, &SEED, SLOTS).into_iter();
    owners.map(|index| backends[usize::from(index)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_moves_nobody_with_pins_and_many_with_a_table_of_all_flows() -> Result<()> {
        if !kit::can_run() {
            return Ok(());
        }
        stay_on_one_cpu()?;
        let flood = (3 * u64::from(DEFAULT_PINS), 2);
        let ours = run(System::Lb(u32::MAX), flood, 1_000)?;
        assert!(ours.entries_before > 200, "{ours:?}");
        assert_eq!(ours.entries_lost, 0);
        assert_eq!((ours.silent.moved, ours.busy.moved, ours.late.moved), (0, 0, 0));
        let full = run(System::FullTable, flood, 1_000)?;
        assert_eq!(full.entries_before, 2_000);
        assert!(full.silent.moved > full.silent.flows / 5, "{full:?}");
        // The same memory, to a hundredth.
        assert!(full.table_bytes.abs_diff(ours.table_bytes) < ours.table_bytes / 100, "{full:?}");
        Ok(())
    }

    #[test]
    fn drained_backends_own_no_slot() {
        assert!(table(&[1, 3]).iter().all(|owner| [1, 3].contains(owner)));
        assert_eq!(table(&[1, 2, 3]).len(), SLOTS as usize);
    }
}
