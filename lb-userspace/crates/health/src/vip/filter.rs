//! Filters of received packets, in classic BPF (Linux, Documentation/networking/filter.rst): the
//! kernel drops packets that no flow waits for, before they cost a wakeup.

use lb_common::packet::number;

/// The kernel takes no longer program (`BPF_MAXINSNS`).
const MAX_LEN: usize = 4096;
/// Addresses that are compared one by one; more are divided by an ordering first, so that a packet
/// meets few comparisons.
const LEAF: usize = 8;

/// Where the kernel shows what the link layer thinks of a packet (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and
/// what it thinks of one for this host. A switch may flood those of others.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
const TO_THIS_HOST: u32 = 0;

/// All of a packet.
const ALL: u32 = u32::MAX;

// linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// One instruction: if the condition of `code` holds for `value`, `yes` instructions are skipped,
/// else `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub yes: u8,
    pub no: u8,
    pub value: u32,
}

pub(super) type Program = Vec<Instruction>;

const fn op(code: u16, value: u32) -> Instruction {
    test(code, value, 0, 0)
}

const fn test(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code, yes, no, value }
}

/// Takes nothing.
pub(super) fn nothing() -> Program {
    vec![op(RETURN, 0)]
}

/// Takes the unfragmented TCP, UDP and ICMP packets from these addresses, of packets that begin
/// with the IPv4 header.
pub(super) fn from_v4(sources: impl IntoIterator<Item = [u8; 4]>) -> Program {
    let start = [
        op(LOAD_WORD, PACKET_TYPE),
        test(JUMP_EQUAL, TO_THIS_HOST, 1, 0),
        op(RETURN, 0),
        op(LOAD_BYTE, 9),
        test(JUMP_EQUAL, u32::from(number::TCP), 3, 0),
        test(JUMP_EQUAL, u32::from(number::UDP), 2, 0),
        test(JUMP_EQUAL, u32::from(number::ICMP), 1, 0),
        op(RETURN, 0),
        op(LOAD_HALF, 6),
        // More fragments, or an offset.
        test(JUMP_SET, 0x3fff, 0, 1),
        op(RETURN, 0),
        op(LOAD_WORD, 12),
    ];
    among(&start, sources.into_iter().map(u32::from_be_bytes).collect())
}

/// Takes the TCP, UDP and ICMPv6 packets without extension headers from these addresses, and from
/// those with the same low 32 bits, of packets that begin with the IPv6 header.
pub(super) fn from_v6(sources: impl IntoIterator<Item = [u8; 16]>) -> Program {
    let start = [
        op(LOAD_WORD, PACKET_TYPE),
        test(JUMP_EQUAL, TO_THIS_HOST, 1, 0),
        op(RETURN, 0),
        op(LOAD_BYTE, 6),
        test(JUMP_EQUAL, u32::from(number::TCP), 3, 0),
        test(JUMP_EQUAL, u32::from(number::UDP), 2, 0),
        test(JUMP_EQUAL, u32::from(number::ICMPV6), 1, 0),
        op(RETURN, 0),
        op(LOAD_WORD, 20),
    ];
    let low = sources.into_iter().map(|source| u128::from_be_bytes(source) as u32);
    among(&start, low.collect())
}

/// `start`, which loads a word, and then the test whether it is one of `values`. With more of
/// them than a program has room for, all packets are taken that `start` lets through: what is taken
/// in vain costs time and no more.
fn among(start: &[Instruction], mut values: Vec<u32>) -> Program {
    if values.is_empty() {
        return nothing();
    }
    values.sort_unstable();
    values.dedup();
    let mut program = start.to_vec();
    search(&values, &mut program);
    if program.len() > MAX_LEN { any(start) } else { program }
}

/// `start`, and all that it lets through.
fn any(start: &[Instruction]) -> Program {
    let mut program = start.to_vec();
    program.push(op(RETURN, ALL));
    program
}

/// The same filter without a look at the sources, for a kernel that has no room for the long one
/// (`net.core.optmem_max`).
pub(super) fn widened(program: &Program) -> Program {
    let start = program.iter().rposition(|one| one.code == LOAD_WORD);
    start.map_or_else(|| program.clone(), |last| any(&program[..last]))
}

