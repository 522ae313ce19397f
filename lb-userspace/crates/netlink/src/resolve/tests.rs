//! Next hops, of tables as the kernel has them.

use std::{collections::BTreeMap, time::Instant};

use super::*;
use crate::link::LinkKind;

const NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const TAGGED: [u8; 6] = [2, 0, 0, 0, 0, 3];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn want(address: &str, mode: Mode) -> Want {
    Want { address: ip(address), mode }
}

fn link(name: &str, kind: LinkKind, mac: [u8; 6]) -> Link {
    Link { name: name.into(), kind, mac, up: true, carrier: true, mtu: 1500, ..Link::default() }
}

fn vlan(parent: u32, tpid: u16, id: u16) -> LinkKind {
    LinkKind::Vlan { parent: Some(parent), tpid, id }
}

/// eth0 (1) with 10.0.0.2 and fd00::2 on the link, 10.1.0.2 behind 10.0.0.2.
fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.links.insert(1, link("eth0", LinkKind::Own, NODE));
    for address in ["10.0.0.2", "fd00::2"] {
        tables.routes.insert(ip(address), Route::Via { oif: 1, gateway: None, mtu: None });
        answer(&mut tables, 1, address);
    }
    let gateway = Some(ip("10.0.0.2"));
    tables.routes.insert(ip("10.1.0.2"), Route::Via { oif: 1, gateway, mtu: Some(1400) });
    tables
}

fn answer(tables: &mut Tables, oif: u32, address: &str) {
    set(tables, oif, address, NeighbourState::Valid, Some(PEER));
}

/// As the kernel does it: the neighbour is probed, then given up.
fn fail(tables: &mut Tables, oif: u32, address: &str) {
    set(tables, oif, address, NeighbourState::Probed, Some(PEER));
    set(tables, oif, address, NeighbourState::Failed, None);
}

fn set(tables: &mut Tables, oif: u32, address: &str, state: NeighbourState, mac: Option<[u8; 6]>) {
    tables.update_neighbour((oif, ip(address)), Neighbour { state, mac });
}

fn hop(resolution: Resolution) -> NextHop {
    match resolution {
        Resolution::Resolved(hop) => hop,
        other => panic!("not resolved: {other:?}"),
    }
}

fn unreachable(reason: &str) -> Resolution {
    Resolution::Unreachable { reason: reason.into() }
}

#[test]
fn frame_goes_to_the_neighbour_with_the_backends_ethertype() {
    let tables = tables();
    for (address, ethertype) in [("10.0.0.2", [8, 0]), ("fd00::2", [0x86, 0xdd])] {
        for mode in [Mode::Dsr, Mode::Ipip] {
            let hop = hop(resolve(&want(address, mode), &tables));
            assert_eq!(hop.l2, [&PEER[..], &NODE, &ethertype].concat());
            assert_eq!((hop.ifindex, hop.interface.as_str(), hop.mtu), (1, "eth0", 1500));
            assert_eq!(hop.mac, PEER);
        }
    }
}

#[test]
fn backend_behind_a_router_is_for_tunnels_only() {
    let mut tables = tables();
    let tunnelled = hop(resolve(&want("10.1.0.2", Mode::Ipip), &tables));
    assert_eq!((tunnelled.mac, tunnelled.mtu), (PEER, 1400));
    // A router's report lowers what a tunnel takes, and raises nothing.
    for (mtu, expected) in [(1450, 1400), (1300, 1300)] {
        tables.path_mtus.learn(ip("10.1.0.2"), mtu, Instant::now());
        let tunnelled = hop(resolve(&want("10.1.0.2", Mode::Ipip), &tables));
        assert_eq!(tunnelled.mtu, expected);
    }
    assert_eq!(
        resolve(&want("10.1.0.2", Mode::Dsr), &tables),
        unreachable("is behind router 10.0.0.2: dsr needs it on the link; use mode ipip")
    );
}

#[test]
fn router_of_the_other_family_keeps_the_backends_ethertype() {
    let mut tables = tables();
    let gateway = Some(ip("fd00::2"));
    tables.routes.insert(ip("10.2.0.1"), Route::Via { oif: 1, gateway, mtu: None });
    let hop = hop(resolve(&want("10.2.0.1", Mode::Ipip), &tables));
    assert_eq!(hop.l2, [&PEER[..], &NODE, &[8, 0]].concat());
}

