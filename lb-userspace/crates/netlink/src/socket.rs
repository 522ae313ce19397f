//! Netlink's sockets: one for requests, one for events, so that a flood of events loses no answer
//! and no event is taken for one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage, neighbour::NeighbourMessage};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    sys::AsyncSocket as _,
};
use tokio::{task::JoinSet, time::timeout};

use super::{
    generic, messages,
    tables::{Device, FdbKey, LinkLayer, Neighbour, NeighbourKey, Route},
};

/// Groups of events. Nexthop objects are missing: their changes are seen at the next refresh.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Room for events, in bytes; the kernel may grant less.
const EVENT_BUFFER: u32 = 1 << 20;
/// How often it is read anew what has changed while it was read.
const ATTEMPTS: u32 = 4;
/// How long the kernel may take to answer; it does so at once, unless the answer can't be read.
const ANSWER: Duration = Duration::from_secs(2);

/// Both sockets. Dropping it closes them.
pub(super) struct Sockets {
    handle: Handle,
    events: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Sync + Unpin>,
    /// Moves messages between the sockets and the two above.
    _connections: JoinSet<()>,
}

/// What an event says.
#[derive(Debug)]
pub(super) enum Event {
    /// A neighbour has changed.
    Neighbour(NeighbourKey, Neighbour),
    /// The kernel has forgotten a neighbour.
    NeighbourGone(NeighbourKey),
    /// A bridge has learnt that a MAC address is behind this port.
    Fdb(FdbKey, u32),
    /// Links have changed, and with them, maybe, routes.
    Links,
    /// Routes, rules or addresses have changed.
    Routes,
    /// Events were lost.
    Overrun,
    /// Nothing of interest.
    Other,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel refused it, with this error number.
    Refused(i32),
    /// The socket is broken.
    Socket(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(errno) => std::io::Error::from_raw_os_error(errno).into(),
            Failure::Socket(error) => error,
        }
    }
}

/// The index of the interface on whose link an address is; none if a router is on the way to it, or if no way
/// leads there. In the network namespace of the calling thread.
///
/// # Errors
///
/// If netlink can't be spoken to.
pub async fn link_of(address: IpAddr) -> Result<Option<u32>> {
    Ok(match Sockets::for_requests()?.route(address).await? {
        Route::Via { oif, gateway: None, .. } => Some(oif),
        _ => None,
    })
}

