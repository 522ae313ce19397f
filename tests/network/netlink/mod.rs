//! The resolver against the kernel: real links, routes and neighbours in network namespaces.

mod watched;

use std::{io::Write as _, net::UdpSocket, time::Duration};

use lb_model::hop::{NextHop, Resolution};
use lb_netlink::{query, striding::empty_first_buffers};
use tokio::time::{Instant, sleep, timeout};

use self::watched::*;
use super::netns::{Netns, is_root};

#[test]
fn backend_on_the_link_is_resolved_in_both_families() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.node.ip("link set eth0 mtu 1400");
    network.run(async |mut watched| {
        let (node, host) = (mac_of(&network.node, "eth0"), mac_of(&network.host, "eth0"));
        watched.want(&[dsr("10.0.0.2"), ipip("10.0.0.2"), dsr("fd00::2")]);
        for (want, ethertype) in
            [(dsr("10.0.0.2"), [8, 0]), (ipip("10.0.0.2"), [8, 0]), (dsr("fd00::2"), [0x86, 0xdd])]
        {
            let hop = watched.resolved(want).await;
            assert_eq!((hop.mac, hop.mtu, hop.interface.as_str()), (host, 1400, "eth0"));
            assert_eq!(hop.l2, [&host[..], &node, &ethertype].concat());
        }
        let now = watched.neighbourhood.borrow().clone();
        assert_eq!(now.own_macs, [node]);
        let link = now.links.get("eth0").expect("eth0 is listed");
        assert_eq!((link.up, link.mac, link.mtu, link.xdp_prog_id), (true, node, 1400, None));
        watched.want(&[dsr("fd00::2")]);
        let fewer = watched.neighbourhood.wait_for(|now| now.hops.len() == 1);
        timeout(SOON, fewer).await.expect("in time").expect("the resolver runs");
    });
}

#[test]
fn change_of_mac_reaches_the_watch_at_once() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    // The host announces its new address, as hosts do that take an address over.
    set_sysctl(&network.host, "ipv4/conf/eth0/arp_notify", "1");
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.2");
        watched.want(&[backend]);
        watched.resolved(backend).await;
        let mut least = Least::default();
        for mac in 0x40..0x40 + TIMES {
            least.command(|| {
                network.host.ip(&format!("link set eth0 address 02:00:00:00:00:{mac:x}"))
            });
            let changed = Instant::now();
            let hop = watched.resolved_as(backend, |hop| hop.mac[5] == mac).await;
            assert_eq!(hop.l2[..6], [2, 0, 0, 0, 0, mac]);
            least.take(changed);
        }
        least.is_below(1);
    });
}

#[test]
fn change_of_mac_that_nobody_announces_is_found_by_probing() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.impatient();
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.2");
        watched.want(&[backend]);
        watched.resolved(backend).await;
        network.host.ip("link set eth0 address 02:00:00:00:00:78");
        watched.resolved_as(backend, |hop| hop.mac[5] == 0x78).await;
    });
}

#[test]
fn change_of_mac_that_nobody_announces_is_found_at_once_where_it_is_doubted() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        for backend in [dsr("10.0.0.2"), dsr("fd00::2")] {
            watched.want(&[backend]);
            watched.resolved(backend).await;
            let mut least = Least::default();
            for mac in 0x40..0x40 + TIMES {
                least.command(|| {
                    network.host.ip(&format!("link set eth0 address 02:00:00:00:00:{mac:x}"))
                });
                let doubted = Instant::now();
                watched.resolver.doubt(backend);
                watched.resolved_as(backend, |hop| hop.mac[5] == mac).await;
                least.take(doubted);
            }
            least.is_below(2);
        }
    });
}

