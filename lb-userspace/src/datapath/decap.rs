//! The decapsulator for backends without a tunnel device: an XDP program that takes the outer
//! header off what the balancer sends in mode `ipip`.
//!
//! It needs no daemon. Link, maps and counters are pinned under `<pin_dir>/decap-<dev>/` and
//! outlive the command that attached them.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapInfo},
    programs::{
        Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        xdp::XdpLink,
    },
    util::nr_cpus,
};
use lb_common::{
    abi::{VipKey, mapped},
    decap::{MAX_SOURCES, REASONS, Reason, Source},
};
use serde::{Deserialize, Serialize};

use super::{
    attach::remove_link,
    variants::{self, DECAP},
};
use crate::{
    flows::Prefix,
    netlink::{gro, query},
    objects,
    settings::Tunnel,
    status::Count,
};

const ADDRESSES: &str = "DECAP_ADDRESSES";
const VIPS: &str = "DECAP_VIPS";
const SOURCES: &str = "DECAP_SOURCES";
const VERDICTS: &str = "DECAP_VERDICTS";
/// Capacity of `DECAP_ADDRESSES`.
const MAX_ADDRESSES: usize = 64;
/// Capacity of `DECAP_VIPS`.
const MAX_VIPS: usize = 512;

/// What the decapsulator takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Outer destinations; empty: the interface's addresses of global scope.
    pub addresses: Vec<IpAddr>,
    /// Inner destinations; empty: the addresses on the loopback that are none of the loopback's own, as
    /// they are when it is attached.
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

/// A decapsulator at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecapStatus {
    /// The interface.
    pub dev: String,
    /// `native`, `generic`, or `detached` if the interface has gone or lost the program.
    pub mode: String,
    /// The outer destinations that are taken.
    pub addresses: Vec<IpAddr>,
    /// The inner destinations that are taken; empty: any, by a decapsulator of an older version.
    pub vips: Vec<IpAddr>,
    /// The outer sources that are taken; none: any, by a decapsulator of an older version.
    #[serde(default)]
    pub sources: Option<Vec<Prefix>>,
    /// Packets and bytes by what became of them.
    pub counters: BTreeMap<String, Count>,
}

/// How to name the sources that a balancer has unless its configuration says otherwise.
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
    let interfaces = query::interfaces()?;
    let Some(interface) = interfaces.get(dev) else {
        bail!("interface {dev} does not exist; `ip link` lists those that do");
    };
    let addresses =
        if options.addresses.is_empty() { &interface.addresses } else { &options.addresses };
    ensure!(
        !addresses.is_empty(),
        "interface {dev} has no address of global scope; name the tunnel's destinations with --address"
    );
    ensure!(addresses.len() <= MAX_ADDRESSES, "at most {MAX_ADDRESSES} addresses can be taken");
    ensure!(
        !options.sources.is_empty(),
        "the sources that tunnelled packets may come from are not named, and without them anybody could \
         send packets to this host's inside; name those of the balancers' [tunnel], which are these \
         unless their configuration says otherwise: {}; `--from any` takes all",
        usual_sources()
    );
    ensure!(
        options.sources.len() <= MAX_SOURCES as usize,
        "at most {MAX_SOURCES} prefixes of sources can be named"
    );
    let vips = match interfaces.get("lo") {
        Some(loopback) if options.vips.is_empty() => &loopback.addresses,
        _ => &options.vips,
    };
    ensure!(
        !vips.is_empty(),
        "no VIP is on the loopback; add it there first (ip address add VIP/32 dev lo), or name it with --vip"
    );
    let options = &Options { addresses: addresses.clone(), vips: vips.clone(), ..options.clone() };
    ensure!(options.vips.len() <= MAX_VIPS, "at most {MAX_VIPS} VIPs can be named");

    let pins = Pins::of(pin_dir, dev);
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
    let outcome = attach_new(dev, options, &pins, ours, interface.xdp_generic);
    if outcome.is_err() && interface.xdp_prog_id.is_none() {
        // Nothing was attached before and nothing is: leave no pins behind.
        pins.remove()?;
    }
    outcome
}

fn attach_new(
    dev: &str,
    options: &Options,
    pins: &Pins,
    ours: Option<FdLink>,
    is_generic: bool,
) -> Result<Attached> {
    let mut object = load(options, pins)?;
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
    for name in [ADDRESSES, VIPS, SOURCES] {
        let map = object.map(name).with_context(|| format!("the object lacks the map {name}"))?;
        pins.replace_map(name, map)?;
    }
    let Options { addresses, vips, sources, .. } = options.clone();
    Ok(Attached { mode: mode_name(generic).into(), addresses, vips, sources, replaced })
}

