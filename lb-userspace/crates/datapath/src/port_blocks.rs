//! Ranges of ports as the entries of a longest-prefix trie.

use std::{collections::BTreeSet, ops::RangeInclusive};

/// The entries by which a trie leads from a port to the id of the first of these ranges that has it: bits of the port that
/// count, the port, and the id.
pub(crate) fn of(ranges: &[(RangeInclusive<u16>, u16)]) -> Vec<(u32, u16, u16)> {
    let blocks = |(first, last, id)| {
        blocks(first, last).into_iter().map(move |(bits, port)| (bits, port, id))
    };
    segments(ranges).into_iter().flat_map(blocks).collect()
}

/// The parts of these ranges, first port, last port and id, that no range before them has.
fn segments(ranges: &[(RangeInclusive<u16>, u16)]) -> Vec<(u16, u16, u16)> {
    let ends = ranges
        .iter()
        .flat_map(|(ports, _)| [u32::from(*ports.start()), u32::from(*ports.end()) + 1]);
    let ends: Vec<u32> = ends.collect::<BTreeSet<_>>().into_iter().collect();
    let mut segments: Vec<(u16, u16, u16)> = Vec::new();
    for pair in ends.windows(2) {
        let (first, last) = (pair[0] as u16, (pair[1] - 1) as u16);
        let Some((_, id)) = ranges.iter().find(|(ports, _)| ports.contains(&first)) else {
            continue;
        };
        match segments.last_mut() {
            Some((_, end, of)) if of == id && u32::from(*end) + 1 == pair[0] => *end = last,
            _ => segments.push((first, last, *id)),
        }
    }
    segments
}

/// The fewest blocks of 2^n ports, each at a multiple of its size, that make a range: bits of the port that count, and
/// the first port.
fn blocks(first: u16, last: u16) -> Vec<(u32, u16)> {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut blocks = Vec::new();
    while at < end {
        let mut size = if at == 0 { 1 << 16 } else { at & at.wrapping_neg() };
        while size > end - at {
            size /= 2;
        }
        blocks.push((16 - size.trailing_zeros(), at as u16));
        at += size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_fewest_blocks() {
        assert_eq!(blocks(0, 65_535), [(0, 0)]);
        assert_eq!(blocks(80, 80), [(16, 80)]);
        assert_eq!(blocks(8_000, 8_100), [(10, 8_000), (11, 8_064), (14, 8_096), (16, 8_100)]);
        assert_eq!(blocks(1, 65_535).len(), 16);
        assert_eq!(blocks(1, 65_534).len(), 30);
    }

    #[test]
    fn a_port_has_the_first_range_that_it_is_in() {
        let parts = segments(&[(8..=9, 1), (4..=15, 2), (10..=10, 3), (16..=17, 2)]);
        assert_eq!(parts, [(4, 7, 2), (8, 9, 1), (10, 17, 2)]);
    }
}
