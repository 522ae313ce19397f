//! The record of a lab, by which another process finds it, and the removal of what killed runs left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::ROOT;
use crate::{
    mounts::BPFFS,
    namespace::{self, Namespace},
    process::{kill_all, started},
};

/// A lab, as seen from another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its name, which is also that of its folders.
    pub name: String,
    /// Its maker's pid.
    pub pid: u32,
    /// When its maker started, as [`started`] returns it.
    pub started: u64,
    /// Whether it stays when its maker ends.
    pub stays: bool,
    /// The hosts' names and their namespaces' names.
    pub hosts: Vec<(String, String)>,
}

impl Record {
    /// Whether its maker lives, or it needs none.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.stays || started(self.pid) == Some(self.started)
    }

    /// The namespace of a host.
    ///
    /// # Errors
    ///
    /// If there is no such host; the error names those that there are.
    pub fn namespace(&self, host: &str) -> Result<Namespace> {
        let found = self.hosts.iter().find(|(name, _)| name == host);
        let names = || self.hosts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        let (_, namespace) =
            found.with_context(|| format!("no host `{host}`; one of: {}", names().join(", ")))?;
        Ok(Namespace::existing(namespace))
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// Removes everything of the lab: processes, namespaces, pins, files.
    ///
    /// # Errors
    ///
    /// If a part of it can't be removed.
    pub fn remove(&self) -> Result<()> {
        for (name, _) in namespace::all()?.iter().filter(|(name, _)| self.owns(name)) {
            remove_namespace(name)?;
        }
        remove_folder(&pins(&self.name))?;
        remove_folder(&self.folder())
    }

    fn owns(&self, namespace: &str) -> bool {
        self.hosts.iter().any(|(_, name)| name == namespace)
    }
}

/// The labs on this machine, newest first.
///
/// # Errors
///
/// If their folder can't be read.
pub fn labs() -> Result<Vec<Record>> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Ok(Vec::new()) };
    let mut labs = Vec::new();
    for entry in entries {
        let path = entry.context("read the folder of labs")?.path();
        // A lab that is being built or removed has no record.
        let Ok(record) = fs::read(path.join("lab.json")) else { continue };
        let record = serde_json::from_slice::<Record>(&record);
        labs.push(record.with_context(|| format!("{}/lab.json", path.display()))?);
    }
    labs.sort_by_key(|lab| std::cmp::Reverse((lab.started, lab.pid)));
    Ok(labs)
}

/// Removes what is left of labs and namespaces whose makers are gone; the names of what it
/// removed.
///
/// # Errors
///
/// If something of it can't be removed.
pub fn sweep() -> Result<Vec<String>> {
    let (alive, dead): (Vec<_>, Vec<_>) = labs()?.into_iter().partition(Record::alive);
    let mut removed = Vec::new();
    for lab in dead {
        lab.remove()?;
        removed.push(lab.name);
    }
    for entry in fs::read_dir(ROOT).into_iter().flatten() {
        let folder = entry.context("read the folder of labs")?.path();
        let maker = folder.file_name().and_then(|name| namespace::maker(&name.to_string_lossy()));
        let gone = maker.is_some_and(|pid| started(pid).is_none());
        if gone && !folder.join("lab.json").exists() {
            remove_folder(&folder)?;
        }
    }
    // Tests without a lab pin as well.
    for entry in fs::read_dir(BPFFS).into_iter().flatten() {
        let pins = entry.context("read the BPF file system")?.path();
        let name = pins.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let gone = namespace::maker(&name).is_some_and(|pid| started(pid).is_none());
        if gone && !alive.iter().any(|lab| lab.name == name) {
            remove_folder(&pins)?;
            removed.push(pins.display().to_string());
        }
    }
    for (name, pid) in namespace::all()? {
        let kept = alive.iter().any(|lab| lab.owns(&name));
        if !kept && started(pid).is_none() {
            remove_namespace(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

fn remove_namespace(name: &str) -> Result<()> {
    let namespace = Namespace::existing(name);
    kill_all(&namespace.pids()?)?;
    namespace.remove()
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The folder of a lab's pins.
pub(super) fn pins(lab: &str) -> PathBuf {
    Path::new(BPFFS).join(lab)
}
