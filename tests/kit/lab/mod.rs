//! The lab: a client, a balancer and web hosts on one bridge, each a network namespace.
//!
//! ```text
//!  client .2 ──┐                 ┌── web1 .11 (nginx, VIPs on lo)      10.0.0.0/24
//!              ├── switch (br0) ─┼── web2 .12                          fd00::/64
//!  balancer .5 ┘                 └── web3 .13
//!
//!  with a router: client 10.1.0.2 ── router 10.1.0.1, 10.0.0.1 ── switch ...
//!  as a pair: lb1 .5 and lb2 .6 instead of the balancer, with a second wire between them
//! ```
//!
//! The balancer has the VIPs on its interface, so that it answers for them on the wire; the nodes of
//! a pair have none until they take them. A folder under [`ROOT`] holds the lab's files and the record
//! by which [`sweep`] finds its leftovers.
//!
//! On veth, XDP_TX needs NAPI on the other end, which an XDP program there enables. Modes `dsr` and `ipip` need complete
//! checksums there, so the lab turns transmit offloads off.

mod record;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

use self::record::pins;
pub use self::record::{Record, labs, sweep};
use crate::{
    mounts,
    namespace::Namespace,
    nginx::{self, Nginx},
    nics::{self, Joined},
    pair,
    process::{Orphan, started},
    xdp,
};

/// Where the folders of labs are.
pub const ROOT: &str = "/run/lb-lab";

/// The interface of every host.
pub const INTERFACE: &str = "eth0";

/// The VIPs that every lab knows, IPv4.
pub const VIPS_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 100), Ipv4Addr::new(10, 0, 0, 101), Ipv4Addr::new(10, 0, 0, 102)];

/// The VIPs that every lab knows, IPv6.
pub const VIPS_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x101),
];

/// The VIPs of services in mode `nat`, which web hosts do not have.
pub const NAT_VIPS: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 0, 0, 110), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x110));

/// The VIP of a service in mode `nat` with several ports.
pub const NAT_RANGE_VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 111);

/// The options of a lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many web hosts.
    pub webs: u8,
    /// Whether the client is behind a router.
    pub router: bool,
    /// Whether there are two balancers, and the VIPs are theirs to take.
    pub pair: bool,
    /// Whether the balancers are web hosts as well: the last of [`Lab::webs`].
    pub serve: bool,
    /// Whether the lab stays when its maker ends.
    pub stays: bool,
    /// NICs of this machine for the balancers, in place of veth pairs.
    pub nics: Vec<Joined>,
    /// The hook of the balancers' programs: `attach` of their configurations.
    pub attach: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            webs: 3,
            router: false,
            pair: false,
            serve: false,
            stays: false,
            nics: Vec::new(),
            attach: "xdp",
        }
    }
}

