//! Interfaces, drivers, VIPs, backends and the firewall.

use super::*;

#[test]
fn interfaces_must_be_there_and_up() {
    let gone = |snapshot: &mut NodeSnapshot| {
        let interface = snapshot.interfaces.remove("eth0").expect("it is there");
        snapshot.interfaces.insert("ens3".into(), interface);
    };
    let gone = changed(links::there, gone);
    assert_finding(
        &gone,
        Grade::Error,
        &["there are ens3", "sed -i 's/\\beth0\\b/ens3/' /etc/lb/lb.toml"],
    );
    let down = changed(links::there, |snapshot| eth0(snapshot).up = false);
    assert_finding(&down, Grade::Error, &["ip link set eth0 up"]);
}

#[test]
fn a_foreign_program_and_a_missing_one_are_told() {
    let program = |found: Option<(bool, Hook)>, runs: bool| {
        changed(links::program, |snapshot| {
            let program = |(ours, hook)| Found { name: "x".into(), hook, ours };
            eth0(snapshot).program = found.map(program);
            snapshot.daemon = snapshot.daemon.take().filter(|_| runs);
        })
    };
    assert_finding(&program(Some((true, Hook::Native)), true), Grade::Ok, &["in the driver"]);
    assert_finding(&program(Some((true, Hook::Generic)), true), Grade::Warning, &["generic XDP"]);
    assert_finding(&program(Some((true, Hook::Tc)), true), Grade::Ok, &["at tc"]);
    assert_finding(
        &program(Some((false, Hook::Native)), true),
        Grade::Error,
        &["ip link set dev eth0 xdp off"],
    );
    let decap = changed(links::program, |snapshot| {
        let name = "the program `decapsulate` (id 7)".to_owned();
        eth0(snapshot).program = Some(Found { name, hook: Hook::Native, ours: false });
    });
    assert_finding(&decap, Grade::Error, &["lbctl decap detach --dev eth0"]);
    assert_finding(&program(None, true), Grade::Error, &["systemctl restart lbd"]);
    assert_finding(&program(None, false), Grade::Ok, &["free"]);
}

