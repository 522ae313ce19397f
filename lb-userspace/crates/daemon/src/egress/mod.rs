//! Egress checks: probes that the program sends on the path of forwarded packets.
//!
//! Health checks leave by a packet socket, and so do not test XDP_TX and XDP_REDIRECT, which report no error
//! to the program: it counts a frame as sent that the kernel or the driver drops. So now and then the loaded program
//! itself is given a packet for a backend of each next hop ([`LiveProgram`]), and the backend's answer is waited
//! for. The same probe by the packet socket comes first. An answer to that one and none to the other is a fault
//! of the egress: [`EgressStatus::LOST`].
//!
//! Lost frames that the kernel reports ([`TxErrors`]) are shown in the status, and a cause to probe at once.
//!
//! [`Checker`] is a thread of its own; [`schedule`] decides when each exit is probed.
//!
//! The packet is a bare ACK without a connection, from a port whose slot leads to that backend and is not in flux.
//! A host answers it with an RST. So it opens no flow, takes no pin and makes no backend suspect; in the counters
//! it is one client packet a minute for each next hop. Only next hops of TCP services are checked, and only where
//! the program runs in the driver (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18).
//!
//! A limit: the kernel sends the XDP_TX of a test run by `ndo_xdp_xmit`. A veth whose other end has GRO on and no
//! program accepts that, and would not accept a real XDP_TX.
//!
//! The programs on the tracepoints end with `lbd`, and losses without it are not counted.

mod losses;
mod schedule;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use lb_api::{
    event::{EventBody, Kind},
    status::{EgressStatus, Status},
};
use lb_datapath::{LiveProgram, Served, TxError, TxErrors};
use lb_health::vip::{Error, Network, ProbePath};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Desired, Protocol, ServiceKey},
    hop::{Neighbourhood, Resolution, Want},
    settings::Tunnel,
};
use lb_netlink::query;
use tokio::{
    runtime,
    sync::watch,
    time::{sleep, timeout},
};
use tracing::debug;

use self::schedule::ProbeResult;
use self::{
    losses::{LossCounters, Memory},
    schedule::Schedule,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(300);
/// How often a probe is sent before it counts as not answered.
const TRIES: usize = 3;
/// How many backends behind a next hop are probed before it counts as unknown.
const CANDIDATES: usize = 3;
/// The exits that are probed at a time: one without an answer takes seconds.
const AT_A_TIME: usize = 16;
/// How often it is looked whether frames were lost.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked which interfaces are gone.
const PRUNE: Duration = Duration::from_mins(1);
/// How long changes of the plan are collected; rings are written meanwhile.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// Where frames leave: the interface and the MAC address of the next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exit {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// MAC address of the next hop.
    pub mac: [u8; 6],
}

/// A backend behind an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its service.
    pub service: ServiceKey,
    /// Its identity there.
    pub backend: BackendAddress,
    /// The path of probes to it.
    pub path: ProbePath,
}

/// The exits of all backends that can be sent to.
pub(crate) type Plan = BTreeMap<Exit, Vec<Subject>>;

/// The exits that `desired` needs. Only those of TCP services can be probed.
#[must_use]
pub fn plan(desired: &Desired, known: &Neighbourhood, tunnel: Tunnel) -> Plan {
    let mut plan = Plan::new();
    for service in desired.services.values() {
        if service.key.protocol != Protocol::Tcp {
            continue;
        }
        for &backend in service.backends.keys() {
            let want = Want { address: backend.ip, mode: service.mode };
            let Some(Resolution::Resolved(hop)) = known.hops.get(&want) else { continue };
            // Packets for this node leave by no interface, and no driver's XDP sends without an Ethernet header.
            if hop.is_local() || hop.is_raw_ip() {
                continue;
            }
            let exit =
                Exit { ifindex: hop.ifindex, interface: hop.interface.clone(), mac: hop.mac };
            let (vip, mode, hop) = (service.key.vip, service.mode, hop.clone());
            let path = ProbePath { vip, backend: backend.ip, mode, hop, tunnel };
            plan.entry(exit).or_default().push(Subject { service: service.key, backend, path });
        }
    }
    plan
}

/// The egress checks; tests have none.
pub trait Check: Send {
    /// Replaces the exits that are checked.
    fn watch(&self, plan: Plan);
    /// The events since the last call.
    fn take_events(&self) -> Vec<EventBody>;
    /// Adds the results of the exits' probes to the status.
    fn report(&self, status: &mut Status);
}

