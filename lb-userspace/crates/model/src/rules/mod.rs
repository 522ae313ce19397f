//! The rules for the desired state as a whole, for every source of an edit.

pub mod check;
mod extent;
mod nat;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::{
    backend_address::{BackendAddress, BackendRef},
    desired::{Admin, Desired, Mode, Ports, Protocol, Service, ServiceKey, UdpPolicy},
    settings::Limits,
    units::format_duration,
};

pub(crate) use self::extent::Owners;

/// The largest ring: the largest prime below 2^20.
pub const MAX_RING_SLOTS: u32 = 1_048_573;
/// The idle timeouts that stamps of 16 bits of seconds can distinguish from never.
pub const IDLE_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(12 * 3600);
/// How long a drain may take.
pub const DRAIN_DEADLINE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
/// How long flows of a backend have no packet when its drain is over by estimate.
pub const DRAIN_SILENCE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(12 * 3600);
/// Slots for each backend, from which on shares are within a percent of the weights.
pub(crate) const SLOTS_PER_BACKEND: u32 = 100;

/// Something that must not be, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The service; empty if it is none in particular.
    pub service: String,
    /// The backend, if it is one in particular.
    pub backend: Option<BackendAddress>,
    /// The field, as the configuration names it.
    pub field: &'static str,
    /// The mistake, and its remedy.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.service.is_empty() {
            write!(f, "service {}: ", self.service)?;
        }
        if let Some(backend) = self.backend {
            write!(f, "backend {backend}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with `desired`.
#[must_use]
pub fn violations(desired: &Desired, limits: &Limits) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    let mut keys: BTreeMap<ServiceKey, &str> = BTreeMap::new();
    for (name, service) in &desired.services {
        found.in_service(name, service);
        if let Some(first) = keys.insert(service.key, name) {
            let message = format!("{} is service {first} already", service.key);
            found.push(name, None, "vip", message);
        }
    }
    found.in_ranges(desired);
    let owners = Owners::of(desired);
    for (name, service) in &desired.services {
        for address in service.backends.keys() {
            if let Some(owner) = owners.of_vip(address.ip) {
                let message = format!(
                    "{} is a VIP of service {owner}; give the backend's own address",
                    address.ip
                );
                found.push(name, Some(*address), "address", message);
            }
        }
    }
    found.in_nat(desired);
    let backends: usize = desired.services.values().map(|service| service.backends.len()).sum();
    for (what, count, limit) in [
        ("services", desired.services.len(), limits.services),
        ("backends", backends, limits.backends),
    ] {
        if count > limit as usize {
            let message = format!("{count} {what}, but limits.{what} is {limit}; raise it");
            found.push("", None, what, message);
        }
    }
    found.0
}

/// All mistakes of a state that is to be in force, where the configuration's file has `configured`.
#[must_use]
pub fn violations_beside(
    configured: &Desired,
    wanted: &Desired,
    limits: &Limits,
) -> Vec<Violation> {
    let mut found = violations(wanted, limits);
    for (name, service) in &wanted.services {
        let own = configured.services.get(name);
        found.extend(check::foreign_commands(name, service, own));
        let Some(deadline) = service.drain_deadline else { continue };
        let message = check::within(&format_duration(deadline), deadline, &DRAIN_DEADLINE).err();
        found.extend(message.map(|message| Violation {
            service: name.clone(),
            backend: None,
            field: "drain_deadline",
            message: format!("drain_deadline: {message}"),
        }));
    }
    found
}

/// Everything that is wrong with one service in itself.
#[must_use]
pub fn violations_of(name: &str, service: &Service) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    found.in_service(name, service);
    found.0
}

/// Settings that work and are probably not meant.
#[must_use]
pub fn doubts(desired: &Desired) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    for (name, service) in &desired.services {
        let wanted = SLOTS_PER_BACKEND as usize * service.backends.len();
        if (service.ring_slots as usize) < wanted
            && service.ring_slots as usize >= service.backends.len()
        {
            let message = format!(
                "{} slots for {} backends make shares coarse; at least {wanted} are recommended",
                service.ring_slots,
                service.backends.len(),
            );
            found.push(name, None, "ring_slots", message);
        }
        if service.backends.is_empty() {
            let message = "it has no backend, so its connections are dropped; add one with \
                           [[service.backend]] or 'lbctl backend add'";
            found.push(name, None, "", message.into());
        }
    }
    found.0
}

