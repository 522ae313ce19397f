//! Virtual routers and peers that a test scripts, and that record the calls of the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use lb_api::{
    peers::{PeerCounters, PeerStatus},
    routers::{ActiveRouter, Counters, RouterStatus},
};
use lb_common::abi::{self, FlowValue};
use lb_control::engine::Role;
use lb_inspect::flows::Source;
use lb_model::{
    desired::ServiceKey,
    flow::{FlowRef, FlowTable},
    router::{Router, RouterKey, Routers, State},
};
use lb_sync::{Mark, PeerId, Peers, Record};
use lb_vrrp::{Order, Report, Transition, Vrrp};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{self, Attributes, Id},
};

/// Something that the daemon has done.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    Order(Order),
    SetState(lb_sync::NodeState),
    Publish(Vec<Record>),
    SendTransfer(PeerId, Vec<Record>),
    RequestTransfer(PeerId),
    Lack(PeerId, bool),
    RequestTakeover(PeerId, Vec<RouterKey>),
    Withdraw(PeerId),
    Answer(PeerId, Result<(), String>),
    Acknowledge(PeerId, Mark),
    Detach,
    /// A line of the engine's log about the flows of other nodes.
    Engine(String),
}

impl Recorded {
    /// From here on these are the services of which no flow is pinned.
    pub fn pause_pinning<const N: usize>(services: [ServiceKey; N]) -> Self {
        Self::Engine(format!("pause pinning of {:?}", BTreeSet::from(services)))
    }

    pub fn role(service: ServiceKey, role: Role) -> Self {
        Self::Engine(format!("{service}: role {role:?}"))
    }

    pub fn forget(service: ServiceKey) -> Self {
        Self::Engine(format!("{service}: begin import"))
    }

    pub fn learn(records: &[Record]) -> Self {
        Self::Engine(format!("import {records:?}"))
    }

    pub fn take_mac(mac: [u8; 6], take: bool) -> Self {
        Self::Engine(format!("{} frames to {mac:02x?}", if take { "take" } else { "leave" }))
    }

    /// Whether the engine learns what peers send.
    pub fn learns(&self) -> bool {
        matches!(self, Self::Engine(line) if line.starts_with("import "))
    }

    pub fn surveys(&self) -> bool {
        matches!(self, Self::Engine(line) if line == "survey")
    }

    pub fn pauses_pinning(&self) -> bool {
        matches!(self, Self::Engine(line) if line.starts_with("pause pinning "))
    }
}

/// Records the log lines of this thread's engine about flows of other nodes.
pub struct EngineLog(pub Recorder);