/// Checks exits in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Checker {
    plan: watch::Sender<Plan>,
    shared: Arc<Mutex<Shared>>,
    tx_errors: Option<Arc<TxErrors>>,
}

#[derive(Debug, Default)]
struct Shared {
    results: BTreeMap<Exit, ProbeResult>,
    memory: Memory,
    events: Vec<EventBody>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checker {
    /// Starts the thread, in the network namespace of the calling one. `interfaces` are those with the program;
    /// `tx_errors` counts the frames that they lose, where the kernel lets it.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give.
    pub fn start(
        program: LiveProgram,
        interfaces: Vec<String>,
        tx_errors: Option<TxErrors>,
    ) -> Result<Self> {
        let tx_errors = tx_errors.map(Arc::new);
        let (plan, planned) = watch::channel(Plan::new());
        let shared = Arc::<Mutex<Shared>>::default();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime of the egress checks")?;
        let task = Task {
            program,
            interfaces,
            planned,
            shared: Arc::clone(&shared),
            tx_errors: tx_errors.clone(),
            loss_counters: LossCounters::default(),
            since: Vec::new(),
        };
        lb_threads::spawn("egress", move || runtime.block_on(task.run()))
            .context("start the thread of the egress checks")?;
        Ok(Self { plan, shared, tx_errors })
    }
}

impl Check for Checker {
    fn watch(&self, plan: Plan) {
        self.plan.send_if_modified(|old| {
            let differs = *old != plan;
            *old = plan;
            differs
        });
    }

    fn take_events(&self) -> Vec<EventBody> {
        std::mem::take(&mut lock(&self.shared).events)
    }

    fn report(&self, status: &mut Status) {
        let shared = lock(&self.shared);
        if let Some(tx_errors) = &self.tx_errors {
            losses::report(&read(tx_errors), &shared.memory, status);
        }
        status.egress = shared
            .results
            .iter()
            .map(|(exit, result)| EgressStatus {
                interface: exit.interface.clone(),
                mac: exit.mac_text(),
                state: result.name().into(),
                detail: result.detail().map(str::to_owned),
            })
            .collect();
        let lost: Vec<_> =
            status.egress.iter().filter(|one| one.state == EgressStatus::LOST).cloned().collect();
        let backends =
            status.services.values_mut().flat_map(|service| service.backends.values_mut());
        for backend in backends {
            let is_behind = |one: &&EgressStatus| {
                backend.interface.as_ref() == Some(&one.interface)
                    && backend.mac.as_ref() == Some(&one.mac)
            };
            backend.egress_fault = lost.iter().find(is_behind).map(|one| {
                let detail = one.detail.as_deref().unwrap_or_default();
                format!("{}: {detail}", EgressStatus::LOST)
            });
        }
    }
}

/// Counters that can't be read count nothing.
fn read(tx_errors: &TxErrors) -> Vec<TxError> {
    tx_errors.read().unwrap_or_else(|error| {
        debug!("frames that were lost: {error:#}");
        Vec::new()
    })
}

impl Exit {
    /// The MAC address as it is written.
    #[must_use]
    pub(crate) fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

struct Task {
    program: LiveProgram,
    interfaces: Vec<String>,
    planned: watch::Receiver<Plan>,
    shared: Arc<Mutex<Shared>>,
    tx_errors: Option<Arc<TxErrors>>,
    loss_counters: LossCounters,
    /// The indexes of those that have lost frames since it was last looked which are gone.
    since: Vec<u32>,
}

impl Task {
    async fn run(mut self) {
        let mut schedule = Schedule::default();
        let mut prune_at = Instant::now();
        loop {
            let plan = self.planned.borrow_and_update().clone();
            schedule.follow(&plan);
            {
                let mut shared = lock(&self.shared);
                shared.results.retain(|exit, _| plan.contains_key(exit));
                let names = plan.keys().map(|exit| (exit.ifindex, exit.interface.clone()));
                if self.tx_errors.is_some() {
                    shared.memory.add_names(names);
                }
            }
            if let Some(tx_errors) = &self.tx_errors {
                let errors = read(tx_errors);
                let grown = self.loss_counters.grown(&errors);
                grown.iter().for_each(|ifindex| schedule.doubt(*ifindex));
                self.since.extend(grown);
                if prune_at <= Instant::now() {
                    prune_at = Instant::now() + PRUNE;
                    let grown = std::mem::take(&mut self.since);
                    self.prune(tx_errors, &errors, &grown);
                }
            }
            let due = schedule.due(Instant::now());
            if !due.is_empty() {
                self.round(&plan, &due, &mut schedule).await;
            }
            let mut rest = schedule.rest(Instant::now());
            if self.tx_errors.is_some() {
                rest = rest.min(LOOK);
            }
            tokio::select! {
                changed = self.planned.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep(DEBOUNCE).await;
                }
                () = sleep(rest) => {}
            }
        }
    }

