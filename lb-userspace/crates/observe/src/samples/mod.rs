//! Figures per second: the daemon is asked once a second, for all who look.
//!
//! [`Samples`] is what they share: the last [`Sample`], and the [`history`] of [`KEPT`] seconds, which
//! is bounded. `GET /v1/samples` tells it.

mod history;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use lb_api::{paths, status::Status};
use lb_model::{
    edit::no_service,
    refusal::{Refusal, RefusalKind},
    units::rfc3339,
};
use lb_threads::lasting;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use self::history::History;
pub use self::history::{KEPT, Rate, Rates, ServiceRates};
use crate::Question;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the node was at a moment, and what it did in the second before.
#[derive(Clone, Debug)]
pub struct Sample {
    /// One more than that of the sample before.
    pub number: u64,
    /// When it was taken.
    pub at: SystemTime,
    /// What the daemon told.
    pub status: Status,
    /// What happened per second since the sample before.
    pub rates: Rates,
}

/// The samples, for all who look at them.
#[derive(Clone, Debug)]
pub struct Samples {
    last: watch::Receiver<Option<Arc<Sample>>>,
    history: Arc<Mutex<History>>,
}

impl Samples {
    /// Asks the daemon once a second from now on, until it has ended.
    #[must_use]
    pub fn start<Q: Question>(daemon: mpsc::Sender<Q>) -> Self {
        let (to, last) = watch::channel(None);
        let samples = Self { last, history: Arc::default() };
        tokio::spawn(lasting("samples", take(daemon, to, Arc::clone(&samples.history))));
        samples
    }

    /// The last one; none: there was none yet.
    #[must_use]
    pub fn last(&self) -> Option<Arc<Sample>> {
        self.last.borrow().clone()
    }

    /// Follows them: what is followed is always the last one. It ends with the daemon.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Sample>>> {
        self.last.clone()
    }

    /// What is kept.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub fn page(&self, asked: &Asked) -> Result<Page, Refusal> {
        let last = self.last().ok_or_else(|| {
            Refusal::new(RefusalKind::Stopping, "no sample was taken yet")
                .hint("one is taken each second; ask again in a moment")
        })?;
        let seconds = asked.last.unwrap_or(KEPT);
        let history = lock(&self.history);
        let mut services = history.services(seconds, asked.service.as_deref(), !asked.totals);
        if let Some(name) = &asked.service
            && services.is_empty()
        {
            return Err(no_service(name, history.names()));
        }
        // What came or went since the last sample is told with the next one.
        services.retain(|name, _| last.status.services.contains_key(name));
        let (node, passed, dropped) = history.node(seconds);
        let interval_secs = INTERVAL.as_secs();
        Ok(Page {
            number: last.number,
            at: last.at,
            interval_secs,
            node,
            passed,
            dropped,
            services,
        })
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    // Nothing in here panics half-way.
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn take<Q: Question>(
    daemon: mpsc::Sender<Q>,
    to: watch::Sender<Option<Arc<Sample>>>,
    history: Arc<Mutex<History>>,
) {
    let mut tick = interval(INTERVAL);
    // One that is late is taken at once, and the next one when it is due.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    loop {
        tick.tick().await;
        let (tell, answer) = oneshot::channel();
        if daemon.send(tell.into()).await.is_err() {
            return;
        }
        let status = match answer.await {
            Ok(Ok(status)) => status,
            // The next one counts for this second, too.
            Ok(Err(refusal)) => {
                tracing::debug!("no sample: {}", refusal.error);
                continue;
            }
            Err(_) => return,
        };
        number += 1;
        let rates = lock(&history).take(&status, Instant::now());
        to.send_replace(Some(Arc::new(Sample { number, at: SystemTime::now(), status, rates })));
    }
}

/// Which of the samples are asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Of this service alone.
    pub service: Option<String>,
    /// So many seconds at most.
    pub last: Option<usize>,
    /// Services without their backends.
    #[serde(default)]
    pub totals: bool,
}

/// What happened in each of the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The number of the last sample.
    pub number: u64,
    /// When it was taken: the last figure of each list is of the second before.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// Between two figures of a list.
    pub interval_secs: u64,
    /// To all backends together.
    pub node: Series,
    /// Left to the node's own stack, by reason; without the reasons for which there was none.
    pub passed: BTreeMap<String, Series>,
    /// Dropped, by reason; without the reasons for which there was none.
    pub dropped: BTreeMap<String, Series>,
    /// The services by name.
    pub services: BTreeMap<String, ServiceSeries>,
}

