//! The data plane as the engine sees it, without the kernel: [`DataPlane`] is [`Maps`], [`Flows`] and [`Counters`] with
//! [`Interfaces`] and [`Programs`].
//!
//! `lb_datapath::Xdp` is the one in the kernel, [`fake::Fake`] the one in memory. It knows entries and slots, and nothing
//! of what is desired of them, of health or of other nodes.

pub mod fake;
mod maps;
mod programs;

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use lb_api::status;
use lb_inspect::explain::View;
use lb_model::{hop::Station, settings::Hooks};

pub use maps::{Added, BackendTotals, Counters, Flows, Maps, OwnerChange, replace_owners};
pub use programs::{CaptureLoader, LoadedCapture, Programs, Tap};

/// All of a data plane, as its one writer sees it.
///
/// A method that writes takes `&mut self`, and may fail without having written; none writes half of one value.
pub trait DataPlane:
    Maps + Flows + Counters + Interfaces + Programs + View + Send + 'static
{
}

impl<T: Maps + Flows + Counters + Interfaces + Programs + View + Send + 'static> DataPlane for T {}

/// The interfaces that the program is attached to.
pub trait Interfaces {
    /// The interfaces with the program, as the kernel reports them.
    fn interfaces(&self) -> Vec<status::Interface>;

    /// Why an interface does not have the program, in words; none if it does.
    fn problem(&self, interface: &str) -> Option<String>;

    /// Attaches the program again to an interface that has lost it. What another process has attached
    /// there stays, and is named.
    fn reattach(&mut self, interface: &str) -> Result<()>;

    /// Gives each interface the hook that it is to have: the new one first, then the old one is removed, so that no packet
    /// meets an interface without the program. After an error all have the hooks that they had.
    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()>;

    /// Where XDP has sent answers in mode `nat` within this time, by routes of the kernel: it does not notice that their
    /// neighbours are in use.
    fn answered_stations(&self, within: Duration) -> Result<BTreeSet<Station>>;
}
