//! The folders of the pins: which sets of maps are there, which of them the attached program uses,
//! and so what a start has to do.
//!
//! `v3` holds the maps of layout 3. While a set is being replaced there are two: the next one is
//! made in `v3-next`, whatever layout the one before it has, and takes its name when the program
//! runs on it; one of the same layout is set aside as `v3-old` just before. Two sets share the maps
//! that need no change. After a crash they differ by the maps that they do not share:
//! the program in the kernel has either the ones or the others. Beside its maps a set has the pins of
//! its rings and of the programs that run on it ([`super::rings`], [`super::program_pins`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use lb_common::abi::ABI_VERSION;

use super::{kernel_link, layouts, pinned, program_pins, rings};

/// A folder of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Folder {
    /// Number of the maps' layout.
    pub version: u32,
    /// The stage in its name.
    pub stage: Stage,
}

/// The stage of the maps in a folder, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// They are the ones to be used.
    Current,
    /// They are to replace others.
    Next,
    /// They were replaced.
    Old,
}

/// The folder of this version's maps.
pub(crate) const CURRENT: Folder = Folder { version: ABI_VERSION, stage: Stage::Current };

/// The folder of the maps that are in use.
pub(crate) fn current(pin_dir: &Path) -> PathBuf {
    CURRENT.path(pin_dir)
}

/// Where copies of the maps are pinned for a moment, to verify an explanation. Nothing of them is kept: what is there
/// was left by an lbd that was killed.
pub(crate) fn copies(pin_dir: &Path) -> PathBuf {
    pin_dir.join("verify")
}

impl Folder {
    /// The folder of this name; none if the name is of something else.
    fn of_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix('v')?;
        let (number, stage) = match name.split_once('-') {
            None => (name, Stage::Current),
            Some((number, "next")) => (number, Stage::Next),
            Some((number, "old")) => (number, Stage::Old),
            Some(_) => return None,
        };
        Some(Self { version: number.parse().ok()?, stage })
    }

    /// Where it is.
    pub(crate) fn path(self, pin_dir: &Path) -> PathBuf {
        let suffix = match self.stage {
            Stage::Current => "",
            Stage::Next => "-next",
            Stage::Old => "-old",
        };
        pin_dir.join(format!("v{}{suffix}", self.version))
    }

    /// The folder of another stage.
    pub(crate) const fn as_stage(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

/// All folders of maps in `pin_dir`.
pub(crate) fn all(pin_dir: &Path) -> Result<Vec<Folder>> {
    let mut folders = Vec::new();
    if pin_dir.exists() {
        for entry in fs::read_dir(pin_dir).with_context(|| format!("list {}", pin_dir.display()))? {
            folders.extend(entry?.file_name().to_str().and_then(Folder::of_name));
        }
    }
    folders.sort();
    Ok(folders)
}

/// Whether something in a folder is one of its maps, not a ring or a program.
fn is_map(pin: &fs::DirEntry) -> bool {
    let name = pin.file_name();
    let others = [rings::PREFIX, program_pins::PREFIX];
    name.to_str().is_none_or(|name| !others.iter().any(|prefix| name.starts_with(prefix)))
}

/// Removes a folder with the pins in it; how many maps there were.
pub(crate) fn remove(folder: &Path) -> Result<usize> {
    let mut maps = 0;
    for pin in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let pin = pin?;
        let path = pin.path();
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        maps += usize::from(is_map(&pin));
    }
    fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
    Ok(maps)
}

/// A folder and the ids of its maps.
#[derive(Clone, Debug)]
struct Set {
    folder: Folder,
    maps: BTreeSet<u32>,
    /// No map of its layout is missing that holds what forwarding needs.
    whole: bool,
}

/// The plan of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartupPlan {
    /// Where the maps come from.
    pub plan: Plan,
    /// Folders that nothing needs.
    pub stale: Vec<Folder>,
    /// Folders of versions that this one knows nothing of, and that no program uses.
    pub strange: Vec<Folder>,
}

/// Where the maps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// There are none.
    Make,
    /// From this folder, which is of this version.
    Adopt(Folder),
    /// From this folder of an older version.
    Migrate(Folder),
    /// From the next set, on which a program runs already; what it was made from is caught up on.
    Finish(Option<Folder>),
    /// The attached program uses maps that this version knows nothing of.
    Refuse(Folder),
}

/// The ids of a folder's maps.
pub(crate) fn map_ids(folder: &Path) -> Result<BTreeSet<u32>> {
    let mut maps = BTreeSet::new();
    for pin in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let pin = pin?;
        if is_map(&pin) {
            let path = pin.path();
            let info = MapInfo::from_pin(&path);
            maps.insert(info.with_context(|| format!("open {}", path.display()))?.id());
        }
    }
    Ok(maps)
}

