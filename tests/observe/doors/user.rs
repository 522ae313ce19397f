//! `lbd` without root: a user of its own with few capabilities; and access to its socket.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{self, Balancer},
    can_run, command,
    http::Connection,
    lab::{INTERFACE, Lab, ROOT},
    wait,
};
use lb_common::abi::ABI_VERSION;

use super::{PATIENCE, PORT, WAY, client::get, testbed};

/// A user and a group that have nothing.
const NOBODY: u32 = 65_534;
/// The capabilities of `lbd`: to make maps and load programs (BPF) that compare packets' pointers (PERFMON), to
/// attach, to set addresses and routes (NET_ADMIN), to send and see packets (NET_RAW).
const NEEDED: [&str; 4] = ["bpf", "perfmon", "net_admin", "net_raw"];
/// They are 39, 38, 12 and 13.
const NUMBERS: &str = "000000c000003000";

/// Programs that any user may run: a copy of the binaries, and `lbd` in front of it as another user.
fn unprivileged(folder: &Path, capabilities: &[&str]) -> Result<()> {
    let binaries = balancer::binaries()?;
    fs::create_dir_all(folder)?;
    fs::copy(binaries.join("lbd"), folder.join("lbd.real")).context("copy lbd")?;
    fs::copy(binaries.join("lbctl"), folder.join("lbctl")).context("copy lbctl")?;
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let script = format!(
        "#!/bin/sh\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs \
         --inh-caps=-all{list} --ambient-caps=-all{list} --bounding-set=-all{list} \
         {}/lbd.real \"$@\"\n",
        folder.display()
    );
    fs::write(folder.join("lbd"), script)?;
    for name in ["lbd", "lbd.real", "lbctl"] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}

/// Gives all that `lbd` writes to the user, and has it run as that.
fn become_user(lab: &Lab, balancer: &mut Balancer) -> Result<PathBuf> {
    let folder = lab.folder().to_owned();
    let programs = folder.join("programs");
    unprivileged(&programs, &NEEDED)?;
    balancer.use_binaries(&programs);
    let own_folder = balancer.config().parent().context("a folder")?.to_owned();
    prepare(balancer)?;
    for place in [folder.as_path(), &own_folder] {
        chown(place, Some(NOBODY), Some(NOBODY)).with_context(|| place.display().to_string())?;
    }
    // Files that it may have written as root: its configuration, and perhaps its state.
    for entry in fs::read_dir(&own_folder)? {
        chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
    }
    // All users may pass to the socket, so that the tested check refuses them.
    for place in [Path::new(ROOT), &folder, &own_folder] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    }
    let config = fs::read_to_string(balancer.config())?;
    let config = config.replace("group = \"root\"", "group = \"nogroup\"");
    fs::write(balancer.config(), config)?;
    Ok(programs)
}

/// As the unit does: root makes the folder of the pins, pins what has no pin, and gives all away. What
/// was pinned.
fn prepare(balancer: &Balancer) -> Result<String> {
    let mut lbd = balancer::program(&balancer.namespace(), "lbd")?;
    let output = command::run(lbd.arg("--prepare").arg(balancer.pins()))?;
    let mut give = Command::new("chown");
    command::run(give.args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(balancer.pins()))?;
    Ok(output)
}