/// Reads an address.
///
/// # Errors
///
/// The remedy.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.parse::<std::net::SocketAddr>() {
        Ok(_) => {
            format!("`{text}` has a port in it; write the address alone")
        }
        Err(_) => {
            format!("`{text}` is no IP address; write one as \"10.0.0.11\" or \"fd00::11\"")
        }
    })
}

struct Found(Vec<Violation>);

impl Found {
    fn push(
        &mut self,
        service: &str,
        backend: Option<BackendAddress>,
        field: &'static str,
        message: String,
    ) {
        self.0.push(Violation { service: service.into(), backend, field, message });
    }

    fn in_service(&mut self, name: &str, service: &Service) {
        if let Err(message) = check_name(name) {
            self.push(name, None, "name", message);
        }
        let vips = service.key.vips();
        if let Err(message) = check_address(vips.first()).and_then(|()| check_address(vips.last()))
        {
            self.push(name, None, "vip", message);
        }
        if service.key.port == 0 {
            let message = "port 0; a number from 1 to 65535 is expected".into();
            self.push(name, None, "port", message);
        }
        self.in_extent(name, service);
        if let Err(message) = check_ring(service.ring_slots, service.backends.len()) {
            self.push(name, None, "ring_slots", message);
        }
        if !IDLE_TIMEOUT.contains(&service.idle_timeout) {
            let message = "an idle timeout is from 1s to 12h".into();
            self.push(name, None, "idle_timeout", message);
        }
        let silence = service.drain_silence;
        if let Err(message) = check::within(&format_duration(silence), silence, &DRAIN_SILENCE) {
            self.push(name, None, "drain_silence", format!("drain_silence: {message}"));
        }
        if service.key.protocol == Protocol::Tcp && service.udp_policy != UdpPolicy::default() {
            let message = "`udp` is for services with protocol = \"udp\"; remove it".into();
            self.push(name, None, "udp", message);
        }
        let remedy = "leave it out, and let the backends listen";
        let target = service.target_port;
        let target = target.map(|port| check_port(service, port.get(), "target_port", remedy));
        if let Some(Err(message)) = target {
            self.push(name, None, "target_port", message);
        }
        self.0.extend(check::violations_of_policy(name, service));
        self.in_backends(name, service);
    }

    fn in_backends(&mut self, name: &str, service: &Service) {
        let mut sockets: BTreeMap<SocketAddr, BackendAddress> = BTreeMap::new();
        let mut names: BTreeMap<&str, BackendAddress> = BTreeMap::new();
        for (address, backend) in &service.backends {
            // One that leaves may be where its successor is: a port that it is now given makes it another backend.
            if !matches!(backend.admin, Admin::Removing { .. })
                && let Some(first) = sockets.insert(address.socket(service.key.port), *address)
            {
                let message = format!(
                    "{address} is the backend {first} already; give each once, with its weight"
                );
                self.push(name, Some(*address), "address", message);
            }
            if let Some(own) = &backend.name {
                if let Err(message) = check_backend_name(own) {
                    self.push(name, Some(*address), "name", message);
                }
                if let Some(first) = names.insert(own, *address) {
                    let message = format!(
                        "name `{own}`: it is that of {first} already; give each backend its own"
                    );
                    self.push(name, Some(*address), "name", message);
                }
            }
            let fits = check_address(address.ip)
                .and_then(|()| check_family(service.mode, service.key.vip, address.ip))
                .and_then(|()| match address.port {
                    // That of the service is refused there.
                    Some(port) if Some(port) != service.target_port => check_port(
                        service,
                        port.get(),
                        "port",
                        "give the address without a port, and let the backend listen",
                    ),
                    _ => Ok(()),
                });
            if let Err(message) = fits {
                self.push(name, Some(*address), "address", message);
            }
        }
    }
}

/// A service's name: it is a part of paths, of metrics' labels and of commands.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) || name.starts_with(['-', '.'])
    {
        return Err(format!(
            "name `{name}`; a name is 1 to 63 letters, digits, `-`, `_` or `.`, and begins with none of `-.`"
        ));
    }
    Ok(())
}

