//! Checks of the interfaces that packets come in by.

use std::collections::BTreeSet;

use lb_config::Config;
use lb_datapath::probe::Hook;
use lb_model::{
    settings::{Attach, XdpModes},
    units::counted,
};
use lb_netlink::{LinkLayer, generic::xdp_act, gro, trunks::STRIPPING};

use super::{
    Finding,
    snapshot::{InterfaceSnapshot, NodeSnapshot},
};

/// The configured interfaces that exist.
fn configured(snapshot: &NodeSnapshot) -> impl Iterator<Item = (&str, &InterfaceSnapshot)> {
    let names = snapshot.config.iter().flat_map(|config| &config.interfaces);
    names.filter_map(|name| Some((name.as_str(), snapshot.interfaces.get(name)?)))
}

pub(super) fn there(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "interface";
    let names = snapshot.config.iter().flat_map(|config| &config.interfaces);
    let check = |name: &String| match snapshot.interfaces.get(name) {
        None => {
            let others: Vec<_> =
                snapshot.interfaces.iter().filter(|(_, one)| !one.loopback).collect();
            let others: Vec<_> = others.iter().map(|(name, _)| name.as_str()).collect();
            let mut finding = Finding::error(
                CHECK,
                format!("{name} does not exist; there are {}", others.join(", ")),
                "packets for the VIPs come in by it",
            );
            if let [only] = *others {
                let file = snapshot.file.display();
                finding = finding.fixed_by(format!("sed -i 's/\\b{name}\\b/{only}/' {file}"));
            }
            finding
        }
        Some(interface) if !interface.up => Finding::error(
            CHECK,
            format!("{name} is down, or has no carrier"),
            "packets for the VIPs come in by it",
        )
        .fixed_by(format!("ip link set {name} up")),
        Some(interface) => Finding::ok(CHECK, format!("{name} is up, MTU {}", interface.mtu)),
    };
    names.map(check).collect()
}

pub(super) fn program(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "program";
    let check = |(name, interface): (&str, &InterfaceSnapshot)| match &interface.program {
        Some(found) if !found.ours => Finding::error(
            CHECK,
            format!("{name} has {}, which is not the balancer's", found.name),
            "an interface has room for one, and lbd leaves somebody else's alone",
        )
        .fixed_by(match found.name.contains("`decap") {
            true => format!("lbctl decap detach --dev {name}"),
            false => format!("ip link set dev {name} xdp off"),
        }),
        Some(found) if found.hook == Hook::Tc => {
            Finding::ok(CHECK, format!("{name}: the balancer runs at tc, before the network stack"))
        }
        Some(found) if found.hook == Hook::Generic => Finding::warning(
            CHECK,
            format!("{name}: the balancer runs in the network stack (generic XDP)"),
            "every packet costs several times as much as in the driver",
        ),
        Some(_) => Finding::ok(CHECK, format!("{name}: the balancer runs in the driver")),
        None if snapshot.daemon.is_some() => Finding::error(
            CHECK,
            format!("{name}: lbd runs, and its program is not there"),
            "nothing is balanced; lbd's log has the reason",
        )
        .fixed_by("systemctl restart lbd"),
        None => Finding::ok(CHECK, format!("{name} is free for the balancer")),
    };
    configured(snapshot).map(check).collect()
}

/// An interface that can't have XDP, and is to have nothing else.
fn without_xdp(snapshot: &NodeSnapshot, config: &Config, name: &str, found: String) -> Finding {
    let why = "lbd refuses to start: `attach` allows nothing but XDP";
    let finding = Finding::error(DRIVER, found, why);
    if config.hooks.by_interface.contains_key(name) {
        return finding;
    }
    let file = snapshot.file.display();
    finding.fixed_by(format!("sed -i 's/^attach *=.*/attach = \"auto\"/' {file}"))
}

/// The name of the check by [`driver`].
const DRIVER: &str = "driver";

