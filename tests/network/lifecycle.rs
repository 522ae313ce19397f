//! The life of `lbd` under load: stopped, killed, replaced by another build. Forwarding does not
//! notice; what starts takes over what runs.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use kit::{
    balancer::{self, Balancer, Service},
    can_run, command,
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    load::{Load, Plan},
    status::{ServiceExt as _, StatusExt as _},
    udp::{Echo, Probe},
    wait,
    ways::Way,
};
use lb_api::status::Status;
use lb_common::abi::{ABI_VERSION, Owners};
use lb_model::backend_address::BackendAddress;

const UDP_PORT: u16 = 9000;
/// Long against anything that a balancer does at its start.
const BEAT: Duration = Duration::from_secs(2);
const WAY: Way = Way::DsrV4;

/// A lab with a TCP and a UDP service.
fn lab() -> Result<(Lab, Balancer)> {
    let lab = Lab::new(&Options::default())?;
    let tcp = WAY.service(&lab);
    let udp = Service { name: "echo".into(), port: UDP_PORT, protocol: "udp", ..tcp.clone() };
    let balancer = Balancer::start(&lab, &[tcp, udp.with("udp = \"tracked\"")])?;
    Ok((lab, balancer))
}

/// The change `act` of `lbd` loses none of the packets of all kinds.
fn no_packet_is_lost(act: impl FnOnce(&mut Balancer) -> Result<()>) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = lab()?;
    let _echo = Echo::start(&lab, WAY.vip(), UDP_PORT)?;
    let client = &lab.client.namespace;
    let target = WAY.target();
    let pause = Duration::from_millis(100);
    let load = Load::start(client, Plan { target, steady: 100, passing: 20, pause })?;
    let target = (WAY.vip(), UDP_PORT).into();
    let probe = Probe::start(client, target, 50, Duration::from_millis(2))?;
    load.run_for(BEAT);
    act(&mut balancer)?;
    load.run_for(BEAT);
    probe.finish()?.check()?;
    let report = load.finish();
    report.check()?;
    ensure!(report.by_backend.len() == 3, "all hosts had connections: {:?}", report.by_backend);
    Ok(())
}

#[test]
fn stopping_and_starting_lbd_loses_no_packet() -> Result<()> {
    no_packet_is_lost(|balancer| {
        let status = balancer.stop()?;
        assert!(status.success(), "{status}");
        std::thread::sleep(BEAT);
        balancer.launch()?;
        balancer.wait_usable().map(drop)
    })
}

#[test]
fn killing_lbd_loses_no_packet() -> Result<()> {
    no_packet_is_lost(|balancer| {
        balancer.kill()?;
        std::thread::sleep(BEAT);
        balancer.launch()?;
        balancer.wait_usable().map(drop)
    })
}

#[test]
fn upgrading_lbd_loses_no_packet() -> Result<()> {
    no_packet_is_lost(|balancer| {
        let old = balancer::binaries()?;
        let new = balancer.config().with_file_name("upgrade");
        fs::create_dir(&new).with_context(|| format!("create {}", new.display()))?;
        for program in ["lbd", "lbctl"] {
            fs::copy(old.join(program), new.join(program)).context("copy the binaries")?;
        }
        balancer.stop()?;
        balancer.use_binaries(&new);
        balancer.launch()?;
        balancer.wait_usable().map(drop)
    })
}

/// The owners of every slot of a service's ring.
fn owners(pins: &Path, service: u32) -> Result<Vec<Owners>> {
    let path = pins.join(format!("v{ABI_VERSION}/RINGS"));
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let map = Map::from_map_data(map).context("RINGS")?;
    let rings: ArrayOfMaps<MapData, Array<MapData, u64>> = map.try_into().context("RINGS")?;
    let ring = rings.get(&service, 0).with_context(|| format!("ring {service}"))?;
    let slots = (0..ring.len()).map(|slot| {
        // The owners are the first word of a slot; stamps follow.
        let [a, b, c, d, ..] = ring.get(&slot, 0).context("a slot")?.to_ne_bytes();
        Ok(Owners::from_word(u32::from_ne_bytes([a, b, c, d])))
    });
    slots.collect()
}

