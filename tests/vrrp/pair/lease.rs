//! New flows while the Active node may make no pins: its peer imports none of its records.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use kit::{
    arrivals::{Arrivals, Plan as Requests},
    can_run,
    ha_pair::{HaPair, Plan},
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};
use lb_model::seen::Condition;

/// A peer that does not run for as long is not given up yet, and the lease is over long before.
const STALL: Duration = Duration::from_millis(1_500);
/// Rounds in which a flow may meet a node without the lease; the first one has many.
const ROUNDS: u32 = 20;
const SOON: Duration = Duration::from_secs(15);
const SETTINGS: &str = "[service.check]\ntype = \"http\"\ninterval = \"100ms\"\nrise = 2\nfall = 2";

/// Of three backends one is dead while its host lives, and one drains. What a node without the lease
/// can't pin goes to the base owner: the one that drains serves it, the dead one would refuse it.
#[test]
fn a_node_without_the_lease_gives_no_new_flow_to_a_backend_that_refuses() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let plan = Plan { settings: SETTINGS.into(), ..Plan::new(&[way], Duration::from_millis(100)) };
    let mut ha_pair = HaPair::start(&Options::default(), plan)?;
    let [dead, drains] = [0, 1].map(|n| way.backend(&ha_pair.lab.webs[n]));
    ha_pair.lab.webs[0].nginx.kill()?;
    for node in &ha_pair.nodes {
        node.lbctl(&["backend", "drain", way.name(), &drains.to_string()])?;
        wait::until(SOON, "one is down, and one drains", || {
            let service = node.status()?.service(way.name())?.clone();
            let down = service.backend(dead)?;
            ensure!(down.condition == Condition::SoftDown && down.base_slots > 0, "{down:?}");
            let drains = service.backend(drains)?;
            ensure!(drains.slots == 0 && drains.base_slots > 0, "{drains:?}");
            Ok(())
        })?;
    }
    let requests = Requests {
        target: way.target(),
        every: Duration::from_millis(5),
        limit: Duration::from_secs(20),
    };
    let draining = ha_pair.lab.webs[1].host.name.clone();
    for round in 0..ROUNDS {
        ha_pair.wait_synced()?;
        let arrivals = Arrivals::start(&ha_pair.lab.client.namespace, requests)?;
        ha_pair.nodes[1].signal(libc::SIGSTOP)?;
        thread::sleep(STALL);
        let arrivals = arrivals.finish()?;
        ha_pair.nodes[1].signal(libc::SIGCONT)?;
        let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
        let logs = || ha_pair.logs();
        ensure!(failed.is_empty(), "{} failed: {:?}; {}", failed.len(), failed[0], logs());
        let unpinned = arrivals.iter().filter(|arrival| arrival.end.as_ref() == Ok(&draining));
        let unpinned = unpinned.count();
        println!("round {round}: {unpinned} of {} went to the base owner", arrivals.len());
        if unpinned > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("the lease was never over: {}", ha_pair.logs())
}
