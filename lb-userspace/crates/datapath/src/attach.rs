//! The program on its interfaces: attached by links, which are pinned, so that they outlive the
//! daemon and the next one can swap the program in place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::programs::{
    self, LinkOrder, SchedClassifier, TcAttachType, XdpMode, links::FdLink, tc::TcAttachOptions,
};
use lb_api::status;
use lb_model::settings::{Attach, Settings, TcOrder, XdpModes};
use lb_netlink::{LinkLayer, gro, of_other_layer, xdp_without_ethernet};
use tracing::{info, warn};

use super::{
    kernel_link,
    pin_names::{self, Kind, aside_path},
    pinned::{self, Kept},
    sys,
    variants::{Mode, Variants},
};

/// The pinned link of the program on one interface.
#[derive(Debug)]
pub(super) struct ProgramLink {
    interface: String,
    ifindex: u32,
    mode: Mode,
    path: PathBuf,
}

impl ProgramLink {
    /// The interface's name.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// The interface's index.
    pub(super) const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// How the interface runs the program. A link keeps its mode.
    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Where it is pinned.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's status of it at this moment; `programs` are the ids of ours.
    pub(super) fn status(&self, programs: &[u32]) -> status::Interface {
        let foreign = |id: &&u32| self.mode.is_tc() && !programs.contains(id);
        let others = sys::tcx_programs(self.ifindex).unwrap_or_default();
        status::Interface {
            name: self.interface.clone(),
            ifindex: self.ifindex,
            mode: self.mode.name().into(),
            attached: self.problem(programs).is_none(),
            others: others.iter().filter(foreign).map(|id| kernel_link::named(*id)).collect(),
        }
    }

    /// Why the interface does not run a program with one of these ids, if it does not.
    pub(super) fn problem(&self, programs: &[u32]) -> Option<String> {
        let kept = match pinned::kept(&self.path) {
            Ok(kept) => Some(kept),
            // Nothing is seen of it at this moment, which is no reason to give it up.
            Err(error) if pinned::is_shortage(&error) => return None,
            Err(_) => None,
        };
        if let Some(kept) = kept.filter(|kept| kept.ifindex == self.ifindex) {
            let other = || format!("its link runs {}", kernel_link::named(kept.program));
            return (!programs.contains(&kept.program)).then(other);
        }
        let Ok(ifindex) = kernel_link::ifindex(&self.interface) else {
            return Some("there is no interface of this name".into());
        };
        Some(match kernel_link::attached(ifindex) {
            Ok(Some(foreign)) if !self.mode.is_tc() => {
                format!("{} is there", kernel_link::named(foreign.program))
            }
            Ok(_) if ifindex != self.ifindex => "the interface was made anew".into(),
            Ok(_) => "the program was detached".into(),
            Err(error) => format!("{error:#}"),
        })
    }
}

/// Puts the program on every interface of the settings, and takes it off all others; returns each
/// that has it.
///
/// What can be refused comes first, so that a start that fails leaves what runs as it was. An interface that gets
/// another hook has both for a moment, so that no packet meets it without: what XDP sends on does not come to tc, and
/// what it passes tc passes.
pub(super) fn attach(
    programs: &mut Variants<'_>,
    settings: &Settings,
    done: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<ProgramLink>> {
    let context = |interface: &str| format!("attach the balancer's program to {interface}");
    let mut places = Vec::new();
    for interface in &settings.interfaces {
        let place = Place::of(interface, settings).with_context(|| context(interface))?;
        // Before anything is changed.
        if let [mode] = *place.allowed {
            programs.get(mode)?;
        }
        places.push(place);
    }
    // A mode that is configured anew ends the old one first, which is risky: last.
    places.sort_by_key(|place| place.task);
    let mut links: Vec<ProgramLink> = Vec::new();
    let mut made = Vec::new();
    for place in places {
        let interface = place.interface.clone();
        let task = place.task;
        let taken = place.take(programs, settings).with_context(|| context(&interface));
        let (link, is_new) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                if task == Task::Make {
                    made.iter().for_each(|path: &PathBuf| drop(pinned::remove(path)));
                }
                return Err(error);
            }
        };
        if is_new && task == Task::Make {
            made.push(link.path.clone());
        }
        links.push(link);
        done()?;
    }
    for path in pinned::all(&settings.pin_dir)? {
        if !links.iter().any(|link| link.path == path) {
            pinned::remove(&path)?;
            info!(link = %path.display(), "program detached: it is not configured there");
        }
    }
    let order =
        |link: &ProgramLink| settings.interfaces.iter().position(|name| *name == link.interface);
    links.sort_by_key(order);
    Ok(links)
}