#[test]
fn an_interface_without_ethernet_header_needs_no_neighbour_and_no_xdp() {
    let mut tables = tables();
    let mut wg0 = Link { layer: LinkLayer::RawIp, ..link("wg0", LinkKind::Own, [0; 6]) };
    (wg0.mtu, wg0.no_arp) = (1420, true);
    tables.links.insert(2, wg0);
    tables.interfaces = vec!["eth0".into()];
    for (address, ethertype) in [("10.9.0.2", [8, 0]), ("fd09::2", [0x86, 0xdd])] {
        tables.routes.insert(ip(address), Route::Via { oif: 2, gateway: None, mtu: None });
        for mode in [Mode::Ipip, Mode::Nat] {
            let want = want(address, mode);
            let hop = hop(resolve(&want, &tables));
            assert_eq!(hop.l2, [&[0; 12][..], &ethertype].concat());
            assert_eq!((hop.ifindex, hop.interface.as_str(), hop.mtu), (2, "wg0", 1420));
            assert!(hop.is_raw_ip() && !hop.is_local());
            assert_eq!(next_hop_of(&want, &tables), None);
        }
    }
    // From a driver's XDP no way leads there.
    tables.links.get_mut(&1).expect("inserted").xdp_prog_id = Some(7);
    let refused = resolve(&want("10.9.0.2", Mode::Ipip), &tables);
    assert_eq!(
        refused,
        unreachable(
            "wg0 has no Ethernet header, so XDP can't send by it; give eth0 `attach = \"tc\"`"
        )
    );
}

#[test]
fn vlan_tags_are_in_the_frame_outermost_first() {
    let mut tables = tables();
    tables.links.insert(2, link("eth0.10", vlan(1, 0x88a8, 10), TAGGED));
    tables.links.insert(3, link("eth0.10.20", vlan(2, 0x8100, 20), TAGGED));
    tables.links.get_mut(&3).expect("inserted").mtu = 1480;
    for (oif, tags, mtu) in
        [(2, &[0x88, 0xa8, 0, 10][..], 1500), (3, &[0x88, 0xa8, 0, 10, 0x81, 0, 0, 20], 1480)]
    {
        tables.routes.insert(ip("10.0.0.2"), Route::Via { oif, gateway: None, mtu: None });
        answer(&mut tables, oif, "10.0.0.2");
        let hop = hop(resolve(&want("10.0.0.2", Mode::Dsr), &tables));
        assert_eq!(hop.l2, [&PEER[..], &TAGGED, tags, &[8, 0]].concat());
        assert_eq!((hop.ifindex, hop.interface.as_str(), hop.mtu), (1, "eth0", mtu));
    }
}

#[test]
fn macvlan_sends_by_its_parent_from_its_own_mac() {
    let mut tables = tables();
    let kind = LinkKind::Macvlan { parent: Some(1) };
    tables.links.insert(2, link("mv0", kind, TAGGED));
    tables.routes.insert(ip("10.0.0.2"), Route::Via { oif: 2, gateway: None, mtu: None });
    answer(&mut tables, 2, "10.0.0.2");
    let hop = hop(resolve(&want("10.0.0.2", Mode::Dsr), &tables));
    assert_eq!((hop.ifindex, &hop.l2[6..12]), (1, &TAGGED[..]));
}

#[test]
fn a_backend_at_this_nodes_own_address_needs_no_way() {
    let mut tables = tables();
    tables.routes.insert(ip("10.0.0.2"), Route::Own);
    for mode in [Mode::Dsr, Mode::Ipip] {
        let hop = hop(resolve(&want("10.0.0.2", mode), &tables));
        assert!(hop.is_local() && hop.ifindex == 1, "{hop:?}");
        assert_eq!(next_hop_of(&want("10.0.0.2", mode), &tables), None);
    }
}

