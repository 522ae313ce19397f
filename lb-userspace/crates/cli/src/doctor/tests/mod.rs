//! Each check, once for each way in which it can come out.

mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_api::status::EgressStatus;
use lb_config::{Config, unit::Unit};
use lb_datapath::{
    kernel::Feature,
    probe::{Found, Hook},
};
use lb_model::{
    desired::Mode,
    hop::{NextHop, Resolution, Want},
};
use lb_netlink::LinkLayer;

use super::{
    snapshot::{
        Chain, Channels, Firewall, InterfaceSnapshot, Kernel, Mistake, NodeSnapshot, Process,
        Rules, SocketFile, Sysctls, TranslatedBackend, conf,
    },
    *,
};

const CONFIG: &str = r#"
interfaces = ["eth0"]
[[service]]
name = "web"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
    [[service.backend]]
    address = "10.0.0.11"
"#;

const ROUTER: &str = r#"
[[virtual_router]]
name = "main"
interface = "eth0"
vrid = 51
addresses = ["10.0.0.100"]
"#;

const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 11];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 99];
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

fn config(text: &str) -> Config {
    Config::parse(text).expect("the configuration of a test holds together")
}

pub(super) fn vip() -> IpAddr {
    [10, 0, 0, 100].into()
}

fn feature(name: &'static str, without: Option<&'static str>, there: bool) -> Feature {
    Feature { name, since: "5.18", without, there }
}

fn hop(mac: [u8; 6], mtu: u16) -> Resolution {
    let interface = "eth0".to_owned();
    Resolution::Resolved(NextHop { ifindex: 2, interface, mac, l2: vec![0; 14], mtu })
}

fn want(last: u8, mode: Mode) -> Want {
    Want { address: [10, 0, 0, last].into(), mode }
}

/// A node at which nothing is to be mended.
pub(super) fn healthy() -> NodeSnapshot {
    let interface = InterfaceSnapshot {
        ifindex: 2,
        up: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, 2]),
        addresses: vec![([10, 0, 0, 2].into(), 24), (vip(), 32)],
        program: Some(Found { name: "balance".into(), hook: Hook::Native, ours: true }),
        xdp_features: Some(7),
        offloads: Some(BTreeSet::from(["tx-checksum-ip-generic".to_owned()])),
        channels: Some(Channels { combined: 4, combined_max: 8, ..Channels::default() }),
        ..InterfaceSnapshot::default()
    };
    let loopback = InterfaceSnapshot {
        ifindex: 1,
        up: true,
        loopback: true,
        mtu: 65536,
        ..InterfaceSnapshot::default()
    };
    NodeSnapshot {
        kernel: Kernel {
            release: "6.18.4-amd64".into(),
            btf: true,
            jit: Some(1),
            features: Some(vec![feature("XDP", None, true)]),
            bpffs: vec!["/sys/fs/bpf".into()],
        },
        file: "/etc/lb/lb.toml".into(),
        config: Ok(config(CONFIG)),
        unit: Unit::parse("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nUser=lb\n"),
        refused: Vec::new(),
        cpus: 4,
        interfaces: [("eth0".to_owned(), interface), ("lo".to_owned(), loopback)].into(),
        sysctls: Sysctls::default(),
        firewall: Firewall::Known(Rules::default()),
        hops: [(want(11, Mode::Dsr), hop(BACKEND_MAC, 1500))].into(),
        egress: vec![exit("forwards")],
        translated: Vec::new(),
        serves_local_clients: false,
        claims: Some(BTreeMap::new()),
        clock_synchronised: Some(true),
        daemon: Some(Process {
            pid: 7,
            uid: 998,
            capabilities: ALL_CAPABILITIES,
            files: Some(65_536),
            memlock: None,
        }),
        socket: SocketFile {
            path: "/run/lb/lbd.sock".into(),
            group_exists: true,
            mode: Some(0o140_660),
            refused: None,
        },
    }
}

fn exit(state: &str) -> EgressStatus {
    let mac = "02:00:00:00:00:0b".into();
    EgressStatus { interface: "eth0".into(), mac, state: state.into(), detail: None }
}

