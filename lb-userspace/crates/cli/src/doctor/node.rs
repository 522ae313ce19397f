//! Checks of a balancer's place in the network, and of its configuration.

use std::{collections::BTreeSet, net::IpAddr};

use lb_api::status::EgressStatus;
use lb_config::{Config, unit::Unit};
use lb_model::{
    desired::Mode,
    hop::{Resolution, Want},
};

use super::{
    Finding, process,
    snapshot::{Chain, Firewall, Mac, Mistake, NodeSnapshot, conf, sysctl},
};

/// The number of VRRP.
pub(super) const VRRP: u64 = 112;
/// The sysctls that keep backends from answering for VIPs on their loopback.
pub(super) const KEEP_SILENT: [(&str, i64); 2] = [("arp_ignore", 1), ("arp_announce", 2)];

pub(super) fn configuration(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "configuration";
    let file = snapshot.file.display();
    match &snapshot.config {
        Ok(config) => {
            let why = "it works, and is probably not meant";
            let doubt = |doubt| Finding::warning(CHECK, format!("{file}:{doubt}"), why);
            let doubts = config.warnings.iter().map(doubt);
            let user = snapshot.unit.as_ref().and_then(Unit::user).unwrap_or("root");
            let why =
                format!("lbd.service runs lbd as {user}, which does not start without this file");
            let refused = snapshot.refused.iter().map(|mistake| finding_of(mistake, &why));
            let mut findings: Vec<_> = doubts.chain(refused).collect();
            if snapshot.refused.is_empty() {
                findings.push(Finding::ok(CHECK, format!("{file}: {}", config.summary())));
            }
            findings
        }
        Err(mistakes) => {
            let why =
                "lbd refuses to start with it, and goes on with the one that it has on a reload";
            mistakes.iter().map(|mistake| finding_of(mistake, why)).collect()
        }
    }
}

fn finding_of(Mistake { text, fix }: &Mistake, why: &str) -> Finding {
    Finding { fix: fix.clone(), ..Finding::error("configuration", text.clone(), why) }
}

/// The VIPs of all services that have one; those of a prefix come by a route.
fn vips_of(config: &Config) -> BTreeSet<IpAddr> {
    let keys = config.desired.services.values().map(|service| service.key);
    keys.filter(|key| key.extent.host_bits == 0).map(|key| key.vip).collect()
}

fn is_vip(config: &Config, address: IpAddr) -> bool {
    config.desired.services.values().any(|service| service.key.vips().contains(address))
}

/// The addresses of all virtual routers.
fn routed(config: &Config) -> BTreeSet<IpAddr> {
    let addresses = config.routers.routers.iter().flat_map(|router| &router.addresses);
    addresses.map(|virtual_address| virtual_address.address).collect()
}

pub(super) fn vips(snapshot: &NodeSnapshot) -> Vec<Finding> {
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let routed = routed(config);
    vips_of(config).into_iter().map(|vip| vip_of(snapshot, config, vip, &routed)).collect()
}

