//! Each check of a backend, once for each way in which it can come out.

use super::*;
use crate::doctor::{
    Grade,
    tests::{assert_finding, describe},
};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip() -> IpAddr {
    address("10.0.0.100")
}

/// A backend at which nothing is to be mended.
pub(in crate::doctor) fn healthy(mode: Mode) -> BackendSnapshot {
    let link = InterfaceSnapshot {
        ifindex: 2,
        up: true,
        mtu: 1520,
        mac: Some([2, 0, 0, 0, 0, 11]),
        addresses: vec![(address("10.0.0.11"), 24)],
        offloads: Some(BTreeSet::new()),
        ..InterfaceSnapshot::default()
    };
    let loopback = InterfaceSnapshot {
        ifindex: 1,
        up: true,
        loopback: true,
        addresses: vec![(address("127.0.0.1"), 8), (address("::1"), 128), (vip(), 32)],
        ..InterfaceSnapshot::default()
    };
    let silent = KEEP_SILENT.map(|(name, value)| (conf("all", name), value));
    let decap = Decap {
        vips: Some(vec![vip()]),
        sources: Some(vec![prefix("172.16.0.0/16")]),
        ..Decap::default()
    };
    let decaps = (mode == Mode::Ipip).then(|| ("eth0".to_owned(), decap));
    BackendSnapshot {
        request: BackendRequest {
            ports: vec![(Protocol::Tcp, Ports::one(80))],
            ..BackendRequest::default()
        },
        interfaces: [("eth0".to_owned(), link), ("lo".to_owned(), loopback)].into(),
        sysctls: Sysctls(silent.into()),
        firewall: Firewall::Known(Rules::default()),
        listeners: [(Protocol::Tcp, "0.0.0.0:80".parse().expect("an address"))].into(),
        own_ports: OwnPorts::of("32768\t60999\n", "\n"),
        local_prefixes: Vec::new(),
        gateways: BTreeSet::new(),
        decaps: decaps.into_iter().collect(),
        announced_segment: None,
        uplink: Some("eth0".into()),
    }
}

fn interface<'a>(snapshot: &'a mut BackendSnapshot, name: &str) -> &'a mut InterfaceSnapshot {
    snapshot.interfaces.get_mut(name).expect("the backend has it")
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn own(snapshot: &mut BackendSnapshot) -> &mut Decap {
    snapshot.decaps.get_mut("eth0").expect("the backend has it")
}

fn set(snapshot: &mut BackendSnapshot, of: &str, name: &str, value: i64) {
    snapshot.sysctls.0.insert(conf(of, name), value);
}

/// A backend after a change, and what a check then finds: its worst grade, and its text.
fn changed(
    mode: Mode,
    check: fn(&BackendSnapshot) -> Vec<Finding>,
    change: impl FnOnce(&mut BackendSnapshot),
) -> (Grade, String) {
    let mut snapshot = healthy(mode);
    change(&mut snapshot);
    describe(&check(&snapshot))
}

#[test]
fn at_a_healthy_backend_all_is_well() {
    for mode in [Mode::Dsr, Mode::Ipip] {
        let report = examine(&healthy(mode));
        let unwell: Vec<_> = report.findings.iter().filter(|one| one.grade != Grade::Ok).collect();
        assert!(unwell.is_empty(), "{mode}: {unwell:?}");
    }
}

