//! The holders of an address, looked at a thousand times a second on each node of a pair.

use std::{
    fmt,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::namespace::{self, Namespace};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(1);

/// A watch that goes on; it ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    begin: Instant,
    threads: Vec<JoinHandle<Result<OwnershipSamples>>>,
}

/// The samples of one node: when it took the address and when it gave it up, by turns.
#[derive(Clone, Debug, Default)]
struct OwnershipSamples {
    changes: Vec<(Instant, bool)>,
    longest: Duration,
}

/// The holders of the address over time.
#[derive(Clone, Debug)]
pub struct Owners {
    /// Turns of the time at which this changed, with the nodes that had it from then on.
    turns: Vec<(Instant, Vec<usize>)>,
    begin: Instant,
    end: Instant,
    /// The longest between two looks: how far times can be wrong.
    pub precision: Duration,
}

impl Watch {
    /// Starts to watch an address on these hosts.
    ///
    /// # Errors
    ///
    /// If there is no thread for it.
    pub fn start(nodes: &[&Namespace], address: IpAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut watch = Self { stop, begin: Instant::now(), threads: Vec::new() };
        for node in nodes {
            let (path, stop) = (node.path(), Arc::clone(&watch.stop));
            let thread = thread::Builder::new().stack_size(128 << 10).spawn(move || {
                namespace::join(&path)?;
                Ok(look(address, &stop))
            });
            watch.threads.push(thread.context("start a thread")?);
        }
        Ok(watch)
    }

    /// Ends the watch; returns its samples.
    ///
    /// # Errors
    ///
    /// If a node could not be watched.
    pub fn finish(mut self) -> Result<Owners> {
        let end = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        let samples: Vec<OwnershipSamples> = self
            .threads
            .drain(..)
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<_>>()?;
        Ok(Owners::new(self.begin, end, &samples))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Looks until `stop` is set. The kernel lets a socket have an address if it is this host's.
fn look(address: IpAddr, stop: &AtomicBool) -> OwnershipSamples {
    let mut samples = OwnershipSamples::default();
    let (mut had, mut last) = (false, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let holds = UdpSocket::bind((address, 0)).is_ok();
        let now = Instant::now();
        if holds != had {
            samples.changes.push((now, holds));
            had = holds;
        }
        samples.longest = samples.longest.max(now - last);
        last = now;
        thread::sleep(EVERY);
    }
    samples
}

impl Owners {
    fn new(begin: Instant, end: Instant, samples: &[OwnershipSamples]) -> Self {
        let changes = samples.iter().enumerate().flat_map(|(node, samples)| {
            samples.changes.iter().map(move |&(at, holds)| (at, node, holds))
        });
        let mut changes: Vec<_> = changes.collect();
        changes.sort();
        let (mut turns, mut holders) = (vec![(begin, Vec::new())], Vec::new());
        for (at, node, holds) in changes {
            if holds {
                holders.push(node);
                holders.sort_unstable();
            } else {
                holders.retain(|&other| other != node);
            }
            turns.push((at, holders.clone()));
        }
        let precision = samples.iter().map(|samples| samples.longest).max().unwrap_or_default();
        Self { turns, begin, end, precision }
    }

    /// As if a node had not had the address between two moments: it was dead, and what it had not
    /// given up lay there.
    #[must_use]
    pub fn without(&self, node: usize, from: Instant, to: Instant) -> Self {
        let mut cut = Vec::new();
        for (n, (at, holders)) in self.turns.iter().enumerate() {
            let next = self.turns.get(n + 1).map_or(self.end, |(next, _)| *next);
            let inner = [from, to].into_iter().filter(|moment| at < moment && *moment < next);
            for start in [*at].into_iter().chain(inner) {
                let dead = from <= start && start < to;
                let living = holders.iter().copied().filter(|&other| !(dead && other == node));
                cut.push((start, living.collect()));
            }
        }
        Self { turns: cut, ..self.clone() }
    }

    /// The holders of the address at a moment.
    #[must_use]
    pub fn at(&self, moment: Instant) -> &[usize] {
        let turn = self.turns.iter().rev().find(|(at, _)| *at <= moment);
        turn.map_or(&[], |(_, holders)| holders)
    }

    /// The stretches in which a number of nodes that is not one had the address, between two moments:
    /// when they began, how long they lasted, how many they were.
    #[must_use]
    pub fn exceptions(&self, from: Instant, to: Instant) -> Vec<Exception> {
        let mut found: Vec<Exception> = Vec::new();
        for (n, (at, holders)) in self.turns.iter().enumerate() {
            let next = self.turns.get(n + 1).map_or(self.end, |(next, _)| *next);
            let (start, end) = ((*at).max(from), next.min(to));
            if holders.len() == 1 || start >= end {
                continue;
            }
            let (lasted, holders) = (end - start, holders.len());
            match found.last_mut() {
                Some(last) if last.holders == holders && last.at + last.lasted == start => {
                    last.lasted += lasted;
                }
                _ => found.push(Exception { at: start, lasted, holders }),
            }
        }
        found
    }

    /// How long, at most, no node had it, and how long two did, between two moments.
    #[must_use]
    pub fn longest(&self, from: Instant, to: Instant) -> Longest {
        let exceptions = self.exceptions(from, to);
        let of = |chosen: fn(usize) -> bool| {
            let chosen = exceptions.iter().filter(|one| chosen(one.holders));
            chosen.map(|one| one.lasted).max().unwrap_or_default()
        };
        Longest { none: of(|holders| holders == 0), two: of(|holders| holders > 1) }
    }

    /// When the watch began and when it ended.
    #[must_use]
    pub fn span(&self) -> (Instant, Instant) {
        (self.begin, self.end)
    }
}

/// A stretch of time in which no node, or more than one, had the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// When it began.
    pub at: Instant,
    /// How long it lasted.
    pub lasted: Duration,
    /// How many nodes had it.
    pub holders: usize,
}

/// The longest stretches without exactly one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Longest {
    /// In which no node had the address.
    pub none: Duration,
    /// In which two did.
    pub two: Duration,
}

