//! The data plane over the pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{Map, MapData};
use lb_api::status::{self, Count};
use lb_common::{
    abi::{
        self, BackendCounter, FlowKey, FlowValue, NatConnectionKey, NatConnectionValue, OwnMac,
        Owners, PeerKey, ReturnCounter, Slot, TokenBucket, VerdictCounter, VipKey,
    },
    return_route::ReturnRoute,
    verdict::REASONS,
};
use lb_inspect::{
    capture::Spec,
    explain::{Case, Verifier},
};
use lb_model::{
    desired::ServiceKey,
    entry,
    flow::{FlowRef, FlowTable},
    hop::Station,
    settings::{Hooks, Limits, Settings},
    time::coarse_nanos,
};
use lb_plane::{
    Added, BackendTotals, CaptureLoader, Counters, Flows, Interfaces, LoadedCapture, Maps,
    OwnerChange, Programs, Tap, replace_owners,
};

use super::{
    attach,
    capture::{Capturer, Loader},
    folders, local_clients, maps,
    mmap::Mapped,
    own_macs,
    service_index::{key_v4, key_v6},
    sys,
    variants::{BALANCE, Variants},
    verify::Specimen,
    xdp::Xdp,
};

impl Xdp {
    fn own_mac_entries(&self) -> Result<Vec<[u8; 6]>> {
        let entry = |index| anyhow::Ok(self.maps.own_macs.get(&index)?.unwrap_or_default().mac);
        (0..abi::OWN_MACS).map(entry).collect()
    }

    /// The stretch of a CPU in an array that has one of `size` elements for each.
    fn stretches(&self, size: u32) -> impl Iterator<Item = Range<usize>> {
        (0..self.possible_cpus).map(move |cpu| (cpu * size) as usize..((cpu + 1) * size) as usize)
    }
}

/// Adds what one CPU has counted.
fn add(total: &mut BackendTotals, counter: &BackendCounter) {
    total.sent.packets += counter.packets.load();
    total.sent.bytes += counter.bytes.load();
    total.new_flows += counter.new_flows.load();
    total.unpinned += counter.unpinned.load();
    total.syn_retransmissions += counter.syn_retransmissions.load();
    total.second_choices += counter.second_choices.load();
}

fn add_returned(total: &mut BackendTotals, counter: &ReturnCounter) {
    total.returned.packets += counter.packets.load();
    total.returned.bytes += counter.bytes.load();
    total.accepted += counter.accepted.load();
    total.refused += counter.refused.load();
    total.local += counter.local.load();
}

impl Maps for Xdp {
    type Ring = Mapped<Slot>;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>> {
        maps::services(&self.maps)
    }

    fn put_service(&mut self, key: &ServiceKey, value: &abi::Service) -> Result<()> {
        self.index.put_entry(key, value)?;
        if let Some(wide) = entry::wide_key(key) {
            let services = self.maps.wide_services.as_ref().context("no map WIDE_SERVICES")?;
            services.put(&wide, value).map_err(sys::explain)?;
            return self.wide.publish(&self.maps, wide, value.id);
        }
        match key.vip {
            IpAddr::V4(vip) => self.maps.services_v4.put(&key_v4(vip, key), value),
            IpAddr::V6(vip) => self.maps.services_v6.put(&key_v6(vip, key), value),
        }
        .map_err(sys::explain)?;
        self.index.publish(key, value.id);
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        if let Some(wide) = entry::wide_key(key) {
            self.wide.withdraw(&self.maps, &wide)?;
            let services = self.maps.wide_services.as_ref().context("no map WIDE_SERVICES")?;
            services.delete(&wide)?;
            return Ok(());
        }
        self.index.withdraw(key);
        match key.vip {
            IpAddr::V4(vip) => self.maps.services_v4.delete(&key_v4(vip, key))?,
            IpAddr::V6(vip) => self.maps.services_v6.delete(&key_v6(vip, key))?,
        };
        Ok(())
    }

    fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        let mut vips = BTreeSet::new();
        self.maps.vips.walk(|key, _| {
            vips.insert(entry::ip_of(key.address));
        })?;
        Ok(vips)
    }

    fn put_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.maps.vips.put(&VipKey { address: entry::address(vip) }, &1).map_err(sys::explain)
    }

    fn delete_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.maps.vips.delete(&VipKey { address: entry::address(vip) })?;
        Ok(())
    }

    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        maps::backends(&self.maps)
    }

    fn put_backend(&mut self, id: u16, value: &abi::Backend) -> Result<()> {
        ensure!(id != 0, "id 0 is never a backend");
        self.reverse_nat.leave(&self.maps, id, value)?;
        self.maps.backends.put(&id.into(), value)?;
        self.reverse_nat.enter(&self.maps, id, value)?;
        self.follow_local_clients();
        Ok(())
    }

    fn rings(&self) -> Result<BTreeSet<u16>> {
        Ok(self.maps.rings.services()?.collect())
    }

    fn ring(&self, service: u16) -> Result<Mapped<Slot>> {
        let map = self.maps.rings.get(service)?.context("the service has no ring")?;
        Mapped::new(&map).context("map the ring")
    }

    fn publish_rings(&mut self, rings: &[(u16, Vec<Owners>)]) -> Result<()> {
        let build = |(service, owners): &(u16, Vec<Owners>)| {
            let map = maps::new_ring(owners.len() as u32)?;
            let slots = Mapped::<Slot>::new(&map).context("map the ring")?;
            for (slot, owners) in slots.iter().zip(owners) {
                slot.set_owners(*owners);
            }
            anyhow::Ok((*service, map))
        };
        let built = rings.iter().map(build).collect::<Result<Vec<_>>>()?;
        self.maps.rings.put_all(&built)
    }

    fn set_owners(&mut self, service: u16, changes: &[(u32, Owners)]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let slots = self.ring(service)?;
        for &(slot, owners) in changes {
            slots.get(slot as usize).context("the ring has no such slot")?.set_owners(owners);
        }
        Ok(())
    }

    fn replace_owners(
        &mut self,
        ring: &Mapped<Slot>,
        changes: &[OwnerChange],
    ) -> Result<Vec<bool>> {
        replace_owners(ring, changes)
    }

    fn delete_ring(&mut self, service: u16) -> Result<()> {
        Ok(self.maps.rings.delete(service)?)
    }

    fn own_macs(&self) -> Result<Vec<[u8; 6]>> {
        Ok(own_macs::listed(&self.own_mac_entries()?))
    }

    fn set_own_macs(&mut self, macs: &[[u8; 6]]) -> Result<()> {
        ensure!(macs.len() <= abi::OWN_MACS as usize, "too many MAC addresses");
        for (index, mac) in own_macs::writes(&self.own_mac_entries()?, macs) {
            self.maps.own_macs.put(&index, &OwnMac { mac, reserved: [0; 2] })?;
        }
        Ok(())
    }

    fn peer_macs(&self) -> Result<BTreeMap<PeerKey, u16>> {
        let mut peers = BTreeMap::new();
        if let Some(map) = &self.maps.peer_macs {
            map.walk(|key, id| {
                peers.insert(key, id as u16);
            })?;
        }
        Ok(peers)
    }

    fn set_peer_macs(&mut self, peers: &BTreeMap<PeerKey, u16>) -> Result<()> {
        let before = self.peer_macs()?;
        let map = self.maps.peer_macs.as_ref().context("no map PEER_MACS")?;
        // What goes first makes room.
        for key in before.keys().filter(|key| !peers.contains_key(key)) {
            map.delete(key)?;
        }
        for (key, id) in peers.iter().filter(|(key, id)| before.get(key) != Some(id)) {
            map.put(key, &u32::from(*id)).map_err(sys::explain)?;
        }
        Ok(())
    }
}