#[test]
fn the_vip_must_be_on_the_loopback_and_nowhere_else() {
    let vips = |assigned: &[(&str, &str, u8)], requested: &[&str]| {
        changed(Mode::Dsr, vips, |snapshot| {
            interface(snapshot, "lo").addresses.pop();
            for (name, text, length) in assigned {
                interface(snapshot, name).addresses.push((address(text), *length));
            }
            snapshot.request.vips = requested.iter().map(|text| address(text)).collect();
        })
    };
    assert_finding(&vips(&[], &[]), Grade::Error, &["lbctl doctor backend --vip"]);
    let add = "ip address add 10.0.0.100/32 dev lo";
    assert_finding(&vips(&[], &["10.0.0.100"]), Grade::Error, &[add]);
    assert_finding(&vips(&[("lo", "10.0.0.100", 32)], &["10.0.0.100"]), Grade::Ok, &["/32 is on"]);
    assert_finding(&vips(&[("lo", "10.0.0.100", 32)], &[]), Grade::Ok, &["/32 is on"]);
    let wide = vips(&[("lo", "10.0.0.100", 24)], &["10.0.0.100"]);
    assert_finding(
        &wide,
        Grade::Error,
        &[&format!("ip address del 10.0.0.100/24 dev lo && {add}")],
    );
    let exposed = vips(&[("eth0", "10.0.0.100", 32)], &["10.0.0.100"]);
    assert_finding(
        &exposed,
        Grade::Error,
        &[&format!("ip address del 10.0.0.100/32 dev eth0 && {add}")],
    );
    let both = [("eth0", "10.0.0.100", 24), ("lo", "10.0.0.100", 32)];
    let both = vips(&both, &[]);
    assert_finding(&both, Grade::Error, &["ip address del 10.0.0.100/24 dev eth0\n"]);
    let v6 = vips(&[], &["fd00::100"]);
    assert_finding(&v6, Grade::Error, &["ip address add fd00::100/128 dev lo nodad"]);
}

#[test]
fn a_backend_that_answers_for_the_vip_is_told() {
    let arp = |mode, all: [i64; 2], own: [i64; 2]| {
        changed(mode, arp, |snapshot| {
            for (of, values) in [("all", all), ("eth0", own)] {
                set(snapshot, of, "arp_ignore", values[0]);
                set(snapshot, of, "arp_announce", values[1]);
            }
        })
    };
    let fix = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
    assert_finding(&arp(Mode::Dsr, [0, 0], [0, 0]), Grade::Error, &[fix]);
    assert_finding(&arp(Mode::Ipip, [0, 0], [0, 0]), Grade::Warning, &[fix]);
    assert_finding(&arp(Mode::Dsr, [1, 2], [0, 0]), Grade::Ok, &[]);
    assert_finding(&arp(Mode::Dsr, [0, 0], [1, 2]), Grade::Ok, &[]);
    let half = arp(Mode::Dsr, [1, 0], [0, 1]);
    assert_finding(&half, Grade::Warning, &["sysctl -w net.ipv4.conf.all.arp_announce=2\n"]);
    // 3 is for addresses of the host's own scope, which a VIP is not; it counts as the larger one.
    let other = arp(Mode::Dsr, [0, 2], [3, 0]);
    assert_finding(&other, Grade::Error, &["sysctl -w net.ipv4.conf.eth0.arp_ignore=1\n"]);
}

#[test]
fn something_must_take_packets_out_of_their_tunnel() {
    let nothing = changed(Mode::Ipip, tunnel, |snapshot| {
        snapshot.decaps.clear();
        snapshot.request.mode = Some(Mode::Ipip);
    });
    assert_finding(
        &nothing,
        Grade::Error,
        &["lbctl decap attach --dev eth0 --from 172.16.0.0/16 --from 100::/64"],
    );
    let device = changed(Mode::Ipip, tunnel, |snapshot| {
        snapshot.decaps.clear();
        let tunnel = InterfaceSnapshot {
            up: true,
            kind: Some("ipip".into()),
            ..InterfaceSnapshot::default()
        };
        snapshot.interfaces.insert("tunl0".into(), tunnel);
    });
    assert_finding(&device, Grade::Ok, &["tunl0 (ipip)"]);
    let others = changed(Mode::Ipip, tunnel, |snapshot| {
        own(snapshot).vips = Some(vec![address("10.0.0.101")]);
    });
    let fix =
        "lbctl decap attach --dev eth0 --from 172.16.0.0/16 --vip 10.0.0.101 --vip 10.0.0.100";
    assert_finding(&others, Grade::Error, &[fix]);
    assert_eq!(changed(Mode::Ipip, tunnel, |_| ()).0, Grade::Ok);
    let from_anywhere = changed(Mode::Ipip, tunnel, |snapshot| own(snapshot).sources = None);
    let fix = "lbctl decap attach --dev eth0 --from 172.16.0.0/16 --from 100::/64 --vip 10.0.0.100";
    assert_finding(&from_anywhere, Grade::Warning, &[fix]);
    let for_any = changed(Mode::Ipip, tunnel, |snapshot| own(snapshot).vips = None);
    assert_finding(
        &for_any,
        Grade::Warning,
        &["lbctl decap attach --dev eth0 --from 172.16.0.0/16"],
    );
    assert_eq!(changed(Mode::Dsr, tunnel, |_| ()), (Grade::Ok, String::new()));
}