fn vip_of(
    snapshot: &NodeSnapshot,
    config: &Config,
    vip: IpAddr,
    routed: &BTreeSet<IpAddr>,
) -> Finding {
    const CHECK: &str = "vip";
    let holder = snapshot.interfaces.iter().find(|(_, interface)| interface.has(vip));
    let claims = snapshot.claims.as_ref().and_then(|claims| claims.get(&vip));
    let claims: Vec<Mac> = claims.into_iter().flatten().copied().collect();
    let length = if vip.is_ipv4() { 32 } else { 128 };
    // A backend that answers for the VIP takes its clients past the balancer.
    if let Some((backend, mac)) =
        claims.iter().find_map(|mac| Some((backend_at(snapshot, mac)?, mac)))
    {
        let settings = KEEP_SILENT.map(|(name, value)| (conf("all", name), value));
        return Finding::error(
            CHECK,
            format!("{vip} is answered for by the backend {backend} ({})", mac_text(mac)),
            "its clients go to this backend past the balancer, whoever answers first",
        )
        .fixed_by(format!("ssh {backend} {}", sysctl(&settings)));
    }
    let others: Vec<_> = claims.iter().map(mac_text).collect();
    let others = others.join(", ");
    match holder {
        Some((name, interface)) if interface.loopback => {
            Finding::ok(CHECK, format!("{vip} is on {name}: routers send its packets here"))
        }
        Some((name, _)) if snapshot.claims.is_none() => Finding::ok(
            CHECK,
            format!("{vip} is on {name}; whether another host has it is not known"),
        ),
        Some((name, _)) if claims.is_empty() => {
            Finding::ok(CHECK, format!("{vip} is on {name}, and nobody else answers for it"))
        }
        Some((name, _)) => Finding::error(
            CHECK,
            format!("{vip} is on {name}, and {others} answers for it as well"),
            "clients go to either; two nodes are Active, or another host has the address",
        )
        .fixed_by("lbctl vrrp status"),
        None if routed.contains(&vip) && !claims.is_empty() => {
            Finding::ok(CHECK, format!("{vip} is on another node, {others}"))
        }
        None if !claims.is_empty() => Finding::error(
            CHECK,
            format!("{vip} is not on this node; {others} answers for it"),
            "its packets go there instead of here",
        ),
        None if routed.contains(&vip) && snapshot.claims.is_none() => Finding::warning(
            CHECK,
            format!("{vip} is not on this node; whether another node has it is not known"),
            "no interface of the configuration is there and up, or lbctl may not send requests: be root",
        ),
        None if routed.contains(&vip) => Finding::warning(
            CHECK,
            format!("{vip} is on no node: nobody answers for it"),
            "virtual routers hold addresses while lbd runs",
        )
        .fixed_by(match snapshot.daemon {
            Some(_) => "lbctl vrrp status".to_owned(),
            None => process::start(snapshot),
        }),
        None => Finding::warning(
            CHECK,
            format!("{vip} is not on this node, and in no virtual router"),
            "unless a router sends its packets here, nobody can reach it",
        )
        .fixed_by(format!(
            "ip address add {vip}/{length} dev {}",
            config.interfaces.first().map_or("eth0", String::as_str)
        )),
    }
}

/// The backend with this hardware address.
fn backend_at(snapshot: &NodeSnapshot, mac: &Mac) -> Option<IpAddr> {
    snapshot.hops.iter().find_map(|(want, resolution)| match resolution {
        // In a tunnel the address is a router's.
        Resolution::Resolved(hop) if hop.mac == *mac && want.mode == Mode::Dsr => {
            Some(want.address)
        }
        _ => None,
    })
}

fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A node that has VIPs on its loopback, as one of several behind ECMP or one that is a backend as
/// well, must not answer for them on a link.
pub(super) fn arp(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "arp";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let loopback = snapshot.interfaces.values().filter(|interface| interface.loopback);
    let here: Vec<_> = loopback.flat_map(|interface| &interface.addresses).collect();
    if !here.iter().any(|(address, _)| address.is_ipv4() && is_vip(config, *address)) {
        return Vec::new();
    }
    let check = |interface: &String| {
        let missing: Vec<_> = KEEP_SILENT
            .into_iter()
            .filter(|(name, least)| snapshot.sysctls.of_interface(interface, name) < *least)
            .map(|(name, value)| (conf(interface, name), value))
            .collect();
        if missing.is_empty() {
            let found = format!("{interface} keeps silent about the VIPs on the loopback");
            return Finding::ok(CHECK, found);
        }
        Finding::warning(
            CHECK,
            format!("{interface} answers ARP for the VIPs on the loopback"),
            "hosts on the link take this node for the holder of the VIP, whatever routers announce",
        )
        .fixed_by(sysctl(&missing))
    };
    config.interfaces.iter().map(check).collect()
}

