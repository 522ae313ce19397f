//! From one set of maps to another, with the program running: another layout, or other limits.
//!
//! 1. The next set is made beside the one that is used. What is alike in both, the rings always, is
//!    one map in two sets. The rest is copied, and converted where the layout is another: by now the program of the old
//!    set runs on.
//! 2. The program of this version is loaded over the next set and swapped into each link by one
//!    atomic update.
//! 3. What the old program has opened and touched since the copy is caught up on, unless the new
//!    one has dealt with it later; counters move.
//! 4. The next set takes the old one's place.
//!
//! A crash at any point leaves a state that [`super::folders`] can distinguish: until the first swap the
//! next set is discarded by the next start, from then on it is finished.
//!
//! Both programs use the same rings, so no stamp of a slot is lost. Tokens of SYN budgets and marks of SYNs are not
//! copied: budgets begin full. A start that fails for another reason than a crash discards the next set at once;
//! errors that can be found early, as an interface that is missing or taken, come before the first swap.
//!
//! A start refuses maps of a layout that it does not know while their program is attached (a newer version's). It
//! does not shrink a map below its entries, with a quarter to spare for flows; then the old limit stays, with a
//! warning.

use std::{fs, io, mem::offset_of, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::{
    abi::{BackendCounter, FlowKey, FlowValue, Fragment, flow_flags},
    verdict::REASONS,
};
use lb_model::settings::Limits;
use tracing::{info, warn};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    counters,
    folders::{self, Folder, Stage},
    layouts::{self, Shape, v2},
    maps::{self, OpenMaps},
    sys::{self, Table},
};

/// What has just been done of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The maps of the next set are there, those that are shared with the old one among them.
    Made,
    /// What the others hold was copied.
    Copied,
    /// The program is loaded.
    Loaded,
    /// One more interface runs it.
    Swapped,
    /// What the old program did since the copy was copied.
    CaughtUp,
    /// The old set of the same layout has another name.
    SetAside,
    /// The next set has its final name.
    Renamed,
    /// The old set is gone.
    Removed,
}

/// The set that is to be replaced.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) folder: Folder,
    pub(super) limits: Limits,
    pub(super) maps: OpenMaps<ClientFlows>,
}

/// A table of flows by client, of this layout or an older one.
#[derive(Debug)]
pub(super) enum ClientFlows {
    Present(Table<FlowKey, FlowValue>),
    Older(Table<v2::FlowKey, FlowValue>),
}

impl ClientFlows {
    fn of(folder: Folder, map: MapData) -> io::Result<Self> {
        match folder.version {
            ..3 => Table::new(map).map(Self::Older),
            _ => Table::new(map).map(Self::Present),
        }
    }

    fn with_room(&self) -> io::Result<u64> {
        match self {
            Self::Present(table) => with_room(table),
            Self::Older(table) => with_room(table),
        }
    }

    fn copy(&self, to: &Table<FlowKey, FlowValue>) -> io::Result<()> {
        match self {
            Self::Present(from) => copy(from, to),
            Self::Older(from) => copy(from, to),
        }
    }

    fn catch_up(&self, to: &Table<FlowKey, FlowValue>) -> io::Result<u64> {
        match self {
            Self::Present(from) => catch_up(from, to, newer_flow),
            Self::Older(from) => catch_up(from, to, newer_flow),
        }
    }
}

impl Source {
    /// Opens it; `wanted` stands in for what it lacks.
    pub(super) fn open(pin_dir: &Path, folder: Folder, wanted: Limits, cpus: u32) -> Result<Self> {
        let path = folder.path(pin_dir);
        let shapes = shapes(folder)?;
        let limits = layouts::pinned_limits(&path, shapes, wanted, cpus)?;
        let maps = OpenMaps::open_with(&path, |map| ClientFlows::of(folder, map))?;
        Ok(Self { folder, limits, maps })
    }

    /// The same when its folder has got another name.
    pub(super) fn moved(mut self, pin_dir: &Path, folder: Folder) -> Self {
        self.maps.rings.moved(&folder.path(pin_dir));
        Self { folder, ..self }
    }

