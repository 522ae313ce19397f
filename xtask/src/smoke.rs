//! `cargo xtask run -- --smoke`: 1,000 requests through the lab's balancer, a connection for each.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{balancer::Balancer, http::Connection, lab::Lab, namespace, status::ServiceExt as _};

use crate::{signals, view};

/// Requests to all services together.
const REQUESTS: usize = 1_000;
/// Connections at the same time.
const CLIENTS: usize = 8;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Tally {
    by_backend: BTreeMap<String, usize>,
    failed: Vec<String>,
}

/// Sends the requests and prints the hosts that answered.
///
/// # Errors
///
/// If one of them failed.
pub fn run(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let status = balancer.status()?;
    let targets: Vec<_> = status.services.values().map(|service| service.address()).collect();
    ensure!(!targets.is_empty(), "the balancer has no service");
    let tallies: Vec<Mutex<Tally>> = targets.iter().map(|_| Mutex::default()).collect();
    let (next, path) = (AtomicUsize::new(0), lab.client.namespace.path());
    let start = Instant::now();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    namespace::join(&path)?;
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= REQUESTS || signals::caught() {
                            return Ok(());
                        }
                        let which = n % targets.len();
                        tallies[which]
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .add(request(targets[which]));
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        anyhow::Ok(())
    })?;
    ensure!(!signals::caught(), "interrupted");
    let took = start.elapsed();
    let tallies: Vec<_> = tallies
        .into_iter()
        .map(|tally| tally.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect();
    report(&status, &tallies);
    let failed: usize = tallies.iter().map(|tally| tally.failed.len()).sum();
    println!("{REQUESTS} requests in {:.1} s, {failed} failed", took.as_secs_f64());
    for interface in &status.interfaces {
        let hook = if interface.mode == "tc" { "" } else { "XDP " };
        println!("program on {}: {hook}{}", interface.name, interface.mode);
    }
    ensure!(failed == 0, "{failed} of {REQUESTS} requests failed");
    Ok(())
}

/// One request on a connection of its own; returns the host that answered.
fn request(target: SocketAddr) -> Result<String> {
    let page = Connection::open_here(target, PATIENCE)?.get("/")?.ok()?;
    let text = page.text();
    let backend = page.backend()?;
    ensure!(text == backend, "page {text:?} from {backend}");
    Ok(backend)
}

fn report(status: &lb_api::status::Status, tallies: &[Tally]) {
    for ((name, service), tally) in status.services.iter().zip(tallies) {
        let all: usize = tally.by_backend.values().sum();
        println!("{name}: http://{}/ ({})", service.address(), service.mode);
        for (backend, answered) in &tally.by_backend {
            let share = view::percent(*answered as u64, all as u64);
            println!("  {backend:<8} {answered:>6}  {share:>6}");
        }
        for failure in tally.failed.iter().take(5) {
            println!("  failed: {failure}");
        }
    }
}

impl Tally {
    fn add(&mut self, result: Result<String>) {
        match result {
            Ok(backend) => *self.by_backend.entry(backend).or_default() += 1,
            Err(err) => self.failed.push(format!("{err:#}")),
        }
    }
}
