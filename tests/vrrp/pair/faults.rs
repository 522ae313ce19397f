//! Faults of one node, and its operator's actions.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    ha_pair::{HaPair, Plan},
    lab::{INTERFACE, Options},
    owners::Watch,
    probes::Probes,
    status::StatusExt as _,
    ways::Way,
};

use super::clients::Clients;

const INTERVAL: Duration = Duration::from_millis(50);

/// Both modes, both families.
const WAYS: [Way; 4] = [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6];

/// How late a node of a busy machine may be, beyond the protocol's times.
pub const SLACK: Duration = Duration::from_millis(150);

/// A fault of the first node, and its end.
struct Fault {
    name: &'static str,
    strike: fn(&mut HaPair) -> Result<()>,
    end: fn(&mut HaPair) -> Result<()>,
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "lbd is killed",
        strike: |ha_pair| ha_pair.nodes[0].kill(),
        end: |ha_pair| ha_pair.nodes[0].launch(),
    },
    Fault {
        name: "the cable is pulled",
        strike: |ha_pair| ha_pair.lab.cut("lb1"),
        end: |ha_pair| ha_pair.lab.mend("lb1"),
    },
    Fault {
        name: "lbd is stopped",
        strike: |ha_pair| ha_pair.nodes[0].stop().map(drop),
        end: |ha_pair| ha_pair.nodes[0].launch(),
    },
    Fault {
        name: "the node loses power",
        strike: |ha_pair| ha_pair.lab.freeze(ha_pair.host(0)),
        end: |ha_pair| ha_pair.lab.thaw(ha_pair.host(0)),
    },
    Fault {
        name: "the operator hands over",
        strike: |ha_pair| ha_pair.hand_over(0),
        end: |ha_pair| ha_pair.hand_over(1),
    },
    Fault {
        name: "lbd is stalled for two seconds",
        strike: |ha_pair| {
            ha_pair.nodes[0].signal(libc::SIGSTOP)?;
            thread::sleep(Duration::from_secs(2));
            Ok(())
        },
        end: |ha_pair| ha_pair.nodes[0].signal(libc::SIGCONT),
    },
];

#[test]
fn no_connection_breaks_whatever_befalls_the_active_node() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::start(&Options::default(), Plan::new(&WAYS, INTERVAL))?;
    let clients = Clients::start(&ha_pair, Duration::from_secs(80))?;
    for fault in FAULTS {
        let start = Instant::now();
        clients.note(fault.name);
        (fault.strike)(&mut ha_pair).context(fault.name)?;
        ha_pair.wait_holds(1).context(fault.name)?;
        let over = start.elapsed();
        clients.go_on().context(fault.name)?;
        clients.note("its end");
        (fault.end)(&mut ha_pair).with_context(|| format!("{}, its end", fault.name))?;
        ha_pair.wait_active(0).with_context(|| format!("{}, its end", fault.name))?;
        ha_pair.wait_synced().with_context(|| format!("{}, its end", fault.name))?;
        clients.go_on().with_context(|| format!("{}, its end", fault.name))?;
        println!("{}: taken over within {over:?}", fault.name);
    }
    clients.finish().with_context(|| ha_pair.logs())
}

/// How long no node has the address, and how long two do.
#[test]
fn failovers_take_no_longer_than_the_protocol_says() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let mut ha_pair = HaPair::start(&Options::default(), Plan::new(&[way], INTERVAL))?;
    let skew = INTERVAL * (256 - u32::from(kit::ha_pair::PRIORITIES[1])) / 256;
    // Whether the address lies on a node that is dead while the fault lasts, and how long nobody alive
    // may have it.
    let silent = INTERVAL * 3 + skew + SLACK;
    let bounds = [(true, silent), (false, silent), (false, SLACK), (true, silent), (false, SLACK)];
    for (fault, (dead, bound)) in FAULTS.iter().zip(bounds) {
        let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
        let watch = Watch::start(&nodes, way.vip())?;
        let probes = Probes::start(&ha_pair.lab.client.namespace, way.target())?;
        thread::sleep(INTERVAL);
        let begun = Instant::now();
        (fault.strike)(&mut ha_pair).context(fault.name)?;
        ha_pair.wait_holds(1).context(fault.name)?;
        thread::sleep(INTERVAL * 6);
        let (answers, owners, end) = (probes.finish()?, watch.finish()?, Instant::now());
        let owners = if dead { owners.without(0, begun, end) } else { owners };
        let seen = owners.longest(begun, end);
        let outage = answers.outage(begun, end);
        println!("{}: {seen}, no answer for {outage:?}", fault.name);
        ensure!(
            seen.none <= bound + owners.precision,
            "{}: {seen}; {}",
            fault.name,
            ha_pair.logs()
        );
        ensure!(seen.two <= SLACK + owners.precision, "{}: {seen}; {}", fault.name, ha_pair.logs());
        ensure!(outage <= bound + SLACK, "{}: no answer for {outage:?}", fault.name);
        (fault.end)(&mut ha_pair).context(fault.name)?;
        ha_pair.wait_active(0).context(fault.name)?;
        ha_pair.wait_synced().context(fault.name)?;
    }
    Ok(())
}

