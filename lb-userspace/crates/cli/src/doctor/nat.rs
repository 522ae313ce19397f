//! Checks of mode `nat`: answers of backends come back to this node, and it sends them on.

use lb_datapath::probe::Hook;
use lb_model::{desired::Mode, settings::LocalClients};

use super::{
    Finding,
    snapshot::{NodeSnapshot, TranslatedBackend, conf, sysctl},
};

/// The kernel forwards answers, by whose route they leave, and takes them from the VIP, as they are once they are
/// translated.
pub(super) fn forwarding(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "nat";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let used = |v4: bool| {
        let mut services = config.desired.services.values();
        services.any(|service| service.mode == Mode::Nat && service.key.vip.is_ipv4() == v4)
    };
    let mut findings = Vec::new();
    for (v4, family, name) in
        [(true, "IPv4", "net/ipv4/ip_forward"), (false, "IPv6", "net/ipv6/conf/all/forwarding")]
    {
        if !used(v4) {
            continue;
        }
        findings.push(match snapshot.sysctls.get(name) {
            Some(0) | None => Finding::error(
                CHECK,
                format!("the kernel does not forward {family}"),
                "answers of backends in mode nat end on this node",
            )
            .fixed_by(sysctl(&[(name.into(), 1)])),
            Some(_) => Finding::ok(CHECK, format!("the kernel forwards {family}")),
        });
    }
    if !used(true) {
        return findings;
    }
    // At tc the kernel resolves the next hop of what the program redirects.
    let is_at_tc = |interface: &str| {
        let program = snapshot.interfaces.get(interface).and_then(|one| one.program.as_ref());
        program.is_some_and(|program| program.ours && program.hook == Hook::Tc)
    };
    let refusing = |interface: &&String| {
        !is_at_tc(interface) && snapshot.sysctls.of_interface(interface, "accept_local") == 0
    };
    findings.extend(config.interfaces.iter().filter(refusing).map(|interface| {
        Finding::error(
            CHECK,
            format!("{interface} takes no packets from this node's own addresses, and so none from a VIP"),
            "answers of backends in mode nat whose next hop XDP does not know are lost in the kernel",
        )
        .fixed_by(sysctl(&[(conf(interface, "accept_local"), 1)]))
    }));
    findings
        .extend(config.interfaces.iter().filter_map(|interface| redirects(snapshot, interface)));
    if !config.routers.routers.is_empty() {
        findings.extend(
            config.interfaces.iter().filter_map(|interface| announces(snapshot, interface)),
        );
    }
    findings
}

/// Whether a backend on a client's link is sent away from this node.
fn redirects(snapshot: &NodeSnapshot, interface: &str) -> Option<Finding> {
    const SETTING: &str = "send_redirects";
    let of = ["all", interface];
    let on = of
        .map(|of| conf(of, SETTING))
        .into_iter()
        .filter(|name| snapshot.sysctls.get(name) == Some(1));
    let off: Vec<_> = on.map(|name| (name, 0)).collect();
    (!off.is_empty()).then(|| {
        Finding::warning(
            "nat",
            format!("{interface} sends ICMP redirects"),
            "a backend on the same link as a client gets one, and answers that client past this node from then on",
        )
        .fixed_by(sysctl(&off))
    })
}

/// Whether the node asks for a client's MAC address by the VIP, which another node may hold by then.
fn announces(snapshot: &NodeSnapshot, interface: &str) -> Option<Finding> {
    const SETTING: &str = "arp_announce";
    (snapshot.sysctls.of_interface(interface, SETTING) < 2).then(|| {
        Finding::warning(
            "nat",
            format!("{interface} may send ARP requests with the VIP as sender"),
            "a node whose lbd hangs draws clients back to itself so, from the node that took over",
        )
        .fixed_by(sysctl(&[(conf("all", SETTING), 2)]))
    })
}

/// Packets to a backend without one of its answers: it sends them by another way.
pub(super) fn answers(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "nat_answers";
    /// So many packets do not all go to a backend that is silent for another reason: it would be down by then.
    const ENOUGH: u64 = 100;
    let check = |one: &TranslatedBackend| {
        let TranslatedBackend { service, backend, interface, sent, returned } = one;
        if *returned > 0 || *sent < ENOUGH {
            let found =
                format!("{service}: {returned} packets of {backend} came back, {sent} went to it");
            return Finding::ok(CHECK, found);
        }
        // The program sees what comes by a bridge only if it is attached to that, or to all its ports.
        let is_unseen = |name: &&String| {
            let bridge = snapshot.interfaces.get(*name);
            bridge.is_some_and(|one| one.kind.as_deref() == Some("bridge") && one.program.is_none())
        };
        if let Some(bridge) = interface.as_ref().filter(is_unseen) {
            return Finding::error(
                CHECK,
                format!(
                    "{service}: {sent} packets went to {backend} by {bridge}, where the program sees no answer"
                ),
                "clients get no connection; `interfaces` needs the bridge, or each of its ports",
            );
        }
        Finding::error(
            CHECK,
            format!("{service}: {sent} packets went to {backend}, and no answer came back through this node"),
            "its clients get answers from an address that they do not know, or none; its route to them has to lead here",
        )
        .fixed_by(format!("ssh {} ip route show", backend.ip))
    };
    snapshot.translated.iter().map(check).collect()
}

/// Whether processes of this node reach services by their VIPs.
pub(super) fn local_clients(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "local_clients";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let services = config.desired.services.values();
    let (nat, others): (Vec<_>, Vec<_>) = services.partition(|service| service.mode == Mode::Nat);
    let mut findings = Vec::new();
    if !nat.is_empty() && config.local_clients != LocalClients::None {
        findings.push(match snapshot.serves_local_clients {
            true => Finding::ok(CHECK, "processes of this node reach services in mode nat by their VIPs"),
            false => Finding::warning(
                CHECK,
                "processes of this node do not reach services in mode nat by their VIPs",
                "the kernel takes what they send to a VIP for the node's own; the log of lbd says why there are no hooks",
            )
            .fixed_by("journalctl -u lbd | grep 'processes of this node'"),
        });
    }
    if !others.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "processes of this node do not reach services in the modes dsr and ipip by a VIP that it has: backends \
             answer from that address, too; they reach a backend's own address, or the VIP in mode nat",
        ));
    }
    findings
}