    /// The limits for the next set: the wanted ones, but for those that are too small for what
    /// lives.
    pub(super) fn fitting(&self, wanted: Limits) -> Result<Limits> {
        let (has, maps) = (self.limits, &self.maps);
        let mut limits = wanted;
        let keep = |name, has: u32, wanted: &mut u32, used: u64| {
            if u64::from(*wanted) < used {
                warn!(
                    limit = name,
                    used,
                    configured = *wanted,
                    kept = has,
                    "what is in use does not fit the configured limit, so the old one stays"
                );
                *wanted = has;
            }
        };
        if wanted.services < has.services {
            let used = maps::services(maps)?.values().map(|service| service.id).max();
            let rings = maps.rings.services()?.next_back();
            let used = used.max(rings).map_or(0, |id| u64::from(id) + 1);
            keep("services", has.services, &mut limits.services, used);
        }
        if wanted.backends < has.backends {
            let mut used = 0;
            maps.backends.walk(|id, backend| {
                if !backend.as_bytes().iter().all(|&byte| byte == 0) {
                    used = used.max(u64::from(id));
                }
            })?;
            keep("backends", has.backends, &mut limits.backends, used);
        }
        if wanted.pins < has.pins {
            keep("pins", has.pins, &mut limits.pins, maps.pins.with_room()?);
        }
        if wanted.tracked_flows < has.tracked_flows {
            let used = maps.tracked.with_room()?;
            keep("tracked_flows", has.tracked_flows, &mut limits.tracked_flows, used);
        }
        if wanted.nat_connections < has.nat_connections
            && let Some(table) = &maps.nat_connections
        {
            let used = with_room(table)?;
            keep("nat_connections", has.nat_connections, &mut limits.nat_connections, used);
        }
        if wanted.connections < has.connections {
            let used = with_room(&maps.connections)?;
            keep("connections", has.connections, &mut limits.connections, used);
        }
        if wanted.fragments < has.fragments {
            let used = with_room(&maps.fragments)?;
            keep("fragments", has.fragments, &mut limits.fragments, used);
        }
        Ok(limits)
    }

    /// Makes the next set's folder, with the maps that need no change.
    pub(super) fn share(
        &self,
        pin_dir: &Path,
        next: Folder,
        limits: &Limits,
        cpus: u32,
    ) -> Result<()> {
        let (from, to) = (self.folder.path(pin_dir), next.path(pin_dir));
        fs::create_dir(&to).with_context(|| format!("make {}", to.display()))?;
        let mut shared = 0;
        for shape in shapes(next)? {
            let there = shapes(self.folder)?.iter().find(|there| there.name == shape.name);
            let Some(there) = there else { continue };
            if !layouts::is_shared(self.folder.version, there, shape)
                || (there.entries)(&self.limits, cpus) != (shape.entries)(limits, cpus)
                || (there.is_spare && !from.join(shape.name).exists())
            {
                continue;
            }
            let context = || format!("share {}", from.join(shape.name).display());
            let map = MapData::from_pin(from.join(shape.name)).with_context(context)?;
            map.pin(to.join(shape.name)).with_context(context)?;
            shared += 1;
        }
        info!(from = %from.display(), shared, limits = ?limits, "maps are migrated");
        Ok(())
    }

    /// Copies what is not shared, while the old program runs. The services' index and the tries are made from the
    /// services; budgets, marks of SYNs and of handshakes begin anew; counters move later. Connections in mode `nat` that are
    /// opened meanwhile are known after their next answer.
    pub(super) fn copy(&self, to: &OpenMaps) -> Result<()> {
        let from = &self.maps;
        copy(&from.services_v4, &to.services_v4).context("copy SERVICES_V4")?;
        copy(&from.services_v6, &to.services_v6).context("copy SERVICES_V6")?;
        if let (Some(from), Some(to)) = (&from.wide_services, &to.wide_services) {
            copy(from, to).context("copy WIDE_SERVICES")?;
        }
        copy(&from.vips, &to.vips).context("copy VIPS")?;
        copy(&from.own_macs, &to.own_macs).context("copy OWN_MACS")?;
        copy(&from.backends, &to.backends).context("copy BACKENDS")?;
        from.pins.copy(&to.pins).context("copy PINS")?;
        from.tracked.copy(&to.tracked).context("copy TRACKED")?;
        copy(&from.connections, &to.connections).context("copy CONNECTIONS")?;
        copy(&from.fragments, &to.fragments).context("copy FRAGMENTS")?;
        if let (Some(from), Some(to)) = (&from.nat_connections, &to.nat_connections) {
            copy(from, to).context("copy NAT_CONNECTIONS")?;
        }
        from.rings.share(&to.rings).context("share the rings")
    }

