//! Interfaces whose other end is this process: a tun has no link layer, a tap has Ethernet.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, poll};

use crate::command::{command, run};

/// The first header of an interface's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Their IP header: a tun.
    Ip,
    /// An Ethernet header: a tap.
    Ethernet,
}

/// An interface, which is gone when this is dropped.
#[derive(Debug)]
pub struct Tun(File);

// From linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da;
const IFF_TUN: i16 = 1;
const IFF_TAP: i16 = 2;
const IFF_NO_PI: i16 = 0x1000;

/// How often a cable looks whether it ends, in milliseconds.
const LOOK: u8 = 50;
/// Longer than any frame.
const ROOM: usize = 1 << 16;

impl Tun {
    /// Makes one in the network namespace of the calling thread, and sets it up.
    ///
    /// # Errors
    ///
    /// The kernel has no /dev/net/tun, or the name or the index is taken.
    pub fn new(name: &str, layer: Layer, ifindex: Option<u32>) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").context("open /dev/net/tun")?;
        if let Some(index) = ifindex {
            // SAFETY: the request reads an integer.
            let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX, &raw const index) };
            ensure!(set == 0, "index {index} of {name}: {}", io::Error::last_os_error());
        }
        // SAFETY: all zeroes is a request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        ensure!(name.len() < request.ifr_name.len(), "{name} is too long for an interface");
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let kind = if layer == Layer::Ip { IFF_TUN } else { IFF_TAP };
        request.ifr_ifru.ifru_flags = kind | IFF_NO_PI;
        // SAFETY: the request is valid, and its name ends in a zero byte.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
        ensure!(made == 0, "make {name}: {}", io::Error::last_os_error());
        run(command("ip").args(["link", "set", name, "up"]))?;
        Ok(Self(file))
    }

    /// Has a frame come in by the interface.
    ///
    /// # Errors
    ///
    /// The kernel takes no such frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write_all(frame)
    }

    /// The next frame that has left by the interface; none if there is none.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut frame = vec![0; ROOM];
        match (&self.0).read(&mut frame) {
            Ok(bytes) => {
                frame.truncate(bytes);
                Ok(Some(frame))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The fate of a packet on its way over a [`Cable`].
pub type Change = fn(Vec<u8>) -> Vec<u8>;

/// Joins two interfaces of one layer, as a tunnel would: packets that leave by one come in by the other.
#[derive(Debug)]
pub struct Cable {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// `to_b` changes the packets that go from `a` to `b`.
    #[must_use]
    pub fn lay(a: Tun, b: Tun, to_b: Change) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            let mut polled = [&a, &b].map(|one| PollFd::new(one.0.as_fd(), PollFlags::POLLIN));
            while !over.load(Ordering::Relaxed) {
                let _ = poll(&mut polled, LOOK);
                // An interface that is down takes nothing: the packet is lost, as on any link.
                while let Ok(Some(packet)) = a.receive() {
                    let _ = b.send(&to_b(packet));
                }
                while let Ok(Some(packet)) = b.receive() {
                    let _ = a.send(&packet);
                }
            }
        });
        Self { ends, thread: Some(thread) }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
