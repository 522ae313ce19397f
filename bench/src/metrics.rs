//! The time of a scrape of `/metrics` with many backends: from the request's first byte to the
//! answer's last, over TCP, as Prometheus scrapes.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    http::Connection,
    lab::{Lab, Options, VIPS_V4},
    reports::metrics::{PAUSE, Report},
};
use nix::unistd::{SysconfVar, sysconf};

use crate::output::Output;

const PORT: u16 = 9105;
/// Backends of each service: as many as the first addresses that no host of the lab has allow.
const EACH: u8 = 10;

/// How many, and how often.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How many services, with ten backends each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=400))]
    services: u16,
    /// How many scrapes
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    scrapes: u32,
}

/// Measures and prints.
///
/// # Errors
///
/// If the lab does not come up, or `lbd` does not answer.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let mut balancer = configured(&lab, arguments.services)?;
    balancer.launch()?;
    let target = SocketAddr::new(lab.balancer.v4.into(), PORT);
    let limit = Duration::from_secs(20);
    let mut connection = Connection::open(&lab.client.namespace, target, limit)?;
    let mut scrape = || {
        let begun = Instant::now();
        let page = connection.get("/metrics")?.ok()?;
        anyhow::Ok((begun.elapsed(), page.text()))
    };
    // The first one is not like the others.
    let (_, page) = scrape()?;
    let cpu = cpu_time(balancer.pid()?)?;
    let mut took = Vec::new();
    for _ in 0..arguments.scrapes {
        thread::sleep(PAUSE);
        took.push(scrape()?.0.as_secs_f64() * 1e3);
    }
    let cpu = cpu_time(balancer.pid()?)? - cpu;
    took.sort_by(f64::total_cmp);
    let count = |begin: &str| page.lines().filter(|line| line.starts_with(begin)).count();
    let resident =
        page.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let resident: f64 = resident.context("the process's memory")?.parse().context("a number")?;
    let report = Report {
        backends: count("lb_backend_packets_total{"),
        samples: page.lines().filter(|line| !line.starts_with('#')).count(),
        bytes: page.len(),
        scrapes: arguments.scrapes,
        min_ms: took[0],
        median_ms: took[took.len() / 2],
        max_ms: took[took.len() - 1],
        cpu_ms: cpu.as_secs_f64() * 1e3 / f64::from(arguments.scrapes),
        resident_mib: resident / f64::from(1 << 20),
    };
    ensure!(
        report.backends == usize::from(arguments.services) * usize::from(EACH),
        "not all are exported"
    );
    arguments.output.print(&report)?;
    Ok(())
}

fn configured(lab: &Lab, services: u16) -> Result<Balancer> {
    let backends: Vec<IpAddr> =
        (0..EACH).map(|n| Ipv4Addr::new(10, 0, 0, 201 + n).into()).collect();
    let service = |n: u16| {
        let name = format!("service-{n:03}");
        Service::tcp(&name, VIPS_V4[0], 1_000 + n, "dsr", backends.clone())
            .with("ring_slots = 1009\n[service.check]\ntype = \"tcp\"")
    };
    let services: Vec<_> = (0..services).map(service).collect();
    let mut balancer = Balancer::new(lab, &[])?;
    let listen = format!("{}:{PORT}", lab.balancer.v4);
    balancer.set_more(&format!("\n[http]\nlisten = [\"{listen}\"]\nallow_unprotected = true\n"));
    balancer.configure(&services)?;
    Ok(balancer)
}

/// CPU time of a process, its threads that have ended included.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read its times")?;
    let fields = stat.rsplit_once(')').context("a name")?.1.split_whitespace();
    // Fields 14 and 15 of proc_pid_stat(5); what is split begins with field 3.
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let each = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(Duration::from_secs_f64(ticks.iter().sum::<f64>() / each as f64))
}