/// Loads the object with its maps filled.
fn load(options: &Options, pins: &Pins) -> Result<Ebpf> {
    let cpus = nr_cpus().map_err(|(path, error)| error_of(path, error))?;
    let counters = u32::try_from(cpus).context("count the CPUs")? * REASONS;
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
        .load(&object)
        .context("load the decapsulator's maps")?;
    fill(&mut object, ADDRESSES, &options.addresses)?;
    fill(&mut object, VIPS, &options.vips)?;
    let map = object.map_mut(SOURCES);
    let map = map.with_context(|| format!("the object lacks the map {SOURCES}"))?;
    let mut map: Array<_, Source> = map.try_into()?;
    for (index, prefix) in (0..).zip(&options.sources) {
        let write = map.set(index, source_of(prefix), 0);
        write.with_context(|| format!("write {prefix} to {SOURCES}"))?;
    }
    Ok(object)
}

fn fill(object: &mut Ebpf, name: &str, addresses: &[IpAddr]) -> Result<()> {
    let map = object.map_mut(name).with_context(|| format!("the object lacks the map {name}"))?;
    let mut map: HashMap<_, VipKey, u32> = map.try_into()?;
    for address in addresses {
        map.insert(key_of(*address), 1, 0).with_context(|| format!("write {address} to {name}"))?;
    }
    Ok(())
}

