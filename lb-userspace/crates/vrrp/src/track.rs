//! What a router depends on, and what that makes of its priority.
//!
//! A failure counts at once. That something is well again counts at once too, unless it was well for
//! a short time only before: then it has to stay well, longer with each failure. So a carrier that
//! comes and goes moves the addresses a few times, not all the time.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::router::{Family, OWNER, Router, Track, Tracked};

use super::{
    ExternalState,
    observed::{Observed, ObservedLink},
};

/// What has been well for so long is trusted again.
const TRUSTED: Duration = Duration::from_secs(60);
/// How long something has to stay well that failed soon after it was well again.
const FIRST_PROOF: Duration = Duration::from_millis(500);
/// It doubles up to this.
const LONGEST_PROOF: Duration = Duration::from_secs(30);
/// What the failure of a needed service means while another one is served.
const SPARED: &str = "other services of these addresses are served: they go to a router that is better off, and to no \
                      other";

/// Everything that one router depends on.
#[derive(Debug, Default)]
pub struct Tracks {
    own: [Rating; 2],
    configured: Vec<(Track, Rating)>,
    /// The services of the router's addresses that are served. The failure of another one is no fault
    /// then and makes the router the last choice: where the peer is no better off, the addresses stay.
    /// Empty where no peer would preempt.
    served: BTreeSet<String>,
}

/// What is tracked has failed, or is well again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What has happened.
    pub message: String,
    /// What that means.
    pub cause: String,
}

/// The result of all tracks of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackOutcome {
    /// Its priority.
    pub priority: u8,
    /// Its priority while nothing fails.
    pub best: u8,
    /// Why it can't be Active, if so.
    pub fault: Option<String>,
    /// All that is wrong.
    pub problems: Vec<String>,
}

/// How one thing is, and how much that is believed.
#[derive(Debug, Default)]
struct Rating {
    /// What was seen last; none: nothing yet.
    seen: Option<Result<(), String>>,
    /// What counts.
    counts: Option<Result<(), String>>,
    /// Since when it is seen to be well, while that does not count yet.
    well_since: Option<Instant>,
    /// Since when it counts as well.
    recovered: Option<Instant>,
    /// How long it has to stay well before that counts.
    proof: Duration,
    /// Results of runs in a row that contradict what is seen (scripts).
    contrary: u32,
    /// The number in a file.
    number: i64,
    /// What is odd, though it does not count.
    remark: Option<String>,
}

impl Rating {
    /// Takes what is seen; true if what counts has changed.
    fn see(&mut self, seen: Result<(), String>, now: Instant) -> bool {
        self.seen = Some(seen.clone());
        match (&self.counts, seen) {
            (None, Err(why)) => {
                self.counts = Some(Err(why));
                true
            }
            (None, Ok(())) => {
                self.counts = Some(Ok(()));
                false
            }
            (Some(Ok(())), Err(why)) => {
                let trusted = |since| now.saturating_duration_since(since) >= TRUSTED;
                self.proof = match self.recovered {
                    Some(since) if !trusted(since) => {
                        (2 * self.proof).clamp(FIRST_PROOF, LONGEST_PROOF)
                    }
                    _ => Duration::ZERO,
                };
                self.counts = Some(Err(why));
                self.well_since = None;
                true
            }
            (Some(Err(_)), Err(why)) => {
                self.counts = Some(Err(why));
                self.well_since = None;
                false
            }
            (Some(Err(_)), Ok(())) => {
                self.well_since.get_or_insert(now);
                self.believe(now)
            }
            (Some(Ok(())), Ok(())) => false,
        }
    }

    fn believed_at(&self) -> Option<Instant> {
        self.well_since.map(|since| since + self.proof)
    }

    /// What stayed well for long enough is well; true if that is new.
    fn believe(&mut self, now: Instant) -> bool {
        let proven = self.believed_at().is_some_and(|at| at <= now);
        if proven {
            self.counts = Some(Ok(()));
            self.well_since = None;
            self.recovered = Some(now);
        }
        proven
    }

    fn run_ended(
        &mut self,
        result: Result<(), String>,
        rise: u32,
        fall: u32,
        now: Instant,
    ) -> bool {
        let same = self.seen.as_ref().is_some_and(|seen| seen.is_ok() == result.is_ok());
        self.contrary = if same { 0 } else { self.contrary + 1 };
        let enough = if result.is_ok() { rise } else { fall };
        if self.seen.is_some() && !same && self.contrary < enough {
            return false;
        }
        self.contrary = 0;
        self.see(result, now)
    }

    fn problem(&self) -> Option<&String> {
        self.counts.as_ref()?.as_ref().err()
    }

    fn is_well(&self) -> bool {
        matches!(self.counts, Some(Ok(())))
    }
}

impl Tracks {
    /// Tracks what `router` configures; what is tracked already keeps what is known of it.
    pub fn configure(&mut self, router: &Router) {
        let mut before = std::mem::take(&mut self.configured);
        for track in &router.tracks {
            let known = before.iter().position(|(other, _)| other.what == track.what);
            let rating = known.map(|known| before.swap_remove(known).1).unwrap_or_default();
            self.configured.push((track.clone(), rating));
        }
    }