#[test]
fn a_planned_handover_loses_no_packet() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let way = Way::DsrV4;
    let ha_pair = HaPair::start(&Options::default(), Plan::new(&[way], INTERVAL))?;
    let probes = Probes::start(&ha_pair.lab.client.namespace, way.target())?;
    thread::sleep(INTERVAL * 4);
    let begun = Instant::now();
    for turn in 0..6 {
        ha_pair.hand_over(turn % 2)?;
        ha_pair.wait_active((turn + 1) % 2)?;
        thread::sleep(INTERVAL * 4);
    }
    let end = Instant::now();
    let answers = probes.finish()?;
    let lost: Vec<_> = answers.lost(begun, end).collect();
    ensure!(lost.is_empty(), "{} probes: {:?}; {}", lost.len(), lost.first(), ha_pair.logs());
    Ok(())
}

#[test]
fn of_two_nodes_that_start_at_once_one_is_active() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair =
        HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4, Way::DsrV6], INTERVAL))?;
    for round in 0..3 {
        let watch = {
            let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
            Watch::start(&nodes, Way::DsrV4.vip())?
        };
        ha_pair.nodes.iter_mut().try_for_each(Balancer::begin)?;
        ha_pair.nodes.iter_mut().try_for_each(Balancer::wait_answers)?;
        ha_pair.wait_active(0).with_context(|| format!("round {round}"))?;
        ha_pair.wait_synced()?;
        thread::sleep(INTERVAL * 4);
        let owners = watch.finish()?;
        let (from, end) = owners.span();
        if round == 0 {
            let seen = owners.longest(from, end);
            ensure!(seen.two <= INTERVAL * 3 + SLACK, "{seen}; {}", ha_pair.logs());
        }
        // The next time, both find their leftovers.
        for node in &mut ha_pair.nodes {
            node.kill()?;
        }
    }
    Ok(())
}

#[test]
fn a_killed_lbd_goes_on_where_it_was_if_nobody_has_taken_over() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::start(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    ha_pair.nodes[1].stop()?;
    let watch = {
        let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
        Watch::start(&nodes, Way::DsrV4.vip())?
    };
    let clients = Clients::start(&ha_pair, Duration::from_secs(60))?;
    thread::sleep(INTERVAL);
    let begun = Instant::now();
    ha_pair.nodes[0].kill()?;
    clients.note("lbd was killed");
    ha_pair.nodes[0].launch()?;
    clients.note("lbd is back");
    ha_pair.wait_active(0)?;
    clients.go_on()?;
    let owners = watch.finish()?;
    let seen = owners.exceptions(begun, Instant::now());
    ensure!(seen.is_empty(), "the address stays where it was: {seen:?}; {}", ha_pair.logs());
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn a_node_that_reaches_no_backend_gives_way_though_its_service_is_in_panic() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut plan = Plan::new(&[Way::DsrV4], INTERVAL);
    plan.settings =
        "panic_threshold = \"50%\"\n[service.check]\ntype = \"tcp\"\ninterval = \"100ms\"\n\
                     timeout = \"200ms\"\nrise = 2\nfall = 2"
            .into();
    let track = format!(
        "[[virtual_router.track]]\ntype = \"service\"\nservice = \"{}\"\nweight = -60",
        Way::DsrV4.name()
    );
    plan.lines = [track.clone(), track];
    let ha_pair = HaPair::start(&Options::default(), plan)?;
    ha_pair.wait_active(0)?;
    let macs = ha_pair.lab.webs.iter().map(|web| web.host.namespace.mac(INTERFACE));
    let macs = macs.collect::<Result<Vec<_>>>()?.join(", ");
    // Their addresses resolve: a neighbour that is gone takes a backend out by itself.
    let from_backends = format!("meta protocol ip ether saddr {{ {macs} }}");
    let keep_out = |n: usize| ha_pair.host(n).namespace.keep_out(INTERFACE, &[&from_backends]);
    keep_out(0)?;
    ha_pair.wait_active(1).with_context(|| ha_pair.logs())?;
    // Checks are ignored then: the other node reaches no more, and the first one has the higher priority.
    keep_out(1)?;
    ha_pair.wait_active(0).with_context(|| ha_pair.logs())?;
    let status = ha_pair.nodes[0].status()?;
    ensure!(status.service(Way::DsrV4.name())?.backends.values().all(|one| one.slots > 0));
    ha_pair.host(1).namespace.let_in()?;
    ha_pair.wait_active(1).with_context(|| ha_pair.logs())?;
    ha_pair.host(0).namespace.let_in()?;
    ha_pair.wait_active(0).with_context(|| ha_pair.logs())
}