#[test]
fn drivers_without_native_xdp_are_told() {
    let driver = |features, more: &str| {
        changed(links::driver, |snapshot| {
            eth0(snapshot).xdp_features = features;
            snapshot.config = Ok(config(&format!("{more}\n{CONFIG}")));
        })
    };
    assert_finding(&driver(Some(7), ""), Grade::Ok, &["native XDP"]);
    assert_finding(&driver(None, ""), Grade::Ok, &["does not report"]);
    assert_finding(&driver(Some(0), ""), Grade::Ok, &["no native XDP; it gets the tc program"]);
    assert_finding(&driver(Some(7), "attach = \"tc\""), Grade::Ok, &["tc program, as configured"]);
    let fix = "sed -i 's/^attach *=.*/attach = \"auto\"/' /etc/lb/lb.toml";
    assert_finding(&driver(Some(0), "attach = \"xdp\""), Grade::Error, &[fix]);
    assert_finding(
        &driver(Some(0), "xdp = \"native-or-generic\""),
        Grade::Warning,
        &["no native XDP"],
    );
    // A link without a MAC header never has XDP, whatever the driver reports.
    for (attach, grade, words) in [
        ("auto", Grade::Ok, "no Ethernet header, which XDP needs; it gets the tc program"),
        ("tc", Grade::Ok, "it gets the tc program"),
        ("xdp", Grade::Error, fix),
    ] {
        let found = changed(links::driver, |snapshot| {
            eth0(snapshot).layer = LinkLayer::RawIp;
            snapshot.config = Ok(config(&format!("attach = \"{attach}\"\n{CONFIG}")));
        });
        assert_finding(&found, grade, &[words]);
    }
    // One interface sends by itself; two may send by each other.
    assert_finding(&driver(Some(1), ""), Grade::Ok, &[]);
    let two = changed(links::driver, |snapshot| {
        snapshot.config = Ok(config(&CONFIG.replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]")));
        eth0(snapshot).xdp_features = Some(1);
    });
    assert_finding(&two, Grade::Warning, &["can't send packets on by another interface, nor take"]);
}

#[test]
fn why_a_driver_with_native_xdp_refuses_it_is_told() {
    let driver = |program: Option<(bool, Hook)>, more: &str, change: fn(&mut InterfaceSnapshot)| {
        changed(links::driver, |snapshot| {
            let eth0 = eth0(snapshot);
            eth0.xdp_features = Some(7);
            eth0.program =
                program.map(|(ours, hook)| Found { name: "a program".into(), hook, ours });
            change(eth0);
            snapshot.config = Ok(config(&format!("{more}\n{CONFIG}")));
        })
    };
    let large: fn(&mut InterfaceSnapshot) = |eth0| eth0.mtu = 9_000;
    let lro: fn(&mut InterfaceSnapshot) = |eth0| eth0.offloads = Some(["rx-lro".to_owned()].into());
    let well: fn(&mut InterfaceSnapshot) = |_| {};
    assert_finding(&driver(None, "", well), Grade::Ok, &["native XDP; tc is possible, too"]);
    let may = "eth0: the driver has native XDP, and may refuse it: MTU 9000";
    let fix = "ip link set dev eth0 mtu 3498";
    assert_finding(&driver(None, "", large), Grade::Warning, &[may, fix]);
    assert_finding(&driver(None, "attach = \"xdp\"", large), Grade::Warning, &[may, fix]);
    assert_finding(&driver(None, "", lro), Grade::Warning, &["(lro)", "ethtool -K eth0 lro off"]);
    let several: fn(&mut InterfaceSnapshot) =
        |eth0| (eth0.mtu, eth0.xdp_features) = (9_000, Some(7 | 32));
    assert_finding(&driver(None, "", several), Grade::Ok, &["native XDP"]);
    // It has it.
    assert_finding(&driver(Some((true, Hook::Native)), "", large), Grade::Ok, &["native XDP"]);
    let at_tc = Some((true, Hook::Tc));
    let refused = "native XDP, and the interface has tc, so it refused: ";
    let log = format!("{refused}lbd's log");
    assert_finding(&driver(at_tc, "", well), Grade::Warning, &[&log, "systemctl restart lbd"]);
    let both = "ethtool -K eth0 lro off && systemctl restart lbd";
    assert_finding(&driver(at_tc, "", lro), Grade::Warning, &[refused, both]);
    assert_finding(&driver(at_tc, "attach = \"tc\"", large), Grade::Ok, &["as configured"]);
}

#[test]
fn hardware_gro_may_stay_on_at_tc_and_lro_may_not() {
    let fix = |offload: &str, attach: &str| {
        offloads_of(|snapshot| {
            eth0(snapshot).offloads = Some(BTreeSet::from([offload.to_owned()]));
            eth0(snapshot).program = None;
            snapshot.config = Ok(config(&format!("attach = \"{attach}\"\n{CONFIG}")));
        })
    };
    assert_eq!(fix("rx-gro-hw", "xdp"), ["ethtool -K eth0 rx-gro-hw off"]);
    assert_eq!(fix("rx-lro", "tc"), ["ethtool -K eth0 lro off"]);
    assert!(fix("rx-gro-hw", "tc").is_empty());
}

#[test]
fn fewer_queues_than_cpus_are_told() {
    let channels =
        |channels| changed(links::channels, |snapshot| eth0(snapshot).channels = channels);
    let combined = |combined, combined_max| {
        channels(Some(Channels { combined, combined_max, ..Channels::default() }))
    };
    assert_finding(&combined(4, 8), Grade::Ok, &["4 queues for 4 CPUs"]);
    assert_finding(&combined(1, 8), Grade::Warning, &["ethtool -L eth0 combined 4"]);
    assert_finding(&combined(1, 2), Grade::Warning, &["ethtool -L eth0 combined 2"]);
    assert_finding(&combined(2, 2), Grade::Ok, &["all that it can have"]);
    let rx = Channels { rx: 1, rx_max: 8, ..Channels::default() };
    assert_finding(&channels(Some(rx)), Grade::Warning, &["ethtool -L eth0 rx 4"]);
    assert_eq!(channels(None), (Grade::Ok, String::new()));
}

#[test]
fn offloads_that_merge_are_told() {
    let on = ["rx-lro", "rx-gro-hw", "rx-gro"].map(str::to_owned);
    let merging = changed(links::offloads, |snapshot| eth0(snapshot).offloads = Some(on.into()));
    assert_finding(&merging, Grade::Error, &["ethtool -K eth0 lro off rx-gro-hw off"]);
}

/// The findings about offloads that are not well, of a node of which this is true.
fn offloads_of(change: impl FnOnce(&mut NodeSnapshot)) -> Vec<String> {
    let mut snapshot = healthy();
    change(&mut snapshot);
    let found = links::offloads(&snapshot).into_iter();
    found.filter(|found| found.grade != Grade::Ok).filter_map(|found| found.fix).collect()
}

#[test]
fn gro_is_told_where_the_network_stack_runs_the_program() {
    let gro = |hook| {
        offloads_of(|snapshot| {
            let eth0 = eth0(snapshot);
            eth0.gro_below = vec!["eth1".to_owned()];
            eth0.program = Some(Found { name: "balance".into(), hook, ours: true });
        })
    };
    assert_eq!(gro(Hook::Generic), ["ethtool -K eth1 gro off"]);
    assert!(gro(Hook::Native).is_empty(), "a driver runs the program before GRO");
    assert!(gro(Hook::Tc).is_empty(), "tc sends on what was merged");
}

#[test]
fn vlan_tags_that_hardware_takes_off_are_told_where_there_are_vlans() {
    let stripping = |kind: &str| {
        offloads_of(|snapshot| {
            eth0(snapshot).offloads = Some(BTreeSet::from(["rx-vlan-hw-parse".to_owned()]));
            let other =
                InterfaceSnapshot { kind: Some(kind.into()), ..InterfaceSnapshot::default() };
            snapshot.interfaces.insert("eth0.7".into(), other);
        })
    };
    assert_eq!(stripping("vlan"), ["ethtool -K eth0 rxvlan off"]);
    assert!(stripping("veth").is_empty());
}

#[test]
fn who_answers_for_a_vip_is_told() {
    let claims_of = |text: &str, assigned: bool, claim: Option<[u8; 6]>| {
        changed(node::vips, |snapshot| {
            snapshot.config = Ok(config(text));
            if !assigned {
                eth0(snapshot).addresses.pop();
            }
            let claims = claim.map(|mac| (vip(), BTreeSet::from([mac])));
            snapshot.claims = Some(claims.into_iter().collect());
        })
    };
    let pair = format!("{CONFIG}{ROUTER}");
    for text in [CONFIG, &pair] {
        assert_finding(&claims_of(text, true, None), Grade::Ok, &["nobody else answers"]);
        let two = claims_of(text, true, Some(OTHER_MAC));
        assert_finding(&two, Grade::Error, &["02:00:00:00:00:63 answers for it as well"]);
        for assigned in [false, true] {
            let backend = claims_of(text, assigned, Some(BACKEND_MAC));
            let fix = "ssh 10.0.0.11 sysctl -w net.ipv4.conf.all.arp_ignore=1 \
                        net.ipv4.conf.all.arp_announce=2";
            assert_finding(&backend, Grade::Error, &["by the backend 10.0.0.11", fix]);
        }
    }
    assert_finding(&claims_of(&pair, false, Some(OTHER_MAC)), Grade::Ok, &["is on another node"]);
    assert_finding(&claims_of(&pair, false, None), Grade::Warning, &["lbctl vrrp status"]);
    let stopped = changed(node::vips, |snapshot| {
        snapshot.config = Ok(config(&pair));
        eth0(snapshot).addresses.pop();
        snapshot.daemon = None;
    });
    assert_finding(&stopped, Grade::Warning, &["on no node", "systemctl start lbd"]);
    let unknown = changed(node::vips, |snapshot| {
        snapshot.config = Ok(config(&pair));
        eth0(snapshot).addresses.pop();
        snapshot.claims = None;
    });
    assert_finding(&unknown, Grade::Warning, &["whether another node has it is not known"]);
    let unknown = changed(node::vips, |snapshot| snapshot.claims = None);
    assert_finding(&unknown, Grade::Ok, &["whether another host has it is not known"]);
    assert_finding(&claims_of(CONFIG, false, Some(OTHER_MAC)), Grade::Error, &["not on this node"]);
    let fix = "ip address add 10.0.0.100/32 dev eth0";
    assert_finding(&claims_of(CONFIG, false, None), Grade::Warning, &[fix]);
    let routed = changed(node::vips, |snapshot| {
        eth0(snapshot).addresses.pop();
        loopback(snapshot).addresses.push((vip(), 32));
    });
    assert_finding(&routed, Grade::Ok, &["routers send its packets here"]);
}

#[test]
fn a_node_with_vips_on_its_loopback_must_not_answer_for_them() {
    let arp = |settings: &[(&str, i64)]| {
        changed(node::arp, |snapshot| {
            loopback(snapshot).addresses.push((vip(), 32));
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), *value));
            snapshot.sysctls = Sysctls(settings.collect());
        })
    };
    let fix = "sysctl -w net.ipv4.conf.eth0.arp_ignore=1 net.ipv4.conf.eth0.arp_announce=2";
    assert_finding(&arp(&[]), Grade::Warning, &[fix]);
    let half = arp(&[("net/ipv4/conf/all/arp_ignore", 1)]);
    assert_finding(&half, Grade::Warning, &["sysctl -w net.ipv4.conf.eth0.arp_announce=2"]);
    let all = [("net/ipv4/conf/all/arp_ignore", 1), ("net/ipv4/conf/eth0/arp_announce", 2)];
    assert_finding(&arp(&all), Grade::Ok, &["keeps silent"]);
    assert!(node::arp(&healthy()).is_empty(), "it has none there");
}

