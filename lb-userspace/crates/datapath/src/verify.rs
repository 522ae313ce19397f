//! The program once more, over copies of the maps: what it does with a packet, without side effects.
//!
//! Nothing here is attached or stays pinned. The copies hold what the configuration is made of, and
//! the entries that the decision on each packet depends on; times are moved by as much as has
//! passed since they were copied.
//!
//! The same object is loaded once more, and its tag compared with that of the attached program. A test run's
//! action, frame and counter are compared with the explanation. This takes about a second, on a thread beside the
//! daemon's task.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, TestRun as _, maps::MapData, programs::TestRunOptions};
use lb_common::{
    abi::{
        self, Backend, BackendCounter, FlowValue, OwnMac, PeerKey, Slot, TokenBucket, Unanswered,
        VerdictCounter, VipKey,
    },
    verdict::{Drop, Pass, REASONS},
};
use lb_inspect::explain::{Case, Entry, Ran, View as _};
use lb_model::{desired::ServiceKey, entry, flow::FlowRef, settings::Limits, time::coarse_nanos};
use lb_plane::Maps as _;
use zerocopy::IntoBytes as _;

use super::{
    folders, load,
    maps::{self, OpenMaps},
    mmap::Mapped,
    pin_log::PinLog,
    reverse_nat::ReverseNat,
    service_index::{ServiceIndex, key_v4, key_v6},
    sys::{self, Table},
    variants::{self, BALANCE},
    wide_index::WideIndex,
    xdp::Xdp,
};

const SECOND: u64 = 1_000_000_000;
/// Flows that the copies have room for: those of one packet.
const FLOWS: u32 = 1_024;
/// The longest frame that is given with the interface that it comes in on: longer ones take several
/// buffers, for which the kernel takes no context.
const ONE_BUFFER: usize = 3_000;

/// Copies of what the program reads.
#[derive(Debug)]
pub(crate) struct Specimen {
    cases: Vec<Case>,
    limits: Limits,
    cpus: u32,
    services: BTreeMap<ServiceKey, abi::Service>,
    vips: Vec<VipKey>,
    own_macs: Vec<OwnMac>,
    peer_macs: BTreeMap<PeerKey, u16>,
    backends: BTreeMap<u16, Backend>,
    /// The words of the rings that packets lead to, by service.
    rings: BTreeMap<u16, Vec<u64>>,
    lease: u64,
    /// Where something may be pinned for a moment.
    folder: PathBuf,
    /// The tag of the program that packets meet.
    tag: Option<u64>,
}

impl Specimen {
    /// Copies what these packets need.
    pub(crate) fn of(xdp: &Xdp, cases: Vec<Case>) -> Result<Self> {
        let mut rings = BTreeMap::new();
        for entry in cases.iter().flat_map(|case| &case.entries) {
            let Entry::Slot(service, ..) = entry else { continue };
            if rings.contains_key(service) {
                continue;
            }
            let word = |slot: &Slot| {
                let owners = u64::from(slot.owners().to_word());
                owners | u64::from(slot.unpinned()) << 32 | u64::from(slot.pinned()) << 48
            };
            rings.insert(*service, xdp.ring(*service)?.iter().map(word).collect());
        }
        let mut vips = Vec::new();
        xdp.maps.vips.walk(|key, _| vips.push(key))?;
        let limits = Limits {
            pins: FLOWS,
            tracked_flows: FLOWS,
            nat_connections: FLOWS,
            connections: FLOWS,
            fragments: FLOWS,
            icmp_errors: xdp.icmp_rate(),
            ..xdp.limits
        };
        let tag = match load::program_info(&xdp.object) {
            Ok(info) => Some(info.tag()),
            Err(_) => None,
        };
        Ok(Self {
            cases,
            limits,
            cpus: xdp.possible_cpus,
            services: xdp.services()?,
            vips,
            peer_macs: xdp.peer_macs()?,
            own_macs: (0..abi::OWN_MACS).filter_map(|n| xdp.own_mac(n).ok()?).collect(),
            backends: xdp.backends()?,
            rings,
            lease: xdp.pin_lease(),
            folder: folders::copies(&xdp.settings.pin_dir),
            tag,
        })
    }

    /// Runs every packet.
    pub fn run(self) -> Result<Vec<Result<Ran>>> {
        let copy = Copy::make(&self)?;
        Ok(self.cases.iter().map(|case| copy.run(&self, case)).collect())
    }
}

/// The program and its maps.
struct Copy {
    object: Ebpf,
    maps: OpenMaps,
    pin_log: PinLog,
    rings: BTreeMap<u16, Mapped<Slot>>,
    _index: ServiceIndex,
}

/// A folder of pins, which goes with this.
struct Folder<'a>(&'a Path);

