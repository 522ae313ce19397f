//! The clients of a pair, which are to notice nothing: long downloads, connections that request pages now
//! and then, and a new one every five milliseconds.

use std::{
    cell::RefCell,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use kit::{
    arrivals::{self, Arrivals},
    downloads::{self, Downloads},
    ha_pair::HaPair,
    load::{self, Broken, Load},
    ways::Way,
};
use lb_common::abi::ABI_VERSION;
use nix::time::{ClockId, clock_gettime};

/// Between two new connections, of all ways together.
const EVERY: Duration = Duration::from_millis(5);

/// How long a request may take: a SYN that is lost is sent again after one second, then three.
const LIMIT: Duration = Duration::from_secs(8);

/// Long downloads, of all ways together.
const DOWNLOADS: usize = 48;

/// How long before the end of a node's last lease a flow begins in a slot in flux of which the other node may not
/// know if the first one dies: since the oldest export that the other one has not imported, 30 milliseconds, and
/// the beat before it. What begins later, and before the takeover, is not pinned, and the other node finds it. The
/// rest is for this process, which notes when a connection begins before its SYN leaves.
const UNEXPORTED: Duration = Duration::from_millis(60);
/// The same after it.
const LATE: Duration = Duration::from_millis(10);

/// The clients of one pair.
pub struct Clients {
    ways: Vec<(Way, Load, Arrivals, Option<Downloads>)>,
    downloads: usize,
    operations: RefCell<Vec<(Instant, String)>>,
    deaths: RefCell<Vec<(Instant, Instant)>>,
}

impl Clients {
    /// Starts all; downloads that would take for `time` to come whole.
    pub fn start(ha_pair: &HaPair, time: Duration) -> Result<Self> {
        Self::begin(ha_pair, Some(time))
    }

    /// Starts those that don't stay long.
    pub fn start_short(ha_pair: &HaPair) -> Result<Self> {
        Self::begin(ha_pair, None)
    }

    fn begin(ha_pair: &HaPair, time: Option<Duration>) -> Result<Self> {
        let (lab, ways) = (&ha_pair.lab, &ha_pair.plan.ways);
        let each = DOWNLOADS / ways.len() / lab.webs.len();
        let mut clients = Self {
            ways: Vec::new(),
            downloads: 0,
            operations: RefCell::default(),
            deaths: RefCell::default(),
        };
        for &way in ways {
            let target = way.target();
            let downloads = time.map(|time| {
                let plan = downloads::Plan { target, each, time, patience: LIMIT };
                Downloads::start(lab, plan)
            });
            let downloads = downloads.transpose()?;
            clients.downloads += if downloads.is_some() { each * lab.webs.len() } else { 0 };
            // Connections that go on for ever would hold a drain up.
            let steady = if downloads.is_some() { 24 } else { 0 };
            let pause = Duration::from_millis(200);
            let load = load::Plan { target, steady, passing: 12, pause };
            let load = Load::start(&lab.client.namespace, load)?;
            let every = EVERY * ways.len() as u32;
            let arrivals = arrivals::Plan { target, every, limit: LIMIT };
            let arrivals = Arrivals::start(&lab.client.namespace, arrivals)?;
            clients.ways.push((way, load, arrivals, downloads));
        }
        Ok(clients)
    }

    /// Notes that something was done just now, to be printed beside an error.
    pub fn note(&self, operation: &str) {
        self.operations.borrow_mut().push((Instant::now(), operation.to_owned()));
    }

    /// Kills `lbd` of a node. Of what was opened within its last lease, in a slot in flux, no other node may know.
    ///
    /// # Errors
    ///
    /// If it can't be killed, or had no lease: then it took no peer for present, and no other node knows of any pin.
    pub fn kill(&self, ha_pair: &mut HaPair, node: usize) -> Result<()> {
        ha_pair.nodes[node].kill()?;
        let name = &ha_pair.host(node).name;
        let end = end_of_lease(ha_pair.nodes[node].pins())?;
        self.note(&format!(
            "lbd on {name} was killed, its lease ended {:.3?} before",
            end.elapsed()
        ));
        self.deaths.borrow_mut().push((end - UNEXPORTED, end + LATE));
        Ok(())
    }

    /// The broken connections of a load, but for those that could not be saved.
    fn broken(&self, report: &load::Report) -> Vec<Broken> {
        let deaths = self.deaths.borrow();
        let lost = |one: &&Broken| {
            deaths.iter().any(|(from, to)| *from <= one.opened && one.opened <= *to)
        };
        report.broken.iter().filter(|one| !lost(one)).cloned().collect()
    }

    /// The last operations, and how long ago each was.
    fn recent(&self) -> String {
        let operations = self.operations.borrow();
        let last = &operations[operations.len().saturating_sub(8)..];
        let listed =
            last.iter().map(|(at, operation)| format!("{operation} {:.3?} ago", at.elapsed()));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = now.as_millis() % 60_000;
        format!("{}; at second {seconds} ms", listed.collect::<Vec<_>>().join(", "))
    }

    /// That nothing has broken until now; those that would be silent are given a while to show.
    pub fn go_on(&self) -> Result<()> {
        thread::sleep(Duration::from_millis(600));
        for (way, load, _, downloads) in &self.ways {
            let report = load.report();
            let (name, broken) = (way.name(), self.broken(&report));
            ensure!(broken.is_empty(), "{name}: {broken:?}; {}", self.recent());
            let ended = downloads.as_ref().map_or(0, Downloads::ended);
            ensure!(ended == 0, "{}: {ended} downloads have ended", way.name());
        }
        Ok(())
    }

    /// Ends all: every download got all its bytes until the end, every connection its answers, and
    /// every request one.
    pub fn finish(mut self) -> Result<()> {
        let ways = std::mem::take(&mut self.ways);
        let (mut whole, begun, recent) = (0, Instant::now(), self.recent());
        for (way, load, arrivals, downloads) in ways {
            let name = way.name();
            for download in downloads.map(Downloads::end).transpose()?.unwrap_or_default() {
                ensure!(
                    download.end.is_ok(),
                    "{name}: {download:?}, {:?} ago",
                    begun - download.at
                );
                whole += 1;
            }
            let broken = self.broken(&load.finish());
            ensure!(broken.is_empty(), "{name}: {broken:?}; {recent}");
            let arrivals = arrivals.finish()?;
            let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
            let (number, of) = (failed.len(), arrivals.len());
            let first = &failed[..number.min(3)];
            ensure!(number == 0, "{name}: {number} of {of} requests failed: {first:?}");
        }
        ensure!(whole == self.downloads, "{whole} of {} downloads are whole", self.downloads);
        Ok(())
    }
}

/// When the lease ends that `lbd` has left in its maps.
fn end_of_lease(pins: &Path) -> Result<Instant> {
    let path = pins.join(format!("v{ABI_VERSION}/PIN_LEASE"));
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let lease: Array<_, u64> = Map::Array(map).try_into().context("PIN_LEASE")?;
    let nanos = lease.get(&0, 0).context("PIN_LEASE")?;
    ensure!(nanos != 0, "lbd had no lease");
    let (now, end) = (Instant::now(), Duration::from_nanos(nanos));
    let clock = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(now + end.saturating_sub(clock) - clock.saturating_sub(end))
}