#[test]
fn neighbour_that_is_doubted_in_vain_keeps_its_flows_for_a_while() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.impatient();
    // A resolution lasts a second.
    set_sysctl(&network.node, "ipv4/neigh/eth0/mcast_solicit", "10");
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.2");
        watched.want(&[backend]);
        let hop = watched.resolved(backend).await;
        // The carrier stays, and no host answers.
        set_sysctl(&network.host, "ipv4/conf/eth0/arp_ignore", "8");
        watched.resolver.doubt(backend);
        let quiet = Instant::now() + Duration::from_millis(1_500);
        while let Ok(changed) =
            tokio::time::timeout_at(quiet, watched.neighbourhood.changed()).await
        {
            changed.expect("the resolver runs");
            assert_eq!(watched.of(backend), Some(Resolution::Resolved(hop.clone())));
        }
        watched.unreachable(backend).await;
        set_sysctl(&network.host, "ipv4/conf/eth0/arp_ignore", "0");
        assert_eq!(watched.resolved(backend).await, hop);
    });
}

#[test]
fn neighbour_that_never_answers_is_unreachable_until_it_does() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.impatient();
    network.run(async |mut watched| {
        let backends = [dsr("10.0.0.9"), dsr("fd00::9")];
        watched.want(&backends);
        for backend in backends {
            let address = backend.address;
            let reason = watched.unreachable(backend).await;
            assert_eq!(reason, format!("neighbour {address} on eth0 does not answer"));
        }
        // It is resolved again meanwhile, and stays the same.
        let quiet = Instant::now() + Duration::from_secs(5);
        while let Ok(changed) =
            tokio::time::timeout_at(quiet, watched.neighbourhood.changed()).await
        {
            changed.expect("the resolver runs");
            for backend in backends {
                let now = watched.of(backend);
                assert!(matches!(now, Some(Resolution::Unreachable { .. })), "{now:?}");
            }
        }
        network.host.ip("addr add 10.0.0.9/24 dev eth0");
        network.host.ip("addr add fd00::9/64 dev eth0 nodad");
        for backend in backends {
            watched.resolved(backend).await;
        }
    });
}

#[test]
fn link_that_goes_down_and_up_takes_its_backends_along() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.2");
        watched.want(&[backend]);
        let first = watched.resolved(backend).await;
        network.host.ip("link set eth0 down");
        assert_eq!(watched.unreachable(backend).await, "interface eth0 has no carrier");
        assert!(!watched.neighbourhood.borrow().links["eth0"].up);
        network.host.ip("link set eth0 up");
        assert_eq!(watched.resolved(backend).await, first);
        // The address stays, its route goes with the link.
        network.node.ip("link set eth0 down");
        let reason = watched.unreachable(backend).await;
        assert_eq!(reason, "10.0.0.2 has no route; see `ip route get`");
        network.node.ip("link set eth0 up");
        assert_eq!(watched.resolved(backend).await, first);
    });
}

/// The kernel asks for the neighbours while nothing can answer, and would ask again after a minute.
#[test]
fn neighbours_that_were_asked_without_a_carrier_are_asked_again_when_it_is_back() {
    if !is_root() {
        return;
    }
    // The node's link goes to a switch: the host keeps its own, and answers at once.
    let switch = Netns::new();
    let network = Network::by(&switch);
    network.run(async |mut watched| {
        // Duplicate address detection waits as long as a request for a neighbour, and no request is sent meanwhile.
        let detected = timeout(SOON, async {
            while network.node.ip("-6 addr").contains("tentative") {
                sleep(Duration::from_millis(50)).await;
            }
        });
        detected.await.expect("the node has its link-local address");
        for family in ["ipv4", "ipv6"] {
            set_sysctl(&network.node, &format!("{family}/neigh/eth0/retrans_time_ms"), "60000");
        }
        let backends = [dsr("10.0.0.2"), dsr("fd00::2")];
        watched.want(&backends);
        for backend in backends {
            watched.resolved(backend).await;
        }
        switch.ip("link set node down");
        for backend in backends {
            assert_eq!(watched.unreachable(backend).await, "interface eth0 has no carrier");
        }
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let socket = UdpSocket::bind((from, 0)).expect("bind");
            socket.send_to(b"x", (to, 9)).expect("send");
        }
        let asked = network.node.ip("neigh");
        assert_eq!(asked.matches("INCOMPLETE").count(), 2, "{asked}");
        switch.ip("link set node up");
        for backend in backends {
            watched.resolved(backend).await;
        }
    });
}

