//! The decapsulator for backends without a tunnel device: an XDP program that takes the outer
//! header off what the balancer sends in mode `ipip`.
//!
//! Packets need no daemon. Link, maps and counters are pinned under `<pin_dir>/decap-<dev>/` and
//! outlive the command that attached them. A [`Follower`] keeps its lists as the host's addresses are.

mod follow;
mod lists;
mod pins;
mod status;

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapInfo},
    programs::{Xdp, XdpMode, links::FdLink, loaded_programs, xdp::XdpLink},
    util::nr_cpus,
};
use lb_common::decap::{MAX_SOURCES, REASONS, Source};
use lb_model::prefix::Prefix;
use lb_model::settings::Tunnel;
use lb_netlink::{gro, query};
use serde::{Deserialize, Serialize};

pub use self::{
    follow::{Change, Follower, Step},
    status::{DecapStatus, Followed, UnlistedSource, status},
};
use self::{
    lists::{ADDRESSES, Lists, VIPS, key_of},
    pins::Pins,
};
use super::variants::{self, DECAP, Mode};
use crate::objects;

const SOURCES: &str = "DECAP_SOURCES";
const VERDICTS: &str = "DECAP_VERDICTS";
const UNLISTED: &str = "DECAP_UNLISTED";

/// What the decapsulator takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Outer destinations; empty: the interface's addresses of global scope.
    pub addresses: Vec<IpAddr>,
    /// Inner destinations; empty: the addresses on the loopback that are none of the loopback's own.
    pub vips: Vec<IpAddr>,
    /// Outer sources; there must be one.
    pub sources: Vec<Prefix>,
    /// Whether generic mode will do where the driver has no native mode.
    pub generic: bool,
    /// Whether generic mode will do though GRO merges packets below.
    pub allow_gro: bool,
}

/// What was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// `native` or `generic`.
    pub mode: String,
    /// The outer destinations that are taken.
    pub addresses: Vec<IpAddr>,
    /// The inner destinations that are taken.
    #[serde(default)]
    pub vips: Vec<IpAddr>,
    /// The outer sources that are taken.
    #[serde(default)]
    pub sources: Vec<Prefix>,
    /// Whether it took the place of a decapsulator that was there.
    pub replaced: bool,
}

/// How to name the sources that a balancer has unless its configuration names others.
#[must_use]
pub fn usual_sources() -> String {
    let Tunnel { source_v4: (v4, length_v4), source_v6: (v6, length_v6) } = Tunnel::default();
    format!("--from {v4}/{length_v4} --from {v6}/{length_v6}")
}

/// Attaches the decapsulator to `dev`, or gives the one that is there these options and this
/// program, by one replacement of the program: no packet sees neither or a half of both.
///
/// # Errors
///
/// If the interface has a program of someone else's, the driver has no native mode and generic
/// mode was not asked for, or the kernel refuses.
pub fn attach(dev: &str, options: &Options, pin_dir: &Path) -> Result<Attached> {
    let (attached, ..) = attach_locked(dev, options, pin_dir, |lists| lists.ensure_useful(dev))?;
    Ok(attached)
}

/// The same, if `accept` takes the lists; with the pins, and the lock that keeps others from them.
fn attach_locked(
    dev: &str,
    options: &Options,
    pin_dir: &Path,
    accept: impl Fn(&Lists) -> Result<()>,
) -> Result<(Attached, Pins, File)> {
    let interfaces = query::interfaces()?;
    let Some(interface) = interfaces.get(dev) else {
        bail!("interface {dev} does not exist; `ip link` lists those that do");
    };
    ensure!(
        !options.sources.is_empty(),
        "the sources that tunnelled packets may come from are not named, and without them anybody could \
         send packets to this host's inside; name those of the balancers' [tunnel], which are these \
         unless their configuration says otherwise: lbctl decap attach --dev {dev} {}; `--from any` takes all. \
         lb-decap@{dev}.service attaches it at each boot, with these",
        usual_sources()
    );
    ensure!(
        options.sources.len() <= MAX_SOURCES as usize,
        "at most {MAX_SOURCES} prefixes of sources can be named"
    );
    let lists = Lists::of(dev, options, &interfaces)?;
    accept(&lists)?;

    let pins = Pins::of(pin_dir, dev);
    let lock = pins.folder.exists().then(|| pins.lock(dev)).transpose()?;
    let ours = pins.link_of(dev, &interfaces)?;
    match (&ours, interface.xdp_prog_id) {
        (None, Some(id)) => bail!(
            "interface {dev} has another XDP program: {} (id {id}); take it off first: \
             ip link set dev {dev} xdp off",
            program_name(id)
        ),
        // A link can't change its mode.
        (Some(_), _) if interface.xdp_generic && !options.generic => bail!(
            "the decapsulator of {dev} runs in generic mode; keep it so with --generic, or detach \
             it first: lbctl decap detach --dev {dev}"
        ),
        _ => {}
    }
    pins.create()?;
    let lock = lock.map_or_else(|| pins.lock(dev), Ok)?;
    let outcome = attach_new(dev, options, &lists, &pins, ours, interface.xdp_generic);
    if outcome.is_err() && interface.xdp_prog_id.is_none() {
        // Nothing was attached before and nothing is: leave no pins behind.
        pins.remove()?;
    }
    Ok((outcome?, pins, lock))
}

