//! A frame in the kernel: `Packet` over `data..data_end`, and the changes of its bounds.

use core::hint::assert_unchecked;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::packet::Packet;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first buffer of a frame. After a change of its bounds a new one must be made: the verifier
/// refuses what was read through the old one.
pub struct Frame {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame that the program was called for.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, start: ctx.data(), end: ctx.data_end() }
    }

    /// Bytes of the first buffer.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.end - self.start
    }

    /// Whether the first buffer has `len` bytes at `off`.
    #[inline(always)]
    fn reaches(&self, off: usize, len: usize) -> bool {
        if len == 1 {
            // Else LLVM asks whether the byte's address is below the end, of which the verifier
            // learns nothing.
            return self.start + off + len <= self.end;
        }
        // SAFETY: a frame is never at the end of the address space, and no header is as far into it
        // as 2^16. So LLVM sees that a nearer byte was checked with a farther one.
        let start = unsafe { self.start.unchecked_add(off) };
        // SAFETY: as above.
        let end = unsafe { start.unchecked_add(len) };
        end <= self.end
    }

    /// Overwrites the bytes at `off`; false if the first buffer does not hold them.
    #[inline(always)]
    pub fn store<T: IntoBytes + Immutable + Unaligned>(&self, off: usize, value: T) -> bool {
        if !self.reaches(off, size_of::<T>()) {
            return false;
        }
        // SAFETY: the range was just checked, and a T has no alignment. The program owns the frame.
        unsafe { ((self.start + off) as *mut T).write(value) };
        true
    }

    /// Moves the start of the frame by `delta` bytes: negative makes room. False if there is none.
    #[inline(always)]
    pub fn adjust_head(&self, delta: i32) -> bool {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_xdp_adjust_head(self.ctx, delta) == 0 }
    }

    /// Cuts the frame to its first `len` bytes; false if it can't be done.
    #[inline(always)]
    pub fn truncate(&self, len: usize) -> bool {
        // SAFETY: the context is the one that the kernel passed in.
        let have = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        let delta = len as i32 - have as i32;
        // SAFETY: as above.
        delta <= 0 && unsafe { bpf_xdp_adjust_tail(self.ctx, delta) == 0 }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        if !self.reaches(off, size_of::<T>()) {
            return None;
        }
        // SAFETY: no frame is at address 0. LLVM would ask, to tell it from the `None`.
        unsafe { assert_unchecked(self.start != 0) };
        // SAFETY: the range was just checked; any bytes at any address are a valid T.
        Some(unsafe { &*((self.start + off) as *const T) })
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        // A comparison of lengths: Linux 6.1's verifier takes no pointer plus a length from the wire.
        if len <= self.bytes() {
            return true;
        }
        // SAFETY: the context is the one that the kernel passed in.
        let have = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        len as u64 <= have
    }
}
