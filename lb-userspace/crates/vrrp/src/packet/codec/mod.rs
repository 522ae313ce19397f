//! One virtual router's advertisements: what it sends, and which it takes (RFC 9568, 7.1; RFC 3768,
//! 7.1).

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use lb_model::router::{Auth, Checksum, Family, Router, RouterKey, Version};

use super::{
    Advertisement, Decoded, MAX_ADDRESSES, Packet, Proof, Refusal, Refused, decode, encode,
};
use crate::{
    auth::{self, Failure, Hmac},
    fsm::ReceivedAdvertisement,
};

/// The way that an advertisement takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// The router's interface.
    First,
    /// [`Router::second_path`].
    Second,
}

/// An advertisement that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its content.
    pub received: ReceivedAdvertisement,
    /// What of it is not this node's, for people: addresses, or the interval of version 3, which is
    /// learnt. RFC 9568, 7.1 wants that reported and no more; a node that refused it would become Active
    /// beside its sender.
    pub mismatch: Option<String>,
}

/// Writes and reads the advertisements of one virtual router.
#[derive(Debug)]
pub struct Codec {
    key: RouterKey,
    version: Version,
    interval: Duration,
    addresses: Vec<IpAddr>,
    /// The same, to compare.
    sorted: Vec<IpAddr>,
    min_ttl: u8,
    checksum: Checksum,
    proof: Proof,
    hmac: Option<Hmac>,
    /// By path; `None`: multicast.
    peers: [Option<BTreeSet<IpAddr>>; 2],
    /// By path: from where this node has sent.
    sources: [Option<IpAddr>; 2],
}

impl Codec {
    /// For a router.
    #[must_use]
    pub fn new(router: &Router) -> Self {
        let mut addresses: Vec<_> = (router.addresses.iter())
            .filter(|a| a.advertised && Family::of(a.address) == router.key.family)
            .map(|a| a.address)
            .collect();
        // RFC 9568, 5.2.9: the first of them is the link-local one.
        addresses.sort_by_key(|address| !is_link_local(*address));
        addresses.truncate(MAX_ADDRESSES);
        let mut sorted = addresses.clone();
        sorted.sort_unstable();
        let (proof, hmac) = match &router.auth {
            Auth::None => (Proof::None, None),
            Auth::Pass(password) => (Proof::Password(*password), None),
            Auth::Hmac { id, secret } => {
                (Proof::None, Some(Hmac::new(*id, secret, auth::window(router.interval))))
            }
        };
        let first = (!router.peers.is_empty()).then(|| router.peers.iter().copied().collect());
        let second = router.second_path.iter().flat_map(|path| path.peers.iter().copied());
        Self {
            key: router.key,
            version: router.version,
            interval: router.interval,
            addresses,
            sorted,
            min_ttl: router.min_ttl,
            checksum: router.checksum,
            proof,
            hmac,
            peers: [first, Some(second.collect())],
            sources: [None; 2],
        }
    }

    /// Carries over what was seen of the senders, so that a change of settings does not let in what
    /// was sent before it.
    pub fn resume(&mut self, before: &mut Self) {
        self.sources = before.sources;
        if let (Some(hmac), Some(before)) = (&mut self.hmac, &mut before.hmac) {
            hmac.resume(before);
        }
    }

    /// An advertisement with this priority, from `source` to `destination` by `path`.
    #[must_use]
    pub fn write(
        &mut self,
        priority: u8,
        path: Path,
        source: IpAddr,
        destination: IpAddr,
        now: SystemTime,
    ) -> Vec<u8> {
        self.sources[path as usize] = Some(source);
        let advertisement = Advertisement {
            version: self.version,
            vrid: self.key.vrid,
            priority,
            interval: self.interval,
            addresses: self.addresses.clone(),
        };
        let mut bytes = encode(&advertisement, source, destination, self.checksum, self.proof);
        if let Some(hmac) = &mut self.hmac {
            hmac.sign(&mut bytes, self.version, source, now);
            if self.key.family == Family::V6 {
                // The checksum of IPv6 is over all that follows the IP header, and not signed.
                super::fill_checksum(&mut bytes, source, destination, Checksum::PseudoHeader);
            }
        }
        bytes
    }

