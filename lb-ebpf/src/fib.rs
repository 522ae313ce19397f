//! The kernel's route for a packet (`bpf_fib_lookup`, Linux 4.18).

use aya_ebpf::helpers;
use core::mem::MaybeUninit;

use lb_common::{
    packet::{
        Packet,
        ipv4::{self, Ipv4},
        ipv6::Ipv6,
    },
    return_route::{Link, Wanted},
};

use crate::frame::{Context, Frame};

/// `AF_INET`.
const INET: u8 = 2;
/// `AF_INET6`.
const INET6: u8 = 10;

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const SUCCESS: i64 = 0;
/// `BPF_FIB_LKUP_RET_UNSUPP_LWT`: the route has an encapsulation.
const ENCAPSULATED: i64 = 6;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`.
const NO_NEIGH: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
const FRAG_NEEDED: i64 = 8;

/// `struct bpf_fib_lookup` of linux/bpf.h.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    tot_len: u16,
    ifindex: u32,
    flow_info: u32,
    source: [u8; 16],
    destination: [u8; 16],
    vlan: u32,
    /// Source and destination MAC address, in words: LLVM reads bytes by words that are not aligned, which the verifier refuses
    /// on the stack.
    macs: [u32; 3],
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// Where a packet leaves.
#[derive(Clone, Copy)]
pub struct Route {
    /// Index of the interface, and only with `has_neighbour` the MAC addresses.
    pub link: Link,
    /// Whether the next hop's MAC address is known.
    pub has_neighbour: bool,
    /// Whether only the node's own stack can send it: it has to be fragmented, or encapsulated.
    pub by_stack: bool,
}

/// What the route of the packet at `l3`, of `len` bytes, depends on, once its source is `source`; see [`route`].
#[inline(always)]
pub fn wanted<C: Context>(
    frame: &Frame<C>,
    (l3, v6, len): (usize, bool, u16),
    ingress: u32,
    source: &[u8; 16],
) -> Option<Wanted> {
    let (destination, class) = if v6 {
        let ip = frame.load::<Ipv6>(l3)?;
        (words(&ip.destination), ip.class())
    } else {
        let ip = frame.load::<Ipv4>(l3)?;
        ([0, u64::from(u32::from_ne_bytes(ip.destination)) << 32 | MAPPED], ip.tos)
    };
    Some(Wanted { destination, source: words(source), ingress, len, class })
}

/// What stands before the IPv4 address in the second word of an IPv4-mapped IPv6 address.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

/// An address as two words.
#[inline(always)]
fn words(address: &[u8; 16]) -> [u64; 2] {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&address[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    [word(0), word(8)]
}

/// The route of the packet at `l3`, of `len` bytes (0: its MTU is not looked at), once its source is `source` (IPv4 as an
/// IPv4-mapped IPv6 address); `None` if it has none, is for the node itself, is longer than the route takes and may not be
/// fragmented, or the node does not route (`net.ipv4.ip_forward`).
#[inline(always)]
pub fn route<C: Context>(
    frame: &Frame<C>,
    (l3, v6, len): (usize, bool, u16),
    ingress: u32,
    source: &[u8; 16],
) -> Option<Route> {
    let mut lookup = MaybeUninit::<Lookup>::zeroed();
    // SAFETY: all zero is a value of it.
    let lookup = unsafe { lookup.assume_init_mut() };
    lookup.tot_len = len;
    lookup.ifindex = ingress;
    let mut may_be_fragmented = false;
    if v6 {
        let ip = frame.load::<Ipv6>(l3)?;
        lookup.family = INET6;
        lookup.flow_info = u32::from_ne_bytes(ip.version_class_label) & u32::from_be(0x0fff_ffff);
        lookup.source = *source;
        lookup.destination = ip.destination;
    } else {
        let ip = frame.load::<Ipv4>(l3)?;
        may_be_fragmented = ip.fragment.get() & ipv4::DONT_FRAGMENT == 0;
        lookup.family = INET;
        lookup.flow_info = u32::from(ip.tos);
        let [.., a, b, c, d] = *source;
        lookup.source[0] = a;
        lookup.source[1] = b;
        lookup.source[2] = c;
        lookup.source[3] = d;
        let [a, b, c, d] = ip.destination;
        lookup.destination[0] = a;
        lookup.destination[1] = b;
        lookup.destination[2] = c;
        lookup.destination[3] = d;
    }
    let at = core::ptr::from_mut(lookup).cast();
    // SAFETY: the context is the one that the kernel passed in, and the structure has the kernel's size.
    let found = unsafe { helpers::generated::bpf_fib_lookup(frame.context(), at, 64, 0) };
    let by_stack = found == ENCAPSULATED || (found == FRAG_NEEDED && may_be_fragmented);
    if found != SUCCESS && found != NO_NEIGH && !by_stack {
        return None;
    }
    let [a, b, c] = lookup.macs;
    let link = Link {
        egress: lookup.ifindex,
        begin: u64::from(b >> 16) | u64::from(c) << 16 | u64::from(a) << 48,
        end: a >> 16 | b << 16,
    };
    Some(Route { link, has_neighbour: found == SUCCESS, by_stack })
}