fn attach_new(
    dev: &str,
    options: &Options,
    lists: &Lists,
    pins: &Pins,
    ours: Option<FdLink>,
    is_generic: bool,
) -> Result<Attached> {
    let mut object = load(&options.sources, lists, pins)?;
    let replaced = ours.is_some();
    let generic = if let Some(link) = ours {
        // The pin keeps the link when the object goes.
        variant(&mut object, is_generic)?
            .attach_to_link(XdpLink::try_from(link)?)
            .with_context(|| format!("replace the XDP program of {dev}"))?;
        is_generic
    } else {
        let (link, generic) = attach_link(&mut object, dev, options)?;
        link.pin(pins.link()).with_context(|| format!("pin the XDP link of {dev}"))?;
        generic
    };
    for name in [ADDRESSES, VIPS, SOURCES, UNLISTED] {
        let map = object.map(name).with_context(|| format!("the object lacks the map {name}"))?;
        pins.replace_map(name, map)?;
    }
    let Lists { addresses, vips } = lists.clone();
    Ok(Attached {
        mode: mode_name(generic).into(),
        addresses: addresses.addresses,
        vips: vips.addresses,
        sources: options.sources.clone(),
        replaced,
    })
}

/// Loads the object with its maps filled.
fn load(sources: &[Prefix], lists: &Lists, pins: &Pins) -> Result<Ebpf> {
    let cpus = nr_cpus().map_err(|(path, error)| error_of(path, error))?;
    let cpus = u32::try_from(cpus).context("count the CPUs")?;
    let counters = cpus * REASONS;
    let verdicts = pins.map(VERDICTS);
    // aya takes a pinned map over without comparing its size.
    if let Ok(info) = MapInfo::from_pin(&verdicts)
        && (info.max_entries(), info.value_size()) != (counters, 16)
    {
        fs::remove_file(&verdicts).with_context(|| format!("remove {}", verdicts.display()))?;
    }
    let mut loader = EbpfLoader::new();
    let object = super::pull::with_pull_data(objects::DECAP, &mut loader);
    let mut object = loader
        .map_max_entries(VERDICTS, counters)
        .map_pin_path(VERDICTS, &verdicts)
        .map_max_entries(UNLISTED, cpus)
        .load(&object)
        .context("load the decapsulator's maps")?;
    lists.fill(&mut object)?;
    let map = object.map_mut(SOURCES);
    let map = map.with_context(|| format!("the object lacks the map {SOURCES}"))?;
    let mut map: Array<_, Source> = map.try_into()?;
    for (index, prefix) in (0..).zip(sources) {
        let write = map.set(index, source_of(prefix), 0);
        write.with_context(|| format!("write {prefix} to {SOURCES}"))?;
    }
    Ok(object)
}

/// The program for a mode, loaded.
fn variant(object: &mut Ebpf, generic: bool) -> Result<&mut Xdp> {
    let program = DECAP.of(Mode::of_xdp(generic)).and_then(|name| variants::loaded(object, name));
    program.context("load the decapsulator")?.try_into().context("the program is not XDP")
}

fn attach_link(object: &mut Ebpf, dev: &str, options: &Options) -> Result<(FdLink, bool)> {
    let native = variant(object, false)?;
    let (program, id, generic) = match native.attach(dev, XdpMode::Driver) {
        Ok(id) => (native, id, false),
        Err(_) if options.generic => {
            if !options.allow_gro {
                gro::refuse(dev, "--allow-gro")?;
            }
            let program = variant(object, true)?;
            let id = program.attach(dev, XdpMode::Skb);
            let id =
                id.with_context(|| format!("attach an XDP program to {dev} in generic mode"))?;
            (program, id, true)
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "attach an XDP program to {dev} in native mode; \
                     if its driver has none, ask for generic mode with --generic"
                )
            });
        }
    };
    // Without links (before Linux 5.9) aya attaches by netlink, which can't be pinned.
    let link = FdLink::try_from(program.take_link(id)?)
        .context("the kernel has no links for XDP; Linux 5.9 or later is needed")?;
    Ok((link, generic))
}

/// Detaches the decapsulator of `dev` and removes its pins; false if there is none.
///
/// # Errors
///
/// If the pins are another interface's (a dot in its name is an underscore there), or can't be
/// removed.
pub fn detach(dev: &str, pin_dir: &Path) -> Result<bool> {
    let pins = Pins::of(pin_dir, dev);
    pins.link_of(dev, &query::interfaces()?)?;
    let removed = pins.remove()?;
    // The folder may hold what others have pinned there.
    let _ = fs::remove_dir(pin_dir);
    Ok(removed)
}

/// A prefix as the program has it: that of IPv4 is one of IPv4-mapped IPv6 addresses.
fn source_of(prefix: &Prefix) -> Source {
    let bits = u128::from_be_bytes(key_of(prefix.address()).address);
    let before = if prefix.address().is_ipv4() { 96 } else { 0 };
    Source::new(bits, before + u32::from(prefix.length()))
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "without a name".into())
}

const fn mode_name(generic: bool) -> &'static str {
    if generic { "generic" } else { "native" }
}

fn error_of(path: &str, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("read {path}"))
}
