//! VLAN tags of a socket buffer: the outermost one is in its metadata, others are in the frame.

use lb_common::packet::{Packet as _, ethernet};
use lb_ebpf::{frame::SkbFrame, skb::Skb};

/// A TPID and what follows it, as they are on the wire.
#[derive(Clone, Copy)]
pub struct Tag(u32);

impl Tag {
    const NONE: Self = Self(0);

    /// From the four bytes on the wire, read by a little-endian machine.
    #[inline(always)]
    const fn of_wire(word: u32) -> Self {
        Self(word)
    }

    /// Adds it to a frame, as the outermost one; false if that can't be done.
    #[inline(always)]
    fn push(self, skb: Skb) -> bool {
        let tci = ((self.0 >> 16) as u16).swap_bytes();
        self.0 == 0 || skb.push_tag(self.0 as u16, tci)
    }
}

/// The tags of a frame.
#[derive(Clone, Copy)]
pub struct Tags {
    outer: Tag,
    inner: Tag,
}

impl Tags {
    /// Those of a link-layer header of `L2` bytes, 18 or 22.
    #[inline(always)]
    pub fn of_header<const L2: usize>(header: &[u8; 22]) -> Self {
        let at = |at: usize| {
            Tag::of_wire(u32::from_le_bytes([
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ]))
        };
        Self { outer: at(12), inner: if L2 > 18 { at(16) } else { Tag::NONE } }
    }

    /// Those of a frame whose network layer starts at `l3`.
    #[inline(always)]
    pub fn of_frame(skb: Skb, frame: &SkbFrame, l3: usize) -> Option<Self> {
        let at = |at: usize| Some(Tag::of_wire(u32::from_le_bytes(*frame.load::<[u8; 4]>(at)?)));
        if skb.vlan_present() != 0 {
            let tci = (skb.vlan_tci() as u16).swap_bytes();
            let outer = Tag(skb.vlan_proto() & 0xffff | u32::from(tci) << 16);
            let inner = if l3 == ethernet::LEN { Tag::NONE } else { at(12)? };
            return Some(Self { outer, inner });
        }
        Some(match l3 - ethernet::LEN {
            0 => Self { outer: Tag::NONE, inner: Tag::NONE },
            4 => Self { outer: at(12)?, inner: Tag::NONE },
            _ => Self { outer: at(12)?, inner: at(16)? },
        })
    }

    /// Adds them to a frame that has none; false if that can't be done.
    #[inline(always)]
    pub fn push(self, skb: Skb) -> bool {
        self.inner.push(skb) && self.outer.push(skb)
    }
}

/// Whether a frame has more tags than are followed: those of XDP's frames, which have all of them.
#[inline(always)]
pub fn is_too_deep(skb: Skb, frame: &SkbFrame) -> bool {
    const DEEPEST: usize = ethernet::LEN + ethernet::TAG_LEN;
    skb.vlan_present() != 0 && ethernet::parse(frame).is_ok_and(|link| link.l3 > DEEPEST)
}

/// Whether a frame whose network layer starts at `l3` has any.
#[inline(always)]
pub fn any(skb: Skb, l3: usize) -> bool {
    l3 != ethernet::LEN || skb.vlan_present() != 0
}

/// Takes all tags off a frame that has one or two; false if that can't be done.
#[inline(always)]
pub fn strip(skb: Skb) -> bool {
    skb.pop_tag() && (skb.vlan_present() == 0 || skb.pop_tag())
}
