//! The ways in which the balancer forwards: mode and addresses, each with a VIP of its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_model::backend_address::BackendAddress;

use crate::{
    balancer::{Balancer, Service},
    http::Connection,
    lab::{INTERFACE, Lab, NAT_RANGE_VIP, NAT_VIPS, Options, VIPS_V4, VIPS_V6, Web},
    nginx,
    status::{ServiceExt as _, StatusExt as _},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A way to the web hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Layer 2, IPv4.
    DsrV4,
    /// Layer 2, IPv6.
    DsrV6,
    /// IPv4 in IPv4.
    IpipV4,
    /// IPv6 in IPv6.
    IpipV6,
    /// IPv4 in IPv6.
    IpipV4InV6,
    /// By another destination address and port, IPv4; see [`return_through_balancers`].
    NatV4,
    /// The same, IPv6.
    NatV6,
    /// By another destination address, and ten ports that stay.
    NatRangeV4,
}

impl Way {
    /// Those by which backends answer clients directly (direct server return).
    pub const DIRECT_RETURN: [Self; 5] =
        [Self::DsrV4, Self::DsrV6, Self::IpipV4, Self::IpipV6, Self::IpipV4InV6];

    /// The service's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DsrV4 => "dsr-v4",
            Self::DsrV6 => "dsr-v6",
            Self::IpipV4 => "ipip-v4",
            Self::IpipV6 => "ipip-v6",
            Self::IpipV4InV6 => "ipip-v4-in-v6",
            Self::NatV4 => "nat-v4",
            Self::NatV6 => "nat-v6",
            Self::NatRangeV4 => "nat-range-v4",
        }
    }

    /// The VIP.
    #[must_use]
    pub const fn vip(self) -> IpAddr {
        match self {
            Self::DsrV4 => IpAddr::V4(VIPS_V4[0]),
            Self::DsrV6 => IpAddr::V6(VIPS_V6[0]),
            Self::IpipV4 => IpAddr::V4(VIPS_V4[1]),
            Self::IpipV6 => IpAddr::V6(VIPS_V6[1]),
            Self::IpipV4InV6 => IpAddr::V4(VIPS_V4[2]),
            Self::NatV4 => IpAddr::V4(NAT_VIPS.0),
            Self::NatV6 => IpAddr::V6(NAT_VIPS.1),
            Self::NatRangeV4 => IpAddr::V4(NAT_RANGE_VIP),
        }
    }

    /// VIP and port.
    #[must_use]
    pub const fn target(self) -> SocketAddr {
        SocketAddr::new(self.vip(), 80)
    }

    /// The bytes that the tunnel adds to a packet.
    #[must_use]
    pub const fn overhead(self) -> usize {
        match self {
            Self::DsrV4 | Self::DsrV6 | Self::NatV4 | Self::NatV6 | Self::NatRangeV4 => 0,
            Self::IpipV4 => 20,
            Self::IpipV6 | Self::IpipV4InV6 => 40,
        }
    }

    /// The address by which the balancer reaches a web host.
    #[must_use]
    pub fn backend(self, web: &Web) -> IpAddr {
        match self {
            Self::DsrV4 | Self::IpipV4 | Self::NatV4 | Self::NatRangeV4 => web.host.v4.into(),
            Self::DsrV6 | Self::IpipV6 | Self::IpipV4InV6 | Self::NatV6 => web.host.v6.into(),
        }
    }

    /// The mode, as configurations have it.
    #[must_use]
    pub const fn mode(self) -> &'static str {
        match self {
            Self::DsrV4 | Self::DsrV6 => "dsr",
            Self::IpipV4 | Self::IpipV6 | Self::IpipV4InV6 => "ipip",
            Self::NatV4 | Self::NatV6 | Self::NatRangeV4 => "nat",
        }
    }

    /// The port that web hosts get packets at.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::NatV4 | Self::NatV6 => nginx::PORTS[1],
            _ => self.target().port(),
        }
    }

    /// A web host as `lbd` names the backend.
    #[must_use]
    pub fn named(self, web: &Web) -> BackendAddress {
        let port = NonZeroU16::new(self.port()).filter(|port| port.get() != self.target().port());
        BackendAddress::from(self.backend(web)).or_port(port)
    }

    /// The HTTP service of the lab that is reached this way.
    #[must_use]
    pub fn service(self, lab: &Lab) -> Service {
        let backends = lab.webs.iter().map(|web| self.backend(web)).collect();
        let (vip, port) = (self.vip(), self.target().port());
        let mut service = Service::tcp(self.name(), vip, port, self.mode(), backends);
        if self == Self::NatRangeV4 {
            service.more_ports = 9;
        }
        match self.port() {
            same if same == port => service,
            other => service.with(&format!("target_port = {other}")),
        }
    }
}