/// Attaches the program to the interface of a link that has lost it.
pub(super) fn reattach(
    programs: &mut Variants<'_>,
    interface: &str,
    settings: &Settings,
) -> Result<ProgramLink> {
    let place = Place::of(interface, settings)?;
    if let Some((mode, kept)) = place.there {
        // Another process has put another program into our link on purpose.
        ensure!(
            kept.program == programs.get(mode)?.info()?.id(),
            "its link runs {}",
            kernel_link::named(kept.program)
        );
    }
    // Never in place of another program: the operator decides that, at a start.
    let (link, _) = place.take(programs, &Settings { force: false, ..settings.clone() })?;
    // An interface that was made anew may have got another hook.
    for kind in [Kind::Xdp, Kind::Tcx, Kind::Clsact] {
        let path = kind.path(&settings.pin_dir, interface);
        if path != link.path && path.exists() {
            pinned::remove(&path)?;
        }
    }
    Ok(link)
}

/// What is to be done for an interface, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// There is no link, or it is dead: the interface was made anew. Or it gets another hook as well.
    Make,
    /// The link gets the program.
    Swap,
    /// The link has another mode of XDP than is wanted, and has to go first.
    Replace,
}

/// An interface as it is found.
#[derive(Debug)]
struct Place {
    interface: String,
    ifindex: u32,
    /// The modes that it may get, the best first.
    allowed: Vec<Mode>,
    /// The link that it has; if it has two, as after a crash, that of the best mode.
    there: Option<(Mode, Kept)>,
    /// What tc programs are kept by.
    tc: Kind,
    task: Task,
}

/// The modes that an interface may get, the best first.
fn allowed(interface: &str, ifindex: u32, settings: &Settings) -> Result<Vec<Mode>> {
    let attach = settings.hooks.of(interface);
    Ok(match (kernel_link::layer(ifindex)?, attach) {
        (LinkLayer::Ethernet, _) => allowed_of_ethernet(attach, settings.xdp),
        (LinkLayer::RawIp, Attach::Xdp) => bail!("{}", xdp_without_ethernet(interface)),
        (LinkLayer::RawIp, _) => vec![Mode::TcRaw],
        (LinkLayer::Other, _) => bail!("{}", of_other_layer(interface)),
    })
}

fn allowed_of_ethernet(attach: Attach, modes: XdpModes) -> Vec<Mode> {
    match (attach, modes) {
        (Attach::Tc, _) => vec![Mode::Tc],
        (Attach::Auto, XdpModes::Native) => vec![Mode::Native, Mode::Tc],
        (_, XdpModes::Native) => vec![Mode::Native],
        (_, XdpModes::NativeOrGeneric) => vec![Mode::Native, Mode::Generic],
        (_, XdpModes::Generic) => vec![Mode::Generic],
    }
}

