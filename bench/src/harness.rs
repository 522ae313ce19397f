//! The programs in the kernel: the balancer with its tables, the floors, and `restore` around them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapData, lpm_trie},
    programs::{
        ProgramFd, SchedClassifier, TcAttachType, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
        tc::{self, SchedClassifierLink},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use lb_common::{
    abi::{
        Backend, FlowKey, FlowValue, OwnMac, Owners, PIN_NOTES, RETURN_EGRESS_TC, ReverseKey,
        Service, ServiceKeyV4, ServiceKeyV6, TOO_BIG_BUDGETS, backend_flags, mapped, service_flags,
        stamp,
    },
    capture::{ANY, Plan as CapturePlan},
    hash::FlowKeys,
    nat, nat_connections, return_route, rewrite,
    service_index::{Entry, Place, WAYS, buckets},
    verdict::REASONS,
    wide::{PortPrefix, WideKey},
};
use lb_datapath::{objects, reverse_prefixes, service_tries};
use lb_inspect::capture::Spec;
use lb_model::entry::ReverseRange;
use zerocopy::{FromBytes as _, IntoBytes};

use crate::{
    frames::{self, OWN, Plan, VIP_V4, VIP_V6},
    runner::{Runner, load, program_fd},
};

/// Slots of every ring.
pub const SLOTS: u32 = 65_537;
/// Backends of every service.
const BACKENDS: u16 = 100;
const SERVICES: u32 = 32;
const MAX_BACKENDS: u32 = 4_097;
const PINS: u32 = 2 * 1_048_576;
const MMAPABLE_INNER: u32 = 1 << 10 | 1 << 12;
/// The interface that a test run gives a frame for its ingress.
const LOOPBACK: u32 = 1;

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A floor: `transmit`, `swap` or `encapsulate`.
    Floor(&'static str),
    /// The balancer's.
    Balancer,
    /// The balancer's without log messages.
    Silent,
    /// The one that captures, with a filter for another service.
    CapturesOthers,
    /// The one that captures, with a filter for all packets, as many as `lbctl capture` takes by default.
    Captures,
}

/// Whether a ring is in flux, and its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flux {
    /// The steady state.
    Steady,
    /// Every slot has a base owner; no pins.
    Unpinned,
    /// Every slot has a base owner, and this many flows are pinned.
    Pinned(u32),
    /// No slot has an owner.
    Unowned,
}

/// A service to measure.
pub struct Setup {
    /// Whether its VIP is IPv6.
    pub v6: bool,
    /// Its port, or the first one.
    pub port: u16,
    /// Ports after it: more than none are of the only such service.
    pub more_ports: u16,
    /// Its protocol.
    pub proto: u8,
    /// For UDP, its policy.
    pub udp_policy: u8,
    /// Flags of its backends, without the one that they are usable.
    pub backend: u8,
    /// The state of its ring.
    pub flux: Flux,
    /// Pins that it may make in a second.
    pub syn_budget: u32,
}

/// The programs and their maps.
pub struct Harness {
    balancer: Ebpf,
    silent: Ebpf,
    capture: Ebpf,
    bench: Runner,
    cpus: u32,
    services: u16,
    /// The interface of the backends of a service that is added.
    ifindex: u32,
    /// Bits that every client's address has.
    base: u32,
}

/// Frames that one call into the kernel makes at a time; as in the program.
const BATCH: u32 = 64;

impl Harness {
    /// Loads everything for test runs; the maps are empty.
    pub fn load() -> Result<Self> {
        Self::load_for(LOOPBACK, 0)
    }