#[test]
fn every_obstacle_has_its_reason() {
    type Edit = fn(&mut Tables);
    let cases: &[(Edit, &str)] = &[
        (
            |t| {
                t.routes.insert(ip("10.0.0.2"), Route::None("has a blackhole route"));
            },
            "10.0.0.2 has a blackhole route",
        ),
        (
            |t| {
                t.links.remove(&1);
            },
            "its interface (index 1) is gone",
        ),
        (|t| eth0(t).layer = LinkLayer::Other, "leaves by eth0, which is no Ethernet interface"),
        (
            |t| eth0(t).layer = LinkLayer::RawIp,
            "leaves by eth0, which has no Ethernet header: dsr needs the backend's MAC address; use mode ipip or nat",
        ),
        (|t| eth0(t).up = false, "interface eth0 is down: ip link set eth0 up"),
        (|t| eth0(t).carrier = false, "interface eth0 has no carrier"),
        (
            |t| {
                for (index, parent) in [(2, 1), (3, 2), (4, 3)] {
                    let kind = vlan(parent, 0x8100, 5);
                    t.links.insert(index, link("deep", kind, TAGGED));
                }
                let route = Route::Via { oif: 4, gateway: None, mtu: None };
                t.routes.insert(ip("10.0.0.2"), route);
            },
            "interface deep has 3 VLAN tags; at most 2 can be sent",
        ),
        (
            |t| eth0(t).kind = LinkKind::Macvlan { parent: None },
            "eth0 is on an interface of another namespace",
        ),
        (
            |t| {
                eth0(t).no_arp = true;
                set(t, 1, "10.0.0.2", NeighbourState::NoArp, Some(NODE));
            },
            "interface eth0 resolves no neighbours; give it one by hand: \
             ip neigh replace 10.0.0.2 lladdr MAC dev eth0",
        ),
        (|t| fail(t, 1, "10.0.0.2"), "neighbour 10.0.0.2 on eth0 does not answer"),
    ];
    for (edit, reason) in cases {
        let mut tables = tables();
        edit(&mut tables);
        assert_eq!(resolve(&want("10.0.0.2", Mode::Dsr), &tables), unreachable(reason));
    }
}

fn eth0(tables: &mut Tables) -> &mut Link {
    tables.links.get_mut(&1).expect("the tables have eth0")
}

#[test]
fn what_was_asked_and_not_answered_is_pending() {
    let mut tables = tables();
    let backend = want("10.0.0.3", Mode::Dsr);
    let pending = |reason: &str| Resolution::Pending { reason: reason.into() };
    assert_eq!(resolve(&backend, &tables), pending("the route to 10.0.0.3 is looked up"));
    tables.routes.insert(backend.address, Route::Via { oif: 1, gateway: None, mtu: None });
    assert_eq!(resolve(&backend, &tables), pending("ARP for 10.0.0.3 on eth0 awaits an answer"));
    set(&mut tables, 1, "10.0.0.3", NeighbourState::Incomplete, None);
    assert_eq!(resolve(&backend, &tables), pending("ARP for 10.0.0.3 on eth0 awaits an answer"));
}

#[test]
fn doubted_neighbour_keeps_its_address_until_it_tells_another_or_is_silent_for_long() {
    let key = (1, ip("10.0.0.2"));
    let backend = want("10.0.0.2", Mode::Dsr);
    let in_vain = |tables: &mut Tables| {
        set(tables, 1, "10.0.0.2", NeighbourState::Incomplete, None);
        set(tables, 1, "10.0.0.2", NeighbourState::Failed, None);
    };
    let mut tables = tables();
    assert!(tables.doubt(key));
    assert!(!tables.doubt(key), "it is requested already");
    assert_eq!(NeighbourRequest::Missing.select(&[key].into(), &tables), [key]);
    for _ in 0..4 {
        assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
        in_vain(&mut tables);
    }
    assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
    in_vain(&mut tables);
    let silent = unreachable("neighbour 10.0.0.2 on eth0 does not answer");
    assert_eq!(resolve(&backend, &tables), silent);
    assert!(!tables.doubt(key), "nothing is left to doubt");

    set(&mut tables, 1, "10.0.0.2", NeighbourState::Valid, Some(PEER));
    assert!(tables.doubt(key));
    in_vain(&mut tables);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Valid, Some(TAGGED));
    assert_eq!(hop(resolve(&backend, &tables)).mac, TAGGED);
    // What comes later is the kernel's own word again.
    fail(&mut tables, 1, "10.0.0.2");
    assert_eq!(resolve(&backend, &tables), silent);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Permanent, Some(PEER));
    assert!(!tables.doubt(key), "what was set by hand is not");
}

