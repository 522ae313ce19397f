//! The program on its interfaces: attached by links, which are pinned, so that they outlive the
//! daemon and the next one can swap the program in place.

use std::{
    fs,
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
    sys::{LinkInfo, detach_link},
};
use crate::{
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
    /// What the kernel tells of it at this moment.
    pub(super) fn status(&self) -> status::Interface {
        let here = LinkInfo::of_pinned(&self.path).ok().filter(|info| info.ifindex == self.ifindex);
        let there = kernel_link::attached(self.ifindex).ok().flatten();
        let attached = here.zip(there).is_some_and(|(here, there)| here.program == there.program);
        let generic = there.map_or(self.generic, |there| there.generic);
        status::Interface {
            name: self.interface.clone(),
            ifindex: self.ifindex,
            mode: if generic { "generic" } else { "native" }.into(),
            attached,
        }
    }
}

/// Where the link of an interface is pinned. Names in a BPF file system have no dots.
pub(super) fn link_path(pin_dir: &Path, interface: &str) -> PathBuf {
    pin_dir.join(format!("link-{}", interface.replace('.', "_")))
}

/// The pinned links.
pub(super) fn pinned_links(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    if pin_dir.exists() {
        for entry in fs::read_dir(pin_dir).with_context(|| format!("list {}", pin_dir.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("link-") {
                links.push(entry.path());
            }
        }
    }
    links.sort();
    Ok(links)
}

/// Takes the program of a pinned link off its interface, and the pin away.
pub(super) fn remove_link(path: &Path) -> Result<()> {
    let context = || format!("remove {}", path.display());
    if LinkInfo::of_pinned(path).is_ok_and(|info| info.ifindex != 0) {
        detach_link(path).with_context(context)?;
    }
    fs::remove_file(path).with_context(context)
}

/// Puts the program on every interface of the settings, and takes it off all others.
pub(super) fn attach(program: &mut programs::Xdp, settings: &Settings) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for interface in &settings.interfaces {
        let link = attach_one(program, interface, settings)
            .with_context(|| format!("attach the XDP program to {interface}"))?;
        links.push(link);
    }
    for path in pinned_links(&settings.pin_dir)? {
        if !links.iter().any(|link| link.path == path) {
            remove_link(&path)?;
            info!(link = %path.display(), "program detached: the interface is not configured");
        }
    }
    Ok(links)
}

fn attach_one(program: &mut programs::Xdp, interface: &str, settings: &Settings) -> Result<Link> {
    let ifindex = kernel_link::ifindex(interface)?;
    let path = link_path(&settings.pin_dir, interface);
    let there = kernel_link::attached(ifindex)?;
    if path.exists() {
        let info =
            LinkInfo::of_pinned(&path).with_context(|| format!("open {}", path.display()))?;
        ensure!(info.kind == LinkInfo::XDP, "{} is no XDP link; remove it", path.display());
        let allowed = match settings.xdp {
            XdpModes::Native => there.is_some_and(|there| !there.generic),
            XdpModes::NativeOrGeneric => true,
            XdpModes::Generic => there.is_some_and(|there| there.generic),
        };
        if info.ifindex == ifindex && allowed {
            swap(program, &path)?;
            let generic = there.is_some_and(|there| there.generic);
            info!(interface, "program swapped in place");
            return Ok(Link { interface: interface.into(), ifindex, generic, path });
        }
        // The interface was made anew, or the mode was configured anew.
        remove_link(&path)?;
    }
    // What is there after our own link is gone is not ours.
    if let Some(foreign) = kernel_link::attached(ifindex)? {
        evict(interface, ifindex, foreign, settings.force)?;
    }
    let modes: &[XdpMode] = match settings.xdp {
        XdpModes::Native => &[XdpMode::Driver],
        XdpModes::NativeOrGeneric => &[XdpMode::Driver, XdpMode::Skb],
        XdpModes::Generic => &[XdpMode::Skb],
    };
    let mut refused = None;
    for &mode in modes {
        match new_link(program, ifindex, mode, &path) {
            Ok(()) => {
                let generic = mode == XdpMode::Skb;
                if generic {
                    warn!(interface, "generic XDP: every packet costs more than by the driver");
                }
                info!(interface, generic, "program attached");
                return Ok(Link { interface: interface.into(), ifindex, generic, path });
            }
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.unwrap_or_else(|| anyhow!("no mode is allowed"));
    Err(match settings.xdp {
        XdpModes::Native => refused.context(
            "the driver refuses native XDP; with `xdp = \"native-or-generic\"` the network stack \
             runs the program, more slowly",
        ),
        _ => refused,
    })
}

/// Lets the pinned link run this program instead of the one that it has, without a gap.
fn swap(program: &mut programs::Xdp, path: &Path) -> Result<()> {
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
    let id = foreign.program;
    let name = kernel_link::program_name(id);
    if !force {
        bail!(
            "the XDP program `{name}` (id {id}) is there; take it off with what put it there (`lbctl \
             decap detach --dev {interface}`, `lbctl detach --pin-dir DIR`, `ip link set {interface} \
             xdp off`), or start lbd with --force, which replaces it unless a link holds it"
        );
    }
    kernel_link::remove(ifindex, foreign).with_context(|| {
        format!("replace the XDP program `{name}` (id {id}): a link holds it, only its owner can end that")
    })?;
    warn!(interface, id, name, "foreign XDP program replaced");
    Ok(())
}
