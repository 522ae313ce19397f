//! The task around [`super::resolve`]: reads the tables, follows events, asks for neighbours and
//! publishes what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_model::{
    desired::Mode,
    hop::{Neighbourhood, Resolution, Station, Want},
};
use tokio::{
    sync::{mpsc, watch},
    task::consume_budget,
    time::{self, Interval, MissedTickBehavior, sleep},
};
use tracing::{debug, info, warn};

use super::{
    client::{AsyncEvents, Client, Failure, Read},
    link::LinkKind,
    requests::{Event, GROUPS},
    resolve::{NeighbourRequest, next_hop_of, no_room, resolve},
    tables::{Neighbour, NeighbourKey, NeighbourState, Tables},
};

/// How often a neighbour that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(3);
/// How often all is read again and the neighbours in use are probed.
const REFRESH: Duration = Duration::from_secs(10);
/// How often, and how long, a neighbour that does not answer is asked when its interface has got a carrier: what was asked
/// without one is lost, the other end may begin to forward a little later, and the kernel waits a second before it asks
/// again, or does not.
const RESTORED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// How long changes of links and routes are collected: they come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// How long a broken socket rests.
const REOPEN: Duration = Duration::from_secs(1);

/// What has to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    #[default]
    Nothing,
    Routes,
    LinksAndRoutes,
    Everything,
}

/// What the resolver is to do.
pub(super) struct Inputs {
    pub wants: watch::Receiver<BTreeSet<Want>>,
    pub at_tc: watch::Receiver<BTreeSet<String>>,
    pub doubts: mpsc::UnboundedReceiver<Want>,
    pub narrowed: mpsc::UnboundedReceiver<(IpAddr, u16)>,
    pub probed: mpsc::UnboundedReceiver<BTreeSet<Station>>,
}

pub(super) struct Task {
    client: Client,
    events: AsyncEvents,
    inputs: Inputs,
    wanted: BTreeSet<Want>,
    tables: Tables,
    /// The neighbours that the wanted backends depend on, as of the last request.
    next_hops: BTreeSet<NeighbourKey>,
    /// Whether one of them has changed since.
    changed: bool,
    published: watch::Sender<Neighbourhood>,
}

impl Task {
    /// Reads everything once; from then on [`Self::run`] follows it.
    pub(super) async fn start(
        interfaces: Vec<String>,
        inputs: Inputs,
    ) -> Result<(Self, watch::Receiver<Neighbourhood>)> {
        // Events first, so that nothing is missed between the two.
        let events = AsyncEvents::open(&GROUPS)?;
        let client = Client::open()?;
        let (published, receiver) = watch::channel(Neighbourhood::default());
        let mut task = Self {
            client,
            events,
            inputs,
            wanted: BTreeSet::new(),
            tables: Tables::new(interfaces),
            next_hops: BTreeSet::new(),
            changed: false,
            published,
        };
        task.read(Stale::Everything).await?;
        task.publish();
        Ok((task, receiver))
    }