impl fmt::Display for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no owner for {:?}, two for {:?}", self.none, self.two)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Two nodes: the first gives the address up at 100 ms, the second takes it at 130 ms; the first
    /// has it back at 200 ms, and the second lets go at 210 ms.
    fn owners(begin: Instant) -> Owners {
        let samples = |changes: &[(u64, bool)]| OwnershipSamples {
            changes: changes.iter().map(|&(at, holds)| (begin + ms(at), holds)).collect(),
            longest: ms(1),
        };
        let both = [
            samples(&[(0, true), (100, false), (200, true)]),
            samples(&[(130, true), (210, false)]),
        ];
        Owners::new(begin, begin + ms(300), &both)
    }

    #[test]
    fn stretches_without_exactly_one_owner_are_found() {
        let begin = Instant::now();
        let owners = owners(begin);
        let found = owners.exceptions(begin, begin + ms(300));
        let exceptions: Vec<_> =
            found.iter().map(|one| (one.at - begin, one.lasted, one.holders)).collect();
        assert_eq!(exceptions, [(ms(100), ms(30), 0), (ms(200), ms(10), 2)]);
        assert_eq!(owners.longest(begin, begin + ms(150)), Longest { none: ms(30), two: ms(0) });
        assert_eq!(owners.longest(begin + ms(110), begin + ms(205)).two, ms(5));
        assert_eq!(owners.at(begin + ms(150)), [1]);
        assert_eq!(owners.at(begin + ms(120)), [0_usize; 0]);
    }

    #[test]
    fn a_dead_node_does_not_count_while_it_is_dead() {
        let begin = Instant::now();
        let owners = owners(begin).without(0, begin + ms(50), begin + ms(205));
        let found = owners.exceptions(begin, begin + ms(300));
        let exceptions: Vec<_> =
            found.iter().map(|one| (one.at - begin, one.lasted, one.holders)).collect();
        assert_eq!(exceptions, [(ms(50), ms(80), 0), (ms(205), ms(5), 2)]);
    }
}
