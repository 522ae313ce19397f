//! Datagrams, and what the answer must begin with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::Instant;

use super::{
    Probe, Route, check, here, own_address,
    reason::{ProbeError, quoted},
    sockets::{self, as_udp},
    through, vip, within,
};

/// Sends a datagram to a backend, and checks its answer.
pub(super) async fn run(
    probe: &Probe,
    udp: &check::Udp,
    network: &vip::Network,
    deadline: Instant,
) -> Result<(), ProbeError> {
    let answer = exchange(probe, &udp.send, udp.expect.len(), network, deadline).await?;
    if answer.starts_with(&udp.expect) {
        return Ok(());
    }
    Err(ProbeError::failed(format!("answers {}, not {}", quoted(&answer), quoted(&udp.expect))))
}

/// Sends a datagram by the probe's route and gives the first answer; at least its first `most`
/// bytes.
pub(super) async fn exchange(
    probe: &Probe,
    payload: &[u8],
    most: usize,
    network: &vip::Network,
    deadline: Instant,
) -> Result<Vec<u8>, ProbeError> {
    let own = own_exchange(own_address(probe), payload, most, network);
    match &probe.route {
        Route::Backend => within(deadline, probe.timeout, own).await,
        Route::Here(vip) => {
            let at = SocketAddr::new(*vip, probe.port);
            here::exchange(at, payload, most, probe.timeout, deadline).await
        }
        Route::Vip(path) => {
            let answer = network.exchange(path, probe.port, payload);
            let own = async { own.await.map(drop) };
            through::run(path, probe.timeout, deadline, answer, own).await.map_err(as_udp)
        }
    }
}

/// Its socket is connected: so it receives only from the backend, its ICMP port unreachable too.
async fn own_exchange(
    address: SocketAddr,
    payload: &[u8],
    most: usize,
    network: &vip::Network,
) -> Result<Vec<u8>, ProbeError> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = network.source_to(address.ip()).await.unwrap_or(any);
    sockets::exchange(address, source, payload, most).await
}
