//! Nodes with virtual routers, links that lose, double, delay and reorder, and a clock that jumps
//! from one thing to the next.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, Instant},
};

use lb_model::router::{
    Announce, Auth, Checksum, Family, Router, RouterKey, Routers, State, SyncGroup, Version,
};
use lb_vrrp::{
    ExternalState, Order, Yield,
    fsm::{Action, ReceivedAdvertisement},
    machine::{Machine, Out},
    observed::{Observed, ObservedLink},
};

/// Nodes that begin have listened for others, and the best one is Active.
pub const LISTENING: Duration = Duration::from_secs(5);

/// What links do to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Links {
    pub loss_percent: u64,
    pub double_percent: u64,
    pub longest_delay: Duration,
}

/// How a node is configured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub priority: u8,
    pub interval: Duration,
    pub preempt: bool,
}

/// What is done to a node.
#[derive(Clone, Debug)]
pub enum Operation {
    /// The daemon dies; addresses stay.
    Crash,
    /// The host dies.
    PowerOff,
    /// The daemon is started.
    Start,
    /// Nothing runs for so long.
    Stall(Duration),
    Yield(Yield),
    Take,
    /// This node takes over from the Active one, which is requested to give way.
    Handover,
    Stop {
        release: bool,
    },
    /// Its interface fails, or is well again.
    Broken(bool),
    Draining(bool),
    Unsynced(bool),
    Priority(u8),
    Interval(Duration),
    /// It is on this side of a partition, by router.
    Side(usize, u8),
}

#[derive(Debug)]
struct Node {
    plan: Plan,
    machine: Machine,
    alive: bool,
    stalled_until: Option<Instant>,
    /// What it waits for, and which wake-up that is; older ones are void.
    waits: (Option<Instant>, u64),
    inbox: Vec<(usize, ReceivedAdvertisement)>,
    /// By router.
    holds: Vec<bool>,
    side: Vec<u8>,
    external: ExternalState,
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Packet { to: usize, router: usize, from: usize, priority: u8, interval: Duration },
    Wake { node: usize, order: u64 },
}

/// All of it.
pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub links: Links,
    /// Timers are late by this at most.
    pub lateness: Duration,
    pub transitions: u64,
    /// By router: the last node that announced itself, and whether a node has let go since.
    pub announced: Vec<Option<(usize, bool)>>,
    /// The longest time that two running nodes had the addresses of one router.
    pub worst_overlap: Duration,
    pub log: Vec<String>,
    grouped: bool,
    nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<(Instant, u64, What)>>,
    sequence: u64,
    random: u64,
    overlaps: BTreeMap<(usize, usize, usize), Instant>,
}

