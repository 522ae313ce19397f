//! Backends that their clients find silent: passive health checks from the program's counters.
//!
//! The balancer sees the clients' packets only. A client that gets an answer to its SYN sends more
//! packets; one that gets none, or a reset, sends nothing but the SYN again. So what distinguishes
//! a backend that is gone is that SYNs go to it and nothing else does, long before the first SYN is
//! sent again a second later; and that more of its SYNs are sent again than the others'. Loss on
//! the clients' side of the network hits all backends alike.
//!
//! In mode `nat` the backend's own answers pass the node, and stand for those packets; and its refusals are seen. Where no
//! answer has ever come back through this node, they may take another way, and clients' packets have to do.
//!
//! A backend that stands out is suspect. A suspicion costs a check, which decides, and never more.
//!
//! The engine reads the counters ten times a second. A suspicion causes a probe at once, with a short timeout; two
//! probes without an answer, or one refusal, make the backend soft down. Until then its entry has the flag SUSPECT,
//! by which the program sends retransmitted SYNs to their second choice.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use anyhow::Result;
use lb_model::{
    backend_address::BackendAddress,
    desired::{Mode, Protocol, ServiceKey},
    seen::BackendKey,
    time::Now,
    units::counted,
};
use lb_plane::{BackendTotals, DataPlane};

use super::{maps::AppliedMaps, wanted::Wanted};

/// SYNs after which nothing else came: of so many clients one would have answered.
const UNANSWERED: u64 = 4;
/// How long those clients have.
const UNANSWERED_FOR: Duration = Duration::from_millis(50);
/// How long one client has, before it sends its SYN again after a second (RFC 6298, 2.1).
const ONE_UNANSWERED_FOR: Duration = Duration::from_millis(300);
/// The counts of this time are compared.
const WINDOW: Duration = Duration::from_secs(1);
/// Fewer SYNs than this in a window are no sample of a share.
const SAMPLE: u64 = 8;
/// By how much a backend must differ from the others of its service.
const FACTOR: u64 = 4;
/// Fewer refusals than this in a window are no evidence: an RST may answer a stray packet.
const REFUSALS: u64 = 3;
/// For how long no connection is accepted then.
const REFUSED_FOR: Duration = Duration::from_millis(200);
/// Fewer retransmitted SYNs than this are no evidence.
const RETRANSMISSIONS: u64 = 3;

/// A backend that is suspected to be silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// The backend.
    pub target: BackendKey,
    /// The reason, as a message.
    pub reason: String,
}

/// Packets that went to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// SYNs, those that were sent again among them.
    syns: u64,
    /// Other packets; in mode `nat` answers.
    others: u64,
    /// SYNs that were sent again.
    again: u64,
    /// Mode `nat`: SYNs that it has refused, and accepted.
    refused: u64,
    accepted: u64,
}

impl Counts {
    const fn of(totals: &BackendTotals, is_translated: bool) -> Self {
        let syns = totals.new_flows;
        Self {
            syns,
            others: match totals.returned.packets {
                answers if is_translated && answers > 0 => answers,
                _ => totals.sent.packets.saturating_sub(syns),
            },
            // One that went to its second choice is no evidence about that backend.
            again: totals.syn_retransmissions.saturating_sub(totals.second_choices),
            refused: totals.refused,
            accepted: totals.accepted,
        }
    }

    const fn since(self, before: Self) -> Self {
        Self {
            syns: self.syns.saturating_sub(before.syns),
            others: self.others.saturating_sub(before.others),
            again: self.again.saturating_sub(before.again),
            refused: self.refused.saturating_sub(before.refused),
            accepted: self.accepted.saturating_sub(before.accepted),
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            syns: self.syns + other.syns,
            others: self.others + other.others,
            again: self.again + other.again,
            refused: self.refused + other.refused,
            accepted: self.accepted + other.accepted,
        }
    }
}

/// Packets that had gone to a backend at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    backend: BackendAddress,
    /// Whether it takes new flows.
    serves: bool,
    counts: Counts,
}

