//! The program on its interfaces: attached by links, which are pinned, so that they outlive the
//! daemon and the next one can swap the program in place.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::programs::{
    self, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use tracing::{info, warn};

use super::{
    kernel_link,
    pin_names::{self, link_path},
    sys::{LinkInfo, detach_link},
    variants::Variants,
};
use crate::{
    netlink::gro,
    settings::{Settings, XdpModes},
    status,
};

/// The program on one interface.
#[derive(Debug)]
pub(super) struct Link {
    interface: String,
    ifindex: u32,
    generic: bool,
    path: PathBuf,
}

impl Link {
    /// The interface's name.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether the network stack runs the program, not the driver. A link keeps its mode.
    pub(super) const fn is_generic(&self) -> bool {
        self.generic
    }

    /// Where it is pinned.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the kernel tells of it at this moment; `programs` are the ids of ours.
    pub(super) fn status(&self, programs: &[u32]) -> status::Interface {
        let there = kernel_link::attached(self.ifindex).ok().flatten();
        let generic = there.map_or(self.generic, |there| there.generic);
        status::Interface {
            name: self.interface.clone(),
            ifindex: self.ifindex,
            mode: if generic { "generic" } else { "native" }.into(),
            attached: self.problem(programs).is_none(),
        }
    }

    /// Why the interface does not run a program with one of these ids, if it does not.
    pub(super) fn problem(&self, programs: &[u32]) -> Option<String> {
        let info = match LinkInfo::of_pinned(&self.path) {
            Ok(info) => Some(info),
            // Nothing is seen of it at this moment, which is no reason to give it up.
            Err(error) if is_shortage(&error) => return None,
            Err(_) => None,
        };
        if let Some(info) = info.filter(|info| info.ifindex == self.ifindex) {
            let other = || format!("its link runs {}", kernel_link::named(info.program));
            return (!programs.contains(&info.program)).then(other);
        }
        let Ok(ifindex) = kernel_link::ifindex(&self.interface) else {
            return Some("there is no interface of this name".into());
        };
        Some(match kernel_link::attached(ifindex) {
            Ok(Some(foreign)) => format!("{} is there", kernel_link::named(foreign.program)),
            Ok(None) if ifindex != self.ifindex => "the interface was made anew".into(),
            Ok(None) => "the program was detached".into(),
            Err(error) => format!("{error:#}"),
        })
    }
}

