//! Connections to a backend's own address.

use std::net::SocketAddr;

use tokio::{net::TcpStream, time::Instant};

use super::{Question, Route, here, own_address, reason::Miss, sockets, through, vip, within};

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
    sockets::connect(address, source).await
}