#[test]
fn silent_neighbour_stays_unreachable_while_it_is_asked_again() {
    let mut tables = tables();
    let backend = want("10.0.0.2", Mode::Dsr);
    let silent = unreachable("neighbour 10.0.0.2 on eth0 does not answer");
    fail(&mut tables, 1, "10.0.0.2");
    assert_eq!(resolve(&backend, &tables), silent);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Incomplete, None);
    assert_eq!(resolve(&backend, &tables), silent);
    tables.forget_neighbour((1, ip("10.0.0.2")));
    assert_eq!(resolve(&backend, &tables), silent);
    answer(&mut tables, 1, "10.0.0.2");
    assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
}

#[test]
fn what_was_not_answered_before_anyone_asked_says_nothing() {
    let mut tables = tables();
    let backend = want("10.0.0.9", Mode::Dsr);
    tables.routes.insert(backend.address, Route::Via { oif: 1, gateway: None, mtu: None });
    let key = (1, backend.address);
    set(&mut tables, 1, "10.0.0.9", NeighbourState::Failed, None);
    assert!(matches!(resolve(&backend, &tables), Resolution::Pending { .. }));
    assert_eq!(NeighbourRequest::Missing.select(&BTreeSet::from([key]), &tables), [key]);
    set(&mut tables, 1, "10.0.0.9", NeighbourState::Incomplete, None);
    set(&mut tables, 1, "10.0.0.9", NeighbourState::Failed, None);
    assert!(matches!(resolve(&backend, &tables), Resolution::Unreachable { .. }));
}

#[test]
fn a_full_table_of_neighbours_says_what_to_do() {
    let mut tables = tables();
    let backend = want("10.0.0.9", Mode::Dsr);
    tables.routes.insert(backend.address, Route::Via { oif: 1, gateway: None, mtu: None });
    let key = (1, backend.address);
    assert!(tables.note_room(key, false), "it is the first");
    assert!(!tables.note_room(key, false));
    let Resolution::Pending { reason } = resolve(&backend, &tables) else { panic!() };
    assert!(reason.contains("net.ipv4.neigh.default.gc_thresh3"), "{reason}");
    assert!(!tables.note_room(key, true));
    assert_eq!(
        resolve(&backend, &tables),
        Resolution::Pending { reason: "ARP for 10.0.0.9 on eth0 awaits an answer".into() }
    );
}

#[test]
fn a_probe_that_is_answered_changes_no_outlook() {
    let mut tables = tables();
    let key = (1, ip("10.0.0.2"));
    answer(&mut tables, 1, "10.0.0.2");
    let before = tables.outlook(key);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Probed, Some(PEER));
    assert!(tables.outlook(key) == before);
    answer(&mut tables, 1, "10.0.0.2");
    assert!(tables.outlook(key) == before);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Probed, Some(PEER));
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Failed, None);
    assert!(tables.outlook(key) != before);
}

#[test]
fn forgotten_neighbour_keeps_its_mac_until_it_answers_or_fails() {
    let mut tables = tables();
    let backend = want("10.0.0.2", Mode::Dsr);
    let key = (1, ip("10.0.0.2"));
    // `ip neigh flush` takes both steps.
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Failed, None);
    assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
    tables.forget_neighbour(key);
    assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
    assert_eq!(NeighbourRequest::Missing.select(&BTreeSet::from([key]), &tables), [key]);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Incomplete, None);
    assert_eq!(hop(resolve(&backend, &tables)).mac, PEER);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Valid, Some(TAGGED));
    assert_eq!(hop(resolve(&backend, &tables)).mac, TAGGED);
    tables.forget_neighbour(key);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Incomplete, None);
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Failed, None);
    assert!(matches!(resolve(&backend, &tables), Resolution::Unreachable { .. }));
}

#[test]
fn neighbour_set_by_hand_is_used_and_never_asked() {
    let mut tables = tables();
    let backend = want("10.0.0.2", Mode::Dsr);
    let key = next_hop_of(&backend, &tables).expect("on the link");
    set(&mut tables, 1, "10.0.0.2", NeighbourState::Permanent, Some(TAGGED));
    assert_eq!(hop(resolve(&backend, &tables)).mac, TAGGED);
    assert_eq!(NeighbourRequest::All.select(&BTreeSet::from([key]), &tables), []);
    tables.forget_neighbour(key);
    assert!(matches!(resolve(&backend, &tables), Resolution::Pending { .. }));
}

