//! Filters of received packets, in classic BPF (Linux, Documentation/networking/filter.rst): a packet
//! that is not for this node wakes no thread.

use std::{collections::BTreeSet, io, net::IpAddr, num::NonZeroU8};

use lb_common::packet::number;
use lb_model::router::Family;
use socket2::{SockFilter, Socket};

/// Where the kernel shows what the link layer thinks of a frame (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and
/// what it thinks of one that this node sends.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
const OUTGOING: u32 = 4;

/// Where the header of IP begins, whatever the packet begins with (`SKF_NET_OFF`).
const NETWORK_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();

/// All of a packet.
const ALL: u32 = u32::MAX;

/// The kernel takes no program of more than 4,096 instructions (`BPF_MAXINSNS`).
const MAX_VALUES: usize = 2_000;

// linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
/// The byte at X and so many.
const LOAD_BYTE_AT_X: u16 = 0x50;
/// X becomes the length of the IPv4 header that begins there.
const HEADER_LEN_TO_X: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

pub(super) type Program = Vec<SockFilter>;

const fn op(code: u16, value: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, value)
}

/// Takes nothing.
pub(super) fn nothing() -> Program {
    vec![op(RETURN, 0)]
}

/// From where messages come that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distance {
    /// Where peers are: the TTL or hop limit is high enough.
    Near,
    /// Farther away.
    Far,
}

/// Takes the VRRP messages of these virtual routers, each with the least TTL or hop limit of a peer. For a
/// raw socket a packet begins with the header of IPv4, but behind that of IPv6.
pub(super) fn vrids(
    v6: bool,
    distance: Distance,
    vrids: impl IntoIterator<Item = (NonZeroU8, u8)>,
) -> Program {
    let mut program = if v6 {
        vec![op(LOAD_BYTE, 1)]
    } else {
        vec![op(HEADER_LEN_TO_X, 0), op(LOAD_BYTE_AT_X, 1)]
    };
    let hops = NETWORK_HEADER + if v6 { 7 } else { 8 };
    let (near, far) = match distance {
        Distance::Near => (0, 1),
        Distance::Far => (1, 0),
    };
    for (vrid, least) in vrids {
        program.extend([
            SockFilter::new(JUMP_EQUAL, 0, 4, vrid.get().into()),
            op(LOAD_BYTE, hops),
            SockFilter::new(JUMP_AT_LEAST, near, far, least.into()),
            op(RETURN, ALL),
            op(RETURN, 0),
        ]);
    }
    program.push(op(RETURN, 0));
    program
}

/// Takes the ARP messages that these addresses are the sender's of, or the neighbour advertisements
/// whose targets have the low 32 bits of these addresses; all of them if there are too many. Frames
/// begin with the header of Ethernet.
pub(super) fn claims(family: Family, addresses: impl IntoIterator<Item = IpAddr>) -> Program {
    let mut program = Program::new();
    refuse_unless(&mut program, LOAD_WORD, PACKET_TYPE, Condition::Not(OUTGOING));
    if family == Family::V6 {
        refuse_unless(&mut program, LOAD_BYTE, 14 + 6, Condition::Is(number::ICMPV6.into()));
        refuse_unless(&mut program, LOAD_BYTE, 14 + 40, Condition::Is(136));
    }
    let at = match family {
        Family::V4 => 14 + 14,
        Family::V6 => 14 + 40 + 8 + 12,
    };
    let words: BTreeSet<u32> = (addresses.into_iter())
        .map(|address| match address {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        })
        .collect();
    if words.len() > MAX_VALUES {
        program.push(op(RETURN, ALL));
    } else {
        program.push(op(LOAD_WORD, at));
        take_any(&mut program, words.into_iter());
    }
    program
}

enum Condition {
    Is(u32),
    Not(u32),
}

fn refuse_unless(program: &mut Program, load: u16, at: u32, condition: Condition) {
    program.push(op(load, at));
    program.push(match condition {
        Condition::Is(value) => SockFilter::new(JUMP_EQUAL, 1, 0, value),
        Condition::Not(value) => SockFilter::new(JUMP_EQUAL, 0, 1, value),
    });
    program.push(op(RETURN, 0));
}

/// Takes the packet if what was loaded is one of these, and else refuses it.
fn take_any(program: &mut Program, values: impl Iterator<Item = u32>) {
    for value in values {
        program.push(SockFilter::new(JUMP_EQUAL, 0, 1, value));
        program.push(op(RETURN, ALL));
    }
    program.push(op(RETURN, 0));
}

/// Gives a socket its filter in place of the one that it has.
pub(super) fn attach(socket: &Socket, program: &Program) -> io::Result<()> {
    socket.attach_filter(program)
}
