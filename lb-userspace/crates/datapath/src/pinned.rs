//! What keeps programs at interfaces, and its pins: links of XDP and of tc, and filters of `clsact`, which can't be
//! pinned and leave a folder as their mark.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{
    Program,
    links::{FdLink, PinnedLink},
    tc::SchedClassifierLink,
    xdp::XdpLink,
};
use lb_model::settings::TcOrder;

use super::{
    clsact, kernel_link,
    pin_names::{self, Kind},
    sys::{LinkInfo, detach_link},
};

/// What a pin keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Id of the program.
    pub program: u32,
    /// Index of the interface; 0 if that is gone, or has lost it.
    pub ifindex: u32,
}

/// What the pin at `path` keeps.
pub(crate) fn kept(path: &Path) -> io::Result<Kept> {
    if let Some((Kind::Clsact, interface)) = pin_names::parse(path) {
        let ifindex = kernel_link::ifindex(&interface).unwrap_or(0);
        let found = if ifindex == 0 { None } else { clsact::found(ifindex).map_err(other)? };
        return Ok(match found {
            Some((_, program)) => Kept { program, ifindex },
            None => Kept { program: 0, ifindex: 0 },
        });
    }
    let info = LinkInfo::of_pinned(path)?;
    Ok(Kept { program: info.program, ifindex: info.ifindex })
}

fn other(error: anyhow::Error) -> io::Error {
    match error.downcast::<io::Error>() {
        Ok(error) => error,
        Err(error) => io::Error::other(error),
    }
}

/// Whether something could not be opened because this process or the system is at its limit.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// All such pins.
pub(crate) fn all(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pins = Vec::new();
    if pin_dir.exists() {
        for entry in fs::read_dir(pin_dir).with_context(|| format!("list {}", pin_dir.display()))? {
            let path = entry?.path();
            if pin_names::parse(&path).is_some() {
                pins.push(path);
            }
        }
    }
    pins.sort();
    Ok(pins)
}

/// The ids of the programs that they keep.
pub(crate) fn running(pin_dir: &Path) -> Result<BTreeSet<u32>> {
    let program = |pin: PathBuf| {
        let kept = kept(&pin);
        Ok(kept.with_context(|| format!("open {}", pin.display()))?.program)
    };
    let running: Result<BTreeSet<u32>> = all(pin_dir)?.into_iter().map(program).collect();
    // A filter that is gone.
    running.map(|programs| programs.into_iter().filter(|id| *id != 0).collect())
}

/// Takes the program of a pin off its interface, and the pin away.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let context = || format!("remove {}", path.display());
    let kept = kept(path).ok().filter(|kept| kept.ifindex != 0);
    if let Some((Kind::Clsact, _)) = pin_names::parse(path) {
        if let Some(kept) = kept {
            clsact::remove(kept.ifindex).with_context(context)?;
        }
        return fs::remove_dir(path).with_context(context);
    }
    if kept.is_some() {
        detach_link(path).with_context(context)?;
    }
    fs::remove_file(path).with_context(context)
}

/// Lets the interface of a pin run this program instead of the one that it has, without a gap.
pub(crate) fn swap(program: &mut Program, path: &Path) -> Result<()> {
    if let Some((Kind::Clsact, interface)) = pin_names::parse(path) {
        let ifindex = kernel_link::ifindex(&interface)?;
        let (order, _) = clsact::found(ifindex)?.context("the filter is gone")?;
        return put_filter(program, ifindex, order);
    }
    let pinned = PinnedLink::from_pin(path).context("open the pinned link")?;
    let link = FdLink::from(pinned);
    // The pin keeps the link; what is dropped here is a descriptor.
    match program {
        Program::Xdp(program) => {
            let link = XdpLink::try_from(link).context("take the pinned link over")?;
            let id = program.attach_to_link(link).context("swap the program")?;
            drop(program.take_link(id).context("take the link")?);
        }
        Program::SchedClassifier(program) => {
            let link = SchedClassifierLink::try_from(link).context("take the pinned link over")?;
            let id = program.attach_to_link(link).context("swap the program")?;
            drop(program.take_link(id).context("take the link")?);
        }
        _ => bail!("the program is neither for XDP nor for tc"),
    }
    Ok(())
}

/// Attaches a program by a filter, or gives the filter that is there this program and this place.
pub(crate) fn put_filter(program: &mut Program, ifindex: u32, order: TcOrder) -> Result<()> {
    let Program::SchedClassifier(program) = program else { bail!("the program is not for tc") };
    clsact::put(ifindex, order, std::os::fd::AsFd::as_fd(program.fd().context("the program")?))
}

/// What the pin at `path` keeps at the interface that is there now; none if there is no such pin, or it is of an
/// interface that is gone.
pub(crate) fn live(path: &Path, ifindex: u32) -> Result<Option<Kept>> {
    if !path.exists() {
        return Ok(None);
    }
    if matches!(pin_names::parse(path), Some((Kind::Xdp | Kind::Tcx, _))) {
        let info = LinkInfo::of_pinned(path).with_context(|| format!("open {}", path.display()))?;
        let right = match pin_names::parse(path) {
            Some((Kind::Xdp, _)) => LinkInfo::XDP,
            _ => LinkInfo::TCX,
        };
        ensure!(info.kind == right, "{} is a link of another kind; remove it", path.display());
    }
    let kept = kept(path).with_context(|| format!("open {}", path.display()))?;
    Ok((kept.ifindex == ifindex).then_some(kept))
}