#[test]
fn strict_checks_of_sources_are_told_where_there_are_several_ways() {
    let rp_filter = |text: &str, all: i64| {
        changed(node::rp_filter, |snapshot| {
            snapshot.config = Ok(config(text));
            snapshot.sysctls.0.insert(conf("all", "rp_filter"), all);
        })
    };
    let two = CONFIG.replace("[\"eth0\"]", "[\"eth0\", \"eth1.7\"]");
    let fix = "sysctl -w net.ipv4.conf.eth0.rp_filter=2 net/ipv4/conf/eth1.7/rp_filter=2";
    assert_finding(&rp_filter(&two, 1), Grade::Warning, &[fix]);
    assert_finding(&rp_filter(&two, 2), Grade::Ok, &[]);
    assert_finding(&rp_filter(&two, 0), Grade::Ok, &[]);
    assert_finding(&rp_filter(CONFIG, 1), Grade::Ok, &[]);
}

#[test]
fn an_address_that_is_no_vip_may_be_a_gateway() {
    let gateway = |address: &str, forward: &[(&str, i64)]| {
        changed(node::gateway, |snapshot| {
            let router = ROUTER.replace("10.0.0.100", address);
            snapshot.config = Ok(config(&format!("{CONFIG}{router}")));
            let forward = forward.iter().map(|(name, value)| ((*name).to_owned(), *value));
            snapshot.sysctls.0.extend(forward);
        })
    };
    assert_eq!(gateway("10.0.0.100", &[]), (Grade::Ok, String::new()));
    let fix = "sysctl -w net.ipv4.ip_forward=1";
    assert_finding(&gateway("10.0.0.1", &[("net/ipv4/ip_forward", 0)]), Grade::Warning, &[fix]);
    assert_finding(&gateway("10.0.0.1", &[("net/ipv4/ip_forward", 1)]), Grade::Ok, &["is on"]);
    let fix = "sysctl -w net.ipv6.conf.all.forwarding=1";
    assert_finding(&gateway("fd00::1", &[]), Grade::Warning, &[fix]);
}