/// The samples of one backend.
#[derive(Debug, Default)]
struct Memory {
    samples: VecDeque<(Duration, Counts)>,
    /// The sample before the first SYN that nothing but SYNs has followed.
    unanswered: Option<(Duration, u64)>,
    /// When it was seen to accept a connection last, or before, and the counts then.
    accepted: (Duration, Counts),
}

impl Memory {
    /// Adds a sample; returns the counts within the window.
    fn add_sample(&mut self, now: Duration, counts: Counts) -> Counts {
        let last = self.samples.back().map(|(_, counts)| *counts);
        // A backend of another id has counters of its own.
        if last.is_some_and(|last| counts.syns < last.syns || counts.others < last.others) {
            *self = Self::default();
        }
        let since = last.map_or(Counts::default(), |last| counts.since(last));
        if since.others > 0 || self.samples.is_empty() {
            self.unanswered = None;
        } else if since.syns > 0 && self.unanswered.is_none() {
            self.unanswered = Some((now, counts.syns - since.syns));
        }
        if since.accepted > 0 || self.samples.is_empty() {
            self.accepted = (now, counts);
        }
        while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, counts));
        let first = self.samples.front().map_or(counts, |(_, counts)| *counts);
        counts.since(first)
    }

    /// Why the backend seems silent by itself.
    fn silence(&self, now: Duration, counts: Counts) -> Option<String> {
        let (since, before) = self.unanswered?;
        let (syns, lasts) = (counts.syns - before, now.saturating_sub(since));
        let silent = (syns >= UNANSWERED && lasts >= UNANSWERED_FOR) || lasts >= ONE_UNANSWERED_FOR;
        silent.then(|| {
            format!("{} in {} ms and no other packet", counted(syns, "SYN"), lasts.as_millis())
        })
    }

    /// Why the backend seems to refuse connections, by its counts now and those within the window: of a busy one that
    /// dies, accepted connections fill most of the window. Each refusal is of a SYN; an RST that ends a connection of which
    /// this node does not know, as after a failover, looks alike.
    fn refusal(&self, now: Duration, counts: Counts, window: Counts) -> Option<String> {
        let (accepted, before) = self.accepted;
        let since = counts.since(before);
        let refused = since.refused.min(window.refused).min(since.syns);
        (refused >= REFUSALS && now.saturating_sub(accepted) >= REFUSED_FOR)
            .then(|| format!("{} refused and none accepted since", counted(refused, "connection")))
    }
}

/// Why a backend stands out against the others of its service, by the packets to each of them
/// within a window.
fn outlier(one: Counts, rest: Counts) -> Option<String> {
    let comparable = one.syns >= SAMPLE && rest.syns >= SAMPLE;
    if comparable && one.others * rest.syns * FACTOR < rest.others * one.syns {
        return Some(format!(
            "{} and {} came, where the other backends have {} and {}",
            counted(one.syns, "SYN"),
            counted(one.others, "other packet"),
            counted(rest.syns, "SYN"),
            counted(rest.others, "other packet"),
        ));
    }
    if one.again < RETRANSMISSIONS || one.again * 10 < one.syns || rest.syns == 0 {
        return None;
    }
    // One more of each: with few of them to compare with, it takes more to stand out.
    let stands_out = one.again * (rest.syns + 1) > (rest.again + 1) * one.syns * FACTOR;
    stands_out.then(|| {
        format!(
            "{} of {} retransmitted, {} of {} to the other backends",
            one.again,
            counted(one.syns, "SYN"),
            rest.again,
            rest.syns,
        )
    })
}

/// The samples of all backends.
#[derive(Debug, Default)]
pub(super) struct Silence {
    services: BTreeMap<ServiceKey, BTreeMap<BackendAddress, Memory>>,
    /// SYNs that went to their second choice, which is pinned.
    second_choices: BTreeMap<ServiceKey, u64>,
    /// When it was looked last.
    looked: Duration,
}

