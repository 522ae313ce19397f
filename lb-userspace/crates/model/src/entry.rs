//! The entry of a backend in the map: what the program needs to send a packet there.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use lb_common::{
    abi::{self, Backend, Destination, ReverseKey, backend_flags, proto},
    nat,
    rewrite::ipv4_template_sum,
    wide::WideKey,
};
use zerocopy::FromZeros as _;

use crate::{
    backend_address::BackendAddress,
    desired::{Extent, Mode, Protocol, Service, ServiceKey},
    hop::NextHop,
    settings::Tunnel,
};

/// Bytes that an outer IPv4 header adds (RFC 2003).
const OUTER_V4: u16 = 20;
/// Bytes that an outer IPv6 header adds (RFC 2473).
const OUTER_V6: u16 = 40;

/// An address as the maps have it: IPv4 as an IPv4-mapped IPv6 address.
#[must_use]
#[inline]
pub const fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => abi::mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The inverse of [`address`].
#[must_use]
#[inline]
pub fn ip_of(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// The backend that an entry is of.
#[must_use]
#[inline]
pub fn backend_of(entry: &Backend) -> BackendAddress {
    BackendAddress { ip: ip_of(entry.address), port: NonZeroU16::new(entry.port.get()) }
}

/// An entry without a way to the backend.
#[must_use]
pub fn blank(mode: Mode, to: BackendAddress, tunnel: &Tunnel) -> Backend {
    let mut entry = Backend::new_zeroed();
    entry.l2_len = 14;
    entry.address = address(to.ip);
    entry.port = to.port.map_or(0, NonZeroU16::get).into();
    if let IpAddr::V4(to) = to.ip {
        entry.address_v4 = to.octets();
    } else {
        entry.flags |= backend_flags::V6;
    }
    if mode != Mode::Ipip {
        return entry;
    }
    entry.flags |= backend_flags::TUNNEL;
    match to.ip {
        IpAddr::V4(to) => {
            let (prefix, length) = tunnel.source_v4;
            entry.source_mask = varying(length, 32);
            let source = Ipv4Addr::from(u32::from(prefix) & !entry.source_mask);
            entry.source_v4 = source.octets();
            entry.outer_sum = ipv4_template_sum(entry.source_v4, to.octets());
        }
        IpAddr::V6(_) => {
            let (prefix, length) = tunnel.source_v6;
            entry.source_mask = varying(length, 128);
            let source = u128::from(prefix) & !u128::from(entry.source_mask);
            entry.source = source.to_be_bytes();
        }
    }
    entry
}

/// `blank` for a backend of `service`, which takes translated packets in mode `nat`.
#[must_use]
pub fn of_service(service: &Service, to: BackendAddress, tunnel: &Tunnel) -> Backend {
    let mut entry = blank(service.mode, to, tunnel);
    if service.mode == Mode::Nat {
        let (key, ports) = (service.key, service.key.ports());
        entry.flags |= backend_flags::NAT;
        entry.vip = address(key.vip);
        entry.proto = key.protocol.number();
        if ports.is_one() {
            entry.vip_port = key.port.into();
        } else {
            (entry.first_port, entry.last_port) = (key.port.into(), ports.last().into());
        }
    }
    entry
}

/// The key in `WIDE_SERVICES` of a service with several ports or VIPs; none of one that has one of each.
#[must_use]
pub fn wide_key(key: &ServiceKey) -> Option<WideKey> {
    (!key.extent.is_one()).then(|| WideKey {
        address: address(key.vip),
        first: key.port.into(),
        last: key.ports().last().into(),
        bits: 128 - key.extent.host_bits,
        proto: key.protocol.number(),
        reserved: [0; 2],
    })
}

/// The VIP and port of a service that a flow's key has.
#[must_use]
pub fn asked(key: &ServiceKey, destination: Destination) -> SocketAddr {
    let mut vip = address(key.vip);
    vip[14..].copy_from_slice(&destination.host);
    SocketAddr::new(ip_of(vip), destination.port.get())
}

/// The inverse of [`wide_key`].
#[must_use]
pub fn of_wide_key(key: &WideKey) -> ServiceKey {
    let protocol = if key.proto == proto::UDP { Protocol::Udp } else { Protocol::Tcp };
    let more_ports = key.last.get().saturating_sub(key.first.get());
    let extent = Extent { host_bits: 128_u8.saturating_sub(key.bits), more_ports };
    ServiceKey { vip: ip_of(key.address), port: key.first.get(), protocol, extent }
}

/// The source of the answers of a backend in mode `nat` that listens at one port; none of others.
#[must_use]
pub fn reverse_key(entry: &Backend) -> Option<ReverseKey> {
    let (address, port, proto) = (entry.address, nat::port_of(entry), entry.proto);
    let is_one = nat::is_nat(entry) && entry.last_port.get() == 0;
    is_one.then_some(ReverseKey { address, port, proto, reserved: 0 })
}

/// The sources of the answers of a backend that keeps the clients' port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseRange {
    /// The backend's address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// The protocol's number.
    pub proto: u8,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl ReverseRange {
    /// Whether a source is one of them.
    #[must_use]
    pub fn has(&self, source: &ReverseKey) -> bool {
        (self.address, self.proto) == (source.address, source.proto)
            && (self.first..=self.last).contains(&source.port.get())
    }
}

/// The sources of the answers of a backend in mode `nat` that keeps the clients' port; none of others.
#[must_use]
pub fn reverse_range(entry: &Backend) -> Option<ReverseRange> {
    let (address, proto) = (entry.address, entry.proto);
    let (first, last) = (entry.first_port.get(), entry.last_port.get());
    let is_range = nat::is_nat(entry) && last != 0;
    is_range.then_some(ReverseRange { address, proto, first, last })
}

/// The bits behind a prefix, among the low 32.
fn varying(length: u8, bits: u8) -> u32 {
    let host_bits = u32::from(bits.saturating_sub(length)).min(32);
    u32::MAX.checked_shr(32 - host_bits).unwrap_or(0)
}

/// `blank` with the way that netlink has found.
#[must_use]
pub fn by_hop(blank: Backend, hop: &NextHop) -> Backend {
    let mut entry = blank;
    let length = hop.l2.len().min(entry.l2.len());
    entry.l2[..length].copy_from_slice(&hop.l2[..length]);
    entry.l2_len = length as u8;
    entry.ifindex = hop.ifindex;
    if hop.is_local() {
        // No header is put before what this node takes itself.
        entry.mtu = hop.mtu;
        entry.flags |= backend_flags::USABLE;
        return entry;
    }
    let outer = match (entry.flags & backend_flags::TUNNEL, entry.flags & backend_flags::V6) {
        (0, _) => 0,
        (_, 0) => OUTER_V4,
        _ => OUTER_V6,
    };
    entry.mtu = hop.mtu.saturating_sub(outer);
    entry.flags |= backend_flags::USABLE;
    entry
}

/// `blank` with the way that another entry of the same backend has.
#[must_use]
pub const fn on_way_of(blank: Backend, other: &Backend) -> Backend {
    let flags = blank.flags | other.flags & backend_flags::USABLE;
    let Backend { l2, l2_len, ifindex, mtu, .. } = *other;
    Backend { l2, l2_len, ifindex, mtu, flags, ..blank }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(mtu: u16) -> NextHop {
        let l2 = [[2_u8, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]].concat();
        let l2 = [l2, vec![8, 0]].concat();
        NextHop { ifindex: 7, interface: "eth0".into(), mac: [2, 0, 0, 0, 0, 9], l2, mtu }
    }

    #[test]
    fn a_dsr_entry_has_the_link_header_and_the_whole_mtu() {
        let to = "10.0.0.9:80".parse().unwrap();
        let entry = by_hop(blank(Mode::Dsr, to, &Tunnel::default()), &hop(1500));
        assert_eq!((entry.l2_len, entry.ifindex, entry.mtu), (14, 7, 1500));
        assert_eq!(&entry.l2[..14], hop(1500).l2);
        assert_eq!(entry.flags, backend_flags::USABLE);
        assert_eq!(backend_of(&entry), to);
    }

    #[test]
    fn an_entry_of_this_node_has_no_header_and_takes_every_packet() {
        for mode in [Mode::Dsr, Mode::Ipip] {
            let to = "10.0.0.5".parse().unwrap();
            let entry = by_hop(blank(mode, to, &Tunnel::default()), &NextHop::local());
            assert!(entry.is_local() && entry.flags & backend_flags::USABLE != 0, "{entry:?}");
            assert_eq!((entry.ifindex, entry.mtu), (abi::LOOPBACK, u16::MAX));
            // As its own flows survive a start, when routes are not known yet.
            assert_eq!(on_way_of(blank(mode, to, &Tunnel::default()), &entry), entry);
        }
    }

    #[test]
    fn an_ipip_entry_has_the_outer_header() {
        let to = "10.1.2.3".parse().unwrap();
        let entry = by_hop(blank(Mode::Ipip, to, &Tunnel::default()), &hop(1500));
        assert_eq!(entry.flags, backend_flags::USABLE | backend_flags::TUNNEL);
        assert_eq!(
            (entry.mtu, entry.source_v4, entry.source_mask),
            (1480, [172, 16, 0, 0], 0xffff)
        );
        // The header, written out, sums to the same.
        let header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0, 172, 16, 0, 0, 10, 1, 2, 3_u8];
        let sum = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
        assert_eq!(entry.outer_sum, sum);
    }

    #[test]
    fn an_ip6ip6_entry_varies_the_low_bits_behind_the_prefix() {
        let to = "fd00::3".parse().unwrap();
        let entry = by_hop(blank(Mode::Ipip, to, &Tunnel::default()), &hop(1500));
        assert_eq!((entry.mtu, entry.source_mask), (1460, u32::MAX));
        assert_eq!(entry.source[..2], [1, 0]);
        let flags = backend_flags::USABLE | backend_flags::TUNNEL | backend_flags::V6;
        assert_eq!(entry.flags, flags);
        for (length, mask) in [(96, u32::MAX), (112, 0xffff), (128, 0), (0, u32::MAX)] {
            let tunnel =
                Tunnel { source_v6: ("fd00::".parse().unwrap(), length), ..Tunnel::default() };
            assert_eq!(blank(Mode::Ipip, to, &tunnel).source_mask, mask, "/{length}");
        }
    }
}