/// A host of the lab.
#[derive(Debug)]
pub struct Host {
    /// Its name: `client`, `web1`.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A web host.
#[derive(Debug)]
pub struct Web {
    /// nginx on it.
    pub nginx: Nginx,
    /// The host.
    pub host: Host,
}

/// The hosts and the wires between them. All is gone when it is dropped, unless it
/// [`stays`](Options::stays).
#[derive(Debug)]
pub struct Lab {
    /// The web hosts.
    pub webs: Vec<Web>,
    /// The client.
    pub client: Host,
    /// The balancer; the first of a pair is called `lb1`.
    pub balancer: Host,
    /// The other balancer of a pair: `lb2`.
    pub peer: Option<Host>,
    /// The router before the client, where there is one: `eth0` to the switch, `eth1` to the
    /// client.
    pub router: Option<Host>,
    /// [`Options::attach`].
    pub attach: &'static str,
    switch: Namespace,
    record: Record,
    folder: PathBuf,
}

impl Lab {
    /// Builds the lab and starts nginx on its web hosts.
    ///
    /// # Errors
    ///
    /// If something is missing or the kernel refuses; nothing is left behind then.
    pub fn new(options: &Options) -> Result<Self> {
        mounts::prepare()?;
        let switch = Namespace::new("switch")?;
        // The kernel gave the number in the name to this process alone.
        let name = switch.name().trim_end_matches("-switch").to_owned();
        let record = Record {
            name,
            pid: process::id(),
            started: started(process::id()).context("own start in /proc")?,
            stays: options.stays,
            hosts: vec![("switch".into(), switch.name().to_owned())],
        };
        let client = Host::new("client", 2)?;
        let balancer = Host::new(if options.pair { "lb1" } else { "balancer" }, 5)?;
        let peer = options.pair.then(|| Host::new("lb2", 6)).transpose()?;
        let router = options.router.then(|| Host::new("router", 1)).transpose()?;
        let folder = Path::new(ROOT).join(&record.name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("create {}", folder.display()))?;
        let attach = options.attach;
        let webs = Vec::new();
        let mut lab = Self { client, balancer, peer, router, webs, attach, switch, record, folder };
        let pins = lab.pins();
        fs::create_dir(&pins).with_context(|| format!("create {}", pins.display()))?;
        lab.wire(&options.nics).context("wire the lab")?;
        lab.start_webs(options)?;
        let hosts = lab.hosts().map(|host| (host.name.clone(), host.namespace.name().to_owned()));
        let hosts: Vec<_> = hosts.collect();
        lab.record.hosts.extend(hosts);
        let record = serde_json::to_vec_pretty(&lab.record).context("the lab's record")?;
        fs::write(lab.folder.join("lab.json"), record).context("write lab.json")?;
        if options.stays {
            lab.keep();
        }
        Ok(lab)
    }

    /// The lab's name, unique on this machine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The folder for everything that belongs to the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder in bpffs, for a folder or a pin of each host.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        pins(self.name())
    }

    /// The fate of the lab's processes when this process ends.
    #[must_use]
    pub fn orphan(&self) -> Orphan {
        if self.record.stays { Orphan::Stays } else { Orphan::Dies }
    }

