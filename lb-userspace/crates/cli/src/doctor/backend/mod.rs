//! Checks of a host that a balancer sends packets to: `lbctl doctor backend`.

mod nat;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use lb_datapath::decap::{self, Followed, UnlistedSource};
use lb_model::{
    desired::{Mode, Ports, Protocol},
    prefix::Prefix,
};

pub use self::nat::OwnPorts;

use super::{
    Finding, Report, first_buffer,
    links::merging,
    node::KEEP_SILENT,
    snapshot::{Firewall, InterfaceSnapshot, Rules, Sysctls, conf, sysctl},
};

/// The state of a backend's host.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// The parameters of the examination.
    pub request: BackendRequest,
    /// All interfaces by name.
    pub interfaces: BTreeMap<String, InterfaceSnapshot>,
    /// Settings of the kernel's network.
    pub sysctls: Sysctls,
    /// The tables of the firewall.
    pub firewall: Firewall,
    /// Where something listens.
    pub listeners: BTreeSet<(Protocol, SocketAddr)>,
    /// The ports of connections that this host opens.
    pub own_ports: OwnPorts,
    /// What is this host's by a route, beside its addresses: `ip route add local`.
    pub local_prefixes: Vec<Prefix>,
    /// The gateways of default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// The interfaces with a decapsulator.
    pub decaps: BTreeMap<String, Decap>,
    /// The segment size that default routes have TCP announce, where one is set.
    pub announced_segment: Option<u32>,
    /// The interface of the default route.
    pub uplink: Option<String>,
}

/// The packets that a decapsulator takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decap {
    /// Of VIPs; none: any.
    pub vips: Option<Vec<IpAddr>>,
    /// Of outer sources; none: any, by default.
    pub sources: Option<Vec<Prefix>>,
    /// Whether the network stack runs it instead of the driver.
    pub generic: bool,
    /// The lists that a process keeps as the addresses are.
    pub followed: Followed,
    /// The last packet from another source.
    pub unlisted: Option<UnlistedSource>,
}

impl Decap {
    /// The flags that set its sources.
    fn from(&self) -> String {
        match &self.sources {
            None => format!(" {}", decap::usual_sources()),
            Some(all) => all.iter().map(|prefix| format!(" --from {prefix}")).collect(),
        }
    }

    /// The command that has it take these VIPs, or those that there are, and these sources.
    fn attach(&self, dev: &str, vips: &[IpAddr], from: &str, pins: &str) -> String {
        let vips: String = vips.iter().map(|vip| format!(" --vip {vip}")).collect();
        let generic = if self.generic { " --generic" } else { "" };
        let options = format!("{from}{vips}{generic}{pins}");
        match self.followed.any() {
            // A running program would keep others from it.
            true => format!(
                "echo 'LB_DECAP_OPTIONS=\"{}\"' > /etc/default/lb-decap-{dev} && \
                 systemctl restart lb-decap@{dev}",
                options.trim_start()
            ),
            false => format!("lbctl decap attach --dev {dev}{options}"),
        }
    }
}

/// The parameters of the examination of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRequest {
    /// The VIPs; none: those that are found on the loopback.
    pub vips: Vec<IpAddr>,
    /// How packets come; none: by tunnel if there is an end of one.
    pub mode: Option<Mode>,
    /// The ports that clients connect to.
    pub ports: Vec<(Protocol, Ports)>,
    /// Where the decapsulator is pinned, if that is not the usual folder.
    pub pin_dir: Option<PathBuf>,
}

impl BackendSnapshot {
    fn is_tunnelled(&self) -> bool {
        match self.request.mode {
            Some(mode) => mode == Mode::Ipip,
            None => !self.decaps.is_empty() || self.tunnels().next().is_some(),
        }
    }

    /// The flag that sets the folder of the pins.
    fn pins(&self) -> String {
        let pins = self.request.pin_dir.as_ref();
        pins.map_or_else(String::new, |folder| format!(" --pin-dir {}", folder.display()))
    }

    /// Tunnel devices that are up.
    fn tunnels(&self) -> impl Iterator<Item = (&str, &InterfaceSnapshot)> {
        let kinds = ["ipip", "sit", "ip6tnl"];
        let is_tunnel = move |one: &InterfaceSnapshot| {
            one.up && one.kind.as_deref().is_some_and(|kind| kinds.contains(&kind))
        };
        let tunnels = self.interfaces.iter().filter(move |(_, one)| is_tunnel(one));
        tunnels.map(|(name, one)| (name.as_str(), one))
    }

