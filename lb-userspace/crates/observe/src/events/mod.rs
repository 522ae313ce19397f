//! The events: every transition once, with its cause.
//!
//! [`Events::record`] logs, counts and keeps it, and wakes the followers. It waits for none of them: a
//! follower reads the common history at its own pace, and one that is too slow gets the number of
//! missed events.

pub mod changes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use lb_api::event::{Event, EventBody, KEPT, Kind, Page};
use lb_model::backend_address::BackendAddress;
use tokio::sync::watch;

/// Events that are given at once.
pub(crate) const PAGE: usize = 1_000;

/// The history, shared by its writer and its readers.
#[derive(Clone, Debug)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    history: Mutex<History>,
    /// The last event's number; none when no more will come.
    last: watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct History {
    kept: VecDeque<Event>,
    room: usize,
    last: u64,
    counts: BTreeMap<Kind, u64>,
}

impl Events {
    /// An empty history that begins at `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        Self::with_room(now, KEPT)
    }

    /// An empty history that keeps so many events.
    #[must_use]
    pub(crate) fn with_room(now: SystemTime, room: usize) -> Self {
        // Numbers begin with the time, so that those of a later run are larger.
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let last = u64::try_from(since.as_micros()).unwrap_or(u64::MAX / 2);
        let history = History { kept: VecDeque::new(), room, last, counts: BTreeMap::new() };
        let (to, _) = watch::channel(Some(last));
        Self(Arc::new(Shared { history: Mutex::new(history), last: to }))
    }

    fn history(&self) -> MutexGuard<'_, History> {
        // Nothing in here panics half-way.
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event: logs it once, counts it, keeps it.
    pub fn record(&self, entry: EventBody) {
        log(&entry);
        let mut history = self.history();
        history.last += 1;
        *history.counts.entry(entry.kind).or_default() += 1;
        if history.kept.len() == history.room {
            history.kept.pop_front();
        }
        let event = Event { seq: history.last, at: SystemTime::now(), body: entry };
        history.kept.push_back(event);
        let last = history.last;
        drop(history);
        self.0.last.send_if_modified(|newest| {
            let open = newest.is_some();
            if open {
                *newest = Some(last);
            }
            open
        });
    }

    /// Ends the history: followers have then seen all.
    pub fn close(&self) {
        self.0.last.send_replace(None);
    }

    /// At most `limit` events after that of this number, oldest first.
    #[must_use]
    pub fn since(&self, seq: u64, limit: usize) -> Page {
        let history = self.history();
        let before = history.last - history.kept.len() as u64;
        // A number that is still to come is of a run in which the clock was ahead.
        let seq = if seq > history.last { before } else { seq };
        let skip = usize::try_from(seq.saturating_sub(before)).unwrap_or(usize::MAX);
        let events: Vec<_> = history.kept.iter().skip(skip).take(limit).cloned().collect();
        Page {
            missed: if seq == 0 { 0 } else { history.missed(seq, before) },
            last: events.last().map_or(seq.max(before), |event| event.seq),
            events,
        }
    }

    /// The last events of a backend, at most `limit`, newest first.
    #[must_use]
    pub fn of_backend(&self, service: &str, backend: BackendAddress, limit: usize) -> Vec<Event> {
        let history = self.history();
        let its = history.kept.iter().rev().filter(|event| {
            event.body.backend == Some(backend) && event.body.service.as_deref() == Some(service)
        });
        its.take(limit).cloned().collect()
    }

    /// The number of the last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.history().last
    }

    /// How many events of each kind there were.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.history().counts.iter().map(|(kind, count)| (kind.name().into(), *count)).collect()
    }

    /// Follows from the event of this number on.
    #[must_use]
    pub fn follow(&self, since: u64) -> Follower {
        Follower { events: self.clone(), seq: since, last: self.0.last.subscribe() }
    }
}

impl History {
    /// How many events after `seq` were there and are not kept.
    fn missed(&self, seq: u64, before: u64) -> u64 {
        let all: u64 = self.counts.values().sum();
        // Numbers before the first one of this run are of an earlier one, or of none.
        let first = self.last - all;
        before.saturating_sub(seq.max(first))
    }
}

/// A reader of the history while it goes on.
#[derive(Debug)]
pub struct Follower {
    events: Events,
    seq: u64,
    last: watch::Receiver<Option<u64>>,
}

impl Follower {
    /// The next events; none when no more will come.
    pub async fn next(&mut self) -> Option<Page> {
        loop {
            let open = self.last.borrow_and_update().is_some();
            let page = self.events.since(self.seq, PAGE);
            self.seq = page.last;
            if !page.events.is_empty() || page.missed > 0 {
                return Some(page);
            }
            if !open || self.last.changed().await.is_err() {
                return None;
            }
        }
    }
}

