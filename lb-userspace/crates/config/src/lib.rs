//! The configuration: TOML in, services that can't be wrong out, or every mistake at once.
//!
//! The file is walked by hand over its spanned tree, since a serde type would stop at the first
//! mistake and know no line for mistakes between two values.
//!
//! [`write_back`] and [`save`] write what commands have changed back into it, with its comments and order; [`show`]
//! prints the configuration in force as a file. Both use the present names of keys (`former`). [`seed`] is the secret
//! that rings are keyed with, in a file of its own.
//!
//! It knows the desired state and the settings of every part, and nothing of the running daemon.

mod address;
mod check;
mod clash;
mod former;
mod group;
pub mod host;
pub mod http;
mod interfaces;
mod log;
pub mod piece;
mod router;
pub mod save;
mod secret;
pub mod seed;
mod service;
pub mod show;
mod sync;
mod track;
mod tree;
pub mod unit;
pub mod write_back;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use lb_model::{
    defaults,
    desired::Desired,
    overrides::Unsaid,
    router::{Router, Routers},
    rules,
    settings::{Hooks, Limits, LocalClients, Settings, Tunnel, XdpModes},
    units::{self, counted},
};
use toml::de::DeTable;

pub use self::sync::host_name;
pub use self::tree::{About, Problem};
use self::{
    interfaces::check_interface,
    tree::{Problems, Table, parse_prefix},
};

/// The most entries that a map may be given.
const MAX_ENTRIES: u64 = 1 << 26;
/// ICMP errors a second and CPU, at most.
const MAX_ICMP_ERRORS: u64 = 1_000_000;

/// A configuration that holds together.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<String>,
    /// Which hook each interface gets.
    pub hooks: Hooks,
    /// In which modes of XDP the program may be attached.
    pub xdp: XdpModes,
    /// Whether it may run in generic mode where GRO merges packets below.
    pub allow_generic_gro: bool,
    /// Whether the program is attached again where someone has taken it off.
    pub reattach: bool,
    /// Whether services may be tunnelled though an interface with VLANs takes tags off.
    pub allow_rxvlan: bool,
    /// Which processes of this node reach services in mode `nat`.
    pub local_clients: LocalClients,
    /// Where links and maps are pinned.
    pub pin_dir: PathBuf,
    /// Capacities of the maps.
    pub limits: Limits,
    /// Outer sources of tunnels.
    pub tunnel: Tunnel,
    /// The secret of rings and flow hashes.
    pub seed: seed::Source,
    /// Where `lbd` listens for `lbctl`.
    pub socket: PathBuf,
    /// The group that may use the socket.
    pub group: String,
    /// Where changes by `lbctl` are kept.
    pub state_file: PathBuf,
    /// The virtual routers.
    pub routers: Routers,
    /// The flow sync with the peers; none: it has none.
    pub sync: Option<lb_sync::Config>,
    /// How much is logged, and in what form.
    pub log: lb_model::log::Settings,
    /// Where read-only clients are answered over TCP; none: nowhere.
    pub http: Option<http::Config>,
    /// The reason why no client is answered there, though it is configured.
    pub http_lacks: Option<Lacks>,
    /// The services.
    pub desired: Desired,
    /// The keys of its backends that it does not specify.
    pub unsaid: Unsaid,
    /// The warnings: settings that work and are probably not meant.
    pub warnings: Vec<Problem>,
    /// The text that it was read from.
    pub text: Text,
    /// The text that `lbd` has started with, of which the keys hold that take a restart.
    pub text_at_start: Text,
}

/// The text of a configuration, in which there may be secrets. Two configurations with the same values are
/// equal, however they are written: any text equals any other.
#[derive(Clone, Default)]
pub struct Text(pub String);

impl PartialEq for Text {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text(..)")
    }
}

/// The files that an HTTP listener lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Lacks {
    /// Where it would listen.
    pub listen: Vec<SocketAddr>,
    /// The mistakes of its files.
    pub problems: Vec<Problem>,
    /// The configuration, to look for them again.
    text: Text,
}

impl Lacks {
    /// The listener, if its files can be used by now.
    #[must_use]
    pub fn try_again(&self) -> Option<http::Config> {
        Config::parse(&self.text.0).ok()?.http
    }

    /// The mistakes, in one line.
    #[must_use]
    pub fn why(&self) -> String {
        let all: Vec<_> = self.problems.iter().map(ToString::to_string).collect();
        all.join("; ")
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("read configuration {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has mistakes.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Every mistake of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The file.
    pub file: PathBuf,
    /// The mistakes, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Invalid {
    /// Whether the configuration itself has a mistake, which stays until its text changes. Otherwise
    /// it is a file that it names.
    #[must_use]
    pub fn is_mistaken(&self) -> bool {
        self.problems.iter().any(|problem| problem.about == About::Text)
    }
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{}:{problem}", self.file.display())?;
        }
        let count = self.problems.len();
        write!(f, "{}: {}", self.file.display(), counted(count, "error"))
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file can't be read, or has mistakes: all of them.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::Unreadable { file: file.into(), source })?;
        Self::parse(&text).map_err(|problems| Invalid { file: file.into(), problems }.into())
    }