    /// All hosts but the switch.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client, &self.balancer]
            .into_iter()
            .chain(&self.peer)
            .chain(&self.router)
            .chain(self.webs.iter().map(|web| &web.host).filter(|host| !self.is_balancer(host)))
    }

    /// Whether a web host is one of the balancers.
    fn is_balancer(&self, host: &Host) -> bool {
        [&self.balancer].into_iter().chain(&self.peer).any(|balancer| balancer.name == host.name)
    }

    /// The web host with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn web(&self, name: &str) -> Result<&Web> {
        let found = self.webs.iter().find(|web| web.host.name == name);
        found.with_context(|| format!("no web host {name}"))
    }

    /// The bridge's interfaces have the hosts' names.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Adds a balancer beside those that there are, with an address that ends in `last`. It goes when what
    /// is returned does.
    ///
    /// # Errors
    ///
    /// If there is such a host already, or the kernel refuses.
    pub fn add_balancer(&self, name: &str, last: u8) -> Result<Host> {
        let host = Host::new(name, last)?;
        host.quieten()?;
        self.plug_node(&host, None, &format!("switch-{name}"))?;
        if self.router.is_some() {
            host.namespace.ip(TO_THE_ROUTER)?;
        }
        Ok(host)
    }

    /// Cuts a host off, as when it loses power: packets to and from it vanish without an error.
    ///
    /// # Errors
    ///
    /// If the switch has no such port.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.switch.ip(&format!("link set {host} down")).map(drop)
    }

    /// Connects a host again that was [`cut`](Self::cut) off.
    ///
    /// # Errors
    ///
    /// If the switch has no such port.
    pub fn mend(&self, host: &str) -> Result<()> {
        self.switch.ip(&format!("link set {host} up")).map(drop)
    }

    /// Takes the balancer's interface away.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn unplug_balancer(&self) -> Result<()> {
        self.balancer.namespace.ip(&format!("link del {INTERFACE}"))?;
        // The program on the other end went with it; a pin of nothing is left.
        fs::remove_file(self.pins().join("switch")).context("remove the switch's pin")
    }

    /// Gives the balancer another interface of the same name and with the same addresses, after
    /// [`Self::unplug_balancer`]. `mac` is its MAC address.
    ///
    /// # Errors
    ///
    /// If it has one.
    pub fn plug_balancer(&self, mac: &str) -> Result<()> {
        self.plug(&self.balancer)?;
        self.balancer.namespace.ip(&format!("link set {INTERFACE} address {mac}"))?;
        xdp::pass(&self.switch, &self.balancer.name, &self.pins().join("switch"))?;
        if self.peer.is_some() {
            return Ok(());
        }
        self.balancer.namespace.ip(&vips(INTERFACE)).map(drop)
    }

    /// Takes the XDP program off the switch's end of the balancer's wire: packets of a balancer that has
    /// none itself need not be copied for it.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn without_xdp(&self) -> Result<()> {
        fs::remove_file(self.pins().join("switch")).context("remove the switch's pin")
    }

    /// Has all links merge and cut packets as far as they can, which is for tc alone: XDP over frames of several
    /// buffers has panicked some kernels. So the switch's XDP program goes, and there must be no other.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn with_offloads(&self) -> Result<()> {
        self.without_xdp()?;
        self.on_all_links(&["tx", "on", "tso", "on", "gso", "on", "gro", "on"])
    }

    /// Has every link leave checksums to the next one, so that packets of hosts arrive without.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn without_checksums(&self) -> Result<()> {
        self.on_all_links(&["tx", "on", "tso", "off", "gso", "off"])
    }

    /// Switches offloads on both ends of every link.
    fn on_all_links(&self, offloads: &[&str]) -> Result<()> {
        for host in self.hosts() {
            host.namespace.ethtool(INTERFACE, offloads)?;
            match &self.router {
                Some(router) if host.name == self.client.name => {
                    router.namespace.ethtool("eth1", offloads)?;
                }
                _ => self.switch.ethtool(&host.name, offloads)?,
            }
        }
        Ok(())
    }

    fn wire(&mut self, nics: &[Joined]) -> Result<()> {
        self.switch.sysctl(&[("ipv6/conf/all/disable_ipv6", "1")])?;
        self.switch.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")?;
        let balancers = [&self.client, &self.balancer].into_iter().chain(&self.peer);
        for host in balancers.chain(&self.router) {
            host.quieten()?;
        }
        self.plug_node(&self.balancer, nics.first(), "switch")?;
        if let Some(peer) = &self.peer {
            self.plug_node(peer, nics.get(1), "switch2")?;
            pair::wire(&self.switch, [&self.balancer, peer])?;
        } else {
            self.balancer.namespace.ip(&vips(INTERFACE))?;
        }
        let Some(router) = &self.router else { return self.plug(&self.client) };
        self.plug(router)?;
        router.namespace.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
        ])?;
        let client = self.client.namespace.name().to_owned();
        router.namespace.ip(&format!(
            "link add eth1 type veth peer name {INTERFACE} netns {client}\n\
             addr add 10.1.0.1/24 dev eth1\naddr add fd00:1::1/64 dev eth1 nodad\nlink set eth1 up"
        ))?;
        self.client.v4 = Ipv4Addr::new(10, 1, 0, 2);
        self.client.v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
        self.client.namespace.ip(
            "addr add 10.1.0.2/24 dev eth0\naddr add fd00:1::2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.1.0.1\nroute add default via fd00:1::1",
        )?;
        router.namespace.ethtool("eth1", OFFLOADS)?;
        self.client.namespace.ethtool(INTERFACE, OFFLOADS)?;
        for balancer in [&self.balancer].into_iter().chain(&self.peer) {
            balancer.namespace.ip(TO_THE_ROUTER)?;
        }
        Ok(())
    }

    /// Connects a balancer to the switch, by NICs of this machine if there are any for it.
    fn plug_node(&self, host: &Host, nics: Option<&Joined>, pin: &str) -> Result<()> {
        let Some(nics) = nics else {
            self.plug(host)?;
            return xdp::pass(&self.switch, &host.name, &self.pins().join(pin));
        };
        nics::plug(&nics.port, &self.switch, &host.name)?;
        nics::plug(&nics.host, &host.namespace, INTERFACE)?;
        self.connect(host)
    }

    /// Connects a host to the switch.
    fn plug(&self, host: &Host) -> Result<()> {
        let (port, namespace) = (&host.name, host.namespace.name());
        let veth = format!("link add {port} type veth peer name {INTERFACE} netns {namespace}");
        self.switch.ip(&veth)?;
        self.connect(host)?;
        host.namespace.ethtool(INTERFACE, OFFLOADS)?;
        self.switch.ethtool(port, OFFLOADS)
    }

    /// Sets up both ends of a host's wire.
    fn connect(&self, host: &Host) -> Result<()> {
        let port = &host.name;
        self.switch.ip(&format!("link set {port} master br0\nlink set {port} up"))?;
        let (v4, v6) = (host.v4, host.v6);
        let lines = format!(
            "addr add {v4}/24 dev {INTERFACE}\naddr add {v6}/64 dev {INTERFACE} nodad\n\
             link set {INTERFACE} up"
        );
        host.namespace.ip(&lines).map(drop)
    }

    fn start_webs(&mut self, options: &Options) -> Result<()> {
        let big = self.folder.join("big");
        fs::write(&big, nginx::big()).with_context(|| format!("write {}", big.display()))?;
        for n in 1..=options.webs {
            let host = Host::new(&format!("web{n}"), 10 + n)?;
            host.quieten()?;
            self.plug(&host)?;
            if options.router {
                host.namespace.ip(TO_THE_ROUTER)?;
            }
            self.serve(host, &big)?;
        }
        let balancers = [&self.balancer].into_iter().chain(&self.peer).filter(|_| options.serve);
        let serving: Vec<_> = balancers.map(Host::again).collect();
        serving.into_iter().try_for_each(|host| self.serve(host, &big))
    }

    /// Makes a host a web host.
    fn serve(&mut self, host: Host, big: &Path) -> Result<()> {
        // It takes packets for the VIP, and leaves ARP and neighbour discovery for it to the balancer that holds it.
        host.namespace
            .sysctl(&[("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")])?;
        host.namespace.ip(&vips("lo"))?;
        let folder = self.folder.join(&host.name);
        let nginx = Nginx::start(&host.namespace, &host.name, &folder, big, self.orphan())?;
        self.webs.push(Web { nginx, host });
        Ok(())
    }

    fn keep(&mut self) {
        self.switch.keep();
        let hosts = [&mut self.client, &mut self.balancer].into_iter();
        for host in hosts.chain(&mut self.peer).chain(&mut self.router) {
            host.namespace.keep();
        }
        for web in &mut self.webs {
            web.nginx.keep();
            web.host.namespace.keep();
        }
    }
}

