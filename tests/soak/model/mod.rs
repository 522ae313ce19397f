//! The connections that may break: a pure function of the operations, the nodes' logs, and a
//! connection's life.
//!
//! The operations are the causes. The nodes' logs ([`Observations`]) only narrow down the failures that a cause
//! may excuse, and never excuse by themselves: the host of a backend whose flows a node has moved must
//! have been cut off ([`unfounded`]), and a node that took over must have had a reason ([`uncalled`]).
//!
//! | a connection may break when | |
//! |---|---|
//! | its nginx was killed or restarted while it lived | [`Reason::Killed`] |
//! | it was opened to a dead nginx before the checks could know | [`Reason::Undetected`] |
//! | a node moved the flows of its backend, whose host had been cut off | [`Reason::Moved`] |
//! | its backend was disabled or removed with `--force` | [`Reason::Forced`] |
//! | the deadline of its backend's drain came | [`Reason::Deadline`] |
//! | it began in the moment in which a node died | [`Reason::Untold`] |
//! | it began while no advertisement passed between the nodes and both were Active | [`Reason::Parted`] |
//! | the same by the first wire alone, and it began when clients changed from one node to the other | [`Reason::Parted`] |
//! | it was new, and no backend was there for it | [`Reason::NoBackend`] |
//! | its backend was cut off for longer than the client waits | [`Reason::Patience`] |
//! | its SYN was sent again to a backend whose cable was back, and both SYNs were answered | [`Reason::Raced`] |
//! | it is of mode `nat` over IPv6, and lived while an `lbd` with its VIP hung (`is_claimed`) | [`Reason::Claimed`] |
//!
//! Nothing else: not a drain, a removal, another weight, a reload, a cut cable, a stopped nginx, the end,
//! the death or the start of an `lbd`, a handover. And no partition breaks a connection that is older: what
//! begins in one is known to one of two Active nodes, and clients go to the one that has announced itself last.

mod history;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

pub use history::{Done, History, Log, Span, Trouble};

use kit::ways::Way;

use crate::plan::{Backend, HOSTS, Op, WAYS};

/// How long a client waits for anything, a connection or the next bytes.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How long the checks and the clients' packets may take to show that a backend is dead, or back.
pub const FOUND_OUT: Duration = Duration::from_secs(3);

/// How long before and after the death of a node no other node may know of a flow that begins in a slot in
/// flux: a flush interval and the lease. A later flow is not pinned, and the node that takes over finds it.
const EXPORT_LAG: Duration = Duration::from_millis(50);

/// When a client sends its SYN again (RFC 6298, 2.1), less the clocks' difference. A backend that has been
/// silent by then is left for another one, and the answers of both may race.
const REPEATED: Duration = Duration::from_millis(900);

/// The delay of operations on a machine that is not busy.
const SLACK: Duration = Duration::from_millis(300);

/// From which delay of this very program on a node may be thought dead by the other one: it advertises
/// every 100 ms, and is missed after three to four of these.
const LATE: Duration = Duration::from_millis(150);

/// How long before a takeover its cause may lie.
const TAKEOVER: Duration = Duration::from_secs(2);

/// How long a peer may take to import records.
const IMPORT_TIME: Duration = Duration::from_secs(2);

/// Delays that let a lease of pins run out, which is one of 30 ms.
const LEASE: Duration = Duration::from_millis(10);

/// A connection, from its beginning to its end. Times are those since the start of the run.
#[derive(Clone, Debug)]
pub struct Life {
    /// The service.
    pub service: usize,
    /// The client's port.
    pub port: u16,
    /// The host that answered.
    pub host: Option<usize>,
    /// When it was begun.
    pub opened: Duration,
    /// When there was an answer to its SYN.
    pub connected: Option<Duration>,
    /// When the first answer was there.
    pub answered: Option<Duration>,
    /// When the last bytes were received.
    pub last_received: Duration,
    /// When it ended.
    pub ended: Duration,
    /// Its purpose.
    pub kind: &'static str,
    /// How it ended.
    pub end: Result<(), Failure>,
}

/// How a connection broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was refused.
    Refused,
    /// It was reset.
    Reset,
    /// It was closed before its time.
    Closed,
    /// Nothing came for [`PATIENCE`].
    TimedOut,
    /// Something else than expected came.
    Wrong(String),
    /// Anything else.
    Other(String),
}

