//! Datagrams, frames and events of netlink that the sockets receive.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use lb_netlink::{
    client::Read,
    interfaces::{Change, Key},
};

use super::{
    super::{claims::Place, member::Member},
    Driver,
};
use crate::{
    NoticeKind,
    addresses::PROTOCOL,
    announce::Mac,
    machine::{Name, Out},
    observe,
    packet::{self, Path},
};

/// So much is read of one socket in one round, and for so long of all: a flood keeps neither other
/// sockets waiting nor what is due.
const ROUND: usize = 256;
const TURN: Duration = Duration::from_millis(1);
/// So much is looked at of what has come from too far away.
const FAR_ROUND: usize = 8;
/// The same in the first round after this thread was not run in time: whether another router has
/// become Active is to be known before anything is sent.
const LATE_ROUND: usize = 4096;
const LATE_TURN: Duration = Duration::from_millis(20);
/// For so long after a router became Active, the one before it may still claim the
/// addresses.
pub(super) const CHANGEOVER: Duration = Duration::from_secs(1);
/// An address that is removed again that soon is put back only when all are looked after.
const ROBBED_AGAIN: Duration = Duration::from_millis(500);

impl Driver {
    pub(super) fn receive_advertisements(&mut self, now: Instant, out: &mut Out) {
        let wall = SystemTime::now();
        let (round, turn) = if self.late { (LATE_ROUND, LATE_TURN) } else { (ROUND, TURN) };
        let began = Instant::now();
        // One of each router: a stranger can send as many as it likes.
        let mut notices = BTreeMap::new();
        let mut broken = Vec::new();
        // Where the time was over, the next one begins.
        let count = self.listening.receivers.len();
        let first = std::mem::take(&mut self.listening.next);
        let turns = (first..count).chain(0..first.min(count));
        let receivers: Vec<_> = self.listening.receivers.iter().collect();
        for turn_of in turns {
            let (place, (_, receiver)) = receivers[turn_of];
            if began.elapsed() >= turn {
                self.listening.next = turn_of;
                break;
            }
            for _ in 0..round {
                if began.elapsed() >= turn {
                    break;
                }
                let received = match receiver.receive(&mut self.listening.buffer) {
                    Ok(Some(received)) => received,
                    Ok(None) => break,
                    Err(error) => {
                        // That an interface has gone down is reported here too, once.
                        if error.raw_os_error() != Some(libc::ENETDOWN) {
                            broken.push((place.clone(), error));
                        }
                        break;
                    }
                };
                let Some(vrid) = packet::vrid(received.packet.message) else { continue };
                let key = (received.interface, place.1, vrid);
                let Some((name, path)) = self.listening.whose.get(&key) else { continue };
                let Some(member) = self.members.get_mut(name) else { continue };
                let from = received.packet.source;
                let (mut advert, mismatch) = match member.codec.read(&received.packet, *path, wall)
                {
                    Ok(taken) => {
                        member.counters.mismatches += u64::from(taken.mismatch.is_some());
                        (taken.received, taken.mismatch.map(|why| ("are others", why)))
                    }
                    Err(refused) => {
                        refused.why.count(&mut member.counters);
                        let is_known =
                            self.external.accepts_refused(member.router.key, from, refused.why);
                        let advert = refused.received.filter(|_| is_known);
                        if !refused.why.is_reported() || notices.contains_key(name) {
                            let Some(advert) = advert else { continue };
                            (advert, None)
                        } else {
                            let why = refused.why.to_string();
                            let Some(advert) = advert else {
                                notices.insert(Name::clone(name), (from, "are not taken", why));
                                continue;
                            };
                            let what = "are not made as here, and taken as the peer is known";
                            (advert, Some((what, why)))
                        }
                    }
                };
                advert.second_path = *path == Path::Second;
                if *path == Path::First {
                    member.note_sender(from);
                }
                if let Some(own) = member.source(*path) {
                    advert.own = own;
                }
                if let Some((what, why)) = mismatch {
                    notices.entry(Name::clone(name)).or_insert((from, what, why));
                }
                self.machine.receive(name, advert, now, out);
            }
        }
        for (name, (from, what, why)) in notices {
            let message = format!("advertisements of {from} {what}");
            self.reporter.notice(&name, NoticeKind::Mismatch, &message, &why, now);
        }
        for (place, error) in broken {
            self.listening.receivers.remove(&place);
            let cause = format!("listen on {}: {error}", place.0);
            self.reporter.notice("", NoticeKind::Trouble, "a socket is broken", &cause, now);
        }
    }

