//! Frames that the kernel or a driver dropped after the balancer's program had returned XDP_TX or XDP_REDIRECT:
//! the fields of its tracepoints `xdp:*` about them, and the layout of the map that counts them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The action that the program had returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// XDP_TX: the interface that the frame came by could not transmit it.
    Tx = 1,
    /// XDP_REDIRECT: another interface did not take the frame.
    Redirect = 2,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Tx, Self::Redirect];

    /// The word used in metrics and messages, among those of [`crate::verdict::Drop`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx_failed",
            Self::Redirect => "redirect_failed",
        }
    }
}

/// Key of `TX_ERRORS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Key {
    /// Index of the interface that the frames came by.
    pub ingress: u32,
    /// Index of the one that they were to leave by.
    pub egress: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// The error, negative as the kernel has it; 0: the driver named none, as when its queue was full.
    pub error: i32,
}
