//! Questions to a VIP at one backend, by the way that the clients' packets take.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{desired::Mode, netlink::NextHop, settings::Tunnel};

/// The way to a VIP at one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The VIP that is asked.
    pub vip: IpAddr,
    /// The backend that is to answer.
    pub backend: IpAddr,
    /// How packets travel to it.
    pub mode: Mode,
    /// Where frames for it go.
    pub hop: NextHop,
    /// The outer sources of tunnels.
    pub tunnel: Tunnel,
}

/// Why a question has no answer. That nothing comes back is none of these: the caller waits as long
/// as it likes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The backend says that nobody is there: RST, or ICMP port unreachable.
    #[error("connection refused")]
    Refused,
    /// The question could not be asked, which says nothing about the backend.
    #[error("{0}")]
    Local(String),
}

/// Asks backends. Clones share everything; sockets open when they are first needed, inside a tokio
/// runtime and in the network namespace of the calling thread.
#[derive(Clone, Debug, Default)]
pub struct Network {
    inner: Arc<()>,
}

/// A TCP connection to a VIP at one backend. Dropped, it is reset.
#[derive(Debug)]
pub struct Stream(());

fn missing() -> Error {
    Error::Local("checks through the VIP are not built in".into())
}

impl Network {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only packets from these addresses are taken in, and only these can be asked.
    pub fn set_vips(&self, vips: BTreeSet<IpAddr>) {
        drop((vips, &self.inner));
    }

    /// A TCP handshake and no more: SYN, SYN-ACK, RST.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn handshake(&self, way: &Way, port: u16) -> Result<(), Error> {
        let _ = (way, port);
        Err(missing())
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn connect(&self, way: &Way, port: u16) -> Result<Stream, Error> {
        let _ = (way, port);
        Err(missing())
    }

    /// Sends a datagram and waits for the first answer.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn exchange(&self, way: &Way, port: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let _ = (way, port, payload);
        Err(missing())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
