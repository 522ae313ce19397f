//! The cost of checking many backends: CPU time of the prober's thread, and how late it probes.
//!
//! Two hosts: one with the prober, one that is all the backends, each an address of it. Its server
//! is a process of its own. The kernel would handle a packet that is sent from one to the other in
//! the thread that sends it; so the prober has a CPU of its own and the other host's packets go to
//! another, as if that host were a machine.

mod server;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    namespace::Namespace,
    progress::Progress,
    reports::health::{Case, Report},
    wait::until,
};
use lb_api::check_status::Load;
use lb_health::{
    probe::Route,
    prober::{Assignment, Prober},
    vip::ProbePath,
};
use lb_model::{
    check::{Check, Http, Kind},
    desired::{Mode, Protocol, ServiceKey},
    hop::NextHop,
    policy::OnDown,
    seen::{BackendKey, Condition},
    settings::Tunnel,
};
use socket2::{Domain, Socket, Type};

use crate::output::Output;
pub use server::serve;

/// The prober's host.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The backends' host.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The VIP of all of them.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
/// The first backend.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
const PORT: u16 = 80;
const MTU: u16 = 1_500;
/// CPU 1, as a mask. The prober is on CPU 0.
const OTHER_CPU: &str = "2";

/// Backends by default: the default limit.
pub const BACKENDS: u32 = 4_096;

/// How many backends, and how long.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How many backends are probed once a second
    #[arg(long, default_value_t = BACKENDS, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    backends: u32,
    /// How long each case is measured, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// Measures and prints.
///
/// # Errors
///
/// If the hosts do not come up, or a backend never answers.
pub fn run(arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs(arguments.seconds);
    let (report, measured) = survey(arguments.backends, time, |_| true)?;
    arguments.output.print(&report)?;
    measured
}

/// Measures the cases of these names; returns the results so far when one of them fails, too. The calling thread
/// is on one CPU from then on.
///
/// # Errors
///
/// If the hosts do not come up or do not end.
pub fn survey(
    backends: u32,
    time: Duration,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<(Report, Result<()>)> {
    let hosts = Hosts::start()?;
    let often = backends.div_ceil(20);
    let second = Duration::from_secs(1);
    let (tcp, http) = (Kind::Tcp, Kind::Http(Http::default()));
    let (own, vip) = (Route::Backend, Route::Vip(hosts.path.clone()));
    let cases = [
        ("tcp", backends, second, &tcp, &own),
        ("http", backends, second, &http, &own),
        ("tcp to the VIP", backends, second, &tcp, &vip),
        ("http to the VIP", backends, second, &http, &vip),
        ("tcp, 20 times as often", often, second / 20, &tcp, &own),
    ];
    let floor_us = hosts.balancer.enter(|| floor(backends))?.context("the floor")?;
    let mut report = Report { floor_us, cases: Vec::new() };
    let cases: Vec<_> = cases.into_iter().filter(|(name, ..)| is_wanted(name)).collect();
    let mut progress = Progress::new(cases.len());
    let measured = cases.into_iter().try_for_each(|(name, backends, interval, kind, route)| {
        progress.begin(name);
        let check = Check { kind: kind.clone(), interval, ..Check::default() };
        let assignments = assignments(backends, &check, route);
        let measure = || measure(name, interval, assignments, time);
        report.cases.push(hosts.balancer.enter(measure)?.with_context(|| name.to_owned())?);
        progress.end(None);
        Ok(())
    });
    drop(progress);
    hosts.stop()?;
    Ok((report, measured))
}

fn assignments(backends: u32, check: &Check, route: &Route) -> BTreeMap<BackendKey, Assignment> {
    let service = ServiceKey::new(VIP.into(), PORT, Protocol::Tcp);
    let assignment = |n| {
        let backend = backend(n);
        let route = match route.clone() {
            Route::Vip(path) => Route::Vip(ProbePath { backend, ..path }),
            own => own,
        };
        let assignment = Assignment {
            service: "web".into(),
            check: check.clone(),
            route: Some(route),
            half_life: Duration::ZERO,
            on_down: OnDown::Keep,
            initial: Condition::Up,
            is_adopted: false,
        };
        (BackendKey { service, backend: backend.into() }, assignment)
    };
    (0..backends).map(assignment).collect()
}

/// One case, in the namespace of the calling thread.
fn measure(
    name: &str,
    interval: Duration,
    assignments: BTreeMap<BackendKey, Assignment>,
    time: Duration,
) -> Result<Case> {
    let (prober, _reports) = Prober::start()?;
    // A thread names itself when it begins to run.
    let thread = until(Duration::from_secs(5), "the prober runs", || thread_named("health"))?;
    let backends = assignments.len();
    prober.assign(assignments);
    until(Duration::from_secs(30), "every backend answers", || {
        let status = prober.status();
        let mut others = status.iter().filter(|(_, status)| status.counts.ok < 2);
        let Some((target, status)) = others.next() else { return Ok(()) };
        let last = status.last.as_deref().unwrap_or("not asked yet");
        bail!("{} and {} others do not: {last}", target.backend, others.count())
    })?;
    let (before, cpu, begun) = (prober.load(), cpu_time(thread)?, Instant::now());
    thread::sleep(time);
    let (after, cpu, took) = (prober.load(), cpu_time(thread)? - cpu, begun.elapsed());
    let count = |load: &Load| load.counts.ok + load.counts.failed + load.counts.unknown;
    let checks = count(&after) - count(&before);
    ensure!(checks > 0, "nothing was asked");
    let mut reasons = BTreeMap::<String, usize>::new();
    for last in prober.status().into_values().filter_map(|status| status.last) {
        *reasons.entry(last).or_default() += 1;
    }
    reasons.remove("ok");
    let mut lateness = after.lateness;
    for (bucket, before) in lateness.buckets.iter_mut().zip(before.lateness.buckets) {
        *bucket -= before;
    }
    Ok(Case {
        name: name.into(),
        backends,
        interval_ms: interval.as_millis() as u64,
        checks,
        checks_per_second: checks as f64 / took.as_secs_f64(),
        failed: after.counts.failed - before.counts.failed,
        unknown: after.counts.unknown - before.counts.unknown,
        cpu_percent: 100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
        cpu_us_per_check: cpu.as_secs_f64() * 1e6 / checks as f64,
        late_us_p50: lateness.quantile_us(500),
        late_us_p99: lateness.quantile_us(990),
        pauses: after.pauses - before.pauses,
        reason: reasons.into_iter().max_by_key(|(_, times)| *times).map(|(reason, _)| reason),
    })
}

/// The kernel's own cost of a connection that is made and reset, in microseconds of CPU time:
/// the median of a few rounds over all backends, one after the other.
fn floor(backends: u32) -> Result<f64> {
    // SAFETY: no precondition.
    let tid = unsafe { libc::gettid() }.try_into().context("the thread's id")?;
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let cpu = cpu_time(tid)?;
        for n in 0..backends {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_linger(Some(Duration::ZERO))?;
            let address = SocketAddr::new(backend(n), PORT);
            socket.connect_timeout(&address.into(), Duration::from_secs(1))?;
        }
        rounds.push((cpu_time(tid)? - cpu).as_secs_f64() * 1e6 / f64::from(backends));
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[rounds.len() / 2])
}

