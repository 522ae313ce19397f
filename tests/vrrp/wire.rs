//! The sockets of virtual routers on a real link: advertisements as raw IP, announcements and their
//! receivers, a virtual MAC address, and an interface that goes away.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    num::NonZeroU8,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{can_run, namespace::Namespace, wait};
use lb_model::router::{Checksum, Family, Version};
use lb_vrrp::{
    announce::{Claim, Mac},
    auth::Hmac,
    packet::{self, Advertisement, Packet, Proof},
    sockets::{Announcer, BUFFER, Receiver, Sender, SocketInterface, Watch},
};
use socket2::{Domain, Protocol, Socket, Type};

/// How long anything may take that happens at once.
const SOON: Duration = Duration::from_secs(5);

const VIPS: [&str; 2] = ["10.0.0.100", "2001:db8::100"];
const MAC: Mac = [2, 0, 0, 0, 0, 0x77];

/// Two hosts on a link, each with an interface `eth0`.
struct HostPair {
    a: Namespace,
    b: Namespace,
}

impl HostPair {
    fn new() -> Result<Option<Self>> {
        if !can_run() {
            return Ok(None);
        }
        let pair = Self { a: Namespace::new("a")?, b: Namespace::new("b")? };
        pair.connect()?;
        Ok(Some(pair))
    }

    fn connect(&self) -> Result<()> {
        let peer = self.b.name();
        self.a.ip(&format!("link add eth0 type veth peer name eth0 netns {peer}"))?;
        for (host, n) in [(&self.a, 1), (&self.b, 2)] {
            host.ip(&format!(
                "link set eth0 addrgenmode none\n\
                 addr add 10.0.0.{n}/24 dev eth0\n\
                 addr add fe80::{n}/64 dev eth0 nodad\n\
                 addr add 2001:db8::{n}/64 dev eth0 nodad\n\
                 link set eth0 up"
            ))?;
        }
        // Until then there is no route by it.
        wait::until_true(SOON, "the link is up", || {
            Ok(self.a.ip("link show eth0")?.contains("state UP"))
        })
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address of this test")
}

/// The address of host `n` that routers of a family send from.
fn host(n: u8, family: Family) -> IpAddr {
    ip(&match family {
        Family::V4 => format!("10.0.0.{n}"),
        Family::V6 => format!("fe80::{n}"),
    })
}

fn interface(host: &Namespace, name: &str) -> Result<SocketInterface> {
    let shown = host.ip(&format!("link show {name}"))?;
    let index = shown.split(':').next().unwrap_or_default().trim().parse().context(shown)?;
    Ok(SocketInterface { name: name.into(), index })
}

fn sender(host: &Namespace, name: &str, source: IpAddr) -> Result<Sender> {
    let interface = interface(host, name)?;
    let open = host.enter(|| Sender::open(&interface, source))?;
    open.with_context(|| format!("open a sender from {source}"))
}

fn receiver(host: &Namespace, family: Family, vrid: u8) -> Result<Receiver> {
    let interface = interface(host, "eth0")?;
    let receiver = host.enter(|| Receiver::open(&interface, family))?.context("open a receiver")?;
    receiver.set_vrids(NonZeroU8::new(vrid).map(|vrid| (vrid, 255)))?;
    Ok(receiver)
}

fn watch(host: &Namespace, address: IpAddr) -> Result<Watch> {
    let interface = interface(host, "eth0")?;
    let open = host.enter(|| Watch::open(interface.index, Family::of(address)))?;
    let watch = open.context("open a watch")?;
    watch.set_addresses([address])?;
    Ok(watch)
}

fn message(vrid: u8, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let advertisement = Advertisement {
        version: Version::V3,
        vrid: NonZeroU8::new(vrid).expect("not zero"),
        priority: 100,
        interval: Duration::from_secs(1),
        addresses: VIPS.map(ip).to_vec(),
    };
    packet::encode(&advertisement, source, destination, Checksum::PseudoHeader, Proof::None)
}

/// A received advertisement.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    interface: u32,
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    message: Vec<u8>,
}

fn next(receiver: &Receiver) -> Result<Option<Received>> {
    let mut buffer = vec![0; BUFFER];
    let received = receiver.receive(&mut buffer)?;
    Ok(received.map(|received| {
        let Packet { source, destination, ttl, message } = received.packet;
        let message = message.to_vec();
        Received { interface: received.interface, source, destination, ttl, message }
    }))
}