/// The commands that give a device all VIPs.
fn vips(device: &str) -> String {
    let v4 = VIPS_V4.map(|vip| format!("addr add {vip}/32 dev {device}\n")).concat();
    let v6 = VIPS_V6.map(|vip| format!("addr add {vip}/128 dev {device} nodad\n")).concat();
    v4 + &v6
}

/// The hosts' way to a client behind the router.
const TO_THE_ROUTER: &str = "route add default via 10.0.0.1\nroute add default via fd00::1";

/// XDP programs see packets as senders leave them: without segmentation and checksums by the
/// interface, which a veth pair promises and never does.
pub const OFFLOADS: &[&str] = &["tx", "off", "tso", "off", "gso", "off"];

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.record.stays {
            let _ = fs::remove_dir_all(self.pins());
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Host {
    fn new(name: &str, last: u8) -> Result<Self> {
        // The last part of the IPv6 address reads as that of the IPv4 address: .11 and ::11.
        let v6 = u16::from_str_radix(&last.to_string(), 16).context("decimal digits are hex")?;
        Ok(Self {
            name: name.to_owned(),
            namespace: Namespace::new(name)?,
            v4: Ipv4Addr::new(10, 0, 0, last),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, v6),
        })
    }

    /// The same host once more; its namespace goes with the first one.
    fn again(&self) -> Self {
        let namespace = Namespace::existing(self.namespace.name());
        Self { name: self.name.clone(), namespace, ..*self }
    }

    /// Its address of the family of `like`.
    #[must_use]
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Settings that every host has before it has an interface.
    fn quieten(&self) -> Result<()> {
        self.namespace.sysctl(&[
            // Packets with a source out of nowhere come out of tunnels.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ])
    }
}
