//! The filter of a capture, and the records that it saves: shared by the program that captures and the
//! daemon, which are always of one build. None of it is pinned.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::shared::SharedU64;

/// The most bytes of a frame that are saved; a power of two.
pub const MAX_SNAP: usize = 2_048;
/// Any service, or any backend.
pub const ANY: u32 = u32::MAX;
/// In place of the index of a reason: the packet is forwarded.
pub const FORWARDED: u32 = 63;
/// In place of the index of a reason: the packet is the answer of a backend in mode `nat`, and goes to the client.
pub const RETURNED: u32 = 62;
/// In place of a service's id: none was found.
pub const NO_SERVICE: u16 = u16::MAX;
/// In place of a slot: none was looked up.
pub const NO_SLOT: u32 = u32::MAX;

/// Bits of [`Head::flags`].
pub mod flags {
    /// The frame as the program leaves it; otherwise as it came.
    pub const AFTER: u16 = 1;
    /// The flow had a pin.
    pub const PIN_FOUND: u16 = 2;
    /// A pin was made.
    pub const PIN_MADE: u16 = 4;
    /// The flow was tracked, or its QUIC connection known.
    pub const FLOW_FOUND: u16 = 8;
    /// No pin could be made: its table is full.
    pub const PIN_REFUSED: u16 = 16;
    /// The frame was saved as it came: only in the record of the frame as it leaves.
    pub const SAVED: u16 = 32;
}

/// What is to be captured: the only element of `CAPTURE_PLAN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Plan {
    /// Until when, in nanoseconds of CLOCK_MONOTONIC.
    pub until: u64,
    /// A bit for each reason by its index, and one each for [`FORWARDED`] and [`RETURNED`].
    pub verdicts: u64,
    /// The client's address, as far as `mask` has ones; IPv4 as an IPv4-mapped IPv6 address.
    pub client: [u64; 2],
    /// Which of its bits count.
    pub mask: [u64; 2],
    /// A service's id, or [`ANY`].
    pub service: u32,
    /// A backend's id, or [`ANY`].
    pub backend: u32,
    /// A packet is taken if a random number is at most this.
    pub sample: u32,
    /// Packets that one CPU saves in a second.
    pub rate: u32,
    /// Bytes of a frame that are saved, at most [`MAX_SNAP`].
    pub snap: u32,
    /// Zero.
    pub reserved: u32,
}

/// What is known of a frame that was saved; its bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Head {
    /// When it came in, in nanoseconds of CLOCK_MONOTONIC.
    pub nanos: u64,
    /// Number of the packet among those that its CPU saved: the same before and after.
    pub number: u64,
    /// The CPU.
    pub cpu: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// How many of them were saved.
    pub saved: u32,
    /// Index of the interface that it came in on.
    pub ingress: u32,
    /// Index of the interface that it leaves by; 0 if it does not.
    pub egress: u32,
    /// The slot of its flow, or [`NO_SLOT`].
    pub slot: u32,
    /// Id of the service, or [`NO_SERVICE`].
    pub service: u16,
    /// Id of the backend; 0 for none.
    pub backend: u16,
    /// The slot's owners, as in the ring: current, base.
    pub current: u16,
    /// The slot's base owner.
    pub base: u16,
    /// Index of the reason, [`FORWARDED`] or [`RETURNED`].
    pub reason: u16,
    /// The action returned to XDP, or that of tc as XDP's; known only after.
    pub action: u16,
    /// Bits of [`flags`].
    pub flags: u16,
    /// Bits of [`crate::verdict::events`].
    pub events: u16,
}

/// What one CPU writes a frame together in: the element of `CAPTURE_SCRATCH`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Scratch {
    /// What is known of it.
    pub head: Head,
    /// Its bytes.
    pub bytes: [u8; MAX_SNAP],
}

/// How many packets of a CPU a capture has dealt with: the element of `CAPTURE_COUNTERS`.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct CaptureCounter {
    /// Packets that the program has seen.
    pub seen: SharedU64,
    /// Packets that match the filter.
    pub matched: SharedU64,
    /// Of those, what the sample left out.
    pub sampled_out: SharedU64,
    /// What the rate left out.
    pub limited: SharedU64,
    /// What there was no room for, since the daemon was too slow.
    pub lost: SharedU64,
    /// What was saved.
    pub saved: SharedU64,
    /// Zero.
    pub reserved: [u64; 2],
}

const _: () = {
    assert!(size_of::<Plan>() == 72 && size_of::<Head>() == 56);
    assert!(size_of::<CaptureCounter>() == 64 && MAX_SNAP.is_power_of_two());
};