    /// Looks at interfaces and sources alone.
    pub(crate) fn look_at_links(
        &mut self,
        router: &Router,
        observed: &Observed,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        self.look_at_own(router, observed, now, changes);
        for (track, rating) in &mut self.configured {
            let Tracked::Interface(name) = &track.what else { continue };
            let changed = rating.see(link_state(observed, name), now);
            note(rating, changed, track.weight, &track.what.to_string(), changes);
        }
    }

    /// Looks at everything but scripts.
    pub fn look(
        &mut self,
        router: &Router,
        external: Option<&ExternalState>,
        observed: Option<&Observed>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        if let Some(observed) = observed {
            self.look_at_own(router, observed, now, changes);
        }
        if let Some(external) = external {
            let is_preempted = router.preempt && router.priority.get() != OWNER;
            let is_of = |vip: IpAddr| router.addresses.iter().any(|one| one.address == vip);
            let served = external.served.iter().filter(|(vip, _)| is_preempted && is_of(*vip));
            self.served = served.map(|(_, name)| name.clone()).collect();
        }
        for (track, rating) in &mut self.configured {
            let Some(seen) = seen(track, rating, router, external, observed) else { continue };
            let changed = rating.see(seen, now);
            if changed && rating.problem().is_some() && is_spared(&self.served, track) {
                let message = rating.problem().cloned().unwrap_or_default();
                changes.push(Change { message, cause: SPARED.into() });
            } else {
                note(rating, changed, track.weight, &track.what.to_string(), changes);
            }
        }
    }

    fn look_at_own(
        &mut self,
        router: &Router,
        observed: &Observed,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let [link, source] = &mut self.own;
        // What is not on its interface can't be assigned, whatever the others are.
        let others = router.addresses.iter().filter_map(|one| one.interface.as_deref());
        let mut all = std::iter::once(router.interface.as_str()).chain(others);
        let state = all.try_for_each(|name| link_state(observed, name));
        let changed = link.see(state, now);
        let named = match router.addresses.iter().all(|one| one.interface.is_none()) {
            true => format!("interface {}", router.interface),
            false => "every interface".to_owned(),
        };
        note(link, changed, 0, &named, changes);
        let changed = source.see(source_state(router, observed), now);
        note(source, changed, 0, "the source of advertisements", changes);
    }

    /// A run of a script has ended.
    pub fn script_ended(
        &mut self,
        ran: &[String],
        result: &Result<(), String>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        for (track, rating) in &mut self.configured {
            let Tracked::Script { command, rise, fall, .. } = &track.what else { continue };
            if command == ran {
                let result = result.clone().map_err(|why| format!("{}: {why}", track.what));
                let changed = rating.run_ended(result, *rise, *fall, now);
                note(rating, changed, track.weight, &track.what.to_string(), changes);
            }
        }
    }

    /// Believes what has proven to be well.
    pub fn tick(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let names = ["the interface", "the source of advertisements"];
        for (rating, name) in self.own.iter_mut().zip(names) {
            let changed = rating.believe(now);
            note(rating, changed, 0, name, changes);
        }
        for (track, rating) in &mut self.configured {
            let changed = rating.believe(now);
            note(rating, changed, track.weight, &track.what.to_string(), changes);
        }
    }

    /// When [`Self::tick`] changes something.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.ratings().filter_map(Rating::believed_at).min()
    }

    /// Whether everything is known that could be a fault.
    #[must_use]
    pub fn are_known(&self) -> bool {
        let faults = self.configured.iter().filter(|(track, _)| track.weight == 0);
        self.own.iter().chain(faults.map(|(_, rating)| rating)).all(|rating| rating.seen.is_some())
    }

    /// The result of all tracks for a router with this priority.
    #[must_use]
    pub fn outcome(&self, base: u8) -> TrackOutcome {
        let (mut sum, mut best) = (i64::from(base), i64::from(base));
        for (track, rating) in &self.configured {
            sum = sum.saturating_add(weight(track, rating));
            best = best.saturating_add(best_weight(track, rating));
        }
        let needed = self.configured.iter().filter(|(track, _)| track.weight == 0);
        let (spared, faults): (Vec<_>, Vec<_>) =
            needed.partition(|(track, _)| is_spared(&self.served, track));
        if spared.iter().any(|(_, rating)| rating.problem().is_some()) {
            sum = 1;
        }
        let faults: Vec<_> = self
            .own
            .iter()
            .chain(faults.into_iter().map(|(_, rating)| rating))
            .filter_map(Rating::problem)
            .map(String::as_str)
            .collect();
        // An owner is one whatever happens (RFC 9568, 5.2.4), and no other router can become one.
        let priority = |sum: i64| if base == OWNER { OWNER } else { sum.clamp(1, 254) as u8 };
        TrackOutcome {
            priority: priority(sum),
            best: priority(best),
            fault: (!faults.is_empty()).then(|| faults.join("; ")),
            problems: self.problems(),
        }
    }

    fn problems(&self) -> Vec<String> {
        let waiting = |rating: &Rating| {
            rating.problem().map(|why| match rating.well_since {
                Some(_) => format!("{why}; it is well again, but not for {:?} yet", rating.proof),
                None => why.clone(),
            })
        };
        let spared = self
            .configured
            .iter()
            .any(|(track, rating)| is_spared(&self.served, track) && rating.problem().is_some());
        let remarks = self.ratings().filter_map(|rating| rating.remark.clone());
        let spared = spared.then(|| SPARED.to_owned());
        self.ratings().filter_map(waiting).chain(remarks).chain(spared).collect()
    }

    fn ratings(&self) -> impl Iterator<Item = &Rating> {
        self.own.iter().chain(self.configured.iter().map(|(_, rating)| rating))
    }
}