    /// Reads a file to start with: if all that is wrong are files of the HTTP listener, everything else is
    /// as configured.
    ///
    /// # Errors
    ///
    /// As for [`Self::load`].
    pub fn load_to_start(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::Unreadable { file: file.into(), source })?;
        Self::parse_to_start(&text)
            .map_err(|problems| Invalid { file: file.into(), problems }.into())
    }

    /// The node's name: the one that is sent to peers, or the machine's.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.sync.as_ref().map_or_else(sync::host_name, |sync| sync.node.clone())
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// All mistakes, in the order of the text.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let config = Self::parse_to_start(text)?;
        match config.http_lacks {
            None => Ok(config),
            Some(lacks) => Err(lacks.problems),
        }
    }

    /// Reads the text of a file, as [`Self::load_to_start`].
    ///
    /// # Errors
    ///
    /// All other mistakes with those of the listener's files, in the order of the text.
    pub fn parse_to_start(text: &str) -> Result<Self, Vec<Problem>> {
        let problems = Problems::new(text);
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            problems.push(error.span().map_or(0, |span| span.start), "", error.message());
        }
        // Missing keys of a file with broken syntax mean nothing.
        let read = if errors.is_empty() { read(&tree, &problems) } else { None };
        let problems = problems.into_sorted();
        let read = read.map(|(config, listen)| {
            let text = Text(text.to_owned());
            (Self { text: text.clone(), text_at_start: text, ..config }, listen)
        });
        match read {
            Some((config, _)) if problems.is_empty() => Ok(config),
            Some((config, listen))
                if problems.iter().all(|problem| problem.about == About::ListenerFile) =>
            {
                let lacks = Lacks { listen, problems, text: config.text.clone() };
                Ok(Self { http_lacks: Some(lacks), ..config })
            }
            _ => Err(problems),
        }
    }

    /// The data plane's settings, with the seed from its file, which is made if there is none.
    ///
    /// # Errors
    ///
    /// The seed's file can't be read or written.
    pub fn settings(&self, force: bool) -> anyhow::Result<Settings> {
        Ok(Settings {
            interfaces: self.interfaces.clone(),
            pin_dir: self.pin_dir.clone(),
            hooks: self.hooks.clone(),
            tc_links: true,
            xdp: self.xdp,
            allow_generic_gro: self.allow_generic_gro,
            force,
            limits: self.limits,
            tunnel: self.tunnel,
            seed: self.seed.obtain().context("obtain the seed")?,
            reattach: self.reattach,
            local_clients: self.local_clients.clone(),
        })
    }

    /// The differences to `other` that take a new start of `lbd`: their keys.
    #[must_use]
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        [
            ("interfaces", self.interfaces != other.interfaces),
            ("xdp", self.xdp != other.xdp),
            ("allow_generic_gro", self.allow_generic_gro != other.allow_generic_gro),
            ("reattach", self.reattach != other.reattach),
            ("local_clients", self.local_clients != other.local_clients),
            ("pin_dir", self.pin_dir != other.pin_dir),
            ("limits", self.limits != other.limits),
            ("tunnel", self.tunnel != other.tunnel),
            ("seed", self.seed != other.seed),
            ("socket", self.socket != other.socket),
            ("group", self.group != other.group),
            ("state_file", self.state_file != other.state_file),
            ("sync", self.sync != other.sync),
            ("log.format", self.log.form != other.log.form),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// The interfaces that it names, but those that lbd makes itself.
    pub fn interface_names(&self) -> BTreeSet<&str> {
        let routers = self.routers.routers.iter().flat_map(Router::interface_names);
        let multicast = self.sync.iter().filter_map(|sync| sync.multicast.as_ref());
        let multicast = multicast.map(|(_, interface)| interface.as_str());
        self.interfaces.iter().map(String::as_str).chain(routers).chain(multicast).collect()
    }

    /// Mistakes in services that only a look at the host finds, with their places in the file.
    fn problems_of(&self, violations: impl IntoIterator<Item = rules::Violation>) -> Vec<Problem> {
        self.read_again(|root, problems| {
            let places = service::read_services(root).places;
            for violation in violations {
                let (offset, path) = places.find(&violation).unwrap_or_default();
                problems.push(offset, path, violation.message);
            }
        })
    }

    /// The same for one of an interface.
    fn problem_of_interface(&self, name: &str, message: String) -> Problem {
        let problems = self.read_again(|root, problems| {
            let (offset, path) = interfaces::place_of(root, name);
            problems.push(offset, path, message);
        });
        problems.into_iter().next().expect("one was pushed")
    }

    /// Reads the text, which has no mistake, once more, for the places of its values.
    fn read_again(&self, find: impl FnOnce(&Table<'_>, &Problems<'_>)) -> Vec<Problem> {
        let (known, found) = (Problems::new(&self.text.0), Problems::new(&self.text.0));
        let (tree, _) = DeTable::parse_recoverable(&self.text.0);
        find(&Table::root(&tree, &known), &found);
        found.into_sorted()
    }

    /// A summary of the configuration, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let backends: usize = self.desired.services.values().map(|s| s.backends.len()).sum();
        let routers = match self.routers.routers.len() {
            0 => String::new(),
            count => format!(", {}", counted(count, "virtual router")),
        };
        format!(
            "{}, {}{routers}, on {}",
            counted(self.desired.services.len(), "service"),
            counted(backends, "backend"),
            self.interfaces.join(", "),
        )
    }
}

