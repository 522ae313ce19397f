//! Two nodes that are balancers and web hosts at once, as small installations have them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    ha_pair::{HaPair, Plan},
    lab::INTERFACE,
    serving::{self, WAYS, administer, answering, places},
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
};

use super::clients::Clients;

const INTERVAL: Duration = Duration::from_millis(50);
const SETTINGS: &str = "idle_timeout = \"2s\"\nring_slots = 1021\ncheck = { type = \"http\", interval = \"200ms\", fall = 2 }";
const SOON: Duration = Duration::from_secs(10);
/// Of a bridge.
const PORT: &str = "port0";

fn plan() -> Plan {
    Plan { settings: SETTINGS.to_owned(), ..Plan::new(&WAYS, INTERVAL) }
}

/// Two nodes that serve, `attach` on both, beside one web host.
fn serve(attach: &'static str) -> Result<HaPair> {
    let mut ha_pair = serving::nodes(1, attach, plan())?;
    ha_pair.launch()?;
    Ok(ha_pair)
}

/// The same with each node's interface, as [`PORT`], under a bridge that has its name and addresses, and a MAC address
/// of its own: where containers or virtual machines live on the nodes. The program is at `interface`.
fn serve_on_bridges(interface: &str, attach: &'static str) -> Result<HaPair> {
    let mut ha_pair = serving::nodes(1, attach, plan())?;
    let services = ha_pair.plan.services(&ha_pair.lab);
    for (n, node) in ha_pair.nodes.iter_mut().enumerate() {
        let host = ha_pair.lab.pair()?[n];
        let mac = format!("02:00:00:00:0b:{:02x}", host.v4.octets()[3]);
        host.namespace.ip(&format!(
            "link set {INTERFACE} down\naddr flush dev {INTERFACE}\n\
             link set {INTERFACE} name {PORT}\n\
             link add {INTERFACE} address {mac} type bridge mcast_snooping 0\n\
             link set {PORT} master {INTERFACE}\nlink set {PORT} up\nlink set {INTERFACE} up\n\
             addr add {}/24 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad",
            host.v4, host.v6
        ))?;
        host.namespace.ethtool(INTERFACE, &["tx", "off", "tso", "off", "gso", "off"])?;
        node.set_interfaces(&[interface]);
        node.configure(&services)?;
    }
    ha_pair.launch()?;
    Ok(ha_pair)
}

#[test]
fn no_packet_goes_to_and_fro_between_nodes_at_xdp_that_disagree() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    serving::no_packet_goes_to_and_fro(&serve("xdp")?)
}

#[test]
fn no_packet_goes_to_and_fro_between_nodes_at_tc_that_disagree() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    serving::no_packet_goes_to_and_fro(&serve("tc")?)
}

#[test]
fn nodes_that_serve_by_tc_on_bridges_send_nothing_to_and_fro_and_break_no_download() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = serve_on_bridges(INTERFACE, "tc")?;
    serving::no_packet_goes_to_and_fro(&ha_pair)?;
    serving::no_download_breaks(&mut ha_pair)
}

#[test]
fn nodes_that_serve_by_xdp_below_bridges_send_nothing_to_and_fro_and_break_no_download()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = serve_on_bridges(PORT, "xdp")?;
    serving::no_packet_goes_to_and_fro(&ha_pair)?;
    serving::no_download_breaks(&mut ha_pair)
}

#[test]
fn no_connection_breaks_by_drains_and_failovers_of_nodes_that_serve() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = serve("xdp")?;
    let nodes = places(&ha_pair);
    let clients = Clients::start(&ha_pair, Duration::from_secs(180))?;
    for web in nodes {
        let host = ha_pair.lab.webs[web].host.name.clone();
        // One node drains it, and the other one still gives it new flows.
        for active in [0, 1] {
            administer(&ha_pair, active, "drain", web)?;
            clients.note("drained on the Active node alone");
            clients.go_on().with_context(|| format!("{host} is drained; {}", ha_pair.logs()))?;
            ha_pair.hand_over(active)?;
            ha_pair.wait_active(1 - active)?;
            clients.note("handed over to the node that does not drain it");
            clients.go_on().with_context(|| format!("{host}, handed over; {}", ha_pair.logs()))?;
            administer(&ha_pair, active, "enable", web)?;
            ha_pair.wait_synced()?;
        }
        for node in [0, 1] {
            administer(&ha_pair, node, "drain", web)?;
        }
        clients.note("drained");
        clients.go_on().with_context(|| format!("{host} is drained; {}", ha_pair.logs()))?;
        ha_pair.hand_over(0)?;
        ha_pair.wait_active(1)?;
        clients.note("lb1 handed over");
        clients.go_on().with_context(|| format!("{host}, handed over; {}", ha_pair.logs()))?;
        for node in [0, 1] {
            administer(&ha_pair, node, "enable", web)?;
        }
        ha_pair.hand_over(1)?;
        ha_pair.wait_active(0)?;
        clients.note("lb2 handed back");
        ha_pair.wait_synced()?;
        clients.go_on().with_context(|| format!("{host}, handed back; {}", ha_pair.logs()))?;
    }
    // Its host lives, and so does its nginx.
    clients.kill(&mut ha_pair, 0)?;
    ha_pair.wait_holds(1)?;
    clients.note("lb2 took over");
    clients.go_on().with_context(|| ha_pair.logs())?;
    ha_pair.nodes[0].launch()?;
    ha_pair.wait_active(0)?;
    clients.note("lb1 is back");
    ha_pair.wait_synced()?;
    clients.go_on().with_context(|| ha_pair.logs())?;
    clients.finish().with_context(|| ha_pair.logs())
}

/// The nodes find out at moments of their own that a backend is down, and that it is up.
#[test]
fn new_connections_are_answered_while_a_node_s_nginx_dies_and_returns() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = serve("xdp")?;
    let [first, second] = places(&ha_pair);
    let state = |ha_pair: &HaPair, web: usize, up: bool| {
        let name = format!("{} is up on both nodes: {up}", ha_pair.lab.webs[web].host.name);
        wait::until(SOON, &name, || {
            for node in &ha_pair.nodes {
                let status = node.status()?;
                for way in WAYS {
                    let backend = way.backend(&ha_pair.lab.webs[web]);
                    let backend = status.service(way.name())?.backend(backend)?.clone();
                    ensure!(backend.is_up() == up, "{backend:?}");
                }
            }
            Ok(())
        })
    };
    for web in [first, second] {
        let (orphan, name) = (ha_pair.lab.orphan(), ha_pair.lab.webs[web].host.name.clone());
        ha_pair.lab.webs[web].nginx.kill()?;
        state(&ha_pair, web, false).with_context(|| ha_pair.logs())?;
        for way in WAYS {
            let hosts = answering(&ha_pair, way)?;
            ensure!(!hosts.contains(&name) && hosts.len() == 2, "{}: {hosts:?}", way.name());
        }
        let killed = &mut ha_pair.lab.webs[web];
        killed.nginx.restart(&killed.host.namespace, orphan)?;
        state(&ha_pair, web, true).with_context(|| ha_pair.logs())?;
        for way in WAYS {
            let hosts = answering(&ha_pair, way)?;
            ensure!(hosts.len() == 3, "{}: {hosts:?}", way.name());
        }
    }
    Ok(())
}
