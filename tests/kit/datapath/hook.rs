//! Where the kernel calls the balancer: XDP or tc. The core decides alike; the frame's fate differs a little.

use lb_common::{
    abi::Backend,
    packet::{ethernet, ipv4, ipv6, number},
    rewrite,
};

use super::{
    generate::{INGRESS, State},
    model::Action,
    raw_ip,
};

/// Where the kernel calls the balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// In the driver.
    #[default]
    Xdp,
    /// At the ingress of the network stack. The outermost VLAN tag of a frame that leaves is in its metadata, and so
    /// not in the result of a test run; one that arrives is in the frame, as a test run can't put it elsewhere.
    Tc,
    /// The same on an interface without a link layer, of which the loaded program has a real one: see [`super::raw_ip`].
    /// Frames have an Ethernet header here all the same, which is none of the node's peers'.
    RawIp,
}

impl Hook {
    /// Name of the program.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "balance",
            Self::Tc => "classify",
            Self::RawIp => "classify_raw",
        }
    }

    /// Whether a test run takes a frame: not one for tc that ends within its IP header (Linux 6.18), or has no room in a
    /// page with the kernel's additions (before Linux 6.18).
    #[must_use]
    pub fn takes(self, frame: &[u8]) -> bool {
        let kind = frame.get(12..14).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
        let header = match kind {
            Some(ethernet::IPV4) => ipv4::LEN,
            Some(ethernet::IPV6) => ipv6::LEN,
            _ => 1,
        };
        match self {
            Self::Xdp => true,
            Self::Tc => (ethernet::LEN + header..=3_500).contains(&frame.len()),
            Self::RawIp => raw_ip::takes(frame),
        }
    }

    /// Makes a frame one that can come by.
    pub fn fit_frame(self, frame: &mut [u8]) {
        if self == Self::RawIp {
            raw_ip::fit_frame(frame);
        }
    }

    /// Makes a state one that can be.
    pub fn fit_state(self, state: &mut State) {
        state.backends.iter_mut().for_each(|backend| self.fit_backend(backend));
    }

    /// Makes a backend one that can be.
    pub fn fit_backend(self, backend: &mut Backend) {
        if self == Self::RawIp {
            raw_ip::fit_backend(backend);
        }
    }

    /// The interface that frames come by.
    #[must_use]
    pub const fn ingress(self) -> u32 {
        match self {
            Self::Xdp | Self::Tc => INGRESS,
            Self::RawIp => raw_ip::INGRESS,
        }
    }

    /// Bytes of a frame that the program does not see.
    pub(super) const fn unseen(self) -> usize {
        match self {
            Self::Xdp | Self::Tc => 0,
            Self::RawIp => ethernet::LEN,
        }
    }

    /// The program's return value for an action.
    #[must_use]
    pub const fn code(self, action: Action) -> u32 {
        match (self, action) {
            (Self::Xdp, action) => action as u32,
            // TCX_NEXT, TCX_DROP and TCX_REDIRECT of linux/bpf.h.
            (Self::Tc, Action::Pass) => u32::MAX,
            (Self::Tc, Action::Drop) => 2,
            (Self::Tc, Action::Tx | Action::Redirect) => 7,
            // Its return value is not seen, but where the frame leaves.
            (Self::RawIp, Action::Pass | Action::Drop) => raw_ip::STAYS,
            (Self::RawIp, Action::Tx) => raw_ip::LEAVES_BY_INGRESS,
            (Self::RawIp, Action::Redirect) => raw_ip::LEAVES_BY_OTHER,
        }
    }

    /// A frame that leaves with a link-layer header of `l2` bytes, by the interface that it came by or another, as a
    /// run returns it.
    pub(super) fn shown(self, mut frame: Vec<u8>, l2: usize, same: bool) -> Vec<u8> {
        match self {
            Self::Tc if l2 > ethernet::LEN => drop(frame.drain(12..16)),
            Self::RawIp if same => frame[..ethernet::LEN].fill(0),
            _ => {}
        }
        frame
    }

    /// How much an ICMP error quotes of a packet of which XDP's quotes `len` bytes.
    pub(super) fn quote_len(self, packet: &[u8], v6: bool, len: usize) -> usize {
        let (next, short, longer) = if v6 {
            (packet[6], rewrite::QUOTE_SHORT_V6, ipv6::LEN + 20)
        } else {
            (packet[9], rewrite::QUOTE_SHORT_V4, ipv4::LEN + 20)
        };
        if self != Self::Xdp && len == short && next == number::TCP { longer } else { len }
    }

    /// The quote in an ICMP error: the tc program replaces the checksum of the quoted TCP or UDP header.
    pub(super) fn quote(self, mut quote: Vec<u8>, v6: bool) -> Vec<u8> {
        if self != Self::Xdp {
            let (next, header) = if v6 { (quote[6], ipv6::LEN) } else { (quote[9], ipv4::LEN) };
            let at = header + if next == number::TCP { 16 } else { 6 };
            quote[at..at + 2].fill(0);
            let settled = rewrite::settled_checksum(rewrite::sum(&quote[header..]));
            quote[at..at + 2].copy_from_slice(&settled.to_be_bytes());
        }
        quote
    }
}
