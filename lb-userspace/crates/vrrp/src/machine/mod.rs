//! All virtual routers of this node and their sync groups, as one pure machine.
//!
//! The thread's driver owns a [`Machine`] and does nothing but this:
//!
//! ```text
//!  new ──► retire, configure ──► set_external, observe, script_ended ──► loop:
//!    wait until deadline(), a socket, an order, an observation
//!    read every socket empty:        receive(name, advertisement, now, &mut out)
//!    what else has come:             order(..) set_external(..) observe(..) script_ended(..)
//!    always, and last:               tick(now, &mut out)
//!    perform `out` in order
//! ```
//!
//! - Sockets are read empty before [`Machine::tick`], in each round. A thread that was not run for
//!   a while thereby learns that another router has taken over before it advertises as Active;
//!   nothing else is to be done about a stall.
//! - A router of a new configuration takes part as soon as what could be a fault of it is known: the
//!   daemon's external state, its interface, the first result of its scripts. Until then it is in
//!   `Initialize`, and addresses that a predecessor left (`inherited`) stay, unless another Active router
//!   advertises.
//! - [`Machine::retire`] ends the routers that a new configuration does not have any more; what it
//!   puts out is performed with what belongs to the earlier configuration. Then
//!   [`Machine::configure`] is called with the same routers. A router goes on if its name, interface
//!   and key are the same.
//! - After a change of addresses an Active router gets [`Action::Hold`] again: hold what is
//!   configured by then, and take off what is not any more.
//! - [`Action::Transition`] comes after what the state takes.
//! - Every [`Action::Stopped`] is of one router; [`Machine::is_stopped`] is true when all have ended.

mod group;
mod status;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use lb_model::router::{Router, RouterKey, Routers, State, SyncGroup};

use super::{
    ExternalState, Notice, NoticeKind, Order,
    fsm::{Action, Event, ReceivedAdvertisement, Settings, VirtualRouter},
    observed::Observed,
    track::{Change, Tracks},
};

/// A router's name.
pub(crate) type Name = Arc<str>;

/// What is to be done, in order, and for which router.
pub type Out = Vec<(Name, Action)>;

/// All virtual routers of this node.
#[derive(Debug, Default)]
pub struct Machine {
    routers: Vec<Entry>,
    groups: Vec<SyncGroup>,
    external: Option<ExternalState>,
    observed: Option<Observed>,
    /// It was ordered to end, and so was all around it: what is tracked means nothing any more.
    ending: bool,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    router: Router,
    machine: VirtualRouter,
    tracks: Tracks,
    /// It has not begun; whether its addresses are there.
    waiting: Option<bool>,
    /// It would be Active, but for a router of its sync group that receives advertisements.
    deaf: Option<Name>,
}

impl Machine {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the routers that are not in `routers` any more, at once.
    pub fn retire(&mut self, routers: &Routers, now: Instant, out: &mut Out) {
        let (stay, leave): (Vec<_>, _) = self
            .routers
            .drain(..)
            .partition(|entry| routers.routers.iter().any(|router| entry.is(router)));
        self.routers = stay;
        for mut entry in leave {
            if entry.waiting == Some(true) {
                out.push((entry.name.clone(), Action::Release));
            }
            entry.perform(out, |machine, out| machine.retire(now, out));
        }
    }

    /// From now on the routers are these. `inherited` names the new ones whose addresses are on their
    /// interfaces, left by a predecessor that was Active.
    pub fn configure(
        &mut self,
        routers: &Routers,
        inherited: &BTreeSet<String>,
        now: Instant,
        out: &mut Out,
    ) {
        self.retire(routers, now, out);
        self.groups.clone_from(&routers.groups);
        let mut before = std::mem::take(&mut self.routers);
        for router in &routers.routers {
            let known = before.iter().position(|entry| entry.is(router));
            let mut entry = match known {
                Some(known) => before.swap_remove(known),
                None => Entry::new(router, inherited.contains(&router.name), now),
            };
            entry.tracks.configure(router);
            entry.router = router.clone();
            self.routers.push(entry);
        }
        for index in 0..self.routers.len() {
            let settings = self.settings(index);
            self.routers[index]
                .perform(out, |machine, out| machine.set_settings(settings, now, out));
        }
        self.look(now, out);
        self.align_all_groups(now, out);
    }