impl std::ops::Drop for Folder<'_> {
    fn drop(&mut self) {
        // What can't be removed is found by the next one.
        let _ = fs::remove_dir_all(self.0);
    }
}

impl Copy {
    fn make(specimen: &Specimen) -> Result<Self> {
        // The handles are opened by name, and RINGS has to be made before the object is loaded; when
        // all is open, nothing needs a name any more. There is one copy at a time.
        let folder = Folder(&specimen.folder);
        let _ = fs::remove_dir_all(folder.0);
        fs::create_dir_all(folder.0).with_context(|| format!("make {}", folder.0.display()))?;
        let mut object = load::load_maps(folder.0, &specimen.limits, specimen.cpus)?;
        let maps = OpenMaps::open(folder.0)?;
        let program = variants::loaded(&mut object, BALANCE.native);
        let program = program.context("load the program once more")?;
        if let Some(tag) = specimen.tag {
            let own = program.info()?.tag();
            ensure!(own == tag, "the program that was loaded is another one: {own:x}, not {tag:x}");
        }
        for (key, service) in &specimen.services {
            if let Some(wide) = entry::wide_key(key) {
                maps.wide_services.as_ref().context("no map WIDE_SERVICES")?.put(&wide, service)?;
                continue;
            }
            match key.vip {
                std::net::IpAddr::V4(vip) => maps.services_v4.put(&key_v4(vip, key), service)?,
                std::net::IpAddr::V6(vip) => maps.services_v6.put(&key_v6(vip, key), service)?,
            }
        }
        let (buckets, entries) = maps::open_index(folder.0)?;
        let index = ServiceIndex::open(&buckets, entries, &specimen.services)?;
        WideIndex::open(&maps)?;
        for vip in &specimen.vips {
            maps.vips.put(vip, &1)?;
        }
        for (index, mac) in (0_u32..).zip(&specimen.own_macs) {
            maps.own_macs.put(&index, mac)?;
        }
        let peers = maps.peer_macs.as_ref().context("no map PEER_MACS")?;
        for (key, id) in &specimen.peer_macs {
            peers.put(key, &u32::from(*id))?;
        }
        for (id, backend) in &specimen.backends {
            maps.backends.put(&(*id).into(), backend)?;
        }
        ReverseNat::open(&maps)?;
        let mut rings = BTreeMap::new();
        for (service, words) in &specimen.rings {
            let map: MapData = maps::new_ring(words.len() as u32)?;
            let slots = Mapped::<Slot>::new(&map)?;
            for (slot, word) in slots.iter().zip(words) {
                slot.set_owners(abi::Owners::from_word(*word as u32));
                slot.set_stamps((word >> 32) as u16, (word >> 48) as u16);
            }
            maps.rings.put_all(&[(*service, map)])?;
            rings.insert(*service, slots);
        }
        let pin_log = PinLog::open(folder.0)?;
        Ok(Self { object, maps, pin_log, rings, _index: index })
    }

    fn run(&self, specimen: &Specimen, case: &Case) -> Result<Ran> {
        ensure!(
            case.snap.is_whole(),
            "only {} of its {} bytes were saved",
            case.snap.bytes.len(),
            case.snap.length
        );
        self.prepare(specimen, case)?;
        if case.again {
            self.once(case)?;
        }
        let (reasons, backends) = (self.reasons(specimen)?, self.sent(specimen)?);
        let mut ran = self.once(case)?;
        let more = |after: &[u64], before: &[u64]| {
            after.iter().zip(before).position(|(after, before)| after != before)
        };
        ran.reason = more(&self.reasons(specimen)?, &reasons).and_then(|index| {
            let pass = Pass::from_index(index as u32).map(Pass::name);
            pass.or(Drop::from_index(index as u32).map(Drop::name)).map(str::to_owned)
        });
        ran.backend = more(&self.sent(specimen)?, &backends).unwrap_or(0) as u16;
        Ok(ran)
    }

