//! The virtual routers that the configuration accepts, and the errors for others.

mod mistakes;

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use lb_model::router::{
    Announce, Auth, Checksum, Family, Router, SecondPath, SyncGroup, Track, Tracked, Version,
    VirtualAddress,
};

use super::super::Config;

const WEB: &str = r#"interfaces = ["eth0"]
[[service]]
name = "web"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
backend = [{ address = "10.0.0.11" }]
"#;
/// Lines of [`WEB`] and of the header that [`with`] adds.
const LINES: usize = 9;
const MAIN: &str = r#"name = "main"
interface = "eth0"
vrid = 51
addresses = ["10.0.0.100"]
"#;

/// The text with a router of these lines.
fn with(lines: &str) -> String {
    format!("{WEB}[[virtual_router]]\n{lines}")
}

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn router(lines: &str) -> Router {
    parse(&with(lines)).routers.routers.remove(0)
}

/// The mistakes in a router of these lines, with the lines' own numbers.
fn mistakes(lines: &str) -> Vec<String> {
    let problems = Config::parse(&with(lines)).expect_err(lines);
    let lines = problems.into_iter().map(|problem| {
        format!(
            "{}:{}: {}: {}",
            problem.line - LINES,
            problem.column,
            problem.path,
            problem.message
        )
    });
    lines.collect()
}

fn vip(address: &str) -> VirtualAddress {
    let address: IpAddr = address.parse().expect(address);
    VirtualAddress {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
        interface: None,
        label: None,
        nodad: true,
        advertised: true,
    }
}

#[test]
fn a_router_needs_four_lines() {
    let expected = Router {
        name: "main".into(),
        interface: "eth0".into(),
        key: lb_model::router::RouterKey {
            family: Family::V4,
            vrid: 51.try_into().expect("not zero"),
        },
        version: Version::V3,
        priority: 100.try_into().expect("not zero"),
        interval: Duration::from_millis(100),
        preempt: true,
        preempt_delay: Duration::ZERO,
        accept: true,
        addresses: vec![vip("10.0.0.100")],
        source: None,
        peers: Vec::new(),
        min_ttl: 255,
        second_path: None,
        auth: Auth::None,
        checksum: Checksum::PseudoHeader,
        virtual_mac: None,
        announce: Announce::default(),
        tracks: vec![Track { what: Tracked::Forwarding, weight: 0 }],
        notify: None,
    };
    assert_eq!(router(MAIN), expected);
    assert_eq!(parse(&with(MAIN)).warnings, []);
}

#[test]
fn the_interval_of_version_2_is_a_second_unless_it_is_given() {
    let interval = |lines: &str| router(&format!("{MAIN}{lines}")).interval;
    assert_eq!(interval("version = 2\n"), Duration::from_secs(1));
    assert_eq!(interval("version = 2\ninterval = \"3s\"\n"), Duration::from_secs(3));
    assert_eq!(interval("version = 3\n"), Duration::from_millis(100));
    assert_eq!(interval("interval = \"1s\"\n"), Duration::from_secs(1));
}

#[test]
fn all_keys_arrive() {
    let read = router(
        r#"
        name = "six"
        interface = "eth0.10"
        vrid = 255
        family = "ipv6"
        priority = 254
        interval = "40s950ms"
        preempt_delay = "1m30s"
        addresses = [
            "fe80::100",
            { address = "fd00::100/64", interface = "eth1", nodad = false },
            { address = "10.0.0.100", label = "eth0:vip" },
            { address = "fd00::101", advertised = false },
        ]
        peers = ["fd00::3", "fe80::3"]
        source = "fd00::2"
        min_ttl = 254
        second_path = { interface = "eth1", peers = ["fd01::3"], source = "fd01::2" }
        virtual_mac = true
        accept = false
        announce = { repeat = 2, delay = "1s", refresh = "0s" }
        notify = ["/bin/true", "six"]
        track_forwarding = false
        [[virtual_router.track]]
        type = "interface"
        interface = "eth1"
        weight = -254
        [[virtual_router.track]]
        type = "service"
        service = "web"
        min_healthy = 2
        [[virtual_router.track]]
        type = "script"
        command = ["/bin/true", "--fast"]
        interval = "500ms"
        fall = 3
        weight = 254
        [[virtual_router.track]]
        type = "file"
        path = "/run/priority"
        "#,
    );
    assert_eq!((read.key.family, read.key.vrid.get()), (Family::V6, 255));
    assert_eq!((read.priority.get(), read.interval.as_millis()), (254, 40_950));
    assert_eq!((read.preempt, read.preempt_delay.as_secs()), (true, 90));
    assert_eq!(
        read.addresses,
        [
            vip("fe80::100"),
            VirtualAddress {
                prefix: 64,
                interface: Some("eth1".into()),
                nodad: false,
                ..vip("fd00::100")
            },
            VirtualAddress {
                label: Some("eth0:vip".into()),
                advertised: false,
                ..vip("10.0.0.100")
            },
            VirtualAddress { advertised: false, ..vip("fd00::101") },
        ]
    );
    assert_eq!(read.peers, ["fd00::3", "fe80::3"].map(|peer| peer.parse::<IpAddr>().expect(peer)));
    assert_eq!((read.source, read.min_ttl), ("fd00::2".parse().ok(), 254));
    let second = SecondPath {
        interface: "eth1".into(),
        source: "fd01::2".parse().ok(),
        peers: vec!["fd01::3".parse().expect("an address")],
    };
    assert_eq!(read.second_path, Some(second));
    assert_eq!(read.virtual_mac.expect("it has one").interface, "vrrp6.255");
    assert!(!read.accept);
    let (delay, refresh) = (Duration::from_secs(1), Duration::ZERO);
    assert_eq!(read.announce, Announce { repeat: 2, delay, refresh });
    assert_eq!(read.notify, Some(vec!["/bin/true".into(), "six".into()]));
    let times = Duration::from_millis(500);
    let script = Tracked::Script {
        command: vec!["/bin/true".into(), "--fast".into()],
        interval: times,
        timeout: times,
        rise: 1,
        fall: 3,
    };
    let track = |what, weight| Track { what, weight };
    assert_eq!(
        read.tracks,
        [
            track(Tracked::Interface("eth1".into()), -254),
            track(Tracked::Service { name: "web".into(), min_healthy: 2 }, 0),
            track(script, 254),
            track(Tracked::File(PathBuf::from("/run/priority")), 0),
        ]
    );
}

