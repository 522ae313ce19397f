//! Pins of programs, beside the maps that they use: `program-42` for the program with id 42.
//!
//! A link has the id of the program that it runs, and the kernel opens programs by their ids for
//! `CAP_SYS_ADMIN` alone. By its pin, the next start finds out which maps that program has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::Program;

use super::sys::program::ProgramInfo;

/// What the pins of programs start with.
pub(crate) const PREFIX: &str = "program-";

/// Where the program with this id is pinned.
pub(crate) fn path(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("{PREFIX}{id}"))
}

/// Pins a program that is loaded, unless it is; its id.
pub(crate) fn pin(folder: &Path, program: &mut Program) -> Result<u32> {
    let id = program.info().context("ask for the program")?.id();
    let path = path(folder, id);
    if !path.exists() {
        program.pin(&path).with_context(|| format!("pin {}", path.display()))?;
    }
    Ok(id)
}

/// The pins of programs in a folder.
fn pins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let is_one =
        |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX));
    Ok(entries.iter().filter(|entry| is_one(entry)).map(fs::DirEntry::path).collect())
}

/// The programs that are pinned in a folder, with the ids of their maps.
pub(crate) fn all(folder: &Path) -> Result<BTreeMap<u32, BTreeSet<u32>>> {
    let mut all = BTreeMap::new();
    for pin in pins(folder).with_context(|| format!("list {}", folder.display()))? {
        let info =
            ProgramInfo::of_pinned(&pin).with_context(|| format!("open {}", pin.display()))?;
        all.insert(info.id, info.maps);
    }
    Ok(all)
}

/// Removes the pins of all programs but these.
pub(crate) fn retain(folder: &Path, programs: &BTreeSet<u32>) -> Result<()> {
    let kept: BTreeSet<_> = programs.iter().map(|&id| path(folder, id)).collect();
    for pin in pins(folder).with_context(|| format!("list {}", folder.display()))? {
        if !kept.contains(&pin) {
            fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?;
        }
    }
    Ok(())
}
