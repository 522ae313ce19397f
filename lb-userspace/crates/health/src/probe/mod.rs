//! One probe of one backend, and its outcome.
//!
//! Callers use [`run`]. There is a file for each kind of probe; [`through`] sends it to the VIP, and `reason`
//! describes failures. Silence is that of a host, not of a port. Nothing is kept between probes but the TLS
//! configurations of [`tls::Cache`].

mod dns;
mod exec;
mod here;
mod http;
mod limit;
mod reason;
mod sockets;
mod tcp;
mod through;
pub mod tls;
mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    time::Duration,
};

use lb_model::{check, seen::BackendKey};
use tokio::time::{Instant, timeout_at};

use self::reason::ProbeError;
use super::vip::{self, Sign};

/// The last part of a probe's time, at most, in which lbd looks for the cause where no answer has come.
const LAST_SHARE: Duration = Duration::from_millis(250);

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is good.
    Up,
    /// It did not answer as it should.
    Failed {
        /// What came instead of a good answer.
        how: Failure,
        /// What was wrong, for people.
        reason: String,
    },
    /// This node could not send the probe (no file descriptor, no memory, no route of our own yet):
    /// that shows nothing about the backend.
    Unknown {
        /// Why not, for people.
        reason: String,
    },
}

/// What came instead of a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing at all, and no sign of life of the host by other means: it may be gone.
    Silence,
    /// Nothing but that its address resolves (ARP, neighbour discovery): its firewall drops what this node sends,
    /// or a switch or a hypervisor answers for a host that is gone.
    Resolves,
    /// A refusal (RST, ICMP port unreachable): the host is alive, and nothing listens.
    Refusal,
    /// Something else, a wrong answer or one that is not complete in time: the host is alive.
    Wrong,
}

impl Failure {
    /// Whether the host has sent anything.
    #[must_use]
    pub(crate) const fn is_answer(self) -> bool {
        matches!(self, Self::Refusal | Self::Wrong)
    }
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the backend's own address.
    Backend,
    /// To the VIP, at the backend.
    Vip(vip::ProbePath),
    /// To this VIP in the node's own stack: the backend's address is this node's own.
    Here(IpAddr),
}

/// A probe of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The service's name, for commands.
    pub service: String,
    /// The backend, and its service.
    pub target: BackendKey,
    /// The kind of check.
    pub kind: check::Kind,
    /// The port that it goes to.
    pub port: u16,
    /// Where it goes.
    pub route: Route,
    /// How long the answer may take, all of it.
    pub timeout: Duration,
}

/// Runs a probe, in a tokio runtime; takes at most the probe's `timeout` (a little more for cleaning up
/// a command).
///
/// Whatever the peer sends, it neither panics nor takes in more than 16 KiB of headers and 64 KiB of
/// a body. Dropped, it leaves nothing behind: connections are reset, a command is killed.
pub async fn run(probe: &Probe, network: &vip::Network, tls: &tls::Cache) -> Outcome {
    let deadline = Instant::now() + probe.timeout;
    let answer = pin!(run_kind(probe, network, tls, deadline));
    let answer = match (&probe.kind, &probe.route) {
        // The first two send nothing to the host; in the last case the host is this one, which is alive.
        (check::Kind::None | check::Kind::Exec(_), _) | (_, Route::Here(_)) => answer.await,
        _ => unless_alive(probe, network, deadline, answer).await,
    };
    match answer {
        Ok(()) => Outcome::Up,
        Err(error) => error.into(),
    }
}

async fn run_kind(
    probe: &Probe,
    network: &vip::Network,
    tls: &tls::Cache,
    deadline: Instant,
) -> Result<(), ProbeError> {
    // Boxed but for the commonest, so that a probe that waits takes a page and no more.
    match &probe.kind {
        check::Kind::None => Ok(()),
        check::Kind::Tcp => tcp::run(probe, network, deadline).await,
        check::Kind::Http(http) => Box::pin(http::run(probe, http, None, network, deadline)).await,
        check::Kind::Https(http, verify) => {
            Box::pin(http::run(probe, http, Some((verify, tls)), network, deadline)).await
        }
        check::Kind::Udp(udp) => Box::pin(udp::run(probe, udp, network, deadline)).await,
        check::Kind::Dns(dns) => Box::pin(dns::run(probe, dns, network, deadline)).await,
        check::Kind::Exec(exec) => Box::pin(exec::run(probe, exec, deadline)).await,
    }
}

/// Waits for `answer`. If there is none, lbd looks for a sign of life of its host in the last part of the probe's
/// time: one that gives it is alive, and what its port does not answer is a fault of another kind.
async fn unless_alive(
    probe: &Probe,
    network: &vip::Network,
    deadline: Instant,
    mut answer: Pin<&mut impl Future<Output = Result<(), ProbeError>>>,
) -> Result<(), ProbeError> {
    let share = LAST_SHARE.min(probe.timeout / 2);
    let early = match timeout_at(deadline - share, &mut answer).await {
        Ok(Err(ProbeError::Silent(reason))) => Some(reason),
        Ok(answer) => return answer,
        Err(_) => None,
    };
    let path = match &probe.route {
        Route::Backend | Route::Here(_) => None,
        Route::Vip(path) => Some(path),
    };
    let until = deadline.min(Instant::now() + share);
    let backend = probe.target.backend;
    let mut sign = Box::pin(network.sign_of_life(path, backend.ip, probe.port, until));
    let mut seen = None;
    let answer = match early {
        Some(reason) => Err(ProbeError::Silent(reason)),
        None => loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                sign = &mut sign, if seen.is_none() => seen = Some(sign),
            }
        },
    };
    let Err(ProbeError::Silent(reason)) = answer else { return answer };
    let seen = match seen {
        Some(seen) => seen,
        None => sign.await,
    };
    Err(match seen {
        Some(Sign::Neighbour) => {
            ProbeError::Resolves(format!("{reason}; its address resolves").into())
        }
        Some(sign) => ProbeError::failed(format!("{reason}; its host is alive ({sign})")),
        None => ProbeError::Silent(reason),
    })
}

/// The backend's own address and the probe's port.
fn own_address(probe: &Probe) -> SocketAddr {
    SocketAddr::new(probe.target.backend.ip, probe.port)
}

/// An answer of the backend's own address, or silence.
async fn within<T>(
    deadline: Instant,
    timeout: Duration,
    answer: impl Future<Output = Result<T, ProbeError>>,
) -> Result<T, ProbeError> {
    timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(ProbeError::silence(timeout)))
}