#[test]
fn a_node_with_mode_nat_forwards_and_takes_packets_from_its_vip() {
    let forwarding = |mode: &str, settings: &[(&str, i64)]| {
        let mut snapshot = healthy();
        snapshot.config = Ok(config(&CONFIG.replace("dsr", mode)));
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), *value));
        snapshot.sysctls.0.extend(settings);
        nat::forwarding(&snapshot)
    };
    assert!(forwarding("dsr", &[]).is_empty(), "no other mode needs it");
    let found = forwarding("nat", &[]);
    let fixes: Vec<_> =
        found.iter().map(|finding| finding.fix.clone().unwrap_or_default()).collect();
    assert_eq!(
        fixes,
        ["sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.conf.eth0.accept_local=1"]
    );
    let all = [("net/ipv4/ip_forward", 1), ("net/ipv4/conf/all/accept_local", 1)];
    let found = forwarding("nat", &all);
    assert!(found.len() == 1 && found[0].grade == Grade::Ok, "{found:?}");
    let telling =
        [("net/ipv4/conf/all/send_redirects", 0), ("net/ipv4/conf/eth0/send_redirects", 1)];
    let found = forwarding("nat", &[&all[..], &telling].concat());
    assert_finding(
        &describe(&found),
        Grade::Warning,
        &["sysctl -w net.ipv4.conf.eth0.send_redirects=0"],
    );
}

#[test]
fn doctor_says_whether_processes_of_the_node_reach_its_services() {
    let found = |mode: &str, settings: &str, there| {
        changed(nat::local_clients, |snapshot| {
            let text = format!("{settings}{}", CONFIG.replace("dsr", mode));
            snapshot.config = Ok(config(&text));
            snapshot.serves_local_clients = there;
        })
    };
    assert_finding(&found("dsr", "", false), Grade::Ok, &["do not reach", "in mode nat"]);
    assert_finding(&found("nat", "", true), Grade::Ok, &["reach services in mode nat"]);
    assert_finding(&found("nat", "", false), Grade::Warning, &["journalctl -u lbd"]);
    let off = found("nat", "local_clients = false\n", false);
    assert_eq!(off, (Grade::Ok, String::new()));
}

