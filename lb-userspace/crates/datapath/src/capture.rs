//! The variant of the program that captures: loaded over the pinned maps, swapped in and out.

use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use lb_common::capture::{ANY, CaptureCounter, Head, Plan};
use lb_inspect::capture::{Counts, Spec};
use lb_model::{entry, settings::Limits, time::monotonic};
use lb_plane::LoadedCapture;
use tracing::warn;
use zerocopy::FromBytes as _;

use super::{
    attach, folders, load,
    mmap::Mapped,
    pinned, program_pins,
    sys::Table,
    variants::{self, BALANCE, CAPTURE, Mode, Variants},
    xdp::Xdp,
};
use crate::objects;

/// What it takes to load the program that captures.
#[derive(Debug)]
pub(crate) struct Loader {
    folder: PathBuf,
    limits: Limits,
    cpus: u32,
    plan: Plan,
    /// The modes of the links.
    modes: BTreeSet<Mode>,
}

impl Loader {
    /// Of the maps that `xdp` has. `service` and `backend` are ids.
    pub(crate) fn of(
        xdp: &Xdp,
        spec: &Spec,
        service: Option<u16>,
        backend: Option<u16>,
    ) -> Result<Self> {
        ensure!(xdp.capture.is_none(), "a capture is running; one at a time");
        let (mut client, mut mask) = ([0; 2], [0; 2]);
        if let Some((address, bits)) = spec.client {
            let ones = if address.is_ipv4() { 96 + u32::from(bits) } else { bits.into() };
            let ones = u128::MAX.checked_shl(128 - ones).unwrap_or(0).to_be_bytes();
            let bytes = entry::address(IpAddr::to_canonical(&address));
            for (half, at) in [0, 8].into_iter().enumerate() {
                let word = |bytes: &[u8; 16]| {
                    let mut word = [0; 8];
                    word.copy_from_slice(&bytes[at..at + 8]);
                    u64::from_ne_bytes(word)
                };
                mask[half] = word(&ones);
                client[half] = word(&bytes) & mask[half];
            }
        }
        let plan = Plan {
            // Set when it begins.
            until: spec.millis,
            verdicts: spec.verdict_bits().map_err(anyhow::Error::msg)?,
            client,
            mask,
            service: service.map_or(ANY, u32::from),
            backend: backend.map_or(ANY, u32::from),
            sample: match spec.sample {
                0 | 1 => u32::MAX,
                n => u32::MAX / n,
            },
            rate: spec.rate,
            snap: spec.snaplen,
            reserved: 0,
        };
        let folder = folders::current(&xdp.settings.pin_dir);
        let modes = xdp.links.iter().map(attach::ProgramLink::mode).collect();
        Ok(Self { folder, limits: xdp.limits, cpus: xdp.possible_cpus, plan, modes })
    }
}

impl lb_plane::CaptureLoader for Loader {
    fn load(self: Box<Self>) -> Result<LoadedCapture> {
        let mut object =
            load::load_object(objects::CAPTURE, &self.folder, &self.limits, self.cpus)?;
        for mode in self.modes {
            let program = CAPTURE.of(mode).and_then(|name| variants::loaded(&mut object, name));
            program.context("load the program that captures")?;
        }
        Ok(Box::new(Capturer { object, plan: self.plan }))
    }
}

/// The program, loaded.
#[derive(Debug)]
pub(crate) struct Capturer {
    object: Ebpf,
    plan: Plan,
}

impl Capturer {
    fn map(&mut self, name: &str) -> Result<MapData> {
        let map = self.object.take_map(name).with_context(|| format!("no map {name}"))?;
        Ok(match map {
            aya::maps::Map::Array(map) | aya::maps::Map::RingBuf(map) => map,
            _ => bail!("{name} is of another kind"),
        })
    }

    /// Sets its plan in force.
    fn tap(&mut self) -> Result<RingTap> {
        let plan = Table::<u32, Plan>::new(self.map("CAPTURE_PLAN")?)?;
        let until = monotonic() + Duration::from_millis(self.plan.until);
        plan.put(&0, &Plan { until: until.as_nanos() as u64, ..self.plan })?;
        let counters = Mapped::new(&self.map("CAPTURE_COUNTERS")?).context("map the counters")?;
        let ring = RingBuf::try_from(aya::maps::Map::RingBuf(self.map("CAPTURE_RING")?))?;
        Ok(RingTap { ring, counters })
    }
}

