//! The open connections, and the choice of one to close when there are too many.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How long a request may take, till the last byte of its answer.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// How long a client may not read while something waits to be sent to it.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// A client that has not read for so long may have to go for another.
const SLOW: Duration = Duration::from_secs(2);

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request has arrived whole, or its credentials are not checked yet.
    Waiting,
    /// It is being answered; the answer has an end.
    Answering,
    /// It receives a stream that does not end.
    Streaming,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: IpAddr,
    state: Mutex<State>,
    /// Notified when it has to close.
    goes: Notify,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    /// Since when.
    since: Instant,
    /// Since when its client does not read.
    stalled: Option<Instant>,
}

impl Connection {
    fn new(peer: IpAddr, now: Instant) -> Self {
        let state = State { phase: Phase::Waiting, since: now, stalled: None };
        Self { peer, state: Mutex::new(state), goes: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A state is whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the phase. An answer that turns out to be a stream goes on.
    pub(super) fn becomes(&self, phase: Phase, now: Instant) {
        let mut state = self.state();
        state.phase = phase;
        state.since = now;
    }

    /// Whether its client reads.
    pub(super) fn reads(&self, reads: bool, now: Instant) {
        let mut state = self.state();
        state.stalled = if reads { None } else { state.stalled.or(Some(now)) };
    }

    /// Returns when it has to go.
    pub(super) async fn goes(&self) {
        self.goes.notified().await;
    }

    /// Since when it keeps the balancer waiting, so that it can go for another.
    fn idle_since(&self, now: Instant) -> Option<Instant> {
        let State { phase, since, stalled } = *self.state();
        match phase {
            Phase::Waiting => Some(since),
            _ => stalled.filter(|stalled| now.duration_since(*stalled) >= SLOW),
        }
    }

    /// Whether it has had its time.
    fn is_overdue(&self, now: Instant) -> bool {
        let State { phase, since, stalled } = *self.state();
        let past = |since: Instant, most| now.saturating_duration_since(since) >= most;
        phase == Phase::Answering && past(since, ANSWER)
            || stalled.is_some_and(|stalled| past(stalled, STALL))
    }
}

/// All connections, the oldest first.
#[derive(Debug, Default)]
pub(super) struct ConnectionLimiter(Mutex<Vec<Arc<Connection>>>);

/// The permit of a connection, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.open().retain(|open| !Arc::ptr_eq(open, &self.connection));
    }
}

impl ConnectionLimiter {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        // Connections come and go in one step each.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in. When there are `most` already another one has to go; none that can: it is not
    /// let in.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, most: u32, now: Instant) -> Option<Permit> {
        let mut open = self.open();
        if open.len() >= most as usize {
            let leaves = choose(&open, now)?;
            open.remove(leaves).goes.notify_one();
        }
        let connection = Arc::new(Connection::new(peer, now));
        open.push(Arc::clone(&connection));
        Some(Permit { limiter: Arc::clone(self), connection })
    }

    /// Has those leave that have had their time.
    pub(super) fn sweep(&self, now: Instant) {
        for connection in self.open().iter().filter(|connection| connection.is_overdue(now)) {
            connection.goes.notify_one();
        }
    }

    /// Has everyone leave.
    pub(super) fn clear(&self) {
        self.open().drain(..).for_each(|connection| connection.goes.notify_one());
    }
}

/// The connection that can close for another: of the address that has most, the one that has waited longest.
/// So a client that opens many takes only from itself.
fn choose(open: &[Arc<Connection>], now: Instant) -> Option<usize> {
    let mut open_by_peer: HashMap<IpAddr, usize> = HashMap::new();
    for connection in open {
        *open_by_peer.entry(connection.peer).or_default() += 1;
    }
    (0..open.len())
        .filter_map(|index| Some((index, open[index].idle_since(now)?)))
        .max_by_key(|&(index, since)| {
            (open_by_peer[&open[index].peer], Reverse(since), Reverse(index))
        })
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn has_to_go(permit: &Permit) -> bool {
        permit.connection.goes().now_or_never().is_some()
    }

    #[test]
    fn who_has_waited_longest_goes_first() {
        let (limiter, start) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let enter = |after| limiter.enter(address(1), 2, start + after * SECOND);
        let first = enter(0).expect("there is room");
        let second = enter(1).expect("there is room");
        // It has just been answered.
        first.connection.becomes(Phase::Answering, start + 2 * SECOND);
        first.connection.becomes(Phase::Waiting, start + 2 * SECOND);
        let third = enter(3).expect("another one goes");
        assert_eq!([&first, &second, &third].map(has_to_go), [false, true, false]);
    }

    #[test]
    fn who_holds_many_loses_one_of_them() {
        let (limiter, start) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let alone = limiter.enter(address(9), 4, start).expect("there is room");
        let enter =
            |last| limiter.enter(address(last), 4, start + SECOND).expect("another one goes");
        let many = [1, 1, 1].map(enter);
        let late = enter(2);
        assert!(!has_to_go(&alone) && !has_to_go(&late));
        assert_eq!(many.iter().filter(|permit| has_to_go(permit)).count(), 1);
    }

    #[test]
    fn nobody_goes_who_is_being_answered() {
        let (limiter, start) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let first = limiter.enter(address(1), 1, start).expect("there is room");
        for phase in [Phase::Answering, Phase::Streaming] {
            first.connection.becomes(phase, start);
            assert!(limiter.enter(address(2), 1, start + SECOND).is_none());
        }
        // Its client does not read.
        first.connection.reads(false, start + SECOND);
        first.connection.reads(false, start + 2 * SECOND);
        assert!(limiter.enter(address(2), 1, start + 2 * SECOND).is_none());
        assert!(limiter.enter(address(2), 1, start + 3 * SECOND).is_some());
        assert!(has_to_go(&first));
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_closed() {
        let (limiter, now) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let first = limiter.enter(address(1), 1, now).expect("there is room");
        first.connection.becomes(Phase::Answering, now);
        drop(first);
        assert!(limiter.enter(address(1), 1, now).is_some());
    }

    #[test]
    fn an_answer_has_its_time_and_a_stream_goes_on_while_it_is_read() {
        let (limiter, start) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let enter = |last| limiter.enter(address(last), 9, start).expect("there is room");
        let [answered, streams, stalled] = [1, 2, 3].map(enter);
        answered.connection.becomes(Phase::Answering, start);
        streams.connection.becomes(Phase::Streaming, start);
        streams.connection.reads(false, start + ANSWER - SECOND);
        stalled.connection.becomes(Phase::Streaming, start);
        stalled.connection.reads(false, start);
        limiter.sweep(start + ANSWER - SECOND);
        assert!(![&answered, &streams, &stalled].into_iter().any(has_to_go));
        limiter.sweep(start + ANSWER);
        assert_eq!([&answered, &streams, &stalled].map(has_to_go), [true, false, true]);
        streams.connection.reads(true, start + ANSWER);
        limiter.sweep(start + 100 * ANSWER);
        assert!(!has_to_go(&streams));
    }
}
