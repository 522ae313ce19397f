//! Loads the program with the maps of this version: those that are pinned, or new ones.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{EbpfLoader, programs};
use lb_common::abi::ABI_VERSION;
use tracing::{info, warn};

use super::{attach, bpffs, maps, maps::Maps, service_index::ServiceIndex, xdp, xdp::Xdp};
use crate::{
    objects,
    settings::{Limits, Settings},
};

/// Name of the balancer's program in its object.
const BALANCE: &str = "balance";

/// The folder of this version's maps.
pub(super) fn maps_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{ABI_VERSION}"))
}

impl Xdp {
    /// Adopts what is pinned, or makes it; puts the program on the interfaces.
    ///
    /// # Errors
    ///
    /// If there is no BPF file system, another lbd is running with the pins, the pinned maps are not
    /// this version's, the program is refused, or an interface can't have it.
    pub fn open(settings: &Settings) -> Result<Self> {
        let pin_dir = &settings.pin_dir;
        bpffs::ensure_mounted(pin_dir)?;
        refuse_other_versions(pin_dir)?;
        let folder = maps_dir(pin_dir);
        let adopted = folder.exists();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        let lock = bpffs::lock(pin_dir)?;
        let opened = Self::load(settings, &folder, lock);
        if opened.is_err() && !adopted && attach::pinned_links(pin_dir).is_ok_and(|l| l.is_empty())
        {
            // Nothing runs with these maps; the next start is to be free to size them.
            let _ = super::detach::remove(pin_dir);
        }
        opened
    }

    fn load(settings: &Settings, folder: &Path, lock: fs::File) -> Result<Self> {
        let possible_cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| anyhow::Error::new(error).context(what))?
            as u32;
        check_limits(&settings.limits)?;
        let limits = maps::pinned_limits(folder, settings.limits, possible_cpus)?;
        if limits != settings.limits {
            warn!(
                running = ?limits,
                configured = ?settings.limits,
                "the maps keep the limits that they were made with; new ones take `lbctl detach` \
                 and a new start",
            );
        }
        let sizes = maps::sizes(&limits, possible_cpus);
        let (backends, services) = (limits.backends + 1, limits.services);
        let mut loader = EbpfLoader::new();
        loader.override_global("BACKENDS_PER_CPU", &backends, true);
        loader.override_global("SERVICES_PER_CPU", &services, true);
        let mask = maps::buckets(&limits) - 1;
        loader.override_global("SERVICE_INDEX_MASK", &mask, true);
        for (name, entries) in &sizes {
            loader.map_max_entries(name, *entries);
            loader.map_pin_path(name, folder.join(name));
        }
        maps::pin_rings(folder, &limits)?;
        let mut object = loader.load(objects::BALANCER).context("load the maps and the program")?;
        let program = object.program_mut(BALANCE).context("the object has no program")?;
        let program: &mut programs::Xdp = program.try_into().context("the program is not XDP")?;
        program.load().context("the kernel refuses the program")?;
        let maps = Maps::open(folder)?;
        // Made right before the program asks it, whatever a predecessor's end left of it.
        let (buckets, entries) = maps::open_index(folder)?;
        let index = ServiceIndex::open(&buckets, entries, &xdp::services(&maps)?)
            .context("make the services' index")?;
        let links = attach::attach(program, settings)?;
        info!(folder = %folder.display(), "data plane is there");
        Ok(Self { maps, index, limits, possible_cpus, links, _lock: lock })
    }
}

/// What ids of 16 bits can name.
fn check_limits(limits: &Limits) -> Result<()> {
    let ids = u32::from(u16::MAX);
    ensure!(
        (1..=ids).contains(&limits.services) && (1..=ids).contains(&limits.backends),
        "limits: services {} and backends {}; both are from 1 to {ids}",
        limits.services,
        limits.backends,
    );
    Ok(())
}

/// Two versions can't share an interface, and a flow must not lose its backend by a silent flush.
fn refuse_other_versions(pin_dir: &Path) -> Result<()> {
    let links = attach::pinned_links(pin_dir)?;
    for other in versions(pin_dir)? {
        if other == maps_dir(pin_dir) {
            continue;
        }
        if links.is_empty() {
            warn!(folder = %other.display(), "maps of another version; `lbctl detach` removes them");
            continue;
        }
        bail!(
            "{} holds the maps of another version of lbd, whose program is attached; start that \
             version, or end its forwarding with `lbctl detach`",
            other.display(),
        );
    }
    Ok(())
}

/// The folders of maps, of this version and of others.
pub(super) fn versions(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut versions = Vec::new();
    if pin_dir.exists() {
        for entry in fs::read_dir(pin_dir).with_context(|| format!("list {}", pin_dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            if number.is_some() {
                versions.push(entry.path());
            }
        }
    }
    versions.sort();
    Ok(versions)
}
