//! Integers that the program in the kernel and the daemon both write, without a lock.
//!
//! On the host they are relaxed atomics. The BPF target has atomics of 64 bits only, and the
//! kernel's JIT makes an aligned load or store of any width one instruction, so there they are
//! volatile cells: one access each, never split, merged or repeated by the compiler.

macro_rules! shared {
    ($($name:ident: $int:ty, $atomic:ident;)+) => {$(
        #[doc = concat!("A `", stringify!($int), "` that both sides write.")]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)]
        #[repr(transparent)]
        pub struct $name(imp::$atomic);

        impl $name {
            /// Holds `value`.
            #[must_use]
            #[inline(always)]
            pub const fn new(value: $int) -> Self {
                Self(imp::$atomic::new(value))
            }

            /// The value, by one load.
            #[inline(always)]
            pub fn load(&self) -> $int {
                self.0.load(imp::Relaxed)
            }

            /// Replaces the value, by one store.
            #[inline(always)]
            pub fn store(&self, value: $int) {
                self.0.store(value, imp::Relaxed);
            }

            /// Adds to a counter that only this CPU writes. The BPF target has no atomic add; none
            /// is needed.
            #[inline(always)]
            pub fn bump(&self, by: $int) {
                self.store(self.load().wrapping_add(by));
            }

            /// Replaces `old` by `new`; false if the value was not `old`.
            #[cfg(not(target_arch = "bpf"))]
            pub fn replace_if(&self, old: $int, new: $int) -> bool {
                self.0.compare_exchange(old, new, imp::Relaxed, imp::Relaxed).is_ok()
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(0)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.load().fmt(f)
            }
        }
    )+};
}

shared! {
    SharedU16: u16, AtomicU16;
    SharedU32: u32, AtomicU32;
    SharedU64: u64, AtomicU64;
}

#[cfg(not(target_arch = "bpf"))]
mod imp {
    pub(super) use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
}

#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the BPF target lacks atomics below 64 bits")]
mod imp {
    use core::cell::UnsafeCell;

    pub(super) struct Relaxed;

    macro_rules! cell {
        ($($name:ident: $int:ty;)+) => {$(
            #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)]
            #[repr(transparent)]
            pub(super) struct $name(UnsafeCell<$int>);

            impl $name {
                #[inline(always)]
                pub(super) const fn new(value: $int) -> Self {
                    Self(UnsafeCell::new(value))
                }

                #[inline(always)]
                pub(super) fn load(&self, _: Relaxed) -> $int {
                    // SAFETY: the cell is valid and aligned, and any bytes are a valid integer.
                    unsafe { self.0.get().read_volatile() }
                }

                #[inline(always)]
                pub(super) fn store(&self, value: $int, _: Relaxed) {
                    // SAFETY: the cell is valid and aligned.
                    unsafe { self.0.get().write_volatile(value) }
                }
            }

            // SAFETY: every access is one aligned load or store of at most a word.
            unsafe impl Sync for $name {}
        )+};
    }

    cell! {
        AtomicU16: u16;
        AtomicU32: u32;
        AtomicU64: u64;
    }
}
