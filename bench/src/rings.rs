//! The cost of a ring's change, from the operator's wish to the last slot written in the kernel,
//! and the memory of the maps.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    process::{self, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use kit::reports::datapath::{MapMemory, RingCase};
use lb_common::abi::ABI_VERSION;
use lb_control::engine::Engine;
use lb_datapath::{Xdp, detach};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Desired, Mode, Service},
    hop::{Neighbourhood, NextHop, Resolution},
    maglev::{self, Member},
    settings::Settings,
    time::Now,
};

use crate::harness::SLOTS;

const SIZES: [usize; 3] = [10, 100, 1_000];
/// The process enters a network namespace of its own, so the name is no one else's.
const INTERFACE: &str = "lbb0";

/// The data plane in a network namespace of this process, with pins of its own.
struct Testbed {
    settings: Settings,
}

impl Testbed {
    fn new() -> Result<Self> {
        // SAFETY: no pointer is passed; the process has one thread.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(left == 0, "make a network namespace: {}", std::io::Error::last_os_error());
        ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", "lbb1"])?;
        for interface in [INTERFACE, "lbb1"] {
            ip(&["link", "set", interface, "up"])?;
        }
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/lb-bench-{}", process::id()));
        let settings =
            Settings { interfaces: vec![INTERFACE.into()], pin_dir, ..Settings::default() };
        Ok(Self { settings })
    }

    fn engine(&self) -> Result<Engine<Xdp>> {
        Engine::adopt(Xdp::open(&self.settings)?, &self.settings)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // The rest would be pinned for ever; there is no caller for the error.
        if let Err(err) = detach(&self.settings.pin_dir) {
            eprintln!("{} stays: {err:#}", self.settings.pin_dir.display());
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run ip")?;
    ensure!(status.success(), "ip {}", arguments.join(" "));
    Ok(())
}

fn address(n: usize) -> BackendAddress {
    Ipv4Addr::from(0x0a00_0100 + n as u32).into()
}

fn desired(backends: usize) -> Desired {
    let vip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100));
    let service = Service {
        ring_slots: SLOTS,
        backends: (0..backends).map(|n| (address(n), Backend::default())).collect(),
        ..Service::new(vip, 80, Mode::Ipip)
    };
    Desired { services: [("web".to_owned(), service)].into() }
}

fn neighbourhood(engine: &Engine<Xdp>) -> Neighbourhood {
    let mac = [2, 0, 0, 0, 0, 9];
    let l2 = [&mac[..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat();
    let hop = NextHop { ifindex: 2, interface: INTERFACE.into(), mac, l2, mtu: 1500 };
    let hops = engine.wants().into_iter().map(|want| (want, Resolution::Resolved(hop.clone())));
    Neighbourhood { hops: hops.collect(), ..Neighbourhood::default() }
}

/// Measures a drain of one backend of 10, 100 and 1,000, and its return.
pub fn measure(rounds: u32) -> Result<Vec<RingCase>> {
    let testbed = Testbed::new()?;
    SIZES.into_iter().map(|backends| measure_size(&testbed, backends, rounds)).collect()
}

fn measure_size(testbed: &Testbed, backends: usize, rounds: u32) -> Result<RingCase> {
    let mut engine = testbed.engine()?;
    let all = desired(backends);
    engine.set_desired(all.clone());
    let hops = neighbourhood(&engine);
    engine.set_neighbourhood(hops);
    engine.reconcile(Now::read())?;
    let mut drained = all.clone();
    let service = drained.services.get_mut("web").context("no service")?;
    service.backends.get_mut(&address(0)).context("no backend")?.admin =
        Admin::Draining { deadline: None };
    let members: Vec<_> =
        (1..backends).map(|n| Member { address: address(n), weight: 1 }).collect();
    let (mut builds, mut changes) = (Vec::new(), Vec::new());
    let mut slots_changed = 0;
    for round in 0..2 * rounds {
        let start = Instant::now();
        let table = maglev::table(&members, &testbed.settings.seed, SLOTS);
        builds.push(start.elapsed());
        ensure!(table.len() == SLOTS as usize, "the ring has {} slots", table.len());
        let next = if round % 2 == 0 { &drained } else { &all }.clone();
        let start = Instant::now();
        engine.set_desired(next);
        let outcome = engine.reconcile(Now::read())?;
        changes.push(start.elapsed());
        ensure!(outcome.slots_moved > 0, "no slot has changed");
        slots_changed = outcome.slots_moved as usize;
    }
    builds.sort_unstable();
    changes.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let (build, change) = (builds[builds.len() / 2], changes[changes.len() / 2]);
    drop(engine);
    detach(&testbed.settings.pin_dir)?;
    Ok(RingCase {
        backends,
        build_ms: millis(build),
        change_ms: millis(change),
        change_min_ms: millis(changes[0]),
        slots_changed,
    })
}

/// The memory of a map, as the kernel accounts it.
pub fn locked(map: &MapData) -> Result<u64> {
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(bytes.context("the kernel does not report the memory of a map")?.trim().parse()?)
}

/// The memory of the maps with the default capacities and one service.
pub fn memory() -> Result<Vec<MapMemory>> {
    let testbed = Testbed::new()?;
    let mut engine = testbed.engine()?;
    engine.set_desired(desired(3));
    let hops = neighbourhood(&engine);
    engine.set_neighbourhood(hops);
    engine.reconcile(Now::read())?;
    let folder = testbed.settings.pin_dir.join(format!("v{ABI_VERSION}"));
    let mut maps = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("program-") {
            continue;
        }
        let path = entry.path();
        let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let map_name = if name.starts_with("ring-") { "the service's ring".into() } else { name };
        maps.push(MapMemory { map: map_name, bytes: locked(&map)? });
    }
    maps.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    Ok(maps)
}