    /// Whether packets come with this host's own address as their destination.
    fn is_translated(&self) -> bool {
        self.request.mode == Some(Mode::Nat)
    }

    /// The VIPs that are meant; none in mode `nat`, where this host has none.
    fn vips(&self) -> Vec<IpAddr> {
        if self.is_translated() {
            return Vec::new();
        }
        if !self.request.vips.is_empty() {
            return self.request.vips.clone();
        }
        let loopbacks = self.interfaces.values().filter(|interface| interface.loopback);
        let own = loopbacks.flat_map(|interface| &interface.addresses);
        let lone = own.filter(|(address, length)| {
            !address.is_loopback() && *length == if address.is_ipv4() { 32 } else { 128 }
        });
        let lone = lone.map(|(address, _)| *address);
        lone.chain(self.local_prefixes.iter().map(Prefix::address)).collect()
    }

    /// The destinations of packets.
    fn destinations(&self) -> Vec<IpAddr> {
        if self.is_translated() { self.own_addresses().collect() } else { self.vips() }
    }

    /// The interfaces that get ARP requests.
    fn links(&self) -> impl Iterator<Item = &str> {
        let is_link = |one: &InterfaceSnapshot| {
            !one.loopback
                && one.up
                && one.mac.is_some()
                && one.addresses.iter().any(|(a, _)| a.is_ipv4())
        };
        self.interfaces.iter().filter(move |(_, one)| is_link(one)).map(|(name, _)| name.as_str())
    }

    /// The interface that packets of the balancer come by.
    fn uplink(&self) -> Option<(&str, &InterfaceSnapshot)> {
        let name = self.decaps.keys().next().or(self.uplink.as_ref());
        let (name, interface) = match name {
            Some(name) => self.interfaces.get_key_value(name)?,
            None => self.interfaces.get_key_value(self.links().next()?)?,
        };
        Some((name, interface))
    }
}

/// The checks of a backend.
#[must_use]
pub(crate) fn examine(snapshot: &BackendSnapshot) -> Report {
    let checks: [fn(&BackendSnapshot) -> Vec<Finding>; _] = [
        vips,
        nat::gateway,
        nat::redirects,
        nat::own_ports,
        arp,
        tunnel,
        sources,
        rp_filter,
        segment_size,
        listeners,
        offloads,
        empty_first_buffers,
    ];
    Report { findings: checks.iter().flat_map(|check| check(snapshot)).collect() }
}

fn vips(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "vip";
    if snapshot.is_translated() {
        return Vec::new();
    }
    let vips = snapshot.vips();
    if vips.is_empty() {
        return vec![
            Finding::error(
                CHECK,
                "no VIP is on the loopback; name it with --vip, or the mode with --mode nat",
                "packets come with the VIP as their destination, and are dropped",
            )
            .fixed_by("lbctl doctor backend --vip ADDRESS"),
        ];
    }
    let check = |vip: IpAddr| {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let nodad = if vip.is_ipv4() { "" } else { " nodad" };
        let add = format!("ip address add {vip}/{length} dev lo{nodad}");
        let mut holders = snapshot.interfaces.iter().flat_map(|(name, interface)| {
            let own = interface.addresses.iter().filter(move |(address, _)| *address == vip);
            own.map(move |(_, length)| (name, interface, *length))
        });
        // An address on the loopback does not make one elsewhere harmless.
        if let Some((name, _, has)) = holders.clone().find(|(_, one, _)| !one.loopback) {
            let loopback = holders.any(|(_, one, _)| one.loopback);
            let delete = format!("ip address del {vip}/{has} dev {name}");
            let command = if loopback { delete } else { format!("{delete} && {add}") };
            return Finding::error(
                CHECK,
                format!("{vip} is on {name}"),
                "this host answers for the VIP on the link, in place of the balancer",
            )
            .fixed_by(command);
        }
        match holders.next() {
            Some((_, _, has)) if has == length => {
                Finding::ok(CHECK, format!("{vip}/{length} is on the loopback"))
            }
            Some((name, _, has)) => Finding::error(
                CHECK,
                format!("{vip} is on {name} with the prefix /{has}"),
                "the host takes all addresses of the prefix for its own",
            )
            .fixed_by(format!("ip address del {vip}/{has} dev {name} && {add}")),
            None if let Some(prefix) =
                snapshot.local_prefixes.iter().find(|one| one.contains(vip)) =>
            {
                Finding::ok(CHECK, format!("{vip} is this host's by the route `local {prefix}`"))
            }
            None => Finding::error(
                CHECK,
                format!("{vip} is not on the loopback"),
                "packets come with the VIP as their destination, and are dropped",
            )
            .fixed_by(add),
        }
    };
    vips.into_iter().map(check).collect()
}

