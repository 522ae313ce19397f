//! Checks of mode `nat`: answers of backends come back to this node, and it sends them on.

use lb_datapath::probe::Hook;
use lb_model::desired::Mode;

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
}

/// Packets to a backend without one of its answers: it sends them by another way.
pub(super) fn answers(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "nat_answers";
    /// So many packets do not all go to a backend that is silent for another reason: it would be down by then.
    const ENOUGH: u64 = 100;
    let check = |one: &TranslatedBackend| {
        let TranslatedBackend { service, backend, sent, returned } = one;
        if *returned > 0 || *sent < ENOUGH {
            let found =
                format!("{service}: {returned} packets of {backend} came back, {sent} went to it");
            return Finding::ok(CHECK, found);
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