#[test]
fn interface_that_comes_back_has_its_new_index() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        let backends = [dsr("10.0.0.2"), dsr("fd00::2")];
        watched.want(&backends);
        let first = watched.resolved(backends[0]).await;
        network.node.ip("link del eth0");
        for backend in backends {
            watched.unreachable(backend).await;
        }
        assert!(!watched.neighbourhood.borrow().links.contains_key("eth0"));
        assert!(watched.neighbourhood.borrow().own_macs.is_empty());
        network.connect();
        for backend in backends {
            let hop = watched.resolved(backend).await;
            assert_ne!(hop.ifindex, first.ifindex);
            assert_eq!(hop.mac, mac_of(&network.host, "eth0"));
        }
        assert_eq!(watched.neighbourhood.borrow().own_macs, [mac_of(&network.node, "eth0")]);
    });
}

#[test]
fn backend_on_a_vlan_gets_its_tags() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    if !has_vlan(&network.node) {
        // Neither root nor a package would mend that. Past the harness, which keeps what a test that
        // passes prints to itself.
        let message =
            "SKIPPED backend_on_a_vlan_gets_its_tags: this kernel has no VLAN devices (8021q)";
        writeln!(std::io::stderr(), "{message}").unwrap();
        return;
    }
    for (namespace, number) in [(&network.node, 1), (&network.host, 2)] {
        namespace.ip("link add link eth0 name eth0.10 type vlan id 10 protocol 802.1ad");
        namespace.ip("link add link eth0.10 name eth0.10.20 type vlan id 20");
        namespace.ip("link add link eth0.10.20 name deep type vlan id 30");
        namespace.ip(&format!("link set eth0.10.20 address 02:00:00:00:20:0{number}"));
        for (third, dev) in [(1, "eth0.10"), (2, "eth0.10.20"), (3, "deep")] {
            namespace.ip(&format!("link set {dev} up"));
            namespace.ip(&format!("addr add 10.0.{third}.{number}/24 dev {dev}"));
        }
    }
    network.run(async |mut watched| {
        let (one, two, three) = (dsr("10.0.1.2"), dsr("10.0.2.2"), dsr("10.0.3.2"));
        watched.want(&[one, two, three]);
        let ifindex = watched.neighbourhood.borrow().links["eth0"].ifindex;
        let (node, host) = (mac_of(&network.node, "eth0"), mac_of(&network.host, "eth0"));

        let hop = watched.resolved(one).await;
        assert_eq!(hop.l2, [&host[..], &node, &[0x88, 0xa8, 0, 10, 8, 0]].concat());
        assert_eq!((hop.ifindex, hop.interface.as_str()), (ifindex, "eth0"));

        let hop = watched.resolved(two).await;
        let tags = [0x88, 0xa8, 0, 10, 0x81, 0, 0, 20, 8, 0];
        assert_eq!(hop.l2, [&[2, 0, 0, 0, 0x20, 2][..], &[2, 0, 0, 0, 0x20, 1], &tags].concat());
        assert_eq!(hop.ifindex, ifindex);

        let reason = watched.unreachable(three).await;
        assert_eq!(reason, "interface deep has 3 VLAN tags; at most 2 can be sent");
        let own_macs = watched.neighbourhood.borrow().own_macs.clone();
        assert_eq!(own_macs[0], node);
        assert!(own_macs.contains(&[2, 0, 0, 0, 0x20, 1]), "{own_macs:?}");
    });
}

#[test]
fn backend_on_a_macvlan_is_reached_by_the_interface_below() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.node.ip("link add link eth0 name vrrp0 address 00:00:5e:00:01:07 type macvlan");
    network.node.ip("link set vrrp0 up");
    network.node.ip("addr add 10.0.7.1/24 dev vrrp0");
    network.host.ip("addr add 10.0.7.2/24 dev eth0");
    network.run(async |mut watched| {
        let backend = dsr("10.0.7.2");
        watched.want(&[backend]);
        let hop = watched.resolved(backend).await;
        let (node, host) = (mac_of(&network.node, "eth0"), mac_of(&network.host, "eth0"));
        let vrrp = [0, 0, 0x5e, 0, 1, 7];
        assert_eq!(hop.l2, [&host[..], &vrrp, &[8, 0]].concat());
        let now = watched.neighbourhood.borrow().clone();
        assert_eq!(hop.ifindex, now.links["eth0"].ifindex);
        assert_eq!(now.own_macs, [node, vrrp]);
        network.node.ip("link del vrrp0");
        watched.unreachable(backend).await;
        assert_eq!(watched.neighbourhood.borrow().own_macs, [node]);
    });
}