    /// Runs until the resolver is dropped.
    pub(super) async fn run(mut self) {
        let mut retry = every(RETRY);
        let mut refresh = every(REFRESH);
        let mut restored = every(RESTORED.0);
        loop {
            match self.step(&mut retry, &mut refresh, &mut restored).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    warn!("netlink: {error:#}; its sockets are opened again");
                    if !self.reopen().await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for one event and handles it; false if the resolver is gone.
    async fn step(
        &mut self,
        retry: &mut Interval,
        refresh: &mut Interval,
        restored: &mut Interval,
    ) -> Result<bool> {
        let mut stale = Stale::Nothing;
        let mut request = NeighbourRequest::Missing;
        tokio::select! {
            changed = self.inputs.wants.changed() => {
                if changed.is_err() {
                    return Ok(false);
                }
                self.take_wants().await?;
            }
            // Its sender sends the wants as well, and ends with them.
            Ok(()) = self.inputs.at_tc.changed() => self.take_at_tc(),
            ready = self.events.ready() => {
                ready?;
                stale = self.take_waiting()?;
                // Every probe of every neighbour makes an event, and few change anything.
                if stale == Stale::Nothing && !self.changed {
                    return Ok(true);
                }
            }
            Some(backend) = self.inputs.doubts.recv() => {
                if !self.doubt(backend)? {
                    return Ok(true);
                }
            }
            Some((backend, mtu)) = self.inputs.narrowed.recv() => self.narrow(backend, mtu),
            Some(stations) = self.inputs.probed.recv() => {
                self.probe(&stations).await?;
                return Ok(true);
            }
            _ = restored.tick(), if !self.tables.restored.is_empty() => {
                request = NeighbourRequest::Restored;
            }
            _ = retry.tick() => request = NeighbourRequest::Unanswered,
            _ = refresh.tick() => {
                stale = Stale::Everything;
                request = NeighbourRequest::All;
            }
        }
        if stale > Stale::Nothing {
            // The neighbours' answers are published at once, the rest when the burst is over.
            self.publish();
            sleep(DEBOUNCE).await;
            stale = stale.max(self.take_waiting()?);
            self.read(stale).await?;
        }
        self.request_neighbours(request).await?;
        let tunnelled = |address| self.wanted.contains(&Want { address, mode: Mode::Ipip });
        self.tables.path_mtus.retain(Instant::now(), tunnelled);
        self.publish();
        Ok(true)
    }

    /// Opens the sockets again, however long it takes; false if the resolver is gone.
    async fn reopen(&mut self) -> bool {
        loop {
            sleep(REOPEN).await;
            if self.inputs.wants.has_changed().is_err() {
                return false;
            }
            match self.open_again().await {
                Ok(()) => {
                    self.publish();
                    return true;
                }
                Err(error) => warn!("netlink: {error:#}"),
            }
        }
    }

    async fn open_again(&mut self) -> Result<()> {
        self.events = AsyncEvents::open(&GROUPS)?;
        self.client = Client::open()?;
        self.read(Stale::Everything).await
    }

    fn take_at_tc(&mut self) {
        self.tables.at_tc.clone_from(&self.inputs.at_tc.borrow_and_update());
    }

    async fn take_wants(&mut self) -> Result<()> {
        self.take_at_tc();
        self.wanted = self.inputs.wants.borrow_and_update().clone();
        let mut addresses = self.wanted_addresses();
        addresses.retain(|address| !self.tables.routes.contains_key(address));
        self.read_routes(addresses).await
    }

    fn wanted_addresses(&self) -> BTreeSet<IpAddr> {
        self.wanted.iter().map(|want| want.address).collect()
    }

    async fn read_routes(&mut self, addresses: BTreeSet<IpAddr>) -> Result<()> {
        for address in addresses {
            let route = self.client.route(address)?;
            self.tables.routes.insert(address, route);
            consume_budget().await;
        }
        Ok(())
    }

    /// Has the neighbour of a backend asked again; false if that is done already, or of no use.
    fn doubt(&mut self, backend: Want) -> Result<bool> {
        let Some(key) = next_hop_of(&backend, &self.tables).filter(|key| self.tables.doubt(*key))
        else {
            return Ok(false);
        };
        self.forget_in_kernel(key)?;
        Ok(true)
    }

    /// Has the kernel ask whether the neighbours at these MAC addresses still have them, as a packet to them would.
    async fn probe(&mut self, stations: &BTreeSet<Station>) -> Result<()> {
        for key in self.tables.at_stations(stations) {
            consume_budget().await;
            match self.client.use_neighbour(key) {
                // It may be gone by now, and its interface, too.
                Ok(()) | Err(Failure::Refused(_)) => {}
                Err(Failure::Socket(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn forget_in_kernel(&mut self, key: NeighbourKey) -> Result<()> {
        match self.client.forget_neighbour(key) {
            // It may have forgotten it by itself.
            Ok(()) | Err(Failure::Refused(_)) => Ok(()),
            Err(Failure::Socket(error)) => Err(error),
        }
    }

    /// Takes over a router's report about the path to a backend, if that is one and has a tunnel, and
    /// packets for it could be larger.
    fn narrow(&mut self, backend: IpAddr, mtu: u16) {
        let want = Want { address: backend, mode: Mode::Ipip };
        if self.wanted.contains(&want)
            && matches!(resolve(&want, &self.tables), Resolution::Resolved(hop) if mtu <= hop.mtu)
        {
            self.tables.path_mtus.learn(backend, mtu, Instant::now());
        }
    }

    /// Takes one event over; returns what has to be read again for it.
    fn take(&mut self, event: Event) -> Stale {
        match event {
            Event::Neighbour(key, neighbour) => {
                let before = self.tables.outlook(key);
                self.tables.update_neighbour(key, neighbour);
                self.note_change(key, before != self.tables.outlook(key));
            }
            Event::NeighbourGone(key) => {
                let before = self.tables.outlook(key);
                self.tables.forget_neighbour(key);
                self.note_change(key, before != self.tables.outlook(key));
            }
            Event::Fdb(key, port) => self.changed |= self.tables.update_fdb(key, port),
            Event::Links => return Stale::LinksAndRoutes,
            Event::Routes => return Stale::Routes,
        }
        Stale::Nothing
    }

    fn note_change(&mut self, key: NeighbourKey, differs: bool) {
        self.changed |= differs && self.next_hops.contains(&key);
    }

    fn take_waiting(&mut self) -> Result<Stale> {
        let mut events = Vec::new();
        match self.events.read(|message| events.extend(Event::of(&message)))? {
            Read::Lost => Ok(Stale::Everything),
            Read::All => {
                let stale = events.into_iter().map(|event| self.take(event)).max();
                Ok(stale.unwrap_or_default())
            }
        }
    }

    async fn read(&mut self, stale: Stale) -> Result<()> {
        if stale >= Stale::LinksAndRoutes {
            let links = self.client.links()?;
            self.tables.replace_links(links, Instant::now());
            let bridged = self.tables.links.values();
            let bridged = bridged.into_iter().any(|at| matches!(at.kind, LinkKind::Bridge { .. }));
            let fdb = if bridged { self.client.fdb()? } else { BTreeMap::new() };
            self.tables.replace_fdb(fdb);
        }
        if stale >= Stale::Everything {
            let neighbours = self.client.neighbours()?;
            self.tables.replace_neighbours(neighbours);
        }
        if stale >= Stale::Routes {
            self.read_routes(self.wanted_addresses()).await?;
        }
        Ok(())
    }

    /// Requests neighbours of the kernel.
    async fn request_neighbours(&mut self, request: NeighbourRequest) -> Result<()> {
        let next_hops: BTreeSet<NeighbourKey> =
            self.wanted.iter().filter_map(|want| next_hop_of(want, &self.tables)).collect();
        self.tables.retain(&self.wanted_addresses(), &next_hops);
        self.changed = false;
        self.next_hops.clone_from(&next_hops);
        for key in request.select(&next_hops, &self.tables) {
            consume_budget().await;
            let known = self.tables.neighbours.get(&key).map(|known| known.state);
            if request == NeighbourRequest::Restored && known == Some(NeighbourState::Incomplete) {
                // The kernel waits for an answer, and asks anew only what it does not know.
                self.forget_in_kernel(key)?;
            }
            match self.client.use_neighbour(key) {
                Ok(()) => {
                    self.tables.note_room(key, true);
                    // The kernel sends no event when it has begun to ask.
                    if matches!(known, None | Some(NeighbourState::Forgotten)) {
                        let asked = Neighbour { state: NeighbourState::Incomplete, mac: None };
                        self.tables.update_neighbour(key, asked);
                    }
                }
                Err(Failure::Refused(libc::ENOBUFS)) => {
                    if self.tables.note_room(key, false) {
                        warn!("{}", no_room(key.1));
                    }
                }
                // Its interface may be gone by now; the event is on its way. Else: the next retry.
                Err(Failure::Refused(_)) => {}
                Err(Failure::Socket(error)) => return Err(error),
            }
        }
        self.tables.restored.retain(|_, since| since.elapsed() < RESTORED.1);
        Ok(())
    }

    /// Publishes the tables' neighbourhood, if it differs from the last one.
    fn publish(&self) {
        let new = Neighbourhood {
            hops: self.wanted.iter().map(|want| (*want, resolve(want, &self.tables))).collect(),
            own_macs: self.tables.own_macs(&self.tables.interfaces),
            links: self.tables.published_links(),
            path_mtus: self.tables.path_mtus.all(),
        };
        self.published.send_if_modified(|old| {
            if *old == new {
                return false;
            }
            log_changes(old, &new);
            *old = new;
            true
        });
    }
}

fn log_changes(old: &Neighbourhood, new: &Neighbourhood) {
    for (want, resolution) in &new.hops {
        if old.hops.get(want) == Some(resolution) {
            continue;
        }
        let Want { address, mode } = want;
        match resolution {
            Resolution::Resolved(hop) => {
                let [a, b, c, d, e, f] = hop.mac;
                info!(
                    backend = %address, %mode, interface = hop.interface,
                    mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
                    "next hop resolved"
                );
            }
            Resolution::Pending { reason } => info!(backend = %address, %mode, "{reason}"),
            Resolution::Unreachable { reason } => {
                // The daemon reports it for each backend that it is of.
                debug!(backend = %address, %mode, "unreachable: {reason}");
            }
        }
    }
}

/// An interval that begins one period from now and never makes up for lost ticks.
fn every(period: Duration) -> Interval {
    let mut interval = time::interval_at(time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
