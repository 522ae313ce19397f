//! The operations as the model sees them: conditions over time.

use std::time::Duration;

use super::FOUND_OUT;
use crate::plan::{Backend, HOSTS, Op, WAYS};

/// A time from one moment to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first moment.
    pub from: Duration,
    /// Its last one; [`Duration::MAX`] while it has not ended.
    pub until: Duration,
}

/// An operation that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The operation.
    pub op: Op,
    /// When it was begun.
    pub began: Duration,
    /// When it was done on every node; one whose `lbd` is away gets it later.
    pub ended: Option<Duration>,
}

/// A time in which the pair was not whole, and the operation that did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The operation.
    pub op: Op,
    /// Until the pair was whole.
    pub span: Span,
}

/// All that was done.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The operations.
    pub done: Vec<Done>,
    /// The troubles of the nodes.
    pub troubles: Vec<Trouble>,
}

type OfHosts = [Vec<Span>; HOSTS];
type OfBackends = [OfHosts; WAYS.len()];

/// Conditions over time.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// nginx did not listen.
    pub dead: OfHosts,
    /// The host was cut off.
    pub cut: OfHosts,
    /// nginx was stopped.
    pub frozen: OfHosts,
    /// A backend may have had new flows, on one node at least.
    pub takes: OfBackends,
    /// It had them, on all.
    sure: OfBackends,
    /// The operations that brought it in.
    pub joined: OfBackends,
    /// Its flows were moved by force.
    pub forced: OfBackends,
    /// It had no flows at all after that.
    pub gone: OfBackends,
    /// It was to be removed, or was not there.
    pub removed: OfBackends,
    /// The deadlines of its drains came.
    pub deadlines: OfBackends,
    /// Possible changes of a ring.
    pub changes: Vec<Span>,
    /// When advertisements passed between the nodes again.
    pub heals: Vec<Duration>,
    /// The troubles of the nodes.
    pub troubles: Vec<Trouble>,
}

impl Span {
    /// A time that has not ended.
    #[must_use]
    pub const fn since(from: Duration) -> Self {
        Self { from, until: Duration::MAX }
    }

    /// Whether they have a moment in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.from <= other.until && other.from <= self.until
    }

    /// Whether a moment lies in it.
    #[must_use]
    pub fn contains(self, at: Duration) -> bool {
        self.from <= at && at <= self.until
    }

    /// How long it was at a moment.
    #[must_use]
    pub fn length(self, now: Duration) -> Duration {
        self.until.min(now).saturating_sub(self.from)
    }

    /// And so much longer.
    fn and(self, time: Duration) -> Self {
        Self { until: self.until.saturating_add(time), ..self }
    }
}

/// Ends the last time of these.
fn end(spans: &mut [Span], at: Duration) {
    if let Some(last) = spans.last_mut()
        && last.until == Duration::MAX
    {
        last.until = at;
    }
}

/// Begins a time, or lets one go on that has not ended by then: a node that was away gets its end and the
/// next beginning at once.
fn begin(spans: &mut Vec<Span>, at: Duration) {
    match spans.last_mut() {
        Some(last) if at <= last.until => last.until = Duration::MAX,
        _ => spans.push(Span::since(at)),
    }
}

impl History {
    /// The history of this log.
    #[must_use]
    pub fn of(log: &Log) -> Self {
        let mut history = Self { troubles: log.troubles.clone(), ..Self::default() };
        for hosts in history.takes.iter_mut().chain(&mut history.sure) {
            hosts.iter_mut().for_each(|spans| spans.push(Span::since(Duration::ZERO)));
        }
        for done in &log.done {
            history.take(done);
        }
        history
    }

