//! Two nodes that are balancers and web hosts at once: on bonds and on VLANs upon them, where what the other node forwards
//! is known by its MAC address, too; and by tunnels of the kernel.

use std::time::Duration;

use anyhow::Result;
use kit::{
    can_run_lab,
    ha_pair::{HaPair, Plan},
    lab::INTERFACE,
    serving,
    ways::Way,
    xdp,
};

use super::{
    bond::{bond, second},
    is_disposable,
    tunnels::take_tunnels,
};

/// Between advertisements: a missed one must mean the other node and not a moment on the CPU.
const INTERVAL: Duration = Duration::from_millis(500);
const SETTINGS: &str = "idle_timeout = \"10s\"\nring_slots = 1021";

fn plan(ways: &[Way]) -> Plan {
    Plan { settings: SETTINGS.to_owned(), ..Plan::new(ways, INTERVAL) }
}

/// The nodes on bonds, or VLANs upon them, with the program at `interface`.
fn serve(vlan: Option<u16>, interface: &str, attach: &'static str) -> Result<HaPair> {
    let mut ha_pair = serving::nodes(1, attach, plan(&serving::WAYS))?;
    let services = ha_pair.plan.services(&ha_pair.lab);
    for (n, node) in ha_pair.nodes.iter_mut().enumerate() {
        let host = ha_pair.lab.pair()?[n];
        bond(&ha_pair.lab, host, vlan)?;
        if attach == "xdp" {
            let port = second(host);
            xdp::pass(ha_pair.lab.switch(), &port, &ha_pair.lab.pins().join(&port))?;
        }
        node.set_interfaces(&[interface]);
        node.configure(&services)?;
    }
    ha_pair.launch()?;
    Ok(ha_pair)
}

#[test]
fn nodes_that_serve_on_vlans_upon_bonds_send_nothing_to_and_fro_and_break_no_download() -> Result<()>
{
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let mut ha_pair = serve(Some(5), INTERFACE, "tc")?;
    serving::no_packet_goes_to_and_fro(&ha_pair)?;
    serving::no_download_breaks(&mut ha_pair)
}

/// The program is below the VLAN, so that the tag is in the metadata of frames from the other node.
#[test]
fn nodes_that_serve_on_bonds_below_vlans_send_nothing_to_and_fro() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    serving::no_packet_goes_to_and_fro(&serve(Some(5), "bond0", "tc")?)
}

#[test]
fn nodes_that_serve_on_bonds_in_native_mode_send_nothing_to_and_fro() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    serving::no_packet_goes_to_and_fro(&serve(None, INTERFACE, "xdp")?)
}

#[test]
fn nodes_that_serve_by_tunnels_of_the_kernel_send_nothing_to_and_fro() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let mut ha_pair = serving::nodes(1, "tc", plan(&[Way::IpipV4, Way::IpipV6]))?;
    for web in &ha_pair.lab.webs {
        let host = &web.host;
        take_tunnels(&host.namespace, &host.v4.to_string(), &host.v6.to_string())?;
    }
    ha_pair.launch()?;
    serving::no_packet_goes_to_and_fro(&ha_pair)
}
