//! A scrape of a node with a thousand backends.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    lab::{Lab, Options, VIPS_V4},
};

use super::{http, metrics};

const SERVICES: u16 = 100;
const BACKENDS: u8 = 10;

/// A scraper waits for ten seconds by default. `cargo xtask bench metrics` measures the time: this is a build
/// without optimisation, on a machine that does other things.
#[test]
fn a_thousand_backends_are_told_in_one_scrape() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { webs: 1, ..Options::default() })?;
    let backends: Vec<IpAddr> =
        (0..BACKENDS).map(|n| Ipv4Addr::new(10, 0, 0, 201 + n).into()).collect();
    let service = |n: u16| {
        let name = format!("service-{n:03}");
        // Rings as small as they may be: it is not them that is looked at.
        Service::tcp(&name, VIPS_V4[0], 1_000 + n, "dsr", backends.clone())
            .with("ring_slots = 1009\n[service.check]\ntype = \"tcp\"")
    };
    let services: Vec<_> = (0..SERVICES).map(service).collect();
    let mut balancer = Balancer::new(&lab, &[])?;
    balancer.set_more(&http(&lab.balancer));
    balancer.configure(&services)?;
    balancer.launch()?;
    let mut best = Duration::MAX;
    let mut page = String::new();
    for _ in 0..5 {
        let begun = Instant::now();
        page = metrics(&lab, &lab.balancer, "/metrics", "application/openmetrics-text")?;
        best = best.min(begun.elapsed());
    }
    let count = |name: &str| page.lines().filter(|line| line.starts_with(name)).count();
    let backends = usize::from(SERVICES) * usize::from(BACKENDS);
    ensure!(count("lb_backend_packets_total{") == backends, "{}", balancer.log());
    ensure!(count("lb_backend_health_check_duration_seconds_count{") == backends);
    ensure!(count("lb_service_packets_total{") == usize::from(SERVICES));
    ensure!(page.ends_with("# EOF\n"), "it was cut off");
    let samples = page.lines().filter(|line| !line.starts_with('#')).count();
    let bytes = page.len();
    println!("{samples} samples, {bytes} bytes, {best:?} at best");
    ensure!(best < Duration::from_secs(5), "{best:?}");
    // The size of one more backend is bounded, so a node's page is.
    let each = samples.checked_div(backends).context("there are some")?;
    ensure!(each < 50, "{each} samples for each backend");
    Ok(())
}
