//! A data plane in memory: the same semantics as the kernel's maps, and writes that fail on order.
//! It can play the program as well: [`program`].

#[cfg(test)]
mod explained;
pub mod program;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_api::status::{self, Count};
use lb_common::{
    abi::{
        self, Flow, FlowKey, FlowValue, NatConnectionKey, NatConnectionValue, Owners, PeerKey,
        Slot, TokenBucket,
    },
    verdict::{Drop, REASONS},
};
use lb_inspect::{
    capture::Spec,
    explain::{Case, Verifier},
};
use lb_model::{
    desired::ServiceKey,
    flow::{FlowRef, FlowTable},
    hop::Station,
    settings::{Attach, Hooks, Limits},
};
use zerocopy::IntoBytes as _;

use self::program::Program;
use crate::{
    Added, BackendTotals, CaptureLoader, Counters, Flows, Interfaces, LoadedCapture, Maps,
    OwnerChange, Programs, Tap, replace_owners,
};

/// The maps, in memory. What a program would write, a test writes: flows by [`Fake::add_flow`],
/// stamps through [`Maps::ring`]. Or it lets the core decide on frames, over these maps.
#[derive(Debug, Default)]
pub struct Fake {
    limits: Limits,
    services: BTreeMap<ServiceKey, abi::Service>,
    vips: BTreeSet<IpAddr>,
    backends: BTreeMap<u16, abi::Backend>,
    rings: BTreeMap<u16, Arc<Vec<Slot>>>,
    own_macs: Vec<[u8; 6]>,
    peer_macs: BTreeMap<PeerKey, u16>,
    flows: RefCell<HashMap<FlowRef, Arc<Flow>>>,
    nat_connections: HashMap<NatConnectionKey, NatConnectionValue>,
    /// Connections of this node's own processes, by the backend's id.
    pub local_connections: BTreeMap<u16, u64>,
    /// Where answers were sent.
    pub answered: BTreeSet<Station>,
    program: Program,
    totals: BTreeMap<u16, BackendTotals>,
    /// By the verdict's index.
    dropped: BTreeMap<u32, Count>,
    /// Why each interface does not have the program, if it does not.
    interfaces: BTreeMap<String, Option<String>>,
    hooks: Hooks,
    /// Why the program can't be attached again.
    refusal: Option<String>,
    writes: u64,
    fail_at: Cell<Option<u64>>,
    /// The stamp of packets that come right before the next [`Maps::replace_owners`].
    late: Option<u16>,
    remote: Arc<Remote>,
}

/// What a test does to a [`Fake`] that a daemon owns, and sees of it.
#[derive(Debug, Default)]
pub struct Remote {
    /// So many writes are still to fail.
    pub failing_writes: AtomicU64,
    /// Whether walks of the flow tables fail.
    pub failing_walks: AtomicBool,
    /// Calls that wrote owners of slots.
    pub ring_writes: AtomicU64,
    /// Until when pins may be made, in nanoseconds of CLOCK_MONOTONIC; 0 for always.
    pub leased_until: AtomicU64,
    pins: Mutex<Vec<(FlowKey, FlowValue)>>,
}

impl Remote {
    /// Pins a flow, as the program would, before the daemon reads the flows or the log of pins the next time.
    pub fn pin(&self, flow: FlowKey, value: FlowValue) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).push((flow, value));
    }
}

/// A ring of the [`Fake`].
#[derive(Debug)]
pub struct FakeRing(Arc<Vec<Slot>>);

impl std::ops::Deref for FakeRing {
    type Target = [Slot];

    fn deref(&self) -> &[Slot] {
        &self.0
    }
}

impl Fake {
    /// Empty maps of these capacities.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Lets the `n`-th write from here on fail, once; 1 is the next one.
    pub fn fail_nth_write(&mut self, n: u64) {
        self.fail_at.set(Some(self.writes + n));
    }

    /// Lets a packet without a pin come with this stamp for each slot that [`Maps::replace_owners`] is to
    /// change, right before it does, once.
    pub const fn touch_before_change(&mut self, stamp: u16) {
        self.late = Some(stamp);
    }

    /// Has a test see these maps and have them fail from elsewhere.
    pub fn set_remote(&mut self, remote: Arc<Remote>) {
        self.remote = remote;
    }

    /// Writes so far, the failed ones included.
    #[must_use]
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Adds a flow, as the program would.
    pub fn add_flow(&mut self, flow: FlowRef, value: FlowValue) {
        self.flows.borrow_mut().insert(flow, Arc::new(Flow::new(value)));
    }

