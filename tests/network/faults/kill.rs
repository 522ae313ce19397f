//! `lbd` killed in the midst of changes.

use std::{
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use kit::{can_run, lab::Options, wait, ways::balanced};

use super::{CHECK, SOON, WAY, backend, clients, none_failed, wait_all_serve};

/// Sets a weight as `lbctl` does; an error if that was not answered for.
fn set_weight(socket: &Path, at: IpAddr, weight: u16) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect to lbd")?;
    stream.set_read_timeout(Some(SOON)).context("read timeout")?;
    let body = format!("{{\"weight\":{weight}}}");
    let request = format!(
        "PATCH /v1/services/{}/backends/{at} HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        WAY.name(),
        body.len()
    );
    stream.write_all(request.as_bytes()).context("ask lbd")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read lbd's answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "lbd answered: {answer}");
    Ok(())
}

#[test]
fn kill_in_a_burst_of_changes_loses_none_that_was_answered_for() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let arrivals = clients(&lab, WAY)?;
    let mut first = 1;
    for round in 1..=3 {
        let socket = balancer.socket();
        // The last weight of each backend that was answered for.
        let answered: Vec<_> =
            lab.webs.iter().map(|web| (WAY.backend(web), AtomicU16::new(0))).collect();
        thread::scope(|scope| {
            for (at, answered) in &answered {
                let socket = &socket;
                scope.spawn(move || {
                    let mut weights = first..first + 1_000;
                    while let Some(weight) = weights.next()
                        && set_weight(socket, *at, weight).is_ok()
                    {
                        answered.store(weight, Ordering::Relaxed);
                    }
                });
            }
            wait::until_true(SOON, "the burst is on its way", || {
                let weight = |(_, answered): &(_, AtomicU16)| answered.load(Ordering::Relaxed);
                Ok(answered.iter().all(|one| weight(one) > first + 5))
            })?;
            balancer.kill()
        })?;
        balancer.launch()?;
        for (at, answered) in &answered {
            let (last, now) = (answered.load(Ordering::Relaxed), backend(&balancer, WAY, *at)?);
            // The one after it may have been kept before its answer was on its way.
            let is_kept = (last..=last + 1).contains(&now.weight);
            ensure!(is_kept, "round {round}: {at}: {last} was answered for: {now:?}");
        }
        wait_all_serve(&lab, &balancer, WAY)?;
        first += 100;
    }
    none_failed(arrivals)
}
