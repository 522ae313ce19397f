//! Clients on this node itself: hooks of a control group that give sockets a backend in mode `nat` for its VIP
//! (`lb-ebpf/src/local.rs`). As the program on the interfaces, they outlive the daemon, by pins in a folder of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{
        CgroupSockAddr,
        links::{CgroupAttachMode, FdLink},
    },
};
use lb_common::abi::local::{LocalPeer, LocalPeerKey, direction};
use lb_model::settings::{Limits, LocalClients};
use lb_netlink::sockets;
use tracing::{info, warn};

use super::{bpffs::make_folder, folders, layouts, sys, xdp::Xdp};
use crate::objects;

/// The folder of the pins.
const FOLDER: &str = "local";
/// What sockets were given. The sockets outlive the daemon, too.
const PEERS: &str = "LOCAL_PEERS";
/// The programs, each with its hook's name.
const PROGRAMS: [&str; 8] = [
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// Whether sockets of this node are given backends.
#[must_use]
pub fn serves_local_clients(pin_dir: &Path) -> bool {
    PROGRAMS.iter().all(|name| pin_dir.join(FOLDER).join(name).exists())
}

/// Where control groups of version 2 are mounted.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    root_in(&mounts).map(PathBuf::from)
}

fn root_in(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then_some(at)
    })
}

impl Xdp {
    /// Attaches the hooks while there are backends in mode `nat`, and removes them when there are none. Without them clients of
    /// other hosts are served all the same.
    pub(super) fn follow_local_clients(&mut self) {
        let wanted =
            self.reverse_nat.has_backends() && self.settings.local_clients != LocalClients::None;
        if self.local_clients == Some(wanted) {
            return;
        }
        let pin_dir = &self.settings.pin_dir;
        let done = match wanted {
            true => attach(pin_dir, &self.limits, self.possible_cpus, &self.settings.local_clients),
            false => remove(pin_dir).map(drop),
        };
        if let Err(error) = done {
            warn!(
                "processes of this node do not reach services in mode nat: {error:#}; with `local_clients = false` \
                 that is not tried"
            );
        }
        self.local_clients = Some(wanted);
    }
}

/// Attaches the hooks, in place of those that there are, without a gap.
fn attach(pin_dir: &Path, limits: &Limits, cpus: u32, clients: &LocalClients) -> Result<()> {
    let cgroup = match clients {
        LocalClients::Below(cgroup) => cgroup.clone(),
        _ => cgroup_root().context("no file system of control groups of version 2 is mounted")?,
    };
    let folder = pin_dir.join(FOLDER);
    make_folder(&folder)?;
    let attached = attach_to(&folder, &cgroup, || load(pin_dir, &folder, limits, cpus));
    if attached.is_err() {
        remove(pin_dir)?;
    }
    attached?;
    info!(cgroup = %cgroup.display(), "processes of this node reach services in mode nat");
    Ok(())
}

fn attach_to(folder: &Path, cgroup: &Path, load: impl Fn() -> Result<Ebpf>) -> Result<()> {
    let directory = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    let mut object = load().or_else(|_| {
        // The table of another version.
        remove_file(&folder.join(PEERS))?;
        load()
    })?;
    for name in PROGRAMS {
        let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
        let link = program
            .attach(&directory, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", cgroup.display()))?;
        let link = FdLink::try_from(program.take_link(link)?)?;
        let next = folder.join(format!("{name}-next"));
        remove_file(&next)?;
        drop(link.pin(&next).with_context(|| format!("pin {name}"))?);
        let path = folder.join(name);
        fs::rename(&next, &path).with_context(|| format!("pin {}", path.display()))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The programs over the balancer's maps, not loaded yet.
fn load(pin_dir: &Path, folder: &Path, limits: &Limits, cpus: u32) -> Result<Ebpf> {
    let (backends, netns) = (limits.backends + 1, sys::netns_cookie()?);
    let mut loader = EbpfLoader::new();
    loader.override_global("BACKENDS_PER_CPU", &backends, true);
    loader.override_global("NETNS_COOKIE", &netns, true);
    loader.map_pin_path(PEERS, folder.join(PEERS));
    let maps = folders::current(pin_dir);
    for shape in &layouts::SHAPES {
        loader.map_max_entries(shape.name, (shape.entries)(limits, cpus));
        loader.map_pin_path(shape.name, maps.join(shape.name));
    }
    loader.load(objects::LOCAL).context("load the programs for clients on this node")
}

/// TCP connections of sockets that were given these backends, by the backend's id. A socket that has connected twice, without
/// success the first time, counts for both.
pub(super) fn connections(pin_dir: &Path, backends: &BTreeSet<u16>) -> Result<BTreeMap<u16, u64>> {
    let path = pin_dir.join(FOLDER).join(PEERS);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let peers: sys::Table<LocalPeerKey, LocalPeer> = sys::Table::new(map)?;
    let mut given = Vec::new();
    peers.walk(|key, peer| {
        if key.direction == direction::FROM && backends.contains(&peer.backend) {
            given.push((peer.backend, key.cookie));
        }
    })?;
    let mut connections = BTreeMap::new();
    if given.is_empty() {
        return Ok(connections);
    }
    let connected = sockets::connected_cookies()?;
    for (backend, cookie) in given {
        if connected.contains(&cookie) {
            *connections.entry(backend).or_default() += 1;
        }
    }
    Ok(connections)
}

/// Removes the hooks, and what sockets were given. Whether there was anything.
pub(super) fn remove(pin_dir: &Path) -> Result<bool> {
    let folder = pin_dir.join(FOLDER);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).with_context(|| format!("remove {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_version_2_are_found_among_mounts() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n";
        assert_eq!(root_in(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(root_in("tmpfs /sys/fs/cgroup tmpfs ro 0 0\n"), None);
    }
}