impl World {
    /// Nodes that have not begun; with two routers that are a sync group, or one.
    pub fn new(plans: &[Plan], grouped: bool, seed: u64) -> Self {
        let now = Instant::now();
        let routers = if grouped { 2 } else { 1 };
        let node = |plan: &Plan| Node {
            plan: *plan,
            machine: Machine::new(),
            alive: false,
            stalled_until: None,
            waits: (None, 0),
            inbox: Vec::new(),
            holds: vec![false; routers],
            side: vec![0; routers],
            external: ExternalState::default(),
            broken: false,
        };
        Self {
            now,
            start: now,
            links: Links { longest_delay: Duration::from_millis(1), ..Links::default() },
            lateness: Duration::ZERO,
            transitions: 0,
            announced: vec![None; routers],
            worst_overlap: Duration::ZERO,
            log: Vec::new(),
            grouped,
            nodes: plans.iter().map(node).collect(),
            queue: BinaryHeap::new(),
            sequence: 0,
            random: seed | 1,
            overlaps: BTreeMap::new(),
        }
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn routers(&self) -> usize {
        self.announced.len()
    }

    pub fn is_alive(&self, node: usize) -> bool {
        self.nodes[node].alive
    }

    pub fn longest_interval(&self) -> Duration {
        self.nodes.iter().map(|node| node.plan.interval).max().expect("there are nodes")
    }

    pub fn state(&self, node: usize, router: usize) -> State {
        self.nodes[node].machine.state(NAMES[router]).unwrap_or_default()
    }

    /// Which running nodes have the addresses of a router.
    pub fn holders(&self, router: usize) -> Vec<usize> {
        let holds = |node: &usize| self.nodes[*node].alive && self.nodes[*node].holds[router];
        (0..self.nodes.len()).filter(holds).collect()
    }

    /// Which running nodes are Active.
    pub fn active(&self, router: usize) -> Vec<usize> {
        let active =
            |node: &usize| self.nodes[*node].alive && self.state(*node, router) == State::Active;
        (0..self.nodes.len()).filter(active).collect()
    }

    /// Lets so much time pass.
    pub fn run(&mut self, wait: Duration) {
        let end = self.now + wait;
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, what))) = self.queue.pop() else { return };
            self.pass(at);
            match what {
                What::Packet { to, router, from, priority, interval } => {
                    let advert = ReceivedAdvertisement {
                        from: address(from, router),
                        own: address(to, router),
                        second_path: false,
                        priority,
                        interval,
                    };
                    self.deliver(to, router, advert);
                }
                What::Wake { node, order } => self.wake(node, order),
            }
        }
        self.pass(end);
    }

    pub fn run_until(&mut self, longest: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let begin = self.now;
        while !done(self) && self.now < begin + longest {
            self.run(Duration::from_millis(1));
        }
        self.now - begin
    }

    pub fn does(&mut self, node: usize, operation: &Operation) {
        self.log.push(format!("{:>8?} node {node}: {operation:?}", self.now - self.start));

        match operation {
            Operation::Crash => self.nodes[node].alive = false,
            Operation::PowerOff => {
                self.nodes[node].alive = false;
                self.nodes[node].holds.fill(false);
            }
            Operation::Start => self.begin(node),
            Operation::Stall(time) => {
                let until = self.now + *time;
                self.nodes[node].stalled_until = Some(until);
                self.wake_at(node, None, until);
            }
            Operation::Yield(how) => self.order(node, &Order::Yield(key(0), *how)),
            Operation::Take => self.order(node, &Order::Take(key(0))),
            Operation::Handover => {
                for other in self.active(0) {
                    if other != node {
                        self.order(other, &Order::Yield(key(0), Yield::Requested));
                    }
                }
                self.order(node, &Order::Take(key(0)));
            }
            Operation::Stop { release } => self.order(node, &Order::Stop { release: *release }),
            Operation::Broken(broken) => {
                self.nodes[node].broken = *broken;
                self.observe(node);
            }
            Operation::Draining(draining) => {
                self.nodes[node].external.draining = *draining;
                self.set_external(node);
            }
            Operation::Unsynced(unsynced) => {
                let all = (0..self.routers()).map(key);
                self.nodes[node].external.unsynced =
                    if *unsynced { all.collect() } else { BTreeSet::new() };
                self.set_external(node);
            }
            Operation::Priority(priority) => {
                self.nodes[node].plan.priority = *priority;
                self.configure(node, BTreeSet::new());
            }
            Operation::Interval(interval) => {
                self.nodes[node].plan.interval = *interval;
                self.configure(node, BTreeSet::new());
            }
            Operation::Side(router, side) => {
                let routers = self.routers();
                self.nodes[node].side[router % routers] = *side;
            }
        }
        self.measure();
    }

    fn begin(&mut self, node: usize) {
        if self.nodes[node].alive {
            return;
        }
        let inherited = &self.nodes[node].holds;
        let inherited = NAMES
            .iter()
            .zip(inherited)
            .filter(|(_, inherited)| **inherited)
            .map(|(name, _)| (*name).into());
        let inherited = inherited.collect();
        let it = &mut self.nodes[node];
        it.alive = true;
        it.stalled_until = None;
        it.inbox.clear();
        it.machine = Machine::new();
        self.configure(node, inherited);
        self.observe(node);
        self.set_external(node);
    }

    fn configure(&mut self, node: usize, inherited: BTreeSet<String>) {
        let plan = self.nodes[node].plan;
        let routers = (0..self.routers()).map(|router| self::router(&plan, router)).collect();
        let group = SyncGroup { name: "all".into(), routers: NAMES.map(str::to_owned).to_vec() };
        let groups = if self.grouped { vec![group] } else { Vec::new() };
        let routers = Routers { routers, groups };
        self.with(node, |machine, now, out| machine.configure(&routers, &inherited, now, out));
    }

    fn observe(&mut self, node: usize) {
        let up = !self.nodes[node].broken;
        let observed = Observed {
            links: [("eth0".to_owned(), ObservedLink { up, ..ObservedLink::default() })].into(),
            sources: (0..self.routers())
                .map(|router| (NAMES[router].to_owned(), address(node, router)))
                .collect(),
            ..Observed::default()
        };
        self.with(node, |machine, now, out| machine.observe(&observed, now, out));
    }

    fn set_external(&mut self, node: usize) {
        let external = self.nodes[node].external.clone();
        self.with(node, |machine, now, out| machine.set_external(&external, now, out));
    }

    fn order(&mut self, node: usize, order: &Order) {
        self.with(node, |machine, now, out| machine.order(order, now, out));
    }

    fn deliver(&mut self, node: usize, router: usize, advert: ReceivedAdvertisement) {
        let it = &mut self.nodes[node];
        if it.stalled_until.is_some() {
            it.inbox.push((router, advert));
        } else {
            self.with(node, |machine, now, out| machine.receive(NAMES[router], advert, now, out));
        }
    }

    fn wake_at(&mut self, node: usize, deadline: Option<Instant>, at: Instant) {
        let (waits, order) = &mut self.nodes[node].waits;
        *waits = deadline;
        *order += 1;
        let order = *order;
        self.push(at, What::Wake { node, order });
    }

    fn wake(&mut self, node: usize, order: u64) {
        if self.nodes[node].waits.1 != order {
            return;
        }
        self.nodes[node].waits.0 = None;
        let stalled = self.nodes[node].stalled_until.take().is_some();
        for (router, advert) in std::mem::take(&mut self.nodes[node].inbox) {
            self.with(node, |machine, now, out| machine.receive(NAMES[router], advert, now, out));
        }
        if stalled {
            // What has changed meanwhile is read like what was received.
            self.configure(node, BTreeSet::new());
            self.observe(node);
            self.set_external(node);
        }
        self.with(node, Machine::tick);
    }

    /// Lets a node's machine do something, and does what it wants.
    fn with(&mut self, node: usize, operation: impl FnOnce(&mut Machine, Instant, &mut Out)) {
        let now = self.now;
        let it = &mut self.nodes[node];
        if !it.alive || it.stalled_until.is_some() {
            return;
        }
        let mut out = Out::new();
        operation(&mut it.machine, now, &mut out);
        for (name, action) in out {
            let router = NAMES.iter().position(|other| *other == &*name).expect("a known name");
            self.perform(node, router, action);
        }
        if self.nodes[node].machine.is_stopped() {
            self.nodes[node].alive = false;
        }
        if let Some(deadline) = self.nodes[node].machine.deadline()
            && self.nodes[node].waits.0 != Some(deadline)
        {
            let late = self.below(self.lateness.as_micros() as u64 + 1);
            let at = deadline.max(now) + Duration::from_micros(late);
            self.wake_at(node, Some(deadline), at);
        }
        self.measure();
    }

    fn perform(&mut self, node: usize, router: usize, action: Action) {
        let at = self.now - self.start;
        match action {
            Action::Advertise { priority } => self.send(node, router, priority),
            Action::Hold => self.nodes[node].holds[router] = true,
            Action::Release => {
                self.nodes[node].holds[router] = false;
                if let Some((_, stale)) = &mut self.announced[router] {
                    *stale = true;
                }
            }
            Action::Announce | Action::AnnounceOnce => {
                assert!(self.nodes[node].holds[router], "nobody announces what is not assigned");
                self.announced[router] = Some((node, false));
            }
            Action::Transition { from, to, cause } => {
                self.transitions += 1;
                self.log.push(format!("{at:>8?} node {node}, {router}: {from} to {to}: {cause}"));
            }
            Action::Notice(notice) => {
                self.log.push(format!("{at:>8?} node {node}, {router}: {}", notice.message));
            }
            Action::Yielded(by) => {
                self.log.push(format!("{at:>8?} node {node}, {router}: yielded {by:?}"));
            }
            Action::Stopped => {}
        }
    }

    fn send(&mut self, from: usize, router: usize, priority: u8) {
        let interval = self.nodes[from].plan.interval;
        for to in 0..self.nodes.len() {
            let together = self.nodes[to].side[router] == self.nodes[from].side[router];
            if to == from || !together || self.nodes[to].broken || self.nodes[from].broken {
                continue;
            }
            let copies = 1 + u64::from(self.below(100) < self.links.double_percent);
            for _ in 0..copies {
                if self.below(100) >= self.links.loss_percent {
                    let most = self.links.longest_delay.as_micros() as u64;
                    let delay = Duration::from_micros(100 + self.below(most));
                    let packet = What::Packet { to, router, from, priority, interval };
                    self.push(self.now + delay, packet);
                }
            }
        }
    }

    fn push(&mut self, at: Instant, what: What) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, what)));
    }

    fn pass(&mut self, at: Instant) {
        self.now = at;
        self.measure();
    }

    /// Keeps the time for which two nodes have had the same addresses.
    fn measure(&mut self) {
        for router in 0..self.routers() {
            for one in 0..self.nodes.len() {
                for other in one + 1..self.nodes.len() {
                    let holds = |node: usize| {
                        let node = &self.nodes[node];
                        node.alive && node.stalled_until.is_none() && node.holds[router]
                    };
                    let pair = (router, one, other);
                    if holds(one) && holds(other) {
                        let since = *self.overlaps.entry(pair).or_insert(self.now);
                        self.worst_overlap = self.worst_overlap.max(self.now - since);
                    } else {
                        self.overlaps.remove(&pair);
                    }
                }
            }
        }
    }

    /// A number below `end` (SplitMix64).
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % end.max(1)
    }
}

/// The routers' names.
pub const NAMES: [&str; 2] = ["main", "other"];

/// Its family and VRID.
pub fn key(router: usize) -> RouterKey {
    let vrid = NonZeroU8::new(router as u8 + 1).expect("not 0");
    RouterKey { family: Family::V4, vrid }
}

/// Nodes are ordered one way by the addresses of one router, and the other way by those of the other.
pub fn address(node: usize, router: usize) -> IpAddr {
    let host = if router == 0 { 1 + node as u8 } else { 200 - node as u8 };
    IpAddr::from([10, 0, router as u8, host])
}

pub fn router(plan: &Plan, router: usize) -> Router {
    Router {
        name: NAMES[router].into(),
        interface: "eth0".into(),
        key: key(router),
        version: Version::V3,
        priority: NonZeroU8::new(plan.priority).expect("not 0"),
        interval: plan.interval,
        preempt: plan.preempt,
        preempt_delay: Duration::ZERO,
        accept: true,
        addresses: Vec::new(),
        source: None,
        peers: Vec::new(),
        min_ttl: 255,
        second_path: None,
        auth: Auth::None,
        checksum: Checksum::default(),
        virtual_mac: None,
        announce: Announce::default(),
        tracks: Vec::new(),
        notify: None,
    }
}
