//! Layout 2. Frozen, as layout 1 is ([`super::v1`]), of which it differs in this:
//!
//! ```text
//! service            the zero byte is flags (1 second choice, 2 pinning paused, 4 local)
//! backend            flags have more (8 suspect, 16 soft down, 32 NAT); of the 16 zero, 2 are the port; of the 32 zero,
//!                    16 are the VIP, 2 its port, 1 the protocol
//! fragment           the first zero is 1 of an answer
//! backend counter    of the 24 zero, 8 are SYNs without an answer, 8 second choices
//! SYN budget         4 tokens, 4 share, 8 nanosecond refilled
//! pin note           24 of the key, 20 of them used, and the number's lower half; 8 check
//! pin log's head     8 notes, 56 zero
//! pin lease          8 until when
//! peer's MAC         6 address, 2 service; the value is a backend
//! reverse key        16 address, 2 port, 1 protocol, 1 zero; the value is a backend
//! return counter     8 packets, 8 bytes, 8 accepted, 8 refused, 32 zero
//! NAT connection     key 24, value 16
//! ```
//!
//! The mark of a SYN is 4 bytes in a map of another name, and the log of pins and all that follows it came later: a set
//! without them is whole.

use lb_common::abi;
use lb_model::settings::Limits;
use zerocopy::{FromBytes, Immutable, IntoBytes, network_endian::U16};

use super::{ARRAY, ARRAY_OF_MAPS, HASH, LRU_HASH, Shape, shape_of};

/// Its maps.
pub(crate) const SHAPES: [Shape; 26] = [
    shape_of("SERVICE_INDEX", ARRAY, (4, 16), buckets),
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
    shape_of("SYN_MARKS", ARRAY, (4, 4), |_, _| 65_536),
    shape_of("PIN_LOG", ARRAY, (4, 32), |_, cpus| 4_096 * cpus).spare(),
    shape_of("PIN_LOG_HEADS", ARRAY, (4, 64), |_, cpus| cpus).spare(),
    shape_of("PIN_LEASE", ARRAY, (4, 8), |_, _| 1).spare(),
    shape_of("PEER_MACS", HASH, (8, 4), |_, _| 4_096).spare(),
    shape_of("REVERSE_NAT", HASH, (20, 4), |limits, _| limits.backends).spare(),
    shape_of("NAT_BACKENDS", ARRAY, (4, 4), |_, _| 1).spare(),
    shape_of("RETURN_EGRESS", ARRAY, (4, 4), |_, _| 16).spare(),
    shape_of("RETURN_COUNTERS", ARRAY, (4, 64), |limits, cpus| (limits.backends + 1) * cpus)
        .spare(),
    shape_of("NAT_CONNECTIONS", LRU_HASH, (24, 16), |limits, _| limits.nat_connections).spare(),
    shape_of("HANDSHAKES", ARRAY, (4, 8), |_, _| 262_144).spare(),
];

/// The key of `PINS` and `TRACKED`, in layout 1 too.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4))]
pub(crate) struct FlowKey {
    source: [u8; 16],
    port: U16,
    service: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 20);

/// Each service had one VIP and one port.
impl From<FlowKey> for abi::FlowKey {
    fn from(key: FlowKey) -> Self {
        Self::new(key.source, key.port, key.service)
    }
}

const fn buckets(limits: &Limits, _: u32) -> u32 {
    (limits.services * 4).next_power_of_two()
}