/// Strict checks of sources drop what comes by another interface than answers would go by.
pub(super) fn rp_filter(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "rp_filter";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let strict: Vec<_> = config
        .interfaces
        .iter()
        .filter(|interface| snapshot.sysctls.of_interface(interface, "rp_filter") == 1)
        .collect();
    if strict.is_empty() || config.interfaces.len() < 2 {
        let found = "the kernel drops no packet for the interface that it came by";
        return vec![Finding::ok(CHECK, found)];
    }
    // The largest of both counts, and loose (2) is larger than strict.
    let loose: Vec<_> = strict.iter().map(|interface| (conf(interface, "rp_filter"), 2)).collect();
    let names: Vec<_> = strict.iter().map(|name| name.as_str()).collect();
    vec![
        Finding::warning(
            CHECK,
            format!("sources are checked strictly on {}", names.join(", ")),
            "what XDP passes to this node itself is dropped if the way back is by another interface",
        )
        .fixed_by(sysctl(&loose)),
    ]
}

/// The balancer forwards without the kernel's help; only an address that is no VIP may need it.
pub(super) fn gateway(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "forwarding";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let routers = config.routers.routers.iter();
    let plain = routers.flat_map(|router| &router.addresses).map(|one| one.address);
    let plain: Vec<_> = plain.filter(|address| !is_vip(config, *address)).collect();
    let check = |(address, name): (&IpAddr, &str)| {
        if snapshot.sysctls.get(name) == Some(1) {
            return Finding::ok(CHECK, format!("{address} may be a gateway: {name} is on"));
        }
        Finding::warning(
            CHECK,
            format!("{address} is no VIP of a service, and the kernel does not forward"),
            "if hosts have it as their gateway, their packets end here; otherwise all is well",
        )
        .fixed_by(sysctl(&[(name.into(), 1)]))
    };
    let find = |v4: bool| plain.iter().find(|address| address.is_ipv4() == v4);
    [(find(true), "net/ipv4/ip_forward"), (find(false), "net/ipv6/conf/all/forwarding")]
        .into_iter()
        .filter_map(|(address, name)| Some(check((address?, name))))
        .collect()
}

pub(super) fn next_hops(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "next_hop";
    let check = |(want, resolution): (&Want, &Resolution)| {
        let Want { address, mode } = want;
        let why = "no packet gets to this backend; its share goes to the others";
        match resolution {
            Resolution::Resolved(hop) if hop.is_local() => {
                Finding::ok(CHECK, format!("{address} is this node: its own stack has the packets"))
            }
            Resolution::Resolved(hop) if hop.is_raw_ip() => {
                let found =
                    format!("{address} is reached by {}, without a link layer", hop.interface);
                Finding::ok(CHECK, found)
            }
            Resolution::Resolved(hop) => {
                let found =
                    format!("{address} is reached by {} at {}", hop.interface, mac_text(&hop.mac));
                Finding::ok(CHECK, found)
            }
            Resolution::Pending { reason } => {
                Finding::error(CHECK, format!("{address}: {reason}"), why)
                    .fixed_by(format!("ping -c 3 {address}"))
            }
            Resolution::Unreachable { reason } => {
                Finding::error(CHECK, format!("{address} ({mode}): {reason}"), why)
                    .fixed_by(format!("ip route get {address}"))
            }
        }
    };
    snapshot.hops.iter().map(check).collect()
}

/// Whether frames arrive that the program sends, as the `lbd` that runs has found out.
pub(super) fn exits(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "egress";
    let check = |exit: &EgressStatus| {
        let EgressStatus { interface, mac, state, detail } = exit;
        let detail = detail.as_deref().unwrap_or_default();
        match state.as_str() {
            "forwards" => Finding::ok(
                CHECK,
                format!("what the program sends to {mac} by {interface} arrives"),
            ),
            EgressStatus::LOST => Finding::error(
                CHECK,
                format!("what the program sends to {mac} by {interface} is lost: {detail}"),
                "clients get no answer, and health checks, which leave by a socket, don't see it",
            )
            .fixed_by(format!("ip -details -statistics link show dev {interface}")),
            _ => Finding::ok(
                CHECK,
                format!("{mac} by {interface}: it is not known whether frames arrive: {detail}"),
            ),
        }
    };
    snapshot.egress.iter().map(check).collect()
}

