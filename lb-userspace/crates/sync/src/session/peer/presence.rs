//! Whether a peer is there: heartbeats, and which session of it is trusted.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    super::{
        Action, Common, HEARTBEAT, Recipient,
        trust::{Trust, send},
    },
    Peer,
};
use crate::{
    Report,
    id::SessionId,
    seal::Opener,
    wire::{Header, Hello, Message},
};

/// Heartbeats that answer something are this far apart.
const HELLOS_APART: Duration = Duration::from_millis(5);

impl Peer {
    /// A heartbeat is due at that time, unless this is called again: later updates show a gap as well.
    pub(in super::super) const fn probe(&mut self, at: Instant) {
        self.probe_at = Some(at);
    }

    /// When a heartbeat is due.
    pub(super) fn hello_at(&self) -> Instant {
        self.probe_at.map_or(self.hello_at, |probe| probe.min(self.hello_at))
    }

    /// A heartbeat is due at once, or when the last one is long enough ago.
    pub(super) fn prompt(&mut self, now: Instant) {
        let earliest = self.hello_sent.map_or(now, |sent| now.max(sent + HELLOS_APART));
        self.hello_at = self.hello_at.min(earliest);
    }

    #[expect(clippy::too_many_arguments, reason = "all that decides whether a session is trusted")]
    pub(super) fn hello(
        &mut self,
        hello: &Hello<'_>,
        header: &Header,
        unknown: Option<Opener>,
        taken: bool,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        let session = SessionId(header.session);
        if self.session() != Some(session) {
            let fresh = hello.echo == (common.own(), self.challenge);
            if !fresh || taken {
                let candidate = Some((session, hello.challenge));
                if self.trust.is_some() {
                    self.stranger = candidate;
                } else {
                    self.candidate = candidate;
                }
                self.prompt(now);
                return;
            }
            self.lose("it has started anew".into(), now, out);
            if let Some(opener) = unknown {
                self.opener = Some(opener);
                self.challenge += 1;
            }
            self.join(Trust::new(session, self.id, hello, now), now, out);
        } else if hello.echo.0 != common.own() {
            // It was for a former session of this node, or for another one.
            return;
        }
        if self.trust.as_ref().is_some_and(|trust| trust.losses != hello.losses) {
            let stale = |trust: &Trust| trust.last_hello >= header.counter.get();
            if self.trust.as_ref().is_some_and(stale) {
                return;
            }
            self.lose("it had lost this node".into(), now, out);
            self.join(Trust::new(session, self.id, hello, now), now, out);
        }
        if let Some(trust) = &mut self.trust {
            trust.last_received = now;
            if trust.last_hello < header.counter.get() {
                trust.last_hello = header.counter.get();
                if self.node.as_deref() != Some(hello.node) {
                    self.node = Some(hello.node.to_owned());
                }
                trust.hello(hello, header.counter.get(), now, common, out);
            }
        }
    }

    fn join(&mut self, trust: Trust, now: Instant, out: &mut Vec<Action>) {
        self.trust = Some(trust);
        (self.candidate, self.stranger, self.unreadable) = (None, None, None);
        self.changed = Some(now);
        out.push(Action::Report(Report::Joined(self.id)));
        self.prompt(now);
    }

    /// The peer is gone, if it was there.
    pub(super) fn lose(&mut self, why: String, now: Instant, out: &mut Vec<Action>) {
        let Some(trust) = self.trust.take() else { return };
        self.candidate = Some((trust.session, trust.challenge));
        self.challenge += 1;
        self.changed = Some(now);
        if trust.sent_request.is_some() {
            out.push(Action::Report(Report::Answer(self.id, Err(format!("it is gone: {why}")))));
        }
        out.push(Action::Report(Report::Lost(self.id, why)));
    }

    /// Sees whether this node has sent nothing for so long that the peer has given it up: it did not run.
    /// What waits are the peer's messages until then, and not all that it has done since.
    pub(in super::super) fn see_own_silence(
        &mut self,
        now: Instant,
        common: &Common,
        out: &mut Vec<Action>,
    ) {
        let was_silent = self.hello_sent.is_some_and(|sent| sent + common.timeout < now);
        if self.trust.is_some() && was_silent {
            self.losses += 1;
            let why = format!("this node has not run for {} ms", common.timeout.as_millis());
            self.lose(why, now, out);
        }
    }

    /// Sees whether the peer is still there: everything that has come must have been taken.
    pub(in super::super) fn expire(
        &mut self,
        now: Instant,
        common: &Common,
        out: &mut Vec<Action>,
    ) {
        let silent = |trust: &Trust| trust.last_received + common.timeout <= now;
        if self.trust.as_ref().is_some_and(silent) {
            self.losses += 1;
            let why = format!("it has sent nothing for {} ms", common.timeout.as_millis());
            self.lose(why, now, out);
        }
    }

    pub(in super::super) fn bye(&mut self, common: &mut Common, out: &mut Vec<Action>) {
        if let Some(trust) = &self.trust {
            // It may be lost; then the timeout ends it.
            for _ in 0..2 {
                let counters = &mut self.counters;
                send(self.address, trust.session, &Message::Bye, counters, common, out);
            }
        }
    }

    pub(super) fn send_hellos(&mut self, now: Instant, common: &mut Common, out: &mut Vec<Action>) {
        let micros = |duration: Duration| duration.as_micros() as u64;
        let node = mem::take(&mut common.node);
        let unknown = Hello {
            node: &node,
            challenge: self.challenge,
            echo: self.candidate.unwrap_or_default(),
            losses: self.losses,
            clock: micros(now - common.started) + 1,
            head: common.log.head,
            node_state: common.sent_state.generations(),
            ..Hello::default()
        };
        let mut hellos = Vec::with_capacity(2);
        if let Some(echo) = self.stranger.take() {
            hellos.push(Hello { echo, ..unknown });
        }
        hellos.push(match &self.trust {
            None => unknown,
            Some(trust) => Hello {
                echo: (trust.session, trust.challenge),
                echo_clock: (trust.clock.0, micros(now.saturating_duration_since(trust.clock.1))),
                next: trust.incoming.next(),
                acknowledged: trust.incoming.acknowledged(),
                complete: trust.incoming.is_complete() && !trust.lacks,
                has: [trust.receivers[0].generation, trust.receivers[1].generation],
                ..unknown
            },
        });
        for hello in hellos {
            let message = Message::Hello(hello);
            let datagram = common.seal(message.kind(), None, |body| message.encode(body));
            self.count_sent(datagram.len(), 0);
            out.push(Action::Send(Recipient::Peer(self.address), datagram));
        }
        common.node = node;
        self.hello_sent = Some(now);
        self.probe_at = None;
        self.hello_at = now + HEARTBEAT.min(common.timeout / 4);
    }
}