/// Why a connection may break; the table above describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Killed,
    Undetected,
    Moved,
    Forced,
    Deadline,
    Untold,
    Parted,
    NoBackend,
    Patience,
    Raced,
    Claimed,
}

/// The observations beside the operations: from the nodes' logs, and of this program's own delays.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Backends whose flows a node has moved, by its log, and until when.
    pub moved: Vec<Moved>,
    /// When a node became Active.
    pub takeovers: Vec<(usize, Duration)>,
    /// When this program was late, and by how much: the load of the machine.
    pub stalls: BTreeMap<Duration, Duration>,
}

/// A log entry of a node: it moves the flows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The node.
    pub node: usize,
    /// The backend.
    pub backend: Backend,
    /// Until the node logged that the backend is back.
    pub span: Span,
}

/// Whether a host may have answered a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It takes new flows.
    Right,
    /// It takes none, and is the base owner of a flow that could not be pinned.
    BaseOwner,
    /// It may not.
    Wrong,
}

impl Observations {
    /// The longest delay in a time.
    #[must_use]
    pub fn stall(&self, from: Duration, until: Duration) -> Duration {
        self.stalls.range(from..=until).map(|(_, late)| *late).max().unwrap_or_default()
    }

    /// The possible delay of operations by the machine in a time.
    fn slack(&self, from: Duration, until: Duration) -> Duration {
        SLACK + 2 * self.stall(from.saturating_sub(TAKEOVER), until + TAKEOVER)
    }
}

/// Why a connection that broke may have; none: it may not.
#[must_use]
pub fn excuse(history: &History, observations: &Observations, life: &Life) -> Option<Reason> {
    let failure = life.end.as_ref().err()?;
    if let Failure::Wrong(_) = failure {
        return None;
    }
    let slack = observations.slack(life.opened, life.ended);
    let lived = Span { from: life.opened.saturating_sub(slack), until: life.ended + slack };
    // One that has had no answer may have been on any of them.
    let hosts = life.host.map_or(0..HOSTS, |host| host..host + 1);
    let found = hosts.filter_map(|host| {
        let backend = Backend { service: life.service, host };
        of_backend(history, observations, life, backend, lived, slack)
    });
    found.min().or_else(|| {
        if is_unexported(history, observations, life, slack) {
            return Some(Reason::Untold);
        }
        if is_parted(history, observations, life, slack) {
            return Some(Reason::Parted);
        }
        if is_claimed(history, observations, life, lived) {
            return Some(Reason::Claimed);
        }
        let nobody = life.answered.is_none() && nobody_there(history, observations, life);
        nobody.then_some(Reason::NoBackend)
    })
}

/// The possible faults of one backend in the life of a connection to it.
fn of_backend(
    history: &History,
    observations: &Observations,
    life: &Life,
    backend: Backend,
    lived: Span,
    slack: Duration,
) -> Option<Reason> {
    let Backend { service, host } = backend;
    let dead = history.dead[host].iter().filter(|dead| dead.overlaps(lived));
    for dead in dead {
        // It died under the connection.
        if lived.from <= dead.from {
            return Some(Reason::Killed);
        }
        // A backend that has answered was dead on no node, but for the clocks' slack.
        let joined =
            history.joined[service][host].iter().filter(|joined| joined.from <= life.ended);
        let changed =
            joined.map(|joined| joined.until).chain([dead.from]).max().unwrap_or_default();
        if life.answered.is_none() && lived.from <= changed.saturating_add(FOUND_OUT) {
            return Some(Reason::Undetected);
        }
    }
    // A node that was cut off itself may find that a host has been, too, when it is back.
    let moved = observations.moved.iter().any(|moved| {
        moved.backend == backend
            && moved.span.overlaps(lived)
            && (history.is_lost(host, moved.span.from, slack)
                || history.is_lost_within(host, moved.span, lived))
    });
    if moved {
        return Some(Reason::Moved);
    }
    if history.forced[service][host].iter().any(|forced| forced.overlaps(lived)) {
        return Some(Reason::Forced);
    }
    if history.deadlines[service][host].iter().any(|deadline| deadline.overlaps(lived)) {
        return Some(Reason::Deadline);
    }
    // TCP has waited for twice as long at most when the next repetition gets through.
    let silent = |faults: &[Span], times| {
        faults.iter().any(|fault| {
            fault.overlaps(lived) && fault.length(life.ended) * times + slack >= PATIENCE
        })
    };
    let patience = life.end == Err(Failure::TimedOut)
        && (silent(&history.cut[host], 2) || silent(&history.frozen[host], 1));
    if patience {
        return Some(Reason::Patience);
    }
    // Neighbours are resolved anew for a second or more when a cable is back, and the answer to the first
    // SYN waits for that.
    let comes_back = |cut: &Span| {
        cut.until <= life.ended
            && Span { until: cut.until.saturating_add(FOUND_OUT), ..*cut }.contains(life.opened)
    };
    let raced = life.end == Err(Failure::Reset)
        && is_reset_when_new(life)
        && history.cut[host].iter().any(comes_back);
    raced.then_some(Reason::Raced)
}

