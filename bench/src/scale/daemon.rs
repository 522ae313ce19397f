//! `lbd` itself at every size: how long it takes to start, to adopt what a killed one has left, and to act on
//! `lbctl`; its memory; and its errors at the limits.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixDatagram,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service, binaries},
    lab::{Lab, Options, VIPS_V4},
    process::Process,
    progress::Progress,
    reports::scale::{Daemon, Times},
};
use lb_datapath::detach;
use lb_model::settings::Limits;

/// Services, and backends of each.
const SIZES: [(u16, u16); 6] = [(1, 3), (16, 8), (100, 10), (1, 4_096), (512, 8), (512, 32)];
/// How often `lbctl` changes something after each start.
const CHANGES: usize = 4;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lab, `lbd` in it, and the socket on which it reports READY=1.
pub struct Bench {
    lab: Lab,
    balancer: Balancer,
    ready: UnixDatagram,
}

/// The times of the steps of one size.
#[derive(Default)]
struct Samples {
    starts: Vec<f64>,
    adoptions: Vec<f64>,
    changes: Vec<f64>,
    resident: Vec<u64>,
}

/// The backends are behind one router, whose way is known: a service of hundreds of backends on one link
/// would be a matter of the link.
fn backend(service: u16, n: u16) -> IpAddr {
    Ipv4Addr::from_bits(0x0b00_0000 + (u32::from(service) << 12) + u32::from(n)).into()
}

/// The services of a size, as the configuration has them.
pub fn services(count: u16, each: u16) -> Vec<Service> {
    let service = |n: u16| {
        let backends = (0..each).map(|at| backend(n, at)).collect();
        Service::tcp(&format!("s{n:03}"), VIPS_V4[0], 1_000 + n, "ipip", backends)
    };
    (0..count).map(service).collect()
}

/// The limits that such a size needs, if the defaults are too small.
fn raised(count: u16, each: u16) -> Option<u32> {
    let backends = u32::from(count) * u32::from(each);
    (backends > Limits::default().backends).then_some(backends)
}

