//! A balancer on a bond of two interfaces, and on a VLAN upon one: which mode it is in, and that connections live when one of
//! the two loses its carrier. Its kernel has both as modules.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run_lab,
    downloads::{Downloads, Plan},
    http::Connection,
    lab::{Host, INTERFACE, Lab, Options, VIPS_V4},
    status::StatusExt as _,
    wait,
    ways::Way,
    xdp,
};

use super::{generic::configure, is_disposable};

const WAY: Way = Way::DsrV4;
/// A virtual machine without help of the processor is slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long downloads would take if nothing ended them.
const LONG: Duration = Duration::from_secs(100);
/// For this long, changes are given time to break connections.
const A_WHILE: Duration = Duration::from_secs(2);
const REQUESTS: usize = 30;
const OFFLOADS: &[&str] = &["tx", "off", "tso", "off", "gso", "off"];

/// The switch's port to the second interface of a host with a bond.
pub(super) fn second(host: &Host) -> String {
    format!("{}-b", host.name)
}

/// Makes a balancer's interface a bond of that and another one, of which the first is active; or a VLAN on that bond.
pub(super) fn bond(lab: &Lab, host: &Host, vlan: Option<u16>) -> Result<()> {
    let (node, second) = (&host.namespace, second(host));
    let ports = [&host.name, &second];
    lab.switch().ip(&format!(
        "link add {second} type veth peer name port1 netns {}\nlink set {second} up",
        node.name()
    ))?;
    let bond = if vlan.is_some() { "bond0" } else { INTERFACE };
    node.ip(&format!(
        "link set {INTERFACE} down\naddr flush dev {INTERFACE}\nlink set {INTERFACE} name port0\n\
         link add {bond} type bond mode active-backup miimon 50\n\
         link set port0 master {bond}\nlink set port1 master {bond}\nlink set {bond} up"
    ))?;
    for (number, port) in ports.iter().enumerate() {
        node.ethtool(&format!("port{number}"), OFFLOADS)?;
        lab.switch().ethtool(port, OFFLOADS)?;
        let member = match vlan {
            None => (*port).clone(),
            Some(id) => {
                let member = format!("{}-t{number}", host.name);
                lab.switch().ip(&format!(
                    "link set {port} nomaster\nlink add link {port} name {member} type vlan id {id}"
                ))?;
                member
            }
        };
        lab.switch().ip(&format!("link set {member} master br0\nlink set {member} up"))?;
    }
    if let Some(id) = vlan {
        node.ip(&format!("link add link {bond} name {INTERFACE} type vlan id {id}"))?;
    }
    let mut lines = format!(
        "link set {INTERFACE} up\naddr add {}/24 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad\n",
        host.v4, host.v6
    );
    // A pair's nodes take them by themselves.
    if lab.peer.is_none() {
        lines += &VIPS_V4.map(|vip| format!("addr add {vip}/32 dev {INTERFACE}\n")).concat();
    }
    node.ip(lines.trim_end()).map(drop)
}

/// The bond's port that is active.
fn active(lab: &Lab, bond: &str) -> Result<String> {
    let mut ip = lab.balancer.namespace.command("ip");
    let shown = kit::command::run(ip.args(["-j", "-d", "link", "show", "dev", bond]))?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("ip -j")?;
    let active = &shown[0]["linkinfo"]["info_data"]["active_slave"];
    Ok(active.as_str().context("an active port")?.to_owned())
}

/// Every host answers requests, each on a connection of its own.
fn all_answer(lab: &Lab) -> Result<()> {
    let mut hosts = BTreeSet::new();
    for n in 0..REQUESTS {
        let page = Connection::open(&lab.client.namespace, WAY.target(), PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n}"))?;
        hosts.insert(page.text());
    }
    ensure!(hosts.len() == lab.webs.len(), "{hosts:?}");
    Ok(())
}

