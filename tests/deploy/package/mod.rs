//! The Debian package on a machine with systemd: installed, started, upgraded and removed, with clients
//! at work.

pub mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer, can_run, command,
    http::Connection,
    lab::{Lab, Options},
    load::{Load, Plan},
    wait,
    ways::Way,
};
use machine::Machine;

const WAY: Way = Way::DsrV4;
const SOON: Duration = Duration::from_secs(20);
/// Long against anything that a start of lbd does.
const BEAT: Duration = Duration::from_millis(500);
/// The highest score of `systemd-analyze security`, of 100: lower is safer. A unit without anything has
/// 96; most of the rest are the capabilities that lbd can't do without.
const EXPOSURE: u32 = 30;

/// The packages' folder in that of a lab.
const PACKAGES: &str = "packages";

/// Makes the package from the programs that are built, in two revisions.
fn packages(lab: &Lab) -> Result<[PathBuf; 2]> {
    let folder = lab.folder().join(PACKAGES);
    fs::create_dir(&folder)?;
    let binaries = balancer::binaries()?;
    let xtask = binaries.join("xtask");
    ensure!(xtask.is_file(), "{} is not built; `cargo build -p xtask` does it", xtask.display());
    for revision in ["1", "2"] {
        let mut make = Command::new(&xtask);
        make.args(["package", "--revision", revision, "--binaries"]).arg(&binaries);
        command::run(make.arg("--output").arg(&folder))?;
    }
    let architecture = command::run(Command::new("dpkg").arg("--print-architecture"))?;
    let version = env!("CARGO_PKG_VERSION");
    let name = |revision| format!("lb_{version}-{revision}_{}.deb", architecture.trim());
    Ok([folder.join(name(1)), folder.join(name(2))])
}

/// A machine of a lab's, and the packages that it sees.
pub fn booted() -> Result<(Lab, Machine, [PathBuf; 2])> {
    let lab = Lab::new(&Options::default())?;
    let packages = packages(&lab)?;
    let machine = Machine::boot(&lab, &lab.balancer, &lab.folder().join(PACKAGES))?;
    Ok((lab, machine, packages))
}

/// The two machines of a lab's pair, each with the package.
pub fn booted_pair() -> Result<(Lab, [Machine; 2])> {
    let lab = Lab::new(&Options { pair: true, ..Options::default() })?;
    let [package, _] = packages(&lab)?;
    let peer = lab.peer.as_ref().context("a pair has two")?;
    let boot = |host| {
        let machine = Machine::boot(&lab, host, &lab.folder().join(PACKAGES))?;
        install(&machine, &package)?;
        Ok::<_, anyhow::Error>(machine)
    };
    let machines = [boot(&lab.balancer)?, boot(peer)?];
    Ok((lab, machines))
}

pub fn install(machine: &Machine, package: &Path) -> Result<String> {
    let name = package.file_name().context("a package has a name")?.to_string_lossy();
    machine.run(&format!("dpkg --force-unsafe-io -i /packages/{name}"))
}

fn files(package: &Path) -> Result<Vec<String>> {
    let listed = command::run(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().nth(5));
    Ok(names.filter(|name| !name.ends_with('/')).map(|name| name[1..].to_owned()).collect())
}

/// A field of /proc/PID/status of the daemon.
fn field(machine: &Machine, name: &str) -> Result<String> {
    let line = format!(
        "grep ^{name}: /proc/$(systemctl show --property MainPID --value lbd)/status | cut -f 2-"
    );
    Ok(machine.run(&line)?.trim().to_owned())
}

#[test]
fn the_package_is_installed_serves_is_upgraded_under_load_and_leaves_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, machine, [first, second]) = booted()?;

    installed(&machine, &first)?;
    let service = WAY.service(&lab);
    started(&machine, &service.toml())?;
    let client = &lab.client.namespace;
    let mut connection = Connection::open(client, WAY.target(), SOON)?;
    let backend = connection.get("/")?.ok()?.backend()?;
    who_may_use_the_socket(&machine)?;

    // An upgrade is a restart of lbd, which no packet notices.
    let pause = Duration::from_millis(50);
    let load = Load::start(client, Plan { target: WAY.target(), steady: 20, passing: 5, pause })?;
    load.run_for(BEAT);
    let before = machine.run("systemctl show --property MainPID --value lbd")?;
    install(&machine, &second)?;
    let after = machine.run("systemctl show --property MainPID --value lbd")?;
    ensure!(before != after, "the old lbd runs on");
    load.run_for(BEAT);
    load.finish().check()?;
    assert_eq!(connection.get("/")?.ok()?.backend()?, backend);

    // A stop leaves forwarding on.
    machine.run("systemctl stop lbd")?;
    assert_eq!(connection.get("/")?.ok()?.backend()?, backend);
    Connection::open(client, WAY.target(), SOON)?.get("/")?.ok()?;
    machine.run("systemctl start lbd")?;

    removed(&machine, &second)
}

