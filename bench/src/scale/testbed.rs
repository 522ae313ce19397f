//! The balancer's maps as `lbd` fills them, and its program over them, each of a size of its own; many
//! at once, so that they can be measured in turns.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::MapData,
    programs::{ProgramFd, ProgramInfo},
};
use kit::{namespace::Namespace, reports::scale::Memory};
use lb_common::abi::ABI_VERSION;
use lb_control::engine::Engine;
use lb_datapath::{Xdp, detach};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Desired, Mode, Service},
    flow::FlowTable,
    hop::{Neighbourhood, NextHop, Resolution},
    settings::{Limits, Settings},
    time::Now,
};
use lb_plane::{BackendTotals, Counters as _, Flows as _};

use crate::{
    frames::{OWN, Plan, VIP_V4},
    harness::SLOTS,
    rings,
    runner::Runner,
};

/// The port of the first service; the others' follow.
pub const PORT: u16 = 1_000;
/// The interface that a test run gives a frame for its ingress.
const LOOPBACK: u32 = 1;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// Services.
    pub services: u16,
    /// Backends of each of them.
    pub each: u16,
    /// None: the steady state. Otherwise the one service has other backends than before, all its slots
    /// are in flux, and as many flows were pinned since; beside it is another one in the steady state.
    pub pins: Option<u32>,
}

impl Size {
    /// Room for it: the defaults, and for the pins more where they are more.
    pub fn limits(self) -> Limits {
        let defaults = Limits::default();
        Limits { pins: defaults.pins.max(self.pins.unwrap_or(0)), ..defaults }
    }

    /// Backends of all services.
    pub fn backends(self) -> u32 {
        u32::from(self.services) * u32::from(self.each)
    }

    /// It, for people.
    pub fn words(self) -> String {
        let pins = self.pins.map_or_else(String::new, |pins| format!(", in flux with pins {pins}"));
        format!("services {}, backends of each {}{pins}", self.services, self.each)
    }

    fn desired(self) -> Desired {
        // The service beside one in flux is the last.
        let services = self.services + u16::from(self.pins.is_some());
        Desired { services: (0..services).map(|n| service(n, self.each)).collect() }
    }
}

/// The nth backend of a service.
pub fn address(service: u16, n: u16) -> BackendAddress {
    let before = u32::from(service) << 12;
    Ipv4Addr::from_bits(0x0b00_0000 + before + u32::from(n)).into()
}

fn name(n: u16) -> String {
    format!("s{n:03}")
}

fn service(n: u16, each: u16) -> (String, Service) {
    let service = Service {
        ring_slots: SLOTS,
        // The pins are to be limited by their number.
        syn_budget: u32::MAX,
        backends: (0..each).map(|at| (address(n, at), Backend::default())).collect(),
        ..Service::new(VIP_V4.into(), PORT + n, Mode::Ipip)
    };
    (name(n), service)
}

/// Maps of one size, with the program.
pub struct Testbed {
    /// How much is in them.
    pub size: Size,
    /// The engine's desired state of them.
    desired: Desired,
    // Before the pins: open maps are locked.
    engine: Engine<Xdp>,
    program: ProgramFd,
    settings: Settings,
    _pins: Pins,
}

