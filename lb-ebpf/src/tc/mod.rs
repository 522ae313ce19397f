//! The balancer as a tc program: the same decision on a socket buffer, before the node's own stack gets it.
//!
//! It runs where an interface has no native XDP, at the interface's ingress (TCX, Linux 6.6; the qdisc `clsact` before
//! that). What differs from XDP:
//!
//! - The kernel has taken the outermost VLAN tag out of the frame into the buffer's metadata ([`tags`]).
//! - GRO may have merged packets, and a local sender's may not be cut yet ([`lb_common::gso`]).
//! - A local sender's checksum may not be computed yet (`CHECKSUM_PARTIAL`), and the NIC may have summed up the whole
//!   packet (`CHECKSUM_COMPLETE`): code that changes the packet has to keep that sum true ([`send`], [`reply`]).
//! - An interface without a link layer has frames that begin with their IP header ([`raw_ip`]): they have programs of
//!   their own.
//! - Packets leave through the egress interface's queueing discipline, whether its driver has XDP or not.

pub mod raw_ip;
mod reply;
pub mod send;
pub mod tags;

use lb_ebpf::skb::Skb;

/// A first buffer with so many bytes has the headers of nearly every packet.
const ENOUGH: u32 = 128;
/// How many are pulled where it has fewer.
const WANTED: u32 = 256;

/// Moves headers into the first buffer, as `pull.rs` does. It is called before any pointer into the frame is made.
#[inline(always)]
pub fn pull(skb: Skb) {
    let (bytes, total) = (skb.data_end() - skb.data(), skb.total());
    if bytes < ENOUGH && bytes < total {
        // A frame that has no room for them is walked as it is.
        skb.pull(if total < WANTED { total } else { WANTED });
    }
}
