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
use lb_userspace::datapath::decap::{Options, attach, detach, status};

mod netns;

use netns::{Netns, is_root};

/// A host with `eth0`, and a folder for its pins.
struct Host {
    host: Netns,
    peer: Netns,
    pins: PathBuf,
}

impl Host {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (host, peer) = (Netns::new(), Netns::new());
        host.join("eth0", &peer, "eth0");
        host.ip("addr add 10.0.0.2/24 dev eth0");
        host.ip("addr add fd00::2/64 dev eth0 nodad");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/lbt-{}-{number}", process::id()));
        Self { host, peer, pins }
    }

    fn pinned(&self, name: &str) -> PathBuf {
        self.pins.join("decap-eth0").join(name)
    }

    fn link(&self) -> (u32, u32) {
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

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn attached_decapsulator_outlives_the_command_and_shows_itself() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.host.enter(|| {
        assert!(status(&host.pins).expect("status").is_empty());
        let attached = attach("eth0", &Options::default(), &host.pins).expect("attach");
        assert_eq!((attached.mode.as_str(), attached.replaced), ("native", false));
        assert_eq!(attached.addresses, addresses(&["10.0.0.2", "fd00::2"]));
        assert!(host.shows_program());
        let shown = status(&host.pins).expect("status");
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].dev.as_str(), shown[0].mode.as_str()), ("eth0", "native"));
        assert_eq!(shown[0].addresses, addresses(&["10.0.0.2", "fd00::2"]));
        assert!(shown[0].vips.is_empty());

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
        attach("eth0", &Options::default(), &host.pins).expect("attach");
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
            vips: addresses(&["10.0.0.100", "fd00::100"]),
            generic: false,
        };
        let attached = attach("eth0", &options, &host.pins).expect("attach again");
        assert!(attached.replaced);
        let (same_link, other_program) = host.link();
        assert_eq!(same_link, link);
        assert_ne!(other_program, program);
        assert!(counted() >= before, "the counters go on");
        let shown = status(&host.pins).expect("status");
        assert_eq!(shown[0].addresses, options.addresses);
        assert_eq!(shown[0].vips, options.vips);
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
        attach("eth0", &Options::default(), &others.pins).expect("attach with pins elsewhere");
        let error = attach("eth0", &Options::default(), &host.pins).expect_err("it is taken");
        let said = format!("{error:#}");
        assert!(said.contains("another XDP program: decapsulate (id "), "{said}");
        assert!(said.contains("ip link set dev eth0 xdp off"), "{said}");
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
    host.host.ip("link set quiet up");
    host.host.ip("addr add 10.1.0.1/24 dev quiet");
    host.host.enter(|| {
        let native = Options::default();
        let generic = Options { generic: true, ..Options::default() };
        let error = attach("quiet", &native, &host.pins).expect_err("no native mode");
        assert!(format!("{error:#}").contains("--generic"), "{error:#}");
        assert!(!host.pins.join("decap-quiet").exists());
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
        attach("eth0.7", &Options::default(), &host.pins).expect("attach");
        // bpffs takes no dots: another interface's pins would be here.
        host.host.ip("link add eth0_7 type bridge");
        host.host.ip("addr add 10.8.0.1/24 dev eth0_7");
        let error = attach("eth0_7", &Options::default(), &host.pins).expect_err("taken");
        assert!(format!("{error:#}").contains("belong to interface eth0.7"), "{error:#}");

        host.host.ip("link del eth0.7");
        assert_eq!(status(&host.pins).expect("status")[0].mode, "detached");
        host.host.join("eth0.7", &peer, "eth0");
        host.host.ip("addr add 10.7.0.1/24 dev eth0.7");
        attach("eth0.7", &Options::default(), &host.pins).expect("attach again");
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
        let said = |dev| {
            let error = attach(dev, &Options::default(), &host.pins).expect_err("a mistake");
            format!("{error:#}")
        };
        assert_eq!(said("eth9"), "interface eth9 does not exist; `ip link` lists those that do");
        assert!(said("bare").contains("--address"), "{}", said("bare"));
    });
}
