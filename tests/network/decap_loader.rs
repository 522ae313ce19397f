//! The decapsulator's loader against the kernel: attach, replace, show, detach.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::links::{FdLink, PinnedLink};
use lb_datapath::decap::{Options, attach, detach, status};
use lb_model::prefix::Prefix;

use super::netns::{Netns, is_root};

/// A host with `eth0`, and a folder for its pins.
pub(super) struct Host {
    pub(super) host: Netns,
    pub(super) peer: Netns,
    pub(super) pins: PathBuf,
}

impl Host {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (host, peer) = (Netns::new(), Netns::new());
        host.join("eth0", &peer, "eth0");
        host.ip("addr add 10.0.0.2/24 dev eth0");
        host.ip("addr add fd00::2/64 dev eth0 nodad");
        host.ip("addr add 10.0.0.100/32 dev lo");
        host.ip("addr add fd00::100/128 dev lo scope host nodad");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/lbt-{}-{number}", process::id()));
        Self { host, peer, pins }
    }

    fn pinned(&self, name: &str) -> PathBuf {
        self.pins.join("decap-eth0").join(name)
    }

    pub(super) fn link(&self) -> (u32, u32) {
        let link = PinnedLink::from_pin(self.pinned("link")).expect("the link is pinned");
        let info = FdLink::from(link).info().expect("the link has information");
        (info.id(), info.program_id())
    }

    fn shows_program(&self) -> bool {
        self.host.ip("link show dev eth0").contains("prog/xdp")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove(&self.pins);
    }
}

fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove(&path);
        } else {
            let _ = fs::remove_file(path);
        }
    }
    let _ = fs::remove_dir(folder);
}

pub(super) fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

/// The options for a balancer with the usual configuration.
fn options() -> Options {
    Options { sources: prefixes(&["172.16.0.0/16", "100::/64"]), ..Options::default() }
}

#[test]
fn attached_decapsulator_outlives_the_command_and_shows_itself() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.host.enter(|| {
        assert!(status(&host.pins).expect("status").is_empty());
        let attached = attach("eth0", &options(), &host.pins).expect("attach");
        assert_eq!((attached.mode.as_str(), attached.replaced), ("native", false));
        assert_eq!(attached.addresses, addresses(&["10.0.0.2", "fd00::2"]));
        assert!(host.shows_program());
        let shown = status(&host.pins).expect("status");
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].dev.as_str(), shown[0].mode.as_str()), ("eth0", "native"));
        assert_eq!(shown[0].addresses, addresses(&["10.0.0.2", "fd00::2"]));
        assert_eq!(shown[0].vips, Some(addresses(&["10.0.0.100", "fd00::100"])));
        assert_eq!(shown[0].sources, Some(options().sources));

        assert!(detach("eth0", &host.pins).expect("detach"));
        assert!(!host.shows_program());
        assert!(!host.pins.exists(), "no folder is left");
        assert!(!detach("eth0", &host.pins).expect("detach again"));
        assert!(status(&host.pins).expect("status").is_empty());
    });
}

#[test]
fn attaching_again_replaces_options_and_program_and_keeps_the_link() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.host.enter(|| {
        attach("eth0", &options(), &host.pins).expect("attach");
        let (link, program) = host.link();
        host.peer.ip("addr add 10.0.0.3/24 dev eth0");
        host.peer.enter(|| {
            let socket = UdpSocket::bind("10.0.0.3:0").expect("bind");
            socket.send_to(b"not encapsulated", "10.0.0.2:9").expect("send");
        });
        let counted = || {
            let shown = status(&host.pins).expect("status");
            shown[0].counters.get("not_a_tunnel").map_or(0, |count| count.packets)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while counted() == 0 {
            assert!(Instant::now() < deadline, "no packet was counted");
            thread::sleep(Duration::from_millis(10));
        }
        let before = counted();
        let options = Options {
            addresses: addresses(&["10.0.0.7"]),
            vips: addresses(&["10.0.0.77", "fd00::77"]),
            sources: prefixes(&["0.0.0.0/0", "::/0", "10.0.0.1/32", "fd00::/17"]),
            generic: false,
            allow_gro: false,
        };
        let attached = attach("eth0", &options, &host.pins).expect("attach again");
        assert!(attached.replaced);
        let (same_link, other_program) = host.link();
        assert_eq!(same_link, link);
        assert_ne!(other_program, program);
        assert!(counted() >= before, "the counters go on");
        let shown = status(&host.pins).expect("status");
        assert_eq!(shown[0].addresses, options.addresses);
        assert_eq!(shown[0].vips, Some(options.vips));
        assert_eq!(shown[0].sources, Some(options.sources));
        detach("eth0", &host.pins).expect("detach");
    });
}