#[test]
fn a_start_adopts_what_runs() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = lab()?;
    // In flux, so that there is more to adopt than the configuration has by itself.
    let drained = WAY.backend(&lab.webs[1]);
    balancer.lbctl(&["backend", "drain", WAY.name(), &drained.to_string()])?;
    balancer.lbctl(&[
        "backend",
        "weight",
        WAY.name(),
        &WAY.backend(&lab.webs[2]).to_string(),
        "3",
    ])?;
    let before = balancer.status()?;
    let rings: Vec<_> = (0..2).map(|id| owners(balancer.pins(), id)).collect::<Result<_>>()?;
    assert!(rings.iter().flatten().any(|owners| owners.base != 0), "a ring is in flux");
    balancer.kill()?;
    balancer.launch()?;
    let after = balancer.wait_usable()?;
    for (id, ring) in rings.iter().enumerate() {
        let now = owners(balancer.pins(), u32::try_from(id)?)?;
        let moved = ring.iter().zip(&now).filter(|(old, new)| old != new).count();
        assert_eq!(moved, 0, "slots of ring {id} moved");
    }
    for (name, service) in &before.services {
        for (address, old) in &service.backends {
            let new = after.service(name)?.backend(*address)?;
            assert_eq!(old.id, new.id, "{name} {address}");
            assert_eq!(old.weight, new.weight, "what lbctl set is kept: {name} {address}");
            assert_eq!(old.slots, new.slots, "{name} {address}");
            assert_eq!(old.base_slots, new.base_slots, "{name} {address}");
        }
    }
    Ok(())
}

/// Packets sent to each backend of the TCP service.
fn sent(status: &Status) -> Result<BTreeMap<BackendAddress, u64>> {
    let backends = status.service(WAY.name())?.backends.iter();
    Ok(backends.map(|(address, backend)| (*address, backend.sent.packets)).collect())
}

#[test]
fn counters_survive_reload_and_restart() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = lab()?;
    let get = || {
        Connection::open(&lab.client.namespace, WAY.target(), Duration::from_secs(5))
            .and_then(|mut connection| connection.get("/")?.ok())
    };
    for _ in 0..30 {
        get()?;
    }
    let mut before = sent(&balancer.status()?)?;
    assert!(before.values().all(|packets| *packets > 0), "each had requests: {before:?}");
    for act in ["reload", "stop", "kill"] {
        match act {
            "reload" => {
                balancer.signal(libc::SIGHUP)?;
                wait::until_true(Duration::from_secs(5), "it has reloaded", || {
                    Ok(balancer.log().contains("configuration reloaded"))
                })?;
            }
            "stop" => drop(balancer.stop()?),
            _ => balancer.kill()?,
        }
        if act != "reload" {
            balancer.launch()?;
        }
        let after = sent(&balancer.wait_usable()?)?;
        for (address, packets) in &before {
            ensure!(after[address] >= *packets, "{act}: {address} {packets} -> {}", after[address]);
        }
        get()?;
        let now = sent(&balancer.status()?)?;
        ensure!(now.values().sum::<u64>() > after.values().sum(), "{act}: {after:?} -> {now:?}");
        before = now;
    }
    Ok(())
}

/// Whether the balancer's interface has an XDP program.
fn has_program(lab: &Lab) -> Result<bool> {
    let shown = command::run(
        lab.balancer.namespace.command("ip").args(["-d", "-j", "link", "show", INTERFACE]),
    )?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("output of ip -j")?;
    Ok(shown[0]["xdp"].is_object())
}

