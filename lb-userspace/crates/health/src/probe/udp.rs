//! Datagrams, and what the answer must begin with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::Instant;

use super::{
    Question, Route, check, here, own_address,
    reason::{Miss, quoted},
    sockets::{self, as_udp},
    through, vip, within,
};

/// Asks a backend for a datagram.
pub(super) async fn ask(
    question: &Question,
    udp: &check::Udp,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), Miss> {
    let answer = exchange(question, &udp.send, udp.expect.len(), network, deadline).await?;
    if answer.starts_with(&udp.expect) {
        return Ok(());
    }
    Err(Miss::failed(format!("answers {}, not {}", quoted(&answer), quoted(&udp.expect))))
}

/// Sends a datagram by the question's route and gives the first answer; at least its first `most`
/// bytes.
pub(super) async fn exchange(
    question: &Question,
    payload: &[u8],
    most: usize,
    network: &vip::Network,
    deadline: Instant,
) -> Result<Vec<u8>, Miss> {
    let own = own_exchange(own_address(question), payload, most, network);
    match &question.route {
        Route::Backend => within(deadline, question.timeout, own).await,
        Route::Here(vip) => {
            let at = SocketAddr::new(*vip, question.port);
            here::exchange(at, payload, most, question.timeout, deadline).await
        }
        Route::Vip(way) => {
            let answer = network.exchange(way, question.port, payload);
            let own = async { own.await.map(drop) };
            through::ask(way, question.timeout, deadline, answer, own).await.map_err(as_udp)
        }
    }
}

/// Its socket is connected: so it receives only from the backend, its ICMP port unreachable too.
async fn own_exchange(
    address: SocketAddr,
    payload: &[u8],
    most: usize,
    network: &vip::Network,
) -> Result<Vec<u8>, Miss> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = network.source_to(address.ip()).await.unwrap_or(any);
    sockets::exchange(address, source, payload, most).await
}
