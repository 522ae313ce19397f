//! Counters of one set of maps on top of those of another, which are being counted meanwhile.

use std::io;

use aya::maps::MapData;
use lb_common::shared::SharedU64;
use zerocopy::{FromBytes, KnownLayout};

use super::{mmap::Mapped, sys};

/// An element of a map of counters: `WORDS` of them.
#[derive(FromBytes, KnownLayout)]
#[repr(transparent)]
struct Element<const WORDS: usize>([SharedU64; WORDS]);

/// Moves what `from` has counted into `to`, word by word, so that a crash in between loses at most
/// one word. Nothing counts in `from` any more; both have `stretches` elements for each of the CPUs,
/// and what is beyond the shorter stretch is dropped: ids that no object has any more. So is the word
/// `but`, which is no sum.
///
/// # Errors
///
/// If one of the maps can't be mapped.
pub(crate) fn move_all<const WORDS: usize>(
    from: &MapData,
    to: &MapData,
    stretches: (u32, u32),
    cpus: u32,
    but: Option<usize>,
) -> io::Result<()> {
    if sys::is_same_map(from, to)? {
        return Ok(());
    }
    let from = Mapped::<Element<WORDS>>::new(from)?;
    let to = Mapped::<Element<WORDS>>::new(to)?;
    let (from_len, to_len) = (stretches.0 as usize, stretches.1 as usize);
    for cpu in 0..cpus as usize {
        let from = &from[cpu * from_len..(cpu + 1) * from_len];
        let to = &to[cpu * to_len..(cpu + 1) * to_len];
        let words = from.iter().flat_map(|e| &e.0).zip(to.iter().flat_map(|e| &e.0));
        let mut moved = Vec::new();
        for (word, (from, to)) in (0..WORDS).cycle().zip(words) {
            let count = from.load();
            if count != 0 && Some(word) != but {
                from.store(0);
                moved.push((to, count, add(to, count)));
            }
        }
        // The program adds by a load and a store, and one that had loaded before the sum was written
        // has undone it. By now that has happened or will not.
        for (to, count, least) in moved {
            if to.load() < least {
                add(to, count);
            }
        }
    }
    Ok(())
}

/// Adds to a counter that the program counts in as well; the sum.
fn add(counter: &SharedU64, count: u64) -> u64 {
    loop {
        let had = counter.load();
        let sum = had.wrapping_add(count);
        if counter.replace_if(had, sum) {
            return sum;
        }
    }
}
