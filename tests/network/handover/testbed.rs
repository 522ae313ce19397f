//! A network namespace with two pairs of interfaces, and a folder for pins.

use std::{
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use aya::programs::links::{FdLink, PinnedLink};
use kit::namespace::{Namespace, join};
use lb_common::abi::{self, ABI_VERSION};
use lb_datapath::{Xdp, detach};
use lb_model::settings::{Limits, Settings};

use super::content::Content;

/// The balancer's end of each pair, and the far end.
pub const PAIRS: [(&str, &str); 2] = [("va", "vb"), ("vc", "vd")];

/// The limits of every set of maps here, to begin with.
pub const LIMITS: Limits = Limits {
    services: 16,
    backends: 64,
    pins: 2_048,
    tracked_flows: 4_096,
    nat_connections: 4_096,
    connections: 4_096,
    fragments: 4_096,
    icmp_errors: abi::DEFAULT_ICMP_ERRORS,
};

/// Namespace and pins; both go when it does.
pub struct Testbed {
    pub settings: Settings,
    peers: PathBuf,
    namespace: Namespace,
}

impl Testbed {
    /// Enters the namespace with the calling thread, which is the test's own. None without root.
    pub fn new() -> Option<Self> {
        if !kit::can_run() {
            return None;
        }
        let namespace = Namespace::new("handover").unwrap();
        let pins = PathBuf::from("/sys/fs/bpf").join(namespace.name());
        let peers = pins.with_file_name(format!("{}-peers", namespace.name()));
        // No frame comes that a test has not sent.
        let quiet = [("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")];
        namespace.sysctl(&quiet).unwrap();
        join(&namespace.path()).unwrap();
        let testbed = Self {
            settings: Settings {
                interfaces: PAIRS.map(|(near, _)| near.into()).into(),
                pin_dir: pins,
                limits: LIMITS,
                ..Settings::default()
            },
            peers,
            namespace,
        };
        fs::create_dir(&testbed.peers).unwrap();
        for (near, far) in PAIRS {
            testbed.add_pair(near, far);
        }
        Some(testbed)
    }

    /// Makes a pair of interfaces. The far end has a program, for frames that the near end transmits.
    pub fn add_pair(&self, near: &str, far: &str) {
        ip(&["link", "add", near, "type", "veth", "peer", "name", far]);
        ip(&["link", "set", near, "up"]);
        ip(&["link", "set", far, "up"]);
        let pin = self.peers.join(far);
        let _ = fs::remove_file(&pin);
        kit::xdp::pass(&self.namespace, far, &pin).unwrap();
    }

    pub fn open(&self) -> Xdp {
        Xdp::open(&self.settings).unwrap()
    }

    /// The folder of the maps of this version.
    pub fn current(&self) -> PathBuf {
        self.settings.pin_dir.join(format!("v{ABI_VERSION}"))
    }

    /// Names of the folders and links that are pinned.
    pub fn pinned(&self) -> Vec<String> {
        names(&self.settings.pin_dir)
    }

    /// That each ring has a pin beside the maps, and the one program that runs, and nothing else.
    pub fn check_pins(&self) {
        let mut names = names(&self.current());
        names.retain(|name| name.contains('-'));
        let rings = Content::of(&self.current()).rings;
        let mut expected: Vec<_> = rings.keys().map(|id| format!("ring-{id}")).collect();
        let link = self.settings.pin_dir.join(format!("link-{}", self.settings.interfaces[0]));
        expected.push(format!("program-{}", link_at(&link).1));
        expected.sort();
        assert_eq!(names, expected);
    }

    /// The pins of a data plane that is whole: this version's maps, and the links.
    pub fn whole(&self) -> Vec<String> {
        let links = self.settings.interfaces.iter().map(|name| format!("link-{name}"));
        links.chain([format!("v{ABI_VERSION}")]).collect()
    }
}

impl Testbed {
    /// Attaches a foreign program, which lets every frame pass; it goes with its pin.
    pub fn add_foreign_program(&self, interface: &str) -> PathBuf {
        let pin = self.peers.join("foreign");
        kit::xdp::pass(&self.namespace, interface, &pin).unwrap();
        pin
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = detach(&self.settings.pin_dir);
        let _ = fs::remove_dir_all(&self.peers);
    }
}

/// The index of an interface of the thread's namespace.
pub fn ifindex(interface: &str) -> u32 {
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the name ends in a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {interface}");
    index
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs `ip` in the thread's namespace.
pub fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {}", args.join(" "));
}

/// Ids of a pinned link and of its program.
pub fn link_at(pin: &Path) -> (u32, u32) {
    let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
    let info = link.info().unwrap();
    (info.id(), info.program_id())
}

/// Takes the program of a pinned link off its interface, as `bpftool link detach` does.
pub fn detach_link(pin: &Path) {
    const OBJ_GET: libc::c_long = 7;
    const LINK_DETACH: libc::c_long = 34;
    let path = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes()).unwrap();
    let attr = [path.as_ptr() as u64, 0];
    // SAFETY: the first field of the attributes is the address of a string that ends in a zero byte.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attr.as_ptr(), size_of_val(&attr)) };
    assert!(fd >= 0, "{}: {}", pin.display(), std::io::Error::last_os_error());
    // SAFETY: the kernel has just given this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attr = fd.as_raw_fd();
    // SAFETY: the only attribute is a descriptor.
    let done = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const attr, 4) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