fn backend(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(FIRST.to_bits() + 1 + n).into()
}

/// The thread of this process that has this name.
fn thread_named(name: &str) -> Result<u32> {
    let is_it = |tid: &u32| {
        let comm = fs::read_to_string(format!("/proc/self/task/{tid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    let tids = fs::read_dir("/proc/self/task").context("the threads")?;
    let tids = tids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut tids = tids.filter(is_it);
    tids.next().with_context(|| format!("no thread is named {name}"))
}

/// How long a thread has run.
fn cpu_time(tid: u32) -> Result<Duration> {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let times = fs::read_to_string(&path).with_context(|| path.clone())?;
    let nanos = times.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    nanos.map(Duration::from_nanos).with_context(|| format!("{path}: {times}"))
}

/// The two hosts, and the server.
struct Hosts {
    balancer: Namespace,
    _web: Namespace,
    server: Child,
    /// To the VIP at any backend.
    path: ProbePath,
}

impl Hosts {
    fn start() -> Result<Self> {
        let (balancer, web) = (Namespace::new("balancer")?, Namespace::new("web")?);
        balancer.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\naddress add {OWN}/24 dev eth0\nlink set eth0 up",
            web.name()
        ))?;
        web.ip(&format!(
            "address add {WEB}/24 dev eth0\naddress add {VIP}/32 dev lo\nlink set eth0 up\n\
             route add local {FIRST}/16 dev lo"
        ))?;
        balancer.ip(&format!("route add {FIRST}/16 via {WEB}"))?;
        // A burst of connections may find the queue full: that would measure retransmissions.
        web.sysctl(&[("core/somaxconn", "65535"), ("ipv4/tcp_max_syn_backlog", "65535")])?;
        let server = Self::server(&web)?;
        if thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
            Self::give_packets(&web, OTHER_CPU)?;
        }
        kit::datapath::kernel::stay_on_one_cpu()?;
        let path = Self::path(&balancer, &web)?;
        Ok(Self { balancer, _web: web, server, path })
    }

    fn server(web: &Namespace) -> Result<Child> {
        let program = std::env::current_exe().context("this program")?;
        let mut command = web.command(program);
        command.args(["health-server", &PORT.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().context("start the server")?;
        let output = server.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("its first line")?;
        ensure!(line.trim_end() == server::READY, "the server does not start");
        Ok(server)
    }

    /// Has a host's kernel take in packets on another CPU than the one that sends them (RPS).
    fn give_packets(host: &Namespace, cpus: &str) -> Result<()> {
        let write = format!("echo {cpus} > /sys/class/net/eth0/queues/rx-0/rps_cpus");
        // Unlike ours, the sysfs that it mounts shows the namespace's devices.
        let command = ["netns", "exec", host.name(), "sh", "-c", &write];
        let status = Command::new("ip").args(command).status().context("run ip")?;
        ensure!(status.success(), "{write}: {status}");
        Ok(())
    }

    fn path(balancer: &Namespace, web: &Namespace) -> Result<ProbePath> {
        let (own_mac, mac) = (bytes(&balancer.mac("eth0")?)?, bytes(&web.mac("eth0")?)?);
        let ifindex =
            balancer.enter(|| -> Result<u32> { Ok(nix::net::if_::if_nametoindex("eth0")?) })??;
        let hop = NextHop {
            ifindex,
            interface: "eth0".into(),
            mac,
            l2: [&mac[..], &own_mac, &[8, 0]].concat(),
            mtu: MTU,
        };
        let tunnel = Tunnel::default();
        Ok(ProbePath { vip: VIP.into(), backend: WEB.into(), mode: Mode::Dsr, hop, tunnel })
    }

    fn stop(mut self) -> Result<()> {
        drop(self.server.stdin.take());
        let status = self.server.wait().context("wait for the server")?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

/// `02:00:00:00:00:01` as bytes.
fn bytes(mac: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<_>, _> =
        mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("MAC address {mac}"))
}