/// A backend's name: it stands for its address.
fn check_backend_name(name: &str) -> Result<(), String> {
    check_name(name)?;
    match BackendRef::from(name.to_owned()) {
        BackendRef::Name(_) => Ok(()),
        BackendRef::Address(_) => Err(format!("name `{name}` is an address; give it a letter")),
    }
}

/// An address that a VIP or a backend can have.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn check_address(address: IpAddr) -> Result<(), String> {
    let kind = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            let v4 = v6.to_ipv4_mapped().map(|v4| v4.to_string()).unwrap_or_default();
            return Err(format!("{address} is an IPv4-mapped address; write {v4}"));
        }
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if address.is_loopback() => "a loopback address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return Ok(()),
    };
    Err(format!("{address} is {kind}; a unicast address of one host is expected"))
}

/// Whether a backend's family goes with the mode and the VIP's.
fn check_family(mode: Mode, vip: IpAddr, backend: IpAddr) -> Result<(), String> {
    match (mode, vip.is_ipv4(), backend.is_ipv4()) {
        (Mode::Dsr, true, false) => Err(format!(
            "{backend} is IPv6 and the VIP {vip} IPv4; dsr sends packets on unchanged: give the backend's IPv4 address, or use mode ipip"
        )),
        (Mode::Dsr, false, true) => Err(format!(
            "{backend} is IPv4 and the VIP {vip} IPv6; dsr sends packets on unchanged: give the backend's IPv6 address"
        )),
        (Mode::Nat, true, false) | (Mode::Nat, false, true) => Err(format!(
            "{backend} is of another address family than the VIP {vip}; nat translates addresses within a family: \
             give the backend's other address"
        )),
        (Mode::Ipip, false, true) => Err(format!(
            "{backend} is IPv4 and the VIP {vip} IPv6; IPv6 in IPv4 is not supported: give the backend's IPv6 address"
        )),
        _ => Ok(()),
    }
}

/// Whether packets reach a port of backends, which the key `key` gives: only a translation of addresses changes it.
fn check_port(service: &Service, target: u16, key: &str, remedy: &str) -> Result<(), String> {
    let (mode, port) = (service.mode, service.key.ports());
    if port == Ports::one(target) || (mode == Mode::Nat && port.is_one()) {
        return Ok(());
    }
    Err(format!(
        "{key} {target}, and clients connect to {port}: {mode} sends packets on with the port that they have; \
         {remedy} at {port}{}",
        if port.is_one() { ", or use mode nat" } else { "" }
    ))
}