    /// Copies what the old program did since [`Self::copy`], when no packet meets it any more.
    pub(super) fn catch_up(&self, to: &OpenMaps, limits: &Limits, cpus: u32) -> Result<()> {
        sys::wait_for_programs().context("wait for the old program's last packets")?;
        let from = &self.maps;
        let flows = from.pins.catch_up(&to.pins).context("catch up on PINS")?
            + from.tracked.catch_up(&to.tracked).context("catch up on TRACKED")?
            + catch_up(&from.connections, &to.connections, newer_flow)
                .context("catch up on CONNECTIONS")?
            + catch_up(&from.fragments, &to.fragments, newer_fragment)
                .context("catch up on FRAGMENTS")?;
        counters::move_all::<2>(&from.verdicts, &to.verdicts, (REASONS, REASONS), cpus, None)
            .context("move VERDICTS")?;
        let stretches = (self.limits.backends + 1, limits.backends + 1);
        let unanswered = offset_of!(BackendCounter, unanswered) / size_of::<u64>();
        let (old, new) = (&from.backend_counters, &to.backend_counters);
        counters::move_all::<8>(old, new, stretches, cpus, Some(unanswered))
            .context("move BACKEND_COUNTERS")?;
        if let (Some(old), Some(new)) = (&from.return_counters, &to.return_counters) {
            counters::move_all::<8>(old, new, stretches, cpus, None)
                .context("move RETURN_COUNTERS")?;
        }
        info!(flows, "caught up on what the old program did meanwhile");
        Ok(())
    }
}

fn shapes(folder: Folder) -> Result<&'static [Shape]> {
    layouts::of(folder.version).with_context(|| {
        format!("this version does not know the maps of version {}", folder.version)
    })
}

/// Puts the next set in the place of the one it was made from.
pub(super) fn take_place(
    pin_dir: &Path,
    next: Folder,
    from: Option<Folder>,
    done: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<()> {
    let current = next.as_stage(Stage::Current);
    let rename = |from: Folder, to: Folder| {
        let (from, to) = (from.path(pin_dir), to.path(pin_dir));
        fs::rename(&from, &to)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))
    };
    let mut from = from;
    if from == Some(current) {
        let aside = next.as_stage(Stage::Old);
        rename(current, aside)?;
        from = Some(aside);
        done(Step::SetAside)?;
    }
    rename(next, current)?;
    done(Step::Renamed)?;
    if let Some(from) = from {
        folders::remove(&from.path(pin_dir))?;
    }
    done(Step::Removed)
}

/// The entries of a table, and a third on top for those that come before the swap.
fn with_room<K, V>(table: &Table<K, V>) -> io::Result<u64>
where
    K: IntoBytes + FromBytes + Immutable + Copy,
    V: IntoBytes + FromBytes + Immutable + Copy,
{
    let mut entries = 0_u64;
    table.walk(|_, _| entries += 1)?;
    Ok(entries + entries.div_ceil(3))
}

