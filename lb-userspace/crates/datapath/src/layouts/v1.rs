//! Layout 1, of lbd 0.1.0. Frozen: maps of this layout are in kernels that this version has never
//! seen, so nothing here follows what the layout of today becomes.
//!
//! All numbers are bytes. Integers are the processor's but for ports, which are the network's.
//!
//! ```text
//! service key (v4)   4 VIP, 2 port, 1 protocol, 1 zero
//! service key (v6)   16 VIP, 2 port, 1 protocol, 1 zero
//! service            48 hash keys, 4 slots, 2 id, 1 UDP policy, 1 zero, 4 idle timeout, 4 SYN budget
//! index bucket       4 x 4 words: tag in the upper half, id of the service in the lower
//! index entry        64 service, 16 VIP, 2 port, 1 protocol, 5 zero
//! slot of a ring     2 current owner, 2 base owner, 2 stamp unpinned, 2 stamp pinned
//! backend            22 link header, 1 its length, 1 flags (1 usable, 2 tunnel, 4 IPv6), 4 ifindex,
//!                    2 MTU, 2 service, 4 outer sum, 4 source mask, 4 address (v4), 4 source (v4),
//!                    16 zero, 16 address, 16 source, 32 zero
//! flow key           16 client, 2 port, 2 service
//! connection key     8 connection id, 2 service, 2 zero
//! flow               2 backend, 2 flags (1 established, 2 closing), 4 second last seen
//! fragment key       16 client, 16 VIP, 4 id, 1 protocol, 3 zero
//! fragment           2 backend, 2 zero, 4 second seen, 4 entropy
//! VIP                16 address; the value is 1
//! own MAC            6 address, 2 zero
//! verdict counter    8 packets, 8 bytes; 48 of them for each CPU
//! backend counter    8 packets, 8 bytes, 8 new flows, 8 unpinned, 8 SYN retransmissions, 24 zero
//! SYN budget         8 tokens, 8 nanosecond refilled
//! SYN mark           4
//! ```

use super::{ARRAY, ARRAY_OF_MAPS, HASH, LRU_HASH, Shape, shape_of};

// From linux/bpf.h, enum bpf_map_type.
const PERCPU_ARRAY: u32 = 6;

/// Its maps.
pub(crate) const SHAPES: [Shape; 16] = [
    shape_of("SERVICE_INDEX", ARRAY, (4, 16), |limits, _| {
        (limits.services * 4).next_power_of_two()
    }),
    shape_of("SERVICE_ENTRIES", ARRAY, (4, 88), |limits, _| limits.services),
    shape_of("SERVICES_V4", HASH, (8, 64), |limits, _| limits.services),
    shape_of("SERVICES_V6", HASH, (20, 64), |limits, _| limits.services),
    shape_of("RINGS", ARRAY_OF_MAPS, (4, 4), |limits, _| limits.services),
    shape_of("BACKENDS", ARRAY, (4, 128), |limits, _| limits.backends + 1),
    shape_of("PINS", HASH, (20, 8), |limits, _| limits.pins),
    shape_of("TRACKED", LRU_HASH, (20, 8), |limits, _| limits.tracked_flows),
    shape_of("CONNECTIONS", LRU_HASH, (12, 8), |limits, _| limits.connections),
    shape_of("FRAGMENTS", LRU_HASH, (40, 12), |limits, _| limits.fragments),
    shape_of("VIPS", HASH, (16, 4), |limits, _| limits.services),
    shape_of("OWN_MACS", ARRAY, (4, 8), |_, _| 16),
    shape_of("VERDICTS", ARRAY, (4, 16), |_, cpus| 48 * cpus),
    shape_of("BACKEND_COUNTERS", ARRAY, (4, 64), |limits, cpus| (limits.backends + 1) * cpus),
    shape_of("SYN_BUDGETS", ARRAY, (4, 16), |limits, cpus| limits.services * cpus),
    shape_of("SYN_SEEN", PERCPU_ARRAY, (4, 4), |_, _| 8_192),
];
