//! The API's requests to the daemon, and its answers.

use std::time::Instant;

use lb_api::{
    requests::Terms,
    status::{Pair, Status},
};
use lb_inspect::{
    capture::{Spec, annotator::PacketAnnotator},
    explain::{Answers, Questions},
};
use lb_model::{
    refusal::{Refusal, RefusalKind},
    time,
};
use lb_plane::{CaptureLoader, DataPlane};

use super::{Daemon, batch::EditRequest};
use crate::{api::Request, logs};

fn conflict(error: anyhow::Error) -> Refusal {
    Refusal::new(RefusalKind::Conflict, format!("{error:#}"))
}

impl<D: DataPlane> Daemon<D> {
    /// Serves the waiting requests, with as few writes as that takes.
    pub(super) fn serve_waiting(&mut self, waiting: &mut Vec<Request>) {
        let started = Instant::now();
        self.writing.begin_batch();
        self.look_at_clocks();
        let mut edits = Vec::new();
        for request in waiting.drain(..) {
            match request {
                Request::Edit(edit, terms, reply) if !terms.dry_run => {
                    edits.push(EditRequest { edit, terms, reply });
                }
                Request::Status(reply) => drop(reply.send(self.status())),
                // A request that comes after a change sees it.
                other => {
                    self.make_edits(std::mem::take(&mut edits));
                    self.answer(other);
                }
            }
        }
        self.make_edits(edits);
        if self.writing.is_due() {
            self.reconcile();
        }
        self.writing.end_batch(started);
    }

    fn answer(&mut self, request: Request) {
        // The client may be gone by the time of an answer.
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Edit(edit, _, reply) => drop(reply.send(self.try_edit(&edit))),
            Request::Node(change, terms, reply) => self.change_node(change, terms, reply),
            Request::Pair(reply) => {
                let (routers, peers) = (self.status_of_routers(), self.status_of_peers());
                drop(reply.send(Ok(Pair { routers, peers })));
            }
            Request::Failover(which, terms, reply) => self.failover(&which, terms, reply),
            Request::Reload(Terms { dry_run: true, .. }, reply) => {
                self.with_config(|daemon, read| drop(reply.send(daemon.try_reload(read))));
            }
            Request::Reload(_, reply) => {
                self.with_config(|daemon, read| match daemon.reload_for(read, "lbctl") {
                    Err(refusal) => drop(reply.send(Err(refusal))),
                    Ok((mut reloaded, kept)) => {
                        tokio::spawn(async move {
                            reloaded.done.notes.extend(kept.note().await);
                            let _ = reply.send(Ok(reloaded));
                        });
                    }
                });
            }
            Request::ConfigDiff(reply) => {
                self.with_config(|daemon, read| drop(reply.send(Ok(daemon.config_diff(read)))));
            }
            Request::ConfigShow(reply) => self.show_config(reply),
            Request::ConfigSave { dry_run, reply } => self.save_config(dry_run, reply),
            Request::PrepareCapture(spec, reply) => drop(reply.send(self.prepare_capture(&spec))),
            Request::BeginCapture(loaded, reply) => {
                let begun = self.engine.begin_capture(loaded);
                if let Err(Ok(_)) = reply.send(begun.map_err(conflict)) {
                    // The client has gone.
                    let _ = self.end_capture();
                }
            }
            Request::EndCapture(reply) => {
                drop(reply.send(self.end_capture()));
            }
            Request::Explain(questions, reply) => drop(reply.send(self.explain(&questions))),
            Request::Detach(terms, reply) => match self.try_detach(terms) {
                None => self.leave(Some(reply)),
                Some(answer) => drop(reply.send(answer)),
            },
        }
    }

    fn prepare_capture(
        &self,
        spec: &Spec,
    ) -> Result<(Box<dyn CaptureLoader>, PacketAnnotator), Refusal> {
        let status = self.status()?;
        self.engine.prepare_capture(spec, &status).map_err(conflict)
    }

    /// Puts the normal program back.
    fn end_capture(&mut self) -> Result<(), Refusal> {
        let ended = self.engine.end_capture();
        ended.inspect_err(|error| tracing::warn!("{error:#}")).map_err(conflict)
    }

    /// The verdicts on packets; changes nothing.
    fn explain(&self, questions: &Questions) -> Result<Answers, Refusal> {
        let status = self.status()?;
        let nanos = time::coarse_nanos();
        let explained = self.engine.explain(questions, &status, nanos);
        explained.map_err(|error| Refusal::new(RefusalKind::Invalid, format!("{error:#}")))
    }

    fn status(&self) -> Result<Status, Refusal> {
        let failed = |error| Refusal::new(RefusalKind::Failed, format!("{error:#}"));
        let mut status = self.engine.status().map_err(failed)?;
        status.version = env!("CARGO_PKG_VERSION").into();
        status.name = self.store.config().node_name();
        status.uptime_secs = self.started.elapsed().as_secs();
        status.last_error = self.writing.error().cloned().or(status.last_error);
        status.state_file_error = self.store.write_error().cloned();
        status.node = self.store.node();
        status.vrrp = self.status_of_routers();
        status.peers = self.status_of_peers();
        self.health.add_to(&mut status);
        if let Some(egress) = &self.egress {
            egress.report(&mut status);
        }
        status.http = self.listeners();
        status.log = logs::current();
        status.writes = self.writing.totals().clone();
        status.events = self.effects.events.counts();
        Ok(status)
    }
}