fn arp(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "arp";
    // IPv6 answers only for the addresses of the interface that gets the solicitation.
    if !snapshot.vips().iter().any(IpAddr::is_ipv4) {
        return Vec::new();
    }
    // The VIP of a tunnelled service is not of the link; no host there sends ARP requests for it.
    let serious = !snapshot.is_tunnelled();
    let check = |interface: &str| {
        let value = |setting| snapshot.sysctls.of_interface(interface, setting);
        // 1 and 2: only for addresses of the interface; 8: for none; 3: for some on the loopback.
        let ignores = matches!(value("arp_ignore"), 1 | 2 | 8);
        let announces = value("arp_announce") == 2;
        if ignores && announces {
            let found = format!("{interface} answers ARP for its own addresses only");
            return Finding::ok(CHECK, found);
        }
        let wanted = KEEP_SILENT.into_iter().zip([ignores, announces]);
        let wanted = wanted.filter(|(_, is_so)| !is_so).map(|((name, to), _)| {
            // The larger one of both counts: where that of the interface is too large, it is set.
            let own = snapshot.sysctls.get(&conf(interface, name)).unwrap_or(0);
            let of = if own > to { interface } else { "all" };
            (conf(of, name), to)
        });
        let fix = sysctl(&wanted.collect::<Vec<_>>());
        let finding = if ignores {
            Finding::warning(
                CHECK,
                format!("{interface} may send ARP requests with the VIP as sender"),
                "their receivers then take this host for the holder of the VIP",
            )
        } else if serious {
            Finding::error(
                CHECK,
                format!("{interface} answers ARP for the VIP on the loopback"),
                "clients and routers of the link come here past the balancer",
            )
        } else {
            Finding::warning(
                CHECK,
                format!("{interface} answers ARP for the VIP on the loopback"),
                "if the VIP is of this link, clients come here past the balancer",
            )
        };
        finding.fixed_by(fix)
    };
    snapshot.links().map(check).collect()
}

fn tunnel(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "tunnel";
    if !snapshot.is_tunnelled() {
        return Vec::new();
    }
    let pins = snapshot.pins();
    let mut findings = Vec::new();
    for (dev, taken) in &snapshot.decaps {
        let own = taken.vips.as_deref().unwrap_or_default();
        let left: Vec<_> = snapshot
            .vips()
            .into_iter()
            .filter(|vip| taken.vips.is_some() && !own.contains(vip))
            .collect();
        let from = taken.from();
        findings.push(match left.first() {
            None if taken.vips.is_none() || taken.sources.is_none() => Finding::warning(
                CHECK,
                format!("the decapsulator of {dev} takes packets from anywhere, or for any address"),
                "if this host routes, anybody reaches what is behind it; an older lbctl attached it",
            )
            .fixed_by(taken.attach(dev, own, &from, &pins)),
            None => Finding::ok(
                CHECK,
                match taken.followed.vips {
                    true => format!("{dev} has the decapsulator, which follows the VIPs on the loopback"),
                    false => format!("{dev} has the decapsulator, for VIPs that are fixed"),
                },
            ),
            Some(vip) => Finding::error(
                CHECK,
                format!("the decapsulator of {dev} does not take packets for {vip}"),
                "they stay in their tunnel, and nothing on this host wants them",
            )
            .fixed_by(match taken.followed.vips {
                true => format!("systemctl restart lb-decap@{dev}"),
                false => taken.attach(dev, &[own, &left].concat(), &from, &pins),
            }),
        });
    }
    for (name, one) in snapshot.tunnels() {
        let kind = one.kind.as_deref().unwrap_or("tunnel");
        findings
            .push(Finding::ok(CHECK, format!("{name} ({kind}) takes packets out of their tunnel")));
    }
    if findings.is_empty() {
        let dev = snapshot.uplink().map_or("eth0", |(name, _)| name);
        findings.push(
            Finding::error(
                CHECK,
                "nothing takes packets out of their tunnel: no decapsulator, and no tunnel device",
                "what the balancer sends (mode = \"ipip\") is dropped",
            )
            .fixed_by(format!("lbctl decap attach --dev {dev} {}{pins}", decap::usual_sources())),
        );
    }
    findings
}

