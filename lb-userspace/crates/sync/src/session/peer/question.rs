//! What a node and its peer ask each other: to become Active for routers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_api::peers::PeerCounters;
use lb_model::router::RouterKey;

use super::{
    super::{
        Action, Common,
        asked::{Asked, AskedState, Asking},
        trust::{Trust, send},
    },
    Peer,
};
use crate::{PeerId, Report, wire::Message};

const FIRST_ASK_AGAIN: Duration = Duration::from_millis(20);
const LONGEST_ASK_AGAIN: Duration = Duration::from_millis(100);
/// A question that has no answer for so long gets none.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The asking node repeats its question; if it does not, it has given up.
const ASKED_TIMEOUT: Duration = Duration::from_millis(500);

impl Trust {
    /// Asks again what is due, and reports the peer's question when all before it has come.
    pub(in super::super) fn tick_questions(
        &mut self,
        id: PeerId,
        address: SocketAddr,
        now: Instant,
        counters: &mut PeerCounters,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        if self.asking.take_if(|asking| asking.since + ASK_TIMEOUT <= now).is_some() {
            let why = format!("it has not answered for {} s", ASK_TIMEOUT.as_secs());
            out.push(Action::Report(Report::Answer(id, Err(why))));
        }
        if let Some(asking) = self.asking.as_mut().filter(|asking| asking.again_at <= now) {
            asking.again_at = now + asking.again;
            asking.again = (asking.again * 2).min(LONGEST_ASK_AGAIN);
            let routers = asking.routers.clone();
            let message = Message::Ask { id: asking.id, head: asking.head, routers };
            send(address, self.session, &message, counters, common, out);
        }
        if let Some(asked) = &mut self.asked
            && matches!(asked.state, AskedState::Held)
            && asked.received + ASKED_TIMEOUT > now
            && self.incoming.has(asked.head)
        {
            asked.state = AskedState::Reported;
            let routers = asked.routers.clone();
            out.push(Action::Report(Report::TakeOver(id, routers)));
        }
    }

    /// The peer takes a question back, perhaps one that has not come yet.
    pub(super) fn withdrawn(&mut self, id: u64, now: Instant) {
        let state = AskedState::Withdrawn;
        match &mut self.asked {
            Some(asked) if id < asked.id => {}
            Some(asked) if id == asked.id => {
                if matches!(asked.state, AskedState::Held) {
                    asked.state = state;
                }
            }
            asked => {
                *asked = Some(Asked { id, head: 0, routers: Vec::new(), received: now, state })
            }
        }
    }
}

impl Peer {
    /// The peer asks, perhaps again.
    pub(super) fn asked(
        &mut self,
        id: u64,
        head: u64,
        routers: Vec<RouterKey>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        let Some(trust) = &mut self.trust else { return };
        match &mut trust.asked {
            Some(asked) if id < asked.id => return,
            Some(asked) if id == asked.id => asked.received = now,
            asked => {
                *asked = Some(Asked { id, head, routers, received: now, state: AskedState::Held });
            }
        }
        trust.incoming.published(head, now, out);
        self.send_answer(common, out);
    }

    /// Sends the answer, if there is one.
    fn send_answer(&mut self, common: &mut Common, out: &mut Vec<Action>) {
        let Some(trust) = &self.trust else { return };
        if let Some(Asked { id, state: AskedState::Answered(answer), .. }) = &trust.asked {
            let answer = answer.as_ref().copied().map_err(String::as_str);
            let message = Message::Answer { id: *id, answer };
            send(self.address, trust.session, &message, &mut self.counters, common, out);
        }
    }

    /// Asks it, until it answers.
    pub(in super::super) fn ask(
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
        if trust.asking.is_some() {
            answer("it was asked again");
        }
        let (since, again_at, again) = (now, now, FIRST_ASK_AGAIN);
        trust.asking = Some(Asking { id, head, routers, since, again_at, again });
    }

    /// Takes the question back. If that is lost, it is held for a while yet, and not asked again.
    pub(in super::super) fn withdraw(&mut self, common: &mut Common, out: &mut Vec<Action>) {
        let Some(trust) = &mut self.trust else { return };
        let Some(Asking { id, .. }) = trust.asking.take() else { return };
        for _ in 0..2 {
            let message = Message::Withdraw { id };
            send(self.address, trust.session, &message, &mut self.counters, common, out);
        }
    }

    /// Answers what it has asked.
    pub(in super::super) fn answer(
        &mut self,
        answer: Result<(), String>,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        if let Some(asked) = self.trust.as_mut().and_then(|trust| trust.asked.as_mut())
            && matches!(asked.state, AskedState::Reported)
        {
            asked.state = AskedState::Answered(answer);
            self.send_answer(common, out);
        }
    }
}
