//! No file descriptor left, for anything that `lbd` does.

use std::{io, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::balanced,
};

use super::{CHECK, SOON, WAY, clients, events, load, none_failed, run_for, wait_all_serve};

/// Limits the descriptors of `lbd`; returns the former limit.
fn limit(balancer: &Balancer, most: libc::rlim_t) -> Result<libc::rlim_t> {
    let pid = i32::try_from(balancer.pid()?).context("a pid")?;
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to `old`, and reads none.
    let read = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old) };
    ensure!(read == 0, "prlimit: {}", io::Error::last_os_error());
    let new = libc::rlimit { rlim_cur: most, ..old };
    // SAFETY: the kernel reads one `rlimit` of `new`, and writes none.
    let written =
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()) };
    ensure!(written == 0, "prlimit: {}", io::Error::last_os_error());
    Ok(old.rlim_cur)
}

#[test]
fn without_descriptors_forwarding_goes_on_no_backend_goes_down_and_all_recovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    // A check by the way of the traffic needs no descriptor of its own.
    let check = format!("{CHECK}\nvia = \"backend\"");
    let (lab, mut balancer) = balanced(&Options::default(), &[WAY], &check)?;
    let load = load(&lab)?;
    let arrivals = clients(&lab, WAY)?;
    // Open descriptors stay open; no more are opened.
    let before = limit(&balancer, 3)?;
    let asked = thread::scope(|scope| {
        // A request meanwhile waits, or fails; afterwards it works.
        let asked = scope.spawn(|| balancer.lbctl_output(&["status"]));
        // Long enough for dozens of checks and a few looks at the maps.
        run_for(Duration::from_secs(3));
        limit(&balancer, before)?;
        asked.join().map_err(|_| anyhow::anyhow!("the question panicked"))?
    })?;
    balancer.check()?;
    let status = wait::until(SOON, "lbd answers", || balancer.status())?;
    for web in &lab.webs {
        let backend = status.service(WAY.name())?.backend(WAY.backend(web))?;
        let check = backend.check.as_ref().context("it is checked")?;
        ensure!(check.went_down == 0, "{backend:?} (status then: {asked:?})\n{}", balancer.log());
    }
    ensure!(
        balancer.log().contains("no file descriptor left"),
        "the lack is logged:\n{}",
        balancer.log()
    );
    let lost = events(&balancer, "interface_lost")?;
    ensure!(lost.is_empty(), "a lack is no loss: {lost:?}");
    wait_all_serve(&lab, &balancer, WAY)?;
    let changed = WAY.backend(&lab.webs[0]).to_string();
    balancer.lbctl(&["backend", "weight", WAY.name(), &changed, "3"])?;
    wait::until(SOON, "the maps are written", || {
        let status = balancer.status()?;
        ensure!(status.last_error.is_none(), "{:?}", status.last_error);
        Ok(())
    })?;
    none_failed(arrivals)?;
    load.finish().check()
}
