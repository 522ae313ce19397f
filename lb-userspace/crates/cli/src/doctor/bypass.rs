//! Rules of the node's firewall that are for a service, and so do not hold: XDP takes its packets before.

use std::collections::BTreeMap;

use lb_model::desired::Vips;

use super::{
    Finding,
    snapshot::{Firewall, NodeSnapshot},
};

pub(super) fn bypassed(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    const WHY: &str = "XDP takes packets for services before the firewall sees them: what these rules \
                       allow or drop is forwarded all the same; filter before this node, or on the \
                       backends";
    let (Ok(config), Firewall::Known(rules)) = (&snapshot.config, &snapshot.firewall) else {
        return Vec::new();
    };
    // Numbers of rules by chain and VIP.
    let mut found: BTreeMap<(&str, Vips), Vec<u64>> = BTreeMap::new();
    for rule in &rules.destinations {
        for service in config.desired.services.values() {
            let (vips, ports) = (service.key.vips(), service.key.ports());
            let ports = u64::from(service.key.port)..=u64::from(ports.last());
            let is_for = rule.first <= vips.last()
                && vips.first() <= rule.last
                && (rule.ports.is_empty() || rule.ports.range(ports).next().is_some());
            let handles = found.entry((&rule.chain, vips)).or_default();
            if is_for && !handles.contains(&rule.handle) {
                handles.push(rule.handle);
            }
        }
    }
    found.retain(|_, handles| !handles.is_empty());
    if found.is_empty() && !config.desired.services.is_empty() {
        return vec![Finding::ok(CHECK, "no rule that nft shows is for a service")];
    }
    let finding = |((chain, vip), handles): (&(&str, Vips), &Vec<u64>)| {
        const NAMED: usize = 8;
        let mut named: Vec<_> = handles.iter().take(NAMED).map(u64::to_string).collect();
        if handles.len() > NAMED {
            named.push(format!("{} more", handles.len() - NAMED));
        }
        let (rules, are) = if handles.len() == 1 { ("rule", "is") } else { ("rules", "are") };
        let named = named.join(", ");
        let found = format!(
            "the {rules} {named} of the chain `{chain}` (nft -a list chain {chain}) {are} for services of {vip}, \
             and {} not hold",
            if handles.len() == 1 { "does" } else { "do" }
        );
        Finding::warning(CHECK, found, WHY)
    };
    found.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::doctor::{
        Grade,
        snapshot::{Destination, Rules},
        tests::{healthy, vip},
    };
    use lb_model::desired::{Protocol, ServiceKey};

    fn rule(handle: u64, first: IpAddr, ports: &[u64]) -> Destination {
        let (chain, ports) = ("inet filter input".into(), ports.iter().copied().collect());
        Destination { chain, handle, first, last: first, ports }
    }

    fn describe(destinations: Vec<Destination>) -> Vec<(Grade, String)> {
        let rules = Rules { destinations, ..Rules::default() };
        let snapshot = NodeSnapshot { firewall: Firewall::Known(rules), ..healthy() };
        bypassed(&snapshot).into_iter().map(|one| (one.grade, one.found)).collect()
    }

    #[test]
    fn rules_for_a_service_are_named_and_those_for_other_ports_hold() {
        let nothing = [(Grade::Ok, "no rule that nft shows is for a service".to_owned())];
        assert_eq!(describe(Vec::new()), nothing);
        let other = IpAddr::from([10, 9, 9, 9]);
        assert_eq!(describe(vec![rule(4, vip(), &[22]), rule(5, other, &[])]), nothing);
        let found =
            describe(vec![rule(4, vip(), &[80]), rule(6, vip(), &[]), rule(7, vip(), &[443])]);
        let [(Grade::Warning, found)] = found.as_slice() else { panic!("{found:?}") };
        assert!(found.starts_with("the rules 4, 6 of the chain `inet filter input`"), "{found}");
        assert!(found.ends_with(&format!("are for services of {}, and do not hold", vip())));
        let IpAddr::V4(v4) = vip() else { panic!("{}", vip()) };
        let beside = IpAddr::from(std::net::Ipv4Addr::from(u32::from(v4) ^ 1));
        assert_eq!(describe(vec![rule(8, beside, &[80])]), nothing);
        let many: Vec<_> = (1..=20).map(|handle| rule(handle, vip(), &[])).collect();
        assert!(describe(many)[0].1.contains("7, 8, 12 more of"));
    }

    #[test]
    fn rules_for_some_of_a_services_vips_and_ports_are_named() {
        let mut snapshot = healthy();
        let key = |vips: &str, ports: &str| {
            ServiceKey::of(vips.parse().unwrap(), ports.parse().unwrap(), Protocol::Tcp)
        };
        let config = snapshot.config.as_mut().unwrap();
        for service in config.desired.services.values_mut() {
            service.key = key("198.51.100.16/28", "8000-8100");
        }
        let at = |last: u8| IpAddr::from([198, 51, 100, last]);
        for (vip, port, count) in [(16, 8000, 1), (31, 8100, 1), (32, 8000, 0), (20, 8101, 0)] {
            let rules = Rules { destinations: vec![rule(4, at(vip), &[port])], ..Rules::default() };
            snapshot.firewall = Firewall::Known(rules);
            let found = bypassed(&snapshot);
            let warned = found.iter().filter(|one| one.grade == Grade::Warning);
            assert_eq!(warned.count(), count, "{vip} {port}: {found:?}");
        }
    }
}