#[test]
fn backend_behind_a_router_is_for_tunnels_and_follows_its_route() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.host.ip("addr add 10.0.0.3/24 dev eth0");
    network.node.ip("route add 10.1.0.0/24 via 10.0.0.2 mtu 1400");
    network.node.ip("route add 10.2.0.0/24 via inet6 fd00::2 dev eth0");
    network.node.ip("route add fd01::/64 via fd00::2");
    network.run(async |mut watched| {
        let router = mac_of(&network.host, "eth0");
        let near = ipip("10.1.0.2");
        watched.want(&[near, dsr("10.1.0.2"), ipip("10.2.0.2"), ipip("fd01::2")]);
        let hop = watched.resolved(near).await;
        assert_eq!((hop.mac, hop.mtu), (router, 1400));
        assert_eq!(hop.l2[12..], [8, 0]);
        assert_eq!(
            watched.unreachable(dsr("10.1.0.2")).await,
            "is behind router 10.0.0.2: dsr needs it on the link; use mode ipip"
        );
        assert_eq!(watched.resolved(ipip("10.2.0.2")).await.l2[12..], [8, 0]);
        assert_eq!(watched.resolved(ipip("fd01::2")).await.l2[12..], [0x86, 0xdd]);
        network.node.ip("route replace 10.1.0.0/24 via 10.0.0.3");
        let hop = watched.resolved_as(near, |hop| hop.mtu == 1500).await;
        assert_eq!(hop.mac, router);
        network.node.ip("route replace blackhole 10.1.0.0/24");
        assert_eq!(watched.unreachable(near).await, "10.1.0.2 has a blackhole route");
        // A rule alone changes the way too.
        network.node.ip("route add 10.1.0.0/24 via 10.0.0.2 table 7");
        network.node.ip("rule add to 10.1.0.0/24 lookup 7");
        watched.resolved(near).await;
    });
}

#[test]
fn address_that_no_frame_reaches_says_why() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.node.ip("route add 10.5.0.0/24 dev lo");
    network.node.ip("route add unreachable 10.6.0.0/24");
    network.node.ip("route add blackhole fd06::/64");
    network.node.join("quiet", &network.host, "quiet");
    network.node.ip("link set quiet arp off");
    network.node.ip("addr add 10.7.0.1/24 dev quiet");
    network.run(async |mut watched| {
        let cases = [
            ("10.0.0.255", "10.0.0.255 is a broadcast address"),
            ("10.4.0.1", "10.4.0.1 has no route; see `ip route get`"),
            ("fd04::1", "fd04::1 has no route; see `ip route get`"),
            ("10.5.0.1", "leaves by lo, which is no Ethernet interface"),
            ("10.6.0.1", "10.6.0.1 has a route of type unreachable"),
            ("fd06::1", "fd06::1 has a blackhole route"),
            (
                "10.7.0.9",
                "interface quiet resolves no neighbours; give it one by hand: \
                 ip neigh replace 10.7.0.9 lladdr MAC dev quiet",
            ),
        ];
        watched.want(&cases.map(|(address, _)| dsr(address)));
        for (address, reason) in cases {
            assert_eq!(watched.unreachable(dsr(address)).await, reason);
        }
        network.node.ip("neigh replace 10.7.0.9 lladdr 02:00:00:00:00:09 dev quiet");
        assert_eq!(watched.resolved(dsr("10.7.0.9")).await.mac, [2, 0, 0, 0, 0, 9]);
    });
}

