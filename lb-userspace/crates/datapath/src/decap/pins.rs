//! Where a decapsulator's link, maps and counters are pinned.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::Map,
    programs::links::{FdLink, PinnedLink},
};
use lb_netlink::query;

use crate::pinned;

/// What the folders of decapsulators begin with.
pub(super) const PREFIX: &str = "decap-";

/// bpffs takes no dots.
pub(super) fn file_name(dev: &str) -> String {
    dev.replace('.', "_")
}

/// How long another command may take to let the pins go.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pins of one decapsulator.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) folder: PathBuf,
}

impl Pins {
    pub(super) fn of(pin_dir: &Path, dev: &str) -> Self {
        Self { folder: pin_dir.join(format!("{PREFIX}{}", file_name(dev))) }
    }

    pub(super) fn link(&self) -> PathBuf {
        self.folder.join("link")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn create(&self) -> Result<()> {
        let folder = &self.folder;
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "create {}; a bpf file system is needed there: mount -t bpf bpf /sys/fs/bpf",
                folder.display()
            )
        })
    }

    /// Makes the caller the only one that attaches here, until the file is dropped or the process ends.
    /// A process that holds it for long follows the addresses.
    pub(super) fn lock(&self, dev: &str) -> Result<fs::File> {
        let open = fs::File::open(&self.folder);
        let folder = open.with_context(|| format!("open {}", self.folder.display()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(fs::TryLockError::WouldBlock) => bail!(
                    "a running `lbctl decap run` keeps the lists of {dev}; change its options in                      /etc/default/lb-decap-{dev} and restart it: systemctl restart lb-decap@{dev}"
                ),
                Err(fs::TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", self.folder.display()));
                }
            }
        }
    }

    /// Whether a process follows the addresses; false for a user that may not look.
    pub(super) fn is_followed(&self) -> bool {
        let folder = fs::File::open(&self.folder);
        folder.is_ok_and(|folder| {
            matches!(folder.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
        })
    }

    /// Id of the program of the pinned link.
    pub(super) fn program(&self) -> Option<u32> {
        let link = PinnedLink::from_pin(self.link()).ok()?;
        FdLink::from(link).info().ok().map(|info| info.program_id())
    }

    /// The pinned link, if its program is the one on `dev`. The link of an interface that is gone
    /// is of no more use: its pin is removed.
    pub(super) fn link_of(
        &self,
        dev: &str,
        interfaces: &BTreeMap<String, query::InterfaceSnapshot>,
    ) -> Result<Option<FdLink>> {
        let path = self.link();
        if !path.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(&path)
            .with_context(|| format!("open the link {}", path.display()))?;
        let link = FdLink::from(link);
        let program = link.info()?.program_id();
        match interfaces.iter().find(|(_, one)| one.xdp_prog_id == Some(program)) {
            Some((name, _)) if name == dev => Ok(Some(link)),
            Some((name, _)) => bail!(
                "the pins in {} belong to interface {name}; detach it first: \
                 lbctl decap detach --dev {name}",
                self.folder.display()
            ),
            None => {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                Ok(None)
            }
        }
    }

    /// Pins `map` in place of the one that was pinned under its name.
    pub(super) fn replace_map(&self, name: &str, map: &Map) -> Result<()> {
        let path = self.map(name);
        let aside = self.map(&format!("{name}-next"));
        if aside.exists() {
            fs::remove_file(&aside).with_context(|| format!("remove {}", aside.display()))?;
        }
        let (Map::HashMap(data) | Map::Array(data)) = map else {
            bail!("the map {name} is neither a hash map nor an array")
        };
        data.pin(&aside).with_context(|| format!("pin {}", aside.display()))?;
        fs::rename(&aside, &path).with_context(|| format!("pin {}", path.display()))
    }

    /// Removes all pins, and with the link's the program; false if there were none.
    pub(super) fn remove(&self) -> Result<bool> {
        let folder = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            folder => folder.with_context(|| format!("read {}", self.folder.display()))?,
        };
        // First the program goes, then what it counts in.
        let link = self.link();
        if link.exists() {
            pinned::remove(&link)?;
        }
        for entry in folder {
            let path = entry.with_context(|| format!("read {}", self.folder.display()))?.path();
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.with_context(|| format!("remove {}", path.display()))?,
            }
        }
        fs::remove_dir(&self.folder)
            .with_context(|| format!("remove {}", self.folder.display()))?;
        Ok(true)
    }
}
