//! One connection, or one datagram and its answer, from a source address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::reason::{ProbeError, REFUSED};

/// Connects from this address; none: the kernel chooses.
pub(super) async fn connect(
    address: SocketAddr,
    source: Option<IpAddr>,
) -> Result<TcpStream, ProbeError> {
    let connected = async {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_zero_linger()?;
        if let Some(source) = source {
            socket.bind((source, 0).into())?;
        }
        socket.connect(address).await
    };
    connected.await.map_err(|error| match error.raw_os_error() {
        // ICMPv6 of the host's firewall (RFC 4443, 3.1, code 1); from a route of this node it comes as well.
        Some(libc::EACCES) if has_route(address) => {
            ProbeError::failed("administratively prohibited")
        }
        _ => ProbeError::of_socket(&error),
    })
}

/// Whether this node sends packets there: to connect a UDP socket takes a route, and sends nothing.
fn has_route(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    std::net::UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

/// Sends a datagram from this address and gives the first answer, or at least its first `most` bytes.
pub(super) async fn exchange(
    address: SocketAddr,
    source: IpAddr,
    payload: &[u8],
    most: usize,
) -> Result<Vec<u8>, ProbeError> {
    let exchanged = async {
        let socket = UdpSocket::bind((source, 0)).await?;
        socket.connect(address).await?;
        socket.send(payload).await?;
        // A few bytes more than asked for, since a wrong answer is quoted.
        let mut answer = vec![0; most.max(64)];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    };
    exchanged.await.map_err(|error| as_udp(ProbeError::of_socket(&error)))
}

/// UDP has no connections that could be refused.
pub(super) fn as_udp(error: ProbeError) -> ProbeError {
    match error {
        ProbeError::Refused(reason) if reason == REFUSED => {
            ProbeError::Refused("port unreachable".into())
        }
        error => error,
    }
}