fn eth0(snapshot: &mut NodeSnapshot) -> &mut InterfaceSnapshot {
    snapshot.interfaces.get_mut("eth0").expect("the node has it")
}

fn loopback(snapshot: &mut NodeSnapshot) -> &mut InterfaceSnapshot {
    snapshot.interfaces.get_mut("lo").expect("the node has it")
}

/// The node after a change, and what a check then finds: its worst grade, and its text.
fn changed(
    check: fn(&NodeSnapshot) -> Vec<Finding>,
    change: impl FnOnce(&mut NodeSnapshot),
) -> (Grade, String) {
    let mut snapshot = healthy();
    change(&mut snapshot);
    describe(&check(&snapshot))
}

/// The worst grade of findings, and their text.
pub(super) fn describe(findings: &[Finding]) -> (Grade, String) {
    let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
    for finding in findings {
        assert_eq!(finding.why.is_empty(), finding.grade == Grade::Ok, "{finding:?}");
        assert!(finding.fix.is_none() || finding.grade != Grade::Ok, "{finding:?}");
    }
    let text = |one: &Finding| format!("{}\n{}\n", one.found, one.fix.as_deref().unwrap_or(""));
    (worst, findings.iter().map(text).collect())
}

#[track_caller]
pub(super) fn assert_finding(found: &(Grade, String), grade: Grade, parts: &[&str]) {
    assert_eq!(found.0, grade, "{}", found.1);
    for part in parts {
        assert!(found.1.contains(part), "{part:?} is not in {}", found.1);
    }
}

#[test]
fn at_a_healthy_node_all_is_well() {
    let report = examine(&healthy());
    let unwell: Vec<_> = report.findings.iter().filter(|one| one.grade != Grade::Ok).collect();
    assert!(unwell.is_empty(), "{unwell:?}");
    assert!(report.count(Grade::Ok) > 15, "{report:?}");
}

#[test]
fn old_kernels_are_told() {
    let release = |release: &str| {
        changed(kernel::release, |snapshot| snapshot.kernel.release = release.into())
    };
    assert_finding(&release("6.18.4-amd64"), Grade::Ok, &["6.18"]);
    assert_finding(&release("6.1.0-30"), Grade::Ok, &["6.1.0-30"]);
    assert_finding(&release("99.0.1"), Grade::Ok, &["newer than what"]);
    assert_finding(&release("unknown"), Grade::Warning, &["`unknown`"]);
}

#[test]
fn a_kernel_older_than_the_tests_is_wrong_unless_all_that_is_needed_is_there() {
    let with = |release: &str, features| {
        changed(kernel::release, |snapshot| {
            (snapshot.kernel.release, snapshot.kernel.features) = (release.into(), features);
        })
    };
    let newer = &["apt-get install -y linux-image"];
    let there = feature("XDP", None, true);
    let needed = feature("frames of several buffers", None, false);
    let not_needed = feature("names", Some("nothing is named"), false);
    assert_finding(&with("5.19.17", Some(vec![there, not_needed])), Grade::Warning, newer);
    // A distribution may have brought features to an older release.
    assert_finding(&with("5.14.0-503.el9", Some(vec![there])), Grade::Warning, newer);
    assert_finding(&with("5.15.0", Some(vec![there, needed])), Grade::Error, newer);
    assert_finding(&with("5.15.0", None), Grade::Error, newer);
}

#[test]
fn features_that_the_kernel_lacks_are_told() {
    let features =
        |features| changed(kernel::features, |snapshot| snapshot.kernel.features = features);
    let there = feature("XDP", None, true);
    let missing = Some(vec![there, feature("arrays of maps", None, false)]);
    assert_finding(&features(missing), Grade::Error, &["lacks arrays of maps (Linux 5.18)"]);
    let worse = Some(vec![there, feature("names", Some("nothing is named"), false)]);
    assert_finding(&features(worse), Grade::Warning, &["lacks names (Linux 5.18)"]);
    assert_finding(&features(None), Grade::Warning, &["sudo lbctl doctor"]);
}