    /// Removes interfaces that are gone: their names, and their counters in the kernel.
    fn prune(&self, tx_errors: &TxErrors, errors: &[TxError], grown: &[u32]) {
        // Without the interfaces, all would count as gone.
        let Ok(found) = query::interfaces() else { return };
        let there = found.values().map(|one| one.ifindex).collect();
        let own = self.interfaces.iter().filter_map(|name| found.get(name));
        let own = own.map(|one| one.ifindex).collect();
        // A reader of the counts has this locked: a count is in the map or in the sum.
        let mut shared = lock(&self.shared);
        let over = shared.memory.forget(errors, grown, &there, &own, Instant::now());
        if over.is_empty() {
            return;
        }
        match tx_errors.forget(&over) {
            Ok(forgotten) => shared.memory.fold(&over, &forgotten),
            Err(error) => debug!("forget frames that were lost: {error:#}"),
        }
    }

    /// Probes these exits, some at a time.
    async fn round(&self, plan: &Plan, due: &[Exit], schedule: &mut Schedule) {
        // Sockets are open for as long as it takes: each costs something for every packet of the node.
        let network = Network::new();
        network.set_vips(plan.values().flatten().map(|one| one.path.vip).collect());
        let served = match self.program.served() {
            Ok(served) => served,
            Err(error) => {
                let reason = ProbeResult::Unknown(format!("{error:#}"));
                for exit in due {
                    schedule.take(exit, &reason, Instant::now());
                }
                return;
            }
        };
        let ingress = self.ingress();
        let prober = RoundProber { network: &network, program: &self.program, served: &served };
        let (prober, ingress) = (&prober, &ingress);
        let probes = due.iter().filter_map(|exit| Some((exit, plan.get(exit)?)));
        let probes = probes.map(|(exit, subjects)| async move {
            let result = match ingress_for(exit, ingress) {
                Ok(ingress) => prober.exit(subjects, ingress).await,
                Err(reason) => ProbeResult::Unknown(reason.into()),
            };
            (exit, result)
        });
        let mut results = pin!(stream::iter(probes).buffer_unordered(AT_A_TIME));
        while let Some((exit, result)) = results.next().await {
            debug!(interface = exit.interface, mac = exit.mac_text(), "egress: {result:?}");
            let change = schedule.take(exit, &result, Instant::now());
            {
                let mut shared = lock(&self.shared);
                shared.results.insert(exit.clone(), result.clone());
                shared.events.extend(change.map(|lost| event(exit, lost, &result)));
            }
            // New exits are probed first.
            if self.planned.has_changed().unwrap_or(true) {
                return;
            }
        }
    }

    /// The interfaces on which the program runs in the driver.
    fn ingress(&self) -> Vec<u32> {
        let found = query::interfaces().unwrap_or_default();
        let native = self.interfaces.iter().filter_map(|name| found.get(name));
        let native = native.filter(|one| one.xdp_prog_id.is_some() && !one.xdp_generic);
        native.map(|one| one.ifindex).collect()
    }
}

/// The interface by which a packet comes that leaves by `exit`: the same, if the program runs there.
fn ingress_for(exit: &Exit, native: &[u32]) -> Result<u32, &'static str> {
    let own = native.iter().find(|ifindex| **ifindex == exit.ifindex);
    // A test run sends as native XDP does.
    own.or(native.first()).copied().ok_or("no interface has the program in its driver")
}