/// Whether a failure of this is no fault, since another service is served.
fn is_spared(served: &BTreeSet<String>, track: &Track) -> bool {
    match &track.what {
        Tracked::Service { name, .. } => {
            track.weight == 0 && served.iter().any(|other| other != name)
        }
        _ => false,
    }
}

/// What a tracked thing adds to the priority.
fn weight(track: &Track, rating: &Rating) -> i64 {
    let weight = i64::from(track.weight);
    match track.what {
        Tracked::File(_) => weight.saturating_mul(rating.number),
        _ if weight > 0 && rating.is_well() => weight,
        _ if weight < 0 && rating.problem().is_some() => weight,
        _ => 0,
    }
}

/// What it would add if it did not fail. What is not known yet has not failed.
fn best_weight(track: &Track, rating: &Rating) -> i64 {
    match track.what {
        Tracked::File(_) => weight(track, rating).max(0),
        _ if rating.problem().is_some() => i64::from(track.weight).max(0),
        _ => weight(track, rating),
    }
}

/// How a tracked thing is; none: that is not known, or comes by another way.
fn seen(
    track: &Track,
    rating: &mut Rating,
    router: &Router,
    external: Option<&ExternalState>,
    observed: Option<&Observed>,
) -> Option<Result<(), String>> {
    match &track.what {
        Tracked::Interface(name) => Some(link_state(observed?, name)),
        Tracked::Forwarding => {
            let forwarding = &external?.forwarding;
            let link = observed?.links.get(&router.interface);
            let works = forwarding.contains(&router.interface)
                || link.is_some_and(|link| !link.below.is_disjoint(forwarding));
            Some(works.then_some(()).ok_or_else(|| {
                format!("the balancer's program does not forward on {}", router.interface)
            }))
        }
        Tracked::Service { name, min_healthy } => match external?.healthy.get(name) {
            Some(healthy) if healthy >= min_healthy => Some(Ok(())),
            Some(healthy) => Some(Err(format!(
                "service {name} has {healthy} healthy backends, and needs {min_healthy}"
            ))),
            // A new configuration is known here before what the daemon knows of its services.
            None => rating.seen.is_some().then(|| Err(format!("service {name} does not exist"))),
        },
        Tracked::Script { .. } => None,
        Tracked::File(path) => {
            let number = observed?.files.get(path)?;
            rating.number = *number.as_ref().unwrap_or(&0);
            rating.remark = number.as_ref().err().map(|why| format!("{}: {why}", track.what));
            match number {
                // It was perhaps not written yet; its number is 0 for so long, as in keepalived.
                Err(_) | Ok(0) => Some(Ok(())),
                Ok(number) if track.weight == 0 => {
                    Some(Err(format!("{} says {number}", track.what)))
                }
                Ok(_) => Some(Ok(())),
            }
        }
    }
}

fn link_state(observed: &Observed, name: &str) -> Result<(), String> {
    match observed.links.get(name) {
        Some(ObservedLink { up: true, .. }) => Ok(()),
        Some(_) => Err(format!("interface {name} is down")),
        None => Err(format!("interface {name} does not exist")),
    }
}

fn source_state(router: &Router, observed: &Observed) -> Result<(), String> {
    if observed.sources.contains_key(&router.name) {
        return Ok(());
    }
    let kind = match router.key.family {
        Family::V4 => "IPv4",
        Family::V6 => "link-local IPv6",
    };
    Err(match (observed.lacks.get(&router.name), router.source) {
        (Some(lacks), _) => lacks.clone(),
        (None, Some(source)) => format!("its source {source} is no address of this node"),
        (None, None) => {
            format!("interface {} has no {kind} address to advertise from", router.interface)
        }
    })
}

fn note(rating: &Rating, changed: bool, weight: i16, what: &str, changes: &mut Vec<Change>) {
    if !changed {
        return;
    }
    let cause = if weight == 0 { "it is needed".to_owned() } else { format!("it weighs {weight}") };
    let message = rating.problem().cloned().unwrap_or_else(|| format!("{what} is well again"));
    changes.push(Change { message, cause });
}
