//! One flood in one lab: the results of the connections beside it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{
    arrivals::{self, Arrivals},
    balancer::{Balancer, Service},
    downloads::{self, Downloads},
    flood::{self, Aim, Attacker, Kind, Sent},
    lab::{INTERFACE, Lab, Options, VIPS_V4},
    load::{self, Load},
    reports::attack::{Cell, Datagrams, Kept, LIMIT, Packets, Phase, Pins, Requests, millis},
    signals,
    udp::{Echo, Probe},
    ways::Way,
};
use lb_api::status::Status;

/// The TCP service.
const WAY: Way = Way::DsrV4;
/// The UDP service, whose flows are tracked.
const UDP: &str = "udp";
const UDP_PORT: u16 = 5_353;
/// The host that drains in flux, and the one that drains after the flood.
const FIRST: &str = "web2";
const NEXT: &str = "web3";
/// So few that a flood of SYNs fills the table, where one is to be filled.
pub const PINS: u32 = 65_536;
/// Time from a request to the next.
pub const EVERY: Duration = Duration::from_millis(5);
/// Connections that stay, older than the drain, and as many younger ones.
const CONNECTIONS: usize = 60;
/// Downloads from each host.
const DOWNLOADS: usize = 3;
/// UDP flows, and those whose packets are too long for one frame.
const FLOWS: usize = 20;
const LONG: (usize, usize) = (4, 2_000);
/// How long requests are made before the flood.
const QUIET: Duration = Duration::from_secs(3);
/// How long is waited for a change.
const SOON: Duration = Duration::from_secs(1);
/// In which time the daemon counts the pins again.
const COUNTED: Duration = Duration::from_millis(2_500);

/// A flood, or its baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storm {
    /// SYNs to an address without a host: the cost for this machine of sending them.
    Nowhere,
    /// A flood of the balancer.
    Of(Kind),
}