impl Testbed {
    /// Makes the nth testbed, with an interface of its own in the namespace of the calling thread, which is
    /// `namespace`.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn new(namespace: &Namespace, n: usize, size: Size) -> Result<Self> {
        let interface = format!("lbs{n}");
        namespace.ip(&format!(
            "link add {interface} type veth peer name lbp{n}\nlink set {interface} up\n\
             link set lbp{n} up"
        ))?;
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/{}-{n}", namespace.name()));
        let settings = Settings {
            interfaces: vec![interface],
            pin_dir,
            limits: size.limits(),
            ..Settings::default()
        };
        let pins = Pins(settings.pin_dir.clone());
        let engine = Engine::adopt(Xdp::open(&settings)?, &settings)?;
        let program = program(&maps(&settings))?;
        let mut testbed =
            Self { size, desired: size.desired(), engine, program, settings, _pins: pins };
        testbed.meet()?;
        if size.pins.is_some() {
            testbed.replace_backends()?;
        }
        Ok(testbed)
    }

    /// Acts on the desired state, with a next hop for every backend.
    fn meet(&mut self) -> Result<()> {
        let engine = &mut self.engine;
        engine.set_desired(self.desired.clone());
        let mac = [2, 0, 0, 0, 0, 9];
        let l2 = [&mac[..], &OWN, &[8, 0]].concat();
        // A frame that a test run sends goes out where it came in.
        let hop = NextHop { ifindex: LOOPBACK, interface: "lo".into(), mac, l2, mtu: 1_500 };
        let hops = engine.wants().into_iter();
        let hops = hops.map(|want| (want, Resolution::Resolved(hop.clone()))).collect();
        let own_macs = vec![OWN];
        engine.set_neighbourhood(Neighbourhood { hops, own_macs, ..Neighbourhood::default() });
        engine.reconcile(Now::read())?;
        Ok(())
    }

    /// Puts all slots of the first service in flux: all its backends drain, and there are as many others.
    fn replace_backends(&mut self) -> Result<()> {
        let each = self.size.each;
        let service = self.desired.services.get_mut(&name(0)).context("no service")?;
        for backend in service.backends.values_mut() {
            backend.admin = Admin::Draining { deadline: None };
        }
        service.backends.extend((each..2 * each).map(|n| (address(0, n), Backend::default())));
        self.meet()
    }

    /// Drains a backend of the first service, or has it back: the time from the wish to the last slot
    /// written in the kernel, and how many have changed.
    ///
    /// # Errors
    ///
    /// If the maps can't be written, or no slot changes.
    pub fn change(&mut self, admin: Admin) -> Result<(Duration, u64)> {
        let service = self.desired.services.get_mut(&name(0)).context("no service")?;
        service.backends.get_mut(&address(0, 0)).context("no backend")?.admin = admin;
        let desired = self.desired.clone();
        let begun = Instant::now();
        self.engine.set_desired(desired);
        let outcome = self.engine.reconcile(Now::read())?;
        let took = begun.elapsed();
        ensure!(outcome.slots_moved > 0, "no slot has changed");
        Ok((took, outcome.slots_moved))
    }

    /// Runs the program on so many packets of the plan; nanoseconds of one.
    ///
    /// # Errors
    ///
    /// If not every packet is counted for a backend.
    pub fn run(&mut self, runner: &mut Runner, plan: &mut Plan, packets: u32) -> Result<f64> {
        let before = self.sum(|totals| totals.sent.packets)?;
        let nanos = runner.run(&self.program, plan, packets)?;
        let forwarded = self.sum(|totals| totals.sent.packets)? - before;
        ensure!(
            forwarded == u64::from(packets),
            "{forwarded} packets were counted, {packets} were run"
        );
        Ok(nanos)
    }

    /// A counter of all backends together.
    ///
    /// # Errors
    ///
    /// If the counters can't be read.
    pub fn sum(&self, of: impl Fn(&BackendTotals) -> u64) -> Result<u64> {
        Ok(self.engine.data_plane().backend_totals()?.iter().map(of).sum())
    }

    /// How many pins there are.
    ///
    /// # Errors
    ///
    /// If they can't be read.
    pub fn pins(&self) -> Result<u32> {
        let mut pins = 0;
        self.engine.data_plane().flows(FlowTable::Pins, &mut |_, _| pins += 1)?;
        Ok(pins)
    }

    /// The kernel memory of the maps.
    ///
    /// # Errors
    ///
    /// If the kernel does not report it.
    pub fn memory(&self) -> Result<Memory> {
        let (mut tables, mut rings) = (0, 0);
        for (name, path) in pinned(&maps(&self.settings))? {
            if name.starts_with("program-") {
                continue;
            }
            let map =
                MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
            let sum = if name.starts_with("ring-") { &mut rings } else { &mut tables };
            *sum += rings::locked(&map)?;
        }
        Ok(Memory {
            services: self.desired.services.len(),
            backends: self.desired.services.values().map(|service| service.backends.len()).sum(),
            pins_limit: self.settings.limits.pins,
            tables_bytes: tables,
            rings_bytes: rings,
        })
    }
}

/// The pins in a folder, which go with this.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // The rest would be pinned for ever; there is no caller for the error.
        if let Err(err) = detach(&self.0) {
            eprintln!("{} stays: {err:#}", self.0.display());
        }
    }
}

/// The folder of the maps.
fn maps(settings: &Settings) -> PathBuf {
    settings.pin_dir.join(format!("v{ABI_VERSION}"))
}

/// The pins in a folder, by name.
fn pinned(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let pin = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        anyhow::Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    };
    entries.map(pin).collect()
}

/// The program that is pinned beside its maps.
fn program(folder: &Path) -> Result<ProgramFd> {
    let pins = pinned(folder)?;
    let pin = pins.iter().find(|(name, _)| name.starts_with("program-"));
    let (_, path) = pin.context("no program is pinned")?;
    Ok(ProgramInfo::from_pin(path)?.fd()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_its_own_backends() {
        let desired = Size { services: 512, each: 8, pins: None }.desired();
        let all = desired.services.values().flat_map(|service| service.backends.keys());
        let all: std::collections::BTreeSet<_> = all.collect();
        assert_eq!((desired.services.len(), all.len()), (512, 4_096));
        let ports: Vec<_> = desired.services.values().map(|service| service.key.port).collect();
        assert!(ports.iter().copied().eq(PORT..PORT + 512), "{ports:?}");
    }

    #[test]
    fn a_service_in_flux_has_one_beside_it_and_room_for_its_pins() {
        let size = Size { services: 1, each: 8, pins: Some(1 << 20) };
        assert_eq!((size.desired().services.len(), size.limits().pins), (2, 1 << 20));
        let size = Size { pins: Some(1_024), ..size };
        assert_eq!(size.limits(), Limits::default());
    }
}