    /// Writes the entries that the decision depends on, as if they had been copied at this moment.
    fn prepare(&self, specimen: &Specimen, case: &Case) -> Result<()> {
        let now = coarse_nanos();
        let passed = now.saturating_sub(case.nanos);
        let seconds = (now / SECOND).saturating_sub(case.nanos / SECOND) as u32;
        let ticks = Unanswered::tick(now).wrapping_sub(Unanswered::tick(case.nanos));
        let lease = match specimen.lease {
            0 => 0,
            until => until.saturating_add(passed),
        };
        self.pin_log.lease(lease);
        self.clear(&self.maps.pins)?;
        self.clear(&self.maps.tracked)?;
        self.clear(&self.maps.connections)?;
        self.clear(&self.maps.fragments)?;
        for entry in &case.entries {
            match entry {
                Entry::Slot(service, index, owners, (unpinned, pinned)) => {
                    let ring = self.rings.get(service).context("a ring that was not copied")?;
                    let slot = ring.get(*index as usize).context("a slot beyond the ring")?;
                    slot.set_owners(*owners);
                    slot.set_stamps(*unpinned, *pinned);
                }
                Entry::Flow(flow, Some(value)) => {
                    let value = FlowValue { seen: value.seen.wrapping_add(seconds), ..*value };
                    match flow {
                        FlowRef::Pin(key) => self.maps.pins.put(key, &value)?,
                        FlowRef::Tracked(key) => self.maps.tracked.put(key, &value)?,
                        FlowRef::Connection(key) => self.maps.connections.put(key, &value)?,
                    }
                }
                Entry::Fragment(key, Some(first)) => {
                    let seen = first.seen.wrapping_add(seconds);
                    self.maps.fragments.put(key, &abi::Fragment { seen, ..*first })?;
                }
                Entry::Handshake(place, first) => {
                    if let Some(handshakes) = &self.maps.handshakes {
                        handshakes.put(place, &first.later(seconds).0)?;
                    }
                }
                Entry::Flow(_, None) | Entry::Fragment(_, None) => {}
                Entry::Budget(service, tokens, refilled) => {
                    let budgets = Mapped::<TokenBucket>::new(&self.maps.syn_budgets)?;
                    for cpu in 0..specimen.cpus {
                        let at = (cpu * specimen.limits.services) as usize + usize::from(*service);
                        budgets[at].set_word(*tokens);
                        budgets[at].refilled.store(match refilled {
                            0 => 0,
                            then => then.saturating_add(passed),
                        });
                    }
                }
                Entry::Mark(index, mark) => {
                    if let Some(marks) = &self.maps.syn_marks {
                        marks.put(index, mark)?;
                    }
                }
                Entry::Unanswered(id, word) => {
                    let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
                    let tick = ((word >> 32) as u32).wrapping_add(ticks);
                    let word = word & 0xffff_ffff | u64::from(tick) << 32;
                    for cpu in 0..specimen.cpus {
                        let at = cpu * (specimen.limits.backends + 1) + u32::from(*id);
                        counters[at as usize].unanswered.store(word);
                    }
                }
            }
        }
        if !case.room_for_pins {
            // The table is as full as the one that was copied.
            for n in 0..FLOWS {
                let mut key = abi::FlowKey::new([0xff; 16], 0.into(), u16::MAX);
                key.source[..4].copy_from_slice(&n.to_be_bytes());
                match self.maps.pins.put(&key, &FlowValue::default()) {
                    Err(error) if sys::has_no_room(&error) => break,
                    put => put?,
                }
            }
        }
        Ok(())
    }

    fn clear<K, V>(&self, table: &Table<K, V>) -> Result<()>
    where
        K: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable + std::marker::Copy,
        V: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable + std::marker::Copy,
    {
        let mut keys = Vec::new();
        table.walk(|key, _| keys.push(key))?;
        for key in &keys {
            table.delete(key)?;
        }
        Ok(())
    }

    fn once(&self, case: &Case) -> Result<Ran> {
        let frame = &case.snap.bytes;
        let mut out = vec![0; frame.len() + 256];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, case.ingress, 0, 0];
        let program: &aya::programs::Xdp =
            self.object.program(BALANCE.native).context("the object has no program")?.try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (frame.len() <= ONE_BUFFER).then_some(context.as_bytes()),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            0 => "XDP_ABORTED",
            1 => "XDP_DROP",
            2 => "XDP_PASS",
            3 => "XDP_TX",
            4 => "XDP_REDIRECT",
            _ => "an unknown action",
        };
        let nanos = result.duration.as_nanos() as u64;
        Ok(Ran { action, bytes: out, nanos, ..Ran::default() })
    }

    /// Packets by reason.
    fn reasons(&self, specimen: &Specimen) -> Result<Vec<u64>> {
        let counters = Mapped::<VerdictCounter>::new(&self.maps.verdicts)?;
        Ok(sums(REASONS, specimen.cpus, |at| counters[at].packets.load()))
    }

    /// Packets by backend.
    fn sent(&self, specimen: &Specimen) -> Result<Vec<u64>> {
        let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
        let size = specimen.limits.backends + 1;
        Ok(sums(size, specimen.cpus, |at| counters[at].packets.load()))
    }
}

/// The sums over all CPUs of an array that has a stretch of `size` elements for each.
fn sums(size: u32, cpus: u32, count: impl Fn(usize) -> u64) -> Vec<u64> {
    let sum = |index: u32| (0..cpus).map(|cpu| count((cpu * size + index) as usize)).sum();
    (0..size).map(sum).collect()
}
