//! The nodes' logs, read as they grow. A log outlives its `lbd`, however that
//! ends.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    net::SocketAddr,
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::{lab::Lab, ways::Way};
use lb_model::backend_address::BackendAddress;
use serde::Deserialize;

use crate::{
    clock::Clock,
    model::{FOUND_OUT, Moved, Observations, Span},
    plan::{Backend, WAYS},
};

/// Kinds of events that must not come, whatever is done here.
const ALARMS: [&str; 5] = [
    "maps_failing",
    "interface_lost",
    "state_file_failing",
    "state_file_set_aside",
    "vrrp_mismatch",
];

/// The reader of the logs.
#[derive(Debug)]
pub struct Reader {
    clock: Clock,
    names: BTreeMap<(String, BackendAddress), Backend>,
    logs: [Log; 2],
}

/// One node's log.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    offset: u64,
    /// The backends whose flows it has moved, and why, and where that is noted.
    moved: BTreeMap<(Backend, Cause), usize>,
}

/// Why the flows of a backend are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// It answered no request.
    Silent,
    /// Its next hop is gone.
    Unreachable,
}

/// A line that is an event.
#[derive(Deserialize)]
struct Event {
    timestamp: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    message: String,
    service: Option<String>,
    backend: Option<BackendAddress>,
}

impl Reader {
    /// Reads the logs of a lab's nodes, in their folders.
    #[must_use]
    pub fn new(clock: Clock, lab: &Lab, logs: [PathBuf; 2]) -> Self {
        let mut names = BTreeMap::new();
        for (service, way) in WAYS.into_iter().enumerate() {
            for (host, web) in lab.webs.iter().enumerate() {
                let backend = Backend { service, host };
                names.insert((way.name().to_owned(), way.named(web)), backend);
            }
        }
        let logs = logs.map(|path| Log { path, offset: 0, moved: BTreeMap::new() });
        Self { clock, names, logs }
    }

    /// Reads on; returns alarming lines among the new ones.
    ///
    /// # Errors
    ///
    /// If a log can't be read.
    pub fn read(&mut self, observations: &mut Observations) -> Result<Vec<String>> {
        let mut alarms = Vec::new();
        for node in 0..self.logs.len() {
            let mut file = File::open(&self.logs[node].path).context("open a node's log")?;
            file.seek(SeekFrom::Start(self.logs[node].offset)).context("seek in a node's log")?;
            let mut file = BufReader::new(file);
            let mut line = String::new();
            loop {
                line.clear();
                let read = file.read_line(&mut line).context("read a node's log")?;
                if !line.ends_with('\n') {
                    break;
                }
                self.logs[node].offset += read as u64;
                alarms.extend(self.take(node, &line, observations));
            }
        }
        Ok(alarms)
    }

    /// The backend in mode `nat` whose answers have this source before a node translates them.
    #[must_use]
    pub fn translated(&self, source: SocketAddr) -> Option<Backend> {
        let address = BackendAddress::from(source.ip());
        let with_port = address.or_port(NonZeroU16::new(source.port()));
        let is_of = |at: BackendAddress, way: Way| {
            at == with_port
                || (way == Way::NatRangeV4 && at == address && source.port() == way.port())
        };
        self.names
            .iter()
            .find_map(|((_, at), backend)| is_of(*at, WAYS[backend.service]).then_some(*backend))
    }

    /// Takes a line in; returns the alarm in it.
    fn take(&mut self, node: usize, line: &str, observations: &mut Observations) -> Option<String> {
        let alarm = || Some(format!("lb{} logs: {}", node + 1, line.trim_end()));
        let Ok(event) = serde_json::from_str::<Event>(line) else {
            return line.contains("panicked").then(alarm).flatten();
        };
        let Ok(at) = humantime::parse_rfc3339_weak(&event.timestamp) else { return alarm() };
        let at = self.clock.at(at);
        let of = event.service.zip(event.backend).and_then(|key| self.names.get(&key).copied());
        let moved = &mut self.logs[node].moved;
        match (event.kind.as_str(), of) {
            ("started", _) => {
                // The state of a backend in the maps holds until it has answered.
                for index in std::mem::take(moved).into_values() {
                    observations.moved[index].span.until = at + FOUND_OUT;
                }
            }
            ("backend_down", Some(backend)) => {
                let cause = match event.message.as_str() {
                    message if message.ends_with("its flows move") => Cause::Silent,
                    message if message.ends_with("can't be reached") => Cause::Unreachable,
                    _ => return None,
                };
                observations.moved.push(Moved { node, backend, span: Span::since(at) });
                moved.insert((backend, cause), observations.moved.len() - 1);
            }
            ("backend_up", Some(backend)) => {
                let cause = match event.message.as_str() {
                    message if message.ends_with("can be reached") => Cause::Unreachable,
                    _ => Cause::Silent,
                };
                if let Some(index) = moved.remove(&(backend, cause)) {
                    observations.moved[index].span.until = at;
                }
            }
            ("vrrp_active", _) => observations.takeovers.push((node, at)),
            (kind, _) if ALARMS.contains(&kind) => return alarm(),
            _ => {}
        }
        None
    }
}

/// How long a line may be on its way to the log.
pub const DELAY: Duration = Duration::from_millis(500);