/// Connections go through, and go on when the active port loses its carrier, and when it has it again.
fn connections_live(lab: &Lab, balancer: &mut Balancer, bond: &str) -> Result<()> {
    balancer.wait_usable()?;
    all_answer(lab)?;
    ensure!(active(lab, bond)? == "port0", "the first port is active");
    let plan = Plan { target: WAY.target(), each: 1, time: LONG, patience: PATIENCE };
    let downloads = Downloads::start(lab, plan)?;
    let forwarded = |balancer: &Balancer| -> Result<u64> {
        let status = balancer.status()?;
        Ok(status.service(WAY.name())?.backends.values().map(|one| one.sent.packets).sum())
    };
    let (first, last) = (&lab.balancer.name, &second(&lab.balancer));
    for (port, other) in [(first, "port1"), (last, "port0")] {
        for one in [first, last] {
            lab.switch().ip(&format!("link set {one} up"))?;
        }
        wait::until(PATIENCE, "both ports have a carrier", || {
            let mut ip = lab.balancer.namespace.command("ip");
            let shown = kit::command::run(ip.args(["-br", "link", "show", "master", bond]))?;
            let up = shown.lines().filter(|line| line.contains("LOWER_UP")).count();
            ensure!(up == 2, "{shown}");
            Ok(())
        })?;
        lab.switch().ip(&format!("link set {port} down"))?;
        wait::until(PATIENCE, "the other port is active", || {
            let active = active(lab, bond)?;
            ensure!(active == other, "{active}");
            Ok(())
        })?;
        wait::until(PATIENCE, "requests are answered again", || all_answer(lab))?;
        // TCP retransmits segments that were lost meanwhile.
        thread::sleep(A_WHILE);
        let (since, before) = (Instant::now(), forwarded(balancer)?);
        thread::sleep(A_WHILE);
        let (silent, ended) = (downloads.silent_since(since), downloads.ended());
        ensure!(silent == 0 && ended == 0, "{silent} get nothing by {other}, {ended} have ended");
        ensure!(forwarded(balancer)? > before, "acknowledgements go by the program");
    }
    for download in downloads.end()? {
        let end = download.end.as_ref();
        ensure!(end.is_ok(), "the download from {}: {:?}", download.host, download.end);
    }
    balancer.check()
}

/// The mode of the balancer's interface.
fn mode(balancer: &Balancer) -> Result<String> {
    let status = balancer.status()?;
    let interface = status.interfaces.first().context("an interface")?;
    ensure!(interface.name == INTERFACE && interface.attached, "{interface:?}");
    Ok(interface.mode.clone())
}

#[test]
fn connections_by_a_bond_in_native_mode_live_when_a_port_goes_down() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    bond(&lab, &lab.balancer, None)?;
    xdp::pass(lab.switch(), &second(&lab.balancer), &lab.pins().join("second"))?;
    let mut balancer = Balancer::new(&lab, &[WAY.service(&lab)])?;
    balancer.launch()?;
    ensure!(mode(&balancer)? == "native", "{}", balancer.log());
    connections_live(&lab, &mut balancer, INTERFACE)
}

#[test]
fn connections_by_a_vlan_on_a_bond_are_served_in_generic_mode_alone_and_live_when_a_port_goes_down()
-> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    bond(&lab, &lab.balancer, Some(5))?;
    let mut balancer = Balancer::new(&lab, &[WAY.service(&lab)])?;
    ensure!(balancer.launch().is_err(), "a VLAN has no native mode");
    let log = balancer.log();
    let named = log.contains(&format!("attach the balancer's program to {INTERFACE}"));
    ensure!(named && log.contains("`attach = \"auto\"`"), "{log}");

    let mut balancer = Balancer::new(&lab, &[WAY.service(&lab)])?;
    configure(&balancer)?;
    for port in ["bond0", "port0", "port1"] {
        lab.balancer.namespace.ethtool(port, &["gro", "off"])?;
    }
    balancer.launch()?;
    ensure!(mode(&balancer)? == "generic", "{}", balancer.log());
    connections_live(&lab, &mut balancer, "bond0")
}

/// The ports merge packets, as they do by default.
#[test]
fn connections_by_a_vlan_on_a_bond_are_served_by_tc_and_live_when_a_port_goes_down() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options { attach: "tc", ..Options::default() })?;
    bond(&lab, &lab.balancer, Some(5))?;
    for port in ["bond0", "port0", "port1"] {
        lab.balancer.namespace.ethtool(port, &["gro", "on"])?;
    }
    let mut balancer = Balancer::new(&lab, &[WAY.service(&lab)])?;
    balancer.launch()?;
    ensure!(mode(&balancer)? == "tc", "{}", balancer.log());
    connections_live(&lab, &mut balancer, "bond0")
}

/// The program is below the VLAN, so that the tag is in the metadata of received frames, and has to be on sent ones.
#[test]
fn connections_of_a_vlan_are_served_by_tc_on_the_bond_below_it() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options { attach: "tc", ..Options::default() })?;
    bond(&lab, &lab.balancer, Some(5))?;
    let services = [WAY.service(&lab)];
    let mut balancer = Balancer::new(&lab, &services)?;
    balancer.set_interfaces(&["bond0"]);
    balancer.configure(&services)?;
    balancer.launch()?;
    let interface = &balancer.status()?.interfaces[0];
    ensure!(interface.name == "bond0" && interface.mode == "tc", "{}", balancer.log());
    connections_live(&lab, &mut balancer, "bond0")
}