/// The program for a mode, loaded.
fn variant(object: &mut Ebpf, generic: bool) -> Result<&mut Xdp> {
    variants::loaded(object, DECAP.of(generic)).context("load the decapsulator")
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

/// All decapsulators under `pin_dir`, by interface.
///
/// # Errors
///
/// If the pins can't be read.
pub fn status(pin_dir: &Path) -> Result<Vec<DecapStatus>> {
    let folder = match fs::read_dir(pin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder.with_context(|| format!("read {}", pin_dir.display()))?,
    };
    let interfaces = query::interfaces()?;
    let mut all = Vec::new();
    for entry in folder {
        let name = entry.with_context(|| format!("read {}", pin_dir.display()))?.file_name();
        let Some(pinned) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let pins = Pins { folder: pin_dir.join(&name) };
        all.push(status_of(pinned, &pins, &interfaces)?);
    }
    all.sort_by(|a, b| a.dev.cmp(&b.dev));
    Ok(all)
}

fn status_of(
    pinned: &str,
    pins: &Pins,
    interfaces: &BTreeMap<String, query::Interface>,
) -> Result<DecapStatus> {
    let program = match PinnedLink::from_pin(pins.link()) {
        Ok(link) => Some(FdLink::from(link).info()?.program_id()),
        Err(_) => None,
    };
    // Two interfaces can have the same name but for dots; the program tells which it is.
    let carrier = interfaces.iter().find(|(name, interface)| {
        file_name(name) == pinned && program.is_some() && interface.xdp_prog_id == program
    });
    let (dev, mode) = match carrier {
        Some((name, interface)) => (name.as_str(), mode_name(interface.xdp_generic)),
        None => (pinned, "detached"),
    };
    Ok(DecapStatus {
        dev: dev.into(),
        mode: mode.into(),
        addresses: addresses_in(&pins.map(ADDRESSES))?,
        vips: addresses_in(&pins.map(VIPS))?,
        sources: sources_in(&pins.map(SOURCES))?,
        counters: counters_in(&pins.map(VERDICTS))?,
    })
}

fn addresses_in(pin: &Path) -> Result<Vec<IpAddr>> {
    let Some(data) = open_map(pin)? else { return Ok(Vec::new()) };
    let map: HashMap<_, VipKey, u32> = Map::HashMap(data).try_into()?;
    let keys: Result<Vec<_>, _> = map.keys().collect();
    let keys = keys.with_context(|| format!("read {}", pin.display()))?;
    let mut addresses: Vec<_> = keys.into_iter().map(address_of).collect();
    addresses.sort();
    Ok(addresses)
}

/// The prefixes of a list; none if there is no such map.
fn sources_in(pin: &Path) -> Result<Option<Vec<Prefix>>> {
    let Some(data) = open_map(pin)? else { return Ok(None) };
    let map: Array<_, Source> = Map::Array(data).try_into()?;
    let mut prefixes = Vec::new();
    for index in 0..map.len() {
        let source = map.get(&index, 0).with_context(|| format!("read {}", pin.display()))?;
        if source.used != 0 {
            prefixes.push(prefix_of(&source));
        }
    }
    Ok(Some(prefixes))
}

/// A prefix as the program has it: that of IPv4 is one of IPv4-mapped IPv6 addresses.
fn source_of(prefix: &Prefix) -> Source {
    let bits = u128::from_be_bytes(key_of(prefix.address()).address);
    let before = if prefix.address().is_ipv4() { 96 } else { 0 };
    Source::new(bits, before + u32::from(prefix.length()))
}

/// The inverse of [`source_of`].
fn prefix_of(source: &Source) -> Prefix {
    let [high, low] = source.address.map(u64::from_be);
    let length = source.mask.map(u64::count_ones).iter().sum::<u32>() as u8;
    let address = std::net::Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
    match address.to_ipv4_mapped().filter(|_| length >= 96) {
        Some(v4) => Prefix::new(v4.into(), length - 96),
        None => Prefix::new(address.into(), length),
    }
}

fn counters_in(pin: &Path) -> Result<BTreeMap<String, Count>> {
    let mut counters = BTreeMap::new();
    let Some(data) = open_map(pin)? else { return Ok(counters) };
    let map: Array<_, [u64; 2]> = Map::Array(data).try_into()?;
    for index in 0..map.len() {
        let [packets, bytes] =
            map.get(&index, 0).with_context(|| format!("read {}", pin.display()))?;
        if packets > 0 {
            let count: &mut Count = counters.entry(reason_name(index % REASONS)).or_default();
            count.packets += packets;
            count.bytes += bytes;
        }
    }
    Ok(counters)
}

/// The word for a counter.
fn reason_name(index: u32) -> String {
    Reason::ALL.get(index as usize).map_or("unknown", |reason| reason.name()).into()
}

/// The map pinned at `pin`; none if there is no such pin.
fn open_map(pin: &Path) -> Result<Option<MapData>> {
    if !pin.exists() {
        return Ok(None);
    }
    MapData::from_pin(pin).map(Some).with_context(|| format!("open {}", pin.display()))
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

const fn key_of(address: IpAddr) -> VipKey {
    let address = match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    VipKey { address }
}

fn address_of(key: VipKey) -> IpAddr {
    IpAddr::from(key.address).to_canonical()
}

fn error_of(path: &str, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("read {path}"))
}

/// What the folders of decapsulators begin with.
const PREFIX: &str = "decap-";

/// bpffs takes no dots.
fn file_name(dev: &str) -> String {
    dev.replace('.', "_")
}

/// The pins of one decapsulator.
struct Pins {
    folder: PathBuf,
}

impl Pins {
    fn of(pin_dir: &Path, dev: &str) -> Self {
        Self { folder: pin_dir.join(format!("{PREFIX}{}", file_name(dev))) }
    }

    fn link(&self) -> PathBuf {
        self.folder.join("link")
    }

    fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn create(&self) -> Result<()> {
        let folder = &self.folder;
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "create {}; a bpf file system is needed there: mount -t bpf bpf /sys/fs/bpf",
                folder.display()
            )
        })
    }

    /// The pinned link, if its program is the one on `dev`. The link of an interface that is gone
    /// is of no more use: its pin is removed.
    fn link_of(
        &self,
        dev: &str,
        interfaces: &BTreeMap<String, query::Interface>,
    ) -> Result<Option<FdLink>> {
        let path = self.link();
        if !path.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(&path)
            .with_context(|| format!("open the link {}", path.display()))?;
        let link = FdLink::from(link);
        let program = link.info()?.program_id();
        match interfaces.iter().find(|(_, one)| one.xdp_prog_id == Some(program)) {
            Some((name, _)) if name == dev => Ok(Some(link)),
            Some((name, _)) => bail!(
                "the pins in {} belong to interface {name}; detach it first: \
                 lbctl decap detach --dev {name}",
                self.folder.display()
            ),
            None => {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                Ok(None)
            }
        }
    }

    /// Pins `map` in place of the one that was pinned under its name.
    fn replace_map(&self, name: &str, map: &Map) -> Result<()> {
        let path = self.map(name);
        let aside = self.map(&format!("{name}-next"));
        if aside.exists() {
            fs::remove_file(&aside).with_context(|| format!("remove {}", aside.display()))?;
        }
        let (Map::HashMap(data) | Map::Array(data)) = map else {
            bail!("the map {name} is neither a hash map nor an array")
        };
        data.pin(&aside).with_context(|| format!("pin {}", aside.display()))?;
        fs::rename(&aside, &path).with_context(|| format!("pin {}", path.display()))
    }

    /// Removes all pins, and with the link's the program; false if there were none.
    fn remove(&self) -> Result<bool> {
        let folder = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            folder => folder.with_context(|| format!("read {}", self.folder.display()))?,
        };
        // First the program goes, then what it counts in.
        let link = self.link();
        if link.exists() {
            remove_link(&link)?;
        }
        for entry in folder {
            let path = entry.with_context(|| format!("read {}", self.folder.display()))?.path();
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.with_context(|| format!("remove {}", path.display()))?,
            }
        }
        fs::remove_dir(&self.folder)
            .with_context(|| format!("remove {}", self.folder.display()))?;
        Ok(true)
    }
}
