//! The resources of both `lbd`, once a second: memory, descriptors, maps and programs. And how late a thread of
//! this program is, which shows how busy the machine is.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::reports::soak::{Growth, median};

use crate::{clock::Clock, model::Span};

/// The resources of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory in use (resident).
    pub rss_bytes: u64,
    /// Descriptors.
    pub fds: u64,
    /// Of these, maps.
    pub bpf_maps: u64,
    /// And programs.
    pub bpf_programs: u64,
}

/// A sample of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// The process.
    pub pid: u32,
    /// Its resources.
    pub resources: Resources,
}

/// The sampled processes.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pids: Mutex<[Option<u32>; 2]>,
    samples: Mutex<[Vec<Sample>; 2]>,
    stalls: Mutex<Vec<(Duration, Duration)>>,
}

/// Takes samples.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// From which delay one is noted.
const NOTED: Duration = Duration::from_millis(8);

impl Sampler {
    /// Starts to take samples.
    ///
    /// # Errors
    ///
    /// If there are no threads for it.
    pub fn start(clock: Clock) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sampler, late) = (Arc::clone(&shared), Arc::clone(&shared));
        let sampler = thread::Builder::new().spawn(move || sampler.sample(clock));
        let late = thread::Builder::new().spawn(move || late.be_late(clock));
        let threads = vec![sampler.context("start a thread")?, late.context("start a thread")?];
        Ok(Self { shared, threads })
    }

    /// From now on, these are the processes.
    pub fn follow(&self, pids: [Option<u32>; 2]) {
        *lock(&self.shared.pids) = pids;
    }

    /// How late this program was, and when, since the last call.
    #[must_use]
    pub fn stalls(&self) -> Vec<(Duration, Duration)> {
        std::mem::take(&mut lock(&self.shared.stalls))
    }

    /// The samples of each node.
    ///
    /// # Errors
    ///
    /// If a thread panicked.
    pub fn finish(self) -> Result<[Vec<Sample>; 2]> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that samples panicked"))?;
        }
        Ok(std::mem::take(&mut lock(&self.shared.samples)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn sample(&self, clock: Clock) {
        while !self.stop.load(Ordering::Relaxed) {
            let pids = *lock(&self.pids);
            for (node, pid) in pids.into_iter().enumerate() {
                // One that has just ended holds nothing.
                let Some((pid, resources)) = pid.and_then(|pid| Some((pid, resources_of(pid)?)))
                else {
                    continue;
                };
                lock(&self.samples)[node].push(Sample { at: clock.now(), pid, resources });
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn be_late(&self, clock: Clock) {
        let beat = Duration::from_millis(5);
        let mut due = clock.now() + beat;
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_sub(clock.now()));
            let now = clock.now();
            let late = now.saturating_sub(due);
            if late >= NOTED {
                lock(&self.stalls).push((now, late));
            }
            due = now + beat;
        }
    }
}

/// The resources of a process; none if it is gone.
fn resources_of(pid: u32) -> Option<Resources> {
    let folder = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib: u64 = rss.trim().strip_suffix(" kB")?.parse().ok()?;
    let mut resources = Resources { rss_bytes: rss_kib << 10, ..Resources::default() };
    for fd in fs::read_dir(folder.join("fd")).ok()? {
        resources.fds += 1;
        let Ok(file) = fs::read_link(fd.ok()?.path()) else { continue };
        match file.as_os_str().as_bytes() {
            b"anon_inode:bpf-map" => resources.bpf_maps += 1,
            b"anon_inode:bpf-prog" => resources.bpf_programs += 1,
            _ => {}
        }
    }
    Some(resources)
}

/// Samples that such a time must have of one process to be judged: a third of them is then twenty seconds.
const ENOUGH: usize = 60;

type Figure = fn(&Resources) -> u64;

/// The bound of a figure at the end, by its value in the middle.
type Bound<'a> = &'a dyn Fn(u64) -> u64;

/// Samples of a time that is long enough for memory to have flattened: five minutes of them.
const LONG: usize = 300;

/// How the figures of a node have grown, in each of the times in which it was spared.
///
/// Memory may have grown by an eighth and 4 MiB, for what is kept of the last events and of the flows of a
/// peer, and what the allocator keeps of former peaks; in a time shorter than [`LONG`] by a half, since a
/// process that has just begun to work still grows; descriptors by four, for connections at that moment; maps and programs not at all.
#[must_use]
pub fn growths(node: usize, samples: &[Sample], spared: &[Span]) -> Vec<Growth> {
    let mut growths = Vec::new();
    for (turn, span) in spared.iter().enumerate() {
        let within: Vec<_> = samples.iter().filter(|sample| span.contains(sample.at)).collect();
        // The process that it ended with: it may have been struck in the moment before.
        let Some(pid) = within.last().map(|sample| sample.pid) else { continue };
        let resources: Vec<_> = within
            .iter()
            .filter(|sample| sample.pid == pid)
            .map(|sample| sample.resources)
            .collect();
        if resources.len() < ENOUGH {
            continue;
        }
        let third = resources.len() / 3;
        let rss = if resources.len() < LONG { 2 } else { 8 };
        let figures: [(&str, Figure, Bound<'_>); 4] = [
            ("rss_bytes", |resources| resources.rss_bytes, &|middle| {
                middle + middle / rss + (4 << 20)
            }),
            ("fds", |resources| resources.fds, &|middle| middle + 4),
            ("bpf_maps", |resources| resources.bpf_maps, &|middle| middle),
            ("bpf_programs", |resources| resources.bpf_programs, &|middle| middle),
        ];
        for (what, figure, bound) in figures {
            let of =
                |resources: &[Resources]| median(&resources.iter().map(figure).collect::<Vec<_>>());
            let (middle, last) = (of(&resources[third..2 * third]), of(&resources[2 * third..]));
            let (node, what, bound) = (format!("lb{}", node + 1), what.to_owned(), bound(middle));
            growths.push(Growth { node, turn, what, middle, last, bound });
        }
    }
    growths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rss: impl Fn(u64) -> u64, pid: impl Fn(u64) -> u32) -> Vec<Sample> {
        let sample = |second| Sample {
            at: Duration::from_secs(second),
            pid: pid(second),
            resources: Resources {
                rss_bytes: rss(second) << 20,
                fds: 50,
                bpf_maps: 20,
                bpf_programs: 1,
            },
        };
        (0..360).map(sample).collect()
    }

    fn leaks(samples: &[Sample]) -> Vec<String> {
        let growths = growths(0, samples, &[Span::since(Duration::ZERO)]);
        growths.iter().filter(|growth| growth.goes_on()).map(|growth| growth.what.clone()).collect()
    }

    #[test]
    fn growth_that_ends_is_none() {
        assert!(leaks(&samples(|second| 30 + second.min(120), |_| 1)).is_empty());
    }

    #[test]
    fn growth_that_goes_on_is_told() {
        assert_eq!(leaks(&samples(|second| 30 + second / 4, |_| 1)), ["rss_bytes"]);
        let mut growing = samples(|_| 30, |_| 1);
        for (n, sample) in growing.iter_mut().enumerate() {
            sample.resources.fds += n as u64 / 20;
            sample.resources.bpf_maps += n as u64 / 120;
        }
        assert_eq!(leaks(&growing), ["fds", "bpf_maps"]);
    }

    #[test]
    fn a_process_is_compared_with_itself() {
        let two =
            samples(|second| if second < 180 { 20 } else { 40 }, |second| (second / 180) as u32);
        assert!(leaks(&two).is_empty());
    }

    #[test]
    fn this_process_holds_something() {
        let resources = resources_of(std::process::id()).unwrap();
        assert!(resources.rss_bytes > 1 << 20 && resources.fds >= 3, "{resources:?}");
        assert_eq!(super::resources_of(u32::MAX), None);
    }
}