#[test]
fn a_backend_whose_answers_do_not_come_back_is_named() {
    let answers_by = |kind: Option<&str>, sent, returned| {
        changed(nat::answers, |snapshot| {
            let backend = "10.0.0.11:8080".parse().expect("an address");
            let (service, interface) = ("web".to_owned(), Some("br0".to_owned()));
            let kind = kind.map(str::to_owned);
            let way = InterfaceSnapshot { kind, ..InterfaceSnapshot::default() };
            snapshot.interfaces.insert("br0".to_owned(), way);
            snapshot.translated =
                vec![TranslatedBackend { service, backend, interface, sent, returned }];
        })
    };
    let answers = |sent, returned| answers_by(None, sent, returned);
    let unseen = answers_by(Some("bridge"), 5_000, 0);
    assert_finding(&unseen, Grade::Error, &["by br0, where the program sees no answer"]);
    assert_finding(&answers_by(Some("bridge"), 5_000, 1), Grade::Ok, &[]);
    let lost = answers(5_000, 0);
    assert_finding(&lost, Grade::Error, &["10.0.0.11:8080", "through this node", "ssh 10.0.0.11"]);
    assert_finding(&answers(5_000, 4_000), Grade::Ok, &[]);
    assert_finding(&answers(10, 0), Grade::Ok, &[]);
}

#[test]
fn backends_that_are_not_reached_are_told() {
    let reached = |resolution| {
        changed(node::next_hops, |snapshot| {
            snapshot.hops = [(want(11, Mode::Dsr), resolution)].into();
        })
    };
    assert_finding(&reached(hop(BACKEND_MAC, 1500)), Grade::Ok, &["eth0 at 02:00:00:00:00:0b"]);
    let reason = "no answer".to_owned();
    let pending = reached(Resolution::Pending { reason: reason.clone() });
    assert_finding(&pending, Grade::Error, &["no answer", "ping -c 3 10.0.0.11"]);
    let unreachable = reached(Resolution::Unreachable { reason });
    assert_finding(&unreachable, Grade::Error, &["no answer", "ip route get 10.0.0.11"]);
}

#[test]
fn tunnels_need_room() {
    let tunnel = |mode, mtu, link| {
        changed(node::tunnel_mtu, |snapshot| {
            snapshot.hops = [(want(11, mode), hop(BACKEND_MAC, mtu))].into();
            eth0(snapshot).mtu = link;
        })
    };
    assert_finding(
        &tunnel(Mode::Ipip, 1500, 1500),
        Grade::Warning,
        &["ip link set dev eth0 mtu 1520"],
    );
    assert_finding(&tunnel(Mode::Ipip, 1520, 1520), Grade::Ok, &["1520 bytes"]);
    assert_finding(&tunnel(Mode::Ipip, 1400, 9000), Grade::Warning, &["ip route flush cache"]);
    assert_eq!(tunnel(Mode::Dsr, 1500, 1500), (Grade::Ok, String::new()));
}

#[test]
fn a_firewall_that_may_drop_what_nodes_tell_each_other_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("sync.key");
    std::fs::write(&key, "0".repeat(64)).expect("it is written");
    let sync = format!(
        "[sync]\nkey_file = \"{}\"\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\n",
        key.display()
    );
    let pair = format!("{CONFIG}{ROUTER}{sync}");
    let firewall = |firewall| {
        changed(node::firewall, |snapshot| {
            snapshot.config = Ok(config(&pair));
            snapshot.firewall = firewall;
        })
    };
    let closed = |accepts: &[u64]| {
        let name = "inet filter input".to_owned();
        let chain = Chain { name, accepts: accepts.iter().copied().collect() };
        Firewall::Known(Rules { closed: vec![chain], ..Rules::default() })
    };
    let vrrp = "nft insert rule inet filter input meta l4proto 112 accept";
    let port = "nft insert rule inet filter input udp dport 3780 accept";
    assert_finding(&firewall(closed(&[22])), Grade::Warning, &[vrrp, port]);
    assert_finding(
        &firewall(closed(&[112])),
        Grade::Warning,
        &["no rule seems to drop VRRP", port],
    );
    assert_finding(&firewall(closed(&[112, 3780])), Grade::Ok, &[]);
    assert_finding(&firewall(Firewall::Known(Rules::default())), Grade::Ok, &[]);
    let unknown = firewall(Firewall::Unknown("nft: not found".into()));
    assert_finding(&unknown, Grade::Warning, &["nft: not found"]);
    let legacy = Firewall::Known(Rules { legacy: true, ..Rules::default() });
    assert_finding(&firewall(legacy), Grade::Warning, &["iptables-legacy"]);
    // A node alone sends no VRRP or flow sync.
    assert!(node::firewall(&healthy()).is_empty());
}