/// Whether a ring of as many slots works for as many backends.
fn check_ring(slots: u32, backends: usize) -> Result<(), String> {
    if slots > MAX_RING_SLOTS {
        return Err(format!("{slots} slots; at most {MAX_RING_SLOTS} are possible"));
    }
    if !is_prime(slots) {
        let next = (slots..=MAX_RING_SLOTS).find(|slots| is_prime(*slots));
        let next = next.unwrap_or(MAX_RING_SLOTS);
        return Err(format!("{slots} slots; Maglev needs a prime: the next one is {next}"));
    }
    if (slots as usize) < backends {
        return Err(format!(
            "{slots} slots for {backends} backends; give at least one slot each, better {SLOTS_PER_BACKEND}"
        ));
    }
    Ok(())
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Backend;

    pub(super) fn service(vip: &str, mode: Mode, backends: &[&str]) -> Service {
        let mut service = Service::new(vip.parse().expect(vip), 80, mode);
        for address in backends {
            let backend = Backend::default();
            service.backends.insert(address.parse().expect(address), backend);
        }
        service
    }

    pub(super) fn messages(services: &[(&str, Service)]) -> Vec<String> {
        let services = services.iter().map(|(name, service)| ((*name).into(), service.clone()));
        let desired = Desired { services: services.collect() };
        violations(&desired, &Limits::default()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn families_that_go_together_pass() {
        for (vip, mode, backend) in [
            ("10.0.0.100", Mode::Dsr, "10.0.0.1"),
            ("fd00::100", Mode::Dsr, "fd00::1"),
            ("10.0.0.100", Mode::Ipip, "10.0.0.1"),
            ("10.0.0.100", Mode::Ipip, "fd00::1"),
            ("fd00::100", Mode::Ipip, "fd00::1"),
        ] {
            assert_eq!(
                messages(&[("web", service(vip, mode, &[backend]))]),
                [""; 0],
                "{vip} {mode} {backend}"
            );
        }
    }

    #[test]
    fn families_that_do_not_are_refused() {
        for (vip, mode, backend) in [
            ("10.0.0.100", Mode::Dsr, "fd00::1"),
            ("fd00::100", Mode::Dsr, "10.0.0.1"),
            ("fd00::100", Mode::Ipip, "10.0.0.1"),
        ] {
            let found = messages(&[("web", service(vip, mode, &[backend]))]);
            assert_eq!(found.len(), 1, "{vip} {mode} {backend}: {found:?}");
            assert!(found[0].contains("give the backend's"), "{found:?}");
        }
    }

    #[test]
    fn a_port_that_packets_do_not_reach_a_backend_twice_and_a_name_twice_are_refused() {
        assert_eq!(
            messages(&[("web", service("10.0.0.100", Mode::Dsr, &["10.0.0.1:80"]))]),
            [""; 0]
        );
        let twice = service("10.0.0.100", Mode::Dsr, &["10.0.0.1", "10.0.0.1:80"]);
        assert_eq!(
            messages(&[("web", twice)]),
            [
                "service web: backend 10.0.0.1:80: 10.0.0.1:80 is the backend 10.0.0.1 already; give each once, with its weight"
            ]
        );
        for mode in [Mode::Dsr, Mode::Ipip] {
            let found = messages(&[("web", service("10.0.0.100", mode, &["10.0.0.1:8080"]))]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(&format!("{mode} sends packets on")), "{found:?}");
        }
        for backends in [&[][..], &["10.0.0.1:8080", "10.0.0.2:8080"]] {
            let mut target = service("10.0.0.100", Mode::Dsr, backends);
            target.target_port = std::num::NonZeroU16::new(8080);
            assert_eq!(
                messages(&[("web", target)]),
                [
                    "service web: target_port 8080, and clients connect to 80: dsr sends packets on with the port that they have; leave it out, and let the backends listen at 80, or use mode nat"
                ]
            );
        }
        let mut named = service("10.0.0.100", Mode::Dsr, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        for (backend, name) in named.backends.values_mut().zip(["a", "a", "10.0.0.1"]) {
            backend.name = Some(name.into());
        }
        let found = messages(&[("web", named)]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("name `a`: it is that of 10.0.0.1"), "{found:?}");
        assert!(found[1].contains("name `10.0.0.1` is an address"), "{found:?}");
    }

    #[test]
    fn ring_sizes_are_prime_and_large_enough() {
        assert!(check_ring(65_537, 500).is_ok());
        assert!(check_ring(MAX_RING_SLOTS, 1).is_ok());
        assert!(check_ring(65_536, 1).is_err_and(|message| message.contains("65537")));
        assert!(check_ring(2, 3).is_err());
        assert!(check_ring(1_048_583, 1).is_err());
        assert!(check_ring(0, 0).is_err() && check_ring(1, 0).is_err());
    }

    #[test]
    fn addresses_of_no_host_are_refused() {
        for address in [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "127.0.0.1",
            "::",
            "ff02::1",
            "fe80::1",
            "::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(check_address(address.parse().expect(address)).is_err(), "{address}");
        }
    }

    #[test]
    fn two_services_on_one_key_and_a_backend_on_a_vip_are_refused() {
        let found = messages(&[
            ("a", service("10.0.0.100", Mode::Dsr, &["10.0.0.1"])),
            ("b", service("10.0.0.100", Mode::Dsr, &["10.0.0.100"])),
        ]);
        assert_eq!(
            found,
            [
                "service b: tcp 10.0.0.100:80 is service a already",
                "service b: backend 10.0.0.100: 10.0.0.100 is a VIP of service b; give the backend's own address",
            ]
        );
    }

    #[test]
    fn limits_hold() {
        let desired = Desired {
            services: [("a".into(), service("10.0.0.100", Mode::Dsr, &["10.0.0.1", "10.0.0.2"]))]
                .into(),
        };
        let limits = Limits { services: 1, backends: 1, ..Limits::default() };
        let found = violations(&desired, &limits);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, "2 backends, but limits.backends is 1; raise it");
    }
}