impl Subscriber for EngineLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("lb_control::engine")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.push(Recorded::Engine(line.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// The recorded operations of the daemon, in order. Shared by all fakes of one daemon.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Done>>);

#[derive(Debug, Default)]
struct Done {
    all: Vec<Recorded>,
    external_state: Option<lb_vrrp::ExternalState>,
    node_state: Option<lb_sync::NodeState>,
}

impl Recorder {
    fn done(&self) -> MutexGuard<'_, Done> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one; equal ones in a row are recorded once.
    pub fn push(&self, recorded: Recorded) {
        let mut done = self.done();
        match &recorded {
            Recorded::Order(Order::ExternalState(external)) => {
                done.external_state = Some(external.clone())
            }
            Recorded::SetState(node_state) => done.node_state = Some(node_state.clone()),
            _ => {}
        }
        if done.all.last() != Some(&recorded) {
            done.all.push(recorded);
        }
    }

    /// All of them, and none any more.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.done().all)
    }

    /// The results of `pick` that are some.
    pub fn of<T>(&self, pick: impl FnMut(&Recorded) -> Option<T>) -> Vec<T> {
        self.done().all.iter().filter_map(pick).collect()
    }

    /// The external state that was sent to the virtual routers last.
    pub fn external_state(&self) -> Option<lb_vrrp::ExternalState> {
        self.done().external_state.clone()
    }

    /// The node state that was sent to the peers last.
    pub fn node_state(&self) -> Option<lb_sync::NodeState> {
        self.done().node_state.clone()
    }
}

/// A test's handle on both: the recorded operations, and the reports that it sends.
#[derive(Clone)]
pub struct Script {
    pub recorder: Recorder,
    pub vrrp: UnboundedSender<Report>,
    pub peers: UnboundedSender<lb_sync::Report>,
    routers: Arc<Mutex<Vec<RouterStatus>>>,
    connected: Arc<Mutex<Vec<PeerStatus>>>,
    /// Whether an order to end is followed at once.
    ends: Arc<Mutex<bool>>,
    /// Whether peers don't take the records that they are sent, and the last number that they have taken.
    slow: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
}

impl Script {
    pub fn new(
        recorder: Recorder,
        vrrp: UnboundedSender<Report>,
        peers: UnboundedSender<lb_sync::Report>,
    ) -> Self {
        let ends = Arc::new(Mutex::new(true));
        Self {
            recorder,
            vrrp,
            peers,
            routers: Arc::default(),
            connected: Arc::default(),
            ends,
            slow: Arc::default(),
            taken: Arc::default(),
        }
    }

    /// From now on peers take nothing any more; or all that they were sent.
    pub fn be_slow(&self, slow: bool, taken: u64) {
        self.slow.store(slow, Ordering::SeqCst);
        self.taken.fetch_max(taken, Ordering::SeqCst);
    }

    /// From now on an end is not reported by itself.
    pub fn hold_end(&self) {
        *self.ends.lock().expect("nobody panics") = false;
    }

    /// A router gets another state.
    pub fn becomes(&self, router: &Router, to: State, cause: &str) {
        let mut all = self.routers.lock().expect("nobody panics");
        let status = all.iter_mut().find(|status| status.key == router.key).expect("it is there");
        let from = std::mem::replace(&mut status.state, to);
        status.counters.transitions += 1;
        cause.clone_into(&mut status.cause);
        let transition = Transition {
            router: router.name.clone(),
            key: router.key,
            from,
            to,
            cause: cause.into(),
        };
        self.vrrp.send(Report::Transition(transition)).expect("the daemon receives it");
    }

    /// A router receives advertisements of this one, from now on.
    pub fn receive_advertisements(&self, router: &Router, address: IpAddr) {
        let mut all = self.routers.lock().expect("nobody panics");
        let status = all.iter_mut().find(|status| status.key == router.key).expect("it is there");
        status.active = Some(ActiveRouter { address, priority: 100 });
    }

    /// A router would preempt.
    pub fn wants(&self, router: &Router) {
        let mut all = self.routers.lock().expect("nobody panics");
        let status = all.iter_mut().find(|status| status.key == router.key).expect("it is there");
        status.wants = true;
    }

    /// Something has lowered a router's priority.
    pub fn is_lowered(&self, router: &Router) {
        let mut all = self.routers.lock().expect("nobody panics");
        let status = all.iter_mut().find(|status| status.key == router.key).expect("it is there");
        status.lowered = true;
    }

    /// A yield has ended.
    pub fn yielded(&self, router: &Router, by: Result<IpAddr, &str>) {
        let by = by.map_err(str::to_owned);
        self.vrrp.send(Report::Yielded { router: router.key, by }).expect("the daemon receives it");
    }

    /// A peer connects, and sends this state.
    pub fn joins(&self, peer: PeerId, node_state: lb_sync::NodeState) {
        self.connected.lock().expect("nobody panics")[usize::from(peer.0)].connected = true;
        self.report(lb_sync::Report::Joined(peer));
        self.report(lb_sync::Report::NodeState(peer, node_state));
    }

    /// It has sent all of its flows, and knows all of this node's.
    pub fn is_synced(&self, peer: PeerId) {
        self.change(peer, |status| (status.complete_there, status.follows) = (true, true));
        self.report(lb_sync::Report::TransferBegins(peer));
        self.report(lb_sync::Report::Complete(peer, true));
    }

    /// Something changes of how a peer stands.
    pub fn change(&self, peer: PeerId, change: impl FnOnce(&mut PeerStatus)) {
        change(&mut self.connected.lock().expect("nobody panics")[usize::from(peer.0)]);
    }

    /// The sync sessions report this to the daemon.
    pub fn report(&self, report: lb_sync::Report) {
        self.peers.send(report).expect("the daemon receives it");
    }

    pub fn connect(&self, config: &lb_sync::Config) -> Box<dyn Peers> {
        let peer = |address| PeerStatus {
            address,
            node: Some("lb2".into()),
            connected: false,
            since: None,
            complete_here: false,
            complete_there: false,
            follows: false,
            refused: None,
            round_trip_micros: None,
            counters: PeerCounters::default(),
        };
        let peers = config.peers.iter().copied().map(peer).collect();
        *self.connected.lock().expect("nobody panics") = peers;
        Box::new(self.clone())
    }

    fn configure(&self, Routers { routers, .. }: &Routers) {
        let mut all = self.routers.lock().expect("nobody panics");
        let before = std::mem::take(&mut *all);
        *all = routers
            .iter()
            .map(|router| {
                let known = before.iter().find(|status| status.key == router.key);
                RouterStatus {
                    name: router.name.clone(),
                    key: router.key,
                    interface: router.interface.clone(),
                    source: Some(IpAddr::from([10, 0, 0, 2])),
                    group: None,
                    state: known.map_or(State::Initialize, |status| status.state),
                    since: SystemTime::now(),
                    cause: known.map_or_else(|| "it begins".into(), |status| status.cause.clone()),
                    base_priority: router.priority.get(),
                    priority: router.priority.get(),
                    interval_millis: 1_000,
                    active: None,
                    addresses: router.addresses.iter().map(|vip| vip.address.to_string()).collect(),
                    problems: Vec::new(),
                    holds_back: None,
                    wants: false,
                    lowered: false,
                    counters: Counters::default(),
                }
            })
            .collect();
    }
}

impl Vrrp for Script {
    fn order(&self, order: Order) {
        match &order {
            Order::Configure(routers) => self.configure(routers),
            Order::Stop { .. } if *self.ends.lock().expect("nobody panics") => {
                // A test that has ended the daemon does not receive it.
                let _ = self.vrrp.send(Report::Stopped);
            }
            _ => {}
        }
        self.recorder.push(Recorded::Order(order));
    }

    fn status(&self) -> Vec<RouterStatus> {
        self.routers.lock().expect("nobody panics").clone()
    }
}

impl Peers for Script {
    fn set_state(&self, node_state: lb_sync::NodeState) {
        self.recorder.push(Recorded::SetState(node_state));
    }

    fn publish(&self, number: u64, records: Vec<Record>) {
        if !self.slow.load(Ordering::SeqCst) {
            self.taken.store(number, Ordering::SeqCst);
        }
        self.recorder.push(Recorded::Publish(records));
    }

    fn acknowledged(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    fn acknowledge(&self, peer: PeerId, mark: Mark) {
        self.recorder.push(Recorded::Acknowledge(peer, mark));
    }

    fn send_transfer(&self, peer: PeerId, records: Vec<Record>) {
        self.recorder.push(Recorded::SendTransfer(peer, records));
    }

    fn request_transfer(&self, peer: PeerId) {
        self.recorder.push(Recorded::RequestTransfer(peer));
    }

    fn lack(&self, peer: PeerId, lacks: bool) {
        self.recorder.push(Recorded::Lack(peer, lacks));
    }

    fn request_takeover(&self, peer: PeerId, routers: Vec<RouterKey>) {
        self.recorder.push(Recorded::RequestTakeover(peer, routers));
    }

    fn withdraw(&self, peer: PeerId) {
        self.recorder.push(Recorded::Withdraw(peer));
    }

    fn answer(&self, peer: PeerId, answer: Result<(), String>) {
        self.recorder.push(Recorded::Answer(peer, answer));
    }

    fn status(&self) -> Vec<PeerStatus> {
        self.connected.lock().expect("nobody panics").clone()
    }
}

/// Flow tables without a flow.
pub struct NoFlows;

impl Source for NoFlows {
    fn services(&self) -> anyhow::Result<BTreeMap<ServiceKey, abi::Service>> {
        Ok(BTreeMap::new())
    }

    fn backends(&self) -> anyhow::Result<BTreeMap<u16, abi::Backend>> {
        Ok(BTreeMap::new())
    }

    fn walk(
        &self,
        _: FlowTable,
        _: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        Ok(())
    }
}