#[test]
fn an_address_of_the_node_is_local_as_long_as_the_node_has_it() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        let (v4, v6) = (dsr("10.0.0.77"), dsr("fd00::77"));
        watched.want(&[dsr("10.0.0.1"), dsr("fd00::1"), v4, v6]);
        for own in ["10.0.0.1", "fd00::1"] {
            assert!(watched.resolved(dsr(own)).await.is_local(), "{own}");
        }
        for want in [v4, v6] {
            watched.unreachable(want).await;
        }
        for (change, is_local) in [("add", true), ("delete", false)] {
            let nodad = if is_local { " nodad" } else { "" };
            network.node.ip(&format!("addr {change} 10.0.0.77/32 dev lo"));
            network.node.ip(&format!("addr {change} fd00::77/128 dev lo{nodad}"));
            for want in [v4, v6] {
                if is_local {
                    watched.resolved_as(want, NextHop::is_local).await;
                } else {
                    watched.unreachable(want).await;
                }
            }
        }
    });
}

#[test]
fn flushed_neighbours_move_no_flow() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        let backends = [dsr("10.0.0.2"), dsr("fd00::2")];
        watched.want(&backends);
        for backend in backends {
            watched.resolved(backend).await;
        }
        let before = watched.neighbourhood.borrow_and_update().clone();
        network.node.ip("neigh flush dev eth0");
        network.node.ip("-6 neigh flush dev eth0");
        sleep(Duration::from_millis(300)).await;
        assert!(!watched.neighbourhood.has_changed().expect("the resolver runs"));
        assert_eq!(*watched.neighbourhood.borrow(), before);
        let shown = network.node.ip("neigh show 10.0.0.2 dev eth0");
        assert!(shown.contains("lladdr"), "it was asked for again: {shown}");
    });
}

#[test]
fn neighbour_set_by_hand_stays_as_it_is() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.node.ip("neigh replace 10.0.0.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent");
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.50");
        watched.want(&[backend]);
        assert_eq!(watched.resolved(backend).await.mac, [2, 0, 0, 0, 0, 0x50]);
        // Longer than it takes until all neighbours are probed.
        sleep(Duration::from_secs(11)).await;
        let shown = network.node.ip("neigh show 10.0.0.50 dev eth0");
        assert!(shown.contains("PERMANENT"), "{shown}");
        assert!(matches!(watched.of(backend), Some(Resolution::Resolved(_))));
    });
}

#[test]
fn lost_events_are_made_up_for() {
    if !is_root() {
        return;
    }
    let network = Network::new();
    network.run(async |mut watched| {
        let backend = dsr("10.0.0.2");
        watched.want(&[backend]);
        watched.resolved(backend).await;
        // The runtime has one thread, which is busy here: the events are not read.
        let flood = |verb: &str| -> String {
            let routes = (0..20_000_u32).map(|number| (number / 250, number % 250));
            routes
                .map(|(high, low)| format!("route {verb} blackhole 10.200.{high}.{low}\n"))
                .collect()
        };
        // The flood after one that was noticed meets its rest in the socket.
        let mut least = Least::default();
        for (mac, verb) in [(0x90, "add"), (0x91, "del"), (0x92_u8, "add")] {
            let neighbour =
                format!("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:{mac:x} dev eth0\n");
            network.node.batch(&(flood(verb) + &neighbour));
            least.command(|| network.host.ip("link show eth0"));
            let flooded = Instant::now();
            watched.resolved_as(backend, |hop| hop.mac[5] == mac).await;
            assert!(flooded.elapsed() < REFRESH / 2, "the refresh has found it");
            least.take(flooded);
        }
        least.is_below(40);
        network.node.ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:98 dev eth0");
        watched.resolved_as(backend, |hop| hop.mac[5] == 0x98).await;
    });
}

#[test]
fn frames_of_a_veth_with_jumbo_frames_have_their_headers_in_the_first_buffer() {
    if !is_root() {
        return;
    }
    let (node, peer) = (Netns::new(), Netns::new());
    node.join("eth0", &peer, "eth0");
    node.ip("link set eth0 mtu 9000");
    node.enter(|| {
        let found = query::interfaces().expect("read the interfaces");
        assert_eq!(found["eth0"].mtu, 9_000);
        assert_eq!(empty_first_buffers("eth0", false), []);
    });
}