fn log(entry: &EventBody) {
    let EventBody { kind, service, backend, message, cause } = entry;
    let backend = backend.map(tracing::field::display);
    // The level of a log line is a constant of its place.
    macro_rules! at {
        ($level:ident) => {
            tracing::$level!(
                kind = kind.name(),
                service = service.as_deref(),
                backend,
                cause,
                "{message}"
            )
        };
    }
    match kind.level() {
        tracing::Level::ERROR => at!(error),
        tracing::Level::WARN => at!(warn),
        _ => at!(info),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn entry(message: &str) -> EventBody {
        EventBody::new(Kind::BackendUp, message, "a test")
    }

    fn messages(page: &Page) -> Vec<&str> {
        page.events.iter().map(|event| event.body.message.as_str()).collect()
    }

    #[test]
    fn kinds_are_named_alike_everywhere() {
        for kind in Kind::ALL {
            let json = serde_json::to_value(kind).expect("it is JSON");
            assert_eq!(json, kind.name(), "{kind:?}");
        }
    }

    #[test]
    fn the_history_is_bounded_and_says_what_it_lost() {
        let events = Events::with_room(at(1), 3);
        let start = events.last();
        for message in ["a", "b", "c", "d", "e"] {
            events.record(entry(message));
        }
        let all = events.since(0, 10);
        assert_eq!(
            (messages(&all), all.missed),
            (vec!["c", "d", "e"], 0),
            "from the first kept one"
        );
        let page = events.since(start, 2);
        assert_eq!((messages(&page), page.missed), (vec!["c", "d"], 2));
        let rest = events.since(page.last, 2);
        assert_eq!((messages(&rest), rest.missed, rest.last), (vec!["e"], 0, start + 5));
        assert_eq!(events.counts(), [("backend_up".to_owned(), 5)].into());
    }

    #[test]
    fn numbers_grow_over_a_restart() {
        let before = Events::new(at(1_000));
        before.record(entry("before"));
        let after = Events::new(at(1_001));
        after.record(entry("after"));
        let page = after.since(before.last(), 10);
        assert_eq!((messages(&page), page.missed), (vec!["after"], 0));
        // A clock that was ahead in the earlier run hides nothing.
        let page = after.since(Events::new(at(9_000)).last(), 10);
        assert_eq!((messages(&page), page.missed), (vec!["after"], 0));
    }

    #[test]
    fn an_event_is_flat_json_with_a_readable_time() {
        let event = Event {
            seq: 7,
            at: at(1_500),
            body: entry("backend A of web is up")
                .of_backend("web", BackendAddress::from([10, 0, 0, 11])),
        };
        let json = serde_json::to_string(&event).expect("it is JSON");
        assert_eq!(
            json,
            "{\"seq\":7,\"at\":\"1970-01-01T00:00:01.500Z\",\"kind\":\"backend_up\",\
             \"service\":\"web\",\"backend\":\"10.0.0.11\",\"message\":\"backend A of web is up\",\
             \"cause\":\"a test\"}"
        );
        assert_eq!(serde_json::from_str::<Event>(&json).expect(&json), event);
    }

    #[test]
    fn a_backend_s_history_is_its_own_and_begins_with_the_last_event() {
        let events = Events::new(at(1));
        let [one, other] = [[10, 0, 0, 11], [10, 0, 0, 12]].map(BackendAddress::from);
        for (message, service, backend) in
            [("a", "web", one), ("b", "web", other), ("c", "mail", one), ("d", "web", one)]
        {
            events.record(entry(message).of_backend(service, backend));
        }
        let found = |limit| events.of_backend("web", one, limit).into_iter();
        let found = |limit| found(limit).map(|event| event.body.message).collect::<Vec<_>>();
        assert_eq!((found(9), found(1)), (vec!["d".into(), "a".into()], vec!["d".into()]));
    }

    #[tokio::test]
    async fn a_follower_sees_everything_and_then_the_end() {
        let events = Events::with_room(at(1), 3);
        let mut follower = events.follow(events.last());
        events.record(entry("a"));
        assert_eq!(messages(&follower.next().await.expect("one")), ["a"]);
        let waits = tokio::spawn(async move { (follower.next().await, follower) });
        events.record(entry("b"));
        let (page, mut follower) = waits.await.expect("no panic");
        assert_eq!(messages(&page.expect("one")), ["b"]);
        events.record(entry("c"));
        events.close();
        assert_eq!(messages(&follower.next().await.expect("the last one")), ["c"]);
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed() {
        let events = Events::with_room(at(1), 3);
        let mut follower = events.follow(events.last());
        for message in ["a", "b", "c", "d", "e"] {
            events.record(entry(message));
        }
        let page = follower.next().await.expect("some");
        assert_eq!((messages(&page), page.missed), (vec!["c", "d", "e"], 2));
    }
}