/// A lab with the balancer at work on it: a service for each way, each with `settings`, and the
/// decapsulator on the web hosts where a way needs it.
///
/// # Errors
///
/// If it does not come up.
pub fn balanced(options: &Options, ways: &[Way], settings: &str) -> Result<(Lab, Balancer)> {
    let lab = Lab::new(options)?;
    let services: Vec<_> = ways.iter().map(|way| way.service(&lab).with(settings)).collect();
    let balancer = Balancer::start(&lab, &services)?;
    if ways.iter().any(|way| way.overhead() > 0) {
        decapsulate(&lab)?;
    }
    Ok((lab, balancer))
}

/// Each way leads to every web host within so many requests, and the balancer counts as many new flows as each host has
/// answered.
///
/// # Errors
///
/// A request has no answer, a host has none of them, or a count differs.
pub fn all_reach_all(lab: &Lab, balancer: &Balancer, requests: u64) -> Result<()> {
    for way in Way::DIRECT_RETURN {
        let mut answers = BTreeMap::<_, u64>::new();
        for n in 0..requests {
            let page = Connection::open(&lab.client.namespace, way.target(), PATIENCE)
                .and_then(|mut connection| connection.get("/")?.ok())
                .with_context(|| format!("request {n} by {}", way.name()))?;
            *answers.entry(page.text()).or_default() += 1;
        }
        ensure!(answers.len() == lab.webs.len(), "{}: {answers:?}", way.name());
        let status = balancer.status()?;
        let service = status.service(way.name())?;
        for web in &lab.webs {
            let (counted, host) = (service.backend(way.backend(web))?.new_flows, &web.host.name);
            ensure!(counted == answers[host], "{}: {counted}, {answers:?}", way.name());
        }
    }
    Ok(())
}

/// The settings of a node that forwards answers in mode `nat`: those of the guide.
pub const FORWARDING: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/eth0/send_redirects", "0"),
    ("ipv4/conf/all/arp_announce", "2"),
];

/// For mode `nat`: the balancers forward, and what web hosts send to the client from their own addresses goes by
/// the balancer that has the VIP; what they send from other VIPs goes as before.
///
/// # Errors
///
/// If the kernel refuses.
pub fn return_through_balancers(lab: &Lab) -> Result<()> {
    for balancer in [&lab.balancer].into_iter().chain(&lab.peer) {
        balancer.namespace.sysctl(FORWARDING)?;
    }
    let (v4, v6) = NAT_VIPS;
    if lab.peer.is_none() {
        let lines =
            format!("addr add {v4}/32 dev {INTERFACE}\naddr add {v6}/128 dev {INTERFACE} nodad");
        lab.balancer.namespace.ip(&lines)?;
    }
    for web in &lab.webs {
        let namespace = &web.host.namespace;
        namespace.ip(&format!(
            "route add default via {v4} dev {INTERFACE} table {TABLE}\n\
             route add default via {v6} dev {INTERFACE} table {TABLE}"
        ))?;
        let rules = [
            ("-4", web.host.v4.to_string(), lab.client.v4.to_string()),
            ("-6", web.host.v6.to_string(), lab.client.v6.to_string()),
        ];
        for (family, from, to) in rules {
            let mut ip = namespace.command("ip");
            ip.args([family, "rule", "add", "from", &from, "to", &to, "lookup", TABLE]);
            crate::command::run(&mut ip).with_context(|| format!("on {}", web.host.name))?;
        }
    }
    Ok(())
}

/// The web hosts' routes of answers in mode `nat`.
const TABLE: &str = "100";

/// Attaches the decapsulator on every web host.
///
/// # Errors
///
/// If `lbctl` fails.
pub fn decapsulate(lab: &Lab) -> Result<()> {
    let lbctl = crate::balancer::binaries()?.join("lbctl");
    for web in &lab.webs {
        // The hosts share a bpffs; each has a folder of its own in it.
        let pins = lab.pins().join(&web.host.name);
        let mut attach = web.host.namespace.command(&lbctl);
        attach.args(["decap", "attach", "--dev", crate::lab::INTERFACE]);
        attach.args(["--from", "172.16.0.0/16", "100::/64", "--pin-dir"]).arg(pins);
        crate::command::run(&mut attach).with_context(|| format!("on {}", web.host.name))?;
    }
    Ok(())
}
