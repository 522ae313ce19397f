//! Slow start: a backend that is back takes its share in steps.
//!
//! Each step moves a tenth of its share, so few slots are in flux at a time, and a backend whose
//! caches are cold does not get all of its clients at once.
//!
//! Weights in the ring are thousandths, so that a share can grow by tenths.

use std::{collections::BTreeMap, time::Duration};

use lb_model::{
    desired::Service,
    seen::{BackendKey, Condition},
    time::Now,
};

use crate::reconcile::{Applied, MapWrite, PlanInputs, Ramps, WritePlan};

/// Steps until a share is whole.
const STEPS: u32 = 10;
/// Thousandths of a share in each.
const STEP: u16 = 100;

/// The backends that don't have their whole share yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Ramping {
    ramps: BTreeMap<BackendKey, Ramp>,
    /// The shares that the last plan was made with.
    in_force: Ramps,
}

/// One backend's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ramp {
    /// When it began, on CLOCK_MONOTONIC.
    began: Duration,
    /// How long it takes.
    takes: Duration,
}

impl Ramp {
    /// Thousandths of the whole share at a time: the first step is taken at once.
    fn share(self, now: Duration) -> u16 {
        let step = self.takes / STEPS;
        let done = now.saturating_sub(self.began).as_nanos() / step.as_nanos().max(1);
        let done = u16::try_from(done).unwrap_or(u16::MAX);
        STEP.saturating_mul(done.saturating_add(1)).min(STEP * STEPS as u16)
    }
}

impl Ramping {
    /// The shares that are not whole.
    pub(super) fn shares(&self, now: Now) -> Ramps {
        let shares = self.ramps.iter().map(|(key, ramp)| (*key, ramp.share(now.mono)));
        shares.filter(|(_, share)| *share < STEP * STEPS as u16).collect()
    }

    /// A plan is written with the shares of this moment.
    pub(super) fn set_in_force(&mut self, now: Now) {
        self.in_force = self.shares(now);
    }

    /// The share of a backend that does not have all of it, in thousandths, by the last plan.
    pub(super) fn in_force(&self, backend: &BackendKey) -> Option<u16> {
        self.in_force.get(backend).copied()
    }

    /// Whether a share has grown between two moments.
    pub(super) fn has_stepped(&self, before: Duration, now: Duration) -> bool {
        self.ramps.values().any(|ramp| ramp.share(before) != ramp.share(now))
    }

    /// Notes the backends that join rings by a plan, and those that have left them or have their whole share;
    /// whether anyone has joined, so that the plan must be made anew.
    pub(super) fn record_joins(
        &mut self,
        inputs: &PlanInputs<'_>,
        plan: &WritePlan,
        applied: &Applied,
    ) -> bool {
        let now = inputs.now.mono;
        let services: BTreeMap<_, &Service> =
            inputs.desired.services.values().map(|service| (service.key, service)).collect();
        let by_id: BTreeMap<u16, &Service> = applied
            .services
            .iter()
            .filter_map(|(key, value)| Some((value.id, *services.get(key)?)))
            .collect();
        let mut joined = false;
        for write in &plan.writes {
            let MapWrite::RetargetRing(id, target) = write else { continue };
            let (Some(service), Some(ring)) = (by_id.get(id), applied.rings.get(id)) else {
                continue;
            };
            let owns = |id| ring.owned.get(&id).is_some_and(|owned| owned.current > 0);
            let takes = service.policy.slow_start;
            let others = target.members.iter().any(|(_, id)| owns(*id));
            let panic = plan.standings.get(&service.key).is_some_and(|standing| standing.panic);
            for (member, id) in &target.members {
                let key = BackendKey { service: service.key, backend: member.address };
                let up = inputs.view.get(&key).is_none_or(|s| s.condition == Condition::Up);
                // With no other member to compare with, a part of the share is all of it.
                if owns(*id) || !others || panic || !up || takes.is_zero() {
                    continue;
                }
                self.ramps.entry(key).or_insert_with(|| {
                    joined = true;
                    Ramp { began: now, takes }
                });
            }
            let member =
                |address| target.members.iter().any(|(member, _)| member.address == address);
            self.ramps.retain(|at, _| at.service != service.key || member(at.backend));
        }
        self.ramps.retain(|key, ramp| {
            let service = services.get(&key.service);
            let there = service.is_some_and(|s| s.backends.contains_key(&key.backend));
            there && ramp.share(now) < STEP * STEPS as u16
        });
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_in_ten_steps_from_a_tenth() {
        let ramp = Ramp { began: Duration::from_secs(100), takes: Duration::from_secs(30) };
        let share = |secs| ramp.share(Duration::from_secs(secs));
        assert_eq!([share(100), share(102), share(103), share(114)], [100, 100, 200, 500]);
        assert_eq!([share(126), share(127), share(130), share(9_000)], [900, 1_000, 1_000, 1_000]);
        assert_eq!(share(0), 100, "a clock that stands still is no harm");
    }
}