impl Flows for Xdp {
    fn flows(&self, table: FlowTable, visit: &mut dyn FnMut(FlowRef, FlowValue)) -> Result<()> {
        match table {
            FlowTable::Pins => self.maps.pins.walk(|key, value| visit(FlowRef::Pin(key), value)),
            FlowTable::Tracked => {
                self.maps.tracked.walk(|key, value| visit(FlowRef::Tracked(key), value))
            }
            FlowTable::Connections => {
                self.maps.connections.walk(|key, value| visit(FlowRef::Connection(key), value))
            }
        }
        .map_err(Into::into)
    }

    fn delete_flow(&mut self, flow: &FlowRef, seen: FlowValue) -> Result<bool> {
        let maps = &self.maps;
        let unchanged = match flow {
            FlowRef::Pin(key) => maps.pins.get(key)? == Some(seen),
            FlowRef::Tracked(key) => maps.tracked.get(key)? == Some(seen),
            FlowRef::Connection(key) => maps.connections.get(key)? == Some(seen),
        };
        Ok(unchanged
            && match flow {
                FlowRef::Pin(key) => maps.pins.delete(key)?,
                FlowRef::Tracked(key) => maps.tracked.delete(key)?,
                FlowRef::Connection(key) => maps.connections.delete(key)?,
            })
    }

    fn flow_value(&self, flow: &FlowRef) -> Result<Option<FlowValue>> {
        let maps = &self.maps;
        Ok(match flow {
            FlowRef::Pin(key) => maps.pins.get(key)?,
            FlowRef::Tracked(key) => maps.tracked.get(key)?,
            FlowRef::Connection(key) => maps.connections.get(key)?,
        })
    }