#[test]
fn detach_removes_everything() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = lab()?;
    assert!(has_program(&lab)?);
    balancer.stop()?;
    assert!(has_program(&lab)?, "a stop does not stop forwarding");
    let get = |patience| {
        Connection::open(&lab.client.namespace, WAY.target(), patience)
            .and_then(|mut connection| connection.get("/")?.ok())
    };
    get(Duration::from_secs(5))?;
    let pins = balancer.pins().to_str().context("a path in UTF-8")?;
    balancer.lbctl(&["detach", "--yes", "--pin-dir", pins])?;
    wait::until_true(Duration::from_secs(5), "the program is gone", || Ok(!has_program(&lab)?))?;
    let left: Vec<_> = fs::read_dir(balancer.pins()).into_iter().flatten().collect();
    assert!(left.is_empty(), "pins are left: {left:?}");
    assert!(get(Duration::from_millis(300)).is_err(), "nobody forwards");
    // And it can start again.
    balancer.launch()?;
    balancer.wait_usable()?;
    get(Duration::from_secs(5)).map(drop)
}

#[test]
fn detach_asks_before_it_takes_what_a_running_lbd_may_hold() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (_lab, mut balancer) = lab()?;
    let host = balancer.namespace();
    // Objects that are found by their mark, of any owner.
    command::run(host.command("nft").args(["add", "table", "inet", "lbd_vrrp"]))?;
    let table = || {
        let tables = command::run(host.command("nft").args(["list", "tables"]))?;
        anyhow::Ok(tables.contains("lbd_vrrp"))
    };
    let socket = balancer.socket().display().to_string();
    let detach = |more: &[&str]| -> Result<_> {
        let mut lbctl = balancer::program(&host, "lbctl")?;
        let common = ["--socket", "/nonexistent", "detach", "--pin-dir", "/sys/fs/bpf/lbt-none"];
        let output = command::output(lbctl.args(common).args(more), "")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text).context("UTF-8")?))
    };
    let (code, output) = detach(&[])?;
    assert_eq!(code, Some(1), "{output}");
    for part in ["an lbd runs in this network namespace (pid ", &socket, "pass --yes"] {
        assert!(output.contains(part), "{output}");
    }
    let (code, output) = detach(&["--dry-run"])?;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&socket) && output.contains("table inet lbd_vrrp"), "{output}");
    assert!(table()?, "nothing was taken");
    let (code, output) = detach(&["--yes"])?;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("table inet lbd_vrrp of nftables removed"), "{output}");
    assert!(!table()? && output.contains(&socket), "{output}");
    // Where none runs, no lbd loses anything.
    balancer.stop()?;
    command::run(host.command("nft").args(["add", "table", "inet", "lbd_vrrp"]))?;
    let (code, output) = detach(&[])?;
    assert_eq!(code, Some(0), "{output}");
    assert!(!table()? && !output.contains("an lbd runs"), "{output}");
    Ok(())
}

#[test]
fn lbctl_says_in_one_line_that_lbd_does_not_run() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (_lab, mut balancer) = lab()?;
    for stopped in [true, false] {
        if stopped {
            balancer.stop()?;
        } else {
            // A kill leaves a socket without a listener.
            balancer.launch()?;
            balancer.kill()?;
        }
        let start = Instant::now();
        let output = balancer.lbctl_output(&["status"])?;
        assert!(start.elapsed() < Duration::from_secs(10), "it does not wait");
        assert_eq!((output.status.code(), output.status.signal()), (Some(1), None));
        let text = String::from_utf8(output.stderr).context("UTF-8")?;
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("lbd"), "{text}");
        assert!(text.contains("lbd.sock"), "it names the socket: {text}");
        assert!(output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab_with_a_balancer() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = lab()?;
    let (pins, folder) = (balancer.pins().to_owned(), lab.folder().to_owned());
    assert!(pins.exists());
    drop((balancer, lab));
    assert!(!pins.exists());
    assert!(!folder.exists());
    Ok(())
}