/// Whether a connection took a second SYN, and ended as soon as it was there, if it ever was.
fn is_reset_when_new(life: &Life) -> bool {
    let begun = life.connected.unwrap_or(life.ended);
    life.answered.is_none()
        && begun.saturating_sub(life.opened) >= REPEATED
        && life.ended.saturating_sub(begun) <= SLACK
}

/// Whether a connection began when the only node that could have known of it died.
fn is_unexported(
    history: &History,
    observations: &Observations,
    life: &Life,
    slack: Duration,
) -> bool {
    let began = Span { from: life.opened, until: life.answered.unwrap_or(life.ended) };
    observations.takeovers.iter().any(|&(node, at)| {
        if began.from > at + slack || began.until + TAKEOVER + PATIENCE < at {
            return false;
        }
        let died = match history.strike(at, slack) {
            Some(Trouble { op, span }) if op.node().is_some_and(|struck| struck != node) => {
                // An operator's wish: a node that is to end has exported everything.
                if matches!(op, Op::Stop(_)) {
                    return false;
                }
                Span { from: span.from, until: span.from }
            }
            Some(_) => return false,
            // A machine that is so busy that a node was thought dead kept it from exporting, too.
            None if observations.stall(at.saturating_sub(TAKEOVER), at) >= LATE => {
                Span { from: at.saturating_sub(TAKEOVER), until: at }
            }
            None => return false,
        };
        let window = Span {
            from: died.from.saturating_sub(EXPORT_LAG + slack),
            until: died.until + EXPORT_LAG + slack,
        };
        window.overlaps(began)
    })
}

/// Whether a node whose `lbd` hangs may have drawn the connection's packets to itself. It has the VIP, and its program
/// forwards; the other one has taken over. Its kernel asks for a client's MAC address by the source of the answer, the
/// VIP. IPv4 has a setting against that (`arp_announce`), which the lab uses.
fn is_claimed(history: &History, observations: &Observations, life: &Life, lived: Span) -> bool {
    let hung = |trouble: &&Trouble| matches!(trouble.op, Op::Stall(_));
    WAYS[life.service] == Way::NatV6
        && history.troubles.iter().filter(hung).any(|trouble| {
            let taken = |(_, at): &(usize, Duration)| trouble.span.contains(*at);
            trouble.span.overlaps(lived) && observations.takeovers.iter().any(taken)
        })
}

/// Whether a connection began when both nodes were Active, and neither could send it to the other.
fn is_parted(history: &History, observations: &Observations, life: &Life, slack: Duration) -> bool {
    let began = Span { from: life.opened, until: life.answered.unwrap_or(life.ended) };
    let early = EXPORT_LAG + slack;
    history.troubles.iter().any(|trouble| {
        let Span { from, until } = trouble.span;
        let until = until.saturating_add(slack);
        let in_time = |at: &&Duration| trouble.span.contains(**at);
        let mut takeovers =
            observations.takeovers.iter().map(|(_, at)| at).filter(in_time).peekable();
        if takeovers.peek().is_none() {
            return false;
        }
        match trouble.op {
            Op::Part(true, true) => Span { from, until }.overlaps(began),
            // The one that is to go receives the first advertisement, and has records left to export.
            Op::Part(true, false) => {
                let changed = |at: &Duration| {
                    Span { from: at.saturating_sub(early), until: *at + early }.overlaps(began)
                };
                let healed = history.heals.iter().find(in_time);
                let back = healed.is_some_and(|at| {
                    Span { from: at.saturating_sub(early), until }.overlaps(began)
                });
                back || takeovers.any(changed)
            }
            _ => false,
        }
    })
}