    fn put_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<bool> {
        let maps = &self.maps;
        let done = match flow {
            FlowRef::Pin(key) => maps.pins.put(key, &value),
            FlowRef::Tracked(key) => maps.tracked.put(key, &value),
            FlowRef::Connection(key) => maps.connections.put(key, &value),
        };
        match done {
            Ok(()) => Ok(true),
            Err(error) if sys::has_no_room(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn put_new_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<Added> {
        let maps = &self.maps;
        let done = match flow {
            FlowRef::Pin(key) => maps.pins.put_new(key, &value),
            FlowRef::Tracked(key) => maps.tracked.put_new(key, &value),
            FlowRef::Connection(key) => maps.connections.put_new(key, &value),
        };
        match done {
            Ok(true) => Ok(Added::Yes),
            Ok(false) => Ok(Added::Known),
            Err(error) if sys::has_no_room(&error) => Ok(Added::NoRoom),
            Err(error) => Err(error.into()),
        }
    }

    fn noted_pins(&mut self, visit: &mut dyn FnMut(FlowKey)) -> Result<bool> {
        Ok(self.pin_log.read(visit))
    }

    fn lease_pins(&mut self, until: u64) {
        self.pin_log.lease(until);
    }

    fn nat_connections(
        &self,
        visit: &mut dyn FnMut(NatConnectionKey, NatConnectionValue),
    ) -> Result<()> {
        if let Some(table) = &self.maps.nat_connections {
            table.walk(visit)?;
        }
        Ok(())
    }

    fn local_connections(&self, backends: &BTreeSet<u16>) -> Result<BTreeMap<u16, u64>> {
        local_clients::connections(&self.settings.pin_dir, backends)
    }

    fn forget_nat_connection(
        &mut self,
        key: &NatConnectionKey,
        seen: NatConnectionValue,
    ) -> Result<()> {
        if let Some(table) = &self.maps.nat_connections
            && table.get(key)? == Some(seen)
        {
            table.delete(key)?;
        }
        Ok(())
    }

    fn forget_fragments(&mut self, backends: &BTreeSet<u16>) -> Result<()> {
        let mut keys = Vec::new();
        self.maps.fragments.walk(|key, value| {
            if backends.contains(&value.backend) {
                keys.push(key);
            }
        })?;
        for key in &keys {
            self.maps.fragments.delete(key)?;
        }
        Ok(())
    }
}

impl Counters for Xdp {
    fn verdicts(&self) -> Result<Vec<Count>> {
        let counters = Mapped::<VerdictCounter>::new(&self.maps.verdicts)?;
        let mut counts = vec![Count::default(); REASONS as usize];
        for stretch in self.stretches(REASONS) {
            for (count, counter) in counts.iter_mut().zip(&counters[stretch]) {
                count.packets += counter.packets.load();
                count.bytes += counter.bytes.load();
            }
        }
        Ok(counts)
    }

    fn backend_totals(&self) -> Result<Vec<BackendTotals>> {
        let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
        let size = self.limits.backends + 1;
        let mut totals = vec![BackendTotals::default(); size as usize];
        for stretch in self.stretches(size) {
            for (total, counter) in totals.iter_mut().zip(&counters[stretch]) {
                add(total, counter);
            }
        }
        if let Some(map) = &self.maps.return_counters {
            let counters = Mapped::<ReturnCounter>::new(map)?;
            for stretch in self.stretches(size) {
                for (total, counter) in totals.iter_mut().zip(&counters[stretch]) {
                    add_returned(total, counter);
                }
            }
        }
        Ok(totals)
    }

    fn totals_of(&self, ids: &[u16]) -> Result<Vec<BackendTotals>> {
        let mut totals = vec![BackendTotals::default(); ids.len()];
        if ids.is_empty() {
            return Ok(totals);
        }
        // What is not looked at takes no page.
        let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
        for stretch in self.stretches(self.limits.backends + 1) {
            let counters = &counters[stretch];
            for (total, id) in totals.iter_mut().zip(ids) {
                counters.get(usize::from(*id)).into_iter().for_each(|c| add(total, c));
            }
        }
        if let Some(map) = &self.maps.return_counters {
            let counters = Mapped::<ReturnCounter>::new(map)?;
            for stretch in self.stretches(self.limits.backends + 1) {
                let counters = &counters[stretch];
                for (total, id) in totals.iter_mut().zip(ids) {
                    counters.get(usize::from(*id)).into_iter().for_each(|c| add_returned(total, c));
                }
            }
        }
        Ok(totals)
    }

    fn reset_backend_totals(&mut self, id: u16) -> Result<()> {
        let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
        for stretch in self.stretches(self.limits.backends + 1) {
            let counter = &counters[stretch][usize::from(id)];
            let BackendCounter {
                packets,
                bytes,
                new_flows,
                unpinned,
                syn_retransmissions,
                unanswered,
                second_choices,
                reserved: _,
            } = counter;
            let all = [packets, bytes, new_flows, unpinned, syn_retransmissions];
            for count in all.into_iter().chain([unanswered, second_choices]) {
                count.store(0);
            }
        }
        if let Some(map) = &self.maps.return_counters {
            let counters = Mapped::<ReturnCounter>::new(map)?;
            for stretch in self.stretches(self.limits.backends + 1) {
                let ReturnCounter { packets, bytes, accepted, refused, local, reserved: _ } =
                    &counters[stretch][usize::from(id)];
                for count in [packets, bytes, accepted, refused, local] {
                    count.store(0);
                }
            }
        }
        Ok(())
    }

    fn visit_syn_budgets(
        &self,
        services: &BTreeSet<u16>,
        visit: &mut dyn FnMut(u16, &[&TokenBucket]),
    ) -> Result<()> {
        let budgets = Mapped::<TokenBucket>::new(&self.maps.syn_budgets)?;
        let online = aya::util::online_cpus().map_err(|(_, error)| error)?;
        for &service in services {
            let at = |cpu: &u32| (cpu * self.limits.services) as usize + usize::from(service);
            let buckets: Vec<_> = online.iter().filter_map(|cpu| budgets.get(at(cpu))).collect();
            visit(service, &buckets);
        }
        Ok(())
    }

    fn reset_syn_budget(&mut self, service: u16) -> Result<()> {
        let budgets = Mapped::<TokenBucket>::new(&self.maps.syn_budgets)?;
        for stretch in self.stretches(self.limits.services) {
            let budget = &budgets[stretch][usize::from(service)];
            budget.set_word(0);
            // Long ago: the next SYN finds a full bucket.
            budget.refilled.store(0);
        }
        Ok(())
    }

    fn online_cpus(&self) -> u32 {
        aya::util::online_cpus().map_or(self.possible_cpus, |cpus| cpus.len() as u32)
    }
}

impl Interfaces for Xdp {
    fn interfaces(&self) -> Vec<status::Interface> {
        self.links.iter().map(|link| link.status(&self.programs())).collect()
    }

    fn problem(&self, interface: &str) -> Option<String> {
        let link = self.links.iter().find(|link| link.interface() == interface);
        link.map_or_else(
            || Some("it is not configured".into()),
            |link| link.problem(&self.programs()),
        )
    }

    fn reattach(&mut self, interface: &str) -> Result<()> {
        let link = self.links.iter_mut().find(|link| link.interface() == interface);
        let link = link.context("it is not configured")?;
        let folder = folders::current(&self.settings.pin_dir);
        let mut programs = Variants::new(&mut self.object, BALANCE, &folder);
        *link = attach::reattach(&mut programs, interface, &self.settings)?;
        self.unload_unused();
        self.set_return_egress()
    }

    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()> {
        ensure!(self.capture.is_none(), "a capture is running, and changes no hook; end it first");
        let folder = folders::current(&self.settings.pin_dir);
        let mut programs = Variants::new(&mut self.object, BALANCE, &folder);
        let settings = Settings { hooks: hooks.clone(), force: false, ..self.settings.clone() };
        let attached = attach::attach(&mut programs, &settings, &mut || Ok(()));
        let attached = attached.map(|links| {
            self.links = links;
            self.settings.hooks = settings.hooks;
        });
        self.unload_unused();
        attached.and_then(|()| self.set_return_egress())
    }

    fn answered_stations(&self, within: Duration) -> Result<BTreeSet<Station>> {
        let mut stations = BTreeSet::new();
        if !self.reverse_nat.has_backends() {
            return Ok(stations);
        }
        let Some(Map::Array(map)) = self.object.map("RETURN_ROUTES") else {
            bail!("the object has no map RETURN_ROUTES");
        };
        // By its number it would take CAP_SYS_ADMIN.
        let fd = map.fd().as_fd().try_clone_to_owned().context("open RETURN_ROUTES again")?;
        let map = MapData::from_fd(fd)?;
        let routes: sys::Table<u32, [u64; 8]> = sys::Table::new(map)?;
        let since = coarse_nanos().saturating_sub(within.as_nanos() as u64);
        routes.walk(|_, words| stations.extend(ReturnRoute::from(words).used_since(since)))?;
        Ok(stations)
    }
}

impl Programs for Xdp {
    fn verifier(&self, cases: Vec<Case>) -> Result<Verifier> {
        let specimen = Specimen::of(self, cases)?;
        Ok(Box::new(move || specimen.run()))
    }

    fn prepare_capture(
        &self,
        spec: &Spec,
        service: Option<u16>,
        backend: Option<u16>,
    ) -> Result<Box<dyn CaptureLoader>> {
        Ok(Box::new(Loader::of(self, spec, service, backend)?))
    }

    fn begin_capture(&mut self, loaded: LoadedCapture) -> Result<Box<dyn Tap>> {
        let capturer = loaded.downcast::<Capturer>();
        let capturer = capturer.map_err(|_| anyhow!("another data plane has loaded it"))?;
        Ok(Box::new(self.swap_in(*capturer)?))
    }

    fn end_capture(&mut self) -> Result<()> {
        self.swap_back()
    }
}