#[test]
fn a_followed_decapsulator_is_mended_by_its_unit() {
    let follow = |snapshot: &mut BackendSnapshot| {
        own(snapshot).followed = Followed { addresses: true, vips: true }
    };
    let well = changed(Mode::Ipip, tunnel, follow);
    assert_finding(&well, Grade::Ok, &["follows the VIPs on the loopback"]);
    let behind = changed(Mode::Ipip, tunnel, |snapshot| {
        follow(snapshot);
        own(snapshot).vips = Some(Vec::new());
    });
    assert_finding(&behind, Grade::Error, &["systemctl restart lb-decap@eth0\n"]);
    let named = changed(Mode::Ipip, tunnel, |snapshot| {
        own(snapshot).followed.addresses = true;
        own(snapshot).vips = Some(vec![address("10.0.0.101")]);
    });
    let fix = "echo 'LB_DECAP_OPTIONS=\"--from 172.16.0.0/16 --vip 10.0.0.101 --vip 10.0.0.100\"' \
                > /etc/default/lb-decap-eth0 && systemctl restart lb-decap@eth0\n";
    assert_finding(&named, Grade::Error, &[fix]);
}

#[test]
fn a_source_that_is_not_listed_is_named_with_the_command_that_lists_it() {
    let after = |packets, change: fn(&mut Decap)| {
        changed(Mode::Ipip, sources, |snapshot| {
            let source = address("10.1.2.3");
            own(snapshot).unlisted = Some(UnlistedSource { source, packets, seconds_ago: 4 });
            change(own(snapshot));
        })
    };
    let many = after(12, |_| ());
    let fix = "lbctl decap attach --dev eth0 --from 172.16.0.0/16 --from PREFIX --vip 10.0.0.100\n";
    let found = "eth0: 12 packets came from sources that are not listed, the last one from 10.1.2.3, 4s ago";
    assert_finding(&many, Grade::Warning, &[found, fix]);
    let one = after(1, |decap| decap.followed.vips = true);
    let found = "eth0: 1 packet came from 10.1.2.3, which is not among the sources, 4s ago";
    let fix = "echo 'LB_DECAP_OPTIONS=\"--from 172.16.0.0/16 --from PREFIX\"' > /etc/default/lb-decap-eth0 && \
                systemctl restart lb-decap@eth0\n";
    assert_finding(&one, Grade::Warning, &[found, fix]);
    assert_eq!(changed(Mode::Ipip, sources, |_| ()), (Grade::Ok, String::new()));
}

#[test]
fn sources_must_not_be_checked_strictly_where_a_tunnel_ends() {
    let strict = |snapshot: &mut BackendSnapshot| set(snapshot, "all", "rp_filter", 1);
    let decap = changed(Mode::Ipip, rp_filter, strict);
    assert_finding(&decap, Grade::Warning, &["sysctl -w net.ipv4.conf.eth0.rp_filter=2"]);
    let device = changed(Mode::Ipip, rp_filter, |snapshot| {
        strict(snapshot);
        let tunnel = InterfaceSnapshot {
            up: true,
            kind: Some("ipip".into()),
            ..InterfaceSnapshot::default()
        };
        snapshot.interfaces.insert("tunl0".into(), tunnel);
    });
    assert_finding(&device, Grade::Error, &["sysctl -w net.ipv4.conf.tunl0.rp_filter=2"]);
    let loose = changed(Mode::Ipip, rp_filter, |snapshot| set(snapshot, "eth0", "rp_filter", 2));
    assert_finding(&loose, Grade::Ok, &["does not check"]);
    assert_eq!(changed(Mode::Dsr, rp_filter, strict), (Grade::Ok, String::new()));
}

