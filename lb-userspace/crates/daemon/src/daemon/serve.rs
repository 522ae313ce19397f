//! The daemon's loop: it waits for an input, collects those that have come meanwhile, and serves them together.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_health::prober::Report;
use lb_plane::DataPlane;
use tokio::{
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Daemon, DaemonInputs, Ended, FLUSH_INTERVAL, Signal, inputs::await_first_hops, peers::PeerGroup,
};
use crate::api::Request;

/// How often the engine looks for entries that have run out.
const TICK: Duration = Duration::from_secs(1);
/// How often the engine looks for backends that are silent: several times before a client sends its
/// SYN again.
const FAST_TICK: Duration = Duration::from_millis(100);
/// Requests that are taken together.
const BATCH: usize = 4_096;

/// The timers of the loop.
struct Timers {
    tick: Interval,
    fast_tick: Interval,
    flush: Interval,
    watchdog: Interval,
    /// Whether the service manager has a watchdog.
    has_watchdog: bool,
}

impl Timers {
    fn start(beat: Option<Duration>) -> Self {
        let timer = |period| {
            let mut timer = interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        };
        Self {
            tick: timer(TICK),
            watchdog: timer(beat.unwrap_or(TICK)),
            has_watchdog: beat.is_some(),
            fast_tick: timer(FAST_TICK),
            flush: timer(FLUSH_INTERVAL),
        }
    }
}

/// Inputs that are served together.
#[derive(Default)]
struct Waiting {
    requests: Vec<Request>,
    reports: Vec<Report>,
}

/// The next step of the loop after an input.
enum Next {
    /// The input was served: wait for the next one.
    Wait,
    /// Serve the inputs that wait.
    Serve,
    /// End; forwarding goes on.
    Stop,
}

impl<D: DataPlane> Daemon<D> {
    pub(super) async fn serve(
        mut self,
        mut inputs: DaemonInputs,
        ready: oneshot::Sender<()>,
    ) -> Result<Ended> {
        self.start(&mut inputs, ready).await?;
        let mut timers = Timers::start(self.effects.notifier.beat());
        let mut waiting = Waiting::default();
        loop {
            if self.has_left() {
                // The last change is kept, unless the disk stalls.
                let _ = self.store.last_write().note().await;
                return self.end();
            }
            match self.await_input(&mut inputs, &mut timers, &mut waiting).await? {
                Next::Wait => {}
                Next::Serve => self.serve_collected(&mut inputs, &mut waiting),
                Next::Stop => return Ok(Ended::Stopped),
            }
        }
    }

    /// Takes over what the last run has left, waits for the first next hops, and writes the maps.
    async fn start(&mut self, inputs: &mut DaemonInputs, ready: oneshot::Sender<()>) -> Result<()> {
        self.ready = Some(ready);
        (self.effects.set_http)(self.store.config().http.as_ref());
        self.engine.set_desired(self.store.desired().clone());
        self.configure_routers();
        self.resume_routers();
        self.update_fingerprint();
        self.health.adopt(self.engine.adopted_view());
        (self.effects.at_tc)(self.engine.at_tc());
        self.want();
        await_first_hops(self.engine.wants(), &mut inputs.neighbours).await?;
        self.on_neighbourhood(inputs.neighbours.borrow_and_update().clone());
        self.reconcile();
        let _ = self.keep().note().await;
        self.get_ready();
        self.look_at_interfaces();
        self.sync_roles();
        Ok(())
    }