    /// Notes a connection in mode `nat`, as the program would.
    pub fn put_nat_connection(&mut self, key: NatConnectionKey, value: NatConnectionValue) {
        self.nat_connections.insert(key, value);
    }

    /// A flow, as the program would find it.
    #[must_use]
    pub fn flow(&self, flow: &FlowRef) -> Option<FlowValue> {
        self.flows.borrow().get(flow).map(|flow| flow.get())
    }

    /// How many flows a table holds.
    #[must_use]
    pub fn flow_count(&self, table: FlowTable) -> usize {
        self.flows.borrow().keys().filter(|flow| table_of(flow) == table).count()
    }

    /// Whether a flow has a place in its table, or there is room for one. Tables that make room by
    /// themselves have it always.
    fn has_room(&self, flow: &FlowRef) -> bool {
        !matches!(flow, FlowRef::Pin(_))
            || self.flows.borrow().contains_key(flow)
            || self.flow_count(FlowTable::Pins) < self.limits.pins as usize
    }

    /// Sets a backend's counters, as the program would.
    pub fn set_backend_totals(&mut self, id: u16, totals: BackendTotals) {
        self.totals.insert(id, totals);
    }

    /// Counts a packet of so many bytes that is dropped for a reason, as the program would.
    pub fn count_dropped(&mut self, reason: Drop, bytes: u64) {
        let count = self.dropped.entry(reason.index()).or_default();
        count.packets += 1;
        count.bytes += bytes;
    }

    /// Adds an interface with the program, or takes the program off it for a reason.
    pub fn set_interface(&mut self, name: &str, problem: Option<&str>) {
        self.interfaces.insert(name.to_owned(), problem.map(str::to_owned));
    }

    /// Lets every attempt to attach the program again fail with these words, or none.
    pub fn refuse_reattach(&mut self, why: Option<&str>) {
        self.refusal = why.map(str::to_owned);
    }

    /// Everything that the program would read, as text: for golden files and comparisons.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for (key, value) in &self.services {
            let _ = writeln!(
                out,
                "service {key} id {} slots {} udp {} idle {} syn {} keys {}",
                value.id,
                value.slots,
                value.udp_policy,
                value.idle_timeout,
                value.syn_budget,
                hex(value.keys.as_bytes()),
            );
        }
        for vip in &self.vips {
            let _ = writeln!(out, "vip {vip}");
        }
        for mac in &self.own_macs {
            let _ = writeln!(out, "mac {}", hex(mac));
        }
        for (PeerKey { mac, service }, id) in &self.peer_macs {
            let _ = writeln!(out, "peer {} service {service} backend {id}", hex(mac));
        }
        for (id, backend) in &self.backends {
            let _ = writeln!(out, "backend {id} {}", hex(backend.as_bytes()));
        }
        for (id, ring) in &self.rings {
            let _ = writeln!(out, "ring {id} slots {}", ring.len());
            for run in ring.chunks(16) {
                for slot in run {
                    let Owners { current, base } = slot.owners();
                    let _ = match base {
                        0 => write!(out, " {current}"),
                        _ => write!(out, " {current}/{base}"),
                    };
                }
                out.push('\n');
            }
        }
        out
    }

    fn take_remote_pins(&self) {
        for (key, value) in
            self.remote.pins.lock().unwrap_or_else(PoisonError::into_inner).drain(..)
        {
            self.flows.borrow_mut().insert(FlowRef::Pin(key), Arc::new(Flow::new(value)));
            self.program.note(key);
        }
    }

    fn write(&mut self) -> Result<()> {
        self.writes += 1;
        if self.fail_at.get() == Some(self.writes) {
            self.fail_at.set(None);
            bail!("write {} was ordered to fail", self.writes);
        }
        let failing = &self.remote.failing_writes;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        ensure!(fails.is_err(), "a write was ordered to fail");
        Ok(())
    }
}