    /// Counts and reports advertisements that have crossed a router, which the kernel keeps away.
    pub(super) fn look_afar(&mut self, now: Instant) {
        let wall = SystemTime::now();
        let mut notices = BTreeMap::new();
        for (place, (_, receiver)) in &self.listening.receivers {
            for _ in 0..FAR_ROUND {
                // What is wrong with a socket shows with the other one.
                let Ok(Some(received)) = receiver.receive_far(&mut self.listening.buffer) else {
                    break;
                };
                let Some(vrid) = packet::vrid(received.packet.message) else { continue };
                let key = (received.interface, place.1, vrid);
                let Some((name, path)) = self.listening.whose.get(&key) else { continue };
                let Some(member) = self.members.get_mut(name) else { continue };
                let Err(refused) = member.codec.read(&received.packet, *path, wall) else {
                    continue;
                };
                refused.why.count(&mut member.counters);
                if refused.why.is_reported() {
                    notices.insert(Name::clone(name), (received.packet.source, refused.why));
                }
            }
        }
        for (name, (from, why)) in notices {
            let message = format!("advertisements of {from} are not taken");
            self.reporter.notice(&name, NoticeKind::Mismatch, &message, &why.to_string(), now);
        }
    }

    /// Links and addresses that have changed.
    pub(super) fn read_events(&mut self, now: Instant) {
        let mut changes = Vec::new();
        let interfaces = &mut self.addresses.interfaces;
        let read = self.events.events.read(|message| changes.extend(interfaces.take(&message)));
        self.events.are_lost |= matches!(read, Ok(Read::Lost));
        let read = match read {
            Ok(_) if self.events.are_lost => self.addresses.read_anew(),
            read => read.map(drop),
        };
        if let Err(error) = read {
            let cause = format!("{error:#}");
            self.reporter.notice("", NoticeKind::Trouble, "netlink can't be read", &cause, now);
            return;
        }
        if std::mem::take(&mut self.events.are_lost) {
            changes.clear();
        } else if changes.is_empty() {
            return;
        }
        // Nothing depends on the virtual addresses that come and go with the routers.
        let mut matters = changes.is_empty();
        let (mut gone, mut by_hand) = (false, BTreeSet::new());
        for change in changes {
            match change {
                Change::AddressGone(key, state) => {
                    matters |= state.protocol != PROTOCOL;
                    gone = true;
                    if self.addresses.is_gone(&key, &state) {
                        by_hand.insert(key.1);
                    }
                }
                Change::Address(key, state) => {
                    matters |= state.protocol != PROTOCOL;
                    if state.duplicate {
                        self.is_elsewhere(key, now);
                    }
                }
                Change::Link(_) | Change::LinkGone(_) => matters = true,
            }
        }
        if matters {
            self.open_sockets(now);
            self.see_to_devices();
            self.move_addresses();
        }
        if gone {
            self.put_back(&by_hand, now);
        }
    }

    /// Puts addresses back that another process has removed, of which these were set by hand.
    fn put_back(&mut self, by_hand: &BTreeSet<IpAddr>, now: Instant) {
        let mut robbed = Vec::new();
        for (name, member) in &mut self.members {
            if !member.holding || member.moving || self.addresses.missing(&member.router).is_empty()
            {
                continue;
            }
            let again = member.robbed.is_some_and(|at| now.duration_since(at) < ROBBED_AGAIN);
            member.robbed = Some(now);
            if !again {
                robbed.push(Name::clone(name));
            }
        }
        for name in robbed {
            self.restore(&name, by_hand, now);
        }
    }