#[test]
fn the_decapsulators_unit_follows_the_vips_through_stop_upgrade_and_removal() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (_lab, machine, [first, second]) = booted()?;
    let output = install(&machine, &first)?;
    ensure!(output.contains("systemctl enable --now lb-decap@eth0"), "{output}");
    // As that of a VLAN, the name has a dot, which its pins have not.
    machine.run("ip link add eth0.7 type veth peer name far7 && ip link set eth0.7 up")?;
    machine.run("ip address add 10.7.0.2/24 dev eth0.7")?;
    machine.write("/etc/default/lb-decap-eth0.7", "LB_DECAP_OPTIONS=\"--from any\"\n")?;
    let units = ["lb-decap@eth0", "lb-decap@eth0.7"];
    for unit in units {
        let started = machine.run(&format!("systemctl enable --now {unit}"));
        let log = || machine.run(&format!("journalctl -u {unit} --no-pager")).unwrap_or_default();
        started.with_context(log)?;
        let line = format!("systemd-analyze security --threshold={EXPOSURE} {unit}.service");
        machine.run(&line)?;
    }
    let takes = |vips: &str| {
        wait::until_true(SOON, "the lists follow the VIPs", || {
            let shown = machine.run("lbctl decap status")?;
            let whole = |from| format!("from {from}, for {vips}\n");
            Ok(shown.contains(&whole("172.16.0.0/16, 100::/64"))
                && shown.contains(&whole("0.0.0.0/0, ::/0")))
        })
        .with_context(|| machine.run("lbctl decap status").unwrap_or_default())
    };
    takes("none yet (followed)")?;
    machine.run("ip address add 10.0.0.100/32 dev lo")?;
    takes("10.0.0.100 (followed)")?;
    let user =
        machine.run("ps -o user= -p $(systemctl show --property MainPID --value lb-decap@eth0)")?;
    assert_eq!(user.trim(), "lb");

    // The link stays from start to removal: there is no moment without a program.
    let link = machine.link("decap-eth0")?;
    let pid = "systemctl show --property MainPID --value lb-decap@eth0";
    let before = machine.run(pid)?;
    install(&machine, &second)?;
    ensure!(before != machine.run(pid)?, "the old one runs on");
    takes("10.0.0.100 (followed)")?;
    machine.run("systemctl stop lb-decap@eth0 lb-decap@eth0.7")?;
    takes("10.0.0.100 (fixed)")?;
    machine.run("ip address add 10.0.0.101/32 dev lo")?;
    machine.run("systemctl start lb-decap@eth0 lb-decap@eth0.7")?;
    takes("10.0.0.100, 10.0.0.101 (followed)")?;
    assert_eq!(machine.link("decap-eth0")?, link);

    removed(&machine, &second)?;
    let other = machine.run("ip link show eth0.7")?;
    ensure!(!other.contains("xdp"), "the other program is off, too: {other}");
    let left = machine.run("ls /etc/systemd/system/multi-user.target.wants /etc/default")?;
    ensure!(!left.contains("lb-decap"), "{left}");
    Ok(())
}

fn installed(machine: &Machine, package: &Path) -> Result<()> {
    let output = install(machine, package)?;
    ensure!(output.contains("systemctl enable --now lbd"), "it prints the next step: {output}");
    ensure!(!machine.holds("systemctl is-active --quiet lbd")?, "nobody has started it");
    let checked = machine.run("lbd --check /etc/lb/lb.toml")?;
    ensure!(checked.contains("ok: 0 services"), "the example is harmless: {checked}");
    let modes = machine.run("stat -c '%U:%G %a' /etc/lb /etc/lb/lb.toml")?;
    assert_eq!(modes, "root:lb 770\nroot:lb 640\n");
    for page in ["lbctl.1", "lbctl-backend-drain.1", "lbctl-doctor.1", "lb.toml.5", "lbd.8"] {
        let section = page.rsplit_once('.').context("a page has a section")?.1;
        let text = machine.run(&format!("zcat /usr/share/man/man{section}/{page}.gz"))?;
        ensure!(text.contains(".TH"), "{page}: {text}");
    }
    for program in ["lbctl", "lbd"] {
        machine.run(&format!("bash -n /usr/share/bash-completion/completions/{program}"))?;
        let zsh =
            machine.run(&format!("head -n 1 /usr/share/zsh/vendor-completions/_{program}"))?;
        assert_eq!(zsh, format!("#compdef {program}\n"));
        let fish = format!("/usr/share/fish/vendor_completions.d/{program}.fish");
        let fish = machine.run(&format!("cat {fish}"))?;
        ensure!(
            fish.contains(&format!("-c {program}"))
                || fish.contains(&format!("--command {program}")),
            "{fish}"
        );
    }
    machine.run("systemd-analyze verify --man=no lbd.service")?;
    machine.run(&format!("systemd-analyze security --threshold={EXPOSURE} lbd.service"))?;
    Ok(())
}

