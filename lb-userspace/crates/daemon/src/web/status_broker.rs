//! Status requests of the HTTP listeners to the daemon: reading ones only, and seldom.
//!
//! The HTTP routes send their requests to this and not to the daemon. It passes on no request for a change, so a
//! changing route that is added here by mistake has no effect.

use std::time::Duration;

use lb_api::status::{Pair, Status};
use lb_model::refusal::{Refusal, RefusalKind};
use lb_threads::lasting;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::api::{Reply, Request};

/// The daemon receives a request at most this often: a status walks its maps.
const SPACING: Duration = Duration::from_millis(100);
/// Requests that wait.
const ROOM: usize = 256;

/// Opens the channel that stands in for the daemon's. It ends with the last sender.
pub(super) fn open(daemon: mpsc::Sender<Request>) -> mpsc::Sender<Request> {
    let (to, requests) = mpsc::channel(ROOM);
    tokio::spawn(lasting("status broker", pass_on(requests, daemon)));
    to
}

/// The sender of an answer, by the part of the status that it needs.
enum Requester {
    Status(Reply<Status>),
    Pair(Reply<Pair>),
}

async fn pass_on(mut requests: mpsc::Receiver<Request>, daemon: mpsc::Sender<Request>) {
    let mut next = Instant::now();
    while let Some(request) = requests.recv().await {
        let mut requesters = Vec::new();
        sort(request, &mut requesters);
        sleep_until(next).await;
        next = Instant::now() + SPACING;
        while let Ok(request) = requests.try_recv() {
            sort(request, &mut requesters);
        }
        let Some(last) = requesters.pop() else { continue };
        let (reply, answer) = oneshot::channel();
        // A daemon that is gone drops `reply`.
        let _ = daemon.send(Request::Status(reply)).await;
        let stopping = |_| Refusal::new(RefusalKind::Stopping, "lbd is stopping");
        let status = answer.await.map_err(stopping).flatten();
        for requester in requesters {
            requester.reply(status.clone());
        }
        // Mostly there is one: the status of a thousand backends is not copied for it.
        last.reply(status);
    }
}

impl Requester {
    /// Answers. The receiver may be gone.
    fn reply(self, status: Result<Status, Refusal>) {
        match self {
            Self::Status(reply) => drop(reply.send(status)),
            Self::Pair(reply) => {
                let pair = |status: Status| Pair { routers: status.vrrp, peers: status.peers };
                drop(reply.send(status.map(pair)));
            }
        }
    }
}

/// Takes status requests in, and drops requests for changes.
fn sort(request: Request, requesters: &mut Vec<Requester>) {
    match request {
        Request::Status(reply) => requesters.push(Requester::Status(reply)),
        Request::Pair(reply) => requesters.push(Requester::Pair(reply)),
        other => tracing::error!(?other, "a request that does not belong here came by HTTP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_api::requests::Terms;

    #[tokio::test]
    async fn who_asks_at_one_time_shares_an_answer() {
        let (to, mut daemon) = mpsc::channel(8);
        let status_broker = open(to);
        let request = || {
            let (reply, answer) = oneshot::channel();
            status_broker.try_send(Request::Status(reply)).expect("there is room");
            answer
        };
        let first = [request(), request(), request()];
        let started = Instant::now();
        for round in 0..2 {
            let Some(Request::Status(reply)) = daemon.recv().await else {
                panic!("it requests a status")
            };
            assert_eq!(started.elapsed() >= SPACING, round == 1);
            let status = Status { uptime_secs: 7 + round, ..Status::default() };
            reply.send(Ok(status)).expect("it listens");
            if round == 0 {
                // It comes while the answer is on its way.
                drop(request());
            }
        }
        for answer in first {
            assert_eq!(answer.await.expect("an answer").expect("a status").uptime_secs, 7);
        }
        assert!(daemon.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_would_change_something_is_not_passed_on() {
        let (to, mut daemon) = mpsc::channel(8);
        let status_broker = open(to);
        let (reply, answer) = oneshot::channel();
        let terms = Terms { dry_run: false, yes: true };
        status_broker.send(Request::Detach(terms, reply)).await.expect("it listens");
        answer.await.expect_err("it is dropped");
        drop(status_broker);
        assert!(daemon.recv().await.is_none(), "and nothing was passed on");
    }
}