fn search(sorted: &[u32], program: &mut Program) {
    if sorted.len() <= LEAF {
        let count = sorted.len() as u8;
        // Behind the last comparison: not found, found.
        let comparisons = sorted.iter().zip((1..=count).rev());
        program.extend(comparisons.map(|(value, found)| test(JUMP_EQUAL, *value, found, 0)));
        program.extend([op(RETURN, 0), op(RETURN, ALL)]);
        return;
    }
    let (low, high) = sorted.split_at(sorted.len() / 2);
    let last_low = low[low.len() - 1];
    let mut below = Vec::new();
    search(low, &mut below);
    // The jumps of a comparison reach 255 instructions; a jump without one, any.
    program.push(test(JUMP_GREATER, last_low, 0, 1));
    program.push(op(JUMP, below.len() as u32));
    program.append(&mut below);
    search(high, program);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::{SockFilter, SockRef};

    use super::*;

    /// Which of the packets the kernel lets through.
    fn let_through(program: &Program, packets: &[Vec<u8>]) -> Vec<usize> {
        let (near, far) = UnixDatagram::pair().unwrap();
        let filter: Vec<_> =
            program.iter().map(|i| SockFilter::new(i.code, i.yes, i.no, i.value)).collect();
        SockRef::from(&far).attach_filter(&filter).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut passed = Vec::new();
        let mut buffer = [0; 128];
        for (number, packet) in packets.iter().enumerate() {
            // A packet that the filter refuses is an error of the sender's.
            let _ = near.send(packet);
            if let Ok(length) = far.recv(&mut buffer) {
                assert_eq!(&buffer[..length], packet, "all of it");
                passed.push(number);
            }
        }
        passed
    }

    fn v4(source: [u8; 4], proto: u8, fragment: u16) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = proto;
        packet[12..16].copy_from_slice(&source);
        packet
    }

    fn v6(source: [u8; 16], next: u8) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6] = next;
        packet[8..24].copy_from_slice(&source);
        packet
    }

    #[test]
    fn takes_whole_packets_of_known_protocols_from_a_vip() {
        let (vip, other) = ([10, 0, 0, 100], [10, 0, 0, 101]);
        let packets = [
            v4(vip, 6, 0x4000),
            v4(vip, 17, 0),
            v4(vip, 1, 0),
            v4(vip, 47, 0),
            v4(other, 6, 0),
            v4(vip, 6, 0x2000),
            v4(vip, 6, 1),
            v4([100, 0, 0, 10], 6, 0),
            vec![0x45; 9],
        ];
        assert_eq!(let_through(&from_v4([vip]), &packets), [0, 1, 2]);
    }

    #[test]
    fn takes_ipv6_by_the_low_bits_of_the_source() {
        let mut vip = [0xfd; 16];
        vip[12..].copy_from_slice(&[0, 0, 1, 0]);
        let mut other = vip;
        other[15] = 1;
        let mut alike = vip;
        alike[0] = 0;
        let packets =
            [v6(vip, 6), v6(other, 6), v6(alike, 6), v6(vip, 44), v6(vip, 17), v6(vip, 58)];
        assert_eq!(let_through(&from_v6([vip]), &packets), [0, 2, 4, 5]);
    }

    #[test]
    fn finds_every_one_of_many_vips_and_no_other() {
        for count in [1_u32, 7, 8, 9, 64, 255, 512] {
            let vips = (0..count).map(|n| (0x7fff_ff00 + 3 * n).to_be_bytes());
            let program = from_v4(vips);
            assert!(program.len() < 1_200, "{}", program.len());
            let packets: Vec<_> =
                (0..3 * count + 3).map(|n| v4((0x7fff_ff00 - 1 + n).to_be_bytes(), 6, 0)).collect();
            let all: Vec<_> = (0..count as usize).map(|n| 3 * n + 1).collect();
            assert_eq!(let_through(&program, &packets), all, "{count} VIPs");
        }
    }

    #[test]
    fn takes_nothing_without_vips() {
        let packets = [v4([0; 4], 6, 0), v4([10, 0, 0, 1], 17, 0)];
        assert_eq!(let_through(&from_v4([]), &packets), [0; 0]);
        assert_eq!(let_through(&from_v6([]), &packets), [0; 0]);
        assert_eq!(let_through(&nothing(), &packets), [0; 0]);
        assert_eq!(widened(&nothing()), nothing());
    }

    #[test]
    fn looks_at_no_source_where_there_are_too_many() {
        let packets = [v4([1, 2, 3, 4], 6, 0), v4([1, 2, 3, 4], 6, 1), v4([1, 2, 3, 4], 47, 0)];
        let program = from_v4((0..10_000_u32).map(u32::to_be_bytes));
        assert_eq!(let_through(&program, &packets), [0]);
        assert_eq!(let_through(&widened(&from_v4([[9; 4]])), &packets), [0]);
    }
}