#[test]
fn foreign_program_is_named_and_left_alone() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let others = Host::new();
    host.host.enter(|| {
        attach("eth0", &options(), &others.pins).expect("attach with pins elsewhere");
        let error = attach("eth0", &options(), &host.pins).expect_err("it is taken");
        let output = format!("{error:#}");
        assert!(output.contains("another XDP program: decapsulate (id "), "{output}");
        assert!(output.contains("ip link set dev eth0 xdp off"), "{output}");
        assert!(host.shows_program());
        assert!(!host.pinned("link").exists());
        detach("eth0", &others.pins).expect("detach");
    });
}

#[test]
fn generic_mode_is_used_only_when_asked_for_and_native_fails() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    // A bridge has no native mode.
    host.host.ip("link add quiet type bridge");
    host.host.ip("link add port type veth peer far");
    host.host.ip("link set port master quiet");
    host.host.ip("link set quiet up");
    host.host.ip("addr add 10.1.0.1/24 dev quiet");
    host.host.enter(|| {
        let native = options();
        let generic = Options { generic: true, ..options() };
        let error = attach("quiet", &native, &host.pins).expect_err("no native mode");
        assert!(format!("{error:#}").contains("--generic"), "{error:#}");
        assert!(!host.pins.join("decap-quiet").exists());
        // A veth has no GRO unless it is turned on.
        let mut ethtool = kit::command::command("ethtool");
        kit::command::run(ethtool.args(["-K", "port", "gro", "on"])).expect("ethtool");
        let error = attach("quiet", &generic, &host.pins).expect_err("GRO is on below");
        assert!(format!("{error:#}").contains("`ethtool -K port gro off`"), "{error:#}");
        let mut ethtool = kit::command::command("ethtool");
        kit::command::run(ethtool.args(["-K", "port", "gro", "off"])).expect("ethtool");
        assert_eq!(attach("quiet", &generic, &host.pins).expect("generic").mode, "generic");
        assert_eq!(status(&host.pins).expect("status")[0].mode, "generic");
        let error = attach("quiet", &native, &host.pins).expect_err("it is generic");
        assert!(format!("{error:#}").contains("runs in generic mode"), "{error:#}");
        assert!(attach("quiet", &generic, &host.pins).expect("again").replaced);
        assert_eq!(attach("eth0", &generic, &host.pins).expect("native first").mode, "native");
        for dev in ["quiet", "eth0"] {
            assert!(detach(dev, &host.pins).expect("detach"));
        }
    });
}

#[test]
fn interface_that_was_deleted_can_be_attached_again() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let peer = Netns::new();
    host.host.join("eth0.7", &peer, "eth0");
    host.host.ip("addr add 10.7.0.1/24 dev eth0.7");
    host.host.enter(|| {
        attach("eth0.7", &options(), &host.pins).expect("attach");
        // bpffs takes no dots: another interface's pins would be here.
        host.host.ip("link add eth0_7 type bridge");
        host.host.ip("addr add 10.8.0.1/24 dev eth0_7");
        let error = attach("eth0_7", &options(), &host.pins).expect_err("taken");
        assert!(format!("{error:#}").contains("belong to interface eth0.7"), "{error:#}");

        host.host.ip("link del eth0.7");
        assert_eq!(status(&host.pins).expect("status")[0].mode, "detached");
        host.host.join("eth0.7", &peer, "eth0");
        host.host.ip("addr add 10.7.0.1/24 dev eth0.7");
        attach("eth0.7", &options(), &host.pins).expect("attach again");
        let shown = status(&host.pins).expect("status");
        assert_eq!((shown[0].dev.as_str(), shown[0].mode.as_str()), ("eth0.7", "native"));
        detach("eth0.7", &host.pins).expect("detach");
    });
}

#[test]
fn mistake_says_what_to_do() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.host.ip("link add bare type bridge");
    host.host.enter(|| {
        let output = |dev| {
            let error = attach(dev, &options(), &host.pins).expect_err("a mistake");
            format!("{error:#}")
        };
        assert_eq!(output("eth9"), "interface eth9 does not exist; `ip link` lists those that do");
        assert!(output("bare").contains("--address"), "{}", output("bare"));
        let nobody = attach("eth0", &Options::default(), &host.pins).expect_err("no sources");
        let message = format!("{nobody:#}");
        assert!(message.contains("--from 172.16.0.0/16 --from 100::/64"), "{message}");
        host.host.ip("addr del 10.0.0.100/32 dev lo");
        host.host.ip("addr del fd00::100/128 dev lo");
        assert!(output("eth0").contains("no VIP is on the loopback"), "{}", output("eth0"));
        assert!(!host.shows_program());
    });
}