fn wait_for(receiver: &Receiver) -> Result<Received> {
    wait::until(SOON, "an advertisement", || next(receiver)?.context("nothing has come"))
}

fn wait_for_claim(watch: &Watch) -> Result<Claim> {
    wait::until(SOON, "a claim", || watch.claim()?.context("nothing was seen"))
}

#[test]
fn advertisements_to_the_group_and_to_a_peer_arrive_whole() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        let source = host(1, family);
        let sender = sender(&pair.a, "eth0", source)?;
        let receiver = receiver(&pair.b, family, 51)?;
        for destination in [family.group(), host(2, family)] {
            let sent = message(51, source, destination);
            sender.send(&sent, destination)?;
            let advert = wait_for(&receiver)?;
            let interface = interface(&pair.b, "eth0")?.index;
            let expected = Received { interface, source, destination, ttl: 255, message: sent };
            assert_eq!(advert, expected);
            let packet = Packet { source, destination, ttl: advert.ttl, message: &advert.message };
            assert!(packet::decode(&packet).is_ok());
        }
    }
    Ok(())
}

#[test]
fn what_has_crossed_a_router_does_not_come_and_is_seen_by_who_looks_for_it() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        let (source, destination) = (host(1, family), host(2, family));
        let interface = interface(&pair.a, "eth0")?;
        let receiver = receiver(&pair.b, family, 51)?;
        let send = |vrid: u8, hops: u32| -> Result<()> {
            let domain = if source.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let socket =
                pair.a.enter(|| Socket::new(domain, Type::RAW, Some(Protocol::from(112))))??;
            let to: SocketAddr = match destination {
                IpAddr::V4(to) => SocketAddrV4::new(to, 0).into(),
                IpAddr::V6(to) => SocketAddrV6::new(to, 0, 0, interface.index).into(),
            };
            match family {
                Family::V4 => socket.set_ttl_v4(hops)?,
                Family::V6 => socket.set_unicast_hops_v6(hops)?,
            }
            socket.send_to(&message(vrid, source, destination), &to.into())?;
            Ok(())
        };
        // The first to be sent would be received first.
        send(51, 254)?;
        send(51, 1)?;
        send(52, 1)?;
        send(51, 255)?;
        assert_eq!(wait_for(&receiver)?.ttl, 255, "{family:?}");
        assert_eq!(next(&receiver)?, None, "{family:?}");
        let mut buffer = vec![0; BUFFER];
        let mut far = Vec::new();
        while let Some(received) = receiver.receive_far(&mut buffer)? {
            far.push((received.packet.ttl, packet::vrid(received.packet.message)));
        }
        assert_eq!(far, [(254, NonZeroU8::new(51)), (1, NonZeroU8::new(51))], "{family:?}");
        // Peers of unicast may be behind a router.
        receiver.set_vrids(NonZeroU8::new(51).map(|vrid| (vrid, 64)))?;
        send(51, 63)?;
        send(51, 64)?;
        assert_eq!(wait_for(&receiver)?.ttl, 64, "{family:?}");
    }
    Ok(())
}

#[test]
fn a_signed_advertisement_arrives_as_it_was_signed() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        let (source, group) = (host(1, family), family.group());
        let receiver = receiver(&pair.b, family, 51)?;
        let mut key = Hmac::new(1, &[7; 32], SOON);
        let mut sent = message(51, source, group);
        let len = sent.len();
        key.sign(&mut sent, Version::V3, source, SystemTime::now());
        sender(&pair.a, "eth0", source)?.send(&sent, group)?;
        let advert = wait_for(&receiver)?.message;
        let trailer = advert[len..].try_into()?;
        let verified = key.verify(&advert[..len], trailer, Version::V3, source, SystemTime::now());
        ensure!(verified.is_ok(), "{family:?}: {verified:?}");
    }
    Ok(())
}

