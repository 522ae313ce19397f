//! Programs beside the one that balances: they verify explanations, and capture packets.

use std::{any::Any, fmt::Debug};

use anyhow::Result;
use lb_common::capture::Head;
use lb_inspect::{
    capture::{Counts, Spec},
    explain::{Case, Verifier},
};

/// What it takes to load the program that captures: nothing of the daemon's, so that this may take its time on another
/// thread.
pub trait CaptureLoader: Debug + Send {
    /// Loads it.
    fn load(self: Box<Self>) -> Result<LoadedCapture>;
}

/// The loaded program that captures: known to the data plane alone whose loader has made it.
pub type LoadedCapture = Box<dyn Any + Send>;

/// What is read of a capture while it runs.
pub trait Tap: Debug + Send {
    /// Visits what was saved since the last call, at most so many frames; how many there were.
    fn drain(&mut self, most: usize, visit: &mut dyn FnMut(&Head, &[u8])) -> usize;

    /// What has become of packets, over all CPUs.
    fn counts(&self) -> Counts;
}

/// The programs that take the place of the one that balances, or run beside it.
pub trait Programs {
    /// What lets the program decide on packets without a change of these maps: it has copies of what
    /// it needs.
    fn verifier(&self, cases: Vec<Case>) -> Result<Verifier>;

    /// What loads the program that captures. `service` and `backend` are ids.
    fn prepare_capture(
        &self,
        spec: &Spec,
        service: Option<u16>,
        backend: Option<u16>,
    ) -> Result<Box<dyn CaptureLoader>>;

    /// Puts the program that captures in the place of the normal one.
    fn begin_capture(&mut self, loaded: LoadedCapture) -> Result<Box<dyn Tap>>;

    /// Puts the normal program back; nothing is done if it is there.
    fn end_capture(&mut self) -> Result<()>;
}
