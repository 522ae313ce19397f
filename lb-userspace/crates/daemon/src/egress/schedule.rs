//! When exits are probed, and which changes are reported. No I/O.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_api::status::EgressStatus;

use super::{Exit, Plan};

/// Between two probes of an exit by which frames arrive.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between two probes of any other exit. While the result is unknown, as behind a firewall that drops the
/// probes, twice as long each time, up to [`INTERVAL`].
const SOON: Duration = Duration::from_secs(5);

/// Between two probes of one that loses frames, but forwards the probes.
const DOUBTED: Duration = Duration::from_secs(10);

/// The result of the probes of an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The probes' frames arrive.
    Forwards,
    /// They do not; with the evidence.
    Lost(String),
    /// The probes have no result, for this reason.
    Unknown(String),
}

impl ProbeResult {
    /// Its name in status.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Forwards => "forwards",
            Self::Lost(_) => EgressStatus::LOST,
            Self::Unknown(_) => "unknown",
        }
    }

    /// The evidence or reason.
    #[must_use]
    pub(crate) fn detail(&self) -> Option<&str> {
        match self {
            Self::Forwards => None,
            Self::Lost(detail) | Self::Unknown(detail) => Some(detail),
        }
    }
}

#[derive(Debug)]
struct State {
    /// When it is probed next; none: at once.
    next: Option<Instant>,
    /// When it was probed last.
    probed: Option<Instant>,
    /// How long until it is probed again if the result is unknown then.
    patience: Duration,
    /// Whether lost frames were reported.
    lost: bool,
}

/// The exits of the plan.
#[derive(Debug, Default)]
pub(super) struct Schedule(BTreeMap<Exit, State>);

impl Schedule {
    /// Takes over the plan; exits that are new are due at once.
    pub(super) fn follow(&mut self, plan: &Plan) {
        self.0.retain(|exit, _| plan.contains_key(exit));
        for exit in plan.keys() {
            let new = State { next: None, probed: None, patience: SOON, lost: false };
            self.0.entry(exit.clone()).or_insert(new);
        }
    }

    /// The exits to probe at `now`: the new ones, and then those that are due for longest.
    pub(super) fn due(&self, now: Instant) -> Vec<Exit> {
        let due = |state: &State| state.next.is_none_or(|next| next <= now);
        let mut due: Vec<_> = self.0.iter().filter(|(_, state)| due(state)).collect();
        due.sort_by_key(|(_, state)| state.next);
        due.into_iter().map(|(exit, _)| exit.clone()).collect()
    }

