//! Takes everything away: the one way in which forwarding ends.

use std::{fs, path::Path};

use anyhow::Result;

use super::{bpffs, folders, local_clients, pinned};

/// Removes links first, so that the program is gone before its maps, then the maps of every
/// version. What was removed, for people; empty if there was nothing.
///
/// # Errors
///
/// If something is there and can't be removed, or an lbd is running with it.
pub fn detach(pin_dir: &Path) -> Result<Vec<String>> {
    let _lock = if pin_dir.exists() { Some(bpffs::lock(pin_dir)?) } else { None };
    remove(pin_dir)
}

/// The same for the holder of the lock.
pub(super) fn remove(pin_dir: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for link in pinned::all(pin_dir)? {
        pinned::remove(&link)?;
        removed.push(format!("program detached: {}", link.display()));
    }
    if local_clients::remove(pin_dir)? {
        removed.push("hooks for clients on this node removed".into());
    }
    for folder in folders::all(pin_dir)? {
        let folder = folder.path(pin_dir);
        let maps = folders::remove(&folder)?;
        removed.push(format!("{maps} maps removed: {}", folder.display()));
    }
    // An lbd that was killed may have left copies.
    let _ = fs::remove_dir_all(folders::copies(pin_dir));
    // The folder may hold what others have pinned there.
    let _ = fs::remove_dir(pin_dir);
    Ok(removed)
}