/// Reads the folders and the attached programs, and plans the start.
pub(crate) fn plan_startup(pin_dir: &Path) -> Result<StartupPlan> {
    let (mut sets, mut programs) = (Vec::new(), BTreeMap::new());
    for folder in all(pin_dir)? {
        let path = folder.path(pin_dir);
        let maps = map_ids(&path)?;
        programs.append(&mut program_pins::all(&path)?);
        let shapes = layouts::of(folder.version).unwrap_or_default();
        let whole = shapes.iter().all(|shape| shape.is_spare || path.join(shape.name).exists());
        sets.push(Set { folder, maps, whole });
    }
    let mut running = Vec::new();
    for id in pinned::running(pin_dir)? {
        running.push(match programs.remove(&id) {
            Some(maps) => maps,
            None => kernel_link::program_maps(id)?,
        });
    }
    let known = |version| layouts::of(version).is_some();
    Ok(decide(&sets, &running, ABI_VERSION, known))
}

/// Plans the start by the sets and the maps of each attached program. `known` decides
/// which layouts can be read.
fn decide(
    sets: &[Set],
    running: &[BTreeSet<u32>],
    own: u32,
    known: impl Fn(u32) -> bool,
) -> StartupPlan {
    // Whether a program has a map that is in this set alone.
    let runs = |set: &Set| {
        let elsewhere = |id: &u32| {
            let others = sets.iter().filter(|other| other.folder != set.folder);
            others.into_iter().any(|other| other.maps.contains(id))
        };
        running.iter().flatten().any(|id| set.maps.contains(id) && !elsewhere(id))
    };
    // A set that was never finished, by a start that ended before it had loaded the program.
    let torn = |set: &&Set| !set.whole && !runs(set);
    let mut stale: Vec<_> = sets.iter().filter(torn).map(|set| set.folder).collect();
    let sets: Vec<_> = sets.iter().filter(|set| !torn(set)).collect();
    let mut strange = Vec::new();
    let mut older: Vec<&Set> = Vec::new();
    for &set in sets.iter().filter(|set| set.folder.version != own) {
        let Folder { version, stage } = set.folder;
        let readable = version < own && known(version);
        match (readable, stage) {
            (true, Stage::Current) => older.push(set),
            _ if runs(set) => {
                return StartupPlan { plan: Plan::Refuse(set.folder), stale: Vec::new(), strange };
            }
            (true, _) => stale.push(set.folder),
            (false, _) => strange.push(set.folder),
        }
    }
    let at = |stage| sets.iter().copied().find(|set| set.folder == Folder { version: own, stage });
    let (current, next, old) = (at(Stage::Current), at(Stage::Next), at(Stage::Old));
    let latest = older.iter().copied().rfind(|set| runs(set));
    let folder = |set: &Set| set.folder;
    if next.is_some_and(runs) {
        let from = old.or(current).or(latest).or(older.last().copied());
        return StartupPlan { plan: Plan::Finish(from.map(folder)), stale, strange };
    }
    stale.extend(next.map(folder));
    // A set of this version that was set aside is the one, if the crash came before the next took
    // its name and nothing runs on that.
    let own_set = current.or(old);
    let plan = match (own_set, latest) {
        (own_set, Some(latest)) if !own_set.is_some_and(runs) => Plan::Migrate(latest.folder),
        (Some(own_set), _) => Plan::Adopt(own_set.folder),
        (None, _) => older.last().map_or(Plan::Make, |set| Plan::Migrate(set.folder)),
    };
    let used = match plan {
        Plan::Adopt(folder) | Plan::Migrate(folder) => Some(folder),
        Plan::Make | Plan::Finish(_) | Plan::Refuse(_) => None,
    };
    let rest = older.into_iter().chain(current).chain(old).map(folder);
    stale.extend(rest.filter(|folder| Some(*folder) != used));
    StartupPlan { plan, stale, strange }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, maps: &[u32]) -> Set {
        Set { folder: folder(name), maps: maps.iter().copied().collect(), whole: true }
    }

    fn folder(name: &str) -> Folder {
        Folder::of_name(name).unwrap()
    }

    /// What version 3, which can read 1 and 2, does with these; the names of what it removes.
    fn planned(sets: &[Set], running: &[&[u32]]) -> (Plan, Vec<String>) {
        let running: Vec<_> = running.iter().map(|ids| ids.iter().copied().collect()).collect();
        let startup = decide(sets, &running, 3, |version| version > 0);
        let name = |folder: &Folder| folder.path(Path::new("")).to_str().unwrap().to_owned();
        (startup.plan, startup.stale.iter().map(name).collect())
    }

    #[test]
    fn names_of_folders_are_read_as_they_are_written() {
        for name in ["v1", "v2-next", "v30-old"] {
            assert_eq!(folder(name).path(Path::new("/p")), Path::new("/p").join(name));
        }
        for name in ["link-eth0", "v", "vx", "v1-", "v1-other", "v-1", "v1-next-old"] {
            assert_eq!(Folder::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_set_of_this_version_is_adopted_and_an_older_one_migrated() {
        assert_eq!(planned(&[], &[]), (Plan::Make, vec![]));
        assert_eq!(planned(&[set("v3", &[1])], &[&[1]]), (Plan::Adopt(folder("v3")), vec![]));
        let older = [set("v1", &[1]), set("v2", &[2])];
        assert_eq!(planned(&older, &[&[1]]), (Plan::Migrate(folder("v1")), vec!["v2".into()]));
        assert_eq!(planned(&older, &[]), (Plan::Migrate(folder("v2")), vec!["v1".into()]));
    }

    #[test]
    fn a_set_that_was_never_finished_is_removed() {
        let torn = |name: &str, maps: &[u32]| Set { whole: false, ..set(name, maps) };
        for name in ["v1", "v3", "v3-next"] {
            assert_eq!(planned(&[torn(name, &[1])], &[]), (Plan::Make, vec![name.into()]));
        }
        // A program runs on this one: another process has removed a pin.
        assert_eq!(planned(&[torn("v3", &[1])], &[&[1]]), (Plan::Adopt(folder("v3")), vec![]));
    }

    #[test]
    fn what_an_unknown_version_runs_is_left_alone() {
        for name in ["v4", "v0", "v4-next", "v2-next"] {
            let sets = [set("v3", &[1]), set(name, &[2])];
            assert_eq!(planned(&sets, &[&[2]]), (Plan::Refuse(folder(name)), vec![]), "{name}");
        }
        let startup = decide(&[set("v4", &[])], &[], 3, |_| true);
        assert_eq!((startup.plan, startup.strange), (Plan::Make, vec![folder("v4")]));
    }

    /// Every moment of a migration at which a crash leaves something to distinguish.
    #[test]
    fn a_crash_leaves_the_old_set_or_the_next() {
        // From another layout. Map 9 is shared, 1 was replaced by 2.
        let (from, next, now) = (set("v2", &[1, 9]), set("v3-next", &[2, 9]), set("v3", &[2, 9]));
        let migrate = Plan::Migrate(folder("v2"));
        let finish = Plan::Finish(Some(folder("v2")));
        let both = [from.clone(), next.clone()];
        assert_eq!(planned(&both, &[&[1, 9]]), (migrate, vec!["v3-next".into()]));
        assert_eq!(planned(&both, &[&[1, 9], &[2, 9]]), (finish, vec![]));
        assert_eq!(planned(&both, &[&[2, 9]]), (finish, vec![]));
        let adopt = Plan::Adopt(folder("v3"));
        assert_eq!(planned(&[from, now], &[&[2, 9]]), (adopt, vec!["v2".into()]));
        // Of the same layout.
        let (from, aside, now) = (set("v3", &[1, 9]), set("v3-old", &[1, 9]), set("v3", &[2, 9]));
        let finish = |name| Plan::Finish(Some(folder(name)));
        assert_eq!(
            planned(&[from.clone(), next.clone()], &[&[1, 9]]),
            (adopt, vec!["v3-next".into()])
        );
        assert_eq!(planned(&[from, next.clone()], &[&[2, 9]]), (finish("v3"), vec![]));
        assert_eq!(planned(&[next.clone(), aside.clone()], &[&[2, 9]]), (finish("v3-old"), vec![]));
        assert_eq!(planned(&[now, aside.clone()], &[&[2, 9]]), (adopt, vec!["v3-old".into()]));
        // Nothing is attached any more: what was set aside has everything but the last moments.
        let restored = Plan::Adopt(folder("v3-old"));
        assert_eq!(planned(&[next, aside], &[]), (restored, vec!["v3-next".into()]));
    }

    #[test]
    fn sets_that_share_every_map_are_one() {
        let sets = [set("v2", &[1]), set("v3-next", &[1])];
        let plan = planned(&sets, &[&[1]]);
        assert_eq!(plan, (Plan::Migrate(folder("v2")), vec!["v3-next".into()]));
        let sets = [set("v2", &[1]), set("v3", &[1])];
        assert_eq!(planned(&sets, &[&[1]]), (Plan::Adopt(folder("v3")), vec!["v2".into()]));
    }
}
