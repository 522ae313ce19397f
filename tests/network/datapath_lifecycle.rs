//! The life of the data plane in the real kernel: made, adopted, changed and taken away.
//!
//! Needs root; every test has a network namespace and a pin folder of its own.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    num::NonZeroU16,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{self, FlowKey, FlowValue, Owners};
use lb_control::engine::{Engine, Outcome};
use lb_datapath::{Xdp, detach};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Backend, Desired, Mode, Service, ServiceKey, Weight},
    flow::{FlowRef, FlowTable},
    hop::{Neighbourhood, NextHop, Resolution},
    settings::{Limits, Settings, XdpModes},
    time::Now,
};
use lb_plane::{DataPlane, Flows as _, Interfaces as _, Maps as _};

/// A network namespace with a pair of interfaces, and a folder for pins; both go when it does.
pub(crate) struct Testbed {
    name: String,
    pub(crate) settings: Settings,
}

impl Testbed {
    /// Enters the namespace with the calling thread, which is the test's own.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments, no effect.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root: run it through sudo");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbt-{}-{}", std::process::id(), 900 + number);
        let testbed = Self {
            settings: Settings {
                interfaces: vec!["va".into()],
                pin_dir: PathBuf::from("/sys/fs/bpf").join(&name),
                limits: Limits { services: 8, backends: 64, pins: 1_024, ..Limits::default() },
                ..Settings::default()
            },
            name,
        };
        ip(&["netns", "add", &testbed.name]);
        let netns = fs::File::open(format!("/var/run/netns/{}", testbed.name)).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&netns);
        // SAFETY: the descriptor is of a network namespace; only this thread moves.
        let entered = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
        ip(&["link", "add", "va", "type", "veth", "peer", "name", "vb"]);
        ip(&["link", "set", "va", "up"]);
        ip(&["link", "set", "vb", "up"]);
        testbed
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn open(&self) -> Xdp {
        Xdp::open(&self.settings).unwrap()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = detach(&self.settings.pin_dir);
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(crate) fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {}", args.join(" "));
}

