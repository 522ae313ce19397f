//! GRO below an interface whose program runs in generic mode: behind it, in the network stack.
//!
//! On that interface itself the kernel leaves GRO out (`netif_elide_gro`), and turns LRO and GRO in hardware off
//! (`generic_xdp_install`). What the NICs below a VLAN, a bond or a bridge have merged comes to the program merged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::{
    query::{self, InterfaceSnapshot},
    trunks::offloads,
};

/// The offload, as `ethtool -k` names it in netlink; `gro` for `ethtool -K`.
const GRO: &str = "rx-gro";

/// The interfaces below this one whose GRO is on. What can't be found out is left out.
#[must_use]
pub fn below(interface: &str) -> Vec<String> {
    let found = query::interfaces().unwrap_or_default();
    let merges = |name: &&str| offloads(name).is_some_and(|on| on.contains(GRO));
    lower(interface, &found).into_iter().filter(merges).map(str::to_owned).collect()
}

/// The ports of a bridge or bond and what a VLAN is on, and what is below those.
pub(super) fn lower<'a>(
    interface: &str,
    found: &'a BTreeMap<String, InterfaceSnapshot>,
) -> BTreeSet<&'a str> {
    let mut all = BTreeSet::new();
    let mut above: Vec<_> = found.get(interface).into_iter().collect();
    while let Some(of) = above.pop() {
        for (name, one) in found {
            let is_below = of.vlan_on == Some(one.ifindex) || one.port_of == Some(of.ifindex);
            if is_below && all.insert(name.as_str()) {
                above.push(one);
            }
        }
    }
    all
}

/// The command that turns GRO off there.
#[must_use]
pub fn fix(below: &[String]) -> String {
    let commands: Vec<_> = below.iter().map(|name| format!("ethtool -K {name} gro off")).collect();
    commands.join(" && ")
}

/// Refuses generic mode on an interface above ones whose GRO is on; `insist` is how the operator has it nevertheless.
///
/// # Errors
///
/// If GRO is on below.
pub fn refuse(interface: &str, insist: &str) -> Result<()> {
    judge(interface, &below(interface), insist)
}

fn judge(interface: &str, below: &[String], insist: &str) -> Result<()> {
    if !below.is_empty() {
        bail!(
            "generic XDP on {interface} would see packets that GRO has merged below ({}), which are too big to be \
             sent on, and kernels have panicked over such packets; `{}`, or {insist}",
            below.join(", "),
            fix(below)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_vlan_on_a_bond_are_the_bond_and_its_ports() {
        let own = |ifindex| InterfaceSnapshot { ifindex, ..InterfaceSnapshot::default() };
        let port = |ifindex| InterfaceSnapshot { port_of: Some(9), ..own(ifindex) };
        let found = BTreeMap::from(
            [
                ("eth0", port(2)),
                ("eth1", port(3)),
                ("eth2", own(4)),
                ("bond0", own(9)),
                ("bond0.5", InterfaceSnapshot { vlan_on: Some(9), ..own(10) }),
            ]
            .map(|(name, one)| (name.to_owned(), one)),
        );
        let lower = |name| lower(name, &found).into_iter().collect::<Vec<_>>();
        assert_eq!(lower("bond0.5"), ["bond0", "eth0", "eth1"]);
        assert_eq!(lower("bond0"), ["eth0", "eth1"]);
        assert!(lower("eth0").is_empty() && lower("eth2").is_empty() && lower("eth7").is_empty());
    }

    #[test]
    fn generic_mode_is_refused_where_gro_is_on_below() {
        let refused = judge("bond0", &["eth0", "eth1"].map(str::to_owned), "insist");
        let message = refused.expect_err("GRO is on").to_string();
        let ends = "`ethtool -K eth0 gro off && ethtool -K eth1 gro off`, or insist";
        assert!(message.ends_with(ends), "{message}");
        judge("bond0", &[], "insist").expect("nothing merges packets");
    }
}