/// Reads everything, and where the HTTP listener is to be; none if something is so wrong that no
/// configuration can be made.
fn read<'a>(
    tree: &'a toml::Spanned<DeTable<'a>>,
    problems: &'a Problems<'a>,
) -> Option<(Config, Vec<SocketAddr>)> {
    let root = Table::root(tree, problems);
    let interfaces = interfaces::read(&root);
    let hooks = interfaces::read_hooks(&root, interfaces.as_deref());
    let xdp = root.optional("xdp").and_then(|field| {
        field.word(&[
            ("native", XdpModes::Native),
            ("native-or-generic", XdpModes::NativeOrGeneric),
            ("generic", XdpModes::Generic),
        ])
    });
    let allow_generic_gro = root.optional("allow_generic_gro").and_then(|field| field.flag());
    let reattach = root.optional("reattach").and_then(|field| field.flag());
    let local_clients = root.optional("local_clients").and_then(|field| field.flag());
    let cgroup = read_path(&root, "local_cgroup");
    let allow_rxvlan = root.optional("allow_rxvlan").and_then(|field| field.flag());
    let path = |key, default: &str| read_path(&root, key).unwrap_or_else(|| default.into());
    let pin_dir = path("pin_dir", defaults::PIN_DIR);
    let socket = path("socket", defaults::SOCKET);
    let state_file = path("state_file", defaults::STATE_FILE);
    let group = root.optional("group").and_then(|field| field.string("group = \"lb\""));
    let seed = read_seed(&root, &state_file);
    let limits = read_limits(&root);
    let tunnel = read_tunnel(&root);
    let services = service::read_services(&root);
    let doubts = Problems::new(problems.text());
    let routers = router::read_routers(&root, &doubts);
    let groups = group::read_groups(&root, &routers);
    let sync = sync::read_sync(&root, &doubts);
    let http = http::read_http(&root, &doubts);
    let log = log::read_log(&root);
    let named = interfaces.as_deref().unwrap_or_default();
    clash::check(&routers, &services, named, &doubts);

    let place = |violation: &rules::Violation| {
        let found = services.places.find(violation);
        found.unwrap_or_else(|| (0, format!("limits.{}", violation.field)))
    };
    let incomplete = services.incomplete.services.iter();
    let incomplete = incomplete
        .flat_map(|(name, service)| rules::violations_of(name, service))
        .filter(|violation| violation.field != "name" || services.places.holds(violation));
    for violation in rules::violations(&services.desired, &limits).into_iter().chain(incomplete) {
        let (offset, path) = place(&violation);
        problems.push(offset, path, violation.message);
    }
    for violation in rules::doubts(&services.desired) {
        let (offset, path) = place(&violation);
        doubts.push(offset, path, violation.message);
    }
    root.finish();
    let config = Config {
        interfaces: interfaces?,
        hooks,
        xdp: xdp.unwrap_or_default(),
        allow_generic_gro: allow_generic_gro.unwrap_or(false),
        reattach: reattach.unwrap_or(true),
        local_clients: match (local_clients.unwrap_or(true), cgroup) {
            (false, _) => LocalClients::None,
            (true, None) => LocalClients::All,
            (true, Some(cgroup)) => LocalClients::Below(cgroup),
        },
        allow_rxvlan: allow_rxvlan.unwrap_or(false),
        pin_dir,
        limits,
        tunnel,
        seed,
        socket,
        group: group.unwrap_or(defaults::GROUP).into(),
        state_file,
        routers: Routers { routers: routers.into_iter().map(|read| read.router).collect(), groups },
        sync,
        http: http.config,
        http_lacks: None,
        text: Text::default(),
        text_at_start: Text::default(),
        log,
        desired: services.desired,
        unsaid: services.unsaid,
        warnings: doubts.into_sorted(),
    };
    Some((config, http.listen))
}

