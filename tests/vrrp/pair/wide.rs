//! Services with several VIPs or ports on a pair: flows of one source port to several destinations keep their backends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::{
    can_run,
    ha_pair::{HaPair, Plan},
    lab::Options,
    ways::Way,
    wide::{Connections, PREFIXES, destinations, table},
};

/// The ways whose VIPs are those of both prefixes, so that the routers have them.
const WAYS: [Way; 5] = [Way::DsrV4, Way::IpipV4, Way::IpipV4InV6, Way::DsrV6, Way::IpipV6];

fn started() -> Result<HaPair> {
    let plan = Plan::new(&WAYS, Duration::from_millis(100));
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    let services = [
        table(&ha_pair.lab, "v4", (PREFIXES[0], "\"80-8080\""), Way::DsrV4, 3),
        table(&ha_pair.lab, "v6", (PREFIXES[1], "\"any\""), Way::IpipV6, 3),
    ];
    for n in [0, 1] {
        let tables = services.concat() + &ha_pair.plan.tables(&ha_pair.lab, n)?;
        ha_pair.nodes[n].set_more(&tables);
        ha_pair.nodes[n].configure(&[])?;
    }
    ha_pair.launch()?;
    Ok(ha_pair)
}

/// A drain pins flows, which the peer needs by their destinations: the source port alone is that of six.
#[test]
fn flows_of_several_vips_and_ports_outlive_a_drain_a_death_and_a_return() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = started()?;
    let open = |ha_pair: &HaPair, from: u16| -> Result<Vec<Connections>> {
        let open = |v6| Connections::open(&ha_pair.lab, from..from + 20, &destinations(v6));
        Ok(vec![open(false)?, open(true)?])
    };
    let mut connections = open(&ha_pair, 40_000)?;
    for (name, way) in [("v4", Way::DsrV4), ("v6", Way::IpipV6)] {
        let drained = way.backend(&ha_pair.lab.webs[0]).to_string();
        for node in &ha_pair.nodes {
            node.lbctl(&["backend", "drain", name, &drained])?;
        }
    }
    connections.extend(open(&ha_pair, 41_000)?);
    let mut go_on = |ha_pair: &HaPair, after: &str| {
        let mut all = connections.iter_mut();
        all.try_for_each(Connections::go_on).with_context(|| format!("{after}; {}", ha_pair.logs()))
    };
    go_on(&ha_pair, "drained")?;
    ha_pair.wait_synced()?;
    ha_pair.lab.cut("lb1")?;
    ha_pair.wait_holds(1)?;
    go_on(&ha_pair, "lb2 took over")?;
    ha_pair.lab.mend("lb1")?;
    ha_pair.wait_active(0)?;
    go_on(&ha_pair, "lb1 is back")?;
    ha_pair.wait_synced()?;
    ha_pair.nodes[0].stop()?;
    ha_pair.wait_holds(1)?;
    ha_pair.nodes[0].launch()?;
    ha_pair.wait_active(0)?;
    go_on(&ha_pair, "lb1 was stopped and started")
}