#[test]
fn the_jit_compiler_and_types_are_told() {
    let jit = |jit| changed(kernel::settings, |snapshot| snapshot.kernel.jit = jit);
    assert_finding(&jit(Some(0)), Grade::Error, &["sysctl -w net.core.bpf_jit_enable=1"]);
    assert_finding(&jit(Some(2)), Grade::Warning, &["sysctl -w net.core.bpf_jit_enable=1"]);
    assert_finding(&jit(None), Grade::Ok, &[]);
    let btf = changed(kernel::settings, |snapshot| snapshot.kernel.btf = false);
    assert_finding(&btf, Grade::Warning, &["does not describe its types"]);
}

#[test]
fn pins_need_a_bpf_file_system() {
    let bpffs = |at: &[&str]| {
        let at = at.iter().map(Into::into).collect();
        changed(kernel::bpffs, |snapshot| snapshot.kernel.bpffs = at)
    };
    assert_finding(&bpffs(&[]), Grade::Error, &["mount -t bpf bpf /sys/fs/bpf"]);
    assert_finding(&bpffs(&["/sys/fs/bpfx"]), Grade::Error, &[]);
    assert_finding(&bpffs(&["/mnt", "/sys/fs/bpf"]), Grade::Ok, &["/sys/fs/bpf"]);
}

#[test]
fn mistakes_of_the_configuration_are_told() {
    let fix = "${EDITOR:-vi} /etc/lb/lb.toml && lbctl config check /etc/lb/lb.toml";
    let mistake = |text: &str| Mistake { text: text.into(), fix: Some(fix.into()) };
    let mistakes = vec![mistake("/etc/lb/lb.toml:3: x"), mistake("/etc/lb/lb.toml:4: y")];
    let reported = changed(node::configuration, |snapshot| snapshot.config = Err(mistakes.clone()));
    assert_finding(
        &reported,
        Grade::Error,
        &["toml:3: x", "toml:4: y", "lbctl config check /etc/lb/lb.toml"],
    );
    let unreadable = Mistake {
        text: "/etc/lb/lb.toml:5: read /etc/lb/sync.key: Permission denied".into(),
        fix: Some("chgrp lb /etc/lb/sync.key".into()),
    };
    for by_root in [true, false] {
        let found = changed(node::configuration, |snapshot| match by_root {
            true => snapshot.config = Err(vec![unreadable.clone()]),
            false => snapshot.refused.push(unreadable.clone()),
        });
        assert_finding(&found, Grade::Error, &["sync.key: Perm", "\nchgrp lb /etc/lb/sync.key"]);
    }
    // Checks that need a configuration are silent without one; the others report.
    let mut snapshot = healthy();
    snapshot.config = Err(mistakes);
    snapshot.kernel.jit = Some(0);
    assert_eq!(examine(&snapshot).count(Grade::Error), 3);
    let doubtful = CONFIG.replace("port = 80", "port = 80\nring_slots = 7");
    let doubt = changed(node::configuration, |snapshot| snapshot.config = Ok(config(&doubtful)));
    assert_finding(&doubt, Grade::Warning, &["7 slots for 1 backends"]);
}

#[test]
fn a_clock_that_nothing_keeps_right_is_told() {
    let clock = |clock| changed(process::clock, |snapshot| snapshot.clock_synchronised = clock);
    assert_finding(&clock(Some(false)), Grade::Warning, &["apt-get install -y chrony"]);
    assert_finding(&clock(None), Grade::Warning, &["does not report"]);
}

#[test]
fn a_daemon_that_does_not_run_is_told() {
    let none = changed(process::daemon, |snapshot| {
        snapshot.daemon = None;
        snapshot.socket.refused = Some("connection refused".into());
    });
    assert_finding(&none, Grade::Warning, &["connection refused", "systemctl start lbd"]);
    let stopped = |unit: &str, attached: bool| {
        let mut snapshot = healthy();
        snapshot.daemon = None;
        snapshot.unit = Unit::parse(unit);
        if !attached {
            eth0(&mut snapshot).program = None;
        }
        process::daemon(&snapshot).remove(0)
    };
    let loaded = "LoadState=loaded\nActiveState=inactive\n";
    let (left, never) = (stopped(loaded, true), stopped(loaded, false));
    assert!(left.why.contains("goes on forwarding"), "{left:?}");
    assert_eq!(never.why, "nothing is forwarded");
    assert_eq!(never.fix.as_deref(), Some("systemctl enable --now lbd"));
    assert_eq!(stopped("", false).fix.as_deref(), Some("lbd --config /etc/lb/lb.toml"));
    // Starting it again would fail again.
    let fails = stopped("LoadState=loaded\nActiveState=activating\nSubState=auto-restart\n", true);
    assert_eq!((fails.grade, &fails.fix), (Grade::Warning, &None));
    assert!(fails.why.contains("'journalctl -u lbd -n 20' shows why"), "{fails:?}");
}

