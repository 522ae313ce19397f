//! Connections to a backend's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use super::{Question, Route, here, own_address, reason::Miss, through, vip, within};

/// Asks a backend to take a connection, and closes it at once.
pub(super) async fn ask(
    question: &Question,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), Miss> {
    let own = async { connect(own_address(question), network).await.map(drop) };
    match &question.route {
        Route::Backend => within(deadline, question.timeout, own).await,
        Route::Here(vip) => {
            let at = SocketAddr::new(*vip, question.port);
            here::connect(at, question.timeout, deadline).await.map(drop)
        }
        Route::Vip(way) => {
            let answer = network.handshake(way, question.port);
            through::ask(way, question.timeout, deadline, answer, own).await
        }
    }
}

/// A connection that is reset when it is dropped: the side that closes first would keep the
/// connection in TIME_WAIT for a minute, and the prober would run out of ports.
pub(super) async fn connect(
    address: SocketAddr,
    network: &vip::Network,
) -> Result<TcpStream, Miss> {
    let source = network.source_to(address.ip()).await;
    connect_from(address, source).await
}

/// The same from this address; none: the kernel chooses.
pub(super) async fn connect_from(
    address: SocketAddr,
    source: Option<IpAddr>,
) -> Result<TcpStream, Miss> {
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
        Some(libc::EACCES) if has_route(address) => Miss::failed("administratively prohibited"),
        _ => Miss::of_socket(&error),
    })
}

/// Whether this node sends packets there: to connect a UDP socket takes a route, and sends nothing.
fn has_route(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}
