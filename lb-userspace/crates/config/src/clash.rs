//! The rules between the virtual routers of a configuration, and between them and its services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_model::{
    router::{Router, RouterKey, Tracked, split},
    rules::Violation,
    units::nearest,
};

use super::{
    router::Read,
    service::Services,
    tree::{Field, Problems},
};

/// Checks the rules between routers, and between them and the services; warns of settings that are
/// probably not meant.
pub(super) fn check(
    routers: &[Read<'_>],
    services: &Services,
    interfaces: &[String],
    doubts: &Problems<'_>,
) {
    let mut names = BTreeSet::new();
    let mut keys: BTreeMap<RouterKey, (&str, &str)> = BTreeMap::new();
    let mut holders: BTreeMap<(IpAddr, Option<&str>), &str> = BTreeMap::new();
    let mut devices: BTreeMap<&str, &str> = BTreeMap::new();
    for read in routers {
        let router = &read.router;
        let name = router.name.as_str();
        if let (false, Some(field)) = (names.insert(name), &read.name) {
            field.refuse(format!("virtual router {name} is there already; give each its own name"));
        }
        if let Some(field) = &read.vrid
            && !router.interface.is_empty()
        {
            // The RFC distinguishes them by the link too; but a second path may lead to the same link,
            // and nodes and orders name a router by its key alone.
            let (key, interface) = (router.key, router.interface.as_str());
            if let Some((first, on)) = keys.insert(key, (name, interface)) {
                field.refuse(format!(
                    "{key} is virtual router {first} already, on {on}; give each one of the node \
                     its own"
                ));
            }
        }
        for (vip, field) in router.addresses.iter().zip(&read.addresses) {
            check_vip(vip.address, router, field, &mut holders, services);
        }
        if let (Some(mac), Some(field)) = (&router.virtual_mac, &read.virtual_mac) {
            let device = mac.interface.as_str();
            if let Some(first) = devices.insert(device, name) {
                field.refuse(format!(
                    "{device} is the device of virtual router {first} already; give a name of its own, as virtual_mac = \"vrrp.{name}\""
                ));
            } else if device == router.interface || interfaces.iter().any(|name| name == device) {
                field.refuse(format!("{device} is an interface of the node; give another name"));
            }
        }
        check_tracks(read, services);
        doubt_forwarding(read, interfaces, doubts);
        doubt_first_address(read, doubts);
    }
    check_prefixes(routers, services);
    doubt_services(routers, services, doubts);
}

/// The VIPs of a service move together.
fn check_prefixes(routers: &[Read<'_>], services: &Services) {
    for (name, service) in &services.desired.services {
        let all = routers.iter().map(|read| &read.router);
        let Some(split) = split(name, &service.key, all) else { continue };
        let fields = routers.iter().filter(|read| read.router.name == split.second.name);
        let fields = fields.flat_map(|read| read.router.addresses.iter().zip(&read.addresses));
        for (_, field) in fields.filter(|(at, _)| at.address == split.vip) {
            field.refuse(split.to_string());
        }
    }
}

fn check_vip<'r>(
    vip: IpAddr,
    router: &'r Router,
    field: &Field<'_>,
    holders: &mut BTreeMap<(IpAddr, Option<&'r str>), &'r str>,
    services: &Services,
) {
    // A link-local address is another one on each link.
    let is_local = matches!(vip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let link = is_local.then_some(router.interface.as_str());
    if let Some(first) = holders.insert((vip, link), &router.name) {
        field.refuse(format!("{vip} is an address of virtual router {first} already"));
    }
    let all = services.desired.services.iter();
    let mut backends = all.filter(|(_, service)| service.backends.keys().any(|at| at.ip == vip));
    if let Some((service, _)) = backends.next() {
        field.refuse(format!("{vip} is a backend of service {service}, and can't be a VIP"));
    }
}

fn check_tracks(read: &Read<'_>, services: &Services) {
    let known = || services.desired.services.keys().chain(services.incomplete.services.keys());
    let named = read.router.tracks.iter().filter_map(|track| match &track.what {
        Tracked::Service { name, .. } => Some(name),
        _ => None,
    });
    for (name, field) in named.zip(&read.services) {
        if !known().any(|known| known == name) {
            field.refuse(match nearest(name, known().map(String::as_str)) {
                Some(near) => format!("no service {name}; did you mean {near}?"),
                None => format!("no service {name}; add a [[service]] of this name"),
            });
        }
    }
}

/// A router whose interface has no program would be in fault for ever.
fn doubt_forwarding(read: &Read<'_>, interfaces: &[String], doubts: &Problems<'_>) {
    let router = &read.router;
    let tracks = router.tracks.iter().any(|track| track.what == Tracked::Forwarding);
    let below = router.interface.rsplit_once('.').map_or("", |(below, _)| below);
    let has_program = interfaces.iter().any(|name| *name == router.interface || name == below);
    if let (true, false, Some(field)) = (tracks, has_program, &read.interface) {
        doubts.push_at(
            field,
            format!(
                "{} is none of `interfaces` ({}); unless it is a VLAN on one or a bridge over one, nothing is forwarded \
                 there, and the router stays in fault: add it, or track_forwarding = false",
                router.interface,
                interfaces.join(", ")
            ),
        );
    }
}

/// RFC 9568, 5.2.9: "the first address MUST be the IPv6 link-local address associated with the Virtual
/// Router". `lbd` needs none, since it routes for no host; others may.
fn doubt_first_address(read: &Read<'_>, doubts: &Problems<'_>) {
    let mut advertised =
        read.router.addresses.iter().zip(&read.addresses).filter(|(vip, _)| vip.advertised);
    if let Some((vip, field)) = advertised.next()
        && let IpAddr::V6(address) = vip.address
        && !address.is_unicast_link_local()
    {
        doubts.push_at(
            field,
            format!(
                "{address} is the first address of an IPv6 router and not link-local, which RFC 9568 (5.2.9) \
                 asks for: routers of other makers may refuse its advertisements; put one \
                 first, as \"fe80::{:x}\"",
                read.router.key.vrid
            ),
        );
    }
}

/// Where routers have VIPs as addresses, one that none has is probably forgotten.
fn doubt_services(routers: &[Read<'_>], services: &Services, doubts: &Problems<'_>) {
    if routers.is_empty() {
        return;
    }
    let of_routers: BTreeSet<IpAddr> = routers
        .iter()
        .flat_map(|read| read.router.addresses.iter().map(|vip| vip.address))
        .collect();
    for (name, service) in &services.desired.services {
        let vips = service.key.vips();
        if of_routers.range(vips.first()..=vips.last()).next().is_some() {
            continue;
        }
        let message = match vips.first() == vips.last() {
            true => format!("{vips} is an address of no virtual router: no takeover moves it"),
            false => format!(
                "no virtual router has an address of {vips}: no takeover moves it; give one of them to a router"
            ),
        };
        let violation = Violation { service: name.clone(), backend: None, field: "vip", message };
        let (offset, path) = services.places.find(&violation).unwrap_or_default();
        doubts.push(offset, path, violation.message);
    }
}