/// Builds the lab, floods it, and removes it.
///
/// # Errors
///
/// If something of it can't be done, or a signal came.
pub fn measure(storm: Storm, phase: Phase, per_second: u32, time: Duration) -> Result<Cell> {
    let lab = Lab::new(&Options::default())?;
    let attacker = Attacker::new(&lab)?;
    let aim = aim(&lab, storm, &attacker)?;
    let _echo = Echo::start(&lab, aim.vip, UDP_PORT)?;
    let balancer = balancer(&lab)?;
    let client = &lab.client.namespace;
    let plan = load::Plan {
        target: WAY.target(),
        steady: CONNECTIONS,
        passing: 0,
        pause: Duration::from_millis(100),
    };
    let older = Load::start(client, plan)?;
    let all = QUIET + time + Duration::from_secs(15);
    let downloads =
        downloads::Plan { target: WAY.target(), each: DOWNLOADS, time: all, patience: LIMIT };
    let downloads = Downloads::start(&lab, downloads)?;
    let target = (aim.vip, UDP_PORT).into();
    let pause = Duration::from_millis(10);
    let small = Probe::start(client, target, FLOWS, pause)?;
    let long = Probe::start_of_size(client, target, LONG.0, pause * 2, LONG.1)?;
    pass(SOON)?;
    if phase == Phase::InFlux {
        drain(&lab, &balancer, FIRST)?;
        pass(SOON)?;
    }
    let younger = Load::start(client, plan)?;
    pass(SOON)?;

    let tables = || {
        let flows = |kind| balancer.open_flows(lab.client.v4, kind);
        Ok::<_, anyhow::Error>([flows("pin")?, flows("tracked")?])
    };
    let [pinned, tracked] = tables()?;
    let requests = arrivals::Plan { target: WAY.target(), every: EVERY, limit: LIMIT };
    let requests = Arrivals::start(client, requests)?;
    pass(QUIET)?;
    let before = balancer.status()?;
    let begin = Instant::now();
    let kind = if let Storm::Of(kind) = storm { kind } else { Kind::SynNew };
    let flood = attacker.flood(flood::Plan { kind, aim, per_second, time })?;
    pass(time)?;
    let sent = flood.finish()?;
    let end = Instant::now();
    let requests = requests.finish()?;
    let [pinned_after, tracked_after] = tables()?;
    let after = balancer.status()?;
    // The flood's entries in the tables meet a change.
    drain(&lab, &balancer, if phase == Phase::InFlux { NEXT } else { FIRST })?;
    pass(COUNTED)?;

    let downloads = downloads.end()?;
    let reports = [older.finish(), younger.finish()];
    let (quiet, flooded): (Vec<_>, Vec<_>) =
        requests.iter().filter(|one| one.at < end).partition(|one| one.at < begin);
    let went_down = |status: &Status| -> u64 {
        let services = status.services.values().flat_map(|service| service.backends.values());
        services.filter_map(|backend| Some(backend.check.as_ref()?.went_down)).sum()
    };
    let last = balancer.status()?;
    let Sent { frames, refused, time } = sent;
    Ok(Cell {
        flood: storm.name().to_owned(),
        phase,
        frames,
        frames_refused: refused,
        frames_per_second: (frames as f64 / time.as_secs_f64()) as u64,
        packets: Packets::between(&before, &after),
        quiet: Requests::of(&quiet),
        flooded: Requests::of(&flooded),
        connections: 2 * CONNECTIONS,
        connections_broken: reports.iter().map(|report| report.broken.len()).sum(),
        downloads: downloads.len(),
        downloads_broken: downloads.iter().filter(|download| download.end.is_err()).count(),
        udp: Datagrams::of(&small.finish()?, FLOWS),
        udp_fragmented: Datagrams::of(&long.finish()?, LONG.0),
        pins: Pins {
            clients: Kept::of(&pinned, &pinned_after),
            used_before: before.pins.used,
            used_after: last.pins.used,
            capacity: after.pins.capacity,
        },
        tracked: Kept::of(&tracked, &tracked_after),
        backends_went_down: went_down(&last) - went_down(&before),
        late_ms: requests.iter().map(|one| millis(one.late)).fold(0.0, f64::max),
    })
}

/// Whom the flood is for.
fn aim(lab: &Lab, storm: Storm, attacker: &Attacker) -> Result<Aim> {
    let mac = match storm {
        Storm::Nowhere => attacker.nowhere(lab)?,
        Storm::Of(_) => flood::mac(&lab.balancer.namespace, INTERFACE)?,
    };
    let (tcp, client) = (WAY.target().port(), lab.client.v4);
    Ok(Aim { mac, vip: VIPS_V4[0], tcp, udp: UDP_PORT, client })
}

fn balancer(lab: &Lab) -> Result<Balancer> {
    let check = "check = { type = \"tcp\", interval = \"500ms\" }";
    let web = WAY.service(lab);
    let udp = Service { name: UDP.into(), port: UDP_PORT, protocol: "udp", ..web.clone() };
    let services = [web.with(check), udp.with("udp = \"tracked\"")];
    let limits = format!("\n[limits]\npins = {PINS}\n");
    let mut balancer = Balancer::on(lab, &lab.balancer, &services, &limits)?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok(balancer)
}

fn drain(lab: &Lab, balancer: &Balancer, host: &str) -> Result<()> {
    let backend = WAY.backend(lab.web(host)?).to_string();
    for service in [WAY.name(), UDP] {
        balancer.lbctl(&["backend", "drain", service, &backend])?;
    }
    Ok(())
}

fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        ensure!(!signals::caught(), "interrupted");
        thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
    }
    Ok(())
}

impl Storm {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let kinds = Kind::ALL.into_iter().map(Self::Of);
        [Self::Nowhere].into_iter().chain(kinds).collect()
    }

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "nowhere",
            Self::Of(kind) => kind.name(),
        }
    }
}
