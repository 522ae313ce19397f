//! One virtual router at the driver: how its advertisements leave, and what it has of the system.

use std::{
    io,
    net::IpAddr,
    time::{Instant, SystemTime},
};

use lb_api::routers::Counters;
use lb_model::router::Router;
use lb_netlink::interfaces::Interfaces;

use crate::{
    macvlan, observe,
    packet::{Codec, Path},
    sockets::{Sender, SocketInterface},
};

/// So many of the routers that advertise are remembered: a stranger can make up any number.
const MOST_SENDERS: usize = 4;

/// A virtual router at the driver.
pub(crate) struct Member {
    /// How it is configured.
    pub router: Router,
    /// The group that it is in.
    pub group: Option<String>,
    /// Reads and writes its advertisements.
    pub codec: Codec,
    /// Whether its addresses are to be on their interfaces.
    pub holding: bool,
    /// Whether a predecessor has left them there, and what becomes of them is not decided yet.
    pub left: bool,
    /// Since when they are to be there.
    pub assigned_since: Option<Instant>,
    /// How often its addresses are still to come off.
    pub releases: u32,
    /// Whether they are to be elsewhere by now than they are, as its virtual MAC address has come or
    /// gone.
    pub moving: bool,
    /// Whether they are still to be announced.
    pub announcing: bool,
    /// When one of them was last removed by another process.
    pub robbed: Option<Instant>,
    /// Whether frames to its virtual MAC address are taken.
    pub mac_taken: bool,
    /// The senders of advertisements that were taken, by the first path, last at the end.
    senders: Vec<IpAddr>,
    /// What is counted here.
    pub counters: Counters,
    /// What does not work with its addresses.
    pub problem: Option<String>,
    /// Its addresses that an operator has put there, though this node does not hold them.
    pub stray: Option<String>,
    /// That the kernel takes none of its addresses.
    pub refused: Option<Refused>,
    path_senders: [Option<PathSender>; 2],
}

/// The kernel takes none of a router's addresses.
pub struct Refused {
    /// The kernel's answer.
    pub why: String,
    /// When lbd tries again.
    pub query_at: Instant,
}

/// The socket that sends a router's advertisements by a path, and its interface.
struct PathSender {
    interface: SocketInterface,
    sender: Sender,
}

impl Member {
    /// A router that sends nothing until [`Self::open_senders`].
    pub fn new(router: &Router, group: Option<String>) -> Self {
        Self {
            router: router.clone(),
            group,
            codec: Codec::new(router),
            holding: false,
            left: false,
            assigned_since: None,
            releases: 0,
            moving: false,
            announcing: false,
            robbed: None,
            mac_taken: false,
            senders: Vec::new(),
            counters: Counters::default(),
            problem: None,
            stray: None,
            refused: None,
            path_senders: [None, None],
        }
    }

    /// The same router with other settings.
    pub fn set(&mut self, router: &Router, group: Option<String>) {
        if self.router != *router {
            let mut before = std::mem::replace(&mut self.codec, Codec::new(router));
            self.codec.resume(&mut before);
            self.router = router.clone();
            self.refused = None;
        }
        self.group = group;
    }

    /// Opens the sockets that it sends by, for the present links and addresses; returns an error that kept it
    /// from that.
    pub(crate) fn open_senders(&mut self, interfaces: &Interfaces) -> Option<String> {
        let device = self.router.virtual_mac.as_ref().map(|mac| mac.interface.clone());
        let first = device.unwrap_or_else(|| self.router.interface.clone());
        let source =
            observe::source(&self.router, interfaces).filter(|_| self.has_device(interfaces));
        // Until its new device is there, it goes on as before.
        let stays = self.moving && !self.has_device(interfaces);
        let trouble =
            (!stays).then(|| self.open_sender(Path::First, &first, source, interfaces)).flatten();
        let second = self.router.second_path.as_ref().map(|path| path.interface.clone());
        let source = observe::second_source(&self.router, interfaces);
        let other =
            second.and_then(|second| self.open_sender(Path::Second, &second, source, interfaces));
        if self.router.second_path.is_none() {
            self.path_senders[Path::Second as usize] = None;
        }
        trouble.or(other)
    }

