//! The loaded object: maps filled from the model, frames run through the program.

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _,
    maps::{Array, ArrayOfMaps, HashMap as BpfHashMap, MapData},
    programs::{SchedClassifier, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{
        self, Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, PIN_NOTES,
        PeerKey, Service, ServiceKeyV4, ServiceKeyV6, VipKey, mapped,
    },
    service_index::{self, Entry, OVERFLOW, Place, WAYS},
    verdict::REASONS,
};
use zerocopy::{IntoBytes as _, transmute};

use super::{generate::INGRESS, hook::Hook, model::BackendCount, raw_ip::Interfaces};
use crate::mounts::{self, BPFFS};

const SERVICES: u32 = 64;
/// So few that some have one service, some several, and some more than they have room for.
const BUCKETS: u32 = 4;
/// So many that none makes room for another, and no more: all are read again and again.
pub(super) const FLOWS: u32 = 4_096;
const MMAPABLE_INNER: u32 = 1 << 10 | 1 << 12;

/// A ring's slots as words.
type Ring = Array<MapData, u64>;

/// The object in the kernel, not attached to anything.
pub struct Kernel {
    hook: Hook,
    /// Of [`Hook::RawIp`].
    interfaces: Option<Interfaces>,
    ebpf: Ebpf,
    cpus: u32,
    backends: u32,
}

/// Has this thread run on the first CPU only: counters are per CPU.
///
/// # Errors
///
/// The kernel refuses it.
pub fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU 0 is within the set.
    unsafe { libc::CPU_SET(0, &mut set) };
    // SAFETY: the set is valid and of the size that is passed.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    ensure!(result == 0, "bind to one CPU: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A folder of pins, removed with its content when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lbt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        mounts::bpffs()?;
        let path = Path::new(BPFFS).join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The map itself lives as long as the program.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a frame of which the first buffer has so many bytes through a program; Linux 6.18.
///
/// # Errors
///
/// The kernel refuses it.
pub fn run_in_buffers(program: &Xdp, frame: &[u8], first: usize) -> Result<(u32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + 256];
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(first)?, 0, INGRESS, 0, 0];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(context.as_bytes()),
        ..TestRunOptions::new()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