/// The pins of this version's maps whose names begin so.
fn pins(balancer: &Balancer, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(balancer.pins().join(format!("v{ABI_VERSION}")))? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn lbd_does_everything_as_a_user_with_four_capabilities() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\n\
             [[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\n\
             interval = \"100ms\"\naddresses = [\"10.77.77.77/32\"]\nvirtual_mac = true\n",
            lab.balancer.v4
        )
    })?;
    let programs = become_user(&lab, &mut balancer)?;
    balancer.launch()?;
    balancer.wait_usable()?;

    let status = fs::read_to_string(format!("/proc/{}/status", balancer.pid()?))?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    ensure!(line("Uid:").is_some_and(|ids| ids.starts_with("65534")), "{status}");
    ensure!(line("CapEff:") == Some(NUMBERS), "{status}");
    ensure!(line("CapBnd:") == Some(NUMBERS), "{status}");

    let web = || Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)?.get("/");
    let mut old = Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)?;
    let host_of_old = old.get("/")?.ok()?.backend()?;
    let holds = || {
        let addresses = lab.balancer.namespace.ip("address show")?;
        ensure!(addresses.contains("10.77.77.77/32"), "{addresses}");
        Ok(())
    };
    wait::until(PATIENCE, "it is Active and holds its address", holds)?;
    // Its capabilities give no real-time priority, which its interval would take.
    let log = balancer.log();
    ensure!(log.contains("main advertises every 100ms without a real-time priority"), "{log}");
    let ready = || get(&lab.client.namespace, (lab.balancer.v4, PORT).into(), "/readyz", "");
    ensure!(ready()?.status == 200, "{:?}", ready());
    let host = lab.webs[0].host.v4.to_string();
    balancer.lbctl(&["backend", "weight", WAY.name(), &host, "7"])?;
    balancer.lbctl(&["backend", "drain", WAY.name(), &host, "--yes"])?;
    balancer.lbctl(&["backend", "enable", WAY.name(), &host])?;

    // A detached program comes back, and a capture works.
    kit::xdp::detach(&balancer.pins().join(format!("link-{INTERFACE}")))?;
    let back = || {
        let output = balancer.lbctl(&["events", "--kind", "interface_back", "-o", "json"])?;
        ensure!(output.contains("interface_back"), "{output}");
        Ok(())
    };
    wait::until(PATIENCE, "the program is attached again", back)?;
    looks_at_packets(&lab, &balancer)?;

    // The next one takes over this one's maps and pins.
    balancer.stop()?;
    ensure!(web()?.status == 200, "it forwards on");
    let rings = pins(&balancer, "ring-")?;
    ensure!(rings.len() == 1, "one for each service: {rings:?}");
    balancer.launch()?;
    let status = balancer.wait_usable()?;
    ensure!(status.services.contains_key(WAY.name()), "it has what was there");
    ensure!(web()?.status == 200, "and forwards");
    ensure!(old.get("/")?.ok()?.backend()? == host_of_old, "what was open, too");
    let programs_pinned = pins(&balancer, "program-")?;
    ensure!(programs_pinned.len() == 1, "the old program is gone: {programs_pinned:?}");

    // It may exchange hooks, take over a link of tc, and end that.
    for (from, to, mode) in [("xdp", "tc", "tc"), ("tc", "xdp", "native")] {
        let config = fs::read_to_string(balancer.config())?;
        let (from, to) = (format!("attach = \"{from}\""), format!("attach = \"{to}\""));
        fs::write(balancer.config(), config.replace(&from, &to))?;
        balancer.lbctl(&["config", "reload"])?;
        balancer.stop()?;
        balancer.launch()?;
        let status = balancer.wait_usable()?;
        let interface = &status.interfaces[0];
        ensure!(interface.mode == mode && interface.attached, "{interface:?}");
        looks_at_packets(&lab, &balancer)?;
        ensure!(old.get("/")?.ok()?.backend()? == host_of_old, "what was open goes on at {mode}");
    }

    // It can end its own capture.
    who_may_use_the_socket(&lab, &balancer, &programs)?;
    balancer.lbctl(&["detach", "--yes"])?;
    let left = fs::read_dir(balancer.pins()).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} pins are left");
    Ok(())
}

