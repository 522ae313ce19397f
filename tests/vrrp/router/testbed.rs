//! Two nodes and a client on one link, with getters and waits.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroU8,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use kit::{
    command::{command, run},
    namespace::Namespace,
    wait::{until, until_true},
};
use lb_api::routers::RouterStatus;
use lb_model::router::{
    Announce, Auth, Checksum, Family, Router, RouterKey, Routers, State, Version, VirtualAddress,
};
use lb_vrrp::{ExternalState, NoticeKind, Order, Report, Transition, Vrrp as _, thread::Thread};
use tokio::sync::mpsc;

/// How long anything may take that is to happen at once, on a machine with much else to do.
pub const SOON: Duration = Duration::from_secs(20);

/// The virtual addresses of the tests.
pub const VIP: &str = "10.0.0.100";
pub const VIP6: &str = "fd00::100";

/// Two nodes (10.0.0.1, fd00::1 and 10.0.0.2, fd00::2) and a client (10.0.0.9, fd00::9), on a bridge.
pub struct Testbed {
    pub a: Node,
    pub b: Node,
    pub client: Namespace,
    pub switch: Namespace,
}

impl Testbed {
    pub fn new() -> Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        let a = Node::new(host(&switch, "a", 1)?);
        let b = Node::new(host(&switch, "b", 2)?);
        let client = host(&switch, "client", 9)?;
        Ok(Self { a, b, client, switch })
    }

    /// Starts both nodes with the same router: the first with priority 150, and when that is Active
    /// the other with 100.
    pub fn start(&mut self, router: &Router) -> Result<()> {
        self.a.start(vec![with_priority(router, 150)])?;
        self.a.wait_for(State::Active)?;
        self.b.start(vec![with_priority(router, 100)])?;
        self.b.wait_for(State::Backup)
    }
}

/// The network of one node.
fn host(switch: &Namespace, name: &str, number: u8) -> Result<Namespace> {
    let namespace = Namespace::new(name)?;
    switch.ip(&format!(
        "link add to-{name} type veth peer name eth0 netns {}\nlink set to-{name} master br0 up",
        namespace.name()
    ))?;
    // A link-local address is needed at once, and no other host has it.
    namespace.sysctl(&[("ipv6/conf/eth0/accept_dad", "0")])?;
    namespace.ip(&format!(
        "addr add 10.0.0.{number}/24 dev eth0\naddr add fd00::{number}/64 dev eth0 nodad\n\
         link set eth0 up"
    ))?;
    Ok(namespace)
}

/// All reports of a node's routers, and when.
type ReportLog = Arc<Mutex<Vec<(Instant, Report)>>>;

/// A node.
pub struct Node {
    pub namespace: Namespace,
    thread: Option<Thread>,
    log: ReportLog,
}

impl Node {
    fn new(namespace: Namespace) -> Self {
        Self { namespace, thread: None, log: ReportLog::default() }
    }

