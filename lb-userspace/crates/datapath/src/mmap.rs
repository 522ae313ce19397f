//! Arrays of the kernel in this process's memory.

use std::{
    io,
    marker::PhantomData,
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
};

use aya::maps::MapData;
use zerocopy::{FromBytes, KnownLayout};

/// The elements of a `BPF_F_MMAPABLE` array, shared with the program. Unmapped when dropped; it
/// needs the map's descriptor only to begin with.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<T>,
    elements: usize,
    types: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and its elements may be shared.
unsafe impl<T: Sync> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: FromBytes + KnownLayout + Sync> Mapped<T> {
    /// The kernel rounds an element's size up to eight bytes.
    const WHOLE_WORDS: () = assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8);

    /// Maps the whole array. `T` is made of shared integers: the program writes while this reads.
    pub fn new(map: &MapData) -> io::Result<Self> {
        let () = Self::WHOLE_WORDS;
        let info = map.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(io::Error::other(format!("elements of {} bytes", info.value_size())));
        }
        let elements = info.max_entries() as usize;
        // SAFETY: a new mapping of a length that is not zero, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                elements * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, elements, types: PhantomData })
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds that many elements while `self` lives, is page aligned, any
        // bytes are a valid `T`, and what others write to them are shared integers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.elements) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference outlives `self`.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.elements * size_of::<T>()) };
    }
}
