//! The socket buffer that a tc program is called for: its fields, and the kernel's functions that change it.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use lb_common::{nat::Covering, packet::ethernet, rewrite::fold};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16, and stable kernels before it).
const BPF_F_IPV6: u64 = 1 << 7;

/// A socket buffer. Code that changes one must make a new [`SkbFrame`](crate::frame::SkbFrame) of it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Skb(*mut __sk_buff);

/// One of an interface without a link layer, which begins with its IP header.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawSkb(pub Skb);

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            #[must_use]
            #[inline(always)]
            pub fn $name(self) -> u32 {
                // SAFETY: the pointer is the one that the kernel passed in.
                unsafe { (*self.0).$name }
            }
        )+
    };
}

impl Skb {
    /// The one that the program was called for.
    #[must_use]
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// The program's context.
    #[must_use]
    #[inline(always)]
    pub fn context(self) -> TcContext {
        TcContext::new(self.0)
    }

    fields! {
        /// Address of the first buffer.
        data,
        /// Address behind it.
        data_end,
        /// Bytes of payload of each packet that the frame leaves in; 0 if it is one packet.
        gso_size,
        /// Index of the interface.
        ifindex,
        /// Not 0: there is a VLAN tag in the metadata.
        vlan_present,
        /// Its TPID, in network order.
        vlan_proto,
        /// Its priority and VLAN id.
        vlan_tci,
    }

    /// Bytes of the frame, in all buffers.
    #[must_use]
    #[inline(always)]
    pub fn total(self) -> u32 {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { (*self.0).len }
    }

    /// Copies the bytes at `off`, in whatever buffer they are; false if there are not so many.
    #[inline(always)]
    pub fn load(self, off: usize, to: &mut [u8]) -> bool {
        let (bytes, len) = (to.as_mut_ptr().cast(), to.len() as u32);
        // SAFETY: the pointer is the one that the kernel passed in, and `to` has room for its length.
        unsafe { bpf_skb_load_bytes(self.0.cast_const().cast(), off as u32, bytes, len) == 0 }
    }

    /// Moves the first `len` bytes into the first buffer; false if the kernel can't.
    #[inline(always)]
    pub fn pull(self, len: u32) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_pull_data(self.0, len) == 0 }
    }

    /// Makes room for `bytes`, which are zero, behind the link layer's header, which must have no tags. `flags` are
    /// `BPF_F_ADJ_ROOM_*`.
    #[inline(always)]
    pub fn make_room(self, bytes: usize, flags: u32) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_adjust_room(self.0, bytes as i32, BPF_ADJ_ROOM_MAC, flags.into()) == 0 }
    }

    /// Puts an Ethernet header of zeros, without tags, before a frame that begins with its IP header; false if the kernel
    /// can't.
    #[inline(always)]
    pub fn push_link(self) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_change_head(self.0, ethernet::LEN as u32, 0) == 0 }
    }

    /// Cuts the frame to its first `len` bytes, in one buffer and no segments; false if the kernel can't.
    #[inline(always)]
    pub fn truncate(self, len: usize) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_change_tail(self.0, len as u32, 0) == 0 }
    }

    /// Adds a VLAN tag as the outermost one: `kind` is its TPID in network order.
    #[inline(always)]
    pub fn push_tag(self, kind: u16, tci: u16) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_vlan_push(self.0, kind, tci) == 0 }
    }

    /// Takes the outermost VLAN tag off. The kernel moves the next one into the metadata, if there is one.
    #[inline(always)]
    pub fn pop_tag(self) -> bool {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_skb_vlan_pop(self.0) == 0 }
    }

    /// Keeps the sum of the packet true that a NIC may have computed (`CHECKSUM_COMPLETE`): words whose sum is `added` are
    /// in the place of others whose sum was `removed`.
    #[inline(always)]
    pub fn update_sum(self, added: u32, removed: u32) {
        let difference = fold(u32::from(fold(added)) + u32::from(!fold(removed)));
        // The kernel's sum is of words in the order of memory. It refuses where there is none.
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_csum_update(self.0, difference.swap_bytes().into()) };
    }

    /// Updates a checksum at `at` by [differences](lb_common::nat::difference), of the addresses in the pseudo-header and of
    /// what it covers itself; of UDP, 0 means that there is none. False if the frame does not hold it.
    ///
    /// In a local sender's packet the checksum may not be computed yet, and covers the pseudo-header alone
    /// (`CHECKSUM_PARTIAL`).
    #[inline(always)]
    pub fn update_checksum(self, at: usize, pseudo: u32, covered: u32, of: Covering) -> bool {
        let flags = if of.is_udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // The kernel's sums are of words in the order of memory.
        let word = |difference| u64::from(fold(difference).swap_bytes());
        let update = |difference, flags| {
            // SAFETY: the pointer is the one that the kernel passed in.
            unsafe { bpf_l4_csum_replace(self.0, at as u32, 0, difference, flags) == 0 }
        };
        let for_addresses = flags | u64::from(BPF_F_PSEUDO_HDR);
        if pseudo != 0 && of.v6 && !update(word(pseudo), for_addresses | BPF_F_IPV6) {
            // Kernels without the flag take the change off the sum of the packet (`CHECKSUM_COMPLETE`) as if an IPv4 header's
            // own checksum had changed with the addresses.
            if !update(word(pseudo), for_addresses) {
                return false;
            }
            self.update_sum(pseudo, 0);
        }
        if pseudo != 0 && !of.v6 && !update(word(pseudo), for_addresses) {
            return false;
        }
        update(word(covered), flags)
    }

    /// Has the kernel send the frame by another interface, with the MAC address of the next hop, which it resolves; what the
    /// program has to return (Linux 5.10).
    #[inline(always)]
    pub fn redirect_to_neighbour(self, ifindex: u32) -> u32 {
        // SAFETY: the helper checks the index itself; without parameters it looks up the route of the packet.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as u32 }
    }

    /// The pointer that the kernel passed in.
    #[must_use]
    #[inline(always)]
    pub fn as_ptr(self) -> *mut core::ffi::c_void {
        self.0.cast()
    }

    /// Has the kernel send the frame by another interface, or back by this one; what the program has to return.
    #[inline(always)]
    pub fn redirect(self, ifindex: u32) -> u32 {
        // SAFETY: the helper checks the index itself.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }

    /// Has the frame come in by an interface, as if it had arrived there; what the program has to return.
    #[inline(always)]
    pub fn redirect_to_ingress(self, ifindex: u32) -> u32 {
        // SAFETY: the helper checks the index itself.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as u32 }
    }
}