#[test]
fn other_virtual_routers_are_not_heard_and_neither_is_this_node() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        let group = family.group();
        let ours = sender(&pair.a, "eth0", host(1, family))?;
        let theirs = sender(&pair.b, "eth0", host(2, family))?;
        let receiver = receiver(&pair.a, family, 51)?;
        // All of these come before the last one.
        ours.send(&message(51, host(1, family), group), group)?;
        theirs.send(&message(52, host(2, family), group), group)?;
        theirs.send(&[0x31], group)?;
        theirs.send(&message(51, host(2, family), group), group)?;
        let advert = wait_for(&receiver)?;
        assert_eq!((advert.source, advert.message[1]), (host(2, family), 51));
        assert_eq!(next(&receiver)?, None);
        // Advertisements of another set of routers are received from then on.
        receiver
            .set_vrids([52, 53].into_iter().filter_map(NonZeroU8::new).map(|vrid| (vrid, 255)))?;
        theirs.send(&message(51, host(2, family), group), group)?;
        theirs.send(&message(53, host(2, family), group), group)?;
        assert_eq!(wait_for(&receiver)?.message[1], 53);
    }
    Ok(())
}

/// The first frame of VRRP that the interface of a host gets, from `send` on.
fn first_frame(
    host: &Namespace,
    family: Family,
    send: impl FnOnce() -> Result<()>,
) -> Result<Vec<u8>> {
    use socket2::{Domain, Protocol, Socket, Type};
    let kind: u16 = if family == Family::V4 { 0x0800 } else { 0x86dd };
    let protocol = Protocol::from(i32::from(kind.to_be()));
    let socket = host.enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))??;
    socket.set_nonblocking(true)?;
    send()?;
    let at = if family == Family::V4 { 14 + 9 } else { 14 + 6 };
    wait::until(SOON, "a frame", || {
        let mut buffer = [0; 2048];
        let len = io::Read::read(&mut &socket, &mut buffer)?;
        ensure!(buffer[at] == packet::PROTOCOL, "a frame of something else");
        Ok(buffer[..len].to_vec())
    })
}

#[test]
fn frames_are_network_control_and_have_the_virtual_mac_address() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for (family, mac, name) in [
        (Family::V4, "00:00:5e:00:01:33", "vrrp.51"),
        (Family::V6, "00:00:5e:00:02:33", "vrrp6.51"),
    ] {
        pair.a.ip(&format!(
            "link add {name} link eth0 address {mac} type macvlan mode bridge\n\
             link set {name} addrgenmode none\n\
             link set {name} up"
        ))?;
        let (source, group) = (host(1, family), family.group());
        let receiver = receiver(&pair.a, family, 51)?;
        let sender = sender(&pair.a, name, source)?;
        let frame =
            first_frame(&pair.b, family, || Ok(sender.send(&message(51, source, group), group)?))?;
        let from: Vec<_> = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(from.join(":"), mac);
        let (class, ttl) = match family {
            Family::V4 => (frame[15], frame[14 + 8]),
            Family::V6 => ((frame[14] << 4) | (frame[15] >> 4), frame[14 + 7]),
        };
        assert_eq!((class, ttl), (48 << 2, 255));
        // The interface below receives others' and not this one's.
        let theirs = self::sender(&pair.b, "eth0", host(2, family))?;
        theirs.send(&message(51, host(2, family), group), group)?;
        assert_eq!(wait_for(&receiver)?.source, host(2, family));
        assert_eq!(next(&receiver)?, None);
    }
    Ok(())
}

#[test]
fn an_announcement_moves_an_address_and_is_seen_by_others_only() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let announcer = pair.a.enter(Announcer::open)??;
    for vip in VIPS.map(ip) {
        // The holder before, in the other host's neighbour table.
        pair.b
            .ip(&format!("neigh replace {vip} lladdr 02:00:00:00:00:01 dev eth0 nud reachable"))?;
        let (ours, theirs) = (watch(&pair.a, vip)?, watch(&pair.b, vip)?);
        announcer.announce(interface(&pair.a, "eth0")?.index, MAC, vip, false)?;
        assert_eq!(wait_for_claim(&theirs)?, Claim { address: vip, mac: MAC });
        wait::until_true(SOON, "the other host knows", || {
            Ok(pair.b.ip(&format!("neigh show {vip}"))?.contains("02:00:00:00:00:77"))
        })?;
        assert_eq!(ours.claim()?, None);
    }
    Ok(())
}

