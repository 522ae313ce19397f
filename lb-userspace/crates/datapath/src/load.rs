//! Loads the program with the maps that are to be used: those that are pinned, ones migrated from
//! them, or new ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{Ebpf, EbpfLoader, programs};
use lb_common::{abi::TOO_BIG_BUDGETS, nat_connections, return_route};
use lb_model::settings::{Limits, Settings};
use ring::rand::{SecureRandom as _, SystemRandom};
use tracing::{info, warn};

use super::{
    attach, bpffs,
    folders::{self, CURRENT, Folder, Plan, Stage},
    kernel, layouts,
    maps::{self, OpenMaps},
    migrate::{self, Source, Step},
    pin_log::PinLog,
    pinned,
    program_log::ProgramLog,
    program_pins, pull,
    reverse_nat::ReverseNat,
    service_index::ServiceIndex,
    variants::{self, Mode, Variants},
    wide_index::WideIndex,
    xdp::Xdp,
};
use crate::objects;

impl Xdp {
    /// Adopts what is pinned, or makes it; puts the program on the interfaces. Maps of an older
    /// layout, or of other limits, are migrated: forwarding goes on and no flow is lost.
    ///
    /// # Errors
    ///
    /// If the kernel is too old, there is no BPF file system, another lbd is running with the pins, the pinned maps are of
    /// a layout that this version does not know, the program is refused, or an interface can't have
    /// it. What ran before runs on.
    pub fn open(settings: &Settings) -> Result<Self> {
        Self::open_by_steps(settings, &mut |_| Ok(()))
    }

    /// The same; `done` is called at each step of a migration, for tests that crash or write there.
    /// An error that it returns ends the start.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], and what `done` returns.
    pub fn open_by_steps(
        settings: &Settings,
        done: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<Self> {
        kernel::check()?;
        check_limits(&settings.limits)?;
        let pin_dir = &settings.pin_dir;
        bpffs::ensure_mounted(pin_dir)?;
        bpffs::make_folder(pin_dir)?;
        let lock = bpffs::lock(pin_dir)?;
        loop {
            let start = Start::plan(settings)?;
            let (finishes, made) = (start.finishes, start.makes);
            let opened = start.run(settings, &lock, done);
            if opened.is_err() {
                tidy(pin_dir, made);
            }
            let opened = opened?;
            if !finishes || opened.limits == settings.limits {
                return Ok(opened);
            }
            // The migration that another start began had other limits than this one.
        }
    }
}

/// Removes what a start that has failed leaves and nothing uses.
fn tidy(pin_dir: &Path, made: bool) {
    let links = pinned::all(pin_dir);
    if made && links.is_ok_and(|links| links.is_empty()) {
        // The next start is to be free to size the maps.
        let _ = super::detach::remove(pin_dir);
        return;
    }
    if let Ok(startup) = folders::plan_startup(pin_dir) {
        let next = startup.stale.iter().filter(|folder| folder.stage == Stage::Next);
        for folder in next {
            let _ = folders::remove(&folder.path(pin_dir));
        }
    }
    if let Ok(running) = pinned::running(pin_dir) {
        let _ = program_pins::retain(&CURRENT.path(pin_dir), &running);
    }
}

/// How the data plane starts.
#[derive(Debug)]
struct Start {
    /// The set that the program is to run on.
    folder: Folder,
    /// The set that it replaces.
    from: Option<Source>,
    limits: Limits,
    cpus: u32,
    /// There were no maps at all.
    makes: bool,
    /// The program runs on `folder` already, somewhere.
    finishes: bool,
}

impl Start {
    /// Finds out what there is, and removes what nothing needs.
    fn plan(settings: &Settings) -> Result<Self> {
        let pin_dir = &settings.pin_dir;
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| anyhow::Error::new(error).context(what))?
            as u32;
        let startup = folders::plan_startup(pin_dir)?;
        let next = CURRENT.as_stage(Stage::Next);
        let open = |folder| Source::open(pin_dir, folder, settings.limits, cpus);
        let start = |folder, from, limits| Self {
            folder,
            from,
            limits,
            cpus,
            makes: startup.plan == Plan::Make,
            finishes: false,
        };
        let pinned = |folder: Folder| {
            layouts::pinned_limits(&folder.path(pin_dir), &layouts::SHAPES, settings.limits, cpus)
        };
        let start = match startup.plan {
            Plan::Refuse(folder) => bail!(
                "{} holds the maps of another version of lbd, whose program is attached; start that \
                 version, or end its forwarding with `lbctl detach`",
                folder.path(pin_dir).display(),
            ),
            Plan::Make => start(CURRENT, None, settings.limits),
            Plan::Adopt(folder) => {
                if pinned(folder)? == settings.limits {
                    start(CURRENT, None, settings.limits)
                } else {
                    let from = open(folder)?;
                    let limits = from.fitting(settings.limits)?;
                    if limits == from.limits {
                        start(CURRENT, None, limits)
                    } else {
                        start(next, Some(from.moved(pin_dir, CURRENT)), limits)
                    }
                }
            }
            Plan::Migrate(folder) => {
                let from = open(folder)?;
                let limits = from.fitting(settings.limits)?;
                start(next, Some(from), limits)
            }
            Plan::Finish(from) => {
                let from = from.map(open).transpose()?;
                Self { finishes: true, ..start(next, from, pinned(next)?) }
            }
        };
        for folder in startup.stale {
            folders::remove(&folder.path(pin_dir))?;
            info!(folder = %folder.path(pin_dir).display(), "maps removed that nothing used");
        }
        for folder in startup.strange {
            let folder = folder.path(pin_dir);
            warn!(folder = %folder.display(), "maps of another version; `lbctl detach` removes them");
        }
        if let Plan::Adopt(folder) = startup.plan
            && folder != CURRENT
        {
            let (aside, current) = (folder.path(pin_dir), CURRENT.path(pin_dir));
            fs::rename(&aside, &current).with_context(|| format!("rename {}", aside.display()))?;
        }
        Ok(start)
    }

