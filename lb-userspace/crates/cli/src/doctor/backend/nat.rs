//! Checks of a backend in mode `nat`: its answers leave by the balancer, and nothing else is taken for one.

use std::{net::IpAddr, ops::RangeInclusive};

use lb_model::desired::Ports;

use super::{
    super::{Finding, snapshot::sysctl},
    BackendSnapshot,
};

/// The ports that the kernel chooses for connections of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPorts {
    /// From which it chooses.
    range: Option<RangeInclusive<u16>>,
    /// Which of them it leaves out, as text and as ranges.
    reserved: (String, Vec<RangeInclusive<u16>>),
}

impl OwnPorts {
    /// By the texts of `net.ipv4.ip_local_port_range` and `net.ipv4.ip_local_reserved_ports`
    /// (Documentation/networking/ip-sysctl.rst).
    #[must_use]
    pub fn of(range: &str, reserved: &str) -> Self {
        let mut ends = range.split_whitespace().map(str::parse);
        let range = ends.next().zip(ends.next());
        let range = range.and_then(|(first, last)| Some(first.ok()?..=last.ok()?));
        let ports = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        let reserved = reserved.trim();
        Self {
            range,
            reserved: (reserved.to_owned(), reserved.split(',').filter_map(ports).collect()),
        }
    }

    /// How many of these ports it may choose.
    fn chosen(&self, ports: &Ports) -> usize {
        let range = self.range.clone().into_iter().flatten();
        let is_free = |port: &u16| !self.reserved.1.iter().any(|reserved| reserved.contains(port));
        range.filter(|port| ports.contains(*port)).filter(is_free).count()
    }
}

impl BackendSnapshot {
    /// The addresses that a balancer may send to.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let links = self.interfaces.values().filter(|one| one.up && !one.loopback);
        let own = links.flat_map(|one| &one.addresses).map(|(address, _)| *address);
        own.filter(|address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
    }
}

/// Who gets the answers.
pub(super) fn gateway(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "gateway";
    if !snapshot.is_translated() {
        return Vec::new();
    }
    let all: Vec<_> = snapshot.gateways.iter().map(IpAddr::to_string).collect();
    vec![match all.is_empty() {
        false => Finding::ok(
            CHECK,
            format!("without another route, answers leave by {}: that is to be the balancer", all.join(" and ")),
        ),
        true => Finding::warning(
            CHECK,
            "there is no default route",
            "answers reach clients only by the balancer, which gives them the VIP: a route to them has to lead there",
        )
        .fixed_by("ip route add default via ADDRESS"),
    }]
}

/// Who is told of a shorter way to a client takes it, past the balancer. An IPv4 node is kept from telling it.
pub(super) fn redirects(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "redirects";
    let Some((name, uplink)) = snapshot.uplink().filter(|_| snapshot.is_translated()) else {
        return Vec::new();
    };
    let v6 = uplink.addresses.iter().any(|(address, _)| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    });
    let setting = |setting: &str| format!("net/ipv6/conf/{name}/{setting}");
    let is = |name: &str, value| snapshot.sysctls.get(&setting(name)) == Some(value);
    if !(v6 && is("accept_redirects", 1) && is("forwarding", 0)) {
        return Vec::new();
    }
    vec![
        Finding::warning(
            CHECK,
            format!("{name} takes ICMPv6 redirects"),
            "a client on the same link is answered past the balancer once its router has sent one",
        )
        .fixed_by(sysctl(&[(setting("accept_redirects"), 0)])),
    ]
}

/// Packets that this host sends from a port of a service go out as from the VIP, if they pass the balancer.
pub(super) fn own_ports(snapshot: &BackendSnapshot) -> Vec<Finding> {
    const CHECK: &str = "own_ports";
    if !snapshot.is_translated() {
        return Vec::new();
    }
    let check = |(_, ports): &(_, Ports)| {
        let count = snapshot.own_ports.chosen(ports);
        if count == 0 {
            return Finding::ok(
                CHECK,
                format!("no connection that this host opens comes from {ports}"),
            );
        }
        let found =
            format!("{count} ports of {ports} may be those of connections that this host opens");
        let why = "through the balancer, packets from these ports leave as from the VIP, and such a connection fails";
        let reserved = &snapshot.own_ports.reserved.0;
        let all =
            if reserved.is_empty() { ports.to_string() } else { format!("{reserved},{ports}") };
        let finding = Finding::warning(CHECK, found, why);
        match ports.to_string().as_str() {
            // Some have to be left.
            "any" => finding,
            _ => finding.fixed_by(format!("sysctl -w net.ipv4.ip_local_reserved_ports={all}")),
        }
    };
    snapshot.request.ports.iter().map(check).collect()
}