pub(super) fn driver(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = DRIVER;
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let check = |(name, interface): (&str, &InterfaceSnapshot)| {
        if interface.layer == LinkLayer::RawIp {
            let found = format!("{name} has no Ethernet header, which XDP needs");
            return match config.hooks.of(name) {
                Attach::Xdp => without_xdp(snapshot, config, name, found),
                Attach::Auto | Attach::Tc => {
                    Finding::ok(CHECK, format!("{found}; it gets the tc program"))
                }
            };
        }
        let Some(bits) = interface.xdp_features else {
            let found = format!(
                "{name}: the kernel does not report what the driver can do for XDP; tc is possible"
            );
            return Finding::ok(CHECK, found);
        };
        let has = |bit| bits & bit == bit;
        if !has(xdp_act::BASIC) {
            let found = format!("{name}: the driver has no native XDP");
            return match (config.hooks.of(name), config.xdp) {
                (Attach::Xdp, XdpModes::Native) => without_xdp(snapshot, config, name, found),
                (Attach::Tc, _) | (Attach::Auto, XdpModes::Native) => {
                    Finding::ok(CHECK, format!("{found}; it gets the tc program"))
                }
                _ => Finding::warning(
                    CHECK,
                    found,
                    "the network stack runs the program as generic XDP, at several times the cost",
                ),
            };
        }
        if config.hooks.of(name) == Attach::Tc {
            let found =
                format!("{name}: the driver has native XDP; it gets the tc program, as configured");
            return Finding::ok(CHECK, found);
        }
        if let Some(refused) = refused(name, interface, config.hooks.of(name), config.xdp) {
            return refused;
        }
        let lacking: Vec<_> = [
            (xdp_act::REDIRECT, "send packets on by another interface"),
            (xdp_act::NDO_XMIT, "take packets from another interface"),
        ]
        .into_iter()
        .filter(|(bit, _)| !has(*bit))
        .map(|(_, what)| what)
        .collect();
        let several = config.interfaces.len() > 1;
        if !several || lacking.is_empty() {
            let found = format!("{name}: the driver has native XDP; tc is possible, too");
            return Finding::ok(CHECK, found);
        }
        let found = format!("{name}: the driver can't {}", lacking.join(", nor "));
        Finding::warning(CHECK, found, "with several interfaces, packets may go by another one")
    };
    configured(snapshot).map(check).collect()
}

/// The largest MTU whose frames fit one buffer of a page, beside the headroom for XDP (256 bytes), what the kernel keeps
/// behind a frame (320 bytes), and Ethernet and VLAN header.
const ONE_BUFFER: u32 = 3_498;

/// Why a driver that has native XDP refuses it, as far as that can be seen, and the commands that fix it.
fn obstacles(name: &str, interface: &InterfaceSnapshot) -> (Vec<String>, Vec<String>) {
    let (mut why, mut fix) = (Vec::new(), Vec::new());
    let mtu = interface.mtu;
    if mtu > ONE_BUFFER && interface.xdp_features.is_some_and(|bits| bits & xdp_act::RX_SG == 0) {
        why.push(format!(
            "MTU {mtu}, and the driver does not report XDP for frames of several buffers (rx-sg)"
        ));
        fix.push(format!("ip link set dev {name} mtu {ONE_BUFFER}"));
    }
    let merging = interface.offloads.as_ref().map(|on| merged_by(on, &MERGERS));
    if let Some(merging) = merging.filter(|merging| !merging.is_empty()) {
        why.push(format!("it merges packets in hardware ({})", merging.join(", ")));
        fix.push(switched_off(name, &merging));
    }
    (why, fix)
}

/// The finding for a driver that has native XDP and has refused it, or may.
fn refused(
    name: &str,
    interface: &InterfaceSnapshot,
    attach: Attach,
    modes: XdpModes,
) -> Option<Finding> {
    const CHECK: &str = "driver";
    let ours = interface.program.as_ref().filter(|program| program.ours);
    if modes == XdpModes::Generic || ours.is_some_and(|program| program.hook == Hook::Native) {
        return None;
    }
    let (why, mut fix) = obstacles(name, interface);
    let why = why.join("; ");
    let gets_tc = attach == Attach::Auto && modes == XdpModes::Native;
    let finding = if ours.is_some_and(|program| program.hook == Hook::Tc) {
        let seen = if why.is_empty() { "lbd's log has its reason".into() } else { why };
        let found = format!(
            "{name}: the driver has native XDP, and the interface has tc, so it refused: {seen}"
        );
        fix.push("systemctl restart lbd".into());
        Finding::warning(CHECK, found, "tc costs more for each packet; a start tries XDP again")
    } else if why.is_empty() {
        return None;
    } else {
        let found = format!("{name}: the driver has native XDP, and may refuse it: {why}");
        let then = match (gets_tc, attach) {
            (true, _) => "the interface gets the tc program then, which costs more for each packet",
            (false, Attach::Xdp) if modes == XdpModes::Native => "lbd does not start then",
            _ => "the network stack runs the program then, at several times the cost",
        };
        Finding::warning(CHECK, found, then)
    };
    Some(if fix.is_empty() { finding } else { finding.fixed_by(fix.join(" && ")) })
}

