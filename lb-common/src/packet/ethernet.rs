//! Ethernet (IEEE 802.3) with up to two VLAN tags (IEEE 802.1Q).
//!
//! ```text
//!  | destination 6 | source 6 | [ TPID 2 | TCI 2 ] x 0..=2 | EtherType 2 |
//! ```

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

use super::Packet;
use crate::verdict::Pass;

/// Bytes of the header without tags.
pub const LEN: usize = 14;
/// Bytes that one VLAN tag adds.
pub const TAG_LEN: usize = 4;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// TPID of a customer tag.
pub const VLAN: u16 = 0x8100;
/// TPID of a service tag (802.1ad).
pub const QINQ: u16 = 0x88a8;

/// The addresses and the first type field.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// EtherType, or the TPID of the first tag.
    pub kind: U16,
}

/// What follows a TPID.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tag {
    /// Priority and VLAN id.
    pub tci: U16,
    /// EtherType, or the TPID of the next tag.
    pub kind: U16,
}

/// Where the network layer starts and what it is.
#[derive(Clone, Copy)]
pub struct Link {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// The EtherType behind all tags.
    pub ethertype: u16,
    /// Offset of what it names: 14, 18 or 22; 0 where there is no header.
    pub l3: usize,
}

/// Reads the link-layer header. Where there is none, the version of the IP header decides the type, and the
/// destination is all zero.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(pkt: &P) -> Result<Link, Pass> {
    if pkt.is_raw_ip() {
        // Two bytes, as the kernel's verifier learns nothing from what LLVM makes of the bounds of the first alone.
        let [first, _] = *pkt.load::<[u8; 2]>(0).ok_or(Pass::Truncated)?;
        let ethertype = match first >> 4 {
            4 => IPV4,
            6 => IPV6,
            _ => return Err(Pass::NotIp),
        };
        // As a constant it would become a part of a word in verdicts, which LLVM then copies where they were never made:
        // see `exit.rs`.
        return Ok(Link { destination: [0; 6], ethertype, l3: black_box(0) });
    }
    let header = pkt.load::<Ethernet>(0).ok_or(Pass::Truncated)?;
    let destination = header.destination;
    let kind = header.kind.get();
    if !is_tag(kind) {
        return Ok(Link { destination, ethertype: kind, l3: LEN });
    }
    let kind = pkt.load::<Tag>(LEN).ok_or(Pass::Truncated)?.kind.get();
    if !is_tag(kind) {
        return Ok(Link { destination, ethertype: kind, l3: LEN + TAG_LEN });
    }
    let kind = pkt.load::<Tag>(LEN + TAG_LEN).ok_or(Pass::Truncated)?.kind.get();
    if is_tag(kind) {
        return Err(Pass::VlanDepth);
    }
    Ok(Link { destination, ethertype: kind, l3: LEN + 2 * TAG_LEN })
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == VLAN || kind == QINQ
}
