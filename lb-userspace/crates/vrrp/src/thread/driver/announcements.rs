//! Announcements of addresses on the links, and requests for their owners.

use std::{fs, net::IpAddr, ops::Range, time::Instant};

use anyhow::{Context as _, Result};

use super::Driver;
use crate::{
    NoticeKind,
    addresses::{Placed, placed},
    machine::Name,
    observe,
    sockets::Announcer,
    thread::announcement_queue::AnnouncementQueue,
};

/// The sender of announcements, and those that wait for their announcement.
pub(super) struct Announcements {
    pub(super) announcer: Announcer,
    pub(super) queue: AnnouncementQueue,
}

impl Announcements {
    pub(super) fn open() -> Result<Self> {
        let announcer = Announcer::open().context("open a packet socket")?;
        Ok(Self { announcer, queue: AnnouncementQueue::default() })
    }
}

impl Driver {
    /// Announces all addresses of a router, at once.
    pub(super) fn announce(&mut self, name: &Name, now: Instant) {
        self.announce_some(name, 0..usize::MAX, now);
    }

    /// Announces the queued addresses that are due.
    pub(super) fn announce_due(&mut self, now: Instant) {
        let members = &self.members;
        let due = self.announcements.queue.take_due(now, |name| {
            let member = members.get(name)?;
            let holds = member.holding && member.releases == 0;
            holds.then_some(member.router.addresses.len())
        });
        for announcement in due {
            self.announce_some(&announcement.name, announcement.addresses.clone(), now);
            if announcement.requests_owners {
                self.request_owners(&announcement.name, announcement.addresses, now);
            }
        }
    }

    fn announce_some(&mut self, name: &Name, which: Range<usize>, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        let mut trouble = None;
        let interfaces = &self.addresses.interfaces;
        let mut routes: Option<(&str, bool)> = None;
        let some = placed(&member.router).skip(which.start).take(which.len());
        for Placed { interface, address } in some {
            let Some((index, link)) = interfaces.link(interface) else { continue };
            let router = match (address.address, routes) {
                (IpAddr::V4(_), _) => false,
                (IpAddr::V6(_), Some((known, router))) if known == interface => router,
                (IpAddr::V6(_), _) => {
                    let router = is_router(interface);
                    routes = Some((interface, router));
                    router
                }
            };
            match self.announcements.announcer.announce(index, link.mac, address.address, router) {
                Ok(()) => member.counters.announcements += 1,
                Err(error) => {
                    trouble = Some(format!("{} on {interface}: {error}", address.address))
                }
            }
        }
        if let Some(why) = trouble {
            self.reporter.notice(
                name,
                NoticeKind::Trouble,
                "an address was not announced",
                &why,
                now,
            );
        }
    }

    /// Requests on the links other owners of a router's addresses: a host that has them and sends nothing by
    /// itself is not noticed otherwise. Answers come as claims.
    fn request_owners(&mut self, name: &Name, which: Range<usize>, now: Instant) {
        let Some(member) = self.members.get(name) else { return };
        let interfaces = &self.addresses.interfaces;
        let mut trouble = None;
        for one in member.router.addresses.iter().skip(which.start).take(which.len()) {
            // Where claims are looked for; in the name of a virtual MAC address, others would learn that
            // the node's own address is there.
            let interface = one.interface.as_ref().unwrap_or(&member.router.interface);
            let Some((index, link)) = interfaces.link(interface) else { continue };
            let from = observe::link_local(index, interfaces);
            if let Err(error) =
                self.announcements.announcer.request_address(index, link.mac, one.address, from)
            {
                trouble = Some(format!("{} on {interface}: {error}", one.address));
            }
        }
        if let Some(why) = trouble {
            self.reporter.notice(
                name,
                NoticeKind::Trouble,
                "an address's owner could not be requested",
                &why,
                now,
            );
        }
    }
}

/// Whether the kernel forwards packets that come by an interface, as its neighbour advertisements state.
fn is_router(interface: &str) -> bool {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0")
}