#[test]
fn only_claims_of_the_watched_address_are_seen() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let announcer = pair.b.enter(Announcer::open)??;
    let by = interface(&pair.b, "eth0")?.index;
    for (vip, other) in [(VIPS[0], "10.0.0.101"), (VIPS[1], "2001:db8::101")] {
        let watch = watch(&pair.a, ip(vip))?;
        announcer.announce(by, MAC, ip(other), false)?;
        announcer.announce(by, MAC, ip(vip), false)?;
        assert_eq!(wait_for_claim(&watch)?, Claim { address: ip(vip), mac: MAC });
        assert_eq!(watch.claim()?, None);
    }
    Ok(())
}

#[test]
fn any_number_of_addresses_and_routers_is_listened_to() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let announcer = pair.b.enter(Announcer::open)??;
    let watch = watch(&pair.a, ip(VIPS[0]))?;
    for many in [2_000, 60_000_u32] {
        watch
            .set_addresses((0..many).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n))))?;
        announcer.announce(interface(&pair.b, "eth0")?.index, MAC, ip(VIPS[0]), false)?;
        assert_eq!(wait_for_claim(&watch)?.address, ip(VIPS[0]));
    }
    let receiver = receiver(&pair.a, Family::V4, 1)?;
    receiver.set_vrids((1..=u8::MAX).filter_map(NonZeroU8::new).map(|vrid| (vrid, 255)))?;
    let (source, group) = (host(2, Family::V4), Family::V4.group());
    sender(&pair.b, "eth0", source)?.send(&message(255, source, group), group)?;
    assert_eq!(wait_for(&receiver)?.message[1], 255);
    Ok(())
}

#[test]
fn what_comes_while_nobody_reads_is_kept() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let receiver = receiver(&pair.a, Family::V4, 1)?;
    let (source, group) = (host(2, Family::V4), Family::V4.group());
    let sender = sender(&pair.b, "eth0", source)?;
    // Of a hundred routers in two seconds, ten a second.
    let message = message(1, source, group);
    for _ in 0..2_000 {
        sender.send(&message, group)?;
    }
    let mut count = 0;
    wait::until_true(SOON, "all are there", || {
        while next(&receiver)?.is_some() {
            count += 1;
        }
        Ok(count == 2_000)
    })
}

#[test]
fn an_interface_that_comes_back_is_another_one() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    for family in [Family::V4, Family::V6] {
        let (source, group) = (host(1, family), family.group());
        let old = sender(&pair.a, "eth0", source)?;
        let unreachable = receiver(&pair.b, family, 51)?;
        pair.a.ip("link delete eth0")?;
        let Err(error) = old.send(&message(51, source, group), group) else {
            bail!("sent by an interface that is gone");
        };
        let number = error.raw_os_error();
        ensure!([Some(libc::ENODEV), Some(libc::ENETUNREACH)].contains(&number), "{error}");
        pair.connect()?;
        ensure!(
            old.send(&message(51, source, group), group).is_err(),
            "{family:?}: it is bound to the name"
        );
        let receiver = receiver(&pair.b, family, 51)?;
        sender(&pair.a, "eth0", source)?.send(&message(51, source, group), group)?;
        assert_eq!(wait_for(&receiver)?.source, source);
        assert_eq!(next(&unreachable)?, None);
    }
    Ok(())
}

#[test]
fn a_source_that_was_removed_is_good_again_when_it_is_back() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let (source, group) = (host(1, Family::V4), Family::V4.group());
    let sender = sender(&pair.a, "eth0", source)?;
    let receiver = receiver(&pair.b, Family::V4, 51)?;
    pair.a.ip("addr del 10.0.0.1/24 dev eth0")?;
    ensure!(sender.send(&message(51, source, group), group).is_err(), "sent from nowhere");
    pair.a.ip("addr add 10.0.0.1/24 dev eth0")?;
    sender.send(&message(51, source, group), group)?;
    assert_eq!(wait_for(&receiver)?.source, source);
    Ok(())
}

#[test]
fn an_address_that_the_node_has_not_is_no_source() -> Result<()> {
    let Some(pair) = HostPair::new()? else { return Ok(()) };
    let interface = interface(&pair.a, "eth0")?;
    for source in ["10.0.0.9", "fe80::9"] {
        let opened = pair.a.enter(|| Sender::open(&interface, ip(source)))?;
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
    Ok(())
}
