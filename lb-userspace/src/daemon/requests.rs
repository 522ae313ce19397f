//! What is asked of the daemon, and its answers.

use std::time::Instant;

use super::{Balancer, Daemon, batch::Asked};
use crate::{
    api::{Request, Terms},
    edit::{Refusal, RefusalKind},
    logs,
    status::{Pair, Status},
};

impl<B: Balancer> Daemon<B> {
    /// Does what was heard, with as few writes as that takes.
    pub(super) fn turn(&mut self, waiting: &mut Vec<Request>) {
        let started = Instant::now();
        self.wrote = false;
        self.look_at_clocks();
        let mut edits = Vec::new();
        for request in waiting.drain(..) {
            match request {
                Request::Edit(edit, terms, tell) if !terms.dry_run => {
                    edits.push(Asked { edit, terms, tell });
                }
                Request::Status(tell) => drop(tell.send(self.status())),
                // What comes after a change sees it.
                other => {
                    self.edits(std::mem::take(&mut edits));
                    self.answer(other);
                }
            }
        }
        self.edits(edits);
        if self.stale {
            self.reconcile();
        }
        if self.wrote {
            self.pace.wrote(started, Instant::now());
        }
    }

    fn answer(&mut self, request: Request) {
        // Who asked may be gone by the time of an answer.
        match request {
            Request::Status(tell) => drop(tell.send(self.status())),
            Request::Edit(edit, _, tell) => drop(tell.send(self.try_edit(&edit))),
            Request::Node(change, terms, tell) => self.change_node(change, terms, tell),
            Request::Pair(tell) => {
                let (routers, peers) = (self.status_of_routers(), self.status_of_peers());
                drop(tell.send(Ok(Pair { routers, peers })));
            }
            Request::Failover(which, terms, tell) => self.failover(&which, terms, tell),
            Request::Reload(Terms { dry_run: true, .. }, tell) => {
                drop(tell.send(self.try_reload()));
            }
            Request::Reload(_, tell) => drop(tell.send(self.reload_for("lbctl"))),
            Request::ConfigDiff(tell) => drop(tell.send(Ok(self.config_diff()))),
            Request::ConfigSave { dry_run, tell } => {
                drop(tell.send(self.save_config(dry_run)));
            }
            Request::Detach(terms, tell) => match self.try_detach(terms) {
                None => self.leave(Some(tell)),
                Some(answer) => drop(tell.send(answer)),
            },
        }
    }

    fn status(&self) -> Result<Status, Refusal> {
        let failed = |error| Refusal::new(RefusalKind::Failed, format!("{error:#}"));
        let mut status = self.balancer.status().map_err(failed)?;
        status.version = env!("CARGO_PKG_VERSION").into();
        status.name = self.config.node_name();
        status.uptime_secs = self.started.elapsed().as_secs();
        status.last_error = self.last_error.clone().or(status.last_error);
        status.node = self.node;
        status.vrrp = self.status_of_routers();
        status.peers = self.status_of_peers();
        self.health.tell(&mut status);
        status.log = logs::current();
        status.writes = self.writes.clone();
        status.events = self.effects.events.counts();
        Ok(status)
    }
}
