//! The reader of the notes that the program takes of pins, and the writer of its lease.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::abi::{FlowKey, PIN_NOTES, PinLease, PinLogHead, PinNote};

use super::mmap::Mapped;

/// The log and the lease, mapped: both are wanted many times a second.
#[derive(Debug)]
pub(crate) struct PinLog {
    notes: Mapped<PinNote>,
    heads: Mapped<PinLogHead>,
    lease: Mapped<PinLease>,
    /// Notes of each CPU that were read.
    read: Vec<u64>,
}

impl PinLog {
    /// Opens the log that is pinned in `folder`; what was noted before is not read.
    pub fn open(folder: &Path) -> Result<Self> {
        let map = |name: &str| {
            MapData::from_pin(folder.join(name)).with_context(|| format!("open map {name}"))
        };
        let heads =
            Mapped::<PinLogHead>::new(&map("PIN_LOG_HEADS")?).context("map PIN_LOG_HEADS")?;
        Ok(Self {
            notes: Mapped::new(&map("PIN_LOG")?).context("map PIN_LOG")?,
            lease: Mapped::new(&map("PIN_LEASE")?).context("map PIN_LEASE")?,
            read: heads.iter().map(|head| head.notes.load()).collect(),
            heads,
        })
    }

    /// Visits what was noted since the last call; false if there was more than there is room for.
    pub fn read(&mut self, visit: &mut dyn FnMut(FlowKey)) -> bool {
        let stretches = self.notes.chunks_exact(PIN_NOTES as usize);
        let mut all = true;
        for ((head, notes), read) in self.heads.iter().zip(stretches).zip(&mut self.read) {
            all &= read_stretch(head, notes, read, visit);
        }
        all
    }

    /// The time until which pins may be made.
    pub fn leased_until(&self) -> u64 {
        self.lease.first().map_or(0, |lease| lease.until.load())
    }

    /// Sets the time until which pins may be made.
    pub(crate) fn lease(&self, until: u64) {
        if let Some(lease) = self.lease.first() {
            lease.until.store(until);
        }
    }
}

/// One CPU's notes from `read` on, which is moved to where the next call begins; false if some have
/// been written over.
fn read_stretch(
    head: &PinLogHead,
    notes: &[PinNote],
    read: &mut u64,
    visit: &mut dyn FnMut(FlowKey),
) -> bool {
    let written = head.notes.load();
    while *read != written {
        let note = &notes[(*read % u64::from(PIN_NOTES)) as usize];
        let Some(key) = note.read(*read) else { break };
        visit(key);
        *read += 1;
    }
    // The one that was not whole: on its way from the other CPU's store buffer, so that the next call
    // finds it; or its place was taken by a later one.
    if head.notes.load().wrapping_sub(*read) <= u64::from(PIN_NOTES) {
        return true;
    }
    *read = head.notes.load();
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new([port as u8; 16], port.into(), 7)
    }

    /// One CPU's stretch, and what the program does with it.
    struct Stretch {
        head: PinLogHead,
        notes: Vec<PinNote>,
        read: u64,
    }

    impl Stretch {
        fn new() -> Self {
            let notes = (0..PIN_NOTES).map(|_| PinNote::default()).collect();
            Self { head: PinLogHead::default(), notes, read: 0 }
        }

        fn write(&self, ports: std::ops::Range<u16>) {
            for port in ports {
                let number = self.head.notes.load();
                self.notes[(number % u64::from(PIN_NOTES)) as usize].write(&key(port), number);
                self.head.notes.store(number + 1);
            }
        }

        fn read(&mut self) -> (Vec<u16>, bool) {
            let mut ports = Vec::new();
            let Self { head, notes, read } = self;
            let all = read_stretch(head, notes, read, &mut |found| {
                assert_eq!(found, key(found.port.get()));
                ports.push(found.port.get());
            });
            (ports, all)
        }
    }

    #[test]
    fn each_note_is_read_once_in_its_order() {
        let mut stretch = Stretch::new();
        assert_eq!(stretch.read(), (vec![], true));
        stretch.write(0..3);
        assert_eq!(stretch.read(), (vec![0, 1, 2], true));
        assert_eq!(stretch.read(), (vec![], true));
        for round in 0..3 {
            stretch.write(0..4_000);
            let (ports, all) = stretch.read();
            assert!(all && ports.len() == 4_000, "round {round}");
        }
    }

    #[test]
    fn more_notes_than_there_is_room_for_are_told_and_the_next_ones_are_read() {
        let mut stretch = Stretch::new();
        stretch.write(0..4_096);
        assert_eq!(stretch.read().0.len(), 4_096);
        stretch.write(0..4_097);
        assert!(!stretch.read().1);
        stretch.write(7..9);
        assert_eq!(stretch.read(), (vec![7, 8], true));
    }

    #[test]
    fn a_note_that_is_half_written_waits_for_the_next_call() {
        let mut stretch = Stretch::new();
        stretch.write(0..2);
        // Counted before it is seen: the place still has what it had.
        stretch.head.notes.store(3);
        assert_eq!(stretch.read(), (vec![0, 1], true));
        assert_eq!(stretch.read(), (vec![], true));
        stretch.notes[2].write(&key(9), 2);
        assert_eq!(stretch.read(), (vec![9], true));
        // A later round's number is in the same place.
        stretch.notes[3].write(&key(8), 3 + u64::from(PIN_NOTES));
        stretch.head.notes.store(4);
        assert_eq!(stretch.read(), (vec![], true));
    }
}
