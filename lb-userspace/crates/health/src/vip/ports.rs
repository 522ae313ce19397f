//! The source port of each probe: the ports that are bound to a source address, in rotation.
//!
//! A backend may remember a connection for a while, by the VIP, its port and ours, and takes the
//! next SYN from there for a part of it. So a port rests before it probes the same service again, or
//! at least is the one that has rested longest. The same port may probe two services at a time.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long a port rests.
const REST: Duration = Duration::from_secs(1);
/// So many ports are bound before one has to go without its rest.
const PLENTY: usize = 256;
/// So many ports are bound at most; as many probes to one service can be open at a time.
const MAX: usize = 4_096;

/// The ports of one source address and protocol; `H` keeps one bound.
#[derive(Debug)]
pub(super) struct Ports<H> {
    bound: Vec<(u16, H)>,
    by_service: HashMap<SocketAddr, Use>,
}

impl<H> Default for Ports<H> {
    fn default() -> Self {
        Self { bound: Vec::new(), by_service: HashMap::new() }
    }
}

/// What one service has seen of the ports.
#[derive(Debug, Default)]
struct Use {
    /// The ports from here on have never probed it.
    fresh: usize,
    /// Those that have, and since when they rest; longest first.
    resting: VecDeque<(usize, Instant)>,
}

impl Use {
    fn is_open(&self) -> bool {
        self.resting.len() < self.fresh
    }
}

/// A port to probe one service from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// The port.
    pub port: u16,
    index: usize,
}

impl<H> Ports<H> {
    /// A port to probe `service` from; `open` binds one more.
    ///
    /// # Errors
    ///
    /// If all are in use and no more can be bound.
    pub(super) fn lease(
        &mut self,
        service: SocketAddr,
        now: Instant,
        mut open: impl FnMut() -> io::Result<(u16, H)>,
    ) -> io::Result<Lease> {
        let seen = self.by_service.entry(service).or_default();
        let first = seen.resting.front();
        let rested = first.is_some_and(|(_, since)| now.saturating_duration_since(*since) >= REST);
        if !rested && seen.fresh == self.bound.len() {
            let enough = if first.is_some() { PLENTY } else { MAX };
            if self.bound.len() < enough {
                match open() {
                    Ok(port) => self.bound.push(port),
                    Err(error) if first.is_none() => return Err(error),
                    // A port that has hardly rested is better than none.
                    Err(_) => {}
                }
            }
        }
        let index = if !rested && seen.fresh < self.bound.len() {
            seen.fresh += 1;
            seen.fresh - 1
        } else if let Some((index, _)) = seen.resting.pop_front() {
            index
        } else {
            let all = format!("all {MAX} ports for questions to {service} are in use");
            return Err(io::Error::other(all));
        };
        Ok(Lease { port: self.bound[index].0, index })
    }

    /// Lets a port rest.
    pub(super) fn release(&mut self, service: SocketAddr, lease: Lease, now: Instant) {
        if let Some(seen) = self.by_service.get_mut(&service) {
            seen.resting.push_back((lease.index, now));
        }
    }