/// Packets that clients send with the usual MTU, and their outer header, fit the way to a backend.
pub(super) fn tunnel_mtu(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "tunnel_mtu";
    /// The largest packets of clients where no link on their path has a larger MTU.
    const USUAL: u32 = 1500;
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let least = config.interfaces.iter().filter_map(|name| snapshot.interfaces.get(name));
    let inner = least.map(|interface| interface.mtu).max().unwrap_or(USUAL).min(USUAL);
    let check = |(want, resolution): (&Want, &Resolution)| {
        let (Mode::Ipip, Resolution::Resolved(hop)) = (want.mode, resolution) else { return None };
        if hop.is_local() {
            return None;
        }
        let address = want.address;
        let needed = inner + if address.is_ipv4() { 20 } else { 40 };
        let found = format!("packets of {} bytes get to {address} by {}", hop.mtu, hop.interface);
        if u32::from(hop.mtu) >= needed {
            return Some(Finding::ok(CHECK, found));
        }
        let device = &hop.interface;
        let link = snapshot.interfaces.get(device).map_or(0, |interface| interface.mtu);
        let found = format!("{found}; {needed} are needed for what clients send");
        let why = "clients get an ICMP error that has them send less, and firewalls may drop it";
        let fix = match link < needed {
            true => format!("ip link set dev {device} mtu {needed}"),
            // The link would do: a route, or a learnt path MTU, is smaller.
            false => "ip route flush cache".to_owned(),
        };
        Some(Finding::warning(CHECK, found, why).fixed_by(fix))
    };
    snapshot.hops.iter().filter_map(check).collect()
}

pub(super) fn firewall(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let mut needed = Vec::new();
    if !config.routers.routers.is_empty() {
        needed.push((VRRP, "VRRP (protocol 112)".to_owned(), "meta l4proto 112".to_owned()));
    }
    if let Some(sync) = &config.sync {
        let port = sync.listen.port();
        let rule = format!("udp dport {port}");
        needed.push((port.into(), format!("the flow sync (UDP port {port})"), rule));
    }
    if needed.is_empty() {
        return Vec::new();
    }
    let rules = match &snapshot.firewall {
        Firewall::Known(rules) => rules,
        Firewall::Unknown(why) => {
            let found = format!("the rules of the firewall can't be read: {why}");
            let matters = "it may drop the VRRP and flow sync packets of a pair";
            return vec![Finding::warning(CHECK, found, matters)];
        }
    };
    let drops = |(number, what, rule): (u64, String, String)| {
        let closed: Vec<&Chain> =
            rules.closed.iter().filter(|chain| !chain.accepts.contains(&number)).collect();
        let why = "both nodes would be Active, or know none of the other's flows";
        let finding = |chain: &Chain| {
            let found = format!("the chain `{}` seems to drop {what}", chain.name);
            let fix = format!("nft insert rule {} {rule} accept", chain.name);
            Finding::warning(CHECK, found, why).fixed_by(fix)
        };
        let mut findings: Vec<_> = closed.into_iter().map(finding).collect();
        if findings.is_empty() {
            findings.push(Finding::ok(CHECK, format!("no rule seems to drop {what}")));
        }
        findings
    };
    let mut findings: Vec<_> = needed.into_iter().flat_map(drops).collect();
    if rules.legacy {
        let found = "there are tables of iptables-legacy, which are not looked into";
        let why = "they may drop the VRRP and flow sync packets of a pair";
        findings.push(Finding::warning(CHECK, found, why).fixed_by("iptables-legacy -S INPUT"));
    }
    findings
}