    /// Receives others' claims of an address of ours.
    pub(super) fn receive_claims(&mut self, now: Instant) {
        let began = Instant::now();
        let own = |mac| self.addresses.interfaces.links.values().any(|link| link.mac == mac);
        let mut claims = BTreeMap::new();
        for (place, (index, watch)) in &self.listening.watches {
            for _ in 0..ROUND {
                if began.elapsed() >= TURN {
                    break;
                }
                match watch.claim() {
                    Ok(Some(claim)) => {
                        let key = (*index, claim.address);
                        if !claims.contains_key(&key) && !own(claim.mac) {
                            claims.insert(key, claim.mac);
                        }
                    }
                    Ok(None) => break,
                    // Once when the interface has gone down; other causes are found at the next look.
                    Err(error) => {
                        tracing::debug!(interface = place.0, "watch: {error}");
                        if error.kind() == io::ErrorKind::Interrupted {
                            continue;
                        }
                        break;
                    }
                }
            }
        }
        for (place, mac) in claims {
            if !self.claims.answer(place, mac) {
                self.look_into(place, mac, now);
            }
        }
    }

    /// Requests the peers of the router whose address is claimed, to know whether one of them claims it.
    fn look_into(&mut self, (index, address): Place, mac: Mac, now: Instant) {
        let Some(member) = self.holder(address, now) else { return };
        let peers = member.peers().to_vec();
        let requested = self.claims.add((index, address), mac, &peers, now);
        if requested.is_empty() {
            return;
        }
        self.watch(now);
        let interfaces = &self.addresses.interfaces;
        let Some(link) = interfaces.links.get(&index) else { return };
        let from = observe::link_local(index, interfaces);
        for peer in requested {
            // A peer that was not requested counts as one that does not answer.
            if let Err(error) =
                self.announcements.announcer.request_address(index, link.mac, peer, from)
            {
                tracing::debug!(%peer, interface = link.name, "ask for a peer: {error}");
            }
        }
    }

    /// Reports the claims of which all is known.
    pub(super) fn report_claims(&mut self, now: Instant) {
        let claims = self.claims.take(now);
        if claims.is_empty() {
            return;
        }
        // The peers are requested no more.
        self.watch(now);
        for claimed in claims {
            let (index, address) = claimed.place;
            // A router that gave it up meanwhile has no conflict.
            let Some(member) = self.holder(address, now) else { continue };
            let router = member.router.name.clone();
            let (message, cause) = claimed.describe(self.addresses.interface(index));
            self.reporter.notice(&router, NoticeKind::AddressElsewhere, &message, &cause, now);
        }
    }

    /// The kernel has found that another host has an address of ours.
    fn is_elsewhere(&mut self, (index, address, _): Key, now: Instant) {
        let Some(member) = self.holder(address, now) else { return };
        let router = member.router.name.clone();
        let interface = self.addresses.interface(index).to_owned();
        let message = format!("another host on {interface} has {address}");
        let cause = "the kernel has found it as a duplicate";
        self.reporter.notice(&router, NoticeKind::AddressElsewhere, &message, cause, now);
    }

    /// The router that holds an address and does not give it up.
    fn holder(&self, address: IpAddr, now: Instant) -> Option<&Member> {
        let holds = self.members.values().find(|member| {
            let since = member.assigned_since.filter(|_| member.holding);
            since.is_some_and(|since| now.duration_since(since) >= CHANGEOVER)
                && member.has(address)
        });
        // A router that this one yields to announces itself, and its claim may arrive before its advertisement.
        holds.filter(|member| !self.machine.is_yielding(&member.router.name))
    }
}
