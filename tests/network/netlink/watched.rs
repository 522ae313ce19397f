//! A node and a host on its link, the resolver on the node, and the time that a change takes to reach it.

use std::{collections::BTreeSet, net::IpAddr, process::Command, time::Duration};

use lb_model::{
    desired::Mode,
    hop::{Neighbourhood, NextHop, Resolution, Want},
};
use lb_netlink::Resolver;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::netns::Netns;

/// How long anything may take that happens at once.
pub const SOON: Duration = Duration::from_secs(10);

/// The node with `eth0` (10.0.0.1, fd00::1) and a host on its link (10.0.0.2, fd00::2).
pub struct Network {
    pub node: Netns,
    pub host: Netns,
}

impl Network {
    pub fn new() -> Self {
        let network = Self { node: Netns::new(), host: Netns::new() };
        network.connect();
        network
    }

    /// The same by a bridge: its ports are `node` and `host`.
    pub fn by(switch: &Netns) -> Self {
        let network = Self { node: Netns::new(), host: Netns::new() };
        network.node.join("eth0", switch, "node");
        network.host.join("eth0", switch, "host");
        switch.ip("link add br0 up type bridge mcast_snooping 0");
        switch.ip("link set node master br0");
        switch.ip("link set host master br0");
        network.number();
        network
    }

    pub fn connect(&self) {
        self.node.join("eth0", &self.host, "eth0");
        self.number();
    }

    fn number(&self) {
        for (namespace, number) in [(&self.node, 1), (&self.host, 2)] {
            namespace.ip(&format!("addr add 10.0.0.{number}/24 dev eth0"));
            namespace.ip(&format!("addr add fd00::{number}/64 dev eth0 nodad"));
        }
    }

    /// Makes the node's kernel impatient, so that a test needn't wait for it.
    pub fn impatient(&self) {
        for family in ["ipv4", "ipv6"] {
            for (name, value) in [
                ("retrans_time_ms", "100"),
                ("base_reachable_time_ms", "1000"),
                ("delay_first_probe_time", "1"),
                ("ucast_solicit", "1"),
                ("mcast_solicit", "2"),
            ] {
                set_sysctl(&self.node, &format!("{family}/neigh/eth0/{name}"), value);
            }
        }
    }

    pub fn run(&self, work: impl AsyncFnOnce(Watched) + Send) {
        self.node.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("build a runtime").block_on(async {
                let started = Resolver::start(vec!["eth0".into()]).await;
                let (resolver, neighbourhood) = started.expect("start the resolver");
                work(Watched { resolver, neighbourhood }).await;
            });
        });
    }
}

pub struct Watched {
    pub resolver: Resolver,
    pub neighbourhood: watch::Receiver<Neighbourhood>,
}

impl Watched {
    pub fn want(&self, wants: &[Want]) {
        self.resolver.want(wants.iter().copied().collect::<BTreeSet<_>>());
    }

    pub fn of(&self, want: Want) -> Option<Resolution> {
        self.neighbourhood.borrow().hops.get(&want).cloned()
    }

    /// Waits until `want` is resolved to a value that `is` accepts.
    pub async fn resolved_as(&mut self, want: Want, is: impl Fn(&NextHop) -> bool) -> NextHop {
        self.until(want, |resolution| match resolution {
            Resolution::Resolved(hop) if is(hop) => Some(hop.clone()),
            _ => None,
        })
        .await
    }

    pub async fn resolved(&mut self, want: Want) -> NextHop {
        self.resolved_as(want, |_| true).await
    }

    /// Waits until `want` is unreachable; why.
    pub async fn unreachable(&mut self, want: Want) -> String {
        self.until(want, |resolution| match resolution {
            Resolution::Unreachable { reason } => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    async fn until<T>(&mut self, want: Want, pick: impl Fn(&Resolution) -> Option<T>) -> T {
        let waited = timeout(2 * SOON, async {
            loop {
                let found = self.neighbourhood.borrow_and_update().hops.get(&want).and_then(&pick);
                if let Some(found) = found {
                    return found;
                }
                self.neighbourhood.changed().await.expect("the resolver runs");
            }
        })
        .await;
        waited.unwrap_or_else(|_| panic!("{want:?} is still {:?}", self.of(want)))
    }
}

pub fn want(address: &str, mode: Mode) -> Want {
    Want { address: address.parse::<IpAddr>().expect("an address"), mode }
}

pub fn dsr(address: &str) -> Want {
    want(address, Mode::Dsr)
}

pub fn ipip(address: &str) -> Want {
    want(address, Mode::Ipip)
}

/// How often the resolver reads all anew.
pub const REFRESH: Duration = Duration::from_secs(10);

/// How often something is done of which the least time counts: on a machine with much else to do, most take longer.
pub const TIMES: u8 = 20;

/// The least time that something took, and that a command took beside it, which shows how fast the machine is.
pub struct Least {
    took: Duration,
    command: Duration,
}

impl Default for Least {
    fn default() -> Self {
        Self { took: Duration::MAX, command: Duration::MAX }
    }
}

impl Least {
    pub fn command<T>(&mut self, run: impl FnOnce() -> T) {
        let start = Instant::now();
        run();
        self.command = self.command.min(start.elapsed());
    }

    pub fn take(&mut self, since: Instant) {
        self.took = self.took.min(since.elapsed());
    }

    /// It took less than so many halves of a command.
    pub fn is_below(&self, halves: u32) {
        let Self { took, command } = *self;
        eprintln!("{took:?}, where a command takes {command:?}");
        assert!(took < halves * command / 2, "{took:?}, where a command takes {command:?}");
    }
}

/// Writes a file of /proc/sys/net: `ipv4/conf/eth0/arp_notify`.
pub fn set_sysctl(namespace: &Netns, path: &str, value: &str) {
    let path = format!("/proc/sys/net/{path}");
    namespace.enter(|| std::fs::write(&path, value).expect("write a sysctl"));
}

/// Whether the kernel can make VLAN devices.
pub fn has_vlan(namespace: &Netns) -> bool {
    let made = Command::new("ip")
        .args(["-n", &namespace.name, "link", "add", "link", "lo"])
        .args(["name", "v0", "type", "vlan", "id", "1"])
        .output();
    !String::from_utf8_lossy(&made.expect("run ip").stderr).contains("Unknown device type")
}

pub fn mac_of(namespace: &Netns, dev: &str) -> [u8; 6] {
    let text = namespace.ip(&format!("-br link show dev {dev}"));
    let text = text.split_whitespace().nth(2).expect("ip shows the MAC address");
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}