fn event(exit: &Exit, lost: bool, result: &ProbeResult) -> EventBody {
    let (interface, mac) = (&exit.interface, exit.mac_text());
    if lost {
        let fault = EgressStatus::LOST;
        let message = format!("{fault}: what the program sends to {mac} by {interface} is lost");
        EventBody::new(Kind::EgressNotForwarding, message, result.detail().unwrap_or_default())
    } else {
        let message = format!("what the program sends to {mac} by {interface} arrives");
        EventBody::new(Kind::EgressForwarding, message, "a probe by the program was answered")
    }
}

/// Sends the probes of one round.
struct RoundProber<'a> {
    network: &'a Network,
    program: &'a LiveProgram,
    served: &'a Served,
}

impl RoundProber<'_> {
    async fn exit(&self, subjects: &[Subject], ingress: u32) -> ProbeResult {
        let mut last = ProbeResult::Unknown("it has no backend".into());
        for subject in subjects.iter().take(CANDIDATES) {
            last = self.subject(subject, ingress).await.unwrap_or_else(ProbeResult::Unknown);
            if !matches!(last, ProbeResult::Unknown(_)) {
                break;
            }
        }
        last
    }

    /// The result for an exit by a backend's answers; else the reason why there is none.
    async fn subject(&self, subject: &Subject, ingress: u32) -> Result<ProbeResult, String> {
        let Subject { service, backend, path } = subject;
        let source = self.source(path).await.map_err(|error| error.to_string())?;
        let first = self.network.draw() as u16;
        let ports =
            self.program.ports(self.served, (service, *backend), (source, first), 2 * TRIES);
        let mut ports = ports.map_err(|error| format!("{error:#}"))?.into_iter();
        let mut probe = async |live: bool| -> Result<bool, String> {
            let Some(port) = ports.next() else {
                return Err(format!("no slot leads to {backend} at this moment"));
            };
            let stray = self.network.stray(path, SocketAddr::new(source, port), service.port);
            let stray = stray.map_err(|error| error.to_string())?;
            if live {
                let taken = self.program.take(self.served, ingress, stray.packet());
                taken.map_err(|error| format!("test run of the program: {error}"))?;
            } else {
                stray.send().map_err(|error| error.to_string())?;
            }
            match timeout(ANSWER, stray.answer()).await {
                Ok(Ok(())) => Ok(true),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Ok(false),
            }
        };
        let silent = || format!("{backend} does not answer a segment without a connection");
        if !probe(false).await? && !probe(false).await? {
            return Err(silent());
        }
        for _ in 0..TRIES {
            if probe(true).await? {
                return Ok(ProbeResult::Forwards);
            }
        }
        // It may have died meanwhile.
        if !probe(false).await? {
            return Err(silent());
        }
        Ok(ProbeResult::Lost(format!(
            "{backend} answers the packet socket, and {TRIES} probes that the program sent were \
             not answered"
        )))
    }

    /// The node's addresses are known a moment after the first request for them.
    async fn source(&self, path: &ProbePath) -> Result<IpAddr, Error> {
        let mut left = 20;
        loop {
            match self.network.source(path).await {
                Err(_) if left > 0 => {
                    left -= 1;
                    sleep(Duration::from_millis(50)).await;
                }
                source => return source,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_model::{
        desired::{Backend, Mode, Service},
        hop::NextHop,
    };

    use super::*;

    #[test]
    fn backends_of_one_address_are_probed_each_by_its_own_port() {
        let mut service = Service::new([10, 0, 0, 100].into(), 80, Mode::Dsr);
        let backends: BTreeSet<BackendAddress> =
            ["10.0.0.11", "10.0.0.11:80"].map(|at| at.parse().expect(at)).into();
        service.backends = backends.iter().map(|at| (*at, Backend::default())).collect();
        let desired = Desired { services: [("web".into(), service)].into() };
        let hop = NextHop {
            ifindex: 2,
            interface: "eth0".into(),
            mac: [2; 6],
            l2: vec![0; 14],
            mtu: 1500,
        };
        let want = Want { address: [10, 0, 0, 11].into(), mode: Mode::Dsr };
        let hops = [(want, Resolution::Resolved(hop))].into();
        let known = Neighbourhood { hops, ..Neighbourhood::default() };
        let plan = plan(&desired, &known, Tunnel::default());
        let subjects: BTreeSet<_> = plan.values().flatten().map(|one| one.backend).collect();
        assert_eq!(subjects, backends);
    }
}
