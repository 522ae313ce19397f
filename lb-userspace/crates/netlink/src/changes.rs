//! Tells when links or addresses change, for commands that then read them anew ([`super::query`]).

use anyhow::{Context as _, Result};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection, packet_core::NetlinkMessage};
use tokio::task::JoinSet;

const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// A subscription to changes. Dropping it ends it.
pub struct Changes {
    messages: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin>,
    /// Moves messages from the socket to the above.
    _connection: JoinSet<()>,
}

impl Changes {
    /// Subscribes in the network namespace of the calling thread: what changes from now on is told.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn listen() -> Result<Self> {
        let (connection, _, messages) =
            new_multicast_connection(&GROUPS).context("subscribe to netlink's events")?;
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let messages = Box::new(messages.map(|(message, _)| message));
        Ok(Self { messages, _connection: connections })
    }

    /// Waits until something has changed since the last call; many changes at once are one. That messages were lost
    /// is a message, too.
    ///
    /// # Errors
    ///
    /// If the socket is broken.
    pub async fn next(&mut self) -> Result<()> {
        const BROKEN: &str = "netlink's socket is closed";
        self.messages.next().await.context(BROKEN)?;
        while let Some(more) = self.messages.next().now_or_never() {
            more.context(BROKEN)?;
        }
        Ok(())
    }
}
