//! What takes root, done for an `lbd` that will not be root: the file system and the folder of the
//! pins, and pins for what an earlier version has left in the kernel without.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};

use super::{
    bpffs, folders, layouts, maps, pinned, program_pins,
    sys::program::{ProgramInfo, open_program, pin_program},
};

/// Prepares `pin_dir`. What was pinned, for people; empty if everything was.
///
/// # Errors
///
/// If this process is not root, there is no BPF file system, or an `lbd` is running with the pins.
pub fn prepare(pin_dir: &Path) -> Result<Vec<String>> {
    bpffs::ensure_mounted(pin_dir)?;
    bpffs::make_folder(pin_dir)?;
    let _lock = bpffs::lock(pin_dir)?;
    let mut done = Vec::new();
    let mut sets = Vec::new();
    let mut pinned = BTreeSet::new();
    for folder in folders::all(pin_dir)? {
        let path = folder.path(pin_dir);
        pinned.extend(program_pins::all(&path)?.into_keys());
        // What another version keeps beside maps that this one does not know is its own affair.
        if layouts::of(folder.version).is_some() {
            if let Some(rings) = maps::open_rings(&path)? {
                let rings = rings.repair_pins()?;
                if rings > 0 {
                    done.push(format!("{rings} rings pinned: {}", path.display()));
                }
            }
            sets.push((folders::map_ids(&path)?, path));
        }
    }
    for id in pinned::running(pin_dir)?.difference(&pinned).copied() {
        let opened = open_program(id).with_context(|| format!("open program {id}"))?;
        let info = ProgramInfo::of(&opened).with_context(|| format!("ask for program {id}"))?;
        // One that has none of these maps is not ours, and what it has is of no interest.
        let set = sets.iter().find(|(maps, _)| !maps.is_disjoint(&info.maps));
        if let Some((_, folder)) = set {
            let path = program_pins::path(folder, id);
            pin_program(&opened, &path).with_context(|| format!("pin {}", path.display()))?;
            done.push(format!("program pinned: {}", path.display()));
        }
    }
    Ok(done)
}