/// An IPv4 packet with this header's addresses.
fn ipv4(proto: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
    header.extend(source);
    header.extend(destination);
    let sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let check = !((sum >> 16) + (sum & 0xffff)) as u16;
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header.extend(payload);
    header
}

/// A datagram from a client in a tunnel from `outer`; the kernel sends it as it is.
pub(super) fn send_tunnelled(outer: [u8; 4], inner: [u8; 4]) {
    // Without a checksum, which IPv4 allows.
    let mut udp = [7777_u16, 7000, 12, 0].map(u16::to_be_bytes).concat();
    udp.extend(b"ping");
    let packet = ipv4(4, outer, [10, 0, 0, 2], &ipv4(17, [10, 0, 0, 1], inner, &udp));
    // SAFETY: no precondition. A raw socket of this protocol takes whole headers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: all zeroes is an address of the family 0.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as libc::sa_family_t;
    to.sin_addr.s_addr = u32::from_ne_bytes([10, 0, 0, 2]);
    let size = size_of_val(&to) as libc::socklen_t;
    let (data, to) = (packet.as_ptr().cast(), (&raw const to).cast());
    // SAFETY: both pointers are to as many bytes as is passed.
    let sent = unsafe { libc::sendto(socket, data, packet.len(), 0, to, size) };
    assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is this function's own.
    unsafe { libc::close(socket) };
}

/// Whether a datagram came to a socket within the time.
pub(super) fn received(socket: &UdpSocket, within: Duration) -> bool {
    socket.set_read_timeout(Some(within)).expect("set a timeout");
    socket.recv(&mut [0; 64]).is_ok()
}

#[test]
fn a_stranger_s_tunnelled_packet_reaches_neither_the_vip_nor_what_is_behind_a_host_that_routes() {
    if !is_root() {
        return;
    }
    const VIP: [u8; 4] = [10, 0, 0, 100];
    const INTERNAL: [u8; 4] = [10, 9, 0, 2];
    const BALANCER: [u8; 4] = [172, 16, 3, 4];
    const STRANGER: [u8; 4] = [10, 0, 0, 1];
    let host = Host::new();
    let internal = Netns::new();
    host.host.join("inside", &internal, "eth0");
    host.host.ip("addr add 10.9.0.1/24 dev inside");
    internal.ip("addr add 10.9.0.2/24 dev eth0");
    internal.ip("route add default via 10.9.0.1");
    host.peer.ip("addr add 10.0.0.1/24 dev eth0");
    // Checksums in hardware are not done for raw packets.
    host.host.enter(|| {
        for (name, value) in
            [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/eth0/rp_filter", "0")]
        {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("set a sysctl");
        }
    });
    let vip = host.host.enter(|| UdpSocket::bind("10.0.0.100:7000")).expect("bind the VIP");
    let inside = internal.enter(|| UdpSocket::bind("10.9.0.2:7000")).expect("bind inside");
    let count = |reason| {
        let shown = host.host.enter(|| status(&host.pins)).expect("status");
        shown[0].counters.get(reason).map_or(0, |count| count.packets)
    };
    let send = |outer, inner| host.peer.enter(|| send_tunnelled(outer, inner));
    let long = Duration::from_secs(10);

    // The host takes packets for its VIP from a balancer, and no others.
    host.host.enter(|| attach("eth0", &options(), &host.pins)).expect("attach");
    send(BALANCER, VIP);
    assert!(received(&vip, long), "the balancer's packet did not come");
    for (outer, inner, reason) in [
        (STRANGER, INTERNAL, "not_a_source"),
        (STRANGER, VIP, "not_a_source"),
        (BALANCER, INTERNAL, "not_a_vip"),
    ] {
        let before = count(reason);
        send(outer, inner);
        let deadline = Instant::now() + long;
        while count(reason) == before {
            assert!(Instant::now() < deadline, "{reason} was not counted");
            thread::sleep(Duration::from_millis(10));
        }
    }
    // The next one comes behind them all.
    send(BALANCER, VIP);
    assert!(received(&vip, long), "the balancer's packet did not come");
    assert!(
        !received(&vip, Duration::from_millis(100)),
        "a packet of an unlisted source reached the VIP"
    );
    assert!(
        !received(&inside, Duration::from_millis(100)),
        "a packet of an unlisted source reached the inside"
    );

    // An explicit list of all this is accepted.
    let open = Options {
        vips: vec![IpAddr::from(INTERNAL)],
        sources: prefixes(&["0.0.0.0/0"]),
        ..Options::default()
    };
    host.host.enter(|| attach("eth0", &open, &host.pins)).expect("attach again");
    send(STRANGER, INTERNAL);
    assert!(received(&inside, long), "the host does not route");
    host.host.enter(|| detach("eth0", &host.pins)).expect("detach");
}