/// Whether there was a moment in the life of a connection when no backend could be counted on.
fn nobody_there(history: &History, observations: &Observations, life: &Life) -> bool {
    let step = Duration::from_millis(50);
    let mut at = life.opened;
    while at <= life.ended {
        let moved = |backend: Backend| {
            observations
                .moved
                .iter()
                .any(|moved| moved.backend == backend && moved.span.contains(at))
        };
        let counts = |host| {
            let backend = Backend { service: life.service, host };
            history.is_sure(backend, at) && !moved(backend)
        };
        if !(0..HOSTS).any(counts) {
            return true;
        }
        at += step;
    }
    false
}

/// Whether a host may have answered a new connection.
#[must_use]
pub fn may_answer(history: &History, observations: &Observations, life: &Life) -> Answer {
    let (Some(host), Some(answered)) = (life.host, life.answered) else { return Answer::Right };
    let slack = observations.slack(life.opened, answered);
    let began = Span { from: life.opened.saturating_sub(slack), until: answered + slack };
    if history.takes[life.service][host].iter().any(|takes| takes.overlaps(began)) {
        return Answer::Right;
    }
    let gone = history.gone[life.service][host].iter();
    if gone
        .into_iter()
        .any(|gone| gone.from.saturating_add(slack) < life.opened && answered < gone.until)
    {
        return Answer::Wrong;
    }
    if may_lack_pins(history, observations, life.opened, began, slack) {
        return Answer::BaseOwner;
    }
    Answer::Wrong
}

/// Whether a node may have been unable to make pins when a connection began.
///
/// A pin takes a lease, which the daemon renews when it has exported its records, and a peer may take its time
/// to import them. A change of a ring is many of them.
fn may_lack_pins(
    history: &History,
    observations: &Observations,
    opened: Duration,
    began: Span,
    slack: Duration,
) -> bool {
    let begun = opened.saturating_sub(Duration::from_millis(100));
    let window = Span { from: began.from.saturating_sub(IMPORT_TIME), until: began.until };
    let changed = history.changes.iter().any(|change| change.overlaps(window))
        || observations
            .moved
            .iter()
            .any(|moved| window.contains(moved.span.from) || window.contains(moved.span.until));
    let troubled = history.troubles.iter().any(|trouble| trouble.span.overlaps(began));
    troubled || changed || observations.stall(begun, began.until.saturating_sub(slack)) >= LEASE
}

/// Whether a node had no reason to move the flows of a backend.
#[must_use]
pub fn unfounded(history: &History, observations: &Observations, moved: &Moved) -> bool {
    let at = moved.span.from;
    let slack = observations.slack(at, at);
    let own_cable =
        |trouble: &Trouble| trouble.op == Op::CutNode(moved.node) && trouble.span.contains(at);
    !history.is_lost(moved.backend.host, at, slack) && !history.troubles.iter().any(own_cable)
}

/// Whether a backend in mode `nat` may have sent to a client by its own address: it was removed, and had connections of
/// which the nodes knew nothing any more, as their clients' packets had gone to another backend before, or could not
/// reach it. It sends their data again and again, and no node has its service's VIP and port any more.
#[must_use]
pub fn may_be_left(
    history: &History,
    observations: &Observations,
    backend: Backend,
    at: Duration,
) -> bool {
    let Backend { service, host } = backend;
    let before = |spans: &[Span]| spans.iter().any(|span| span.from <= at);
    // Whether it might have moved them is another question ([`unfounded`]).
    let moved =
        observations.moved.iter().any(|moved| moved.backend == backend && moved.span.from <= at);
    let left =
        [&history.forced[service][host], &history.deadlines[service][host], &history.cut[host]];
    history.removed[service][host].iter().any(|removed| removed.contains(at))
        && (left.into_iter().any(|spans| before(spans)) || moved)
}

/// Whether a node had no reason to become Active.
#[must_use]
pub fn uncalled(history: &History, observations: &Observations, at: Duration) -> bool {
    let slack = observations.slack(at, at);
    history.strike(at, slack).is_none()
        && observations.stall(at.saturating_sub(TAKEOVER), at) < LATE
}