#[test]
fn clients_must_be_told_to_send_what_fits_the_tunnel() {
    let small = |snapshot: &mut BackendSnapshot| interface(snapshot, "eth0").mtu = 1500;
    let unwell = changed(Mode::Ipip, segment_size, small);
    assert_finding(
        &unwell,
        Grade::Warning,
        &["ip saddr 10.0.0.100", "tcp option maxseg size set 1440"],
    );
    let announced = |segment| {
        changed(Mode::Ipip, segment_size, |snapshot| {
            small(snapshot);
            snapshot.announced_segment = Some(segment);
        })
    };
    assert_finding(&announced(1440), Grade::Ok, &["1440 bytes"]);
    assert_finding(&announced(1460), Grade::Warning, &[]);
    let clamped = changed(Mode::Ipip, segment_size, |snapshot| {
        small(snapshot);
        snapshot.firewall = Firewall::Known(Rules { clamps: true, ..Rules::default() });
    });
    assert_finding(&clamped, Grade::Ok, &["lowers the segment size"]);
    assert_finding(&changed(Mode::Ipip, segment_size, |_| ()), Grade::Ok, &["fit a tunnel"]);
    // However little fits.
    let least = changed(Mode::Ipip, segment_size, |snapshot| {
        interface(snapshot, "eth0").mtu = 68;
        snapshot.request.vips = vec![address("fd00::100")];
    });
    assert_finding(&least, Grade::Warning, &["ip6 saddr fd00::100"]);
    assert_eq!(changed(Mode::Dsr, segment_size, small), (Grade::Ok, String::new()));
}

#[test]
fn a_server_must_listen_on_the_vip() {
    let listening = |at: &[&str], ports: &[(Protocol, u16)]| {
        changed(Mode::Dsr, listeners, |snapshot| {
            let parsed = at.iter().map(|at| (Protocol::Tcp, at.parse().expect("an address")));
            snapshot.listeners = parsed.collect();
            let ports = ports.iter().map(|(protocol, port)| (*protocol, Ports::one(*port)));
            snapshot.request.ports = ports.collect();
        })
    };
    let http = [(Protocol::Tcp, 80)];
    for at in ["0.0.0.0:80", "10.0.0.100:80", "[::]:80"] {
        assert_finding(&listening(&[at], &http), Grade::Ok, &["TCP port 80 of 10.0.0.100"]);
    }
    let elsewhere = listening(&["127.0.0.1:80", "10.0.0.11:80"], &http);
    assert_finding(&elsewhere, Grade::Error, &["but on 10.0.0.11:80"]);
    assert_finding(&listening(&["127.0.0.1:80"], &http), Grade::Error, &["nothing listens"]);
    let udp = listening(&["0.0.0.0:80"], &[(Protocol::Udp, 80)]);
    assert_finding(&udp, Grade::Error, &["nothing listens on UDP port 80"]);
    assert_finding(&listening(&["0.0.0.0:80"], &[]), Grade::Ok, &["TCP 80"]);
    assert_finding(&listening(&["127.0.0.1:80"], &[]), Grade::Warning, &["nothing listens"]);
}

#[test]
fn offloads_that_merge_are_told_where_a_tunnel_ends() {
    let merge = |snapshot: &mut BackendSnapshot| {
        interface(snapshot, "eth0").offloads = Some(["rx-lro".to_owned()].into());
    };
    let merging = changed(Mode::Ipip, offloads, merge);
    assert_finding(&merging, Grade::Error, &["ethtool -K eth0 lro off"]);
    assert_eq!(changed(Mode::Dsr, offloads, merge), (Grade::Ok, String::new()));
}

#[test]
fn a_vip_may_be_the_hosts_by_a_route() {
    let found = |route: &str, requested: &[&str]| {
        changed(Mode::Dsr, vips, |snapshot| {
            interface(snapshot, "lo").addresses.pop();
            snapshot.local_prefixes.push(prefix(route));
            snapshot.request.vips = requested.iter().map(|text| address(text)).collect();
        })
    };
    let by_route = "198.51.100.3 is this host's by the route `local 198.51.100.0/28`";
    assert_finding(&found("198.51.100.0/28", &["198.51.100.3"]), Grade::Ok, &[by_route]);
    assert_finding(&found("198.51.100.0/28", &[]), Grade::Ok, &["198.51.100.0 is this host's"]);
    let other = found("198.51.100.0/28", &["198.51.100.16"]);
    assert_finding(&other, Grade::Error, &["198.51.100.16 is not on the loopback"]);
}