    /// The same, with all backends on this interface and all clients' addresses of these bits.
    pub fn load_for(ifindex: u32, base: u32) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(path, err)| anyhow::anyhow!("{path}: {err}"))?;
        let cpus = u32::try_from(cpus)?;
        let mut shared = Shared::with_rings()?;
        let mut balancer = object(objects::BALANCER, cpus, &shared)?;
        load(&mut balancer, "balance")?;
        // Its variants have the same maps.
        shared.pin(&balancer)?;
        let mut silent = object(objects::SILENT, cpus, &shared)?;
        load(&mut silent, "silent")?;
        let mut capture = object(objects::CAPTURE, cpus, &shared)?;
        load(&mut capture, "capture")?;
        let bench = Runner::load()?;
        let mut macs: Array<_, OwnMac> =
            balancer.map_mut("OWN_MACS").context("no map OWN_MACS")?.try_into()?;
        macs.set(0, OwnMac { mac: OWN, reserved: [0; 2] }, 0)?;
        Ok(Self { balancer, silent, capture, bench, cpus, services: 0, ifindex, base })
    }

    /// Adds a service with its backends and its ring.
    pub fn add(&mut self, setup: &Setup) -> Result<()> {
        let id = self.services;
        self.services += 1;
        let first = 1 + id * BACKENDS;
        let service = Service {
            keys: FlowKeys::derive(&[7; 16], &id.to_be_bytes()).0,
            slots: SLOTS,
            id,
            udp_policy: setup.udp_policy,
            flags: service_flags::SECOND_CHOICE
                | if setup.more_ports == 0 { 0 } else { service_flags::WIDE },
            idle_timeout: 900,
            syn_budget: setup.syn_budget,
        };
        let mut backends: Array<_, Backend> =
            self.balancer.map_mut("BACKENDS").context("no map BACKENDS")?.try_into()?;
        for n in 0..BACKENDS {
            let mut backend = backend(setup.backend, n as u8, self.ifindex);
            if nat::is_nat(&backend) {
                (backend.vip, backend.proto) = (mapped(VIP_V4), setup.proto);
                if setup.more_ports == 0 {
                    backend.port = target_port(setup.port).into();
                    backend.vip_port = setup.port.into();
                } else {
                    backend.first_port = setup.port.into();
                    backend.last_port = (setup.port + setup.more_ports).into();
                }
            }
            backends.set(u32::from(first + n), backend, 0)?;
        }
        if setup.backend & backend_flags::NAT != 0 {
            self.reverse(setup, first)?;
        }
        let now = monotonic_secs();
        let pinned = if let Flux::Pinned(_) = setup.flux { stamp(now) } else { 0 };
        let mut ring = Array::<MapData, u64>::create(SLOTS, MMAPABLE_INNER)?;
        for slot in 0..SLOTS {
            let owner = |n: u32| first + (n % u32::from(BACKENDS)) as u16;
            let (current, base) = match setup.flux {
                Flux::Unowned => (0, 0),
                Flux::Steady => (owner(slot), 0),
                Flux::Unpinned | Flux::Pinned(_) => (owner(slot), owner(slot + 1)),
            };
            let word = u64::from(Owners { current, base }.to_word()) | u64::from(pinned) << 48;
            ring.set(slot, word, 0)?;
        }
        let rings = self.balancer.map_mut("RINGS").context("no map RINGS")?;
        let mut rings: ArrayOfMaps<_, Array<MapData, u64>> = rings.try_into()?;
        rings.set(u32::from(id), &ring, 0)?;
        if let Flux::Pinned(flows) = setup.flux {
            self.pin(setup, id, first, flows, now)?;
        }
        let (port, proto) = (setup.port.into(), setup.proto);
        let address = if setup.v6 { VIP_V6 } else { mapped(VIP_V4) };
        let map = self.balancer.map_mut("SERVICE_ENTRIES").context("no map SERVICE_ENTRIES")?;
        let entry = Entry { service, address, port, proto, reserved: [0; 5] };
        Array::<_, Entry>::try_from(map)?.set(u32::from(id), entry, 0)?;
        if setup.more_ports > 0 {
            let last = (setup.port + setup.more_ports).into();
            let key = WideKey { address, first: port, last, bits: 128, proto, reserved: [0; 2] };
            return self.publish_wide(key, id);
        }
        let mask = buckets(SERVICES) - 1;
        let place = if setup.v6 {
            let key = ServiceKeyV6 { address: VIP_V6, port, proto, reserved: 0 };
            let map = self.balancer.map_mut("SERVICES_V6").context("no map SERVICES_V6")?;
            HashMap::<_, ServiceKeyV6, Service>::try_from(map)?.insert(key, service, 0)?;
            Place::of_v6(&key, mask)
        } else {
            let key = ServiceKeyV4 { address: VIP_V4, port, proto, reserved: 0 };
            let map = self.balancer.map_mut("SERVICES_V4").context("no map SERVICES_V4")?;
            HashMap::<_, ServiceKeyV4, Service>::try_from(map)?.insert(key, service, 0)?;
            Place::of_v4(&key, mask)
        };
        let map = self.balancer.map_mut("SERVICE_INDEX").context("no map SERVICE_INDEX")?;
        let mut index: Array<_, [u32; WAYS]> = map.try_into()?;
        let mut words = index.get(&place.bucket, 0)?;
        let free = words.iter_mut().find(|word| **word == 0).context("the bucket is full")?;
        *free = place.word(id);
        Ok(index.set(place.bucket, words, 0)?)
    }

    /// Makes a service with several ports be found; there is one.
    fn publish_wide(&mut self, key: WideKey, id: u16) -> Result<()> {
        let (vips, ports) = service_tries(&[(key, id)].into());
        let map = self.balancer.map_mut("WIDE_VIPS").context("no map WIDE_VIPS")?;
        let mut by_vip: LpmTrie<_, [u8; 16], u32> = map.try_into()?;
        for (group, vip) in (0..).zip(&vips) {
            by_vip.insert(&lpm_trie::Key::new(vip.bits, vip.address), group, 0)?;
        }
        let map = self.balancer.map_mut("WIDE_PORTS").context("no map WIDE_PORTS")?;
        let mut by_port: LpmTrie<_, u64, u32> = map.try_into()?;
        for (port, id) in &ports {
            let last = u16::from_ne_bytes(port.port.to_bytes());
            let word = PortPrefix::word(port.group, port.proto, last);
            by_port.insert(&lpm_trie::Key::new(port.bits, word), u32::from(*id), 0)?;
        }
        self.set_wide_groups(vips.len() as u32)
    }

    /// From here on, no service with several ports is found.
    pub fn withdraw_wide(&mut self) -> Result<()> {
        self.set_wide_groups(0)
    }

    fn set_wide_groups(&mut self, count: u32) -> Result<()> {
        let map = self.balancer.map_mut("WIDE_GROUPS").context("no map WIDE_GROUPS")?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, count, 0)?)
    }

    /// Makes the backends of a service in mode `nat` known by the sources of their answers.
    fn reverse(&mut self, setup: &Setup, first: u16) -> Result<()> {
        let addresses = (first..).zip((0..BACKENDS).map(|n| mapped(address_v4(n as u8))));
        let proto = setup.proto;
        if setup.more_ports == 0 {
            let map = self.balancer.map_mut("REVERSE_NAT").context("no map REVERSE_NAT")?;
            let mut reverse: HashMap<_, ReverseKey, u32> = map.try_into()?;
            let port = target_port(setup.port).into();
            for (id, address) in addresses {
                let key = ReverseKey { address, port, proto, reserved: 0 };
                reverse.insert(key, u32::from(id), 0)?;
            }
        } else {
            let (first, last) = (setup.port, setup.port + setup.more_ports);
            let ranges =
                addresses.map(|(id, address)| (ReverseRange { address, proto, first, last }, id));
            let map = self.balancer.map_mut("REVERSE_RANGES").context("no map REVERSE_RANGES")?;
            let mut reverse: LpmTrie<_, [u8; 24], u32> = map.try_into()?;
            for (key, id) in &reverse_prefixes(&ranges.collect::<Vec<_>>()) {
                reverse.insert(&lpm_trie::Key::new(key.bits, key.data()), u32::from(*id), 0)?;
            }
        }
        let map = self.balancer.map_mut("NAT_BACKENDS").context("no map NAT_BACKENDS")?;
        let mut count: Array<_, u32> = map.try_into()?;
        let more = count.get(&0, 0)? + u32::from(BACKENDS);
        Ok(count.set(0, more, 0)?)
    }

    fn pin(&mut self, setup: &Setup, id: u16, first: u16, flows: u32, now: u32) -> Result<()> {
        let map = self.balancer.map_mut("PINS").context("no map PINS")?;
        let mut pins: HashMap<_, FlowKey, FlowValue> = map.try_into()?;
        for flow in 0..flows {
            let (address, port) = frames::client(self.base, flow);
            let source = if setup.v6 {
                let mut source = VIP_V6;
                source[12..].copy_from_slice(&address);
                source
            } else {
                mapped(address)
            };
            let key = FlowKey::new(source, u16::from_be_bytes(port).into(), id);
            pins.insert(key, FlowValue { backend: first + 50, flags: 1, seen: now }, 0)?;
        }
        Ok(())
    }

    /// The program, ready to run.
    pub fn program(&mut self, program: Program) -> Result<ProgramFd> {
        match program {
            Program::Floor(name) => self.bench.floor(name),
            Program::Balancer => program_fd(&self.balancer, "balance"),
            Program::Silent => program_fd(&self.silent, "silent"),
            // No service has this id.
            Program::CapturesOthers => self.captures(SERVICES),
            Program::Captures => self.captures(ANY),
        }
    }

    fn captures(&mut self, service: u32) -> Result<ProgramFd> {
        let spec = Spec::default();
        let plan = CapturePlan {
            until: u64::MAX,
            verdicts: u64::MAX,
            client: [0; 2],
            mask: [0; 2],
            service,
            backend: ANY,
            sample: u32::MAX,
            rate: spec.rate,
            snap: spec.snaplen,
            reserved: 0,
        };
        let map = self.capture.map_mut("CAPTURE_PLAN").context("no map CAPTURE_PLAN")?;
        let words: [u8; size_of::<CapturePlan>()] = plan.as_bytes().try_into()?;
        Array::<_, [u8; size_of::<CapturePlan>()]>::try_from(map)?.set(0, words, 0)?;
        program_fd(&self.capture, "capture")
    }

    /// Runs `target` behind `restore` on `packets` frames of the plan; nanoseconds of one.
    pub fn run(&mut self, target: &ProgramFd, plan: &mut Plan, packets: u32) -> Result<f64> {
        self.bench.run(target, plan, packets)
    }

    /// Lets a program take the frames of an interface, in native mode, until what is returned is
    /// dropped: `balance`, `sink`, `pass`, or a floor.
    pub fn attach(&mut self, name: &str, ifindex: u32) -> Result<XdpLink> {
        let ebpf = if name == "balance" { &mut self.balancer } else { &mut self.bench.object };
        let program: &mut Xdp =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        let id = program.attach_to_if_index(ifindex, XdpMode::Driver);
        let id = id.with_context(|| format!("attach {name} to interface {ifindex}"))?;
        Ok(program.take_link(id)?)
    }

    /// Lets `classify` take the packets of an interface, as [`Self::attach`] does.
    pub fn attach_tc(&mut self, interface: &str) -> Result<SchedClassifierLink> {
        let program = self.balancer.program_mut("classify").context("no program classify")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().context("load classify")?;
        // Linux before 6.6 has no TCX, but filters of this discipline.
        if KernelVersion::current()? < KernelVersion::new(6, 6, 0) {
            tc::qdisc_add_clsact(interface)
                .with_context(|| format!("add clsact to {interface}"))?;
        }
        let id = program.attach(interface, TcAttachType::Ingress);
        let id = id.with_context(|| format!("attach classify to {interface}"))?;
        Ok(program.take_link(id)?)
    }

    /// Puts the backends of services that are added from here on behind another interface, by which tc may also send their
    /// answers.
    pub fn send_by(&mut self, ifindex: u32) -> Result<()> {
        self.ifindex = ifindex;
        let map = self.balancer.map_mut("RETURN_EGRESS").context("no map RETURN_EGRESS")?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, ifindex | RETURN_EGRESS_TC, 0)?)
    }

    /// Sends so many frames of the plan to its interface; nanoseconds of one, with all that becomes of
    /// it on this CPU.
    ///
    /// From the first batch's begin to the last one's, so that the call's work before and after is
    /// not in it: for some of that it waits.
    pub fn generate(&mut self, plan: &mut Plan, packets: u32) -> Result<f64> {
        ensure!(
            packets.is_multiple_of(BATCH) && packets > BATCH,
            "{packets} packets are no whole batches"
        );
        (plan.first, plan.last) = (0, 0);
        let words: [u8; size_of::<Plan>()] = plan.as_bytes().try_into()?;
        let map = self.bench.object.map_mut("PLAN").context("no map PLAN")?;
        Array::<_, [u8; size_of::<Plan>()]>::try_from(map)?.set(0, words, 0)?;
        let frame = vec![0; plan.frame_len as usize];
        let generate: &Xdp =
            self.bench.object.program("generate").context("no generate")?.try_into()?;
        generate.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        let map = self.bench.object.map_mut("PLAN").context("no map PLAN")?;
        let words = Array::<_, [u8; size_of::<Plan>()]>::try_from(map)?.get(&0, 0)?;
        let runs = plan.runs + u64::from(packets);
        *plan = Plan::read_from_bytes(&words).map_err(|err| anyhow::anyhow!("{err}"))?;
        ensure!(plan.runs == runs, "{} frames were made, not {runs}", plan.runs);
        Ok((plan.last - plan.first) as f64 / f64::from(packets - BATCH))
    }

    /// Frames that `sink` has taken so far.
    pub fn sunk(&mut self) -> Result<u64> {
        let map = self.bench.object.map_mut("SUNK").context("no map SUNK")?;
        Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
    }

    /// Packets that went to any backend so far.
    pub fn forwarded(&mut self) -> Result<u64> {
        self.counted("BACKEND_COUNTERS")
    }

    /// Answers of any backend that went to clients so far.
    pub fn returned(&mut self) -> Result<u64> {
        self.counted("RETURN_COUNTERS")
    }

    fn counted(&mut self, map: &str) -> Result<u64> {
        let used = 1 + u32::from(self.services) * u32::from(BACKENDS);
        let map = self.balancer.map_mut(map).with_context(|| format!("no map {map}"))?;
        let counters: Array<_, [u64; 8]> = map.try_into()?;
        let mut sum = 0;
        for cpu in 0..self.cpus {
            for id in 0..used {
                sum += counters.get(&(cpu * MAX_BACKENDS + id), 0)?[0];
            }
        }
        Ok(sum)
    }
}

