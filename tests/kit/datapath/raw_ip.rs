//! The program of interfaces without a link layer, on a real one: the kernel's test run has no such buffers.
//!
//! Frames come in by a tun, and leave by it or by a tap.

use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use lb_common::{
    abi::Backend,
    packet::{ethernet, number},
};

use super::generate::{self, OWN};
use crate::tun::{Layer, Tun};

/// Index of the tun.
pub(super) const INGRESS: u32 = 5;
/// Index of the tap: that of the other interface of [`generate::state`].
const OTHER: u32 = 7;

/// Nothing has left.
pub(super) const STAYS: u32 = 0;
/// A packet has left by the tun.
pub(super) const LEAVES_BY_INGRESS: u32 = 1;
/// A frame has left by the tap.
pub(super) const LEAVES_BY_OTHER: u32 = 2;

/// Both interfaces, the program at the ingress of the tun.
pub(super) struct Interfaces {
    tun: Tun,
    tap: Tun,
}

impl Interfaces {
    /// Makes them in a network namespace to which the calling thread moves.
    pub(super) fn with(program: &mut SchedClassifier) -> Result<Self> {
        // SAFETY: no precondition; only this thread moves.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(moved == 0, "make a network namespace: {}", io::Error::last_os_error());
        // Else the kernel sends packets of its own.
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            fs::write(&path, "1").with_context(|| format!("write {path}"))?;
        }
        let tun = Tun::new("tun0", Layer::Ip, Some(INGRESS))?;
        let tap = Tun::new("tap0", Layer::Ethernet, Some(OTHER))?;
        if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_err() {
            tc::qdisc_add_clsact("tun0").context("add the qdisc clsact")?;
        }
        program.attach("tun0", TcAttachType::Ingress).context("attach to the tun")?;
        Ok(Self { tun, tap })
    }

    /// Has the packet of a frame come in: where it leaves, and the frame; with zeros for an Ethernet header if it has
    /// none.
    pub(super) fn run(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.tun.send(&frame[ethernet::LEN..]).context("send by the tun")?;
        while let Some(packet) = self.tun.receive()? {
            if !is_for_group(&packet) {
                return Ok((LEAVES_BY_INGRESS, [&[0; ethernet::LEN], &*packet].concat()));
            }
        }
        while let Some(frame) = self.tap.receive()? {
            if !frame.get(ethernet::LEN..).is_some_and(is_for_group) {
                return Ok((LEAVES_BY_OTHER, frame));
            }
        }
        Ok((STAYS, frame.to_vec()))
    }
}

/// Whether a packet is for a group of IPv6, as the reports are that the kernel sends of its own.
fn is_for_group(packet: &[u8]) -> bool {
    packet.first().is_some_and(|byte| byte >> 4 == 6) && packet.get(24) == Some(&0xff)
}

/// Whether a frame's packet can come by a tun, which looks at the version. A tun also sets the offset of the transport
/// header, and behind options that is farther than what is quoted of a packet without a hop left: none of these.
pub(super) fn takes(frame: &[u8]) -> bool {
    let Ok(link) = ethernet::parse(frame) else { return false };
    let Some(packet) = frame.get(ethernet::LEN..).filter(|_| link.l3 == ethernet::LEN) else {
        return false;
    };
    let at = |at: usize| packet.get(at).copied().unwrap_or_default();
    match link.ethertype {
        ethernet::IPV4 => at(0) >> 4 == 4 && (at(0) == 0x45 || at(8) > 1),
        ethernet::IPV6 => {
            at(0) >> 4 == 6 && (matches!(at(6), number::TCP | number::UDP) || at(7) > 1)
        }
        _ => false,
    }
}

/// Sets a frame's MAC addresses: to the node's own, from a fixed one.
pub(super) fn fit_frame(frame: &mut [u8]) {
    if let Some((addresses, _)) = frame.split_first_chunk_mut::<12>() {
        addresses[..6].copy_from_slice(&OWN);
        addresses[6..].copy_from_slice(&[2, 0, 0, 0, 0, 0x55]);
    }
}

/// Frames that leave by the tun have no tags; and no MTU is below IPv6's least, so that enough is quoted of what is over it.
pub(super) fn fit_backend(backend: &mut Backend) {
    backend.mtu = backend.mtu.max(1_280);
    if backend.ifindex == generate::INGRESS {
        backend.ifindex = INGRESS;
        backend.l2_len = backend.l2_len.min(14);
    }
}