fn started(machine: &Machine, service: &str) -> Result<()> {
    machine.write("/etc/lb/lb.toml", &format!("interfaces = [\"eth0\"]\n{service}"))?;
    let started = machine.run("systemctl enable --now lbd");
    started.with_context(|| machine.run("journalctl -u lbd --no-pager").unwrap_or_default())?;
    // Type=notify: a started lbd has written its maps.
    machine.run("systemctl reload lbd")?;
    wait::until_true(SOON, "every backend is up", || {
        Ok(!machine.run("lbctl backend list")?.contains("unreachable"))
    })?;
    let user = machine.run("id -u lb")?;
    let user = user.trim();
    assert_eq!(field(machine, "Uid")?, [user; 4].join("\t"));
    assert_eq!(field(machine, "NoNewPrivs")?, "1");
    // BPF, PERFMON, SYS_NICE, IPC_LOCK, NET_RAW and NET_ADMIN, and nothing that opens files, becomes another
    // user, or counts as root.
    let expected: u64 = [39, 38, 23, 14, 13, 12].iter().map(|bit| 1_u64 << bit).sum();
    for set in ["CapEff", "CapBnd", "CapPrm"] {
        assert_eq!(u64::from_str_radix(&field(machine, set)?, 16)?, expected, "{set}");
    }
    let report = machine.output("lbctl doctor --quiet")?;
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    ensure!(report.contains("0 errors"), "{report}");
    // Changes are kept where only lbd writes, and in the operator's file, which stays readable for the group.
    machine.run("lbctl service add saved --vip 10.0.0.101 --port 81 --check none")?;
    machine.run("lbctl config save && grep -q '^name = \"saved\"' /etc/lb/lb.toml")?;
    assert_eq!(machine.run("stat -c '%G %a' /etc/lb/lb.toml")?, "lb 640\n");
    machine.run("lbctl service remove saved --yes && lbctl config save")?;
    // As bash does at a key: the names come from lbd.
    let completed = machine.run(
        "COMPLETE=bash _CLAP_COMPLETE_INDEX=3 _CLAP_IFS='\n' _CLAP_COMPLETE_COMP_TYPE=9 \
         _CLAP_COMPLETE_SPACE=true lbctl -- lbctl backend drain ''",
    )?;
    ensure!(completed.contains(WAY.name()), "{completed:?}");
    assert_eq!(machine.run("stat -c '%U' /var/lib/lb")?, "lb\n");
    Ok(())
}

fn who_may_use_the_socket(machine: &Machine) -> Result<()> {
    let status = |group: &str| {
        let user = format!("setpriv --reuid nobody --regid {group} --clear-groups");
        machine.holds(&format!("{user} lbctl status"))
    };
    ensure!(status("lb")?, "its group may use lbctl");
    ensure!(!status("nogroup")?, "others may not");
    Ok(())
}

fn removed(machine: &Machine, package: &Path) -> Result<()> {
    machine.run("dpkg -r lb")?;
    ensure!(!machine.holds("pidof lbd")?, "lbd is gone");
    let link = machine.run("ip link show eth0")?;
    ensure!(!link.contains("xdp"), "the program is off: {link}");
    ensure!(!machine.holds("test -e /sys/fs/bpf/lb")?, "no pin is left");
    ensure!(machine.holds("test -e /etc/lb/lb.toml")?, "the configuration stays until a purge");
    machine.run("dpkg -P lb")?;
    let mut gone = files(package)?;
    ensure!(gone.len() > 20, "{gone:?}");
    gone.extend(
        ["/etc/lb", "/var/lib/lb", "/run/lb", "/usr/share/lb", "/usr/share/doc/lb"]
            .map(str::to_owned),
    );
    gone.push("/etc/systemd/system/multi-user.target.wants/lbd.service".into());
    // One shell for all of them.
    let line = format!("for file in {}; do ls -d $file 2>/dev/null; done; true", gone.join(" "));
    let left = machine.run(&line)?;
    ensure!(left.is_empty(), "it leaves {left}");
    Ok(())
}
