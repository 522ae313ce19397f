//! Frames sent into an interface of the balancer, and frames from the far end of another.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;

use super::{older, testbed};

/// The flow of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SYN.
    Syn,
    /// Another TCP segment.
    Ack,
    /// A UDP datagram.
    Datagram,
}

/// A frame of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// Number of the client, which is in its address.
    pub client: u16,
    /// The client's port; it comes back in the answer.
    pub port: u16,
    /// The service's port.
    pub to: u16,
}

impl Frame {
    fn bytes(self) -> Vec<u8> {
        let [high, low] = self.client.to_be_bytes();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], older::OWN_MAC).ipv4(
            [10, 1, high, low],
            older::VIP,
            64,
        );
        let mut bytes = Vec::new();
        let written = match self.kind {
            Kind::Syn => builder.tcp(self.port, self.to, 1, 100).syn().write(&mut bytes, &[]),
            Kind::Ack => builder.tcp(self.port, self.to, 2, 100).ack(1).write(&mut bytes, &[]),
            Kind::Datagram => builder.udp(self.port, self.to).write(&mut bytes, b"hello"),
        };
        written.unwrap();
        bytes
    }
}

/// A packet socket at the far end of a pair.
pub struct Wire(OwnedFd);

impl Wire {
    /// At an interface of the thread's namespace.
    pub fn at(interface: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all)) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just given this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = testbed::ifindex(interface) as i32;
        let length = size_of_val(&address) as u32;
        // SAFETY: the address is of the size that is passed.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self(fd)
    }

    /// Sends a frame.
    pub fn send(&self, frame: Frame) {
        let bytes = frame.bytes();
        // SAFETY: the bytes are as many as is passed.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame for a backend that comes until then: its client's port, and the backend.
    pub fn next(&self, until: Instant) -> Option<(u16, u16)> {
        let mut bytes = [0_u8; 2_048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut poll =
                libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: the array has one element.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            if ready <= 0 {
                if left.is_zero() {
                    return None;
                }
                continue;
            }
            // SAFETY: the buffer is as long as is passed.
            let got = unsafe {
                libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0)
            };
            let got = usize::try_from(got).expect("something was there to read");
            // Ethernet, then IPv4 without options, then the source port.
            if got >= 36 && bytes[..4] == older::BACKEND_MAC {
                let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                return Some((word(34), word(4)));
            }
        }
    }

    /// The backend that a frame goes to; none if it does not come back.
    pub fn ask_by(&self, answers: &Self, frame: Frame) -> Option<u16> {
        self.send(frame);
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            let (port, backend) = answers.next(until)?;
            if port == frame.port {
                return Some(backend);
            }
        }
    }

    /// The same, where the answer comes by the wire that the frame went by.
    pub fn ask(&self, frame: Frame) -> Option<u16> {
        self.ask_by(self, frame)
    }
}