impl Kernel {
    /// Loads the balancer's object with so much room; as root.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load(object: &[u8], backends: u32, pins: u32) -> Result<Self> {
        Self::load_with(object, backends, pins, FLOWS, u32::MAX)
    }

    /// The same with so much room for tracked flows, and so many ICMP errors a second.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load_with(
        object: &[u8],
        backends: u32,
        pins: u32,
        tracked: u32,
        icmp_rate: u32,
    ) -> Result<Self> {
        Self::load_at(Hook::Xdp, object, backends, pins, tracked, icmp_rate)
    }

    /// The same with the program of a hook. For [`Hook::RawIp`] the calling thread moves to a network namespace of its own.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn load_at(
        hook: Hook,
        object: &[u8],
        backends: u32,
        pins: u32,
        tracked: u32,
        icmp_rate: u32,
    ) -> Result<Self> {
        // SAFETY: no precondition.
        let user = unsafe { libc::geteuid() };
        ensure!(user == 0, "the datapath tests load programs into the kernel: run them as root");
        let cpus = aya::util::nr_cpus().map_err(|(path, err)| anyhow::anyhow!("{path}: {err}"))?;
        let cpus = u32::try_from(cpus)?;
        // As the daemon makes it, since Linux 6.1 takes no rings into one that the loader makes.
        let folder = Folder::new()?;
        lb_datapath::pin_rings(&folder.0, SERVICES)?;
        let mut loader = EbpfLoader::new();
        let object = lb_datapath::with_pull_data(object, &mut loader);
        let mut ebpf = loader
            .map_max_entries("SERVICES_V4", SERVICES)
            .map_max_entries("SERVICE_INDEX", BUCKETS)
            .map_max_entries("SERVICE_ENTRIES", SERVICES)
            .map_max_entries("SERVICES_V6", SERVICES)
            .map_max_entries("RINGS", SERVICES)
            .map_pin_path("RINGS", folder.0.join("RINGS"))
            .map_max_entries("VIPS", SERVICES)
            .map_max_entries("BACKENDS", backends)
            .map_max_entries("PINS", pins)
            .map_max_entries("TRACKED", tracked)
            .map_max_entries("CONNECTIONS", FLOWS)
            .map_max_entries("FRAGMENTS", FLOWS)
            .map_max_entries("VERDICTS", REASONS * cpus)
            .map_max_entries("BACKEND_COUNTERS", backends * cpus)
            .map_max_entries("SYN_BUDGETS", SERVICES * cpus)
            .map_max_entries("ICMP_BUDGETS", cpus)
            .map_max_entries("TOO_BIG_BUDGETS", cpus * abi::TOO_BIG_BUDGETS)
            .map_max_entries("PIN_LOG", PIN_NOTES * cpus)
            .map_max_entries("PIN_LOG_HEADS", cpus)
            .override_global("BACKENDS_PER_CPU", &backends, true)
            .override_global("SERVICE_INDEX_MASK", &(BUCKETS - 1), true)
            .override_global("SERVICES_PER_CPU", &SERVICES, true)
            .override_global("ICMP_RATE", &icmp_rate, true)
            .load(&object)
            .context("load the maps")?;
        let program = ebpf.program_mut(hook.program()).context("the object lacks a program")?;
        match hook {
            Hook::Xdp => lb_datapath::load_program(<&mut Xdp>::try_from(&mut *program)?),
            Hook::Tc | Hook::RawIp => {
                lb_datapath::load_program(<&mut SchedClassifier>::try_from(&mut *program)?)
            }
        }
        .context("load the program")?;
        let interfaces = match hook {
            Hook::Xdp | Hook::Tc => None,
            Hook::RawIp => Some(Interfaces::with(program.try_into()?)?),
        };
        Ok(Self { hook, interfaces, ebpf, cpus, backends })
    }

    /// Runs one frame; returns the action and the frame that is left.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn run(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.run_segmented(frame, 0)
    }

    /// The same with a frame that is to leave in segments of so many bytes of payload, unless that is 0; for tc.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn run_segmented(&self, frame: &[u8], segment: u32) -> Result<(u32, Vec<u8>)> {
        if let Some(interfaces) = &self.interfaces {
            return interfaces.run(frame);
        }
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let program = self.ebpf.program(self.hook.program()).context("no program")?;
        let result = match self.hook {
            Hook::Xdp => <&Xdp>::try_from(program)?.test_run(options)?,
            Hook::Tc | Hook::RawIp => {
                // `struct __sk_buff` of linux/bpf.h has 48 words, `gso_size` is the 45th.
                let mut context = [0_u32; 48];
                context[44] = segment;
                let ctx_in = Some(context.as_bytes());
                let program = <&SchedClassifier>::try_from(program)?;
                program.test_run(TestRunOptions { ctx_in, ..options })?
            }
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// The same with so many bytes in the frame's first buffer, and the others behind it; Linux 6.18.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn run_in_buffers(&self, frame: &[u8], first: usize) -> Result<(u32, Vec<u8>)> {
        let program: &Xdp = self.ebpf.program("balance").context("no `balance`")?.try_into()?;
        run_in_buffers(program, frame, first)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<BpfHashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        map.try_into().with_context(|| name.to_owned())
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
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

    /// The kernel's memory for a hash map.
    ///
    /// # Errors
    ///
    /// There is no such map, or the kernel does not report its memory.
    pub fn memory_bytes(&self, name: &str) -> Result<u64> {
        use aya::maps::Map;
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = map else {
            anyhow::bail!("{name} is no hash map");
        };
        let fd = data.fd().as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(bytes.context("the kernel does not report the memory of a map")?.trim().parse()?)
    }

    /// Whether the object's maps have the sizes of the types in [`abi`].
    ///
    /// # Errors
    ///
    /// One has not.
    pub fn check_sizes(&mut self) -> Result<()> {
        let expected = [
            ("SERVICES_V4", size_of::<ServiceKeyV4>(), size_of::<Service>()),
            ("SERVICES_V6", size_of::<ServiceKeyV6>(), size_of::<Service>()),
            ("SERVICE_INDEX", 4, size_of::<service_index::Bucket>()),
            ("SERVICE_ENTRIES", 4, size_of::<Entry>()),
            ("BACKENDS", 4, size_of::<Backend>()),
            ("PINS", size_of::<FlowKey>(), size_of::<FlowValue>()),
            ("TRACKED", size_of::<FlowKey>(), size_of::<FlowValue>()),
            ("CONNECTIONS", size_of::<ConnectionKey>(), size_of::<FlowValue>()),
            ("HANDSHAKES", 4, size_of::<u64>()),
            ("FRAGMENTS", size_of::<FragmentKey>(), size_of::<Fragment>()),
            ("VERDICTS", 4, size_of::<abi::VerdictCounter>()),
            ("BACKEND_COUNTERS", 4, size_of::<abi::BackendCounter>()),
            ("SYN_BUDGETS", 4, size_of::<abi::SynBudget>()),
            ("ICMP_BUDGETS", 4, size_of::<abi::SynBudget>()),
            ("TOO_BIG_BUDGETS", 4, size_of::<abi::SynBudget>()),
            ("PIN_LOG", 4, size_of::<abi::PinNote>()),
            ("PIN_LOG_HEADS", 4, size_of::<abi::PinLogHead>()),
            ("PIN_LEASE", 4, size_of::<abi::PinLease>()),
        ];
        for (name, key, value) in expected {
            let info = match self.ebpf.map(name).with_context(|| format!("no map {name}"))? {
                aya::maps::Map::HashMap(data)
                | aya::maps::Map::LruHashMap(data)
                | aya::maps::Map::Array(data) => data.info()?,
                other => anyhow::bail!("{name} is {other:?}"),
            };
            ensure!(
                (info.key_size() as usize, info.value_size() as usize) == (key, value),
                "{name}: the kernel has {} and {} bytes, the types {key} and {value}",
                info.key_size(),
                info.value_size()
            );
        }
        Ok(())
    }
}
