//! Claims of addresses that this node holds, until it is known whether a peer has made them.
//!
//! Advertisements come by raw IP sockets, which show no MAC address. So with the first claim the link is
//! queried for the addresses of the router's peers, and a moment later the claims are reported with what has
//! come. All claims of that moment share its requests: a flood of claims makes few of these.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::router::Family;

use crate::announce::Mac;

/// For so long answers of the peers are waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// What begins the virtual MAC address of a router, before its family and VRID (RFC 9568, 7.3).
const VIRTUAL: [u8; 4] = [0, 0, 0x5e, 0];

/// An address on an interface, by its index.
pub(crate) type Place = (u32, IpAddr);

/// The claims that wait, and what the peers have answered.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    waiting: BTreeMap<Place, (Mac, Vec<IpAddr>)>,
    peers: BTreeMap<Place, Option<Mac>>,
    until: Option<Instant>,
}

/// A claim of which all is known that will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// The address, and where.
    pub place: Place,
    /// The claimant.
    pub mac: Mac,
    /// The peers of its router, with the MAC addresses of those that have answered.
    pub peers: Vec<(IpAddr, Option<Mac>)>,
}

impl Claims {
    /// Takes a claim of an address whose router has these peers; returns the peers to request now.
    pub(crate) fn add(
        &mut self,
        place: Place,
        mac: Mac,
        peers: &[IpAddr],
        now: Instant,
    ) -> Vec<IpAddr> {
        if self.waiting.contains_key(&place) {
            return Vec::new();
        }
        self.until.get_or_insert(now + PATIENCE);
        self.waiting.insert(place, (mac, peers.to_vec()));
        let mut requested = Vec::new();
        for peer in peers {
            self.peers.entry((place.0, *peer)).or_insert_with(|| {
                requested.push(*peer);
                None
            });
        }
        requested
    }

    /// Takes the answer with an address's owner; false if it is that of no peer that was requested.
    pub(crate) fn answer(&mut self, place: Place, mac: Mac) -> bool {
        match self.peers.get_mut(&place) {
            Some(known) => {
                known.get_or_insert(mac);
                true
            }
            None => false,
        }
    }

    /// The peers that are requested on an interface.
    pub(crate) fn requested(&self, index: u32) -> BTreeSet<IpAddr> {
        self.peers.keys().filter(|(at, _)| *at == index).map(|(_, peer)| *peer).collect()
    }

    /// When [`Self::take`] has something.
    pub const fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// The claims that have waited long enough.
    pub fn take(&mut self, now: Instant) -> Vec<Claimed> {
        if self.until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        let Self { waiting, peers, .. } = std::mem::take(self);
        let claimed = waiting.into_iter().map(|(place, (mac, of))| {
            let known = |peer| (peer, peers.get(&(place.0, peer)).copied().flatten());
            Claimed { place, mac, peers: of.into_iter().map(known).collect() }
        });
        claimed.collect()
    }
}

impl Claimed {
    /// Message and cause for an operator, of a claim on an interface.
    pub(crate) fn describe(&self, interface: &str) -> (String, String) {
        let (address, mac) = (self.place.1, text(self.mac));
        if let Some((peer, _)) = self.peers.iter().find(|(_, of)| *of == Some(self.mac)) {
            let message = format!(
                "{address} on {interface} is claimed by {mac}, the MAC address of the peer {peer}"
            );
            return (message, format!("both nodes have it; see the state of {peer}"));
        }
        if let Some(vrid) = vrid(self.mac, Family::of(address)) {
            let message = format!(
                "{address} on {interface} is claimed by {mac}, the virtual MAC address of VRID {vrid}"
            );
            return (message, "a virtual router elsewhere is Active with it".to_owned());
        }
        let peers = self.peers.iter().map(|(peer, mac)| match mac {
            Some(mac) => format!("the peer {peer} has {}", text(*mac)),
            None => format!("the peer {peer} does not answer on {interface}"),
        });
        let peers = match self.peers.is_empty() {
            true => "no peer is known".to_owned(),
            false => peers.collect::<Vec<_>>().join(", "),
        };
        let message = format!("another host on {interface} has {address}");
        (message, format!("it was claimed by {mac}; {peers}"))
    }
}

/// The VRID of a virtual MAC address of a family.
fn vrid(mac: Mac, family: Family) -> Option<u8> {
    let of = match family {
        Family::V4 => 1,
        Family::V6 => 2,
    };
    let [start @ .., kind, vrid] = mac;
    (start == VIRTUAL && kind == of && vrid != 0).then_some(vrid)
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100));
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const MAC: Mac = [2, 0, 0, 0, 0, 2];
    const STRANGER: Mac = [2, 0, 0, 0, 0, 9];

    fn claimed(mac: Mac, peers: Vec<(IpAddr, Option<Mac>)>) -> Claimed {
        Claimed { place: (1, VIP), mac, peers }
    }

    #[test]
    fn claims_of_one_moment_request_each_peer_once_and_share_its_answer() {
        let (mut claims, start) = (Claims::default(), Instant::now());
        let other = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 101));
        assert_eq!(claims.add((1, VIP), MAC, &[PEER], start), [PEER]);
        assert!(claims.add((1, VIP), STRANGER, &[PEER], start).is_empty(), "it waits already");
        assert!(claims.add((1, other), STRANGER, &[PEER], start).is_empty(), "it is asked for");
        assert_eq!(claims.add((2, VIP), MAC, &[PEER], start), [PEER], "another link");
        assert_eq!(claims.requested(1), BTreeSet::from([PEER]));
        assert!(claims.answer((1, PEER), MAC) && !claims.answer((1, VIP), MAC));
        assert!(claims.take(start).is_empty());

        let end = claims.deadline().expect("it waits");
        let known = claims.take(end);
        let other = Claimed { place: (1, other), ..claimed(STRANGER, vec![(PEER, Some(MAC))]) };
        let third = Claimed { place: (2, VIP), ..claimed(MAC, vec![(PEER, None)]) };
        assert_eq!(known, [claimed(MAC, vec![(PEER, Some(MAC))]), other, third]);
        assert_eq!((claims.deadline(), claims.requested(1)), (None, BTreeSet::new()));
    }

    #[test]
    fn who_claims_is_the_peer_a_virtual_router_or_another_host() {
        let describe = |mac, peers| claimed(mac, peers).describe("eth0");
        let (message, _) = describe(MAC, vec![(PEER, Some(MAC))]);
        let peer = "10.0.0.100 on eth0 is claimed by 02:00:00:00:00:02, the MAC address of the peer 10.0.0.2";
        assert_eq!(message, peer);
        let (message, _) = describe([0, 0, 0x5e, 0, 1, 81], vec![(PEER, Some(MAC))]);
        assert!(
            message.ends_with("00:00:5e:00:01:51, the virtual MAC address of VRID 81"),
            "{message}"
        );
        // That of a router of the other family belongs to no owner of this address.
        let (message, cause) = describe([0, 0, 0x5e, 0, 2, 81], vec![(PEER, Some(MAC))]);
        assert_eq!(message, "another host on eth0 has 10.0.0.100");
        let known = "it was claimed by 00:00:5e:00:02:51; the peer 10.0.0.2 has 02:00:00:00:00:02";
        assert_eq!(cause, known);
        let (_, cause) = describe(STRANGER, vec![(PEER, None)]);
        assert!(cause.ends_with("the peer 10.0.0.2 does not answer on eth0"), "{cause}");
        let (_, cause) = describe(STRANGER, Vec::new());
        assert_eq!(cause, "it was claimed by 02:00:00:00:00:09; no peer is known");
    }
}