const fn table_of(flow: &FlowRef) -> FlowTable {
    match flow {
        FlowRef::Pin(_) => FlowTable::Pins,
        FlowRef::Tracked(_) => FlowTable::Tracked,
        FlowRef::Connection(_) => FlowTable::Connections,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

impl Maps for Fake {
    type Ring = FakeRing;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>> {
        Ok(self.services.clone())
    }

    fn put_service(&mut self, key: &ServiceKey, value: &abi::Service) -> Result<()> {
        self.write()?;
        let room = self.limits.services as usize;
        ensure!(self.services.contains_key(key) || self.services.len() < room, "services are full");
        self.services.insert(*key, *value);
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.write()?;
        self.services.remove(key).context("no such service")?;
        Ok(())
    }

    fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        Ok(self.vips.clone())
    }

    fn put_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.write()?;
        self.vips.insert(vip);
        Ok(())
    }

    fn delete_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.write()?;
        ensure!(self.vips.remove(&vip), "no such VIP");
        Ok(())
    }

    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        Ok(self.backends.clone())
    }

    fn put_backend(&mut self, id: u16, value: &abi::Backend) -> Result<()> {
        self.write()?;
        ensure!(id != 0 && u32::from(id) <= self.limits.backends, "backend {id} is out of bounds");
        if value.as_bytes().iter().all(|&byte| byte == 0) {
            self.backends.remove(&id);
        } else {
            self.backends.insert(id, *value);
        }
        Ok(())
    }

    fn rings(&self) -> Result<BTreeSet<u16>> {
        Ok(self.rings.keys().copied().collect())
    }

    fn ring(&self, service: u16) -> Result<FakeRing> {
        self.rings.get(&service).cloned().map(FakeRing).context("no such ring")
    }

    fn publish_rings(&mut self, rings: &[(u16, Vec<Owners>)]) -> Result<()> {
        self.remote.ring_writes.fetch_add(1, Ordering::SeqCst);
        for (service, owners) in rings {
            self.write()?;
            ensure!(u32::from(*service) < self.limits.services, "ring {service} is out of bounds");
            self.rings.insert(*service, Arc::new(owners.iter().copied().map(Slot::new).collect()));
        }
        Ok(())
    }

    fn set_owners(&mut self, service: u16, slots: &[(u32, Owners)]) -> Result<()> {
        self.remote.ring_writes.fetch_add(1, Ordering::SeqCst);
        for &(slot, owners) in slots {
            self.write()?;
            let ring = self.rings.get(&service).context("no such ring")?;
            ring.get(slot as usize).context("no such slot")?.set_owners(owners);
        }
        Ok(())
    }

    fn replace_owners(&mut self, ring: &Self::Ring, changes: &[OwnerChange]) -> Result<Vec<bool>> {
        changes.iter().try_for_each(|_| self.write())?;
        if let Some(stamp) = self.late.take_if(|_| !changes.is_empty()) {
            changes.iter().for_each(|(slot, ..)| ring[*slot as usize].touch_unpinned(stamp));
        }
        replace_owners(ring, changes)
    }

    fn delete_ring(&mut self, service: u16) -> Result<()> {
        self.write()?;
        self.rings.remove(&service).context("no such ring")?;
        Ok(())
    }

    fn own_macs(&self) -> Result<Vec<[u8; 6]>> {
        Ok(self.own_macs.clone())
    }

    fn set_own_macs(&mut self, macs: &[[u8; 6]]) -> Result<()> {
        self.write()?;
        ensure!(macs.len() <= abi::OWN_MACS as usize, "too many MAC addresses");
        self.own_macs = macs.to_vec();
        Ok(())
    }

    fn peer_macs(&self) -> Result<BTreeMap<PeerKey, u16>> {
        Ok(self.peer_macs.clone())
    }

    fn set_peer_macs(&mut self, peers: &BTreeMap<PeerKey, u16>) -> Result<()> {
        self.write()?;
        self.peer_macs.clone_from(peers);
        Ok(())
    }
}

impl Flows for Fake {
    fn flows(&self, table: FlowTable, visit: &mut dyn FnMut(FlowRef, FlowValue)) -> Result<()> {
        ensure!(!self.remote.failing_walks.load(Ordering::SeqCst), "walks were ordered to fail");
        self.take_remote_pins();
        for (flow, value) in self.flows.borrow().iter() {
            if table_of(flow) == table {
                visit(*flow, value.get());
            }
        }
        Ok(())
    }

    fn delete_flow(&mut self, flow: &FlowRef, seen: FlowValue) -> Result<bool> {
        self.write()?;
        let unchanged = self.flow(flow) == Some(seen);
        if unchanged {
            self.flows.borrow_mut().remove(flow);
        }
        Ok(unchanged)
    }

    fn flow_value(&self, flow: &FlowRef) -> Result<Option<FlowValue>> {
        Ok(self.flow(flow))
    }

    fn put_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<bool> {
        self.write()?;
        if !self.has_room(flow) {
            return Ok(false);
        }
        self.add_flow(*flow, value);
        Ok(true)
    }

    fn put_new_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<Added> {
        self.write()?;
        if self.flow(flow).is_some() {
            return Ok(Added::Known);
        }
        if !self.has_room(flow) {
            return Ok(Added::NoRoom);
        }
        self.add_flow(*flow, value);
        Ok(Added::Yes)
    }