impl Bench {
    /// Makes the lab.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn new() -> Result<Self> {
        let lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
        let router = lab.webs.first().context("a web host")?.host.v4;
        lab.balancer.namespace.ip(&format!("route add 11.0.0.0/8 via {router}"))?;
        let balancer = Balancer::new(&lab, &[])?;
        let ready = UnixDatagram::bind(lab.folder().join("ready")).context("a socket")?;
        Ok(Self { lab, balancer, ready })
    }

    /// The folder of the lab, whose name has no meaning.
    pub fn folder(&self) -> &Path {
        self.lab.folder()
    }

    /// `lbctl` and the configuration.
    pub const fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Measures every size `rounds` times.
    ///
    /// # Errors
    ///
    /// If `lbd` does not start.
    pub fn measure(&mut self, rounds: u32) -> Result<Vec<Daemon>> {
        let mut samples: Vec<_> = SIZES.map(|size| (size, Samples::default())).into();
        let mut progress = Progress::new(rounds as usize * SIZES.len());
        for _ in 0..rounds {
            for ((count, each), samples) in &mut samples {
                progress.begin(&format!("lbd: services {count}, backends of each {each}"));
                self.measure_size(*count, *each, samples)
                    .with_context(|| format!("services {count}, backends of each {each}"))?;
                progress.end(None);
            }
        }
        let daemon = |((count, each), samples): ((u16, u16), Samples)| Daemon {
            services: count,
            backends: u32::from(count) * u32::from(each),
            raised: raised(count, each).is_some(),
            start: Times::of(samples.starts),
            adopt: Times::of(samples.adoptions),
            lbctl: Times::of(samples.changes),
            resident_bytes: samples.resident.into_iter().max().unwrap_or(0),
        };
        Ok(samples.into_iter().map(daemon).collect())
    }

    fn measure_size(&mut self, count: u16, each: u16, samples: &mut Samples) -> Result<()> {
        self.configure(count, each)?;
        let (lbd, took) = self.start()?;
        samples.starts.push(took);
        for n in 0..CHANGES {
            let operation = if n % 2 == 0 { "disable" } else { "enable" };
            let backend = backend(0, 0).to_string();
            let begun = Instant::now();
            self.balancer.lbctl(&["backend", operation, "s000", &backend])?;
            samples.changes.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        samples.resident.push(resident(lbd.pid())?);
        lbd.kill()?;
        let (lbd, took) = self.start()?;
        samples.adoptions.push(took);
        samples.resident.push(resident(lbd.pid())?);
        lbd.stop()?;
        detach(self.balancer.pins())?;
        Ok(())
    }

    /// Writes the configuration of a size, and forgets the kept state of another.
    ///
    /// # Errors
    ///
    /// If a file can't be written.
    pub fn configure(&mut self, count: u16, each: u16) -> Result<()> {
        let limits = raised(count, each)
            .map_or_else(String::new, |backends| format!("\n[limits]\nbackends = {backends}\n"));
        self.write(&services(count, each), &limits)?;
        let state = self.folder().join("state.json");
        match fs::remove_file(&state) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(err).with_context(|| format!("remove {}", state.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes a configuration with more tables than those of the services.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn write(&mut self, services: &[Service], more: &str) -> Result<()> {
        self.balancer.set_more(more);
        self.balancer.configure(services)
    }

    /// Starts `lbd`; the milliseconds until it has reported that the maps are as they should be, and every
    /// backend can be sent to.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(&self) -> Result<(Process, f64)> {
        // Messages of an earlier one.
        self.ready.set_nonblocking(true).context("the socket")?;
        while self.ready.recv(&mut [0; 64]).is_ok() {}
        self.ready.set_nonblocking(false).context("the socket")?;
        let folder = self.folder();
        let socket = format!("NOTIFY_SOCKET={}", folder.join("ready").display());
        let (lbd, config) = (binaries()?.join("lbd"), self.balancer.config());
        let args = [socket.as_str(), path(&lbd)?, "--config", path(&config)?];
        let log = folder.join("lbd.log");
        let (namespace, orphan) = (&self.lab.balancer.namespace, self.lab.orphan());
        let begun = Instant::now();
        let mut lbd = Process::start(namespace, Path::new("env"), &args, &log, orphan)?;
        self.await_ready(begun, &mut lbd).with_context(|| format!("lbd wrote:\n{}", lbd.log()))?;
        let mut took = begun.elapsed();
        // It waits for next hops for a second at most, which may be too short where much else goes on.
        while let Some(why) = self.unusable()? {
            ensure!(begun.elapsed() < PATIENCE, "ready, and not within {PATIENCE:?}: {why}");
            thread::sleep(Duration::from_millis(20));
            took = begun.elapsed();
        }
        let took = took.as_secs_f64() * 1e3;
        Ok((lbd, took))
    }

    /// Why a backend can't be sent to, if there is such a one.
    fn unusable(&self) -> Result<Option<String>> {
        let status = self.balancer.status()?;
        let mut backends = status.services.values().flat_map(|service| &service.backends);
        let why = backends.find_map(|(address, backend)| {
            backend.unusable.as_ref().map(|why| format!("{address} can't be sent to: {why}"))
        });
        Ok(why)
    }

    fn await_ready(&self, begun: Instant, lbd: &mut Process) -> Result<()> {
        let tick = Duration::from_secs(1);
        self.ready.set_read_timeout(Some(tick)).context("the socket's patience")?;
        let mut message = [0; 64];
        while begun.elapsed() < PATIENCE {
            match self.ready.recv(&mut message) {
                Ok(length) if message[..length].starts_with(b"READY=1") => return Ok(()),
                Err(err) if !matches!(err.kind(), io::ErrorKind::WouldBlock) => {
                    return Err(err).context("receive from lbd");
                }
                _ => lbd.check()?,
            }
        }
        anyhow::bail!("lbd is not ready within {PATIENCE:?}")
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The memory of a process that is in RAM.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("its memory")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_reach_both_limits_and_one_is_beyond() {
        let limits = Limits::default();
        let within = SIZES.iter().filter(|(count, each)| raised(*count, *each).is_none());
        assert!(within.clone().any(|(count, _)| u32::from(*count) == limits.services));
        let most = within.map(|(count, each)| u32::from(*count) * u32::from(*each)).max();
        assert_eq!(most, Some(limits.backends));
        assert_eq!(raised(512, 32), Some(16_384));
    }

    #[test]
    fn backends_differ_and_are_behind_the_router() {
        for (count, each) in SIZES {
            let services = services(count, each);
            let all: std::collections::BTreeSet<_> =
                services.iter().flat_map(|service| &service.backends).collect();
            assert_eq!(all.len(), usize::from(count) * usize::from(each));
            let routed = |at: &&IpAddr| matches!(at, IpAddr::V4(at) if at.octets()[0] == 11);
            assert!(all.iter().all(routed), "{count} services of {each} backends");
        }
    }
}