fn read_path(root: &Table<'_>, key: &'static str) -> Option<PathBuf> {
    root.optional(key)?.parsed(&format!("{key} = \"/an/absolute/path\""), absolute)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(format!("`{text}` is not absolute; begin it with `/`")),
    }
}

/// A program and its arguments, for `key`.
fn command(field: &tree::Field<'_>, key: &str) -> Option<Vec<String>> {
    let example = format!("{key} = [\"/usr/local/bin/{key}\", \"--argument\"]");
    let words = field.strings(&example)?;
    let words: Option<Vec<String>> =
        words.iter().map(|word| word.string(&example).map(str::to_owned)).collect();
    let words = words?;
    let fits = rules::check::command(&words, "program", &example);
    fits.map_err(|message| field.refuse(message)).ok()?;
    Some(words)
}

/// Unless a file is named, the seed is kept beside the state.
fn read_seed(root: &Table<'_>, state_file: &Path) -> seed::Source {
    const EXAMPLE: &str = "32 hexadecimal digits in quotes, as `openssl rand -hex 16` prints them";
    let given = root.optional("seed");
    let file = read_path(root, "seed_file");
    if let (Some(given), Some(_)) = (&given, &file) {
        given.refuse("both `seed` and `seed_file` are given; keep one of them");
    }
    let seed = given.and_then(|field| {
        field.parsed(EXAMPLE, |text| {
            seed::parse(text).ok_or_else(|| {
                format!("{} characters that are no seed; write {EXAMPLE}", text.chars().count())
            })
        })
    });
    match (seed, file) {
        (Some(seed), _) => seed::Source::Given(seed),
        (None, Some(file)) => seed::Source::File(file),
        (None, None) => {
            let file = state_file.with_file_name("seed");
            seed::Source::Default { file, earlier: defaults::SEED_FILE.into() }
        }
    }
}

fn read_limits(root: &Table<'_>) -> Limits {
    let mut limits = Limits::default();
    let Some(table) = root.optional("limits").and_then(|field| field.table("limits")) else {
        return limits;
    };
    for (key, limit, least, most) in [
        // Ids of services and backends have 16 bits; backend 0 is none.
        ("services", &mut limits.services, 1, 65_535),
        ("backends", &mut limits.backends, 1, 65_534),
        ("pins", &mut limits.pins, 1, MAX_ENTRIES),
        ("tracked_flows", &mut limits.tracked_flows, 1, MAX_ENTRIES),
        ("nat_connections", &mut limits.nat_connections, 1, MAX_ENTRIES),
        ("connections", &mut limits.connections, 1, MAX_ENTRIES),
        ("fragments", &mut limits.fragments, 1, MAX_ENTRIES),
        ("icmp_errors", &mut limits.icmp_errors, 0, MAX_ICMP_ERRORS),
    ] {
        if let Some(value) = table.optional(key).and_then(|field| field.integer(least..most + 1)) {
            *limit = value;
        }
    }
    table.finish();
    limits
}

fn read_tunnel(root: &Table<'_>) -> Tunnel {
    let mut tunnel = Tunnel::default();
    let Some(table) = root.optional("tunnel").and_then(|field| field.table("tunnel")) else {
        return tunnel;
    };
    const V4: &str = "\"172.16.0.0/16\"";
    const V6: &str = "\"100::/64\"";
    // The low 32 bits at most vary, and only those that the prefix leaves free.
    let v4 = |address: &Ipv4Addr, length: u8| {
        length <= 32 && u64::from(address.to_bits()) & ((1u64 << (32 - length)) - 1) == 0
    };
    let v6 = |address: &Ipv6Addr, length: u8| {
        length <= 128
            && (length == 0 || address.to_bits() << (length - 1) << 1 == 0)
            && (length > 0 || address.to_bits() == 0)
    };
    let field = table.optional("source_v4");
    if let Some(source) =
        field.and_then(|field| field.parsed(V4, |text| parse_prefix(text, V4, v4)))
    {
        tunnel.source_v4 = source;
    }
    let field = table.optional("source_v6");
    if let Some(source) =
        field.and_then(|field| field.parsed(V6, |text| parse_prefix(text, V6, v6)))
    {
        tunnel.source_v6 = source;
    }
    table.finish();
    tunnel
}

/// Reads a duration within bounds.
fn duration_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = units::parse_duration(text)?;
    rules::check::within(text, duration, &(least..=most)).map(|()| duration)
}

#[cfg(test)]
mod tests;
