//! The frame that the program leaves: the core's headers, put before the client's packet.

use lb_common::abi::{Backend, backend_flags};
use lb_common::{
    nat,
    packet::{ipv4::Ipv4, ipv6::Ipv6, number},
    rewrite,
    verdict::{Forward, Reply, Return, Verdict},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Plain, Snap};

/// The frame after the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Its XDP action.
    pub action: &'static str,
    /// Its bytes, as far as those of the frame that came in are known.
    pub bytes: Vec<u8>,
    /// Whether the headers could not be put there.
    pub no_room: bool,
}

/// The program's output for a frame that came in on the interface `ingress`.
pub(crate) fn leave(snap: &Snap, verdict: &Plain, ingress: u32) -> Left {
    let as_it_came = |action| Left { action, bytes: snap.bytes.clone(), no_room: false };
    match verdict {
        Verdict::Pass(_) => as_it_came("XDP_PASS"),
        Verdict::Drop(_) => as_it_came("XDP_DROP"),
        Verdict::Forward(to) if to.backend.is_local() => as_it_came("XDP_PASS"),
        Verdict::Forward(to) => match forward(&snap.bytes, to) {
            Some(bytes) => {
                let same = to.backend.ifindex == ingress;
                let action = if same { "XDP_TX" } else { "XDP_REDIRECT" };
                Left { action, bytes, no_room: false }
            }
            None => Left { no_room: true, ..as_it_came("XDP_DROP") },
        },
        Verdict::Return(to) => match to_client(&snap.bytes, to) {
            Some(bytes) => Left { action: BY_ROUTE, bytes, no_room: false },
            None => Left { no_room: true, ..as_it_came("XDP_DROP") },
        },
        Verdict::Reply(to) => match reply(&snap.bytes, to) {
            Some(bytes) => Left { action: "XDP_TX", bytes, no_room: false },
            None => Left { no_room: true, ..as_it_came("XDP_DROP") },
        },
    }
}

/// The action of an answer in mode `nat`: XDP_TX, XDP_REDIRECT, or XDP_PASS where the next hop's MAC address is not known or
/// the egress interface takes no redirect.
pub(crate) const BY_ROUTE: &str = "by the kernel's route";

/// The frame that leaves for a client; its MAC addresses, and whether it loses a hop here, follow from the route.
fn to_client(frame: &[u8], to: &Return<Backend>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    nat::to_client(&mut out[..], to.l3, to.v6, &to.backend)?;
    Some(out)
}

/// The frame that leaves for a backend.
fn forward(frame: &[u8], to: &Forward<Backend>) -> Option<Vec<u8>> {
    let backend = &to.backend;
    let mut whole = frame.to_vec();
    if nat::is_nat(backend) {
        nat::to_backend(&mut whole[..], to.l3, to.v6, backend)?;
    }
    let mut inner = whole.get(to.l3..)?.to_vec();
    let (class, next) = if to.v6 {
        let ip = Ipv6::mut_from_prefix(&mut inner).ok()?.0;
        ip.hop_limit -= 1;
        (ip.class(), number::IPV6)
    } else {
        let ip = Ipv4::mut_from_prefix(&mut inner).ok()?.0;
        ip.ttl -= 1;
        ip.check.set(rewrite::check_after_ttl(ip.check.get()));
        (ip.tos, number::IPV4)
    };
    if !matches!(backend.l2_len, 14 | 18 | 22) {
        return None;
    }
    let mut out = backend.l2[..usize::from(backend.l2_len)].to_vec();
    if backend.flags & backend_flags::TUNNEL != 0 {
        if backend.flags & backend_flags::V6 != 0 {
            let outer = rewrite::outer_v6(backend, class, to.len, next, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        } else {
            let outer = rewrite::outer_v4(backend, class, to.len, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        }
    }
    out.extend_from_slice(&inner);
    Some(out)
}

/// The ICMP error that goes back to the sender.
fn reply(frame: &[u8], to: &Reply) -> Option<Vec<u8>> {
    let mut out = frame.get(..to.l3)?.to_vec();
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].copy_from_slice(&frame[..6]);
    let packet = &frame[to.l3..];
    let quote_len = rewrite::quote_len(to.kind, to.v6, to.len);
    let quote = packet.get(..quote_len)?;
    let sum = rewrite::sum(quote);
    if to.v6 {
        let ip = Ipv6::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v6(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    } else {
        let ip = Ipv4::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v4(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    }
    out.extend_from_slice(quote);
    Some(out)
}