    /// Takes or refuses what has come by `path`.
    ///
    /// # Errors
    ///
    /// Why it is not taken; [`Refusal::count`] counts that.
    pub fn read(
        &mut self,
        packet: &Packet<'_>,
        path: Path,
        now: SystemTime,
    ) -> Result<Taken, Refused> {
        let refuse = |why| Refused { why, received: None };
        if self.sources.contains(&Some(packet.source)) {
            return Err(refuse(Refusal::Own));
        }
        if packet.ttl < self.least_ttl(path) {
            return Err(refuse(Refusal::Ttl(packet.ttl)));
        }
        if Family::of(packet.source) != self.key.family || !self.is_peer(packet, path) {
            return Err(refuse(Refusal::Foreign));
        }
        let decoded = decode(packet).map_err(refuse)?;
        let advertisement = &decoded.advertisement;
        if advertisement.vrid != self.key.vrid {
            return Err(refuse(Refusal::Vrid));
        }
        let received = ReceivedAdvertisement {
            from: packet.source,
            // A router that has not sent yet puts its own address here.
            own: self.sources[path as usize].unwrap_or(packet.destination),
            second_path: path == Path::Second,
            priority: advertisement.priority,
            interval: advertisement.interval,
        };
        if let Err(why) = self.fits(&decoded, packet.source, now) {
            return Err(Refused {
                why,
                received: (why.is_mismatch() || why.is_stale()).then_some(received),
            });
        }
        Ok(Taken { received, mismatch: self.mismatch(advertisement) })
    }

    /// The least TTL or hop limit of what is taken by `path`.
    pub(crate) const fn least_ttl(&self, path: Path) -> u8 {
        // Multicast is never forwarded.
        if self.peers[path as usize].is_some() { self.min_ttl } else { super::TTL }
    }

    fn mismatch(&self, advertisement: &Advertisement) -> Option<String> {
        let mut theirs = advertisement.addresses.clone();
        theirs.sort_unstable();
        if theirs != self.sorted {
            let theirs: Vec<_> = theirs.iter().map(ToString::to_string).collect();
            return Some(format!("its addresses are {}", theirs.join(", ")));
        }
        (advertisement.interval != self.interval)
            .then(|| format!("its interval is {} ms", advertisement.interval.as_millis()))
    }

    /// Whether the sender may send so: to the group, or as a peer to this node.
    fn is_peer(&self, packet: &Packet<'_>, path: Path) -> bool {
        let group = self.key.family.group();
        match &self.peers[path as usize] {
            None => packet.destination == group,
            Some(peers) => packet.destination != group && peers.contains(&packet.source),
        }
    }

    /// Whether it is made as this node makes its own.
    fn fits(
        &mut self,
        decoded: &Decoded<'_>,
        source: IpAddr,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let advertisement = &decoded.advertisement;
        if advertisement.version != self.version {
            return Err(Refusal::Version(match advertisement.version {
                Version::V2 => 2,
                Version::V3 => 3,
            }));
        }
        match (&mut self.hmac, decoded.trailer) {
            (None, None) => {}
            (None, Some(_)) => return Err(Refusal::Auth(Failure::Unexpected)),
            (Some(_), None) => return Err(Refusal::Auth(Failure::Missing)),
            (Some(hmac), Some(trailer)) => hmac
                .verify(decoded.body, trailer, self.version, source, now)
                .map_err(Refusal::Auth)?,
        }
        match (self.proof, decoded.proof) {
            (Proof::Password(ours), Proof::Password(theirs)) if ours == theirs => {}
            (Proof::None, Proof::None) => {}
            (Proof::None, _) => return Err(Refusal::Auth(Failure::Unexpected)),
            (_, Proof::None) => return Err(Refusal::Auth(Failure::Missing)),
            _ => return Err(Refusal::Auth(Failure::Password)),
        }
        // RFC 3768, 7.1; version 3 learns it.
        if self.version == Version::V2 && advertisement.interval != self.interval {
            return Err(Refusal::Interval(advertisement.interval));
        }
        Ok(())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if Ipv6Addr::is_unicast_link_local(&address))
}