/// Whether something could not be opened because this process or the system is at its limit.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// The pinned links.
pub(super) fn pinned_links(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    if pin_dir.exists() {
        for entry in fs::read_dir(pin_dir).with_context(|| format!("list {}", pin_dir.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(pin_names::PREFIX) {
                links.push(entry.path());
            }
        }
    }
    links.sort();
    Ok(links)
}

/// The ids of the programs that the pinned links run.
pub(super) fn running(pin_dir: &Path) -> Result<BTreeSet<u32>> {
    let program = |link: PathBuf| {
        let info = LinkInfo::of_pinned(&link);
        Ok(info.with_context(|| format!("open {}", link.display()))?.program)
    };
    pinned_links(pin_dir)?.into_iter().map(program).collect()
}

/// Takes the program of a pinned link off its interface, and the pin away.
pub(super) fn remove_link(path: &Path) -> Result<()> {
    let context = || format!("remove {}", path.display());
    if LinkInfo::of_pinned(path).is_ok_and(|info| info.ifindex != 0) {
        detach_link(path).with_context(context)?;
    }
    fs::remove_file(path).with_context(context)
}

/// Puts the program on every interface of the settings, and takes it off all others; tells of each
/// that has it.
///
/// What can be refused comes first, so that a start that fails leaves what runs as it was.
pub(super) fn attach(
    programs: &mut Variants<'_>,
    settings: &Settings,
    done: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Link>> {
    let context = |interface: &str| format!("attach the XDP program to {interface}");
    let mut places = Vec::new();
    for interface in &settings.interfaces {
        places.push(Place::of(interface, settings).with_context(|| context(interface))?);
    }
    if settings.xdp != XdpModes::Native {
        programs.get(true)?;
    }
    // A mode that is configured anew ends the old one first, which is risky: last.
    places.sort_by_key(|place| place.task);
    let mut links: Vec<Link> = Vec::new();
    let mut made = Vec::new();
    for place in places {
        let interface = place.interface.clone();
        let task = place.task;
        let link = match place.take(programs, settings).with_context(|| context(&interface)) {
            Ok(link) => link,
            Err(error) => {
                if task == Task::Make {
                    made.iter().for_each(|path: &PathBuf| drop(remove_link(path)));
                }
                return Err(error);
            }
        };
        if task == Task::Make {
            made.push(link.path.clone());
        }
        links.push(link);
        done()?;
    }
    for path in pinned_links(&settings.pin_dir)? {
        if !links.iter().any(|link| link.path == path) {
            remove_link(&path)?;
            info!(link = %path.display(), "program detached: the interface is not configured");
        }
    }
    let order = |link: &Link| settings.interfaces.iter().position(|name| *name == link.interface);
    links.sort_by_key(order);
    Ok(links)
}

/// Attaches the program to the interface of a link that has lost it.
pub(super) fn reattach(
    programs: &mut Variants<'_>,
    interface: &str,
    settings: &Settings,
) -> Result<Link> {
    let place = Place::of(interface, settings)?;
    if place.task == Task::Swap {
        let info = LinkInfo::of_pinned(&place.path).context("open the pinned link")?;
        // Whoever has put another program into our link meant to.
        ensure!(
            info.program == programs.get(place.generic)?.info()?.id(),
            "its link runs {}",
            kernel_link::named(info.program)
        );
    }
    // Never in place of somebody else's: that is for the operator to say, at a start.
    place.take(programs, &Settings { force: false, ..settings.clone() })
}

/// What is to be done for an interface, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// There is no link, or it is dead: the interface was made anew.
    Make,
    /// The link gets the program.
    Swap,
    /// The link has another mode than is wanted.
    Replace,
}

/// An interface as it is found.
#[derive(Debug)]
struct Place {
    interface: String,
    ifindex: u32,
    generic: bool,
    path: PathBuf,
    task: Task,
}

impl Place {
    fn of(interface: &str, settings: &Settings) -> Result<Self> {
        let ifindex = kernel_link::ifindex(interface)?;
        pin_names::adopt_legacy(&settings.pin_dir, interface, ifindex)?;
        let path = link_path(&settings.pin_dir, interface);
        let there = kernel_link::attached(ifindex)?;
        let generic = there.is_some_and(|there| there.generic);
        let mut task = Task::Make;
        if path.exists() {
            let info =
                LinkInfo::of_pinned(&path).with_context(|| format!("open {}", path.display()))?;
            ensure!(info.kind == LinkInfo::XDP, "{} is no XDP link; remove it", path.display());
            let allowed = match settings.xdp {
                XdpModes::Native => !generic,
                XdpModes::NativeOrGeneric => true,
                XdpModes::Generic => generic,
            };
            if info.ifindex == ifindex {
                task = if allowed { Task::Swap } else { Task::Replace };
            }
        }
        // Before the link that there is goes.
        if task != Task::Swap && settings.xdp == XdpModes::Generic {
            check_gro(interface, settings)?;
        }
        Ok(Self { interface: interface.into(), ifindex, generic, path, task })
    }

    fn take(self, programs: &mut Variants<'_>, settings: &Settings) -> Result<Link> {
        let Self { interface, ifindex, mut generic, path, task } = self;
        if task == Task::Swap {
            swap(programs.get(generic)?, &path)?;
            info!(interface, "program swapped in place");
        } else {
            if path.exists() {
                remove_link(&path)?;
            }
            // What is there after our own link is gone is not ours.
            if let Some(foreign) = kernel_link::attached(ifindex)? {
                evict(&interface, ifindex, foreign, settings.force)?;
            }
            generic = new_link_by(programs, &interface, ifindex, settings, &path)?;
            info!(interface, generic, "program attached");
        }
        if generic {
            warn!(interface, "generic XDP: every packet costs more than by the driver");
            let below = gro::below(&interface);
            if !below.is_empty() {
                let mend = gro::mend(&below);
                warn!(
                    interface,
                    "generic XDP behind GRO: what is merged below is too big to be sent on, and clients \
                     stall; {mend}"
                );
            }
        }
        Ok(Link { interface, ifindex, generic, path })
    }
}

/// Makes a link in the first of the modes that can be had; whether it is generic.
fn new_link_by(
    programs: &mut Variants<'_>,
    interface: &str,
    ifindex: u32,
    settings: &Settings,
    path: &Path,
) -> Result<bool> {
    let modes = settings.xdp;
    let order: &[XdpMode] = match modes {
        XdpModes::Native => &[XdpMode::Driver],
        XdpModes::NativeOrGeneric => &[XdpMode::Driver, XdpMode::Skb],
        XdpModes::Generic => &[XdpMode::Skb],
    };
    let mut refused = None;
    for &mode in order {
        let generic = mode == XdpMode::Skb;
        let allowed = if generic { check_gro(interface, settings) } else { Ok(()) };
        let done = allowed.and_then(|()| new_link(programs.get(generic)?, ifindex, mode, path));
        match done {
            Ok(()) => return Ok(generic),
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.unwrap_or_else(|| anyhow!("no mode is allowed"));
    Err(match modes {
        XdpModes::Native => refused.context(
            "the driver refuses native XDP; with `xdp = \"native-or-generic\"` the network stack \
             runs the program, more slowly",
        ),
        _ => refused,
    })
}

/// Refuses a new link in generic mode where GRO is on below, unless the operator insists.
fn check_gro(interface: &str, settings: &Settings) -> Result<()> {
    if settings.allow_generic_gro {
        return Ok(());
    }
    gro::refuse(interface, "`allow_generic_gro = true` in the configuration")
}

/// Lets the pinned link run this program instead of the one that it has, without a gap.
pub(super) fn swap(program: &mut programs::Xdp, path: &Path) -> Result<()> {
    let pinned = PinnedLink::from_pin(path).context("open the pinned link")?;
    let link = XdpLink::try_from(FdLink::from(pinned)).context("take the pinned link over")?;
    let id = program.attach_to_link(link).context("swap the program")?;
    // The pin keeps the link; what is dropped here is a descriptor.
    drop(program.take_link(id).context("take the link")?);
    Ok(())
}

fn new_link(program: &mut programs::Xdp, ifindex: u32, mode: XdpMode, path: &Path) -> Result<()> {
    let id = program
        .attach_to_if_index(ifindex, mode)
        .map_err(|error| anyhow!("{error:#}: {}", source(&error)))?;
    let link = program.take_link(id).context("take the link")?;
    // Without a link that can be pinned the program would go when the daemon does.
    let link = FdLink::try_from(link)
        .map_err(|_| anyhow!("the kernel has no XDP links here; Linux 5.9 is needed"))?;
    link.pin(path).with_context(|| format!("pin the link as {}", path.display()))?;
    Ok(())
}

fn source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(String::new, ToString::to_string)
}

/// Takes a program that is not ours off, if that is asked for and can be done.
fn evict(interface: &str, ifindex: u32, foreign: kernel_link::Attached, force: bool) -> Result<()> {
    let named = kernel_link::named(foreign.program);
    if !force {
        bail!(
            "{named} is there; take it off with what put it there (`lbctl decap detach --dev \
             {interface}`, `lbctl detach --pin-dir DIR`, `ip link set {interface} xdp off`), or \
             start lbd with --force, which replaces it unless a link holds it"
        );
    }
    kernel_link::remove(ifindex, foreign).with_context(|| {
        format!("replace {named}: a link holds it, only its owner can end that")
    })?;
    warn!(interface, "foreign XDP program replaced: {named}");
    Ok(())
}
