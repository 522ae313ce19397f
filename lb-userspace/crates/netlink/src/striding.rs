//! mlx5's striding receive queues. Where a page does not hold a frame of the largest size with its headroom, they hand
//! every frame, small ones too, to XDP with an empty first buffer (`mlx5e_skb_from_cqe_mpwrq_nonlinear`, Linux 6.4).
//! Programs reach the headers by `bpf_xdp_pull_data` (Linux 6.18) only. Before 6.4 the driver refuses the program.

use std::{collections::BTreeSet, fmt};

use nix::unistd::{SysconfVar, sysconf};

use super::{
    generic::query,
    gro::lower,
    query::{self, InterfaceSnapshot},
    trunks::{bits, of_name},
};

// From linux/ethtool_netlink.h.
const PRIVFLAGS_GET: u8 = 13;
const PRIVFLAGS_FLAGS: u16 = 2;

/// The switch, as `ethtool --show-priv-flags` names it; no other driver has one of this name.
const FLAG: &str = "rx_striding_rq";

/// What a page must hold beside a packet: XDP's headroom (256), Ethernet with a VLAN tag and the checksum (22), and
/// `struct skb_shared_info` (320), as `mlx5e_rx_get_linear_sz_skb` adds them up.
const BESIDE: u32 = 256 + 22 + 320;

/// An interface whose frames come with an empty first buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyFirstBuffers {
    /// Its name.
    pub interface: String,
    /// Its MTU.
    pub mtu: u32,
    /// The largest MTU at which they come otherwise.
    pub largest: u32,
}

impl EmptyFirstBuffers {
    /// The command that ends it.
    #[must_use]
    pub fn fix(&self) -> String {
        format!("ethtool --set-priv-flags {} {FLAG} off", self.interface)
    }
}

impl fmt::Display for EmptyFirstBuffers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, mtu, largest } = self;
        write!(
            out,
            "{interface}: with striding receive queues and an MTU of {mtu}, over {largest}, the driver leaves a frame's \
             first buffer empty, and this kernel lacks bpf_xdp_pull_data (Linux 6.18)"
        )
    }
}

/// `interface` and those below it whose frames come with an empty first buffer, unless programs can fill it
/// (`pulls_data`). What can't be found out is left out.
#[must_use]
pub fn empty_first_buffers(interface: &str, pulls_data: bool) -> Vec<EmptyFirstBuffers> {
    let found = query::interfaces().unwrap_or_default();
    let names = lower(interface, &found).into_iter().chain([interface]);
    let with = names.filter_map(|name| Some((name, found.get(name)?)));
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(4_096);
    with.filter_map(|(name, one)| {
        judge(name, one, &private_flags(name).unwrap_or_default(), page, pulls_data)
    })
    .collect()
}

fn judge(
    name: &str,
    interface: &InterfaceSnapshot,
    flags: &BTreeSet<String>,
    page: u32,
    pulls_data: bool,
) -> Option<EmptyFirstBuffers> {
    let largest = page.saturating_sub(BESIDE);
    let is_so = !pulls_data && flags.contains(FLAG) && interface.mtu > largest;
    is_so.then(|| EmptyFirstBuffers { interface: name.into(), mtu: interface.mtu, largest })
}

/// The switches of a driver that are on; none if it has no switches of its own.
fn private_flags(interface: &str) -> Option<BTreeSet<String>> {
    let answer = query("ethtool", PRIVFLAGS_GET, of_name(interface)).ok()?;
    Some(bits(&answer, PRIVFLAGS_FLAGS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        generic::{NESTED, attribute},
        trunks::tests::bit,
    };

    fn flags(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn headers_are_out_of_reach_with_striding_queues_a_large_mtu_and_an_old_kernel_only() {
        let judge = |mtu, names: &[&str], page, pulls_data| {
            let interface = InterfaceSnapshot { mtu, ..InterfaceSnapshot::default() };
            judge("eth0", &interface, &flags(names), page, pulls_data)
        };
        let striding = ["rx_cqe_moder", FLAG];
        let found = judge(9_000, &striding, 4_096, false).expect("it is so");
        assert_eq!((found.mtu, found.largest), (9_000, 3_498));
        assert_eq!(found.fix(), "ethtool --set-priv-flags eth0 rx_striding_rq off");
        let message = found.to_string();
        assert!(
            message.contains("MTU of 9000, over 3498,") && message.contains("Linux 6.18"),
            "{message}"
        );
        assert!(judge(3_499, &striding, 4_096, false).is_some());
        assert_eq!(judge(3_498, &striding, 4_096, false), None);
        assert_eq!(judge(9_000, &striding, 65_536, false), None);
        assert_eq!(judge(9_000, &["rx_cqe_moder"], 4_096, false), None);
        assert_eq!(judge(9_000, &striding, 4_096, true), None);
    }

    #[test]
    fn switches_of_a_driver_are_read_as_they_are_written() {
        let list = [bit("rx_cqe_moder", false), bit(FLAG, true)].concat();
        let set = attribute(3 | NESTED, &list);
        let answer = [of_name("eth0"), attribute(PRIVFLAGS_FLAGS | NESTED, &set)].concat();
        assert_eq!(bits(&answer, PRIVFLAGS_FLAGS), flags(&[FLAG]));
    }

    #[test]
    fn the_loopback_has_no_striding_queues() {
        assert_eq!(private_flags("lo"), None);
        assert_eq!(empty_first_buffers("lo", false), []);
    }
}