    fn run(
        self,
        settings: &Settings,
        lock: &fs::File,
        done: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<Xdp> {
        let Self { folder, from, limits, cpus, finishes, .. } = self;
        let pin_dir = &settings.pin_dir;
        let migrates = folder.stage == Stage::Next;
        let mut done = |step| if migrates { done(step) } else { Ok(()) };
        let path = folder.path(pin_dir);
        match &from {
            Some(from) if !finishes => from.share(pin_dir, folder, &limits, cpus)?,
            _ => bpffs::make_folder(&path)?,
        }
        let mut object = load_maps(&path, &limits, cpus)?;
        let mut maps = OpenMaps::open(&path)?;
        done(Step::Made)?;
        if let Some(from) = from.as_ref().filter(|_| !finishes) {
            from.copy(&maps)?;
        }
        maps.rings.repair_pins().context("pin the rings")?;
        done(Step::Copied)?;
        // Before the program is borrowed; it needs the maps until it is loaded, and so they are kept.
        let log = ProgramLog::take(&mut object)?;
        let mut programs = Variants::new(&mut object, variants::BALANCE, &path);
        let program_id = programs.get(Mode::Native)?.info().context("ask for the program")?.id();
        // Made right before the program asks it, whatever a predecessor's end left of it.
        let (buckets, entries) = maps::open_index(&path)?;
        let index = ServiceIndex::open(&buckets, entries, &maps::services(&maps)?)
            .context("make the services' index")?;
        let wide = WideIndex::open(&maps).context("make the tries of ports")?;
        let reverse_nat = ReverseNat::open(&maps).context("make REVERSE_NAT and REVERSE_RANGES")?;
        let pin_log = PinLog::open(&path)?;
        done(Step::Loaded)?;
        let links = attach::attach(&mut programs, settings, &mut || done(Step::Swapped))?;
        if migrates {
            if let Some(from) = &from {
                from.catch_up(&maps, &limits, cpus)?;
            }
            done(Step::CaughtUp)?;
            migrate::take_place(pin_dir, folder, from.map(|from| from.folder), &mut done)?;
            maps.rings.moved(&CURRENT.path(pin_dir));
        }
        let mut programs = pinned::running(pin_dir)?;
        programs.insert(program_id);
        program_pins::retain(&CURRENT.path(pin_dir), &programs)?;
        layouts::unpin_retired(&CURRENT.path(pin_dir))?;
        info!(folder = %CURRENT.path(pin_dir).display(), "data plane is there");
        let settings = settings.clone();
        let mut plane = Xdp {
            maps,
            index,
            wide,
            reverse_nat,
            pin_log,
            log: Some(log),
            limits,
            possible_cpus: cpus,
            object,
            settings,
            links,
            capture: None,
            local_clients: None,
            _lock: lock.try_clone().context("keep the lock")?,
        };
        plane.set_return_egress()?;
        plane.follow_local_clients();
        Ok(plane)
    }
}

/// The maps of a folder; those that are missing are made.
pub(super) fn load_maps(folder: &Path, limits: &Limits, cpus: u32) -> Result<Ebpf> {
    load_object(objects::BALANCER, folder, limits, cpus)
}

/// An object over the maps of a folder.
pub(super) fn load_object(
    object: &[u8],
    folder: &Path,
    limits: &Limits,
    cpus: u32,
) -> Result<Ebpf> {
    let (backends, services) = (limits.backends + 1, limits.services);
    let mask = layouts::buckets(limits) - 1;
    let mut loader = EbpfLoader::new();
    loader.override_global("BACKENDS_PER_CPU", &backends, true);
    loader.override_global("SERVICES_PER_CPU", &services, true);
    loader.override_global("SERVICE_INDEX_MASK", &mask, true);
    loader.override_global("ICMP_RATE", &limits.icmp_errors, true);
    loader.map_max_entries("ICMP_BUDGETS", cpus);
    loader.map_max_entries("TOO_BIG_BUDGETS", cpus * TOO_BIG_BUDGETS);
    loader.map_max_entries("RETURN_ROUTES", cpus * return_route::SLOTS);
    loader.map_max_entries("NAT_RECENT", cpus * nat_connections::RECENT);
    let mut random = [0; 8];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| anyhow!("the kernel gives no random bytes"))?;
    let source_key = u64::from_ne_bytes(random) | 1;
    loader.override_global("SOURCE_KEY", &source_key, true);
    for shape in &layouts::SHAPES {
        let path: PathBuf = folder.join(shape.name);
        loader.map_max_entries(shape.name, (shape.entries)(limits, cpus));
        loader.map_pin_path(shape.name, path);
    }
    // Of one that captures.
    loader.map_max_entries("CAPTURE_COUNTERS", cpus);
    loader.map_max_entries("CAPTURE_BUDGETS", cpus);
    maps::pin_rings(folder, limits.services)?;
    let object = pull::with_pull_data(object, &mut loader);
    loader.load(&object).context("load the maps and the program")
}

/// The kernel's record of the balancer's program.
pub(super) fn program_info(object: &Ebpf) -> Result<programs::ProgramInfo> {
    let program = object.program(variants::BALANCE.native).context("the object has no program")?;
    let program: &programs::Xdp = program.try_into().context("the program is not XDP")?;
    program.info().context("ask for the program")
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
