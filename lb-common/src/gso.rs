//! Generic segmentation offload (GSO): one frame that leaves as many packets.
//!
//! Where a NIC or GRO has merged the segments of a flow, or a local sender's are not cut yet, the network stack hands
//! over one frame of up to 64 KiB with the bytes of payload that each packet has on the wire (`gso_size`). The limit of
//! the way to a backend is one of these packets, and these are what is counted. XDP sees frames before GRO.

/// What leaves for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Bytes of the longest IP packet.
    pub longest: u16,
    /// How many packets.
    pub packets: u32,
    /// Bytes of all IP packets.
    pub bytes: u32,
}

impl Wire {
    /// Of an IP packet of `len` bytes, the first `headers` of which each segment repeats; `segment` is the bytes of
    /// payload of each, 0 if it is not to be cut.
    #[must_use]
    #[inline(always)]
    pub const fn new(len: u16, headers: u16, segment: u32) -> Self {
        let payload = len.saturating_sub(headers) as u32;
        if segment == 0 || payload <= segment {
            return Self { longest: len, packets: 1, bytes: len as u32 };
        }
        let packets = payload.div_ceil(segment);
        // Shorter than `len`, as the segment is shorter than the payload.
        let longest = headers + segment as u16;
        Self { longest, packets, bytes: len as u32 + (packets - 1) * headers as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_leaves_in_segments_that_repeat_its_headers() {
        let wire = |longest, packets, bytes| Wire { longest, packets, bytes };
        assert_eq!(Wire::new(1500, 52, 0), wire(1500, 1, 1500));
        assert_eq!(Wire::new(1500, 52, 1448), wire(1500, 1, 1500));
        assert_eq!(Wire::new(1501, 52, 1448), wire(1500, 2, 1501 + 52));
        assert_eq!(Wire::new(52 + 45 * 1448, 52, 1448), wire(1500, 45, 45 * 1500));
        assert_eq!(Wire::new(65_535, 40, 1), wire(41, 65_495, 65_535 + 65_494 * 40));
        // Headers that are longer than the packet are of no packet that gets here.
        assert_eq!(Wire::new(40, 60, 10), wire(40, 1, 40));
    }
}
