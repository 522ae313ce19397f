//! The object in the kernel, loaded with maps as small as the tests need them, and runs of its programs. `maps` fills
//! the maps and reads them.

mod maps;

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    programs::{SchedClassifier, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{
        self, Backend, ConnectionKey, FlowKey, FlowValue, Fragment, FragmentKey, PIN_NOTES,
        Service, ServiceKeyV4, ServiceKeyV6,
    },
    nat_connections, return_route,
    service_index::{self, Entry},
    verdict::REASONS,
    wide::{PORTS_PER_SERVICE, PortPrefix, VipPrefix, WideKey},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use zerocopy::IntoBytes as _;

use super::{generate::INGRESS, hook::Hook, raw_ip::Interfaces};
use crate::mounts::{self, BPFFS};

const SERVICES: u32 = 64;
/// So few that some have one service, some several, and some more than they have room for.
const BUCKETS: u32 = 4;
/// So many that none makes room for another, and no more: all are read again and again.
pub(super) const FLOWS: u32 = 4_096;

/// The object in the kernel, not attached to anything.
pub struct Kernel {
    hook: Hook,
    /// Of [`Hook::RawIp`].
    interfaces: Option<Interfaces>,
    pub(in crate::datapath) ebpf: Ebpf,
    cpus: u32,
    backends: u32,
}

/// Has this thread run on the first CPU only: counters are per CPU.
///
/// # Errors
///
/// The kernel refuses it.
pub fn stay_on_one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("bind to one CPU")
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
            .map_max_entries("NAT_CONNECTIONS", FLOWS)
            .map_max_entries("VERDICTS", REASONS * cpus)
            .map_max_entries("BACKEND_COUNTERS", backends * cpus)
            .map_max_entries("RETURN_COUNTERS", backends * cpus)
            .map_max_entries("REVERSE_NAT", backends)
            .map_max_entries("REVERSE_RANGES", backends * PORTS_PER_SERVICE)
            .map_max_entries("SYN_BUDGETS", SERVICES * cpus)
            .map_max_entries("ICMP_BUDGETS", cpus)
            .map_max_entries("TOO_BIG_BUDGETS", cpus * abi::TOO_BIG_BUDGETS)
            .map_max_entries("RETURN_ROUTES", cpus * return_route::SLOTS)
            .map_max_entries("NAT_RECENT", cpus * nat_connections::RECENT)
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
            ("REVERSE_NAT", size_of::<abi::ReverseKey>(), 4),
            ("REVERSE_RANGES", size_of::<abi::ReversePrefix>(), 4),
            ("WIDE_SERVICES", size_of::<WideKey>(), size_of::<Service>()),
            ("WIDE_VIPS", size_of::<VipPrefix>(), 4),
            ("WIDE_PORTS", size_of::<PortPrefix>(), 4),
            (
                "NAT_CONNECTIONS",
                size_of::<abi::NatConnectionKey>(),
                size_of::<abi::NatConnectionValue>(),
            ),
            ("RETURN_COUNTERS", 4, size_of::<abi::ReturnCounter>()),
            ("SYN_BUDGETS", 4, size_of::<abi::TokenBucket>()),
            ("ICMP_BUDGETS", 4, size_of::<abi::TokenBucket>()),
            ("TOO_BIG_BUDGETS", 4, size_of::<abi::TokenBucket>()),
            ("RETURN_ROUTES", 4, size_of::<return_route::ReturnRoute>()),
            ("PIN_LOG", 4, size_of::<abi::PinNote>()),
            ("PIN_LOG_HEADS", 4, size_of::<abi::PinLogHead>()),
            ("PIN_LEASE", 4, size_of::<abi::PinLease>()),
        ];
        for (name, key, value) in expected {
            let info = match self.ebpf.map(name).with_context(|| format!("no map {name}"))? {
                aya::maps::Map::HashMap(data)
                | aya::maps::Map::LruHashMap(data)
                | aya::maps::Map::LpmTrie(data)
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