    fn noted_pins(&mut self, visit: &mut dyn FnMut(FlowKey)) -> Result<bool> {
        self.take_remote_pins();
        Ok(self.program.read_notes(visit))
    }

    fn lease_pins(&mut self, until: u64) {
        self.remote.leased_until.store(until, Ordering::SeqCst);
    }

    fn nat_connections(
        &self,
        visit: &mut dyn FnMut(NatConnectionKey, NatConnectionValue),
    ) -> Result<()> {
        self.nat_connections.iter().for_each(|(key, value)| visit(*key, *value));
        Ok(())
    }

    fn local_connections(&self, backends: &BTreeSet<u16>) -> Result<BTreeMap<u16, u64>> {
        let wanted = self.local_connections.iter().filter(|(id, _)| backends.contains(id));
        Ok(wanted.map(|(id, count)| (*id, *count)).collect())
    }

    fn forget_nat_connection(
        &mut self,
        key: &NatConnectionKey,
        seen: NatConnectionValue,
    ) -> Result<()> {
        self.write()?;
        if self.nat_connections.get(key) == Some(&seen) {
            self.nat_connections.remove(key);
        }
        Ok(())
    }

    fn forget_fragments(&mut self, _backends: &BTreeSet<u16>) -> Result<()> {
        self.write()
    }
}

impl Counters for Fake {
    fn verdicts(&self) -> Result<Vec<Count>> {
        let count = |reason| self.dropped.get(&reason).copied().unwrap_or_default();
        Ok((0..REASONS).map(count).collect())
    }

    fn backend_totals(&self) -> Result<Vec<BackendTotals>> {
        let entry = |id| self.totals.get(&id).copied().unwrap_or_default();
        Ok((0..=self.limits.backends as u16).map(entry).collect())
    }

    fn totals_of(&self, ids: &[u16]) -> Result<Vec<BackendTotals>> {
        Ok(ids.iter().map(|id| self.totals.get(id).copied().unwrap_or_default()).collect())
    }

    fn reset_backend_totals(&mut self, id: u16) -> Result<()> {
        self.write()?;
        self.totals.remove(&id);
        Ok(())
    }

    fn visit_syn_budgets(
        &self,
        services: &BTreeSet<u16>,
        visit: &mut dyn FnMut(u16, &[&TokenBucket]),
    ) -> Result<()> {
        for &service in services {
            visit(service, &[&self.program.budget(service)]);
        }
        Ok(())
    }

    fn reset_syn_budget(&mut self, service: u16) -> Result<()> {
        self.write()?;
        self.program.fill_budget(service);
        Ok(())
    }

    fn online_cpus(&self) -> u32 {
        2
    }
}

impl Interfaces for Fake {
    fn interfaces(&self) -> Vec<status::Interface> {
        let interface = |(name, problem): (&String, &Option<String>)| status::Interface {
            name: name.clone(),
            ifindex: 1,
            mode: if self.hooks.of(name) == Attach::Tc { "tc" } else { "native" }.into(),
            attached: problem.is_none(),
            others: Vec::new(),
        };
        self.interfaces.iter().map(interface).collect()
    }

    fn problem(&self, interface: &str) -> Option<String> {
        self.interfaces.get(interface).cloned().unwrap_or_else(|| Some("no such interface".into()))
    }

    fn reattach(&mut self, interface: &str) -> Result<()> {
        if let Some(refusal) = &self.refusal {
            bail!("{refusal}");
        }
        *self.interfaces.get_mut(interface).context("no such interface")? = None;
        Ok(())
    }

    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()> {
        if let Some(refusal) = &self.refusal {
            bail!("{refusal}");
        }
        self.hooks = hooks.clone();
        Ok(())
    }

    fn answered_stations(&self, _within: Duration) -> Result<BTreeSet<Station>> {
        Ok(self.answered.clone())
    }
}

impl Programs for Fake {
    fn verifier(&self, _cases: Vec<Case>) -> Result<Verifier> {
        bail!("there is no program in the kernel to ask")
    }

    fn prepare_capture(
        &self,
        _spec: &Spec,
        _service: Option<u16>,
        _backend: Option<u16>,
    ) -> Result<Box<dyn CaptureLoader>> {
        bail!("there is no program in the kernel to capture with")
    }

    fn begin_capture(&mut self, _loaded: LoadedCapture) -> Result<Box<dyn Tap>> {
        bail!("there is no program in the kernel to capture with")
    }

    fn end_capture(&mut self) -> Result<()> {
        Ok(())
    }
}