/// What is read of a capture while it runs.
pub(crate) struct RingTap {
    ring: RingBuf<MapData>,
    counters: Mapped<CaptureCounter>,
}

impl std::fmt::Debug for RingTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RingTap").field(&lb_plane::Tap::counts(self)).finish()
    }
}

impl lb_plane::Tap for RingTap {
    fn drain(&mut self, most: usize, visit: &mut dyn FnMut(&Head, &[u8])) -> usize {
        for n in 0..most {
            let Some(record) = self.ring.next() else { return n };
            if let Ok((head, bytes)) = Head::read_from_prefix(&record) {
                let saved = (head.saved as usize).min(bytes.len());
                visit(&head, &bytes[..saved]);
            }
        }
        most
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for counter in self.counters.iter() {
            counts.seen += counter.seen.load();
            counts.matched += counter.matched.load();
            counts.sampled_out += counter.sampled_out.load();
            counts.limited += counter.limited.load();
            counts.lost += counter.lost.load();
            counts.saved += counter.saved.load();
        }
        counts
    }
}

impl Xdp {
    /// Puts the program that captures in the place of the normal one, wherever that is.
    pub(super) fn swap_in(&mut self, mut capturer: Capturer) -> Result<RingTap> {
        ensure!(self.capture.is_none(), "a capture is running; one at a time");
        let pins = self.pins_of(&BALANCE.loaded(&self.object))?;
        let tap = capturer.tap()?;
        let folder = folders::current(&self.settings.pin_dir);
        let mut programs = Variants::new(&mut capturer.object, CAPTURE, &folder);
        for (_, mode) in &pins {
            programs.get(*mode)?;
        }
        self.capture = Some(CAPTURE.loaded(&capturer.object));
        let mut programs = Variants::new(&mut capturer.object, CAPTURE, &folder);
        for (pin, mode) in pins {
            let swapped = programs.get(mode).and_then(|program| pinned::swap(program, &pin));
            if let Err(error) = swapped {
                // Another link may have it already.
                return Err(match self.swap_back() {
                    Ok(()) => error,
                    Err(and) => error.context(format!("{and:#}")),
                });
            }
        }
        Ok(tap)
    }

    /// Puts the normal program back. Without a capture nothing is done.
    pub(super) fn swap_back(&mut self) -> Result<()> {
        let Some(captures) = self.capture.clone() else { return Ok(()) };
        let folder = folders::current(&self.settings.pin_dir);
        let mut failed = None;
        for (pin, mode) in self.pins_of(&captures)? {
            let mut programs = Variants::new(&mut self.object, BALANCE, &folder);
            let swapped = programs.get(mode).and_then(|program| pinned::swap(program, &pin));
            failed = swapped.err().or(failed);
        }
        match failed {
            None => {
                self.capture = None;
                // What stays is removed by the next start.
                for id in captures {
                    let _ = fs::remove_file(program_pins::path(&folder, id));
                }
                Ok(())
            }
            Some(error) => Err(error.context("end the capture; it is tried again")),
        }
    }

    /// The pins of the links that run one of these programs, each with its mode.
    fn pins_of(&self, programs: &[u32]) -> Result<Vec<(PathBuf, Mode)>> {
        let mut pins = Vec::new();
        for link in &self.links {
            let pin = link.path();
            match pinned::kept(pin) {
                Ok(kept) if programs.contains(&kept.program) => {
                    pins.push((pin.to_owned(), link.mode()));
                }
                // It may run the program, and must not be passed over.
                Err(error) if pinned::is_shortage(&error) => {
                    return Err(error).with_context(|| format!("open {}", pin.display()));
                }
                // It is gone, as with its interface, or runs another one.
                _ => {}
            }
        }
        Ok(pins)
    }
}

impl Drop for Xdp {
    fn drop(&mut self) {
        if let Err(error) = self.swap_back() {
            warn!("the program that captures stays until lbd is started again: {error:#}");
        }
    }
}