    /// What the daemon knows.
    pub fn set_external(&mut self, external: &ExternalState, now: Instant, out: &mut Out) {
        self.external = Some(external.clone());
        self.look(now, out);
    }

    /// Takes the driver's observations.
    pub fn observe(&mut self, observed: &Observed, now: Instant, out: &mut Out) {
        self.observed = Some(observed.clone());
        self.look(now, out);
    }

    /// A run of a router's tracked script has ended, well or not (a run that takes longer than its
    /// timeout has failed). How many make a difference is counted here.
    pub fn script_ended(
        &mut self,
        router: &str,
        command: &[String],
        result: &Result<(), String>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(index) = self.index(router).filter(|_| !self.ending) else { return };
        let mut changes = Vec::new();
        self.routers[index].tracks.script_ended(command, result, now, &mut changes);
        self.routers[index].report(changes, out);
        self.assess(now, out);
    }

    /// An advertisement for a router was taken.
    pub fn receive(
        &mut self,
        router: &str,
        advert: ReceivedAdvertisement,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(index) = self.index(router) else { return };
        let entry = &mut self.routers[index];
        entry.deaf = None;
        if advert.priority > 0 && entry.waiting == Some(true) {
            // What the predecessor left is another router's by now.
            entry.waiting = Some(false);
            out.push((entry.name.clone(), Action::Release));
        }
        self.drive(&[index], |_| Event::Received(advert), now, out);
    }

    /// An order: [`Order::Yield`], [`Order::Take`] and [`Order::Stop`]; and [`Order::ExternalState`], as
    /// [`Self::set_external`]. [`Order::Configure`] is none for this: it needs the routers with inherited addresses.
    /// The other routers of a sync group yield and take over with the one that is named.
    pub fn order(&mut self, order: &Order, now: Instant, out: &mut Out) {
        match order {
            Order::Configure(_) => {}
            Order::ExternalState(external) => self.set_external(external, now, out),
            Order::Yield(key, how) => {
                self.drive(&self.with_mates(*key), |_| Event::Yield(*how), now, out);
            }
            Order::Take(key) => self.drive(&self.with_mates(*key), |_| Event::Take, now, out),
            Order::Stop { release } => {
                self.ending = true;
                for entry in &mut self.routers {
                    if entry.waiting.take() == Some(true) && *release {
                        out.push((entry.name.clone(), Action::Release));
                    }
                }
                let all: Vec<_> = (0..self.routers.len()).collect();
                self.drive(&all, |_| Event::Stop { release: *release }, now, out);
            }
        }
    }