impl Place {
    fn of(interface: &str, settings: &Settings) -> Result<Self> {
        let ifindex = kernel_link::ifindex(interface)?;
        let allowed = allowed(interface, ifindex, settings)?;
        let tc_mode = if allowed == [Mode::TcRaw] { Mode::TcRaw } else { Mode::Tc };
        pin_names::adopt_legacy(&settings.pin_dir, interface, ifindex)?;
        let has_links = settings.tc_links && has_tc_links(ifindex)?;
        let tc = if has_links { Kind::Tcx } else { Kind::Clsact };
        let xdp = pinned::live(&Kind::Xdp.path(&settings.pin_dir, interface), ifindex)?;
        let by_tc = pinned::live(&tc.path(&settings.pin_dir, interface), ifindex)?;
        let generic = kernel_link::attached(ifindex)?.is_some_and(|there| there.generic);
        let xdp = xdp.map(|kept| (Mode::of_xdp(generic), kept));
        let by_tc = by_tc.map(|kept| (tc_mode, kept));
        let there = [xdp, by_tc].into_iter().flatten().find(|(mode, _)| allowed.contains(mode));
        let task = match there {
            Some(_) => Task::Swap,
            None if xdp.is_some() && allowed != [tc_mode] => Task::Replace,
            None => Task::Make,
        };
        // Before the link that there is goes.
        if task != Task::Swap && allowed == [Mode::Generic] {
            check_gro(interface, settings)?;
        }
        Ok(Self { interface: interface.into(), ifindex, allowed, there, tc, task })
    }

    /// Gives the interface the program; whether by a new link.
    fn take(self, programs: &mut Variants<'_>, settings: &Settings) -> Result<(ProgramLink, bool)> {
        let mut refused = None;
        for &mode in &self.allowed {
            let Self { interface, ifindex, there, .. } = &self;
            let kind = if mode.is_tc() { self.tc } else { Kind::Xdp };
            let path = kind.path(&settings.pin_dir, interface);
            let is_new = there.is_none_or(|(there, _)| there != mode);
            // A link of XDP that is there stays, whichever of the allowed modes it has.
            if is_new && !mode.is_tc() && there.is_some_and(|(there, _)| !there.is_tc()) {
                continue;
            }
            let done = if is_new {
                self.make(mode, programs, settings, &path)
            } else {
                self.swap(mode, programs, settings, &path)
            };
            match done {
                Ok(()) => {
                    if let Some(error) = &refused {
                        info!(
                            interface,
                            "the driver refuses native XDP, it gets {mode}: {error:#}"
                        );
                    }
                    let link =
                        ProgramLink { interface: interface.clone(), ifindex: *ifindex, mode, path };
                    if mode == Mode::Generic {
                        warn_of_generic(interface);
                    }
                    return Ok((link, is_new));
                }
                Err(Refusal::Mode(error)) if is_new => refused = Some(error),
                // What is there runs on, and no other mode mends that it can't be exchanged.
                Err(Refusal::Mode(error) | Refusal::Foreign(error)) => return Err(error),
            }
        }
        let refused = refused.unwrap_or_else(|| anyhow!("no mode is allowed"));
        Err(match *self.allowed {
            [Mode::Native] => refused.context(
                "the driver refuses native XDP; with `attach = \"auto\"` or `\"tc\"` the interface gets \
                 the tc program",
            ),
            _ => refused,
        })
    }

    fn swap(
        &self,
        mode: Mode,
        programs: &mut Variants<'_>,
        settings: &Settings,
        path: &Path,
    ) -> Result<(), Refusal> {
        let (interface, order) = (self.interface.as_str(), settings.hooks.tc_order);
        match (mode.is_tc(), self.tc) {
            (true, Kind::Clsact) => {
                pinned::put_filter(programs.get(mode)?, self.ifindex, order)?;
            }
            (true, _) if !is_in_order(self.ifindex, path, order)? => {
                // A link keeps its place: another one is made, and this one goes.
                let aside = aside_path(&settings.pin_dir, interface);
                new_tcx_link(programs.tc(mode)?, interface, order, &aside)?;
                pinned::remove(path)?;
                let renamed = fs::rename(&aside, path);
                renamed.with_context(|| format!("rename {}", aside.display()))?;
            }
            _ => pinned::swap(programs.get(mode)?, path)?,
        }
        info!(interface, %mode, "program swapped in place");
        Ok(())
    }

