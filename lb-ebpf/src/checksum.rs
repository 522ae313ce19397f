//! The checksum of a packet that its sender has left to the NIC, computed in the frame.

use core::mem::offset_of;

use aya_ebpf::{bindings::xdp_md, helpers::bpf_csum_diff, programs::XdpContext};
use lb_common::{
    packet::{MAX_OFFSET, Packet as _, udp::Udp},
    unfinished::{self, Place},
};
use zerocopy::byteorder::native_endian::U16;

use crate::frame::Frame;

/// The longest text that `bpf_csum_diff` takes at once before Linux 6.13.
const LONGEST: usize = 512;
/// So many of them are a packet of veth's largest MTU with XDP.
const STEPS: usize = 8;

/// Computes the checksum of a packet if it is not computed yet; its network layer starts at the low byte of `what`, above which
/// is whether it is IPv6. Not 0 if that has changed it. It stays as it is if the first buffer does not hold the packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn complete(ctx: *mut xdp_md, what: u64) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let word = unfinished::find(&frame, what as usize & 0x1f, what >> 8 != 0);
    if word == 0 {
        return 0;
    }
    let Place { begin, end, check } = Place::from_word(word);
    // It has been looked at before, but LLVM passes the frame's bounds in place of a context that only they are read from,
    // and the verifier refuses them.
    if !frame.holds(end) {
        return 0;
    }
    let Some(sum) = sum(&frame, begin, end) else { return 0 };
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let is_udp = check - begin == offset_of!(Udp, check);
    let computed = match !(sum as u16) {
        // 0 would mean that there is none (RFC 768).
        0 if is_udp => u16::MAX,
        computed => computed,
    };
    let Some(before) = frame.load::<U16>(check).map(|before| before.get()) else { return 0 };
    (computed != before && frame.store(check, U16::new(computed))).into()
}

/// Takes that back of a packet whose addresses may have changed since: its socket buffer still says that the checksum is to be
/// computed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leave(ctx: *mut xdp_md, what: u64) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let found = unfinished::pseudo_header(&frame, what as usize & 0x1f, what >> 8 != 0);
    let Some((Place { begin, end, check }, sum)) = found else { return 0 };
    // See `complete`.
    (begin <= end && frame.holds(end) && frame.store(check, sum)).into()
}

/// The sum of the words of the machine from `begin` to `end`.
///
/// Each offset follows from the length alone, and not from what was added before: so the verifier finds the same state
/// behind each step, whatever way it came, and walks the next one once.
#[inline(always)]
fn sum(frame: &Frame, begin: usize, end: usize) -> Option<u32> {
    let len = end.wrapping_sub(begin) & 0xffff;
    if len >= STEPS * LONGEST {
        return None;
    }
    let mut sum = 0;
    for step in 0..STEPS {
        if (step + 1) * LONGEST > len {
            break;
        }
        sum = add::<LONGEST>(frame, begin + step * LONGEST, sum)?;
    }
    sum = add_bit::<256>(frame, begin, len, sum)?;
    sum = add_bit::<128>(frame, begin, len, sum)?;
    sum = add_bit::<64>(frame, begin, len, sum)?;
    sum = add_bit::<32>(frame, begin, len, sum)?;
    sum = add_bit::<16>(frame, begin, len, sum)?;
    sum = add_bit::<8>(frame, begin, len, sum)?;
    sum = add_bit::<4>(frame, begin, len, sum)?;
    // Folded, so that what is added now does not overflow.
    sum = (sum >> 16) + (sum & 0xffff);
    if len & 2 != 0 {
        sum += u32::from(frame.load::<U16>((begin + (len & !3)) & MAX_OFFSET)?.get());
    }
    if len & 1 != 0 {
        // With the byte before it: of one byte alone the verifier learns no bound.
        let [_, last] = *frame.load::<[u8; 2]>((begin + len - 2) & MAX_OFFSET)?;
        sum += u32::from(u16::from_ne_bytes([last, 0]));
    }
    Some(sum)
}

/// Adds the `N` bytes, a power of two, that `len` has in its bit `N`.
#[inline(always)]
fn add_bit<const N: usize>(frame: &Frame, begin: usize, len: usize, sum: u32) -> Option<u32> {
    if len & N == 0 {
        return Some(sum);
    }
    add::<N>(frame, begin + (len & !(2 * N - 1)), sum)
}

/// Adds the `N` bytes at `at`.
#[inline(always)]
fn add<const N: usize>(frame: &Frame, at: usize, sum: u32) -> Option<u32> {
    let bytes = frame.load::<[u8; N]>(at & MAX_OFFSET)?;
    let bytes = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the kernel reads the N bytes, which the frame has, and writes none.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, N as u32, sum) };
    // An error is negative; a sum has 32 bits.
    (sum >= 0).then_some(sum as u32)
}
