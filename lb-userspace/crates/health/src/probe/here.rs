//! A backend on this node: the probe goes to the VIP in the node's own stack, as the program passes clients' packets
//! there.
//!
//! The socket is bound to the VIP too. So lbd finds out that this node does not have a VIP before anything is sent: a
//! connection to it would leave the node, and another balancer would send it to another backend.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_model::units::format_duration;
use tokio::{net::TcpStream, time::Instant};

use super::{reason::ProbeError, sockets, within};

/// Opens a connection.
pub(super) async fn connect(
    at: SocketAddr,
    timeout: Duration,
    deadline: Instant,
) -> Result<TcpStream, ProbeError> {
    has(at.ip())?;
    let answer = within(deadline, timeout, sockets::connect(at, Some(at.ip()))).await;
    answer.map_err(|error| alive(error, at.ip(), timeout))
}

/// Sends a datagram, and waits for its answer.
pub(super) async fn exchange(
    at: SocketAddr,
    payload: &[u8],
    most: usize,
    timeout: Duration,
    deadline: Instant,
) -> Result<Vec<u8>, ProbeError> {
    has(at.ip())?;
    let answer = within(deadline, timeout, sockets::exchange(at, at.ip(), payload, most)).await;
    answer.map_err(|error| alive(error, at.ip(), timeout))
}

/// Whether this node has the VIP. With `net.ipv4.ip_nonlocal_bind` that is not known: the probe then has no answer.
fn has(vip: IpAddr) -> Result<(), ProbeError> {
    match UdpSocket::bind((vip, 0)) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            Err(ProbeError::failed(format!(
                "{vip} is not on this node, which is the backend: \
                 ip address add {vip}/{length} dev lo"
            )))
        }
        _ => Ok(()),
    }
}

/// The host that is silent is this one, which lives.
fn alive(error: ProbeError, vip: IpAddr, timeout: Duration) -> ProbeError {
    match error {
        ProbeError::Silent(_) | ProbeError::Resolves(_) => ProbeError::failed(format!(
            "no answer within {} on this node itself: does its firewall drop what is for {vip}?",
            format_duration(timeout)
        )),
        error => error,
    }
}