/// Copies a table; of an array only what is not all zero, as new entries are.
fn copy<K, L, V>(from: &Table<K, V>, to: &Table<L, V>) -> io::Result<()>
where
    K: IntoBytes + FromBytes + Immutable + Copy + Into<L>,
    L: IntoBytes + FromBytes + Immutable + Copy,
    V: IntoBytes + FromBytes + Immutable + Copy,
{
    if from.is_same(to) {
        return Ok(());
    }
    let mut failed = None;
    from.walk(|key, value| {
        if failed.is_none() && value.as_bytes().iter().any(|&byte| byte != 0) {
            failed = to.put(&key.into(), &value).err();
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Copies what a table has that the other lacks, or has of an earlier time: `newer` computes, from the
/// old table's value and the new one's, what the new one is to hold, if that is something else. How
/// many entries were written.
///
/// Between the look at an entry and its write a packet may touch it. What could then be lost is its
/// second, not its backend: that changes only when a client opens a flow anew on a tuple that has
/// ended, and the old program saw the end of it a moment ago.
fn catch_up<K, L, V>(
    from: &Table<K, V>,
    to: &Table<L, V>,
    newer: impl Fn(V, V) -> Option<V>,
) -> io::Result<u64>
where
    K: IntoBytes + FromBytes + Immutable + Copy + Into<L>,
    L: IntoBytes + FromBytes + Immutable + Copy,
    V: IntoBytes + FromBytes + Immutable + Copy,
{
    if from.is_same(to) {
        return Ok(0);
    }
    let mut written = 0;
    let mut lost = 0_u64;
    let mut failed = None;
    let mut write = |key: &L, value: V| -> io::Result<()> {
        match to.put_new(key, &value) {
            Ok(true) => {}
            Ok(false) => {
                let Some(there) = to.get(key)? else { return Ok(()) };
                let Some(value) = newer(value, there) else { return Ok(()) };
                to.put(key, &value)?;
            }
            Err(error) if sys::has_no_room(&error) => {
                lost += 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        written += 1;
        Ok(())
    };
    from.walk(|key, value| {
        if failed.is_none() {
            failed = write(&key.into(), value).err();
        }
    })?;
    if lost > 0 {
        warn!(flows = lost, "no room for what was opened while the maps were migrated");
    }
    failed.map_or(Ok(written), Err)
}

/// What the new table is to hold of a flow that both have, if that is something else.
fn newer_flow(old: FlowValue, new: FlowValue) -> Option<FlowValue> {
    // The clock counts from the machine's start; a difference is never half of its range.
    let ahead = old.seen.wrapping_sub(new.seen).cast_signed();
    if ahead != 0 {
        return (ahead > 0).then_some(old);
    }
    if old.backend == new.backend {
        // A mark that the flow is closing may be older than its tuple's new beginning, and to lack
        // it costs nothing.
        let flags = new.flags | old.flags & flow_flags::ESTABLISHED;
        return (flags != new.flags).then_some(FlowValue { flags, ..new });
    }
    // A tuple changes its backend within a second only when its flow has closed and another was
    // opened: the open one is the later one.
    let closing = |value: FlowValue| value.flags & flow_flags::CLOSING != 0;
    (closing(new) && !closing(old)).then_some(old)
}

/// The same for the marks of fragmented packets.
fn newer_fragment(old: Fragment, new: Fragment) -> Option<Fragment> {
    (old.seen.wrapping_sub(new.seen).cast_signed() > 0).then_some(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn flow(backend: u16, flags: u16, seen: u32) -> FlowValue {
        FlowValue { backend, flags, seen }
    }

    #[test]
    fn the_later_of_two_states_of_a_flow_stays() {
        const EST: u16 = flow_flags::ESTABLISHED;
        const END: u16 = flow_flags::ESTABLISHED | flow_flags::CLOSING;
        // What the old table has, what the new one has, what it is to get.
        let cases = [
            (flow(1, EST, 10), flow(1, EST, 10), None),
            (flow(1, EST, 11), flow(1, EST, 10), Some(flow(1, EST, 11))),
            (flow(1, EST, 9), flow(2, 0, 10), None),
            (flow(2, 0, 10), flow(1, END, 9), Some(flow(2, 0, 10))),
            // Within one second: the old program saw the handshake's end.
            (flow(1, EST, 10), flow(1, 0, 10), Some(flow(1, EST, 10))),
            (flow(1, END, 10), flow(1, 0, 10), Some(flow(1, EST, 10))),
            (flow(1, 0, 10), flow(1, EST, 10), None),
            // Within one second the tuple was used anew, by the one or the other.
            (flow(2, 0, 10), flow(1, END, 10), Some(flow(2, 0, 10))),
            (flow(1, END, 10), flow(2, 0, 10), None),
            (flow(1, END, 10), flow(2, END, 10), None),
            // The clock has wrapped.
            (flow(1, EST, 1), flow(1, EST, u32::MAX), Some(flow(1, EST, 1))),
        ];
        for (old, new, expected) in cases {
            assert_eq!(newer_flow(old, new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn the_later_mark_of_a_fragmented_packet_stays() {
        let mark = |backend, seen| Fragment { backend, is_return: 0, seen, entropy: 0 };
        assert_eq!(newer_fragment(mark(1, 5), mark(2, 5)), None);
        assert_eq!(newer_fragment(mark(1, 4), mark(2, 5)), None);
        assert_eq!(newer_fragment(mark(1, 6), mark(2, 5)), Some(mark(1, 6)));
    }
}