    /// Forgets the services that `keep` does not want and that no check uses at the moment.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&SocketAddr) -> bool) {
        self.by_service.retain(|service, seen| seen.is_open() || keep(service));
    }

    /// Whether a port is in use.
    pub(super) fn is_open(&self) -> bool {
        self.by_service.values().any(Use::is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ([u8; 4], u16) = ([10, 0, 0, 100], 80);
    const OTHER: ([u8; 4], u16) = ([10, 0, 0, 100], 443);

    /// Hands out 1000, 1001, ... up to a limit of the system's.
    fn opener(limit: u16) -> impl FnMut() -> io::Result<(u16, ())> {
        let mut next = 0;
        move || {
            next += 1;
            if next > limit {
                Err(io::ErrorKind::QuotaExceeded.into())
            } else {
                Ok((999 + next, ()))
            }
        }
    }

    #[test]
    fn a_port_asks_the_same_service_again_only_after_its_rest() {
        let (mut ports, mut open) = (Ports::default(), opener(u16::MAX));
        let start = Instant::now();
        let first = ports.lease(SERVICE.into(), start, &mut open).unwrap();
        ports.release(SERVICE.into(), first, start);
        let soon = start + REST / 2;
        let second = ports.lease(SERVICE.into(), soon, &mut open).unwrap();
        assert_eq!((first.port, second.port), (1000, 1001));
        ports.release(SERVICE.into(), second, soon);
        let late = ports.lease(SERVICE.into(), start + REST, &mut open).unwrap();
        assert_eq!(late.port, 1000);
        // It is in use, and the other one has not rested enough.
        let third = ports.lease(SERVICE.into(), start + REST, &mut open).unwrap();
        assert_eq!(third.port, 1002);
    }

    #[test]
    fn services_share_the_ports() {
        let (mut ports, mut open) = (Ports::default(), opener(1));
        let now = Instant::now();
        let one = ports.lease(SERVICE.into(), now, &mut open).unwrap();
        let other = ports.lease(OTHER.into(), now, &mut open).unwrap();
        assert_eq!((one.port, other.port), (1000, 1000));
    }

    #[test]
    fn no_port_is_in_use_twice_and_none_is_lost() {
        let (mut ports, mut open) = (Ports::default(), opener(u16::MAX));
        let mut now = Instant::now();
        let mut leased = VecDeque::new();
        for step in 0..50_000_usize {
            now += Duration::from_micros(300);
            if step * 7 % 5 < 3 && leased.len() < MAX {
                let lease = ports.lease(SERVICE.into(), now, &mut open).unwrap();
                assert!(!leased.contains(&lease), "{lease:?} is in use");
                leased.push_back(lease);
            } else if let Some(lease) = leased.pop_front() {
                ports.release(SERVICE.into(), lease, now);
            }
            assert!(ports.bound.len() <= MAX);
        }
        let seen = &ports.by_service[&SERVICE.into()];
        assert_eq!(seen.resting.len() + leased.len(), seen.fresh);
    }

    #[test]
    fn when_all_are_in_use_a_question_is_refused_until_one_is_free() {
        let (mut ports, mut open) = (Ports::default(), opener(u16::MAX));
        let now = Instant::now();
        let all: Vec<_> =
            (0..MAX).map(|_| ports.lease(SERVICE.into(), now, &mut open).unwrap()).collect();
        let refused = ports.lease(SERVICE.into(), now, &mut open).unwrap_err().to_string();
        assert_eq!(refused, "all 4096 ports for questions to 10.0.0.100:80 are in use");
        ports.release(SERVICE.into(), all[7], now);
        assert_eq!(ports.lease(SERVICE.into(), now, &mut open).unwrap(), all[7]);
    }

    #[test]
    fn without_descriptors_ports_go_without_rest() {
        let (mut ports, mut open) = (Ports::default(), opener(2));
        let now = Instant::now();
        let one = ports.lease(SERVICE.into(), now, &mut open).unwrap();
        let two = ports.lease(SERVICE.into(), now, &mut open).unwrap();
        let refused = ports.lease(SERVICE.into(), now, &mut open).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        ports.release(SERVICE.into(), two, now);
        ports.release(SERVICE.into(), one, now);
        assert_eq!(ports.lease(SERVICE.into(), now, &mut open).unwrap(), two);
        assert_eq!(ports.lease(SERVICE.into(), now, &mut open).unwrap(), one);
    }

    #[test]
    fn services_that_nobody_asks_are_forgotten() {
        let (mut ports, mut open) = (Ports::default(), opener(u16::MAX));
        let now = Instant::now();
        let one = ports.lease(SERVICE.into(), now, &mut open).unwrap();
        ports.retain(|_| false);
        assert!(ports.is_open());
        ports.release(SERVICE.into(), one, now);
        ports.retain(|service| *service == SERVICE.into());
        assert_eq!(ports.by_service.len(), 1);
        ports.retain(|_| false);
        assert!(ports.by_service.is_empty() && !ports.is_open());
        assert_eq!(ports.bound.len(), 1, "the port is kept for the next");
    }
}