    fn make(
        &self,
        mode: Mode,
        programs: &mut Variants<'_>,
        settings: &Settings,
        path: &Path,
    ) -> Result<(), Refusal> {
        let Self { interface, ifindex, .. } = self;
        if path.exists() {
            pinned::remove(path)?;
        }
        let order = settings.hooks.tc_order;
        if mode.is_tc() && self.tc == Kind::Clsact {
            let program = programs.get(mode)?;
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
            pinned::put_filter(program, *ifindex, order)
                .inspect_err(|_| drop(fs::remove_dir(path)))?;
        } else if mode.is_tc() {
            new_tcx_link(programs.tc(mode)?, interface, order, path)?;
        } else {
            // What is there after our own link is gone is not ours.
            if let Some(foreign) = kernel_link::attached(*ifindex)? {
                let evicted = evict(interface, *ifindex, foreign, settings.force);
                evicted.map_err(Refusal::Foreign)?;
            }
            let generic = mode == Mode::Generic;
            if generic {
                check_gro(interface, settings)?;
            }
            let xdp_mode = if generic { XdpMode::Skb } else { XdpMode::Driver };
            new_link(programs.xdp(generic)?, *ifindex, xdp_mode, path)?;
        }
        info!(interface, %mode, "program attached");
        Ok(())
    }
}

/// Why an interface does not get the program in a mode.
enum Refusal {
    /// Another program is there, which no other mode changes.
    Foreign(anyhow::Error),
    /// Another mode may do.
    Mode(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Mode(error)
    }
}

fn warn_of_generic(interface: &str) {
    warn!(interface, "generic XDP: every packet costs more than by the driver");
    let below = gro::below(interface);
    if !below.is_empty() {
        let fix = gro::fix(&below);
        warn!(
            interface,
            "generic XDP behind GRO: what is merged below is too big to be sent on, and clients stall; {fix}"
        );
    }
}

/// Whether the kernel has links of tc programs: before Linux 6.6 it refuses to list them as it does any unknown request.
fn has_tc_links(ifindex: u32) -> Result<bool> {
    match sys::tcx_programs(ifindex) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).context("list the interface's tc programs"),
    }
}

/// Whether the pinned link's program runs where it is to run among those of the interface.
fn is_in_order(ifindex: u32, path: &Path, order: TcOrder) -> Result<bool> {
    let own = pinned::kept(path).with_context(|| format!("open {}", path.display()))?;
    let programs = sys::tcx_programs(ifindex).context("list the interface's tc programs")?;
    let place = match order {
        TcOrder::First => programs.first(),
        TcOrder::Last => programs.last(),
    };
    Ok(place == Some(&own.program))
}

fn new_tcx_link(
    program: &mut SchedClassifier,
    interface: &str,
    order: TcOrder,
    path: &Path,
) -> Result<()> {
    let options = TcAttachOptions::TcxOrder(match order {
        TcOrder::First => LinkOrder::first(),
        TcOrder::Last => LinkOrder::last(),
    });
    let id = program
        .attach_with_options(interface, TcAttachType::Ingress, options)
        .map_err(|error| anyhow!("{error:#}: {}", source(&error)))?;
    let link = program.take_link(id).context("take the link")?;
    let link = FdLink::try_from(link).map_err(|_| anyhow!("the kernel made no tc link"))?;
    link.pin(path).with_context(|| format!("pin the link as {}", path.display()))?;
    Ok(())
}

/// Refuses a new link in generic mode where GRO is on below, unless the operator insists.
fn check_gro(interface: &str, settings: &Settings) -> Result<()> {
    if settings.allow_generic_gro {
        return Ok(());
    }
    gro::refuse(interface, "`allow_generic_gro = true` in the configuration")
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
             start lbd with --force, which replaces it unless a link holds it; with `attach = \"tc\"` it \
             stays, and lbd's program runs behind it"
        );
    }
    kernel_link::remove(ifindex, foreign).with_context(|| {
        format!("replace {named}: a link holds it, only its owner can end that")
    })?;
    warn!(interface, "foreign XDP program replaced: {named}");
    Ok(())
}