#[test]
fn neighbours_are_asked_as_often_as_their_state_needs() {
    use NeighbourState::{Failed, Incomplete, Valid};
    // By Missing, Restored with and without a carrier that came back, Unanswered, All.
    for (state, expected) in [
        (Some(Valid), [false, false, false, false, true]),
        (Some(Incomplete), [false, true, false, true, true]),
        (Some(Failed), [false, true, false, true, true]),
        (None, [true; 5]),
    ] {
        let mut tables = Tables::default();
        let key = (1, ip("10.0.0.2"));
        if let Some(state) = state {
            tables.neighbours.insert(key, Neighbour { state, mac: None });
        }
        let mut selected = |request: NeighbourRequest, restored: u32| {
            tables.restored = [(restored, Instant::now())].into();
            !request.select(&BTreeSet::from([key]), &tables).is_empty()
        };
        let asked = [
            selected(NeighbourRequest::Missing, 1),
            selected(NeighbourRequest::Restored, 1),
            selected(NeighbourRequest::Restored, 2),
            selected(NeighbourRequest::Unanswered, 2),
            selected(NeighbourRequest::All, 2),
        ];
        assert_eq!(asked, expected, "{state:?}");
    }
}

#[test]
fn an_interface_that_gets_its_carrier_back_is_known_and_none_is_at_the_start() {
    let mut tables = Tables::default();
    let links = |carrier| {
        let eth0 = Link { carrier, ..link("eth0", LinkKind::Own, NODE) };
        BTreeMap::from([(1, eth0), (2, link("eth1", LinkKind::Own, NODE))])
    };
    for (carrier, restored) in [(true, false), (false, false), (true, true)] {
        tables.replace_links(links(carrier), Instant::now());
        assert_eq!(tables.restored.keys().eq(&[1]), restored, "{:?}", tables.restored);
    }
}

#[test]
fn neighbours_are_found_by_their_mac_address_unless_the_kernel_does_not_ask_for_it() {
    let mut tables = tables();
    tables.neighbours.clear();
    let mut add = |ifindex, address, state, mac| {
        let mac = Some(mac);
        tables.neighbours.insert((ifindex, ip(address)), Neighbour { state, mac });
    };
    add(1, "10.0.0.2", NeighbourState::Valid, PEER);
    add(1, "fe80::2", NeighbourState::Valid, PEER);
    add(1, "10.0.0.3", NeighbourState::Permanent, PEER);
    add(1, "10.0.0.4", NeighbourState::Probed, PEER);
    add(1, "10.0.0.5", NeighbourState::Valid, NODE);
    add(2, "10.0.0.6", NeighbourState::Valid, PEER);
    let found = tables.at_stations(&BTreeSet::from([(1, PEER), (3, NODE)]));
    assert_eq!(found, [(1, ip("10.0.0.2")), (1, ip("fe80::2"))]);
}

#[test]
fn own_macs_are_those_of_the_interfaces_and_of_what_stands_on_them() {
    let mut tables = tables();
    let mac = |last| [2, 0, 0, 0, 1, last];
    tables.links.insert(2, link("eth0.10", vlan(1, 0x8100, 10), mac(2)));
    let kind = LinkKind::Macvlan { parent: Some(2) };
    tables.links.insert(3, link("vrrp0", kind, mac(3)));
    tables.links.insert(4, link("eth1", LinkKind::Own, mac(4)));
    tables.links.insert(5, link("eth1.10", vlan(4, 0x8100, 10), mac(5)));
    tables.links.insert(6, link("br0", LinkKind::Own, mac(6)));
    tables.links.insert(7, link("br0.7", vlan(6, 0x8100, 7), NODE));
    tables.links.get_mut(&1).expect("inserted").port_of = Some(6);
    assert_eq!(tables.own_macs(&["eth0".into()]), [NODE, mac(2), mac(6), mac(3)]);
    assert_eq!(tables.own_macs(&["none".into()]), [[0; 6]; 0]);
}

#[test]
fn what_an_interface_knew_goes_with_it() {
    let mut tables = tables();
    let links = BTreeMap::from([(9, link("eth0", LinkKind::Own, NODE))]);
    tables.replace_links(links, Instant::now());
    assert_eq!(tables.neighbours, BTreeMap::new());
    let route = Route::Via { oif: 9, gateway: None, mtu: None };
    tables.routes.insert(ip("10.0.0.2"), route);
    let resolution = resolve(&want("10.0.0.2", Mode::Dsr), &tables);
    assert!(matches!(resolution, Resolution::Pending { .. }), "{resolution:?}");
}
