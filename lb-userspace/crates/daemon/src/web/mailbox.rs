//! What the doors ask of the daemon: only what there is to know, and seldom.
//!
//! Whoever comes by the doors talks to this and not to the daemon. What would change something is not
//! passed on, so a route that were put behind the doors by mistake could do nothing.

use std::time::Duration;

use lb_api::status::{Pair, Status};
use lb_model::refusal::{Refusal, RefusalKind};
use lb_threads::lasting;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::api::Request;

/// The daemon is asked at most this often: a status walks its maps.
const SPACING: Duration = Duration::from_millis(100);
/// Requests that wait.
const ROOM: usize = 256;

/// Where to ask instead of at the daemon. It ends with the last sender.
pub(super) fn open(daemon: mpsc::Sender<Request>) -> mpsc::Sender<Request> {
    let (to, asked) = mpsc::channel(ROOM);
    tokio::spawn(lasting("mailbox", pass_on(asked, daemon)));
    to
}

/// Who waits for what of a status.
enum Asker {
    Status(oneshot::Sender<Result<Status, Refusal>>),
    Pair(oneshot::Sender<Result<Pair, Refusal>>),
}

async fn pass_on(mut asked: mpsc::Receiver<Request>, daemon: mpsc::Sender<Request>) {
    let mut next = Instant::now();
    while let Some(request) = asked.recv().await {
        let mut askers = Vec::new();
        sort(request, &mut askers);
        sleep_until(next).await;
        next = Instant::now() + SPACING;
        while let Ok(request) = asked.try_recv() {
            sort(request, &mut askers);
        }
        let Some(last) = askers.pop() else { continue };
        let (tell, answer) = oneshot::channel();
        // A daemon that is gone drops `tell`.
        let _ = daemon.send(Request::Status(tell)).await;
        let stopping = |_| Refusal::new(RefusalKind::Stopping, "lbd is stopping");
        let status = answer.await.map_err(stopping).flatten();
        for asker in askers {
            asker.tell(status.clone());
        }
        // Mostly there is one: what a thousand backends are is not copied for it.
        last.tell(status);
    }
}

impl Asker {
    /// Answers. Who asked may be gone.
    fn tell(self, status: Result<Status, Refusal>) {
        match self {
            Self::Status(tell) => drop(tell.send(status)),
            Self::Pair(tell) => {
                let pair = |status: Status| Pair { routers: status.vrrp, peers: status.peers };
                drop(tell.send(status.map(pair)));
            }
        }
    }
}

/// Takes in what asks, and drops what would change something.
fn sort(request: Request, askers: &mut Vec<Asker>) {
    match request {
        Request::Status(tell) => askers.push(Asker::Status(tell)),
        Request::Pair(tell) => askers.push(Asker::Pair(tell)),
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
        let mailbox = open(to);
        let ask = || {
            let (tell, answer) = oneshot::channel();
            mailbox.try_send(Request::Status(tell)).expect("there is room");
            answer
        };
        let first = [ask(), ask(), ask()];
        let started = Instant::now();
        for round in 0..2 {
            let Some(Request::Status(tell)) = daemon.recv().await else { panic!("it asks") };
            assert_eq!(started.elapsed() >= SPACING, round == 1);
            let status = Status { uptime_secs: 7 + round, ..Status::default() };
            tell.send(Ok(status)).expect("it listens");
            if round == 0 {
                // It comes while the answer is on its way.
                drop(ask());
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
        let mailbox = open(to);
        let (tell, answer) = oneshot::channel();
        let terms = Terms { dry_run: false, yes: true };
        mailbox.send(Request::Detach(terms, tell)).await.expect("it listens");
        answer.await.expect_err("it is dropped");
        drop(mailbox);
        assert!(daemon.recv().await.is_none(), "and nothing was passed on");
    }
}
