//! The interface that frames leave by: from that of the route down through VLAN, macvlan, bridge and bond to the
//! one that transmits, and whether it takes frames from the XDP program.
//!
//! XDP_TX and XDP_REDIRECT report no error to the program: the kernel drops a frame for a link that can't
//! transmit it, after the program has counted it. So such a link is refused here.
//!
//! The kernel reports an interface's features (netlink family `netdev`, Linux 6.3); without them its kind decides.
//! A feature that disappears counts after five seconds, so that a reset of a driver moves no flow.

use netlink_packet_route::link::BondMode;

use super::{
    generic::xdp_act,
    link::{Link, LinkKind, LinkLayer},
    tables::Tables,
};

/// VLAN tags that fit the link-layer header of a backend.
const MAX_TAGS: usize = 2;
/// Devices that may stand on each other; the kernel allows as many (`MAX_NEST_DEV`).
const MAX_DEPTH: usize = 8;

/// Why there is no next hop.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It will be known soon.
    Awaited(String),
    /// Something has to change first.
    Fatal(String),
}

/// How frames leave.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Egress<'a> {
    /// The interface that transmits.
    pub(super) ifindex: u32,
    pub(super) link: &'a Link,
    /// Type and VLAN of each tag, the outermost first.
    pub(super) tags: Vec<[u16; 2]>,
    /// The smallest MTU on the way.
    pub(super) mtu: u32,
}

/// As far as that is known without the MAC address of the next hop: down to the first bridge.
pub(super) fn above_bridges<'a>(
    top: (u32, &'a Link),
    tables: &'a Tables,
) -> Result<Egress<'a>, Obstacle> {
    descend(top, None, tables)
}

/// How a frame for `mac` leaves that is sent by `top`.
pub(super) fn of<'a>(
    top: (u32, &'a Link),
    mac: [u8; 6],
    tables: &'a Tables,
) -> Result<Egress<'a>, Obstacle> {
    descend(top, Some(mac), tables)
}

fn descend<'a>(
    (ifindex, top): (u32, &'a Link),
    mac: Option<[u8; 6]>,
    tables: &'a Tables,
) -> Result<Egress<'a>, Obstacle> {
    // A program that runs in the network stack, at tc or as generic XDP, sends by anything that the stack can send by.
    let native = tables.native().next().is_some();
    let mut at = Egress { ifindex, link: top, tags: Vec::new(), mtu: top.mtu };
    for _ in 0..MAX_DEPTH {
        let Egress { ifindex, link, .. } = at;
        let name = &link.name;
        if !link.up {
            return fatal(format!("interface {name} is down: ip link set {name} up"));
        }
        if !link.carrier {
            return fatal(format!("interface {name} has no carrier"));
        }
        let below = match link.kind {
            LinkKind::Vlan { parent, tpid, id } => {
                at.tags.insert(0, [tpid, id]);
                parent
            }
            LinkKind::Macvlan { parent } => parent,
            LinkKind::Bridge { filters_vlans: true } if native => {
                return fatal(format!(
                    "leaves by {name}, a bridge with vlan_filtering, which XDP can't follow"
                ));
            }
            LinkKind::Bridge { .. } if native => {
                let Some(mac) = mac else { return Ok(at) };
                Some(port_of((ifindex, name), mac, tables)?)
            }
            LinkKind::Bond { mode: BondMode::ActiveBackup, active: Some(port) } if native => {
                Some(port)
            }
            _ => {
                let reason = too_many_tags(&at, top).or_else(|| refusal(&at, tables));
                return reason.map_or(Ok(at), fatal);
            }
        };
        let Some((ifindex, below)) = below.and_then(|i| Some((i, tables.links.get(&i)?))) else {
            return fatal(format!("{name} is on an interface of another namespace"));
        };
        at = Egress { ifindex, link: below, mtu: at.mtu.min(below.mtu), tags: at.tags };
    }
    fatal(format!("more than {MAX_DEPTH} interfaces stand on each other under {}", top.name))
}