/// A backend in mode `nat` that serves these ports, after a change, and what a check then finds.
fn translated(
    ports: &str,
    check: fn(&BackendSnapshot) -> Vec<Finding>,
    change: impl FnOnce(&mut BackendSnapshot),
) -> (Grade, String) {
    changed(Mode::Dsr, check, |snapshot| {
        snapshot.request.mode = Some(Mode::Nat);
        snapshot.request.ports = vec![(Protocol::Tcp, ports.parse().expect("ports"))];
        change(snapshot);
    })
}

#[test]
fn a_translated_backend_has_no_vip_and_its_answers_leave_by_the_balancer() {
    let alone = |snapshot: &mut BackendSnapshot| {
        interface(snapshot, "lo").addresses.pop();
    };
    for check in [vips, arp, tunnel] {
        assert_eq!(translated("80", check, alone), (Grade::Ok, String::new()), "nothing is asked");
    }
    let here = "a server listens on TCP port 80 of 10.0.0.11";
    assert_finding(&translated("80", listeners, alone), Grade::Ok, &[here]);
    let gateways = |all: &[&str]| {
        translated("80", nat::gateway, |snapshot| {
            snapshot.gateways = all.iter().map(|text| address(text)).collect();
        })
    };
    assert_finding(&gateways(&["10.0.0.1"]), Grade::Ok, &["answers leave by 10.0.0.1"]);
    assert_finding(&gateways(&[]), Grade::Warning, &["ip route add default via"]);
    let redirected = |value| {
        translated("80", nat::redirects, |snapshot| {
            interface(snapshot, "eth0").addresses.push((address("fd00::11"), 64));
            let setting = |name: &str| format!("net/ipv6/conf/eth0/{name}");
            let settings = [(setting("accept_redirects"), value), (setting("forwarding"), 0)];
            snapshot.sysctls.0.extend(settings);
        })
    };
    let fix = "sysctl -w net.ipv6.conf.eth0.accept_redirects=0";
    assert_finding(&redirected(1), Grade::Warning, &[fix]);
    assert_eq!(redirected(0), (Grade::Ok, String::new()));
}

#[test]
fn ports_of_the_hosts_own_connections_are_not_those_of_a_translated_service() {
    let own_ports = |ports: &str, reserved: &str| {
        translated(ports, nat::own_ports, |snapshot| {
            snapshot.own_ports = OwnPorts::of("32768\t60999\n", reserved);
        })
    };
    assert_finding(&own_ports("8000-8100", ""), Grade::Ok, &["comes from 8000-8100"]);
    let fix = "sysctl -w net.ipv4.ip_local_reserved_ports=40000-40099";
    assert_finding(&own_ports("40000-40099", "\n"), Grade::Warning, &["100 ports of", fix]);
    let fix = "ip_local_reserved_ports=5353,40000-40049,40000-40099";
    let half = own_ports("40000-40099", "5353,40000-40049\n");
    assert_finding(&half, Grade::Warning, &["50 ports of", fix]);
    assert_finding(&own_ports("40000-40099", "40000-40099"), Grade::Ok, &[]);
    let any = own_ports("any", "");
    assert_finding(&any, Grade::Warning, &["28232 ports of any"]);
    assert!(!any.1.contains("sysctl"), "some have to be left: {any:?}");
}

#[test]
fn a_range_of_ports_has_a_listener() {
    let found = |ports: &str| translated(ports, listeners, |_| ());
    assert_finding(&found("79-90"), Grade::Ok, &["TCP port 79-90 of 10.0.0.11: at 80"]);
    assert_finding(&found("any"), Grade::Ok, &["any TCP port of 10.0.0.11: at 80"]);
    let dual = translated("80", listeners, |snapshot| {
        interface(snapshot, "eth0").addresses.push((address("fd00::11"), 64));
    });
    assert_eq!(dual.0, Grade::Ok, "a service of IPv4 needs no listener of IPv6: {dual:?}");
    assert_finding(&found("81-90"), Grade::Error, &["nothing listens on TCP port 81-90"]);
}