/// The id of the program on an interface, as iproute2 prints it.
pub(crate) fn program_on(interface: &str) -> Option<String> {
    let shown = Command::new("ip").args(["-d", "link", "show", interface]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let mut words = shown.split_whitespace().skip_while(|word| *word != "prog/xdp");
    words.find(|word| *word == "id")?;
    words.next().map(str::to_owned)
}

fn desired(backends: &[&str]) -> Desired {
    let vip: IpAddr = "10.0.0.100".parse().unwrap();
    let one = Backend { weight: Weight(NonZeroU16::MIN), ..Backend::default() };
    let service = Service {
        ring_slots: 4_093,
        syn_budget: 1_000,
        backends: backends.iter().map(|to| (to.parse().unwrap(), one.clone())).collect(),
        ..Service::new(vip, 80, Mode::Dsr)
    };
    Desired { services: [("web".to_owned(), service)].into() }
}

fn set<D: DataPlane>(engine: &mut Engine<D>, desired: Desired) {
    engine.set_desired(desired);
    let mac = [2, 0, 0, 0, 0, 9];
    let l2 = [&mac[..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat();
    let hop = NextHop { ifindex: 2, interface: "va".into(), mac, l2, mtu: 1500 };
    let hops = engine.wants().into_iter().map(|want| (want, Resolution::Resolved(hop.clone())));
    let own_macs = vec![[2, 0, 0, 0, 0, 1]];
    engine.set_neighbourhood(Neighbourhood {
        hops: hops.collect(),
        own_macs,
        ..Default::default()
    });
}

fn owners(engine: &Engine<Xdp>) -> Vec<Owners> {
    engine.data_plane().ring(0).unwrap().iter().map(abi::Slot::owners).collect()
}

#[test]
fn a_new_start_adopts_the_maps_and_swaps_the_program() {
    let testbed = Testbed::new();
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    set(&mut engine, desired(&["10.0.0.11", "10.0.0.12"]));
    assert!(engine.reconcile(Now::read()).unwrap().changes > 0);
    let first = program_on("va").unwrap();
    let before = owners(&engine);
    assert!(before.iter().all(|slot| slot.base == 0 && (1..=2).contains(&slot.current)));
    // A stamp of the program's survives a change of the ring, and of the daemon.
    engine.data_plane().ring(0).unwrap()[0].touch_pinned(77);
    drop(engine);
    assert_eq!(program_on("va").as_ref(), Some(&first), "the program stays without the daemon");

    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    let second = program_on("va").unwrap();
    assert_ne!(second, first);
    engine.set_desired(desired(&["10.0.0.11", "10.0.0.12"]));
    assert_eq!(engine.reconcile(Now::read()).unwrap(), Outcome::default());
    assert_eq!(owners(&engine), before);
    let status = engine.status().unwrap();
    assert_eq!((status.services_used.used, status.backends_used.used), (1, 2));
    let interface = &status.interfaces[0];
    assert!(interface.attached && interface.mode == "native", "{interface:?}");

    set(&mut engine, desired(&["10.0.0.11", "10.0.0.12", "10.0.0.13"]));
    assert!(engine.reconcile(Now::read()).unwrap().slots_moved > 1_000);
    for (now, had) in owners(&engine).iter().zip(&before) {
        let base = if now.current == had.current { 0 } else { had.current };
        assert_eq!(now.base, base);
    }
    assert_eq!(engine.data_plane().ring(0).unwrap()[0].pinned(), 77);
    engine.sweep(Now::read()).unwrap();

    // Another daemon reads the same from the maps as this one has written.
    let data_plane = engine.into_data_plane();
    assert_eq!(data_plane.backends().unwrap().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(data_plane.own_macs().unwrap(), [[2, 0, 0, 0, 0, 1]]);
    assert_eq!(data_plane.vips().unwrap().len(), 1);
    assert_eq!(data_plane.services().unwrap().len(), 1);
    for table in FlowTable::ALL {
        data_plane.flows(table, &mut |flow, _| panic!("{flow:?}")).unwrap();
    }
}

#[test]
fn many_services_get_their_own_rings_at_once_and_after_a_start_with_other_limits() {
    let mut testbed = Testbed::new();
    testbed.settings.limits.services = 80;
    testbed.settings.limits.backends = 128;
    let mut many = Desired::default();
    let service = desired(&["10.0.0.11"]).services.remove("web").unwrap();
    for n in 0..70_u16 {
        let key = ServiceKey { port: 8_000 + n, ..service.key };
        // Rings of one size differ by their owners.
        let backend = BackendAddress::from([10, 0, 1, n as u8]);
        let backends =
            [(backend, Backend { weight: Weight(NonZeroU16::MIN), ..Backend::default() })];
        let service =
            Service { key, backends: backends.into(), ring_slots: 257, ..service.clone() };
        many.services.insert(format!("web{n:02}"), service);
    }
    let rings = |engine: &Engine<Xdp>| -> Vec<BTreeSet<u16>> {
        let plane = engine.data_plane();
        let owner = |id| plane.ring(id).unwrap().iter().map(|slot| slot.owners().current).collect();
        plane.rings().unwrap().into_iter().map(owner).collect()
    };
    let pins = |testbed: &Testbed| -> BTreeSet<String> {
        let folders =
            fs::read_dir(&testbed.settings.pin_dir).unwrap().map(|entry| entry.unwrap().path());
        let files =
            folders.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap());
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("ring-")).collect()
    };
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    set(&mut engine, many.clone());
    engine.reconcile(Now::read()).unwrap();
    let before = rings(&engine);
    let owners: BTreeSet<_> = before.iter().flatten().collect();
    assert!(before.len() == 70 && before.iter().all(|ring| ring.len() == 1), "{before:?}");
    assert_eq!(owners.len(), 70, "each has its own backend");
    let names: BTreeSet<_> = (0..70).map(|id| format!("ring-{id}")).collect();
    assert_eq!(pins(&testbed), names);
    drop(engine);

    testbed.settings.limits.services = 90;
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    set(&mut engine, many);
    engine.reconcile(Now::read()).unwrap();
    assert_eq!(rings(&engine), before);
    assert_eq!(pins(&testbed), names);
}

#[test]
fn a_service_that_is_removed_leaves_nothing_behind() {
    let testbed = Testbed::new();
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    set(&mut engine, desired(&["10.0.0.11"]));
    engine.reconcile(Now::read()).unwrap();
    set(&mut engine, Desired::default());
    engine.reconcile(Now::read()).unwrap();
    let data_plane = engine.into_data_plane();
    assert!(data_plane.services().unwrap().is_empty() && data_plane.vips().unwrap().is_empty());
    assert!(data_plane.backends().unwrap().is_empty() && data_plane.rings().unwrap().is_empty());
}

#[test]
fn every_pin_is_met_by_a_walk_and_ended_by_a_sweep() {
    let mut testbed = Testbed::new();
    testbed.settings.limits.pins = 20_000;
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    set(&mut engine, desired(&["10.0.0.11"]));
    engine.reconcile(Now::read()).unwrap();
    let maps = testbed.settings.pin_dir.join(format!("v{}", abi::ABI_VERSION));
    let pins = MapData::from_pin(maps.join("PINS")).unwrap();
    let mut pins: HashMap<_, FlowKey, FlowValue> = Map::HashMap(pins).try_into().unwrap();
    // Later than it is: a machine may have started a minute ago.
    let now = Now::read();
    let now = Now { mono: now.mono + Duration::from_secs(10_000), ..now };
    let key = |port: u16| FlowKey::new([1; 16], port.into(), 0);
    for port in 0..15_000_u16 {
        // A third each: alive, silent for too long, and on a backend that is not there.
        let (backend, seen) = match port % 3 {
            0 => (1, now.mono_secs()),
            1 => (1, now.mono_secs().wrapping_sub(2_000)),
            _ => (7, now.mono_secs()),
        };
        let value = FlowValue { backend, flags: abi::flow_flags::ESTABLISHED, seen };
        pins.insert(key(port), value, 0).unwrap();
    }
    let mut met = BTreeSet::new();
    let mut visit = |flow, _| match flow {
        FlowRef::Pin(key) => assert!(met.insert(key.port.get()), "met twice"),
        other => panic!("{other:?}"),
    };
    engine.data_plane().flows(FlowTable::Pins, &mut visit).unwrap();
    assert!(met.into_iter().eq(0..15_000));
    // The slots' marks show that there are pins, and make a sweep look.
    engine.data_plane().ring(0).unwrap()[5].touch_pinned(abi::stamp(now.mono_secs()));
    let looked = Duration::from_secs((now.mono.as_secs() / 64 + 1) * 64);
    let looked = Now { mono: looked, ..now };
    engine.sweep(looked).unwrap();
    let later = Now { mono: looked.mono + Duration::from_secs(1), ..now };
    engine.sweep(later).unwrap();
    let status = engine.status().unwrap();
    assert_eq!(status.pins.used, 5_000);
    assert_eq!(status.services["web"].backends.values().next().unwrap().pins, 5_000);
    assert_eq!(pins.keys().count(), 5_000);
    // One that has changed since it was seen is not deleted.
    let stale = FlowValue { backend: 1, flags: 0, seen: 0 };
    let mut data_plane = engine.into_data_plane();
    assert!(!data_plane.delete_flow(&FlowRef::Pin(key(0)), stale).unwrap());
    assert!(pins.get(&key(0), 0).is_ok());
}

#[test]
fn detach_removes_link_and_maps_and_says_so() {
    let testbed = Testbed::new();
    drop(testbed.open());
    assert!(program_on("va").is_some());
    let removed = detach(&testbed.settings.pin_dir).unwrap();
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert!(removed[0].contains("link-va") && removed[1].contains("31 maps"), "{removed:?}");
    assert_eq!(program_on("va"), None);
    assert!(!testbed.settings.pin_dir.exists());
    assert!(detach(&testbed.settings.pin_dir).unwrap().is_empty());
}

#[test]
fn pins_have_one_writer() {
    let testbed = Testbed::new();
    let first = testbed.open();
    for result in
        [Xdp::open(&testbed.settings).map(drop), detach(&testbed.settings.pin_dir).map(drop)]
    {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("an lbd is running with these pins"), "{error}");
    }
    assert!(first.interfaces()[0].attached, "nothing was changed");
    drop(first);
    drop(testbed.open());
}

#[test]
fn new_limits_are_taken_at_a_restart() {
    let mut testbed = Testbed::new();
    drop(testbed.open());
    testbed.settings.limits.backends = 128;
    assert_eq!(testbed.open().limits(), testbed.settings.limits);
    assert_eq!(testbed.open().limits(), testbed.settings.limits);
}

#[test]
fn interfaces_come_and_go_with_the_settings() {
    let mut testbed = Testbed::new();
    drop(testbed.open());
    testbed.settings.interfaces = vec!["vb".into()];
    drop(testbed.open());
    assert_eq!((program_on("va"), program_on("vb").is_some()), (None, true));
    // The interface is made anew: the old link is dead, and a new one is made.
    ip(&["link", "del", "va"]);
    ip(&["link", "add", "va", "type", "veth", "peer", "name", "vb"]);
    assert!(testbed.open().interfaces()[0].attached);
    // A wrong name is an error, and the running program stays.
    testbed.settings.interfaces = vec!["vc".into()];
    let error = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(error.contains("interface vc"), "{error}");
    assert!(program_on("vb").is_some());
}

#[test]
fn generic_mode_is_taken_where_it_is_asked_for_and_left_again() {
    let mut testbed = Testbed::new();
    testbed.settings.xdp = XdpModes::Generic;
    for _ in 0..2 {
        let interface = &testbed.open().interfaces()[0];
        assert!(interface.mode == "generic" && interface.attached, "{interface:?}");
        assert_eq!(program_name("va"), "balance_generic", "without frags");
    }
    testbed.settings.xdp = XdpModes::Native;
    let interface = &testbed.open().interfaces()[0];
    assert!(interface.mode == "native" && interface.attached, "{interface:?}");
    assert_eq!(program_name("va"), "balance");
}

/// The name of an interface's XDP program.
fn program_name(interface: &str) -> String {
    let id: u32 = program_on(interface).expect("a program").parse().expect("a number");
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    let program = programs.find(|program| program.id() == id).expect("it is loaded");
    program.name_as_str().expect("a name").to_owned()
}

/// The other tests of GRO in generic mode are in `guest/generic.rs`: never on the host's own kernel.
#[test]
fn generic_mode_is_refused_where_gro_is_on_below() {
    let mut testbed = Testbed::new();
    ip(&["link", "add", "br0", "type", "bridge"]);
    ip(&["link", "set", "va", "master", "br0"]);
    let gro = |state: &str| {
        let mut ethtool = kit::command::command("ethtool");
        kit::command::run(ethtool.args(["-K", "va", "gro", state])).unwrap();
    };
    gro("on");
    testbed.settings.xdp = XdpModes::Generic;
    testbed.settings.interfaces = vec!["br0".into()];
    let result = Xdp::open(&testbed.settings).map(drop);
    let error = format!("{:#}", result.expect_err("GRO is on"));
    assert!(error.contains("`ethtool -K va gro off`"), "{error}");
    assert!(error.contains("allow_generic_gro = true"), "{error}");
    assert!(program_on("br0").is_none() && !testbed.settings.pin_dir.exists());
    gro("off");
    assert_eq!(testbed.open().interfaces()[0].mode, "generic");
}

#[test]
fn a_foreign_program_is_named_and_only_its_owner_ends_its_link() {
    let testbed = Testbed::new();
    drop(testbed.open());
    // To another pin folder the program that runs is foreign.
    let mut other = testbed.settings.clone();
    other.pin_dir.set_file_name(format!("{}-other", testbed.name));
    let error = format!("{:#}", Xdp::open(&other).unwrap_err());
    assert!(error.contains("`balance`") && error.contains("--force"), "{error}");
    other.force = true;
    let error = format!("{:#}", Xdp::open(&other).unwrap_err());
    assert!(error.contains("only its owner"), "{error}");
    assert!(!other.pin_dir.exists(), "a failed first start leaves no maps");
}
