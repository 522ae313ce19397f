//! Interfaces whose other end is this process: a tun has no link layer, a tap has Ethernet.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, ensure};

use crate::command::{command, run};

/// What the frames of an interface begin with.
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