    /// Starts its thread with these routers.
    pub fn start(&mut self, routers: Vec<Router>) -> Result<()> {
        let (reports, mut received) = mpsc::unbounded_channel();
        let thread = self.namespace.enter(|| Thread::start(reports))??;
        let all = Arc::clone(&self.log);
        // Ends with the thread.
        thread::spawn(move || {
            while let Some(report) = received.blocking_recv() {
                if let Report::TakeMac { done, .. } = &report {
                    let _ = done.0.send(());
                }
                all.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), report));
            }
        });
        thread.order(Order::ExternalState(ExternalState::default()));
        thread.order(Order::Configure(Routers { routers, groups: Vec::new() }));
        self.thread = Some(thread);
        Ok(())
    }

    pub fn configure(&self, routers: Vec<Router>) {
        self.order(Order::Configure(Routers { routers, groups: Vec::new() }));
    }

    pub fn order(&self, order: Order) {
        if let Some(thread) = &self.thread {
            thread.order(order);
        }
    }

    /// Ends its thread as if the process had died: nothing is sent, and addresses stay.
    pub fn die(&mut self) {
        self.thread = None;
    }

    /// Ends it in order.
    pub fn stop(&mut self, release: bool) -> Result<()> {
        self.clear_reports();
        self.order(Order::Stop { release });
        self.wait_for_report("that it has stopped", |report| *report == Report::Stopped)?;
        self.thread = None;
        Ok(())
    }

    pub fn status(&self) -> Vec<RouterStatus> {
        self.thread.as_ref().map(Thread::status).unwrap_or_default()
    }

    /// How its only router stands.
    pub fn router(&self) -> Result<RouterStatus> {
        self.status().into_iter().next().context("it has no router")
    }

    /// Waits until all of its routers are in a state.
    pub fn wait_for(&self, state: State) -> Result<()> {
        until(SOON, &format!("{} is {state}", self.namespace.name()), || {
            let status = self.status();
            if status.is_empty() {
                bail!("there are no routers");
            }
            match status.iter().find(|router| router.state != state) {
                None => Ok(()),
                Some(other) => bail!("{} is {}: {}", other.name, other.state, other.cause),
            }
        })
    }

    /// Its reports so far.
    pub fn reports(&self) -> Vec<(Instant, Report)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn transitions(&self) -> Vec<(Instant, Transition)> {
        let all = self.reports().into_iter();
        all.filter_map(|(at, report)| match report {
            Report::Transition(transition) => Some((at, transition)),
            _ => None,
        })
        .collect()
    }

    pub fn clear_reports(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn wait_for_report(&self, what: &str, is_it: impl Fn(&Report) -> bool) -> Result<()> {
        until_true(SOON, what, || Ok(self.reports().iter().any(|(_, report)| is_it(report))))
            .with_context(|| format!("reports: {:?}", self.reports()))
    }

    /// Waits until there was a notice of a kind that has these words.
    pub fn wait_for_notice(&self, kind: NoticeKind, words: &str) -> Result<()> {
        self.wait_for_report(words, |report| match report {
            Report::Notice(notice) => {
                notice.kind == kind
                    && (notice.message.contains(words) || notice.cause.contains(words))
            }
            _ => false,
        })
    }

    /// The addresses on an interface, as `10.0.0.100/32`.
    pub fn addresses(&self, interface: &str) -> Result<BTreeSet<String>> {
        let name = self.namespace.name();
        let shown = run(command("ip").args(["-n", name, "-o", "addr", "show", "dev", interface]))?;
        let words = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
        Ok(words.map(str::to_owned).collect())
    }

    pub fn has(&self, address: &str) -> Result<bool> {
        let addresses = self.addresses("eth0")?;
        Ok(addresses.iter().any(|one| one.split('/').next() == Some(address)))
    }

    pub fn wait_to_have(&self, address: &str, has: bool) -> Result<()> {
        let name = self.namespace.name();
        let what = format!("{name} {} {address}", if has { "has" } else { "hasn't" });
        until_true(SOON, &what, || Ok(self.has(address)? == has))
    }
}

/// The MAC address that a host sends to for an address, as its neighbour table has it.
pub fn neighbour(namespace: &Namespace, address: &str) -> Result<String> {
    let shown = run(command("ip").args(["-n", namespace.name(), "neigh", "show", "to", address]))?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
    Ok(words.nth(1).unwrap_or_default().to_owned())
}

/// Whether an address answers a host.
pub fn ping(namespace: &Namespace, address: &str) -> Result<bool> {
    let mut ping = namespace.command("ping");
    let output = kit::command::output(ping.args(["-c1", "-W1", "-n", address]), "")?;
    Ok(output.status.success())
}

/// A router with one address, which advertises each 50 ms.
pub fn router(family: Family, vrid: u8) -> Router {
    let address = match family {
        Family::V4 => VIP,
        Family::V6 => VIP6,
    };
    Router {
        name: format!("r{vrid}-{}", if family == Family::V4 { 4 } else { 6 }),
        interface: "eth0".to_owned(),
        key: RouterKey { family, vrid: NonZeroU8::new(vrid).expect("a VRID") },
        version: Version::V3,
        priority: NonZeroU8::new(100).expect("a priority"),
        interval: Duration::from_millis(50),
        preempt: true,
        preempt_delay: Duration::ZERO,
        accept: true,
        addresses: vec![address_of(address.parse().expect("an address"))],
        source: None,
        peers: Vec::new(),
        min_ttl: 255,
        second_path: None,
        auth: Auth::None,
        checksum: Checksum::PseudoHeader,
        virtual_mac: None,
        announce: Announce::default(),
        tracks: Vec::new(),
        notify: None,
    }
}

/// A virtual address as it is without further settings.
pub fn address_of(address: IpAddr) -> VirtualAddress {
    VirtualAddress {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
        interface: None,
        label: None,
        nodad: true,
        advertised: true,
    }
}

pub fn with_priority(router: &Router, priority: u8) -> Router {
    let priority = NonZeroU8::new(priority).expect("a priority");
    Router { priority, ..router.clone() }
}
