//! The one writer: holds what is desired and what the maps hold, and makes them equal.

use std::{collections::BTreeSet, net::IpAddr, time::SystemTime};

use anyhow::Result;

use crate::{
    datapath::DataPlane,
    desired::Desired,
    netlink::{Neighbourhood, Want},
    settings::Settings,
    status::Status,
};

/// The one writer of the maps.
#[derive(Debug)]
pub struct Engine<D> {
    data_plane: D,
    desired: Desired,
}

/// The time, as the two sides tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Whole seconds of CLOCK_MONOTONIC, the program's clock.
    pub mono_secs: u32,
    /// The time of day, for the operator's deadlines.
    pub wall: SystemTime,
}

impl Now {
    /// The time by the system's clocks.
    #[must_use]
    pub fn read() -> Self {
        todo!()
    }
}

/// What a reconciliation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Entries of maps that were written; the slots of one ring count as one.
    pub changes: usize,
    /// Slots whose new flows have a new owner.
    pub slots_moved: u64,
}

/// What a sweep has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Backends in `removing` whose last flow has ended: service name and address. The caller
    /// takes them out of the desired state; until then they are told again.
    pub removed: Vec<(String, IpAddr)>,
    /// Slots whose base owner was cleared.
    pub settled: u64,
    /// Pins that were deleted.
    pub expired: u64,
}

impl<D: DataPlane> Engine<D> {
    /// Reads what the maps hold, and goes on from there. Writes nothing.
    pub fn adopt(data_plane: D, settings: &Settings) -> Result<Self> {
        let _ = (settings, data_plane);
        todo!()
    }

    /// The data plane that it writes.
    pub fn data_plane(&self) -> &D {
        &self.data_plane
    }

    /// The data plane, for who wants to do the program's part.
    pub fn data_plane_mut(&mut self) -> &mut D {
        &mut self.data_plane
    }

    /// Replaces what is wanted; [`Self::reconcile`] acts on it.
    pub fn set_desired(&mut self, desired: Desired) {
        self.desired = desired;
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Replaces what is known of next hops; [`Self::reconcile`] acts on it.
    pub fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        let _ = neighbourhood;
        todo!()
    }

    /// The backends whose next hops must be known.
    pub fn wants(&self) -> BTreeSet<Want> {
        todo!()
    }

    /// Makes the maps equal to what is wanted. After a failure the next call does the rest.
    ///
    /// # Errors
    ///
    /// If a map could not be written, or has no room; whatever else could be done is done.
    pub fn reconcile(&mut self, now: Now) -> Result<Outcome> {
        let _ = now;
        todo!()
    }

    /// The work of each second: ends what has run out.
    ///
    /// # Errors
    ///
    /// If a map could not be read or written.
    pub fn sweep(&mut self, now: Now) -> Result<Swept> {
        let _ = now;
        todo!()
    }

    /// Everything that the data plane knows; version and uptime are the caller's.
    ///
    /// # Errors
    ///
    /// If the counters can't be read.
    pub fn status(&self) -> Result<Status> {
        todo!()
    }
}
