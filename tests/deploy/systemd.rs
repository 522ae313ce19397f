//! `lbd` under systemd: its messages to the socket of `NOTIFY_SOCKET`, and its unit.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{self, Balancer},
    can_run, command, in_ci,
    lab::{Lab, Options},
    namespace::Namespace,
    ways::Way,
};
use lb_model::router::VirtualAddress;
use lb_vrrp::addresses::{Addresses, Placed};

const WAY: Way = Way::DsrV4;
const PATIENCE: Duration = Duration::from_secs(10);
/// So that `lbd` has to send `WATCHDOG=1` twice a second.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The service manager's end.
struct Manager {
    messages: Receiver<String>,
}

impl Manager {
    fn listen(at: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(at).with_context(|| at.display().to_string())?;
        let (to, messages) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if to.send(text).is_err() {
                    return;
                }
            }
        });
        Ok(Self { messages })
    }

    /// The next message that is no sign of life, and how many of these came before it.
    fn next(&self) -> Result<(String, usize)> {
        let deadline = Instant::now() + PATIENCE;
        let mut alive = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left).context("lbd sends nothing more")?.as_str() {
                "WATCHDOG=1\n" => alive += 1,
                other => return Ok((other.to_owned(), alive)),
            }
        }
    }

    /// A message that begins so.
    fn expect(&self, start: &str) -> Result<String> {
        let (message, _) = self.next()?;
        ensure!(message.starts_with(start), "{start:?} is expected, and it sent {message:?}");
        Ok(message)
    }

    fn expect_reload(&self) -> Result<()> {
        let message = self.expect("RELOADING=1\nMONOTONIC_USEC=")?;
        let at = message.trim_end().rsplit_once('=').context("a value")?.1.parse::<u128>()?;
        let now = lb_model::time::Now::read().mono.as_micros();
        ensure!(at <= now && now - at < PATIENCE.as_micros(), "{at} is not just now: {now}");
        self.expect("READY=1\nSTATUS=ready on eth0 (XDP native)").map(drop)
    }
}

