//! Pins that a flood has left: how long a flow that has only sent SYNs is kept, and how often it is looked for.
//!
//! A SYN flood of a service pins a flow with each that comes to a slot in flux. While there is plenty of
//! room such a pin lives as long as a client may still answer; in a table that fills, only as long as clients take,
//! so that there is room for the next ones.

use lb_model::flow::EMBRYONIC_SECS;

use super::walk::Walk;

/// Seconds without a packet after which a flow that has only sent SYNs is gone while the table is more than half full: longer than a client takes to send its SYN again, which renews the
/// pin (1 s; RFC 6298, 2.1), and than any path's round trip.
const UNDER_PRESSURE_SECS: u32 = 2;
/// A walk of the flows costs about a tenth of a microsecond an entry; so many entries may be walked
/// in a second.
const FLOWS_PER_SEC: u64 = 20_000;
/// The same while the table is more than a quarter full: two hundredths of a CPU.
const UNDER_PRESSURE_FLOWS_PER_SEC: u64 = 200_000;

impl Walk {
    /// More than so many seconds pass before the next one, because of its cost. `room` is that for pins.
    pub(super) fn secs_between(&self, room: u32) -> u32 {
        let is_pressing = self.pins > u64::from(room) / 4;
        let per_sec = if is_pressing { UNDER_PRESSURE_FLOWS_PER_SEC } else { FLOWS_PER_SEC };
        u32::try_from(self.flows / per_sec).unwrap_or(u32::MAX)
    }

    /// After how many seconds without a packet a flow that has only sent SYNs is gone.
    pub(super) fn embryonic_secs(&self, room: u32) -> u32 {
        if self.pins > u64::from(room) / 2 { UNDER_PRESSURE_SECS } else { EMBRYONIC_SECS }
    }
}
