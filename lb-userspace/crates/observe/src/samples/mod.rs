//! Figures per second: one request to the daemon each second, for all viewers.
//!
//! [`Samples`] is the state that they share: the last [`Sample`], and the [`history`] of [`KEPT`] seconds, which
//! is bounded. `GET /v1/samples` returns it.

mod history;

use std::{
    collections::BTreeMap,
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
    backend_address::BackendAddress,
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
use crate::StatusRequest;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// The node's status at a moment, and its figures in the second before.
#[derive(Clone, Debug)]
pub struct Sample {
    /// One more than that of the sample before.
    pub number: u64,
    /// When it was taken.
    pub at: SystemTime,
    /// The daemon's status.
    pub status: Status,
    /// The figures per second since the sample before.
    pub rates: Rates,
}

/// The samples, for all viewers.
#[derive(Clone, Debug)]
pub struct Samples {
    last: watch::Receiver<Option<Arc<Sample>>>,
    history: Arc<Mutex<History>>,
}

impl Samples {
    /// Requests the status once a second from now on, until the daemon has ended.
    #[must_use]
    pub fn start<Q: StatusRequest>(daemon: mpsc::Sender<Q>) -> Self {
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

    /// Follows them: the receiver always has the last one. It ends with the daemon.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Sample>>> {
        self.last.clone()
    }

    /// The kept samples.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub(crate) fn page(&self, query: &SamplesQuery) -> Result<Page, Refusal> {
        let last = self.last().ok_or_else(|| {
            Refusal::new(RefusalKind::Stopping, "no sample was taken yet")
                .hint("one is taken each second; try again in a moment")
        })?;
        let seconds = query.last.unwrap_or(KEPT);
        let history = lock(&self.history);
        let mut services = history.services(seconds, query.service.as_deref(), !query.totals);
        if let Some(name) = &query.service
            && services.is_empty()
        {
            return Err(no_service(name, history.names()));
        }
        // Services that came or went since the last sample are shown with the next one.
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

async fn take<Q: StatusRequest>(
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
        let (reply, answer) = oneshot::channel();
        if daemon.send(reply.into()).await.is_err() {
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

/// The requested samples.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplesQuery {
    /// Of this service alone.
    pub service: Option<String>,
    /// So many seconds at most.
    pub last: Option<usize>,
    /// Services without their backends.
    #[serde(default)]
    pub totals: bool,
}

/// The figures of each of the last seconds.
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
    pub backends: BTreeMap<BackendAddress, BackendSeries>,
}

/// A backend's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSeries {
    /// To it.
    #[serde(flatten)]
    pub total: Series,
    /// Its state at the end of each second, as [`lb_api::status::BackendState::letter`] has it; a capital
    /// if a check failed in that second.
    pub states: String,
}

/// The route of the samples.
pub fn router(samples: Samples) -> Router {
    Router::new().route(paths::SAMPLES, get(answer)).with_state(samples)
}

/// Answers a request for samples.
pub async fn answer(State(samples): State<Samples>, Query(query): Query<SamplesQuery>) -> Response {
    samples.page(&query).map(Json).into_response()
}

#[cfg(test)]
mod tests {
    use lb_api::status::{Backend, Count, Service};

    use super::*;
    use crate::StatusReply;

    /// A daemon that has sent so many packets more at each request.
    fn daemon(step: u64) -> mpsc::Sender<StatusReply> {
        let (to, mut requests) = mpsc::channel::<StatusReply>(8);
        tokio::spawn(async move {
            let mut packets = 0;
            while let Some(reply) = requests.recv().await {
                packets += step;
                let _ = reply.send(Ok(status(packets)));
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
        let backends = [(BackendAddress::from([10, 0, 0, 11]), backend)].into();
        let services = [("web".to_owned(), Service { backends, ..service })].into();
        Status { services, ..Status::default() }
    }

    #[tokio::test]
    async fn the_daemon_is_asked_once_a_second_for_all_who_follow() {
        let (to, mut requests) = mpsc::channel::<StatusReply>(8);
        let samples = Samples::start(to);
        let mut followers: Vec<_> = (0..50).map(|_| samples.follow()).collect();
        let begin = Instant::now();
        for number in 1..=3 {
            let reply = requests.recv().await.expect("a request");
            assert!(begin.elapsed() >= INTERVAL * (number as u32 - 1), "request {number}");
            reply.send(Ok(status(number))).expect("it waits for the answer");
            for follower in &mut followers {
                follower.changed().await.expect("a sample");
                let sample = follower.borrow_and_update().clone();
                assert_eq!(sample.map(|sample| sample.number), Some(number));
            }
        }
        drop(requests);
        assert!(followers[0].changed().await.is_err(), "they end with the daemon");
    }

    #[tokio::test]
    async fn what_is_asked_for_is_told() {
        let samples = Samples::start(daemon(1_000));
        let refusal = samples.page(&SamplesQuery::default()).expect_err("there is none yet");
        assert_eq!(refusal.kind, RefusalKind::Stopping);
        let mut follower = samples.follow();
        follower
            .wait_for(|sample| sample.as_ref().is_some_and(|s| s.number == 2))
            .await
            .expect("2");
        let page = |query: SamplesQuery| samples.page(&query);
        let all = page(SamplesQuery::default()).expect("a page");
        let backend = &all.services["web"].backends[&BackendAddress::from([10, 0, 0, 11])];
        assert_eq!((backend.states.as_str(), backend.total.packets.len()), ("uu", 2));
        assert_eq!(all.node, all.services["web"].total);
        let totals = SamplesQuery { totals: true, ..SamplesQuery::default() };
        assert!(page(totals).expect("a page").services["web"].backends.is_empty());
        let one =
            SamplesQuery { last: Some(1), service: Some("web".into()), ..SamplesQuery::default() };
        assert_eq!(page(one).expect("a page").services["web"].total.packets.len(), 1);
        let unknown = SamplesQuery { service: Some("wbe".into()), ..SamplesQuery::default() };
        let refusal = page(unknown).expect_err("there is no such service");
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        let json = serde_json::to_string(&all).expect("it is JSON");
        let read: Page = serde_json::from_str(&json).expect(&json);
        assert_eq!(serde_json::to_string(&read).expect("it is JSON"), json);
    }
}
