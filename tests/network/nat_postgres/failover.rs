//! A pair of balancers whose virtual routers have the VIP and the address that is the backends' gateway.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    ha_pair::{HaPair, Plan},
    lab::{Lab, Options},
    postgres::{BOUNCERS, Database, Load, Pgbench},
    ways::{FORWARDING, Way},
};

use super::{long, service, short, target};
use crate::nat::{FAMILIES, backends_behind};

/// The gateways of the host of the database.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x200)),
];

/// The pair with the database behind it.
struct Pair {
    database: Database,
    ha_pair: HaPair,
}

fn start() -> Result<Pair> {
    let lab = Lab::new(&Options { router: true, pair: true, ..Options::default() })?;
    for node in lab.pair()? {
        node.namespace.sysctl(FORWARDING)?;
    }
    let [v4, v6] = GATEWAYS.map(|gateway| gateway.to_string());
    backends_behind(&lab, &v4, &v6)?;
    let database = lab.start_database(0)?;
    let host = &lab.webs[0];
    let services =
        FAMILIES.map(|way| service(way, way.backend(host), "check = { type = \"tcp\" }"));
    let plan = Plan::new(&FAMILIES, Duration::from_millis(100));
    let node = |n: usize| {
        let tables = with_gateways(&plan.tables(&lab, n)?);
        Balancer::on(&lab, lab.pair()?[n], &services, &tables)
    };
    let nodes = [node(0)?, node(1)?];
    let mut ha_pair = HaPair { nodes, lab, plan };
    ha_pair.launch()?;
    Ok(Pair { database, ha_pair })
}

/// Each virtual router has the gateway of its family beside its VIP.
fn with_gateways(tables: &str) -> String {
    let with = |tables: String, (way, gateway): (Way, IpAddr)| {
        let vip = way.vip();
        tables.replace(&format!("[\"{vip}\"]"), &format!("[\"{vip}\", \"{gateway}\"]"))
    };
    FAMILIES.into_iter().zip(GATEWAYS).fold(tables.to_owned(), with)
}

#[test]
fn no_transaction_fails_when_the_active_node_is_lost_and_when_it_returns() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let pair = start()?;
    let Pair { database, ha_pair } = &pair;
    let lab = &ha_pair.lab;
    for gateway in GATEWAYS {
        ensure!(
            ha_pair.holders(gateway)? == [0],
            "{gateway} is on {:?}",
            ha_pair.holders(gateway)?
        );
    }
    let start = |load: fn(Duration) -> Load| {
        let start = |way| Pgbench::start(&lab.client.namespace, target(way), load(RUN));
        FAMILIES.into_iter().map(start).collect::<Result<Vec<_>>>()
    };
    let lasting = start(long)?;
    let passing = start(short)?;
    database.wait_logins(&BOUNCERS, 20)?;
    lab.cut(&ha_pair.host(0).name)?;
    let cut = Instant::now();
    ha_pair.wait_holds(1)?;
    let taken = cut.elapsed();
    database.wait_logins(&BOUNCERS, 50)?;
    let served = cut.elapsed();
    lab.mend(&ha_pair.host(0).name)?;
    ha_pair.wait_active(0)?;
    database.wait_logins(&BOUNCERS, 20)?;
    for (kind, all) in [("long", lasting), ("short", passing)] {
        for (way, pgbench) in FAMILIES.into_iter().zip(all) {
            let tally = pgbench.finish()?;
            let at = || format!("{kind} connections by {}: {}", way.name(), ha_pair.logs());
            tally.check().with_context(at)?;
            println!("{kind} connections by {}: {} transactions", way.name(), tally.transactions);
        }
    }
    println!("the other node had the addresses after {taken:?}, 50 logins more after {served:?}");
    Ok(())
}

/// Long enough for two failovers and the logins between them.
const RUN: Duration = Duration::from_secs(20);
