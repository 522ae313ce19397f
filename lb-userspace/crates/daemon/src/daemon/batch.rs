//! The changes that wait, made in turn and written together.

use lb_api::requests::{Done, Terms};
use lb_model::{
    desired::Desired,
    edit::Edit,
    plan::Plan,
    refusal::{Refusal, RefusalKind},
    seen::{BackendKey, Condition, Seen},
};
use lb_observe::events::changes;
use lb_plane::DataPlane;

use super::{Daemon, Reply, guard, newly_starved};

/// A change that someone waits for.
#[derive(Debug)]
pub(super) struct EditRequest {
    pub(super) edit: Edit,
    pub(super) terms: Terms,
    pub(super) reply: Reply<Done>,
}

impl<D: DataPlane> Daemon<D> {
    /// Makes changes one after the other, each with an answer of its own, keeps and writes them once,
    /// and answers.
    pub(super) fn make_edits(&mut self, requests: Vec<EditRequest>) {
        if requests.is_empty() {
            return;
        }
        let mut draft = self.store.desired().clone();
        let mut answers: Vec<_> =
            requests.iter().map(|request| self.make(request, &mut draft)).collect();
        if self.check(self.store.config(), &draft).is_err() {
            // One of them makes no sense: each is looked at by itself.
            draft = self.store.desired().clone();
            answers =
                requests.iter().map(|request| self.make_and_check(request, &mut draft)).collect();
        }
        let mut kept = None;
        if answers.iter().any(Result::is_ok) {
            let starved = newly_starved(self.store.desired(), &draft);
            let put = self.put_in_force(draft, "lbctl");
            for (answer, request) in answers.iter_mut().zip(&requests) {
                let Ok(done) = answer else { continue };
                if let Err(refusal) = &put {
                    *answer = Err(refusal.clone());
                    continue;
                }
                let of = request.edit.service();
                done.notes
                    .extend(starved.iter().filter(|name| *name == of).map(|name| starves(name)));
            }
            kept = put.ok();
        }
        let replies = requests.into_iter().map(|request| request.reply);
        let waiting: Vec<_> = replies.zip(answers).collect();
        let answer = |waiting: Vec<(Reply<Done>, Result<Done, Refusal>)>, note: Option<String>| {
            for (reply, mut answer) in waiting {
                if let Ok(done) = &mut answer {
                    done.notes.extend(note.clone());
                }
                // The client may be gone.
                let _ = reply.send(answer);
            }
        };
        match kept {
            None => answer(waiting, None),
            // The disk is waited for elsewhere.
            Some(kept) => {
                tokio::spawn(async move { answer(waiting, kept.note().await) });
            }
        }
    }

    /// The plan of a change; nothing is changed.
    pub(super) fn try_edit(&self, edit: &Edit) -> Result<Done, Refusal> {
        let mut draft = self.store.desired().clone();
        let loss = self.loss(edit, &draft);
        let message = edit.apply(&mut draft, self.now().wall)?;
        self.check(self.store.config(), &draft)?;
        let starved = newly_starved(self.store.desired(), &draft);
        let mut notes: Vec<_> = starved.iter().map(|name| starves(name)).collect();
        notes.extend(loss.map(|loss| format!("it takes --yes: {loss}")));
        let plan = Some(self.plan(&draft)?);
        Ok(Done { message, notes, plan })
    }

    /// The changes by another desired state.
    pub(super) fn plan(&self, desired: &Desired) -> Result<Plan, Refusal> {
        let preview = self.engine.preview(desired, self.now());
        let preview =
            preview.map_err(|error| Refusal::new(RefusalKind::Failed, format!("{error:#}")))?;
        let events = changes::between(self.store.desired(), desired, "");
        Ok(Plan { changes: events.into_iter().map(|event| event.message).collect(), preview })
    }

    fn loss(&self, edit: &Edit, desired: &Desired) -> Option<String> {
        guard::loss(edit, desired, |service, backend| {
            let seen = self.health.view().get(&BackendKey { service, backend });
            let is_down = |seen: &Seen| seen.held || seen.condition != Condition::Up;
            // In panic, checks are ignored.
            let panics = self.engine.standings().get(&service).is_some_and(|now| now.panic);
            self.reach.is_lost(service, backend) || (!panics && seen.is_some_and(is_down))
        })
    }

    fn make(
        &self,
        EditRequest { edit, terms, .. }: &EditRequest,
        draft: &mut Desired,
    ) -> Result<Done, Refusal> {
        if !terms.yes
            && let Some(loss) = self.loss(edit, draft)
        {
            let mut after = draft.clone();
            edit.apply(&mut after, self.now().wall)?;
            return Err(Refusal::unconfirmed(loss, self.plan(&after)?));
        }
        let message = edit.apply(draft, self.now().wall)?;
        Ok(Done { message, ..Done::default() })
    }

    fn make_and_check(&self, request: &EditRequest, draft: &mut Desired) -> Result<Done, Refusal> {
        let before = draft.clone();
        let made = self.make(request, draft);
        let made = made.and_then(|done| self.check(self.store.config(), draft).map(|()| done));
        if made.is_err() {
            *draft = before;
        }
        made
    }
}

fn starves(name: &str) -> String {
    format!("no backend of {name} takes new flows; new connections are dropped until one does")
}
