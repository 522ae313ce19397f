//! GRO on an interface whose program runs in generic mode: behind it, in the network stack.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::trunks::offloads;

/// The offload, as `ethtool -k` names it in netlink; `gro` for `ethtool -K`.
pub const GRO: &str = "rx-gro";

/// Whether GRO is on; not where the kernel does not say.
#[must_use]
pub fn is_on(interface: &str) -> bool {
    merges(offloads(interface).as_ref())
}

fn merges(offloads: Option<&BTreeSet<String>>) -> bool {
    offloads.is_some_and(|on| on.contains(GRO))
}

/// Refuses generic mode on an interface whose GRO is on; `insist` is how the operator has it nevertheless.
///
/// # Errors
///
/// If GRO is on.
pub fn refuse(interface: &str, insist: &str) -> Result<()> {
    judge(interface, offloads(interface).as_ref(), insist)
}

fn judge(interface: &str, offloads: Option<&BTreeSet<String>>, insist: &str) -> Result<()> {
    if merges(offloads) {
        bail!(
            "generic XDP on {interface} would see packets after GRO has merged them, which are too big to \
             be sent on, and kernels have panicked over such packets; \
             `ethtool -K {interface} gro off`, or {insist}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_mode_is_refused_where_gro_is_known_to_be_on() {
        let on = |names: &[&str]| Some(names.iter().map(|&name| name.into()).collect());
        let refused = judge("eth0", on(&["rx-lro", "rx-gro"]).as_ref(), "insist");
        let said = refused.expect_err("GRO is on").to_string();
        assert!(said.ends_with("`ethtool -K eth0 gro off`, or insist"), "{said}");
        for offloads in [None, on(&[]), on(&["rx-lro", "rx-gro-hw", "rx-gro-list"])] {
            judge("eth0", offloads.as_ref(), "insist").expect("GRO is off, or nobody knows");
        }
    }
}