    fn take(&mut self, done: &Done) {
        let (from, until) = (done.began, done.ended.unwrap_or(Duration::MAX));
        let span = Span { from, until };
        self.changes.push(span);
        if let Op::Remove(Backend { service, host }) | Op::ForceOut(Backend { service, host }) =
            done.op
        {
            begin(&mut self.removed[service][host], from);
        }
        match done.op {
            Op::Heal => self.heals.push(from),
            Op::Kill(host) => begin(&mut self.dead[host], from),
            Op::Revive(host) => end(&mut self.dead[host], until),
            Op::Restart(host) => self.dead[host].push(span),
            Op::Freeze(host) => begin(&mut self.frozen[host], from),
            Op::Thaw(host) => end(&mut self.frozen[host], until),
            Op::Flap(host, ..) => self.frozen[host].push(span),
            Op::Cut(host) => begin(&mut self.cut[host], from),
            Op::Mend(host) => end(&mut self.cut[host], until),
            Op::Rattle(host, ..) => self.cut[host].push(span),
            Op::Enable(backend) | Op::Add(backend, _) => self.join(backend, span),
            Op::Disable(backend) | Op::Remove(backend) => self.leave(backend, span),
            Op::Drain(backend, deadline) => {
                self.leave(backend, span);
                if let Some(deadline) = deadline {
                    let add = |at: Duration| at.saturating_add(deadline);
                    // The daemon looks each second for expired deadlines.
                    let due = Span { from: add(from), until: add(until) };
                    self.deadlines[backend.service][backend.host]
                        .push(due.and(Duration::from_secs(2)));
                }
            }
            Op::ForceDown(backend) | Op::ForceOut(backend) => {
                self.leave(backend, span);
                let Backend { service, host } = backend;
                self.forced[service][host].push(span);
                self.gone[service][host].push(Span::since(until));
            }
            _ => {}
        }
    }

    fn join(&mut self, Backend { service, host }: Backend, span: Span) {
        begin(&mut self.takes[service][host], span.from);
        if span.until != Duration::MAX {
            begin(&mut self.sure[service][host], span.until);
        }
        end(&mut self.gone[service][host], span.from);
        end(&mut self.removed[service][host], span.until);
        self.joined[service][host].push(span);
        // A backend that is enabled in time keeps its flows.
        self.deadlines[service][host].retain(|deadline| deadline.from <= span.until);
    }

    fn leave(&mut self, Backend { service, host }: Backend, span: Span) {
        end(&mut self.takes[service][host], span.until);
        end(&mut self.sure[service][host], span.from);
    }

    /// Whether a host was cut off at a moment, or so shortly before that a node may still take it for
    /// that. One whose nginx is dead answers, and keeps its flows.
    #[must_use]
    pub fn is_lost(&self, host: usize, at: Duration, slack: Duration) -> bool {
        self.cut[host].iter().any(|cut| cut.and(FOUND_OUT + slack).contains(at))
    }

    /// Whether a host was cut off at a moment that two times have in common.
    #[must_use]
    pub fn is_lost_within(&self, host: usize, one: Span, other: Span) -> bool {
        let common = Span { from: one.from.max(other.from), until: one.until.min(other.until) };
        common.from <= common.until && self.cut[host].iter().any(|cut| cut.overlaps(common))
    }

    /// Whether new flows could count on a backend at a moment.
    #[must_use]
    pub fn is_sure(&self, Backend { service, host }: Backend, at: Duration) -> bool {
        let faults = self.dead[host].iter().chain(&self.cut[host]).chain(&self.frozen[host]);
        let ill = faults.into_iter().any(|fault| fault.and(FOUND_OUT).contains(at));
        !ill && self.sure[service][host].iter().any(|sure| sure.contains(at))
    }

    /// The trouble of the nodes at a moment.
    #[must_use]
    pub fn strike(&self, at: Duration, slack: Duration) -> Option<Trouble> {
        // A node that is to come back as Active may take its time after the pair is whole.
        let over = FOUND_OUT + slack;
        self.troubles.iter().rev().find(|trouble| trouble.span.and(over).contains(at)).copied()
    }
}
