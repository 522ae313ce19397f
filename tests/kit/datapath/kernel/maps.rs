//! The entries of the loaded object's maps: written as the daemon would, read back, removed.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, HashMap as BpfHashMap, MapData},
};
use lb_common::{
    abi::{
        self, Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, NatConnectionKey,
        NatConnectionValue, OwnMac, PIN_NOTES, PeerKey, ReverseKey, Service, ServiceKeyV4,
        ServiceKeyV6, VipKey, mapped,
    },
    nat_connections,
    service_index::{Entry, OVERFLOW, Place, WAYS},
    verdict::REASONS,
};
use zerocopy::transmute;

use super::{BUCKETS, Kernel, SERVICES};
use crate::datapath::model::BackendCount;

const MMAPABLE_INNER: u32 = 1 << 10 | 1 << 12;

/// A ring's slots as words.
type Ring = Array<MapData, u64>;

impl Kernel {
    pub(in crate::datapath) fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &str,
    ) -> Result<BpfHashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        map.try_into().with_context(|| name.to_owned())
    }

    pub(in crate::datapath) fn array<V: Pod>(
        &mut self,
        name: &str,
    ) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        map.try_into().with_context(|| name.to_owned())
    }

    /// Makes a service known.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_service_v4(&mut self, key: ServiceKeyV4, value: Service) -> Result<()> {
        self.hash("SERVICES_V4")?.insert(key, value, 0)?;
        let place = Place::of_v4(&key, BUCKETS - 1);
        let address = mapped(key.address);
        let (port, proto) = (key.port, key.proto);
        self.put_entry(place, Entry { service: value, address, port, proto, reserved: [0; 5] })
    }

    fn put_entry(&mut self, place: Place, entry: Entry) -> Result<()> {
        let id = entry.service.id;
        self.array("SERVICE_ENTRIES")?.set(u32::from(id), entry, 0)?;
        let mut buckets = self.array::<[u32; WAYS]>("SERVICE_INDEX")?;
        let mut words = buckets.get(&place.bucket, 0)?;
        match words.iter_mut().find(|word| **word == 0) {
            Some(free) => *free = place.word(id),
            None => words[WAYS - 1] = OVERFLOW,
        }
        Ok(buckets.set(place.bucket, words, 0)?)
    }

    /// Whether some bucket is too small, and some is not.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn index_is_of_use(&mut self) -> Result<bool> {
        let buckets = self.array::<[u32; WAYS]>("SERVICE_INDEX")?;
        let over = (0..BUCKETS).map(|bucket| Ok(buckets.get(&bucket, 0)?[WAYS - 1] == OVERFLOW));
        let over: Vec<bool> = over.collect::<Result<_>>()?;
        Ok(over.contains(&true) && over.contains(&false))
    }

    /// Makes a service known.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_service_v6(&mut self, key: ServiceKeyV6, value: Service) -> Result<()> {
        self.hash("SERVICES_V6")?.insert(key, value, 0)?;
        let place = Place::of_v6(&key, BUCKETS - 1);
        let (address, port, proto) = (key.address, key.port, key.proto);
        self.put_entry(place, Entry { service: value, address, port, proto, reserved: [0; 5] })
    }

    /// Makes an address a VIP.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_vip(&mut self, key: VipKey) -> Result<()> {
        Ok(self.hash("VIPS")?.insert(key, 1u32, 0)?)
    }

    /// Makes a backend this one.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_backend(&mut self, id: u16, value: Backend) -> Result<()> {
        Ok(self.array("BACKENDS")?.set(u32::from(id), value, 0)?)
    }

    /// Sets a MAC address that the node answers to.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_own_mac(&mut self, index: u32, value: OwnMac) -> Result<()> {
        Ok(self.array("OWN_MACS")?.set(index, value, 0)?)
    }

    /// Sets the MAC address of another balancer for a service, and the service's backend on this node.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_peer_mac(&mut self, key: PeerKey, id: u16) -> Result<()> {
        Ok(self.hash("PEER_MACS")?.insert(key, u32::from(id), 0)?)
    }

    /// Makes a backend in mode `nat` known by the source of its answers.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_reverse_nat(&mut self, key: ReverseKey, id: u16) -> Result<()> {
        self.hash("REVERSE_NAT")?.insert(key, u32::from(id), 0)?;
        Ok(self.array("NAT_BACKENDS")?.set(0, 1_u32, 0)?)
    }

    /// Lets answers be redirected to an interface, by an element of the map.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_return_egress(&mut self, element: u32) -> Result<()> {
        Ok(self.array("RETURN_EGRESS")?.set(0, element, 0)?)
    }

    /// Answers by backend, of all CPUs: packets, bytes, SYN-ACKs and refusals.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn returns(&mut self) -> Result<HashMap<u16, [u64; 4]>> {
        let (cpus, backends) = (self.cpus, self.backends);
        let counters = self.array::<[u64; 8]>("RETURN_COUNTERS")?;
        let mut sums = HashMap::new();
        for index in 0..backends * cpus {
            let [counts @ .., _, _, _, _] = counters.get(&index, 0)?;
            if counts[0] > 0 {
                let sums: &mut [u64; 4] = sums.entry(u16::try_from(index % backends)?).or_default();
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
        }
        Ok(sums)
    }

    /// TCP connections to backends in mode `nat`.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn nat_connections(&mut self) -> Result<HashMap<NatConnectionKey, NatConnectionValue>> {
        Ok(self.hash("NAT_CONNECTIONS")?.iter().collect::<Result<_, _>>()?)
    }

    /// Forgets a mark of a connection that was noted lately, on each CPU.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn clear_nat_recent(&mut self, index: u32) -> Result<()> {
        let cpus = self.cpus;
        let mut marks = self.array::<u64>("NAT_RECENT")?;
        for cpu in 0..cpus {
            marks.set(cpu * nat_connections::RECENT + index, 0, 0)?;
        }
        Ok(())
    }

    /// Removes one.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn remove_nat_connection(&mut self, key: &NatConnectionKey) -> Result<()> {
        let mut map = self.hash::<NatConnectionKey, NatConnectionValue>("NAT_CONNECTIONS")?;
        Ok(map.remove(key)?)
    }

    /// Publishes the ring of a service, as the words of its slots.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_ring(&mut self, service: u16, slots: &[u64]) -> Result<()> {
        let mut ring = Ring::create(u32::try_from(slots.len())?, MMAPABLE_INNER)?;
        for (index, slot) in slots.iter().enumerate() {
            ring.set(u32::try_from(index)?, slot, 0)?;
        }
        let map = self.ebpf.map_mut("RINGS").context("no map RINGS")?;
        let mut rings: ArrayOfMaps<&mut MapData, Ring> = map.try_into()?;
        Ok(rings.set(u32::from(service), &ring, 0)?)
    }

    /// The ring of a service.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn ring(&mut self, service: u16) -> Result<Vec<u64>> {
        let map = self.ebpf.map_mut("RINGS").context("no map RINGS")?;
        let rings: ArrayOfMaps<&mut MapData, Ring> = map.try_into()?;
        let ring = rings.get(&u32::from(service), 0)?;
        Ok(ring.iter().collect::<Result<_, _>>()?)
    }

    /// Puts a pin into its table.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_pin(&mut self, key: FlowKey, value: FlowValue) -> Result<()> {
        Ok(self.hash("PINS")?.insert(key, value, 0)?)
    }

    /// Puts a tracked flow into its table.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_tracked(&mut self, key: FlowKey, value: FlowValue) -> Result<()> {
        Ok(self.hash("TRACKED")?.insert(key, value, 0)?)
    }

    /// Puts a connection into its table.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_connection(&mut self, key: ConnectionKey, value: FlowValue) -> Result<()> {
        Ok(self.hash("CONNECTIONS")?.insert(key, value, 0)?)
    }

    /// Puts a fragmented packet into its table.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_fragment(&mut self, key: FragmentKey, value: Fragment) -> Result<()> {
        Ok(self.hash("FRAGMENTS")?.insert(key, value, 0)?)
    }

    /// All pins.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn pins(&mut self) -> Result<HashMap<FlowKey, FlowValue>> {
        Ok(self.hash("PINS")?.iter().collect::<Result<_, _>>()?)
    }

    /// All tracked flows.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn tracked(&mut self) -> Result<HashMap<FlowKey, FlowValue>> {
        Ok(self.hash("TRACKED")?.iter().collect::<Result<_, _>>()?)
    }

    /// All connections.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn connections(&mut self) -> Result<HashMap<ConnectionKey, FlowValue>> {
        Ok(self.hash("CONNECTIONS")?.iter().collect::<Result<_, _>>()?)
    }

    /// The mark of a QUIC handshake.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn handshake(&mut self, place: u32) -> Result<u64> {
        Ok(self.array("HANDSHAKES")?.get(&place, 0)?)
    }

    /// Forgets a QUIC handshake.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn clear_handshake(&mut self, place: u32) -> Result<()> {
        Ok(self.array::<u64>("HANDSHAKES")?.set(place, 0, 0)?)
    }

    /// All fragmented packets.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn fragments(&mut self) -> Result<HashMap<FragmentKey, Fragment>> {
        Ok(self.hash("FRAGMENTS")?.iter().collect::<Result<_, _>>()?)
    }

    /// Sets the unanswered SYNs on the CPU that everything runs on.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_unanswered(&mut self, id: u16, word: u64) -> Result<()> {
        let counter = [0, 0, 0, 0, 0, word, 0, 0];
        Ok(self.array::<[u64; 8]>("BACKEND_COUNTERS")?.set(u32::from(id), counter, 0)?)
    }

    /// Gives every CPU this share of a service's SYN budget, whose bucket is empty.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_share(&mut self, service: u16, share: u32) -> Result<()> {
        let cpus = self.cpus;
        let mut budgets = self.array::<[u64; 2]>("SYN_BUDGETS")?;
        for cpu in 0..cpus {
            budgets.set(cpu * SERVICES + u32::from(service), [u64::from(share) << 32, 0], 0)?;
        }
        Ok(())
    }

    /// Takes a flow out of its table.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn remove_pin(&mut self, key: &FlowKey) -> Result<()> {
        Ok(self.hash::<FlowKey, FlowValue>("PINS")?.remove(key)?)
    }

    /// The same for a tracked flow.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn remove_tracked(&mut self, key: &FlowKey) -> Result<()> {
        Ok(self.hash::<FlowKey, FlowValue>("TRACKED")?.remove(key)?)
    }

    /// The same for a connection.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn remove_connection(&mut self, key: &ConnectionKey) -> Result<()> {
        Ok(self.hash::<ConnectionKey, FlowValue>("CONNECTIONS")?.remove(key)?)
    }

    /// The same for a fragmented packet.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn remove_fragment(&mut self, key: &FragmentKey) -> Result<()> {
        Ok(self.hash::<FragmentKey, Fragment>("FRAGMENTS")?.remove(key)?)
    }

    /// Sets one slot of the ring of a service.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn put_slot(&mut self, service: u16, index: u32, slot: u64) -> Result<()> {
        let map = self.ebpf.map_mut("RINGS").context("no map RINGS")?;
        let rings: ArrayOfMaps<&mut MapData, Ring> = map.try_into()?;
        let mut ring = rings.get(&u32::from(service), 0)?;
        Ok(ring.set(index, slot, 0)?)
    }

    /// Forgets a SYN, by the place of its mark.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn clear_syn_mark(&mut self, index: u32) -> Result<()> {
        Ok(self.array::<u32>("SYN_MARKS")?.set(index, 0, 0)?)
    }

    /// Forgets the notes of pins of the CPU that everything runs on.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn clear_notes(&mut self) -> Result<()> {
        Ok(self.array::<[u64; 8]>("PIN_LOG_HEADS")?.set(0, [0; 8], 0)?)
    }

    /// Lets pins be made until this time; 0 for always.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn lease_pins(&mut self, until: u64) -> Result<()> {
        Ok(self.array::<u64>("PIN_LEASE")?.set(0, until, 0)?)
    }

    /// The flows whose pins were noted, by CPU and in order; those that were written over are missing.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn notes(&mut self) -> Result<Vec<FlowKey>> {
        let mut keys = Vec::new();
        for cpu in 0..self.cpus {
            let written = self.array::<[u64; 8]>("PIN_LOG_HEADS")?.get(&cpu, 0)?[0];
            let notes = self.array::<[u64; 4]>("PIN_LOG")?;
            for number in written.saturating_sub(PIN_NOTES.into())..written {
                let place = cpu * PIN_NOTES + (number % u64::from(PIN_NOTES)) as u32;
                let note: abi::PinNote = transmute!(notes.get(&place, 0)?);
                keys.push(note.read(number).with_context(|| format!("note {number} is no note"))?);
            }
        }
        Ok(keys)
    }

    /// Packets and bytes by reason, of all CPUs; reasons that were never met are absent.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn verdicts(&mut self) -> Result<HashMap<u32, [u64; 2]>> {
        let cpus = self.cpus;
        let counters = self.array::<[u64; 2]>("VERDICTS")?;
        let mut sums = HashMap::new();
        for index in 0..REASONS * cpus {
            let [packets, bytes] = counters.get(&index, 0)?;
            if packets > 0 {
                let sum: &mut [u64; 2] = sums.entry(index % REASONS).or_default();
                sum[0] += packets;
                sum[1] += bytes;
            }
        }
        Ok(sums)
    }

    /// Counters by backend, of all CPUs; backends that got nothing are absent.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn counts(&mut self) -> Result<HashMap<u16, BackendCount>> {
        let (cpus, backends) = (self.cpus, self.backends);
        let counters = self.array::<[u64; 8]>("BACKEND_COUNTERS")?;
        let mut sums = HashMap::new();
        for index in 0..backends * cpus {
            let counter = counters.get(&index, 0)?;
            if counter != [0; 8] {
                let id = u16::try_from(index % backends)?;
                let sum: &mut BackendCount = sums.entry(id).or_default();
                for (sum, count) in sum.iter_mut().zip(counter) {
                    *sum += count;
                }
            }
        }
        Ok(sums)
    }
}
