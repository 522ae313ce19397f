//! The rings of a set of maps. `RINGS` holds them, with no more than the id of each; the kernel
//! opens maps by their ids for `CAP_SYS_ADMIN` alone, so each ring has a pin beside it: `ring-7` for
//! the service with id 7.
//!
//! A ring that is to replace another is pinned as `ring-7-next` first, and takes the name when `RINGS`
//! has it. So a process that ends at any point leaves a pin of the ring that is in use; the ids show
//! which.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use tracing::warn;

use super::sys::{self, Table};

/// What the pins of rings start with.
pub(crate) const PREFIX: &str = "ring-";
const NEXT: &str = "-next";

/// How many rings are shared at a time.
const TOGETHER: usize = 64;

/// `RINGS`, with the pins of what is in it.
#[derive(Debug)]
pub(crate) struct Rings {
    /// Written as descriptors, read as ids.
    table: Table<u32, u32>,
    folder: PathBuf,
}

/// The id of the service, and whether it is the pin of a ring that is to replace another.
fn of_name(name: &str) -> Option<(u16, bool)> {
    let name = name.strip_prefix(PREFIX)?;
    let (id, next) = name.strip_suffix(NEXT).map_or((name, false), |id| (id, true));
    Some((id.parse().ok()?, next))
}

impl Rings {
    /// Of the set in `folder`, whose `RINGS` this is.
    pub fn new(rings: MapData, folder: &Path) -> io::Result<Self> {
        Ok(Self { table: Table::new(rings)?, folder: folder.to_owned() })
    }

    /// The same when the folder has got another name.
    pub(crate) fn moved(&mut self, folder: &Path) {
        folder.clone_into(&mut self.folder);
    }

    fn pin(&self, id: u16) -> PathBuf {
        self.folder.join(format!("{PREFIX}{id}"))
    }

    fn next_pin(&self, id: u16) -> PathBuf {
        self.folder.join(format!("{PREFIX}{id}{NEXT}"))
    }

    /// The ids of the services that have a ring, and those of the rings.
    fn all(&self) -> io::Result<BTreeMap<u16, u32>> {
        let mut all = BTreeMap::new();
        for id in 0..self.table.entries() {
            if let Some(ring) = self.table.get(&id)? {
                all.insert(id as u16, ring);
            }
        }
        Ok(all)
    }

    /// The ids of the services that have a ring.
    pub fn services(&self) -> io::Result<impl DoubleEndedIterator<Item = u16> + use<>> {
        Ok(self.all()?.into_keys())
    }

    /// The ring of a service.
    pub(crate) fn get(&self, id: u16) -> Result<Option<MapData>> {
        let Some(ring) = self.table.get(&id.into()).context("read RINGS")? else { return Ok(None) };
        for pin in [self.pin(id), self.next_pin(id)] {
            if !pin.exists() {
                continue;
            }
            let map = MapData::from_pin(&pin).context("open the ring's map")?;
            if map.info().context("ask for the ring's map")?.id() == ring {
                return Ok(Some(map));
            }
        }
        open(ring, id).map(Some)
    }

    /// Gives services these rings. After an error, some may have theirs.
    pub(crate) fn put_all(&self, rings: &[(u16, MapData)]) -> Result<()> {
        for (id, ring) in rings {
            let next = self.next_pin(*id);
            // Of an attempt that failed.
            let _ = fs::remove_file(&next);
            ring.pin(&next).with_context(|| format!("pin {}", next.display()))?;
        }
        let ids: Vec<_> = rings.iter().map(|(id, _)| u32::from(*id)).collect();
        let maps: Vec<_> = rings.iter().map(|(_, ring)| sys::map_fd(ring)).collect();
        // The pins stay after an error: `get` and `repair_pins` find by the ids which of a service's two is
        // in use.
        self.table.put_all(&ids, &maps).context("publish rings")?;
        for &(id, _) in rings {
            // It is published, and found by either name.
            let (pin, next) = (self.pin(id), self.next_pin(id));
            if let Err(error) = fs::rename(&next, &pin) {
                warn!("{} keeps its name: {error}", next.display());
            }
        }
        Ok(())
    }

    /// Takes the ring of a service away.
    pub(crate) fn delete(&self, id: u16) -> io::Result<()> {
        self.table.delete(&id.into())?;
        for pin in [self.pin(id), self.next_pin(id)] {
            match fs::remove_file(&pin) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!("{} stays until the next start: {error}", pin.display());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the next set's table hold all that this one holds.
    pub(crate) fn share(&self, next: &Self) -> Result<()> {
        let mut rings = Vec::new();
        for id in self.services().context("read RINGS")? {
            let Some(ring) = self.get(id)? else { continue };
            if self.table.is_same(&next.table) {
                let pin = next.pin(id);
                ring.pin(&pin).with_context(|| format!("pin {}", pin.display()))?;
            } else {
                rings.push((id, ring));
            }
            // Each is an open file, of which there may be fewer than services.
            if rings.len() == TOGETHER {
                next.put_all(&std::mem::take(&mut rings))?;
            }
        }
        next.put_all(&rings)
    }

    /// Makes the pins equal to the rings in `RINGS`, after a predecessor that ended between two steps or an
    /// earlier version, which pinned none; returns how many rings had no pin.
    pub(crate) fn repair_pins(&self) -> Result<usize> {
        let mut rings = self.all().context("read RINGS")?;
        let listed = || format!("list {}", self.folder.display());
        let entries = fs::read_dir(&self.folder).with_context(listed)?;
        let entries = entries.collect::<io::Result<Vec<_>>>().with_context(listed)?;
        let mut kept = Vec::new();
        for entry in entries {
            let Some((id, next)) = entry.file_name().to_str().and_then(of_name) else { continue };
            let pin = entry.path();
            let context = || format!("repair the pin {}", pin.display());
            // One whose name another has taken meanwhile is that other.
            if MapInfo::from_pin(&pin).with_context(context)?.id()
                != rings.get(&id).copied().unwrap_or(0)
            {
                fs::remove_file(&pin).with_context(context)?;
                continue;
            }
            if next {
                fs::rename(&pin, self.pin(id)).with_context(context)?;
            }
            kept.push(id);
        }
        rings.retain(|id, _| !kept.contains(id));
        for (&id, &ring) in &rings {
            let pin = self.pin(id);
            open(ring, id)?.pin(&pin).with_context(|| format!("pin {}", pin.display()))?;
        }
        Ok(rings.len())
    }
}

/// A ring that has no pin.
fn open(ring: u32, service: u16) -> Result<MapData> {
    MapData::from_id(ring).with_context(|| {
        format!(
            "open the ring of service {service} by its number, as it has no pin; the kernel wants \
             CAP_SYS_ADMIN for that, and `lbd --prepare`, run as root, makes the pin"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins_are_read_as_they_are_written() {
        assert_eq!(of_name("ring-0"), Some((0, false)));
        assert_eq!(of_name("ring-65535-next"), Some((65_535, true)));
        for name in ["RINGS", "ring-", "ring--next", "ring-1-old", "ring-65536", "program-7"] {
            assert_eq!(of_name(name), None, "{name}");
        }
    }
}