/// Those of these addresses whose routes lead to an interface without Ethernet header, with its name. In the network
/// namespace of the calling thread.
///
/// # Errors
///
/// If netlink can't be spoken to.
pub(super) async fn raw_ip_ways(addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, String>> {
    let sockets = Sockets::for_requests()?;
    let devices = sockets.devices().await?;
    let mut ways = BTreeMap::new();
    for &address in addresses {
        if let Route::Via { oif, .. } = sockets.route(address).await?
            && let Some(device) = devices.get(&oif)
            && device.layer == LinkLayer::RawIp
        {
            ways.insert(address, device.name.clone());
        }
    }
    Ok(ways)
}

impl Sockets {
    /// Opens both in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self> {
        let (requests, handle, _) = new_connection().context("open a netlink socket")?;
        let (mut multicast, _, events) =
            new_multicast_connection(&GROUPS).context("subscribe to netlink's events")?;
        multicast
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(EVENT_BUFFER)
            .context("enlarge the buffer of netlink's events")?;
        let mut connections = JoinSet::new();
        connections.spawn(requests);
        connections.spawn(multicast);
        let events = Box::new(events.map(|(message, _)| message));
        Ok(Self { handle, events, _connections: connections })
    }

    /// Opens the one of requests in the network namespace of the calling thread: no event comes.
    pub(super) fn for_requests() -> Result<Self> {
        let (requests, handle, _) = new_connection().context("open a netlink socket")?;
        let mut connections = JoinSet::new();
        connections.spawn(requests);
        Ok(Self { handle, events: Box::new(stream::pending()), _connections: connections })
    }

    /// The next event; none if the socket is broken.
    pub(super) async fn event(&mut self) -> Option<Event> {
        self.events.next().await.map(event_of)
    }

    /// An event that is there already.
    pub(super) fn event_now(&mut self) -> Option<Event> {
        self.events.next().now_or_never().flatten().map(event_of)
    }

    /// All interfaces.
    pub(super) async fn devices(&self) -> Result<BTreeMap<u32, Device>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await;
        let answers =
            answers.map_err(anyhow::Error::from).context("read the interfaces by netlink")?;
        // Before Linux 6.3 it does not say.
        let features = generic::xdp_features().unwrap_or_default();
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(messages::device(link)),
                _ => None,
            })
            .map(|(ifindex, device)| {
                let xdp_features = features.get(&ifindex).copied();
                (ifindex, Device { xdp_features, ..device })
            })
            .collect())
    }

    /// What all bridges have learnt.
    pub(super) async fn fdb(&self) -> Result<BTreeMap<FdbKey, u32>> {
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(messages::all_fdb())).await;
        let answers = answers
            .map_err(anyhow::Error::from)
            .context("read by netlink what bridges have learnt")?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(entry) => messages::fdb(entry),
                _ => None,
            })
            .collect())
    }

    /// All neighbours.
    pub(super) async fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump(request).await;
        let answers =
            answers.map_err(anyhow::Error::from).context("read the neighbours by netlink")?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => messages::neighbour(neighbour),
                _ => None,
            })
            .collect())
    }

    /// The kernel's route to `address`, by its rules and metrics.
    pub(super) async fn route(&self, address: IpAddr) -> Result<Route> {
        let request = RouteNetlinkMessage::GetRoute(messages::route_to(address));
        match self.request(request, 0).await {
            Ok(answers) => answers
                .iter()
                .find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(route) => Some(messages::route(route)),
                    _ => None,
                })
                .with_context(|| format!("look up the route to {address}: no answer")),
            Err(Failure::Refused(errno)) => Ok(messages::route_error(errno)),
            Err(Failure::Socket(error)) => {
                Err(error).with_context(|| format!("look up the route to {address}"))
            }
        }
    }

    /// Makes the kernel resolve or probe a neighbour, as a packet to it would.
    pub(super) async fn use_neighbour(&self, key: NeighbourKey) -> Result<(), Failure> {
        let request = RouteNetlinkMessage::NewNeighbour(messages::use_neighbour(key));
        self.request(request, NLM_F_ACK | NLM_F_CREATE).await.map(|_| ())
    }

    /// Makes the kernel forget a neighbour, so that it asks all when it is used next.
    pub(super) async fn forget_neighbour(&self, key: NeighbourKey) -> Result<(), Failure> {
        let request = RouteNetlinkMessage::DelNeighbour(messages::one_neighbour(key));
        self.request(request, NLM_F_ACK).await.map(|_| ())
    }

    /// Everything of a kind. What has changed while it was read is read anew, as something else may be
    /// missing then.
    async fn dump(
        &self,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let (answers, whole) = self.exchange(request.clone(), NLM_F_DUMP).await?;
            if whole || left == 0 {
                return Ok(answers);
            }
        }
    }

    async fn request(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.exchange(request, flags).await.map(|(answers, _)| answers)
    }

    /// The answers, and whether nothing has changed while they were made.
    async fn exchange(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Failure> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut stream = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Failure::Socket(anyhow!("netlink's socket is closed")))?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            // An answer that the decoder can't read never comes.
            let next = timeout(ANSWER, stream.next())
                .await
                .map_err(|_| Failure::Socket(anyhow!("netlink does not answer")))?;
            whole &= next.as_ref().is_none_or(|one| one.header.flags & NLM_F_DUMP_INTR == 0);
            match next.map(|message| message.payload) {
                None => return Ok((answers, whole)),
                Some(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                Some(NetlinkPayload::Error(error)) => {
                    if let Some(code) = error.code {
                        return Err(Failure::Refused(code.get().abs()));
                    }
                }
                Some(_) => {}
            }
        }
    }
}

fn event_of(message: NetlinkMessage<RouteNetlinkMessage>) -> Event {
    match message.payload {
        NetlinkPayload::Overrun(_) => Event::Overrun,
        NetlinkPayload::InnerMessage(inner) => match inner {
            RouteNetlinkMessage::NewNeighbour(message) => match messages::neighbour(&message) {
                Some((key, neighbour)) => Event::Neighbour(key, neighbour),
                None => messages::fdb(&message)
                    .map_or(Event::Other, |(key, port)| Event::Fdb(key, port)),
            },
            RouteNetlinkMessage::DelNeighbour(message) => messages::neighbour(&message)
                .map_or(Event::Other, |(key, _)| Event::NeighbourGone(key)),
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Event::Links,
            _ => Event::Routes,
        },
        _ => Event::Other,
    }
}