#[test]
fn of_a_long_password_the_first_eight_bytes_count_as_with_keepalived() {
    let text = with(&format!("{MAIN}version = 2\npassword = \"ninebytes\"\n"));
    let config = Config::parse(&text).expect("it is valid");
    assert_eq!(config.routers.routers[0].auth, Auth::Pass(*b"ninebyte"));
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    let expected = "virtual_router[0].password: a password of 9 bytes, of which the first 8 go into an \
                    advertisement and count, as with keepalived";
    assert!(warnings.len() == 1 && warnings[0].ends_with(expected), "{warnings:?}");
}

#[test]
fn a_router_of_version_2_has_a_password_and_whole_seconds() {
    let read = router(&format!("{MAIN}version = 2\npassword = \"secret\"\ninterval = \"3s\"\n"));
    assert_eq!((read.version, read.interval.as_secs()), (Version::V2, 3));
    assert_eq!(read.auth, Auth::Pass(*b"secret\0\0"));
    assert_eq!(format!("{:?}", read.auth), "Pass(..)");
}

#[test]
fn a_second_path_alone_may_be_behind_routers() {
    let path = "second_path = { interface = \"eth1\", peers = [\"192.168.9.3\"] }";
    let read = router(&format!("{MAIN}{path}\nmin_ttl = 254\n"));
    assert_eq!((read.min_ttl, read.peers), (254, vec![]));
}

#[test]
fn the_owner_has_priority_255_however_it_is_said() {
    for line in ["owner = true", "priority = 255", "owner = true\npriority = 255"] {
        assert_eq!(router(&format!("{MAIN}{line}\n")).priority.get(), 255, "{line}");
    }
}

#[test]
fn forwarding_is_tracked_unless_that_is_switched_off_or_said_otherwise() {
    let own = "[[virtual_router.track]]\ntype = \"forwarding\"\nweight = -50\n";
    assert_eq!(
        router(&format!("{MAIN}{own}")).tracks,
        [Track { what: Tracked::Forwarding, weight: -50 }]
    );
    assert_eq!(router(&format!("{MAIN}track_forwarding = false\n")).tracks, []);
}

#[test]
fn what_works_and_is_probably_not_meant_is_a_warning() {
    let warnings = |lines: &str| {
        let warnings = parse(&with(lines)).warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings(&MAIN.replace("0.100", "0.101")),
        [
            "4:7: service[0].vip: 10.0.0.100 is an address of no virtual router: no takeover moves it"
        ]
    );
    let other = MAIN.replace("eth0", "eth1");
    assert_eq!(
        warnings(&other),
        [
            "11:13: virtual_router[0].interface: eth1 is none of `interfaces` (eth0); unless it is a VLAN on one or a bridge over one, nothing is forwarded there, and the router stays in fault: add it, or track_forwarding = false"
        ]
    );
    let six = "name = \"six\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"fd00::100\"]\n";
    let service = "10.0.0.100 is an address of no virtual router";
    let found = warnings(six);
    let first = "13:14: virtual_router[0].addresses[0]: fd00::100 is the first address of an IPv6 router and \
                 not link-local, which RFC 9568 (5.2.9) asks for";
    assert!(found.len() == 2 && found.iter().any(|line| line.starts_with(first)), "{found:#?}");
    let found = warnings(&six.replace("[\"", "[\"fe80::33\", \""));
    assert!(found.len() == 1 && found[0].contains(service), "{found:#?}");
    for fine in [format!("{other}track_forwarding = false\n"), MAIN.replace("eth0", "eth0.7")] {
        assert_eq!(warnings(&fine), [""; 0], "{fine}");
    }
}