/// A capture, and a test run of the program with a packet.
fn looks_at_packets(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let file = lab.folder().join("packets.pcapng");
    let before = pins(balancer, "program-")?;
    let mut capture = balancer.lbctl_command();
    capture.args(["capture", "-c", "3", "--duration", "20s", "-w"]).arg(&file);
    let mut capture = capture.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait::until_true(PATIENCE, "three packets are captured", || {
        Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)?.get("/")?.ok()?;
        Ok(capture.try_wait()?.is_some())
    })?;
    ensure!(capture.wait()?.success() && fs::metadata(&file)?.len() > 500, "it has captured them");
    ensure!(pins(balancer, "program-")? == before, "the program that captures has gone");
    let (client, vip) = (format!("{}:4242", lab.client.v4), WAY.target().to_string());
    let output = balancer.lbctl(&["explain", "tcp", &client, &vip, "--verify"])?;
    ensure!(output.contains("the loaded program does the same"), "{output}");
    Ok(())
}

/// Maps and programs of an lbd that was root, of a version without these pins, are taken over.
#[test]
fn what_has_no_pin_is_taken_over_by_a_user_when_root_has_pinned_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|_| String::new())?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let mut old = Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)?;
    let host = old.get("/")?.ok()?.backend()?;
    balancer.stop()?;
    let without = |balancer: &Balancer| {
        for pin in [pins(balancer, "ring-")?, pins(balancer, "program-")?].concat() {
            fs::remove_file(pin)?;
        }
        anyhow::Ok(())
    };
    without(&balancer)?;
    become_user(&lab, &mut balancer)?;
    // That was `lbd --prepare`; without it the kernel refuses, and lbd logs the remedy.
    without(&balancer)?;
    balancer.begin()?;
    wait::until_true(PATIENCE, "it ends", || Ok(balancer.check().is_err()))?;
    balancer.kill()?;
    let refused = balancer.log();
    ensure!(refused.contains("`lbd --prepare`, run as root, makes the pin"), "{refused}");
    let output = prepare(&balancer)?;
    ensure!(output.contains("1 rings pinned") && output.contains("program pinned"), "{output}");
    ensure!(prepare(&balancer)?.is_empty(), "there is no more to pin");
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(old.get("/")?.ok()?.backend()? == host, "nothing was lost");

    // One that is root needs no help, and pins them for those that are not.
    balancer.stop()?;
    without(&balancer)?;
    balancer.use_binaries(&balancer::binaries()?);
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(old.get("/")?.ok()?.backend()? == host, "nothing was lost");
    ensure!(pins(&balancer, "ring-")?.len() == 1 && pins(&balancer, "program-")?.len() == 1);
    Ok(())
}

/// The socket is open to all by its mode; the credentials decide all the same.
fn who_may_use_the_socket(lab: &Lab, balancer: &Balancer, programs: &Path) -> Result<()> {
    fs::set_permissions(balancer.socket(), fs::Permissions::from_mode(0o666))?;
    let ask = |user: &str, group: &str, groups: &[&str]| {
        let mut setpriv = lab.balancer.namespace.command("setpriv");
        setpriv.args(["--reuid", user, "--regid", group]).args(groups);
        setpriv.args(["--inh-caps=-all", "--bounding-set=-all"]);
        setpriv.arg(programs.join("lbctl")).arg("--socket").arg(balancer.socket()).arg("status");
        command::output(&mut setpriv, "")
    };
    for (user, group, groups, may) in [
        ("12345", "12345", &["--clear-groups"][..], false),
        ("12345", "12345", &["--groups", "4,27"], false),
        // Whose group it is, as the first or as one of many.
        ("12345", "65534", &["--clear-groups"], true),
        ("12345", "12345", &["--groups", "4,65534,27"], true),
        // lbd's own user, and root.
        ("65534", "12345", &["--clear-groups"], true),
        ("0", "12345", &["--clear-groups"], true),
    ] {
        let output = ask(user, group, groups)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() == may, "{user} {group} {groups:?}: {words}");
        ensure!(
            may || words.contains("user 12345 may not use lbd; be root, or of its group nogroup"),
            "{words}"
        );
    }
    Ok(())
}
