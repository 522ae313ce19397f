//! Two nodes that are balancers and web hosts at once, on bonds and on VLANs upon them: what the other node forwards is
//! known by its MAC address there, too.

use std::time::Duration;

use anyhow::Result;
use kit::{
    can_run_lab,
    lab::INTERFACE,
    serving,
    twins::{Plan, Twins},
};

use super::{bond::bond, is_disposable};

/// Between advertisements: what is missed must be the other node and not a moment on the CPU.
const INTERVAL: Duration = Duration::from_millis(500);
const SETTINGS: &str = "idle_timeout = \"10s\"\nring_slots = 1021";

/// The nodes on bonds, or VLANs upon them, with the program at `interface`.
fn serve(vlan: Option<u16>, interface: &str, attach: &'static str) -> Result<Twins> {
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&serving::WAYS, INTERVAL) };
    let mut twins = serving::nodes(1, attach, plan)?;
    let services = twins.plan.services(&twins.lab);
    for (n, node) in twins.nodes.iter_mut().enumerate() {
        bond(&twins.lab, twins.lab.pair()?[n], vlan)?;
        node.set_interface(interface);
        node.configure(&services)?;
    }
    twins.launch()?;
    Ok(twins)
}

fn all_is_well(vlan: Option<u16>, interface: &str, attach: &'static str) -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let mut twins = serve(vlan, interface, attach)?;
    serving::no_packet_goes_to_and_fro(&twins)?;
    serving::no_download_breaks(&mut twins)
}

#[test]
fn nodes_that_serve_by_tc_on_bonds_send_nothing_to_and_fro_and_break_no_download() -> Result<()> {
    all_is_well(None, INTERFACE, "tc")
}

#[test]
fn nodes_that_serve_by_tc_on_vlans_send_nothing_to_and_fro_and_break_no_download() -> Result<()> {
    all_is_well(Some(5), INTERFACE, "tc")
}

#[test]
fn nodes_that_serve_by_tc_below_vlans_send_nothing_to_and_fro_and_break_no_download() -> Result<()>
{
    all_is_well(Some(5), "bond0", "tc")
}