#[test]
fn a_key_of_hmac_is_what_its_file_says_but_for_the_last_newline() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("vrrp.key");
    let lines = format!("{MAIN}hmac_key_file = \"{}\"\nhmac_key_id = 7\n", file.display());
    fs::write(&file, "0123456789abcdef0123\n").expect("it is written");
    let set = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
    set(0o640);
    let config = parse(&with(&lines));
    assert_eq!(config.warnings, []);
    let secret = b"0123456789abcdef0123".to_vec();
    assert_eq!(config.routers.routers[0].auth, Auth::Hmac { id: 7, secret });
    set(0o644);
    let warnings = parse(&with(&lines)).warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        warnings[0].message,
        format!(
            "{0} has mode 0644, so that others can read or change the key; run 'chmod 0640 {0}'",
            file.display()
        )
    );
    fs::write(&file, "short\n").expect("it is written");
    assert_eq!(
        mistakes(&lines),
        [format!(
            "5:17: virtual_router[0].hmac_key_file: a key of 5 bytes; 16 are the least: make one for all nodes with '(umask 027; lbctl sync key > {0}; chgrp lb {0})'",
            file.display()
        )]
    );
    assert_eq!(
        mistakes(&format!("{lines}version = 2\n"))[0],
        "5:17: virtual_router[0].hmac_key_file: HMAC is for version 3; remove `version`, or use a password"
    );
}

/// The guide's chapter on the migration from keepalived.
const FROM_KEEPALIVED: &str = include_str!("../../../../../../docs/guide/from-keepalived.md");

#[test]
fn the_guide_has_each_keyword_that_keepalived_has_of_virtual_routers() {
    // keepalived.conf(5) of 2.2.7: vrrp_instance, vrrp_sync_group, vrrp_script, and the global ones.
    let keywords = "accept advert_int auth_pass auth_type check_unicast_src debug dont_track_primary \
        down_timer_adverts enable_script_security garp_extra_if garp_interval garp_lower_prio_delay \
        garp_lower_prio_repeat garp_master_delay garp_master_refresh garp_master_refresh_repeat \
        garp_master_repeat global_tracking gna_interval group higher_prio_send_advert init_fail interface \
        lower_prio_no_advert lvs_sync_daemon mcast_dst_ip mcast_src_ip native_ipv6 no_accept nopreempt \
        notify notify_backup notify_deleted notify_fault notify_fifo notify_master \
        notify_master_rx_lower_pri notify_priority_changes notify_stop old_unicast_checksum \
        preempt_delay priority promote_secondaries reverse script_user skip_check_adv_addr smtp_alert \
        state strict_mode sync_group_tracking_weight track_bfd track_file track_interface track_process \
        track_script track_src_ip unicast_fault_no_peer unicast_peer unicast_src_ip unicast_ttl \
        use_ipvlan use_vmac use_vmac_addr version virtual_ipaddress virtual_ipaddress_excluded \
        virtual_router_id virtual_routes virtual_rules vmac_xmit_base vrrp_cpu_affinity vrrp_ipsets \
        vrrp_iptables vrrp_mcast_group4 vrrp_mcast_group6 vrrp_min_garp vrrp_no_swap vrrp_priority \
        vrrp_rlimit_rttime vrrp_rt_priority vrrp_script vrrp_startup_delay vrrp_strict \
        vrrp_sync_group vrrp_version weight";
    let is_of_a_word = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
    let known: Vec<&str> =
        FROM_KEEPALIVED.lines().flat_map(|row| row.split(|sign| !is_of_a_word(sign))).collect();
    let missing = keywords.split_whitespace().filter(|keyword| !known.contains(keyword));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn what_the_guide_says_to_write_for_a_tracked_interface_is_taken() {
    let row = FROM_KEEPALIVED.lines().find(|row| row.starts_with("| `track_interface")).unwrap();
    let lines: Vec<&str> = row.split('`').skip(3).step_by(2).collect();
    let read = router(&format!("{MAIN}{}\n", lines.join("\n")));
    let eth1 = Track { what: Tracked::Interface("eth1".into()), weight: -20 };
    assert_eq!(read.tracks.last(), Some(&eth1), "{lines:?}");
}