/// The maps of a program, pinned for others to find; the pins go with this.
struct Shared {
    folder: PathBuf,
    names: Vec<String>,
}

impl Shared {
    /// With a map of rings as the daemon makes it: Linux 6.1 takes no rings into one that the loader makes.
    fn with_rings() -> Result<Self> {
        let folder = Path::new("/sys/fs/bpf").join(format!("lb-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let shared = Self { folder, names: vec!["RINGS".to_owned()] };
        lb_datapath::pin_rings(&shared.folder, SERVICES)?;
        Ok(shared)
    }

    fn pin(&mut self, ebpf: &Ebpf) -> Result<()> {
        for (name, map) in ebpf.maps() {
            // The object's own data, which each has for itself.
            if name.contains('.') || self.names.iter().any(|known| known == name) {
                continue;
            }
            self.names.push(name.to_owned());
            map.pin(self.folder.join(name)).with_context(|| format!("pin {name}"))?;
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = fs::remove_file(self.folder.join(name));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// An object of the balancer or a variant of it.
fn object(object: &[u8], cpus: u32, shared: &Shared) -> Result<Ebpf> {
    let mask = buckets(SERVICES) - 1;
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries("PINS", PINS)
        .map_max_entries("VERDICTS", REASONS * cpus)
        .map_max_entries("BACKEND_COUNTERS", MAX_BACKENDS * cpus)
        .map_max_entries("RETURN_COUNTERS", MAX_BACKENDS * cpus)
        .map_max_entries("SYN_BUDGETS", SERVICES * cpus)
        .map_max_entries("ICMP_BUDGETS", cpus)
        .map_max_entries("TOO_BIG_BUDGETS", cpus * TOO_BIG_BUDGETS)
        .map_max_entries("RETURN_ROUTES", cpus * return_route::SLOTS)
        // More than the flows of any case, as an operator would set it.
        .map_max_entries("NAT_CONNECTIONS", 4 * 65_536)
        .map_max_entries("NAT_RECENT", cpus * nat_connections::RECENT)
        .map_max_entries("PIN_LOG", PIN_NOTES * cpus)
        .map_max_entries("PIN_LOG_HEADS", cpus)
        .map_max_entries("CAPTURE_COUNTERS", cpus)
        .map_max_entries("CAPTURE_BUDGETS", cpus)
        .override_global("BACKENDS_PER_CPU", &MAX_BACKENDS, true)
        .map_max_entries("SERVICE_INDEX", mask + 1)
        .map_max_entries("SERVICE_ENTRIES", SERVICES)
        .override_global("SERVICE_INDEX_MASK", &mask, true)
        .override_global("SERVICES_PER_CPU", &SERVICES, true);
    for name in &shared.names {
        loader.map_pin_path(name, shared.folder.join(name));
    }
    Ok(loader.load(object)?)
}

/// The port of the backends of a service in mode `nat` at this one.
pub const fn target_port(port: u16) -> u16 {
    port + 8_000
}

/// The address of a backend by its number.
pub const fn address_v4(n: u8) -> [u8; 4] {
    [10, 0, 0, n]
}

/// A backend with these flags that can be sent to; its MAC address ends in its number.
pub fn backend(flags: u8, n: u8, ifindex: u32) -> Backend {
    let is_v6 = flags & backend_flags::V6 != 0;
    let mut l2 = [0; 22];
    l2[..6].copy_from_slice(&[2, 0, 0, 0, 1, n]);
    l2[6..12].copy_from_slice(&OWN);
    l2[12..14].copy_from_slice(if is_v6 { &[0x86, 0xdd] } else { &[8, 0] });
    let address_v4 = address_v4(n);
    let source_v4 = [172, 16, 0, 0];
    let mut source = [0; 16];
    source[0] = 1;
    let mut address_v6 = VIP_V6;
    address_v6[15] = n;
    Backend {
        l2,
        l2_len: 14,
        flags: flags | backend_flags::USABLE,
        ifindex,
        mtu: 1480,
        service: 0,
        outer_sum: rewrite::ipv4_template_sum(source_v4, address_v4),
        source_mask: 0xffff,
        address_v4,
        source_v4,
        port: 0.into(),
        reserved0: [0; 14],
        address: if is_v6 { address_v6 } else { mapped(address_v4) },
        source,
        vip: [0; 16],
        vip_port: 0.into(),
        proto: 0,
        reserved1: 0,
        first_port: 0.into(),
        last_port: 0.into(),
        reserved2: [0; 8],
    }
}

fn monotonic_secs() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u32
}
