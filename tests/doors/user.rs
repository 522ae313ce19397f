//! `lbd` without root: a user of its own with few capabilities; and who may use its socket.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, command, http::Connection, lab::ROOT, wait};

use crate::{PATIENCE, PORT, WAY, client::get, site};

/// A user and a group that have nothing.
const NOBODY: u32 = 65_534;
/// What `lbd` needs: to find its maps and programs by their numbers (SYS_ADMIN, which has BPF and PERFMON
/// in it), to attach, to set addresses and routes (NET_ADMIN), to send and see packets (NET_RAW).
const NEEDED: [&str; 3] = ["sys_admin", "net_admin", "net_raw"];

/// Programs that anybody may run: a copy of the binaries, and `lbd` in front of it as another user.
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

#[test]
fn lbd_does_everything_as_a_user_with_three_capabilities() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = site(|lab| {
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\n\
             [[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\n\
             interval = \"100ms\"\naddresses = [\"10.77.77.77/32\"]\nvirtual_mac = true\n",
            lab.balancer.v4
        )
    })?;
    let folder = lab.folder().to_owned();
    let programs = folder.join("programs");
    unprivileged(&programs, &NEEDED)?;
    balancer.use_binaries(&programs);
    let own_folder = balancer.config().parent().context("a folder")?.to_owned();
    fs::create_dir_all(balancer.pins())?;
    for place in [folder.as_path(), &own_folder, balancer.pins()] {
        chown(place, Some(NOBODY), Some(NOBODY)).with_context(|| place.display().to_string())?;
    }
    chown(balancer.config(), Some(NOBODY), Some(NOBODY))?;
    // Anybody may pass to the socket, so that what refuses them is what is tested.
    for place in [Path::new(ROOT), &folder, &own_folder] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    }
    let config = fs::read_to_string(balancer.config())?;
    let config = config.replace("group = \"root\"", "group = \"nogroup\"");
    fs::write(balancer.config(), config)?;
    balancer.launch()?;
    balancer.wait_usable()?;

    let status = fs::read_to_string(format!("/proc/{}/status", balancer.pid()?))?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    ensure!(line("Uid:").is_some_and(|ids| ids.starts_with("65534")), "{status}");
    // CAP_NET_ADMIN is 12, CAP_NET_RAW 13, CAP_SYS_ADMIN 21.
    ensure!(line("CapEff:") == Some("0000000000203000"), "{status}");
    ensure!(line("CapBnd:") == Some("0000000000203000"), "{status}");

    let web = || Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)?.get("/");
    ensure!(web()?.status == 200, "it forwards");
    let holds = || {
        let addresses = lab.balancer.namespace.ip("address show")?;
        ensure!(addresses.contains("10.77.77.77/32"), "{addresses}");
        Ok(())
    };
    wait::until(PATIENCE, "it is Active and holds its address", holds)?;
    let ready = || get(&lab.client.namespace, (lab.balancer.v4, PORT).into(), "/readyz", "");
    ensure!(ready()?.status == 200, "{:?}", ready());
    let host = lab.webs[0].host.v4.to_string();
    balancer.lbctl(&["backend", "weight", WAY.name(), &host, "7"])?;
    balancer.lbctl(&["backend", "drain", WAY.name(), &host, "--yes"])?;
    balancer.lbctl(&["backend", "enable", WAY.name(), &host])?;

    // The next one takes over what this one leaves, and can end it.
    balancer.stop()?;
    ensure!(web()?.status == 200, "it forwards on");
    balancer.launch()?;
    let status = balancer.wait_usable()?;
    ensure!(status.services.contains_key(WAY.name()), "it has what was there");
    ensure!(web()?.status == 200, "and forwards");

    who_may_use_the_socket(&lab, &balancer, &programs)?;
    balancer.lbctl(&["detach", "--yes"])?;
    let left = fs::read_dir(balancer.pins()).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} pins are left");
    Ok(())
}

/// The socket is open to all by its mode; the credentials decide all the same.
fn who_may_use_the_socket(
    lab: &kit::lab::Lab,
    balancer: &balancer::Balancer,
    programs: &Path,
) -> Result<()> {
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
        // Who lbd runs as, and root.
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
