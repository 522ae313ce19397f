//! Connections to a backend's own address.

use std::net::SocketAddr;

use tokio::{net::TcpStream, time::Instant};

use super::{Probe, Route, here, own_address, reason::ProbeError, sockets, through, vip, within};

/// Opens a connection to a backend, and closes it at once.
pub(super) async fn run(
    probe: &Probe,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), ProbeError> {
    let own = async { connect(own_address(probe), network).await.map(drop) };
    match &probe.route {
        Route::Backend => within(deadline, probe.timeout, own).await,
        Route::Here(vip) => {
            let at = SocketAddr::new(*vip, probe.port);
            here::connect(at, probe.timeout, deadline).await.map(drop)
        }
        Route::Vip(path) => {
            let answer = network.handshake(path, probe.port);
            through::run(path, probe.timeout, deadline, answer, own).await
        }
    }
}

/// A connection that is reset when it is dropped: the side that closes first would keep the
/// connection in TIME_WAIT for a minute, and the prober would run out of ports.
pub(super) async fn connect(
    address: SocketAddr,
    network: &vip::Network,
) -> Result<TcpStream, ProbeError> {
    let source = network.source_to(address.ip()).await;
    sockets::connect(address, source).await
}