fn too_many_tags(at: &Egress<'_>, top: &Link) -> Option<String> {
    let count = at.tags.len();
    let name = &top.name;
    (count > MAX_TAGS)
        .then(|| format!("interface {name} has {count} VLAN tags; at most {MAX_TAGS} can be sent"))
}

fn fatal<T>(reason: String) -> Result<T, Obstacle> {
    Err(Obstacle::Fatal(reason))
}

/// The port behind which a bridge has learnt `mac`.
fn port_of((bridge, name): (u32, &String), mac: [u8; 6], tables: &Tables) -> Result<u32, Obstacle> {
    let port = tables.fdb.get(&(bridge, mac)).copied();
    let is_port = |port: &u32| tables.links.get(port).is_some_and(|at| at.port_of == Some(bridge));
    port.filter(is_port).ok_or_else(|| {
        let [a, b, c, d, e, f] = mac;
        Obstacle::Awaited(format!(
            "bridge {name} has not learnt the port of {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
        ))
    })
}

/// Why the link takes no frames from the program; none if it does, as far as the kernel reports.
fn refusal(at: &Egress<'_>, tables: &Tables) -> Option<String> {
    let Egress { ifindex, link, .. } = at;
    let mut native = tables.native().peekable();
    native.peek()?;
    let name = &link.name;
    if link.layer == LinkLayer::RawIp {
        let of = |ifindex| Some(tables.links.get(&ifindex)?.name.as_str());
        let native: Vec<_> = native.filter_map(of).collect();
        return Some(format!(
            "{name} has no Ethernet header, so XDP can't send by it; give {} `attach = \"tc\"`",
            native.join(", ")
        ));
    }
    let transmits = link.xdp_features.map(|features| features & xdp_act::NDO_XMIT != 0);
    // What XDP_TX needs is a part of native XDP, but on a veth, which needs the same of its other end.
    let own = native.any(|one| one == *ifindex);
    match link.kind {
        LinkKind::Bond { mode: BondMode::ActiveBackup, active: None } => {
            Some(format!("bond {name} has no active port"))
        }
        LinkKind::Bond {
            mode: mode @ (BondMode::Broadcast | BondMode::BalanceTlb | BondMode::BalanceAlb),
            ..
        } => Some(format!("bond {name} is in mode {mode}, by which XDP can't send")),
        LinkKind::Bond { .. } if transmits == Some(false) => Some(format!(
            "bond {name} takes no frames from XDP: the driver of each port needs ndo_xdp_xmit"
        )),
        // Its driver polls the other end for XDP_TX only if that has a program, and for XDP_REDIRECT if it has
        // NAPI, which GRO gives it as well (`veth_xdp_flush`, `veth_xdp_xmit`).
        LinkKind::Veth if transmits == Some(false) && own => Some(format!(
            "the other end of veth {name} takes no frames from XDP: attach an XDP program to it"
        )),
        LinkKind::Veth if transmits == Some(false) => Some(format!(
            "the other end of veth {name} takes no frames from XDP: ethtool -K DEV gro on there, or \
             attach an XDP program to it"
        )),
        LinkKind::Virtual(kind) if !own && transmits != Some(true) => {
            Some(format!("{name} is of kind {kind}, which takes no frames from XDP"))
        }
        _ if !own && transmits == Some(false) => Some(format!(
            "{name} takes no frames from XDP: its driver has no ndo_xdp_xmit, or needs a program \
             on {name} for it; if it has native XDP, add {name} to interfaces"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::{Duration, Instant},
    };

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn link(name: &str, kind: LinkKind) -> Link {
        Link {
            name: name.into(),
            kind,
            mac: [2, 0, 0, 0, 0, 1],
            up: true,
            carrier: true,
            mtu: 1500,
            xdp_features: Some(xdp_act::BASIC | xdp_act::REDIRECT | xdp_act::NDO_XMIT),
            ..Link::default()
        }
    }

    /// eth0 (1) with the program in the driver, and eth1 (2).
    fn tables() -> Tables {
        let mut tables = Tables::new(vec!["eth0".into()]);
        let eth0 = Link { xdp_prog_id: Some(7), ..link("eth0", LinkKind::Own) };
        tables.links.insert(1, eth0);
        tables.links.insert(2, link("eth1", LinkKind::Own));
        tables
    }

    fn add(tables: &mut Tables, ifindex: u32, name: &str, kind: LinkKind) {
        tables.links.insert(ifindex, link(name, kind));
    }

    fn enslave(tables: &mut Tables, port: u32, to: u32) {
        tables.links.get_mut(&port).expect("it is there").port_of = Some(to);
    }

    /// Where frames leave that are sent by `top`: the interface and the tags.
    fn leaves(tables: &Tables, top: u32) -> Result<(&str, Vec<[u16; 2]>), Obstacle> {
        let at = of((top, &tables.links[&top]), MAC, tables)?;
        Ok((&at.link.name, at.tags))
    }

    fn refused(tables: &Tables, top: u32) -> String {
        match leaves(tables, top) {
            Err(Obstacle::Fatal(reason)) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    const BRIDGE: LinkKind = LinkKind::Bridge { filters_vlans: false };

    #[test]
    fn bridge_is_left_by_the_port_that_has_the_mac_address() {
        let mut tables = tables();
        add(&mut tables, 3, "br0", BRIDGE);
        let unknown =
            Obstacle::Awaited("bridge br0 has not learnt the port of 02:00:00:00:00:09".into());
        assert_eq!(leaves(&tables, 3), Err(unknown));
        enslave(&mut tables, 1, 3);
        enslave(&mut tables, 2, 3);
        for (port, name) in [(1, "eth0"), (2, "eth1")] {
            tables.fdb.insert((3, MAC), port);
            assert_eq!(leaves(&tables, 3), Ok((name, vec![])));
        }
        // A port that has left the bridge is none.
        tables.links.get_mut(&2).expect("it is there").port_of = None;
        assert!(matches!(leaves(&tables, 3), Err(Obstacle::Awaited(_))));
        add(&mut tables, 3, "br0", LinkKind::Bridge { filters_vlans: true });
        assert!(refused(&tables, 3).contains("vlan_filtering"));
    }

    #[test]
    fn vlans_above_and_below_a_bridge_are_both_in_the_frame() {
        let mut tables = tables();
        add(&mut tables, 3, "br0", BRIDGE);
        let vlan = |parent, id| LinkKind::Vlan { parent: Some(parent), tpid: 0x8100, id };
        add(&mut tables, 4, "br0.20", vlan(3, 20));
        add(&mut tables, 5, "eth1.10", vlan(2, 10));
        enslave(&mut tables, 5, 3);
        tables.fdb.insert((3, MAC), 5);
        assert_eq!(leaves(&tables, 4), Ok(("eth1", vec![[0x8100, 10], [0x8100, 20]])));
    }

    #[test]
    fn bond_is_left_by_its_active_port_or_as_a_whole() {
        let mut tables = tables();
        let bond = |mode, active| LinkKind::Bond { mode, active };
        let mode = BondMode::ActiveBackup;
        add(&mut tables, 3, "bond0", bond(mode, Some(2)));
        assert_eq!(leaves(&tables, 3), Ok(("eth1", vec![])));
        add(&mut tables, 3, "bond0", bond(mode, None));
        assert_eq!(refused(&tables, 3), "bond bond0 has no active port");
        for mode in [BondMode::Ieee8023Ad, BondMode::BalanceXor, BondMode::BalanceRr] {
            add(&mut tables, 3, "bond0", bond(mode, None));
            assert_eq!(leaves(&tables, 3), Ok(("bond0", vec![])));
            tables.links.get_mut(&3).expect("it is there").xdp_features = Some(0);
            assert!(refused(&tables, 3).contains("takes no frames from XDP"));
        }
        add(&mut tables, 3, "bond0", bond(BondMode::BalanceAlb, Some(2)));
        assert!(refused(&tables, 3).contains("balance-alb"));
    }

    #[test]
    fn device_without_ndo_xdp_xmit_is_refused_unless_the_program_runs_on_it() {
        let mut tables = tables();
        tables.links.values_mut().for_each(|one| one.xdp_features = Some(xdp_act::BASIC));
        assert_eq!(leaves(&tables, 1), Ok(("eth0", vec![])));
        assert!(refused(&tables, 2).starts_with("eth1 takes no frames from XDP"));
        // Before Linux 6.3 only kinds are known.
        tables.links.values_mut().for_each(|one| one.xdp_features = None);
        assert_eq!(leaves(&tables, 2), Ok(("eth1", vec![])));
        add(&mut tables, 3, "vx0", LinkKind::Virtual("vxlan"));
        tables.links.get_mut(&3).expect("it is there").xdp_features = None;
        assert_eq!(refused(&tables, 3), "vx0 is of kind vxlan, which takes no frames from XDP");
    }

    #[test]
    fn device_that_loses_ndo_xdp_xmit_for_a_moment_is_left_by_as_before() {
        let start = Instant::now();
        let mut tables = tables();
        let kept = tables.links.clone();
        let mut lost = kept.clone();
        lost.values_mut().for_each(|one| one.xdp_features = Some(xdp_act::BASIC));
        let mut read = |links: &BTreeMap<u32, Link>, millis| {
            tables.replace_links(links.clone(), start + Duration::from_millis(millis));
            leaves(&tables, 2).is_ok()
        };
        assert!(read(&lost, 0) && read(&lost, 4_999), "a reset");
        assert!(read(&kept, 5_000) && read(&lost, 9_000) && read(&lost, 13_999), "and another");
        assert!(!read(&lost, 14_000), "for good");
        assert!(!read(&lost, 15_000) && read(&kept, 16_000) && read(&lost, 17_000));
    }

    #[test]
    fn veth_needs_a_program_on_its_other_end() {
        let mut tables = tables();
        tables.links.get_mut(&1).expect("it is there").kind = LinkKind::Veth;
        assert_eq!(leaves(&tables, 1), Ok(("eth0", vec![])));
        tables.links.get_mut(&1).expect("it is there").xdp_features = Some(xdp_act::BASIC);
        assert!(refused(&tables, 1).ends_with("XDP: attach an XDP program to it"));
        let eth1 = tables.links.get_mut(&2).expect("it is there");
        (eth1.kind, eth1.xdp_features) = (LinkKind::Veth, Some(xdp_act::BASIC));
        assert!(refused(&tables, 2).contains("ethtool -K DEV gro on there"));
    }

    #[test]
    fn program_at_tc_sends_by_any_device_whatever_foreign_xdp_program_is_there() {
        let mut tables = tables();
        add(&mut tables, 3, "br0", LinkKind::Bridge { filters_vlans: true });
        add(&mut tables, 4, "vx0", LinkKind::Virtual("vxlan"));
        tables.links.values_mut().for_each(|one| one.xdp_features = Some(xdp_act::BASIC));
        assert!(refused(&tables, 2).starts_with("eth1 takes no frames from XDP"));
        tables.at_tc = BTreeSet::from(["eth0".into()]);
        for (top, name) in [(1, "eth0"), (2, "eth1"), (3, "br0"), (4, "vx0")] {
            assert_eq!(leaves(&tables, top), Ok((name, vec![])));
        }
    }

    #[test]
    fn program_in_the_network_stack_sends_by_any_device() {
        let mut tables = tables();
        add(&mut tables, 3, "br0", BRIDGE);
        add(&mut tables, 4, "vx0", LinkKind::Virtual("vxlan"));
        tables.links.values_mut().for_each(|one| one.xdp_features = Some(0));
        tables.links.get_mut(&1).expect("it is there").xdp_generic = true;
        assert_eq!(leaves(&tables, 3), Ok(("br0", vec![])));
        assert_eq!(leaves(&tables, 4), Ok(("vx0", vec![])));
    }
}