impl Silence {
    /// Adds a sample of each of a service's backends; returns those that seem silent.
    ///
    /// Those that take new flows are compared with each other. Packets to the others belong to older flows,
    /// and has few SYNs.
    fn add_samples(
        &mut self,
        service: ServiceKey,
        now: Duration,
        samples: &[Sample],
    ) -> Vec<Suspicion> {
        let memories = self.services.entry(service).or_default();
        memories.retain(|address, _| samples.iter().any(|sample| sample.backend == *address));
        let window = |sample: &Sample| {
            memories.entry(sample.backend).or_default().add_sample(now, sample.counts)
        };
        let windows: Vec<_> = samples.iter().map(window).collect();
        let serving = samples.iter().zip(&windows).filter(|(sample, _)| sample.serves);
        let all = serving.fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts));
        let suspicions = samples.iter().zip(&windows).filter_map(|(sample, window)| {
            let memory = memories.get(&sample.backend)?;
            let alone = memory.silence(now, sample.counts);
            let compared = || outlier(*window, all.since(*window)).filter(|_| sample.serves);
            // Where clients have several ports to connect to, nobody may listen at some.
            let is_one = service.ports().is_one();
            let refused = || memory.refusal(now, sample.counts, *window).filter(|_| is_one);
            let reason = alone.or_else(refused).or_else(compared)?;
            Some(Suspicion { target: BackendKey { service, backend: sample.backend }, reason })
        });
        suspicions.collect()
    }
}

