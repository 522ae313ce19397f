//! Captures: packets before and after the decision, with the verdict, as pcapng.
//!
//! While a capture runs, a variant of the program that saves frames takes the place of the normal one
//! by an update of its links, over the same maps; at its end the normal one takes its place back.
//! [`session`] is the time in between; [`pcapng`] writes the saved packets.
//!
//! The capturing program (`lb-ebpf/src/capture.rs`) makes the same decision over tables that note each lookup, and
//! has the same exit, which is a macro for that reason. It saves the frame before and after the exit into a ring
//! buffer, by filters and a token bucket of each CPU. Loading it does not occupy the daemon's task. The plan in its
//! map has an end of its own, so that a program whose daemon was killed saves nothing more; the next start swaps
//! the normal program in. The ring buffer has no wakeups: the daemon reads it every 20 ms. The object of the normal
//! program contains nothing of all this.

pub mod annotator;
pub mod pcapng;
pub mod session;

use std::{net::IpAddr, time::Duration};

use lb_common::{
    capture::{FORWARDED, MAX_SNAP, RETURNED},
    verdict::{Drop, Pass},
};
use lb_model::{backend_address::BackendAddress, units::nearest};
use serde::{Deserialize, Serialize};

/// The most packets of one capture.
pub(crate) const MOST_PACKETS: u64 = 1_000_000;
/// The longest capture.
pub(crate) const LONGEST: Duration = Duration::from_secs(3_600);
/// The most packets that each CPU saves in a second.
pub(crate) const MOST_RATE: u32 = 50_000;

/// The parameters of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// Packets of this service.
    pub service: Option<String>,
    /// Packets to this backend.
    pub backend: Option<BackendAddress>,
    /// Packets that end so: `forwarded`, `passed`, `dropped`, or the name of a reason; all if empty.
    pub verdicts: Vec<String>,
    /// Packets from these addresses: an address and how many of its bits count.
    pub client: Option<(IpAddr, u8)>,
    /// It ends after so many packets.
    pub count: u64,
    /// It ends after this time.
    pub millis: u64,
    /// Bytes of each frame that are saved.
    pub snaplen: u32,
    /// One packet in so many, at random.
    pub sample: u32,
    /// Packets that each CPU saves in a second, at most.
    pub rate: u32,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            service: None,
            backend: None,
            verdicts: Vec::new(),
            client: None,
            count: 1_000,
            millis: 10_000,
            snaplen: 256,
            sample: 1,
            rate: 2_000,
        }
    }
}

impl Spec {
    /// Its mistake, if there is one.
    ///
    /// # Errors
    ///
    /// That.
    pub fn check(&self) -> Result<(), String> {
        let within = |what: &str, value: u64, most: u64| match value {
            value if (1..=most).contains(&value) => Ok(()),
            value => Err(format!("{what} {value}; it is from 1 to {most}")),
        };
        within("count", self.count, MOST_PACKETS)?;
        within("duration in milliseconds", self.millis, LONGEST.as_millis() as u64)?;
        within("snaplen", self.snaplen.into(), MAX_SNAP as u64)?;
        within("sample", self.sample.into(), u32::MAX.into())?;
        within("rate", self.rate.into(), MOST_RATE.into())?;
        if let Some((address, bits)) = self.client {
            let most = if address.is_ipv4() { 32 } else { 128 };
            if bits > most {
                return Err(format!("client {address}/{bits}; the prefix has at most {most} bits"));
            }
        }
        self.verdict_bits().map(drop)
    }

    /// A bit for each requested reason, as [`lb_common::capture::Plan::verdicts`] has them.
    ///
    /// # Errors
    ///
    /// A name is unknown.
    pub fn verdict_bits(&self) -> Result<u64, String> {
        if self.verdicts.is_empty() {
            return Ok(u64::MAX);
        }
        let bit = |index: u32| 1_u64 << index;
        let passed = Pass::ALL.iter().map(|why| (why.name(), bit(why.index())));
        let dropped = Drop::ALL.iter().map(|why| (why.name(), bit(why.index())));
        let mut words: Vec<(&str, u64)> = passed.clone().chain(dropped.clone()).collect();
        words.push(("forwarded", bit(FORWARDED)));
        words.push(("returned", bit(RETURNED)));
        words.push(("passed", passed.map(|(_, bit)| bit).sum()));
        words.push(("dropped", dropped.map(|(_, bit)| bit).sum()));
        let mut bits = 0;
        for wanted in &self.verdicts {
            let found = words.iter().find(|(word, _)| word == wanted);
            let Some((_, found)) = found else {
                let near = nearest(wanted, words.iter().map(|(word, _)| *word));
                let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
                return Err(format!("no packet ends as `{wanted}`{near}"));
            };
            bits |= found;
        }
        Ok(bits)
    }
}

/// How many packets a capture has dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets that came in.
    pub seen: u64,
    /// Requested ones.
    pub matched: u64,
    /// Of those, the ones that the sample left out.
    pub sampled_out: u64,
    /// The ones that the rate left out.
    pub limited: u64,
    /// The ones without room: the reader was too slow.
    pub lost: u64,
    /// Saved ones.
    pub saved: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seen, matched, sampled_out, limited, lost, saved } = self;
        write!(
            f,
            "{seen} packets seen, {matched} matched, {saved} saved; not saved: {sampled_out} by the \
             sample, {limited} by the rate, {lost} for want of room"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_named_as_counters_are() {
        let bits = |words: &[&str]| {
            let verdicts = words.iter().map(|&word| word.to_owned()).collect();
            Spec { verdicts, ..Spec::default() }.verdict_bits()
        };
        assert_eq!(bits(&[]), Ok(u64::MAX));
        assert_eq!(bits(&["forwarded"]), Ok(1 << 63));
        assert_eq!(bits(&["no_backend", "not_a_service"]), Ok(1 << 16 | 1));
        assert_eq!(bits(&["dropped"]), Ok(0x7ff << 16));
        assert!(bits(&["no_backends"]).unwrap_err().contains("did you mean no_backend?"));
    }

    #[test]
    fn a_capture_without_a_bound_is_refused() {
        assert_eq!(Spec::default().check(), Ok(()));
        let wrong = [
            (Spec { count: 0, ..Spec::default() }, "count 0"),
            (Spec { millis: 3_600_001, ..Spec::default() }, "it is from 1 to 3600000"),
            (Spec { snaplen: 4_096, ..Spec::default() }, "from 1 to 2048"),
            (Spec { rate: 50_001, ..Spec::default() }, "from 1 to 50000"),
            (Spec { sample: 0, ..Spec::default() }, "sample 0"),
            (
                Spec { client: Some(([10, 0, 0, 1].into(), 33)), ..Spec::default() },
                "at most 32 bits",
            ),
        ];
        for (spec, why) in wrong {
            assert!(spec.check().unwrap_err().contains(why), "{spec:?}");
        }
    }
}