/// The binaries in a folder of which `lbd` is started as systemd does.
fn under(socket: &Path, folder: &Path) -> Result<PathBuf> {
    let (binaries, folder) = (balancer::binaries()?, folder.join("systemd"));
    fs::create_dir(&folder)?;
    fs::copy(binaries.join("lbctl"), folder.join("lbctl"))?;
    let lbd = folder.join("lbd");
    let (socket, real) = (socket.display(), binaries.join("lbd"));
    let usec = WATCHDOG.as_micros();
    // `exec`: the process that was started is the one that speaks.
    fs::write(
        &lbd,
        format!(
            "#!/bin/sh\nexport NOTIFY_SOCKET={socket} WATCHDOG_USEC={usec} WATCHDOG_PID=$$\n\
             exec {} \"$@\"\n",
            real.display()
        ),
    )?;
    fs::set_permissions(&lbd, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

#[test]
fn systemd_hears_of_start_reload_and_stop_in_order() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let service = WAY.service(&lab);
    let mut balancer = Balancer::new(&lab, std::slice::from_ref(&service))?;
    let socket = lab.folder().join("notify");
    let manager = Manager::listen(&socket)?;
    balancer.use_binaries(&under(&socket, lab.folder())?);
    balancer.launch()?;
    let ready = manager.expect("READY=1\nSTATUS=ready on eth0 (XDP native)")?;
    assert!(ready.contains(WAY.name()), "it names its services: {ready}");
    // When that is sent, the maps are written.
    let written = fs::read_dir(balancer.pins())?.count();
    assert!(written > 0);

    balancer.signal(libc::SIGHUP)?;
    manager.expect_reload()?;
    balancer.lbctl(&["config", "reload"])?;
    manager.expect_reload()?;
    // One that is refused ends as well, or systemd would wait for its end.
    let config = fs::read_to_string(balancer.config())?;
    fs::write(balancer.config(), format!("{config}\nnonsense = 1\n"))?;
    let refused = balancer.lbctl_output(&["config", "reload"])?;
    assert_eq!(refused.status.code(), Some(1));
    manager.expect_reload()?;
    fs::write(balancer.config(), config)?;

    // Two signs of life in each second; some time passes for three.
    thread::sleep(WATCHDOG * 2);
    assert!(balancer.stop()?.success());
    let (stopping, alive) = manager.next()?;
    assert!(stopping.starts_with("STOPPING=1\nSTATUS=lbd ends; forwarding goes on"), "{stopping}");
    assert!(alive >= 3, "{alive} signs of life in {:?}", WATCHDOG * 2);
    let last = manager.messages.recv_timeout(Duration::from_millis(200));
    assert!(last.is_err(), "it is silent after its end: {last:?}");
    Ok(())
}

#[test]
fn addresses_that_a_crash_left_go_when_no_start_goes_on_with_them() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let node = Namespace::new("node")?;
    // As virtual routers mark theirs, and as an operator sets one.
    node.ip("address add 10.9.9.2/32 dev lo")?;
    let addresses = ["10.9.9.1/32", "fd00:9::1/128"].map(|text| {
        let (address, prefix) = text.split_once('/').expect("it has a prefix");
        VirtualAddress {
            address: address.parse().expect("an address"),
            prefix: prefix.parse().expect("a length"),
            interface: None,
            label: None,
            nodad: true,
            advertised: true,
        }
    });
    let (added, problems) = node.enter(|| -> Result<_> {
        let placed = addresses.iter().map(|address| Placed { interface: "lo", address });
        Ok(Addresses::open()?.hold(placed))
    })??;
    ensure!(added.len() == 2 && problems.is_empty(), "{problems:?}");
    let release = |result: &str, code: &str, status: &str| -> Result<String> {
        let mut lbd = balancer::program(&node, "lbd")?;
        let lbd = lbd.arg("--release").env("SERVICE_RESULT", result);
        command::run(lbd.env("EXIT_CODE", code).env("EXIT_STATUS", status))
    };
    let there = || node.ip("address show dev lo");
    for (result, code, status) in
        [("success", "exited", "0"), ("signal", "killed", "KILL"), ("exit-code", "exited", "1")]
    {
        assert_eq!(release(result, code, status)?, "");
        let shown = there()?;
        ensure!(shown.contains("10.9.9.1") && shown.contains("fd00:9::1"), "{shown}");
    }
    let output = release("exit-code", "exited", "3")?;
    assert_eq!(output, "released 10.9.9.1/32 on lo\nreleased fd00:9::1/128 on lo\n");
    let shown = there()?;
    ensure!(!shown.contains("10.9.9.1") && !shown.contains("fd00:9::1"), "{shown}");
    ensure!(shown.contains("10.9.9.2"), "that of the operator stays: {shown}");
    Ok(())
}

#[test]
fn systemd_takes_the_units() -> Result<()> {
    if command::find("systemd-analyze").is_none() {
        assert!(!in_ci(), "systemd-analyze is missing");
        eprintln!("SKIPPED: needs systemd-analyze");
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("lbt-unit-{}", std::process::id()));
    for (unit, instance) in
        [("lbd.service", "lbd.service"), ("lb-decap@.service", "lb-decap@eth0.service")]
    {
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(unit);
        // It looks for the unit's program.
        let binaries = balancer::binaries()?.display().to_string();
        let text = fs::read_to_string(text)?.replace("/usr/local/sbin", &binaries);
        fs::create_dir(&folder)?;
        fs::write(folder.join(unit), text)?;
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]).arg(folder.join(instance));
        let output = verify.output();
        fs::remove_dir_all(&folder)?;
        let output = output?;
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && printed.is_empty(), "{unit}: {printed}");
    }
    Ok(())
}

#[test]
fn the_decapsulators_unit_names_the_sources_that_balancers_have_unless_told_otherwise() -> Result<()>
{
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lb-decap@.service");
    let unit = fs::read_to_string(unit)?;
    let line = unit.lines().find_map(|line| line.strip_prefix("Environment=\"LB_DECAP_OPTIONS="));
    let words = line.context("it has options")?.trim_end_matches('"').split(' ');
    let named: Vec<_> = words.filter(|word| *word != "--from").collect();
    let usual = lb_datapath::decap::usual_sources();
    let usual: Vec<_> = usual.split(' ').filter(|word| *word != "--from").collect();
    assert_eq!(named, usual);
    Ok(())
}