impl Silence {
    /// Takes samples of the backends of all TCP services; returns those that seem silent, and the ids of the
    /// services with second choices since the last call.
    pub(super) fn watch<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
        now: Now,
    ) -> Result<(Vec<Suspicion>, Vec<u16>)> {
        let ids = maps.ids();
        let mut services = BTreeMap::new();
        for service in wanted.desired().services.values() {
            let Some(value) = maps.applied.services.get(&service.key) else { continue };
            if service.key.protocol == Protocol::Tcp {
                let backends = service.backends.keys();
                let ring = maps.applied.rings.get(&value.id);
                let serves =
                    |id| ring.and_then(|ring| ring.owned.get(&id)).is_some_and(|h| h.current > 0);
                let backends: Vec<_> = backends
                    .filter_map(|at| ids.of(value.id, *at).map(|id| (*at, id, serves(id))))
                    .collect();
                let is_translated = service.mode == Mode::Nat;
                services.insert(service.key, (value.id, is_translated, backends));
            }
        }
        self.services.retain(|key, _| services.contains_key(key));
        self.second_choices.retain(|key, _| services.contains_key(key));
        let backends = services.values().flat_map(|(.., backends)| backends);
        let backends: Vec<u16> = backends.map(|(_, id, _)| *id).collect();
        let mut totals = maps.plane.totals_of(&backends)?.into_iter();
        let (mut suspicions, mut with_second_choices) = (Vec::new(), Vec::new());
        for (key, (id, is_translated, backends)) in services {
            let totals: Vec<_> = totals.by_ref().take(backends.len()).collect();
            let second_choices = totals.iter().map(|totals| totals.second_choices).sum();
            let before = self.second_choices.insert(key, second_choices);
            if before.is_some_and(|before| before != second_choices) {
                with_second_choices.push(id);
            }
            let samples: Vec<_> = backends
                .into_iter()
                .zip(&totals)
                .map(|((backend, _, serves), totals)| {
                    let counts = Counts::of(totals, is_translated);
                    Sample { backend, serves, counts }
                })
                .collect();
            suspicions.extend(self.add_samples(key, now.mono, &samples));
        }
        self.looked = now.mono;
        Ok((suspicions, with_second_choices))
    }

    /// When samples were taken last, on CLOCK_MONOTONIC.
    pub(super) const fn looked(&self) -> Duration {
        self.looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    const KEY: ServiceKey =
        ServiceKey::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100)), 80, Protocol::Tcp);

    /// Whether a backend in mode `nat` of this service is suspected after each tenth of a second, by how many connections
    /// it has accepted and refused in it.
    fn suspected(service: ServiceKey, answers: &[(u64, u64)]) -> Vec<bool> {
        let (mut silence, mut counts, mut now) =
            (Silence::default(), Counts::default(), Duration::ZERO);
        let backend = BackendAddress::from([10, 0, 0, 1]);
        let suspected = answers.iter().map(|&(accepted, refused)| {
            let (syns, others) = (accepted + refused, 3 * accepted + refused);
            counts = counts.plus(Counts { syns, others, refused, accepted, ..Counts::default() });
            now += Duration::from_millis(100);
            let sample = Sample { backend, serves: true, counts };
            !silence.add_samples(service, now, &[sample]).is_empty()
        });
        suspected.collect()
    }

    #[test]
    fn a_busy_backend_that_refuses_is_suspected_at_once() {
        let busy = [(100, 0), (100, 1), (40, 60), (0, 100), (0, 100)];
        assert_eq!(suspected(KEY, &busy), [false, false, false, false, true]);
        // An RST may answer a stray packet.
        assert_eq!(suspected(KEY, &[(9, 2), (9, 5), (0, 0), (9, 5)]), [false; 4]);
        assert_eq!(suspected(KEY, &[(0, 0), (0, 1), (0, 1), (0, 1)]), [false, false, false, true]);
        let rare: Vec<_> = (0..40).map(|n| (0, u64::from(n % 6 == 1))).collect();
        assert_eq!(suspected(KEY, &rare), [false; 40], "fewer in a second");
    }

    #[test]
    fn an_rst_that_no_syn_can_have_caused_is_no_refusal() {
        let mut silence = Silence::default();
        let backend = BackendAddress::from([10, 0, 0, 1]);
        for n in 1..=9 {
            let counts = Counts { refused: 5 * n, others: 5 * n, ..Counts::default() };
            let sample = Sample { backend, serves: true, counts };
            let found = silence.add_samples(KEY, Duration::from_millis(100 * n), &[sample]);
            assert_eq!(found, [], "after a failover, connections end that the node does not know");
        }
    }

    #[test]
    fn a_port_of_a_range_that_nobody_listens_at_is_no_suspicion() {
        let range = ServiceKey::of(KEY.vips(), "80-99".parse().unwrap(), Protocol::Tcp);
        assert_eq!(suspected(range, &[(1, 9), (0, 90), (0, 90)]), [false; 3]);
    }

    /// Three backends, and their packets in each tenth of a second.
    #[derive(Default)]
    struct Story {
        silence: Silence,
        now: Duration,
        counts: [Counts; 3],
        /// Which take no new flows.
        idle: [bool; 3],
    }

    impl Story {
        /// Passes a tenth of a second in which these go to the backends: SYNs, other packets, SYNs
        /// that are sent again. Which backends are suspected.
        fn step(&mut self, sent: [(u64, u64, u64); 3]) -> Vec<usize> {
            self.now += Duration::from_millis(100);
            for (counts, (syns, others, again)) in self.counts.iter_mut().zip(sent) {
                *counts = counts.plus(Counts { syns, others, again, ..Counts::default() });
            }
            let address = |n: usize| BackendAddress::from([10, 0, 0, n as u8]);
            let sample = |n: usize| Sample {
                backend: address(n),
                serves: !self.idle[n],
                counts: self.counts[n],
            };
            let samples: Vec<_> = (0..3).map(sample).collect();
            let found = self.silence.add_samples(KEY, self.now, &samples);
            (0..3).filter(|n| found.iter().any(|s| s.target.backend == address(*n))).collect()
        }

        fn steps(&mut self, count: usize, sent: [(u64, u64, u64); 3]) -> Vec<Vec<usize>> {
            (0..count).map(|_| self.step(sent)).collect()
        }
    }

    /// As many SYNs, with four packets after each.
    const fn served(syns: u64) -> (u64, u64, u64) {
        (syns, syns * 4, 0)
    }

    #[test]
    fn a_backend_that_gets_only_syns_is_suspected_within_two_looks() {
        let mut story = Story::default();
        let quiet = story.steps(20, [served(7), served(7), served(7)]);
        assert!(quiet.iter().all(Vec::is_empty), "{quiet:?}");
        let found = story.steps(2, [served(7), (7, 0, 0), served(7)]);
        assert_eq!(found[1], [1], "{found:?}");
    }

    #[test]
    fn one_syn_without_an_answer_is_enough_before_it_is_sent_again() {
        let mut story = Story::default();
        story.step([(0, 0, 0); 3]);
        assert_eq!(story.step([(0, 0, 0), (1, 0, 0), (0, 0, 0)]), [0; 0]);
        let found = story.steps(3, [(0, 0, 0); 3]);
        assert_eq!(found.last().map(Vec::as_slice), Some(&[1][..]), "{found:?}");
    }

    #[test]
    fn established_flows_of_a_dead_backend_do_not_hide_it() {
        let mut story = Story::default();
        story.steps(10, [served(7), served(7), served(7)]);
        // Its clients retransmit now and then.
        let found = story.steps(12, [served(7), (7, 2, 0), served(7)]);
        assert!(found.iter().any(|found| found == &[1]), "{found:?}");
        assert!(found.iter().all(|found| found.iter().all(|n| *n == 1)), "{found:?}");
    }

    #[test]
    fn loss_on_the_clients_side_hits_all_alike_and_ejects_nobody() {
        let mut story = Story::default();
        // A third of all SYNs is lost, and of the others' packets as well.
        for step in 0..200_u64 {
            let unlucky = |n: u64| {
                let more = (step * 7 + n * 5) % 4;
                (6 + more, 12 + (step + n) % 7, 2 + more)
            };
            let found = story.step([unlucky(0), unlucky(1), unlucky(2)]);
            assert_eq!(found, [0; 0], "step {step}");
        }
    }

    #[test]
    fn second_choices_do_not_make_suspects_of_the_living() {
        let again = |syn_retransmissions, second_choices| {
            let totals =
                BackendTotals { syn_retransmissions, second_choices, ..Default::default() };
            Counts::of(&totals, false).again
        };
        assert_eq!((again(9, 9), again(9, 4), again(2, 0)), (0, 5, 2));
    }

    #[test]
    fn syns_that_are_sent_again_stand_out_against_the_other_backends() {
        let of = |syns, others, again| Counts { syns, others, again, ..Counts::default() };
        let rest = of(200, 800, 4);
        assert!(outlier(of(100, 300, 30), rest).is_some());
        assert!(outlier(of(100, 400, 5), rest).is_none());
        assert!(outlier(of(100, 400, 2), rest).is_none());
        let alone = of(60, 20, 30);
        assert!(outlier(alone, Counts::default()).is_none(), "there is none to compare with");
    }

    #[test]
    fn the_only_backend_that_works_is_compared_with_none() {
        let mut story = Story { idle: [false, true, true], ..Story::default() };
        // The others keep long flows, and a few SYNs are sent again to them.
        let found = story.steps(50, [(20, 360, 10), (1, 90, 0), (1, 90, 0)]);
        assert!(found.iter().all(Vec::is_empty), "{found:?}");
    }

    #[test]
    fn an_idle_service_and_a_new_backend_are_no_suspects() {
        let mut story = Story::default();
        let found = story.steps(50, [(0, 0, 0); 3]);
        assert!(found.iter().all(Vec::is_empty));
        // The counters of another id begin elsewhere.
        story.steps(5, [served(9), served(9), served(9)]);
        story.counts[1] = Counts { syns: 3, ..Counts::default() };
        assert_eq!(story.step([served(9), (0, 0, 0), served(9)]), [0; 0]);
    }
}