    /// Waits for an input or a timer. Serves it at once, or puts it to those that wait.
    async fn await_input(
        &mut self,
        inputs: &mut DaemonInputs,
        timers: &mut Timers,
        waiting: &mut Waiting,
    ) -> Result<Next> {
        let is_connected = self.group.as_ref().is_some_and(PeerGroup::is_connected);
        let wake = self.wakes_at();
        let rest = self.writing.rest(Instant::now());
        let rests = rest.is_some();
        tokio::select! {
            // The rest is over: inputs that have come meanwhile are taken together.
            () = sleep_until(rest.unwrap_or_else(Instant::now).into()), if rests => {}
            changed = inputs.neighbours.changed(), if !rests => {
                changed.context("follow the kernel's neighbours")?;
                inputs.neighbours.mark_changed();
                return Ok(Next::Serve);
            }
            count = inputs.requests.recv_many(&mut waiting.requests, BATCH), if !rests => {
                return Ok(if count == 0 { Next::Stop } else { Next::Serve });
            }
            report = inputs.reports.recv(), if !rests => {
                waiting.reports.push(report.context("the health checks have ended")?);
                return Ok(Next::Serve);
            }
            effect = self.files.done(), if !rests => {
                let effect = effect.context("the thread of the configuration's file has ended")?;
                self.update_backlog(inputs);
                self.take_up(effect);
            }
            // This can't wait: addresses are about to move.
            report = inputs.vrrp.recv() => {
                let report = report.context("the virtual routers have ended")?;
                self.on_router_reports(report, inputs);
            }
            report = inputs.peers.recv(), if self.group.is_some() => {
                self.update_backlog(inputs);
                self.on_peer_report(report.context("the sessions with the peers have ended")?);
                self.sync_roles();
            }
            _ = timers.flush.tick(), if is_connected => self.flush(),
            () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {
                self.look_at_handover();
            }
            _ = timers.tick.tick() => {
                self.update_backlog(inputs);
                self.tick();
            }
            _ = timers.fast_tick.tick() => self.fast_tick(),
            // By this task itself, so that one that hangs is noticed.
            _ = timers.watchdog.tick(), if timers.has_watchdog => self.effects.notifier.alive(),
            signal = inputs.signals.recv() => return Ok(self.on_signal(signal)),
        }
        Ok(Next::Wait)
    }

    /// Handles the reports of the virtual routers that have come.
    fn on_router_reports(&mut self, first: lb_vrrp::Report, inputs: &mut DaemonInputs) {
        // Waiting records of the peer that is followed still count: once this node is Active, it goes by its own
        // flow records.
        let waiting = if self.roles.follows() { inputs.peers.len() } else { 0 };
        for _ in 0..waiting {
            let Ok(report) = inputs.peers.try_recv() else { break };
            self.update_backlog(inputs);
            self.on_peer_report(report);
            self.sync_roles();
        }
        self.update_backlog(inputs);
        self.on_router_report(first);
        while let Ok(report) = inputs.vrrp.try_recv() {
            self.on_router_report(report);
        }
        self.sync_roles();
    }

    fn on_signal(&mut self, signal: Option<Signal>) -> Next {
        match signal {
            Some(Signal::Reload) => {
                // Answered by an event.
                self.with_config(|daemon, read| drop(daemon.reload_for(read, "SIGHUP")));
                Next::Wait
            }
            Some(Signal::Stop) if self.leaving.is_none() => {
                self.leave(None);
                Next::Wait
            }
            // A second request ends without a wait.
            Some(Signal::Stop) | None => Next::Stop,
        }
    }

    /// Collects the inputs that have come meanwhile, and serves all that wait.
    fn serve_collected(&mut self, inputs: &mut DaemonInputs, waiting: &mut Waiting) {
        self.update_backlog(inputs);
        while waiting.requests.len() < BATCH
            && let Ok(request) = inputs.requests.try_recv()
        {
            waiting.requests.push(request);
        }
        while let Ok(report) = inputs.reports.try_recv() {
            waiting.reports.push(report);
        }
        self.on_reports(waiting.reports.drain(..));
        if inputs.neighbours.has_changed().unwrap_or(false) {
            self.on_neighbourhood(inputs.neighbours.borrow_and_update().clone());
        }
        self.serve_waiting(&mut waiting.requests);
    }

    fn update_backlog(&mut self, inputs: &DaemonInputs) {
        if let Some(group) = &mut self.group {
            group.has_backlog = !inputs.peers.is_empty();
        }
    }

    /// When something that is under way is to be looked at again.
    fn wakes_at(&self) -> Option<Instant> {
        self.handovers.deadline().into_iter().chain(self.leaves_until()).min()
    }
}