    /// How long nothing is due.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        let next = self.0.values().map(|state| state.next.unwrap_or(now)).min();
        next.map_or(INTERVAL, |next| next.saturating_duration_since(now))
    }

    /// Has the exits by an interface probed soon, since frames were lost there.
    pub(super) fn doubt(&mut self, ifindex: u32) {
        for (_, state) in self.0.iter_mut().filter(|(exit, _)| exit.ifindex == ifindex) {
            let soon = state.probed.map(|probed| probed + DOUBTED);
            state.next = state.next.min(soon);
        }
    }

    /// Takes over a result of `now`; returns whether frames are lost, if that is to be reported.
    pub(super) fn take(&mut self, exit: &Exit, result: &ProbeResult, now: Instant) -> Option<bool> {
        let state = self.0.get_mut(exit)?;
        let wait = match result {
            ProbeResult::Forwards => INTERVAL,
            ProbeResult::Lost(_) => SOON,
            ProbeResult::Unknown(_) => state.patience,
        };
        let is_unknown = matches!(result, ProbeResult::Unknown(_));
        state.patience = if is_unknown { INTERVAL.min(wait * 2) } else { SOON };
        state.probed = Some(now);
        state.next = Some(now + wait);
        let lost = match result {
            ProbeResult::Forwards => false,
            ProbeResult::Lost(_) => true,
            // A backend that is silent meanwhile ends no fault.
            ProbeResult::Unknown(_) => return None,
        };
        (std::mem::replace(&mut state.lost, lost) != lost).then_some(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(ifindex: u32) -> Exit {
        Exit { ifindex, interface: format!("eth{ifindex}"), mac: [2; 6] }
    }

    fn plan(exits: &[u32]) -> Plan {
        exits.iter().map(|ifindex| (exit(*ifindex), Vec::new())).collect()
    }

    fn lost() -> ProbeResult {
        ProbeResult::Lost("no answer".into())
    }

    #[test]
    fn a_fault_is_told_once_and_its_end_once() {
        let mut schedule = Schedule::default();
        schedule.follow(&plan(&[1]));
        let now = Instant::now();
        let unknown = ProbeResult::Unknown("the backend is silent".into());
        for (result, reported) in [
            (ProbeResult::Forwards, None),
            (lost(), Some(true)),
            (unknown, None),
            (lost(), None),
            (ProbeResult::Forwards, Some(false)),
            (ProbeResult::Forwards, None),
        ] {
            assert_eq!(schedule.take(&exit(1), &result, now), reported, "{result:?}");
        }
    }

    #[test]
    fn an_exit_that_is_new_is_asked_at_once_and_a_fault_more_often() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        assert_eq!(schedule.rest(now), INTERVAL);
        schedule.follow(&plan(&[1, 2]));
        assert_eq!(
            (schedule.due(now), schedule.rest(now)),
            (vec![exit(1), exit(2)], Duration::ZERO)
        );
        schedule.take(&exit(1), &ProbeResult::Forwards, now);
        schedule.take(&exit(2), &lost(), now);
        assert_eq!((schedule.due(now), schedule.rest(now)), (vec![], SOON));
        assert_eq!(schedule.due(now + SOON), [exit(2)]);
        schedule.follow(&plan(&[1, 3]));
        assert_eq!(schedule.due(now), [exit(3)]);
        assert_eq!(schedule.due(now + INTERVAL), [exit(3), exit(1)]);
    }

    #[test]
    fn an_exit_of_which_nothing_is_known_is_asked_ever_more_seldom_and_new_ones_first() {
        let mut schedule = Schedule::default();
        let mut now = Instant::now();
        schedule.follow(&plan(&[1]));
        let unknown = ProbeResult::Unknown("the backend is silent".into());
        for secs in [5, 10, 20, 40, 60, 60] {
            schedule.take(&exit(1), &unknown, now);
            assert_eq!(schedule.rest(now), Duration::from_secs(secs));
            now += Duration::from_secs(secs);
        }
        schedule.follow(&plan(&[1, 2]));
        assert_eq!(schedule.due(now), [exit(2), exit(1)]);
        schedule.take(&exit(1), &lost(), now);
        schedule.take(&exit(1), &unknown, now);
        assert_eq!(schedule.0[&exit(1)].next, Some(now + SOON), "it has answered meanwhile");
    }

    #[test]
    fn an_exit_that_loses_frames_is_asked_before_its_time_and_not_all_the_time() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        schedule.follow(&plan(&[1, 2, 3]));
        schedule.take(&exit(1), &ProbeResult::Forwards, now);
        schedule.take(&exit(2), &ProbeResult::Forwards, now);
        schedule.take(&exit(3), &lost(), now);
        schedule.doubt(1);
        schedule.doubt(3);
        assert_eq!(schedule.rest(now), SOON, "a fault is probed as often as before");
        assert_eq!(schedule.due(now + DOUBTED), [exit(3), exit(1)]);
        let later = now + DOUBTED * 3;
        schedule.doubt(2);
        assert!(schedule.due(later).contains(&exit(2)), "at once, if the last time is long ago");
        schedule.follow(&plan(&[4]));
        schedule.doubt(4);
        assert_eq!(schedule.due(later), [exit(4)]);
    }
}