    fn open_sender(
        &mut self,
        path: Path,
        interface: &str,
        source: Option<IpAddr>,
        interfaces: &Interfaces,
    ) -> Option<String> {
        let path_sender = &mut self.path_senders[path as usize];
        let (Some(source), Some(index)) = (source, interfaces.index(interface)) else {
            *path_sender = None;
            return None;
        };
        let interface = SocketInterface { name: interface.to_owned(), index };
        if path_sender
            .as_ref()
            .is_some_and(|w| w.interface == interface && w.sender.source() == source)
        {
            return None;
        }
        match Sender::open(&interface, source) {
            Ok(sender) => {
                *path_sender = Some(PathSender { interface, sender });
                None
            }
            Err(error) => {
                *path_sender = None;
                Some(format!("send from {source} by {}: {error}", interface.name))
            }
        }
    }

    /// An advertisement of this router was taken, by the first path.
    pub(crate) fn note_sender(&mut self, from: IpAddr) {
        if self.senders.last() != Some(&from) {
            self.senders.retain(|one| *one != from);
            self.senders.push(from);
            self.senders.drain(..self.senders.len().saturating_sub(MOST_SENDERS));
        }
    }

    /// Its peers on the first path: those that are configured, or else those that have advertised.
    pub(crate) fn peers(&self) -> &[IpAddr] {
        if self.router.peers.is_empty() { &self.senders } else { &self.router.peers }
    }

    /// Whether an address is one of its virtual ones.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.router.addresses.iter().any(|one| one.address == address)
    }

    /// Whether its device with the virtual MAC address is there and up, if it needs one.
    pub(crate) fn has_device(&self, interfaces: &Interfaces) -> bool {
        self.router.virtual_mac.as_ref().is_none_or(|device| {
            let link = interfaces.link(&device.interface);
            link.is_some_and(|(_, link)| link.up && link.mac == macvlan::mac(self.router.key))
        })
    }

    /// That its device with the virtual MAC address is not there, in words.
    pub(crate) fn missing_device(&self, interfaces: &Interfaces) -> Option<String> {
        let device = self.router.virtual_mac.as_ref().filter(|_| !self.has_device(interfaces))?;
        let interface = &device.interface;
        Some(format!("interface {interface} with its virtual MAC address is missing or down"))
    }

    /// The address that it sends from by a path, if it can.
    pub(crate) fn source(&self, path: Path) -> Option<IpAddr> {
        self.path_senders[path as usize].as_ref().map(|path_sender| path_sender.sender.source())
    }

    /// Sends an advertisement to all peers by all paths; what did not work.
    pub(crate) fn advertise(&mut self, priority: u8, now: SystemTime) -> Result<(), String> {
        let mut result = Ok(());
        let group = [self.router.key.family.group()];
        for path in [Path::First, Path::Second] {
            let Some(path_sender) = &self.path_senders[path as usize] else { continue };
            let peers: &[IpAddr] = match (path, &self.router.second_path) {
                (Path::First, _) if self.router.peers.is_empty() => &group,
                (Path::First, _) => &self.router.peers,
                (Path::Second, Some(second)) => &second.peers,
                (Path::Second, None) => &[],
            };
            for peer in peers {
                let bytes =
                    self.codec.write(priority, path, path_sender.sender.source(), *peer, now);
                match path_sender.sender.send(&bytes, *peer) {
                    Ok(()) => {
                        self.counters.sent += 1;
                        self.counters.priority_zero_sent += u64::from(priority == 0);
                    }
                    Err(error) => result = Err(trouble(&error, *peer, &path_sender.interface.name)),
                }
            }
        }
        result
    }
}

fn trouble(error: &io::Error, peer: IpAddr, interface: &str) -> String {
    format!("send to {peer} by {interface}: {error}")
}