/// Packets that would have been unwrapped if they came from a source that is listed.
fn sources(snapshot: &BackendSnapshot) -> Vec<Finding> {
    let warn = |(dev, taken): (&String, &Decap)| {
        let unlisted = taken.unlisted?;
        let vips = if taken.followed.vips { None } else { taken.vips.as_deref() };
        let from = format!("{} --from PREFIX", taken.from());
        Some(
            Finding::warning(
                "sources",
                format!("{dev}: {unlisted}"),
                "they stay in their tunnel. If that is a balancer, name the PREFIX of its `[tunnel]` that has the \
                 address; if not, somebody tries to reach this host's inside",
            )
            .fixed_by(taken.attach(dev, vips.unwrap_or_default(), &from, &snapshot.pins())),
        )
    };
    snapshot.decaps.iter().filter_map(warn).collect()
}

fn rp_filter(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "rp_filter";
    if !snapshot.is_tunnelled() || !snapshot.vips().iter().any(IpAddr::is_ipv4) {
        return Vec::new();
    }
    // By a tunnel device packets come whose answers go by another interface, always; with the
    // decapsulator they come by the interface that has it.
    let tunnels = snapshot.tunnels().map(|(name, _)| (name, true));
    let decaps = snapshot.decaps.keys().map(|name| (name.as_str(), false));
    let check = |(name, always): (&str, bool)| {
        if snapshot.sysctls.of_interface(name, "rp_filter") != 1 {
            let found = format!("{name} does not check by which interface answers would go");
            return Finding::ok(CHECK, found);
        }
        // Loose is larger than strict, and the larger one of both counts.
        let fix = sysctl(&[(conf(name, "rp_filter"), 2)]);
        if always {
            Finding::error(
                CHECK,
                format!("{name} drops packets whose answers go by another interface"),
                "that is every packet: clients are not reached through the tunnel",
            )
            .fixed_by(fix)
        } else {
            Finding::warning(
                CHECK,
                format!("{name} drops packets whose answers go by another interface"),
                "clients that are reached by another interface get no answer",
            )
            .fixed_by(fix)
        }
    };
    tunnels.chain(decaps).map(check).collect()
}

/// The segment size announced to clients fits the tunnel.
fn segment_size(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    const USUAL: u32 = 1500;
    let Some((name, uplink)) = snapshot.uplink().filter(|_| snapshot.is_tunnelled()) else {
        return Vec::new();
    };
    // The outer header is that of the family by which this host is reached.
    let v4 = uplink.addresses.iter().any(|(address, _)| address.is_ipv4());
    let outer = if v4 { 20 } else { 40 };
    let needed = USUAL + outer;
    let found = format!("{name} has an MTU of {}", uplink.mtu);
    if uplink.mtu >= needed {
        return vec![Finding::ok(CHECK, format!("{found}: packets of {USUAL} bytes fit a tunnel"))];
    }
    // Outer header, IPv4 and TCP.
    let segment = uplink.mtu.saturating_sub(outer + 40);
    if let Some(announced) = snapshot.announced_segment.filter(|announced| *announced <= segment) {
        return vec![Finding::ok(
            CHECK,
            format!("{found}; the TCP MSS announced to clients is {announced} bytes"),
        )];
    }
    if matches!(&snapshot.firewall, Firewall::Known(Rules { clamps: true, .. })) {
        return vec![Finding::ok(
            CHECK,
            format!("{found}; a rule of the firewall lowers the segment size"),
        )];
    }
    let vip = snapshot.vips().first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let (family, segment) = match vip.is_ipv4() {
        true => ("ip", segment),
        false => ("ip6", segment.saturating_sub(20)),
    };
    vec![
        Finding::warning(
            CHECK,
            format!("{found}; with the TCP MSS announced to clients, tunnelled packets are larger"),
            "each large packet takes an ICMP message first, which firewalls on the way may drop",
        )
        .fixed_by(format!(
            "nft 'add table inet lb_mss; add chain inet lb_mss output {{ type filter hook output \
             priority mangle; }}; add rule inet lb_mss output {family} saddr {vip} tcp flags syn \
             tcp option maxseg size set {segment}'"
        )),
    ]
}

