//! The end of an outage: neighbours answer one after the other.
//!
//! While no enabled backend of a service can be reached its ring stays as it is. The first one to answer
//! must not make the others count as lost, and lose their flows, for the moment until they do.

use std::collections::{BTreeMap, BTreeSet};

use lb_model::{
    desired::{Admin, Desired, Service, ServiceKey},
    hop::{Neighbourhood, Resolution, Want},
    time::Now,
};

/// How long the others have from the first answer on: silent neighbours are probed every three
/// seconds, and once a second in between.
const GRACE_SECS: u32 = 5;

/// The services of which no enabled backend can be reached, or could until a moment ago.
#[derive(Debug, Default)]
pub(super) struct Outages(BTreeMap<ServiceKey, Outage>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// No enabled backend is reached.
    Lasts,
    /// One is.
    Ends {
        /// When those who have not answered count as lost; seconds of CLOCK_MONOTONIC.
        until: u32,
    },
}

impl Outages {
    /// Updates the outages by the known next hops.
    pub(super) fn update(&mut self, desired: &Desired, known: &Neighbourhood, now: Now) {
        let before = std::mem::take(&mut self.0);
        for service in desired.services.values() {
            let before = before.get(&service.key).copied();
            if let Some(outage) = next(before, sight(service, known), now.mono_secs()) {
                self.0.insert(service.key, outage);
            }
        }
    }

    /// The services without an enabled backend that can be reached.
    pub(super) fn lasting(&self) -> BTreeSet<ServiceKey> {
        self.keys(|outage| outage == Outage::Lasts)
    }

    /// The services whose silent backends have time to answer.
    pub(super) fn ending(&self) -> BTreeSet<ServiceKey> {
        self.keys(|outage| outage != Outage::Lasts)
    }

    fn keys(&self, these: impl Fn(Outage) -> bool) -> BTreeSet<ServiceKey> {
        self.0.iter().filter(|(_, outage)| these(**outage)).map(|(key, _)| *key).collect()
    }

    /// Whether the time to answer is over for some.
    pub(super) fn has_expired(&self, now: Now) -> bool {
        let over =
            |outage: &Outage| matches!(outage, Outage::Ends { until } if *until <= now.mono_secs());
        self.0.values().any(over)
    }
}

/// The reachability of a service's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sight {
    /// One that takes new flows can be reached.
    reached: bool,
    /// One can't be.
    lost: bool,
}

fn sight(service: &Service, known: &Neighbourhood) -> Sight {
    let mut sight = Sight { reached: false, lost: false };
    for (&address, backend) in &service.backends {
        match known.hops.get(&Want { address: address.ip, mode: service.mode }) {
            Some(Resolution::Resolved(_)) => sight.reached |= backend.admin == Admin::Enabled,
            Some(Resolution::Unreachable { .. }) => sight.lost = true,
            Some(Resolution::Pending { .. }) | None => {}
        }
    }
    sight
}

const fn next(before: Option<Outage>, sight: Sight, now: u32) -> Option<Outage> {
    match (before, sight.reached, sight.lost) {
        (_, false, true) => Some(Outage::Lasts),
        // All are probed; the answers decide.
        (before, false, false) => before,
        (_, true, false) | (None, true, true) => None,
        (Some(Outage::Lasts), true, true) => Some(Outage::Ends { until: now + GRACE_SECS }),
        (Some(Outage::Ends { until }), true, true) => {
            if now < until {
                Some(Outage::Ends { until })
            } else {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_when_all_have_answered_or_had_their_time() {
        let (lasts, ends) = (Some(Outage::Lasts), Some(Outage::Ends { until: 15 }));
        for (before, reached, lost, now, after) in [
            (None, true, false, 10, None),
            (None, true, true, 10, None),
            (None, false, false, 10, None),
            (None, false, true, 10, lasts),
            (lasts, false, true, 10, lasts),
            (lasts, false, false, 10, lasts),
            (lasts, true, true, 10, ends),
            (lasts, true, false, 10, None),
            (ends, true, true, 14, ends),
            (ends, true, true, 15, None),
            (ends, true, false, 11, None),
            (ends, false, true, 11, lasts),
        ] {
            let sight = Sight { reached, lost };
            assert_eq!(next(before, sight, now), after, "{before:?}, {sight:?} at {now}");
        }
    }
}
