//! One question to one backend, and its outcome.
//!
//! [`ask`] is all there is to call. A file for each kind of question; [`through`] puts it to the VIP,
//! and `reason` words what went wrong. Silence is that of a host, not of a port. Nothing is kept between questions but the TLS configurations
//! of [`tls::Cache`].

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

use lb_model::{check, seen::Target};
use tokio::time::{Instant, timeout_at};

use self::reason::Miss;
use super::vip::{self, Sign};

/// The last part of a question's time, at most, in which it is found out what is wrong where no answer has come.
const LAST_SHARE: Duration = Duration::from_millis(250);

/// What a question found out.
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
    /// The question could not be asked (no file descriptor, no memory, no route of our own yet):
    /// that shows nothing about the backend.
    Unknown {
        /// Why not, for people.
        reason: String,
    },
}

/// What came instead of a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing at all, and no sign of life of the host by other ways: it may be gone.
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
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Refusal | Self::Wrong)
    }
}

/// Where a question goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the backend's own address.
    Backend,
    /// To the VIP, at the backend.
    Vip(vip::Way),
    /// To this VIP in the node's own stack: the backend's address is this node's own.
    Here(IpAddr),
}

/// A question to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The service's name, for commands.
    pub service: String,
    /// Whom it is about.
    pub target: Target,
    /// What is asked.
    pub kind: check::Kind,
    /// The port that is asked.
    pub port: u16,
    /// Where it goes.
    pub route: Route,
    /// How long the answer may take, all of it.
    pub timeout: Duration,
}

/// Asks, in a tokio runtime; takes at most the question's `timeout` (a little more for cleaning up
/// a command).
///
/// Whatever the peer sends, it neither panics nor takes in more than 16 KiB of headers and 64 KiB of
/// a body. Dropped, it leaves nothing behind: connections are reset, a command is killed.
pub async fn ask(question: &Question, network: &vip::Network, tls: &tls::Cache) -> Outcome {
    let deadline = Instant::now() + question.timeout;
    let answer = pin!(put(question, network, tls, deadline));
    let answer = match (&question.kind, &question.route) {
        // Neither puts a question to the host, and this one is alive.
        (check::Kind::None | check::Kind::Exec(_), _) | (_, Route::Here(_)) => answer.await,
        _ => unless_alive(question, network, deadline, answer).await,
    };
    match answer {
        Ok(()) => Outcome::Up,
        Err(miss) => miss.into(),
    }
}

async fn put(
    question: &Question,
    network: &vip::Network,
    tls: &tls::Cache,
    deadline: Instant,
) -> Result<(), Miss> {
    // Boxed but for the commonest, so that a question that waits takes a page and no more.
    match &question.kind {
        check::Kind::None => Ok(()),
        check::Kind::Tcp => tcp::ask(question, network, deadline).await,
        check::Kind::Http(http) => {
            Box::pin(http::ask(question, http, None, network, deadline)).await
        }
        check::Kind::Https(http, verify) => {
            Box::pin(http::ask(question, http, Some((verify, tls)), network, deadline)).await
        }
        check::Kind::Udp(udp) => Box::pin(udp::ask(question, udp, network, deadline)).await,
        check::Kind::Dns(dns) => Box::pin(dns::ask(question, dns, network, deadline)).await,
        check::Kind::Exec(exec) => Box::pin(exec::ask(question, exec, deadline)).await,
    }
}

/// Waits for `answer`. If there is none, its host is asked for a sign of life in the last part of the question's
/// time: one that gives it is alive, and what its port does not answer is a fault of another kind.
async fn unless_alive(
    question: &Question,
    network: &vip::Network,
    deadline: Instant,
    mut answer: Pin<&mut impl Future<Output = Result<(), Miss>>>,
) -> Result<(), Miss> {
    let share = LAST_SHARE.min(question.timeout / 2);
    let early = match timeout_at(deadline - share, &mut answer).await {
        Ok(Err(Miss::Silent(reason))) => Some(reason),
        Ok(answer) => return answer,
        Err(_) => None,
    };
    let way = match &question.route {
        Route::Backend | Route::Here(_) => None,
        Route::Vip(way) => Some(way),
    };
    let until = deadline.min(Instant::now() + share);
    let backend = question.target.backend;
    let mut sign = Box::pin(network.sign_of_life(way, backend, question.port, until));
    let mut seen = None;
    let answer = match early {
        Some(reason) => Err(Miss::Silent(reason)),
        None => loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                sign = &mut sign, if seen.is_none() => seen = Some(sign),
            }
        },
    };
    let Err(Miss::Silent(reason)) = answer else { return answer };
    let seen = match seen {
        Some(seen) => seen,
        None => sign.await,
    };
    Err(match seen {
        Some(Sign::Neighbour) => Miss::Resolves(format!("{reason}; its address resolves").into()),
        Some(sign) => Miss::failed(format!("{reason}; its host is alive ({sign})")),
        None => Miss::Silent(reason),
    })
}

/// The backend's own address and the port that is asked.
fn own_address(question: &Question) -> SocketAddr {
    SocketAddr::new(question.target.backend, question.port)
}

/// An answer of the backend's own address, or silence.
async fn within<T>(
    deadline: Instant,
    timeout: Duration,
    answer: impl Future<Output = Result<T, Miss>>,
) -> Result<T, Miss> {
    timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(Miss::silence(timeout)))
}
