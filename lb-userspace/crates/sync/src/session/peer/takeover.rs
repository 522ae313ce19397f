//! Takeover requests and their answers: a node and its peer request each other to become Active for routers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_api::peers::PeerCounters;
use lb_model::router::RouterKey;

use super::{
    super::{
        Action, Common,
        takeover_request::{ReceivedRequest, RequestState, SentRequest},
        trust::{Trust, send},
    },
    Peer,
};
use crate::{PeerId, Report, wire::Message};

const FIRST_RETRANSMISSION: Duration = Duration::from_millis(20);
const LONGEST_RETRANSMISSION: Duration = Duration::from_millis(100);
/// A request that has no answer for so long gets none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The requesting node repeats its request; if it does not, it has given up.
const REPEAT_TIMEOUT: Duration = Duration::from_millis(500);

impl Trust {
    /// Repeats the request when that is due, and reports the peer's request when all before it has come.
    pub(in super::super) fn tick_takeover_requests(
        &mut self,
        id: PeerId,
        address: SocketAddr,
        now: Instant,
        counters: &mut PeerCounters,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        if self.sent_request.take_if(|request| request.since + ANSWER_TIMEOUT <= now).is_some() {
            let why = format!("it has not answered for {} s", ANSWER_TIMEOUT.as_secs());
            out.push(Action::Report(Report::Answer(id, Err(why))));
        }
        if let Some(request) = self.sent_request.as_mut().filter(|request| request.again_at <= now)
        {
            request.again_at = now + request.again;
            request.again = (request.again * 2).min(LONGEST_RETRANSMISSION);
            let routers = request.routers.clone();
            let message = Message::TakeoverRequest { id: request.id, head: request.head, routers };
            send(address, self.session, &message, counters, common, out);
        }
        if let Some(request) = &mut self.received_request
            && matches!(request.state, RequestState::Waiting)
            && request.received + REPEAT_TIMEOUT > now
            && self.incoming.has(request.head)
        {
            request.state = RequestState::Reported;
            let routers = request.routers.clone();
            out.push(Action::Report(Report::TakeOver(id, routers)));
        }
    }

    /// The peer takes a request back, perhaps one that has not come yet.
    pub(super) fn request_withdrawn(&mut self, id: u64, now: Instant) {
        let state = RequestState::Withdrawn;
        match &mut self.received_request {
            Some(request) if id < request.id => {}
            Some(request) if id == request.id => {
                if matches!(request.state, RequestState::Waiting) {
                    request.state = state;
                }
            }
            request => {
                *request =
                    Some(ReceivedRequest { id, head: 0, routers: Vec::new(), received: now, state })
            }
        }
    }
}

impl Peer {
    /// A request of the peer has come, perhaps again.
    pub(super) fn request_received(
        &mut self,
        id: u64,
        head: u64,
        routers: Vec<RouterKey>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        let Some(trust) = &mut self.trust else { return };
        match &mut trust.received_request {
            Some(request) if id < request.id => return,
            Some(request) if id == request.id => request.received = now,
            request => {
                *request = Some(ReceivedRequest {
                    id,
                    head,
                    routers,
                    received: now,
                    state: RequestState::Waiting,
                });
            }
        }
        trust.incoming.published(head, now, out);
        self.send_answer(common, out);
    }

    /// Sends the answer, if there is one.
    fn send_answer(&mut self, common: &mut Common, out: &mut Vec<Action>) {
        let Some(trust) = &self.trust else { return };
        if let Some(ReceivedRequest { id, state: RequestState::Answered(answer), .. }) =
            &trust.received_request
        {
            let answer = answer.as_ref().copied().map_err(String::as_str);
            let message = Message::Answer { id: *id, answer };
            send(self.address, trust.session, &message, &mut self.counters, common, out);
        }
    }

    /// Requests it to take over, until it answers.
    pub(in super::super) fn request_takeover(
        &mut self,
        id: u64,
        head: u64,
        routers: Vec<RouterKey>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let mut answer = |why: &str| {
            out.push(Action::Report(Report::Answer(self.id, Err(why.to_owned()))));
        };
        let Some(trust) = &mut self.trust else { return answer("it is not there") };
        if trust.sent_request.is_some() {
            answer("it was asked again");
        }
        let (since, again_at, again) = (now, now, FIRST_RETRANSMISSION);
        trust.sent_request = Some(SentRequest { id, head, routers, since, again_at, again });
    }

    /// Takes the request back. If that is lost, the peer keeps it for a while yet, and it is not repeated.
    pub(in super::super) fn withdraw(&mut self, common: &mut Common, out: &mut Vec<Action>) {
        let Some(trust) = &mut self.trust else { return };
        let Some(SentRequest { id, .. }) = trust.sent_request.take() else { return };
        for _ in 0..2 {
            let message = Message::Withdraw { id };
            send(self.address, trust.session, &message, &mut self.counters, common, out);
        }
    }

    /// Answers its request.
    pub(in super::super) fn answer(
        &mut self,
        answer: Result<(), String>,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        if let Some(request) = self.trust.as_mut().and_then(|trust| trust.received_request.as_mut())
            && matches!(request.state, RequestState::Reported)
        {
            request.state = RequestState::Answered(answer);
            self.send_answer(common, out);
        }
    }
}