pub(super) fn channels(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "queues";
    let cpus = snapshot.cpus;
    let check = |(name, interface): (&str, &InterfaceSnapshot)| {
        let channels = interface.channels?;
        let (kind, now, most) = match channels.combined_max {
            0 => ("rx", channels.rx, channels.rx_max),
            most => ("combined", channels.combined, most),
        };
        let wanted = cpus.min(most);
        let found = format!("{name} has {} for {}", counted(now, "queue"), counted(cpus, "CPU"));
        Some(if now < wanted {
            let why = "only as many CPUs balance as there are queues";
            Finding::warning(CHECK, found, why)
                .fixed_by(format!("ethtool -L {name} {kind} {wanted}"))
        } else if now < cpus {
            Finding::ok(CHECK, format!("{found}, which is all that it can have"))
        } else {
            Finding::ok(CHECK, found)
        })
    };
    configured(snapshot).filter_map(check).collect()
}

/// Offloads that merge packets before the program sees them, and ethtool's name for each.
const MERGERS: [(&str, &str); 2] = [LRO, ("rx-gro-hw", "rx-gro-hw")];
/// The one whose packets can't be cut again, so that tc can't send them on either.
const LRO: (&str, &str) = ("rx-lro", "lro");

/// Those of them that are on, by ethtool's names.
fn merged_by(on: &BTreeSet<String>, mergers: &[(&str, &'static str)]) -> Vec<&'static str> {
    mergers.iter().filter(|(feature, _)| on.contains(*feature)).map(|(_, word)| *word).collect()
}

fn switched_off(name: &str, merging: &[&str]) -> String {
    let off: Vec<_> = merging.iter().map(|word| format!("{word} off")).collect();
    format!("ethtool -K {name} {}", off.join(" "))
}

pub(super) fn offloads(snapshot: &NodeSnapshot) -> Vec<Finding> {
    let why =
        "the program would see packets larger than the link takes; drivers refuse XDP with it";
    let is_vlan = |interface: &InterfaceSnapshot| interface.kind.as_deref() == Some("vlan");
    let vlans = snapshot.interfaces.values().any(is_vlan);
    configured(snapshot)
        .flat_map(|(name, interface)| {
            let tags = if vlans { stripping(name, interface) } else { None };
            let merging = if is_at_tc(snapshot, name, interface) {
                merging_by(&[LRO], name, interface, "tc can't send on what LRO has merged")
            } else {
                merging(name, interface, why)
            };
            [merging, gathering(name, interface), tags]
        })
        .flatten()
        .collect()
}

/// Whether an interface has the tc program, or gets it because it is configured.
fn is_at_tc(snapshot: &NodeSnapshot, name: &str, interface: &InterfaceSnapshot) -> bool {
    match interface.program.as_ref().filter(|program| program.ours) {
        Some(program) => program.hook == Hook::Tc,
        None => snapshot.config.as_ref().is_ok_and(|config| config.hooks.of(name) == Attach::Tc),
    }
}

/// Whether interfaces below merge packets before a program in the network stack sees them.
fn gathering(name: &str, interface: &InterfaceSnapshot) -> Option<Finding> {
    let is_generic =
        interface.program.as_ref().is_some_and(|program| program.hook == Hook::Generic);
    let below = &interface.gro_below;
    (is_generic && !below.is_empty()).then(|| {
        Finding::error(
            "offloads",
            format!(
                "{name}: the balancer runs in the network stack, after GRO of {}",
                below.join(", ")
            ),
            "what is merged is too big for the way to a backend; clients get ICMP errors, and stall. lbd would \
             refuse to attach here anew, unless `allow_generic_gro = true`",
        )
        .fixed_by(gro::fix(below))
    })
}

/// Whether an interface takes VLAN tags off.
fn stripping(name: &str, interface: &InterfaceSnapshot) -> Option<Finding> {
    interface.offloads.as_ref()?.contains(STRIPPING).then(|| {
        Finding::warning(
            "offloads",
            format!("{name} takes VLAN tags off before the program sees them: rxvlan"),
            "ICMP errors for packets of a VLAN leave without its tag, so path MTU discovery fails there",
        )
        .fixed_by(format!("ethtool -K {name} rxvlan off"))
    })
}

/// Whether an interface merges packets in hardware, and why that matters to a program on it; none if
/// its offloads are not known.
pub(super) fn merging(name: &str, interface: &InterfaceSnapshot, why: &str) -> Option<Finding> {
    merging_by(&MERGERS, name, interface, why)
}

fn merging_by(
    mergers: &[(&str, &'static str)],
    name: &str,
    interface: &InterfaceSnapshot,
    why: &str,
) -> Option<Finding> {
    const CHECK: &str = "offloads";
    let merging = merged_by(interface.offloads.as_ref()?, mergers);
    if merging.is_empty() {
        let all = mergers == MERGERS.as_slice();
        let what = if all { "no packets in hardware" } else { "no packets by LRO" };
        return Some(Finding::ok(CHECK, format!("{name} merges {what}")));
    }
    let found = format!("{name} merges packets in hardware: {}", merging.join(", "));
    Some(Finding::error(CHECK, found, why).fixed_by(switched_off(name, &merging)))
}