fn listeners(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "listener";
    let word = |protocol| if protocol == Protocol::Tcp { "TCP" } else { "UDP" };
    let accepts = |listener: &SocketAddr, at: IpAddr| {
        // A socket of IPv6 for any address takes IPv4 as well, without IPV6_V6ONLY.
        listener.ip() == at
            || listener.ip().is_unspecified() && (at.is_ipv4() || listener.is_ipv6())
    };
    let mut findings = Vec::new();
    let destinations = snapshot.destinations();
    for at in destinations.iter().copied() {
        for (protocol, ports) in &snapshot.request.ports {
            let word = word(*protocol);
            let place = match ports.to_string().as_str() {
                "any" => format!("any {word} port of {at}"),
                ports => format!("{word} port {ports} of {at}"),
            };
            let is_of = |(of, listener): &&(Protocol, SocketAddr)| {
                of == protocol && ports.contains(listener.port())
            };
            let all = snapshot.listeners.iter().filter(is_of);
            let listening = all.clone().find(|(_, listener)| accepts(listener, at));
            let own = all.clone().find(|(_, listener)| !listener.ip().is_loopback());
            let mut others =
                all.map(|(_, listener)| destinations.iter().any(|at| accepts(listener, *at)));
            if snapshot.is_translated() && listening.is_none() && others.any(|listens| listens) {
                // The balancer sends to the address that it was given, which is another one.
                continue;
            }
            findings.push(match (listening, own) {
                (Some((_, listener)), _) if !ports.is_one() => Finding::ok(
                    CHECK,
                    format!("a server listens on {place}: at {}", listener.port()),
                ),
                (Some(_), _) => Finding::ok(CHECK, format!("a server listens on {place}")),
                (None, Some((_, elsewhere))) => Finding::error(
                    CHECK,
                    format!("nothing listens on {place}, but on {elsewhere}"),
                    if snapshot.is_translated() {
                        "clients are refused: their packets come to that address"
                    } else {
                        "clients are refused: their packets are for the VIP"
                    },
                ),
                (None, None) => Finding::error(
                    CHECK,
                    format!("nothing listens on {place}"),
                    "clients are refused",
                ),
            });
        }
        if snapshot.request.ports.is_empty() {
            let ports: BTreeSet<_> = snapshot
                .listeners
                .iter()
                .filter(|(_, listener)| accepts(listener, at))
                .map(|(protocol, listener)| (word(*protocol), listener.port()))
                .collect();
            let ports: Vec<_> =
                ports.iter().map(|(protocol, port)| format!("{protocol} {port}")).collect();
            findings.push(match ports.is_empty() {
                false => {
                    Finding::ok(CHECK, format!("servers listen on {at}: {}", ports.join(", ")))
                }
                true => Finding::warning(
                    CHECK,
                    format!("nothing listens on {at}"),
                    "clients are refused; name the port with --port to be sure",
                ),
            });
        }
    }
    findings
}

/// Merging in hardware is done by the outer header, and a decapsulator would see the result.
fn offloads(snapshot: &BackendSnapshot) -> Vec<Finding> {
    let why = "the decapsulator would see what the link never carried; drivers refuse XDP with it";
    let decaps = snapshot.decaps.keys();
    decaps.filter_map(|name| merging(name, snapshot.interfaces.get(name)?, why)).collect()
}

/// Frames whose headers the decapsulator does not reach.
pub(super) fn empty_first_buffers(snapshot: &BackendSnapshot) -> Vec<Finding> {
    let native = snapshot.decaps.iter().filter(|(_, decap)| !decap.generic);
    let with = native.filter_map(|(name, _)| snapshot.interfaces.get(name));
    with.flat_map(|interface| {
        first_buffer::findings(interface, "no packet is taken out of its tunnel")
    })
    .collect()
}

#[cfg(test)]
pub(super) mod tests;