#[test]
fn capabilities_that_the_daemon_lacks_are_told() {
    let bit = |number: u64| 1 << number;
    let lacking = |capabilities: u64, text: &str| {
        changed(process::capabilities, |snapshot| {
            snapshot.config = Ok(config(text));
            let daemon = snapshot.daemon.as_mut().expect("it runs");
            daemon.capabilities = capabilities;
        })
    };
    let needed = bit(39) | bit(38) | bit(12) | bit(13);
    assert_finding(&lacking(needed, CONFIG), Grade::Ok, &[]);
    // Before they were divided there was one for all.
    assert_finding(&lacking(bit(21) | bit(12) | bit(13), CONFIG), Grade::Ok, &[]);
    let without = lacking(needed & !bit(13), CONFIG);
    assert_finding(
        &without,
        Grade::Error,
        &["lacks CAP_NET_RAW", "AmbientCapabilities=CAP_NET_RAW"],
    );
    // One command does not undo another.
    let both = lacking(bit(38) | bit(39), CONFIG);
    assert_finding(&both, Grade::Error, &["/cap_net_raw.conf &&", "/cap_net_admin.conf &&"]);
    let pair = format!("{CONFIG}{ROUTER}");
    assert_finding(&lacking(needed, &pair), Grade::Warning, &["lacks CAP_SYS_NICE"]);
    assert_finding(&lacking(needed | bit(23), &pair), Grade::Ok, &[]);
}

#[test]
fn limits_that_are_too_small_are_told() {
    let limits = |files, memlock, capabilities, text: &str| {
        changed(process::limits, |snapshot| {
            snapshot.config = Ok(config(text));
            let daemon = snapshot.daemon.as_mut().expect("it runs");
            (daemon.files, daemon.memlock, daemon.capabilities) = (files, memlock, capabilities);
        })
    };
    assert_finding(&limits(Some(1_024), None, 0, CONFIG), Grade::Warning, &["LimitNOFILE=65536"]);
    assert_finding(&limits(None, Some(64), 0, CONFIG), Grade::Ok, &["any number"]);
    let pair = format!("{CONFIG}{ROUTER}");
    assert_finding(&limits(None, Some(64), 0, &pair), Grade::Warning, &["LimitMEMLOCK=infinity"]);
    assert_finding(&limits(None, Some(64), 1 << 14, &pair), Grade::Ok, &[]);
    assert_finding(&limits(None, None, 0, &pair), Grade::Ok, &[]);
}

#[test]
fn who_may_use_the_socket_is_told() {
    let open = changed(process::socket, |snapshot| snapshot.socket.mode = Some(0o140_666));
    assert_finding(&open, Grade::Error, &["chmod 660 /run/lb/lbd.sock"]);
    let lonely = changed(process::socket, |snapshot| snapshot.socket.group_exists = false);
    assert_finding(&lonely, Grade::Warning, &["groupadd --system lb"]);
}

#[test]
fn only_an_egress_that_loses_frames_is_wrong() {
    for (state, grade) in
        [("forwards", Grade::Ok), ("unknown", Grade::Ok), ("egress_not_forwarding", Grade::Error)]
    {
        let mut snapshot = healthy();
        snapshot.egress = vec![exit(state)];
        let [found] = &node::exits(&snapshot)[..] else { panic!("one finding") };
        assert_eq!((found.check.as_str(), found.grade), ("egress", grade), "{found:?}");
    }
}