/// Figures per second, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Packets.
    pub packets: Vec<u64>,
    /// Bytes of IP.
    pub bytes: Vec<u64>,
    /// Flows that began.
    pub new_flows: Vec<u64>,
}

/// A service's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSeries {
    /// To all of its backends.
    #[serde(flatten)]
    pub total: Series,
    /// Its backends.
    #[serde(default)]
    pub backends: BTreeMap<IpAddr, BackendSeries>,
}

/// A backend's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSeries {
    /// To it.
    #[serde(flatten)]
    pub total: Series,
    /// What it did at the end of each second, as [`lb_api::status::BackendState::letter`] has it; a capital
    /// says that a check failed in that second.
    pub states: String,
}

/// The route of the samples.
pub fn router(samples: Samples) -> Router {
    Router::new().route(paths::SAMPLES, get(answer)).with_state(samples)
}

/// Answers a question for samples.
pub async fn answer(State(samples): State<Samples>, Query(asked): Query<Asked>) -> Response {
    samples.page(&asked).map(Json).into_response()
}

#[cfg(test)]
mod tests {
    use lb_api::status::{Backend, Count, Service};

    use super::*;
    use crate::StatusReply;

    /// A daemon that has sent so many packets more each time that it is asked.
    fn daemon(step: u64) -> mpsc::Sender<StatusReply> {
        let (to, mut asked) = mpsc::channel::<StatusReply>(8);
        tokio::spawn(async move {
            let mut packets = 0;
            while let Some(tell) = asked.recv().await {
                packets += step;
                let _ = tell.send(Ok(status(packets)));
            }
        });
        to
    }

    pub(super) fn status(packets: u64) -> Status {
        let sent = Count { packets, bytes: packets * 100 };
        let backend = Backend { id: 1, sent, new_flows: packets / 10, ..Backend::default() };
        let service: Service = serde_json::from_value(serde_json::json!({
            "key": {"vip": "10.0.0.100", "port": 80, "protocol": "tcp"}, "mode": "dsr",
            "ring_slots": 1_009, "slots_in_flux": 0, "idle_timeout_secs": 900, "backends": {},
        }))
        .expect("a service");
        let backends = [(IpAddr::from([10, 0, 0, 11]), backend)].into();
        let services = [("web".to_owned(), Service { backends, ..service })].into();
        Status { services, ..Status::default() }
    }

    #[tokio::test]
    async fn the_daemon_is_asked_once_a_second_for_all_who_follow() {
        let (to, mut asked) = mpsc::channel::<StatusReply>(8);
        let samples = Samples::start(to);
        let mut followers: Vec<_> = (0..50).map(|_| samples.follow()).collect();
        let begin = Instant::now();
        for number in 1..=3 {
            let tell = asked.recv().await.expect("a question");
            assert!(begin.elapsed() >= INTERVAL * (number as u32 - 1), "question {number}");
            tell.send(Ok(status(number))).expect("it waits for the answer");
            for follower in &mut followers {
                follower.changed().await.expect("a sample");
                let sample = follower.borrow_and_update().clone();
                assert_eq!(sample.map(|sample| sample.number), Some(number));
            }
        }
        drop(asked);
        assert!(followers[0].changed().await.is_err(), "they end with the daemon");
    }

    #[tokio::test]
    async fn what_is_asked_for_is_told() {
        let samples = Samples::start(daemon(1_000));
        let refusal = samples.page(&Asked::default()).expect_err("there is none yet");
        assert_eq!(refusal.kind, RefusalKind::Stopping);
        let mut follower = samples.follow();
        follower
            .wait_for(|sample| sample.as_ref().is_some_and(|s| s.number == 2))
            .await
            .expect("2");
        let page = |asked: Asked| samples.page(&asked);
        let all = page(Asked::default()).expect("a page");
        let backend = &all.services["web"].backends[&IpAddr::from([10, 0, 0, 11])];
        assert_eq!((backend.states.as_str(), backend.total.packets.len()), ("uu", 2));
        assert_eq!(all.node, all.services["web"].total);
        let totals = Asked { totals: true, ..Asked::default() };
        assert!(page(totals).expect("a page").services["web"].backends.is_empty());
        let one = Asked { last: Some(1), service: Some("web".into()), ..Asked::default() };
        assert_eq!(page(one).expect("a page").services["web"].total.packets.len(), 1);
        let unknown = Asked { service: Some("wbe".into()), ..Asked::default() };
        let refusal = page(unknown).expect_err("there is no such service");
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        let json = serde_json::to_string(&all).expect("it is JSON");
        let read: Page = serde_json::from_str(&json).expect(&json);
        assert_eq!(serde_json::to_string(&read).expect("it is JSON"), json);
    }
}
