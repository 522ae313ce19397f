//! A frame in the kernel: `Packet` over `data..data_end`, and the changes of its bounds.
//!
//! The same for XDP, where it is the driver's, and for tc, where it is a socket buffer.

use core::{ffi::c_void, hint::assert_unchecked};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    nat::{Covering, Writable},
    packet::Packet,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::skb::{RawSkb, Skb};

/// What the kernel passes to a program for a frame.
pub trait Context: Copy {
    /// [`Packet::is_raw_ip`].
    const RAW_IP: bool = false;

    /// The pointer that the kernel passed in.
    fn as_ptr(self) -> *mut c_void;

    /// Bytes of the frame, in whatever number of buffers.
    fn total(self) -> u64;

    /// [`Packet::segment`].
    fn segment(self) -> u32;
}

/// What the kernel passes to an XDP program.
#[derive(Clone, Copy)]
pub struct XdpBuff(*mut xdp_md);

impl Context for XdpBuff {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn total(self) -> u64 {
        // SAFETY: the pointer is the one that the kernel passed in.
        unsafe { bpf_xdp_get_buff_len(self.0) }
    }

    #[inline(always)]
    fn segment(self) -> u32 {
        0
    }
}

impl Context for Skb {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        Self::as_ptr(self)
    }

    #[inline(always)]
    fn total(self) -> u64 {
        Self::total(self).into()
    }

    #[inline(always)]
    fn segment(self) -> u32 {
        self.gso_size()
    }
}

impl Context for RawSkb {
    const RAW_IP: bool = true;

    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn total(self) -> u64 {
        self.0.total().into()
    }

    #[inline(always)]
    fn segment(self) -> u32 {
        self.0.gso_size()
    }
}

/// The first buffer of a frame. After a change of its bounds a new one must be made: the verifier
/// refuses what was read through the old one.
pub struct Frame<C = XdpBuff> {
    ctx: C,
    start: usize,
    end: usize,
}

/// A frame of a tc program. What is in its metadata, the outermost VLAN tag for one, is not in the frame.
pub type SkbFrame = Frame<Skb>;

/// A frame of a tc program that begins with its IP header.
pub type RawFrame = Frame<RawSkb>;

impl<C> Frame<C> {
    /// Bytes of the first buffer.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.end - self.start
    }

    /// Whether the first buffer has `len` bytes at `off`.
    #[inline(always)]
    fn reaches(&self, off: usize, len: usize) -> bool {
        if len == 1 {
            // Else LLVM tests whether the byte's address is below the end, of which the verifier
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
}

impl SkbFrame {
    /// The frame that the program was called for.
    #[inline(always)]
    pub fn of_skb(skb: Skb) -> Self {
        Self { ctx: skb, start: skb.data() as usize, end: skb.data_end() as usize }
    }
}

impl RawFrame {
    /// The frame that the program was called for.
    #[inline(always)]
    pub fn of_raw(skb: RawSkb) -> Self {
        Self { ctx: skb, start: skb.0.data() as usize, end: skb.0.data_end() as usize }
    }
}

impl Frame {
    /// The frame that the program was called for.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: XdpBuff(ctx.ctx), start: ctx.data(), end: ctx.data_end() }
    }

    /// Moves the start of the frame by `delta` bytes: negative makes room. False if there is none.
    #[inline(always)]
    pub fn adjust_head(&self, delta: i32) -> bool {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_xdp_adjust_head(self.ctx.0, delta) == 0 }
    }

    /// Cuts the frame to its first `len` bytes; false if it can't be done.
    #[inline(always)]
    pub fn truncate(&self, len: usize) -> bool {
        let delta = len as i32 - self.ctx.total() as i32;
        // SAFETY: the context is the one that the kernel passed in.
        delta <= 0 && unsafe { bpf_xdp_adjust_tail(self.ctx.0, delta) == 0 }
    }
}

impl<C> Frame<C> {
    /// [`Writable::edit`].
    #[inline(always)]
    fn at<T: FromBytes + IntoBytes + KnownLayout + Unaligned>(
        &mut self,
        off: usize,
    ) -> Option<&mut T> {
        if !self.reaches(off, size_of::<T>()) {
            return None;
        }
        // SAFETY: no frame is at address 0. LLVM would test it, to distinguish it from `None`.
        unsafe { assert_unchecked(self.start != 0) };
        // SAFETY: the range was just checked; any bytes at any address are a valid T. The program owns the frame, and
        // the reference borrows this view of it.
        Some(unsafe { &mut *((self.start + off) as *mut T) })
    }
}

impl Writable for Frame {
    #[inline(always)]
    fn edit<T>(&mut self, off: usize) -> Option<&mut T>
    where
        T: FromBytes + IntoBytes + KnownLayout + Unaligned,
    {
        self.at(off)
    }
}

impl Writable for SkbFrame {
    #[inline(always)]
    fn edit<T>(&mut self, off: usize) -> Option<&mut T>
    where
        T: FromBytes + IntoBytes + KnownLayout + Unaligned,
    {
        self.at(off)
    }

    /// By the kernel, which knows whether the checksum is computed yet.
    #[inline(always)]
    fn update_checksum(&mut self, at: usize, pseudo: u32, covered: u32, of: Covering) -> bool {
        self.ctx.update_checksum(at, pseudo, covered, of)
    }
}

impl<C: Context> Frame<C> {
    /// The pointer that the kernel passed in, for its functions.
    #[inline(always)]
    pub fn context(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

impl<C: Context> Packet for Frame<C> {
    #[inline(always)]
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        if !self.reaches(off, size_of::<T>()) {
            return None;
        }
        // SAFETY: no frame is at address 0. LLVM would test it, to distinguish it from `None`.
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
        len as u64 <= self.ctx.total()
    }

    #[inline(always)]
    fn is_raw_ip(&self) -> bool {
        C::RAW_IP
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        self.ctx.segment()
    }
}