    /// When [`Self::tick`] is to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let due = |entry: &Entry| [entry.machine.deadline(), entry.tracks.deadline()];
        self.routers.iter().flat_map(due).flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, out: &mut Out) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.routers.iter().any(|entry| due(entry.tracks.deadline())) {
            for entry in &mut self.routers {
                let mut changes = Vec::new();
                entry.tracks.tick(now, &mut changes);
                entry.report(changes, out);
            }
            self.assess(now, out);
        }
        // Hundreds may be due at once; those that are in no group need not be seen to one by one.
        let (alone, mates): (Vec<_>, Vec<_>) =
            (0..self.routers.len()).partition(|index| self.group(*index).is_none());
        let is_due = |index: &usize| due(self.routers[*index].machine.deadline());
        let alone: Vec<_> = alone.into_iter().filter(is_due).collect();
        self.drive(&alone, |_| Event::Timer, now, out);
        for index in mates {
            if due(self.routers[index].machine.deadline()) && !self.waits_for_mates(index, now, out)
            {
                self.drive(&[index], |_| Event::Timer, now, out);
            }
        }
    }

    /// Whether all routers have ended, as by [`Order::Stop`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.routers
            .iter()
            .all(|entry| entry.waiting.is_none() && entry.machine.state() == State::Initialize)
    }

    /// A router's state.
    #[must_use]
    pub fn state(&self, router: &str) -> Option<State> {
        self.index(router).map(|index| self.routers[index].machine.state())
    }

    /// Whether a router receives advertisements of another one that is Active.
    #[must_use]
    pub(crate) fn sees_active(&self, router: &str, now: Instant) -> bool {
        self.index(router).is_some_and(|index| self.routers[index].machine.sees_active(now))
    }

    /// A router's priority as it is.
    #[must_use]
    pub(crate) fn priority(&self, router: &str) -> Option<u8> {
        self.index(router).map(|index| self.routers[index].machine.priority())
    }

    /// Whether a router is about to give its addresses to another node.
    #[must_use]
    pub(crate) fn is_yielding(&self, router: &str) -> bool {
        self.index(router).is_some_and(|index| self.routers[index].machine.is_yielding())
    }

    /// Gives an event to some routers, and then sees to their groups.
    fn drive(
        &mut self,
        indices: &[usize],
        event: impl Fn(usize) -> Event,
        now: Instant,
        out: &mut Out,
    ) {
        let before = out.len();
        for index in indices {
            self.routers[*index]
                .perform(out, |machine, out| machine.handle(event(*index), now, out));
        }
        let changed = |(_, action): &(Name, Action)| {
            matches!(action, Action::Transition { .. } | Action::Yielded(_))
        };
        if out[before..].iter().any(changed) {
            self.align_after(before, now, out);
            // The assessment of others depends on a router only within its group.
            if indices.iter().any(|index| self.group(*index).is_some()) {
                self.assess(now, out);
            }
        }
    }

    /// Looks at what is tracked.
    fn look(&mut self, now: Instant, out: &mut Out) {
        for entry in &mut self.routers {
            let mut changes = Vec::new();
            let (external, observed) = (self.external.as_ref(), self.observed.as_ref());
            match observed {
                Some(observed) if self.ending => {
                    entry.tracks.look_at_links(&entry.router, observed, now, &mut changes);
                }
                _ if self.ending => {}
                _ => entry.tracks.look(&entry.router, external, observed, now, &mut changes),
            }
            entry.report(changes, out);
        }
        self.assess(now, out);
    }

    /// Gives each router its assessment, and starts the routers that can start.
    fn assess(&mut self, now: Instant, out: &mut Out) {
        let before = out.len();
        let assessments: Vec<_> =
            (0..self.routers.len()).map(|index| self.assessment(index)).collect();
        for (entry, assessment) in self.routers.iter_mut().zip(assessments) {
            entry.perform(out, |machine, out| machine.set_assessment(assessment, now, out));
        }
        for index in 0..self.routers.len() {
            if self.external.is_some() && self.is_ready(index) {
                let entry = &mut self.routers[index];
                let inherited = entry.waiting.take().unwrap_or(false);
                entry.perform(out, |machine, out| {
                    machine.handle(Event::Startup { inherited }, now, out);
                });
            }
        }
        if out.len() > before {
            self.align_after(before, now, out);
        }
    }

    fn index(&self, router: &str) -> Option<usize> {
        self.routers.iter().position(|entry| &*entry.name == router)
    }

    fn named(&self, key: RouterKey) -> impl Iterator<Item = usize> {
        (0..self.routers.len()).filter(move |index| self.routers[*index].router.key == key)
    }
}

impl Entry {
    fn new(router: &Router, inherited: bool, now: Instant) -> Self {
        Self {
            name: router.name.as_str().into(),
            router: router.clone(),
            machine: VirtualRouter::new(Settings::from(router), now),
            tracks: Tracks::default(),
            waiting: Some(inherited),
            deaf: None,
        }
    }

    /// Whether it goes on as this one.
    fn is(&self, router: &Router) -> bool {
        let own = &self.router;
        (&own.name, &own.interface, own.key) == (&router.name, &router.interface, router.key)
    }

    fn perform(
        &mut self,
        out: &mut Out,
        operation: impl FnOnce(&mut VirtualRouter, &mut Vec<Action>),
    ) {
        let mut actions = Vec::new();
        operation(&mut self.machine, &mut actions);
        out.extend(actions.into_iter().map(|action| (self.name.clone(), action)));
    }

    fn report(&self, changes: Vec<Change>, out: &mut Out) {
        for Change { message, cause } in changes {
            let router = self.router.name.clone();
            let notice = Notice { router, kind: NoticeKind::Track, message, cause };
            out.push((self.name.clone(), Action::Notice(notice)));
        }
    }
}
