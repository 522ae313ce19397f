//! The egress of frames: an interface of its own, a bridge, VLANs and macvlans on it; and an interface that takes
//! no frames from XDP, which lbd must report.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run, can_run_lab, command,
    http::Connection,
    lab::{INTERFACE, Lab, Options, VIPS_V4, VIPS_V6},
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
    ways::{Way, balanced},
    xdp,
};

/// How long anything may take that the resolver sees when it reads all again.
const REFRESH: Duration = Duration::from_secs(25);
const PATIENCE: Duration = Duration::from_secs(5);
const REQUESTS: usize = 5;

/// The lab, and the service `web` on its first VIP with backends in 10.0.`net`.0/24.
fn lab(webs: u8) -> Result<Lab> {
    Lab::new(&Options { webs, ..Options::default() })
}

fn service(lab: &Lab, net: u8) -> Service {
    let backend = |n| IpAddr::from([10, 0, net, 10 + n]);
    let backends = (1..=lab.webs.len() as u8).map(backend).collect();
    Service::tcp("web", VIPS_V4[0], 80, "dsr", backends)
}

fn all_are_answered(lab: &Lab) -> Result<()> {
    let target = SocketAddr::new(IpAddr::V4(VIPS_V4[0]), 80);
    for n in 0..REQUESTS {
        Connection::open(&lab.client.namespace, target, PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n}"))?;
    }
    Ok(())
}

/// Puts the balancer's interface under a bridge that has its addresses.
fn bridge(lab: &Lab) -> Result<()> {
    let host = &lab.balancer;
    let v4 = VIPS_V4.map(|vip| format!("addr add {vip}/32 dev br0\n")).concat();
    let v6 = VIPS_V6.map(|vip| format!("addr add {vip}/128 dev br0 nodad\n")).concat();
    let lines = format!(
        "addr flush dev {INTERFACE}\nlink add br0 type bridge mcast_snooping 0\n\
         link set {INTERFACE} master br0\nlink set br0 up\n\
         addr add {}/24 dev br0\naddr add {}/64 dev br0 nodad\n{v4}{v6}",
        host.v4, host.v6
    );
    host.namespace.ip(&lines)?;
    host.namespace.ethtool("br0", &["tx", "off", "tso", "off", "gso", "off"])
}

/// Whether the kernel can make VLAN devices; prints it if not.
fn has_vlan(lab: &Lab) -> bool {
    let namespace = &lab.client.namespace;
    let has = namespace.ip("link add link lo name v0 type vlan id 1\nlink del v0").is_ok();
    if !has {
        eprintln!("SKIPPED: this kernel has no VLAN devices");
    }
    has
}

/// Gives the web hosts an address in another subnet, by a VLAN or not.
fn second_address(lab: &Lab, net: u8, vlan: Option<u16>) -> Result<()> {
    for (n, web) in (1..).zip(&lab.webs) {
        let namespace = &web.host.namespace;
        let device = match vlan {
            None => INTERFACE.to_owned(),
            Some(id) => {
                let device = format!("{INTERFACE}.{id}");
                let add = format!("link add link {INTERFACE} name {device} type vlan id {id}");
                namespace.ip(&format!("{add}\nlink set {device} up"))?;
                device
            }
        };
        namespace.ip(&format!("addr add 10.0.{net}.{}/24 dev {device}", 10 + n))?;
    }
    Ok(())
}

/// The interface that the first backend is reached by.
fn interface(balancer: &Balancer) -> Result<String> {
    let json: serde_json::Value =
        serde_json::from_str(&balancer.lbctl(&["-o", "json", "status"])?)?;
    let backends = json["services"]["web"]["backends"].as_object().context("backends")?;
    let first = backends.values().next().context("a backend")?;
    Ok(first["interface"].as_str().context("an interface")?.to_owned())
}

/// Waits until all backends are refused for a reason that contains `why`.
fn all_are_refused(balancer: &Balancer, why: &str) -> Result<()> {
    wait::until(REFRESH, "the backends are refused", || {
        for (address, backend) in &balancer.status()?.service("web")?.backends {
            let reason = backend.unusable.as_deref().unwrap_or_default();
            ensure!(reason.contains(why), "{address}: `{reason}`");
        }
        Ok(())
    })
}

fn all_are_usable(balancer: &Balancer) -> Result<()> {
    wait::until(REFRESH, "the backends are usable", || {
        for (address, backend) in &balancer.status()?.service("web")?.backends {
            ensure!(backend.unusable.is_none(), "{address}: {:?}", backend.unusable);
            ensure!(backend.slots > 0, "{address} has no slots");
        }
        Ok(())
    })
}

#[test]
fn bridge_with_the_nodes_address_is_left_by_its_port() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    bridge(&lab)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 0)])?;
    assert_eq!(interface(&balancer)?, INTERFACE);
    all_are_answered(&lab)?;
    if lab.balancer.namespace.ip("link set br0 type bridge vlan_filtering 1").is_err() {
        eprintln!("SKIPPED in part: this kernel's bridges have no vlan_filtering");
        return Ok(());
    }
    all_are_refused(&balancer, "br0, a bridge with vlan_filtering")?;
    lab.balancer.namespace.ip("link set br0 type bridge vlan_filtering 0")?;
    all_are_usable(&balancer)?;
    all_are_answered(&lab)
}

#[test]
fn vlan_on_a_bridge_is_tagged_and_left_by_the_port() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    if !has_vlan(&lab) {
        return Ok(());
    }
    bridge(&lab)?;
    second_address(&lab, 7, Some(7))?;
    lab.balancer
        .namespace
        .ip("link add link br0 name br0.7 type vlan id 7\nlink set br0.7 up\n\
         addr add 10.0.7.5/24 dev br0.7")?;
    let balancer = Balancer::start(&lab, &[service(&lab, 7)])?;
    assert_eq!(interface(&balancer)?, INTERFACE);
    all_are_answered(&lab)
}

#[test]
fn macvlan_on_a_bridge_is_left_by_the_port() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    bridge(&lab)?;
    second_address(&lab, 8, None)?;
    lab.balancer
        .namespace
        .ip("link add link br0 name mv0 type macvlan mode bridge\nlink set mv0 up\n\
         addr add 10.0.8.5/24 dev mv0")?;
    let balancer = Balancer::start(&lab, &[service(&lab, 8)])?;
    assert_eq!(interface(&balancer)?, INTERFACE);
    all_are_answered(&lab)
}

#[test]
fn veth_without_a_program_on_its_other_end_is_refused_until_it_has_one() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 0)])?;
    all_are_answered(&lab)?;
    lab.without_xdp()?;
    all_are_refused(&balancer, "the other end of veth eth0 takes no frames from XDP")?;
    xdp::pass(lab.switch(), &lab.balancer.name, &lab.pins().join("switch"))?;
    all_are_usable(&balancer)?;
    all_are_answered(&lab)
}

/// A second interface of the balancer on the switch, without a program on the switch's end.
fn second_interface(lab: &Lab) -> Result<()> {
    let namespace = lab.balancer.namespace.name();
    lab.switch().ip(&format!(
        "link add second type veth peer name eth1 netns {namespace}\n\
         link set second master br0\nlink set second up"
    ))?;
    // Else it answers for the VIPs by either interface.
    lab.balancer.namespace.sysctl(&[("ipv4/conf/all/arp_ignore", "1")])?;
    lab.balancer.namespace.ip("link set eth1 up")?;
    lab.balancer.namespace.ethtool("eth1", &["tx", "off", "tso", "off", "gso", "off"])
}

/// The lab in which the balancer reaches the web hosts in 10.0.9.0/24 by its second interface.
fn lab_by_second_interface(webs: u8) -> Result<Lab> {
    let lab = lab(webs)?;
    second_interface(&lab)?;
    second_address(&lab, 9, None)?;
    lab.balancer.namespace.ip("addr add 10.0.9.5/24 dev eth1")?;
    Ok(lab)
}

#[test]
fn frames_leave_by_another_interface_once_it_takes_them_from_xdp() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_by_second_interface(2)?;
    let mut balancer = Balancer::new(&lab, &[service(&lab, 9)])?;
    balancer.launch()?;
    all_are_refused(&balancer, "the other end of veth eth1 takes no frames from XDP")?;
    xdp::pass(lab.switch(), "second", &lab.pins().join("second"))?;
    all_are_usable(&balancer)?;
    assert_eq!(interface(&balancer)?, "eth1");
    all_are_answered(&lab)
}

#[test]
fn veth_takes_frames_of_another_interface_once_its_other_end_has_gro() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_by_second_interface(2)?;
    let mut balancer = Balancer::new(&lab, &[service(&lab, 9)])?;
    balancer.launch()?;
    all_are_refused(&balancer, "ethtool -K DEV gro on there")?;
    lab.switch().ethtool("second", &["gro", "on"])?;
    all_are_usable(&balancer)?;
    all_are_answered(&lab)?;
    until_egress(&balancer, &lab.webs[0].host.namespace.mac(INTERFACE)?, "forwards")
}

#[test]
fn vlan_on_another_interface_is_tagged_and_leaves_by_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    if !has_vlan(&lab) {
        return Ok(());
    }
    second_interface(&lab)?;
    xdp::pass(lab.switch(), "second", &lab.pins().join("second"))?;
    second_address(&lab, 7, Some(7))?;
    lab.balancer
        .namespace
        .ip("link add link eth1 name eth1.7 type vlan id 7\nlink set eth1.7 up\n\
         addr add 10.0.7.5/24 dev eth1.7")?;
    let balancer = Balancer::start(&lab, &[service(&lab, 7)])?;
    assert_eq!(interface(&balancer)?, "eth1");
    all_are_answered(&lab)
}

#[test]
fn vxlan_is_refused_with_its_kind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab(1)?;
    let namespace = &lab.balancer.namespace;
    namespace.ip(
        "link add vx0 type vxlan id 7 remote 10.0.0.11 dstport 4789\nlink set vx0 up\n\
         addr add 10.0.6.5/24 dev vx0\n\
         neigh replace 10.0.6.11 lladdr 02:00:00:00:00:11 dev vx0 nud permanent",
    )?;
    let mut balancer = Balancer::new(&lab, &[service(&lab, 6)])?;
    balancer.launch()?;
    all_are_refused(&balancer, "vx0 is of kind vxlan, which takes no frames from XDP")
}

const CHECK: &str = "[service.check]\ntype = \"tcp\"\ninterval = \"500ms\"";

/// The state of the way to a web host, and the events of kind `egress_...` so far.
fn egress(balancer: &Balancer, web: &str) -> Result<String> {
    let json: serde_json::Value =
        serde_json::from_str(&balancer.lbctl(&["-o", "json", "status"])?)?;
    let all = json["egress"].as_array().context("egress")?;
    let one = all.iter().find(|one| one["mac"] == web);
    let one = one.with_context(|| format!("{web} is not in {all:?}"))?;
    Ok(format!("{} {}", one["state"].as_str().context("a state")?, one["detail"]))
}

/// Waits until the way to a web host is in this state; `forwards`: frames that the program made have been seen to arrive.
pub fn until_egress(balancer: &Balancer, web: &str, state: &str) -> Result<()> {
    wait::until(REFRESH, &format!("the way to {web} is {state}"), || {
        let is = egress(balancer, web)?;
        ensure!(is.split(' ').next() == Some(state), "{is}");
        Ok(())
    })
    .with_context(|| format!("lbd wrote:\n{}", balancer.log()))
}

/// Loses the packets to a host that the program has sent, and no others: each has lost a hop.
const LOSS: &str = "table ip loss {\nchain in {\ntype filter hook prerouting priority -300\n\
                    ip ttl 63 drop\n}\n}\n";

#[test]
fn what_the_program_sends_and_is_lost_is_a_fault_of_the_egress_while_checks_are_green() -> Result<()>
{
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    let macs = lab.webs.iter().map(|web| web.host.namespace.mac(INTERFACE));
    let macs = macs.collect::<Result<Vec<_>>>()?;
    let lossy = &lab.webs[0].host.namespace;
    command::run_with_input(lossy.command("nft").args(["-f", "-"]), LOSS)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 0).with(CHECK)])?;
    until_egress(&balancer, &macs[0], "egress_not_forwarding")?;
    until_egress(&balancer, &macs[1], "forwards")?;
    let status = balancer.status()?;
    let backend = status.service("web")?.backend(lab.webs[0].host.v4)?;
    assert!(backend.is_up(), "the check is green: {backend:?}");
    let shown = balancer.lbctl(&["status"])?;
    assert!(shown.contains("egress_not_forwarding"), "{shown}");
    let event = || balancer.lbctl(&["events", "--kind", "egress_not_forwarding"]);
    wait::until(PATIENCE, "there is an event", || {
        ensure!(event()?.contains(&macs[0]), "{}", event()?);
        Ok(())
    })?;
    assert!(!event()?.contains(&macs[1]), "{}", event()?);

    command::run(lossy.command("nft").args(["delete", "table", "ip", "loss"]))?;
    until_egress(&balancer, &macs[0], "forwards")?;
    all_are_answered(&lab)?;
    let status = balancer.status()?;
    for backend in status.service("web")?.backends.values() {
        assert_eq!(backend.pins, 0, "a question makes no pin: {backend:?}");
    }
    let new_flows = status.service("web")?.backends.values().map(|one| one.new_flows).sum::<u64>();
    assert_eq!(new_flows, REQUESTS as u64, "questions open no flow");
    let suspected = balancer.lbctl(&["events", "--kind", "backend_suspect"])?;
    assert!(!suspected.contains("10.0.0."), "nor are they taken for silence: {suspected}");
    Ok(())
}

#[test]
fn questions_of_the_program_are_answered_on_every_way() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) =
        balanced(&Options { webs: 1, ..Options::default() }, &Way::DIRECT_RETURN, "")?;
    let mac = lab.webs[0].host.namespace.mac(INTERFACE)?;
    until_egress(&balancer, &mac, "forwards")
}

#[test]
fn questions_of_the_program_leave_by_another_interface() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_by_second_interface(1)?;
    xdp::pass(lab.switch(), "second", &lab.pins().join("second"))?;
    let balancer = Balancer::start(&lab, &[service(&lab, 9)])?;
    until_egress(&balancer, &lab.webs[0].host.namespace.mac(INTERFACE)?, "forwards")
}

/// Frames that were lost after the program had sent them, from `lbctl status`: the interface, the reason, the number.
fn tx_errors(balancer: &Balancer) -> Result<Vec<(String, String, u64)>> {
    let json: serde_json::Value =
        serde_json::from_str(&balancer.lbctl(&["-o", "json", "status"])?)?;
    let all = json["tx_errors"].as_array().cloned().unwrap_or_default();
    let text = |one: &serde_json::Value, key| one[key].as_str().unwrap_or_default().to_owned();
    let one = |one| (text(one, "egress"), text(one, "reason"), one["frames"].as_u64().unwrap_or(0));
    Ok(all.iter().map(one).collect())
}

/// Requests fail while `lbd` is stopped and `lose` has made the egress lose frames; then `lbd` counts them as drops
/// for this reason.
fn lost_frames_are_drops(
    lab: &Lab,
    balancer: &Balancer,
    (egress, reason): (&str, &str),
    lose: impl FnOnce() -> Result<()>,
) -> Result<()> {
    all_are_answered(lab)?;
    let status = balancer.status()?;
    assert_eq!(status.dropped(reason), 0, "{:?}", tx_errors(balancer)?);
    ensure!(status.dropped.contains_key(reason), "lbd does not count:\n{}", balancer.log());
    // It would see to it that nothing is sent there.
    balancer.signal(libc::SIGSTOP)?;
    lose()?;
    let target = SocketAddr::new(IpAddr::V4(VIPS_V4[0]), 80);
    let is_lost = wait::until(REFRESH, "frames are lost", || {
        let answered = Connection::open(&lab.client.namespace, target, Duration::from_secs(2));
        ensure!(answered.is_err(), "a connection was opened");
        Ok(())
    });
    balancer.signal(libc::SIGCONT)?;
    is_lost?;
    wait::until(REFRESH, "lost frames are counted", || {
        let (status, errors) = (balancer.status()?, tx_errors(balancer)?);
        let of_it = |one: &&(String, String, u64)| one.0 == egress && one.1 == reason && one.2 > 0;
        ensure!(errors.iter().any(|one| of_it(&one)), "{errors:?}");
        ensure!(status.dropped(reason) > 0, "{:?}", status.dropped);
        Ok(())
    })?;
    let shown = balancer.lbctl(&["status"])?;
    ensure!(shown.contains(&format!("{reason}: {egress} did not transmit")), "{shown}");
    Ok(())
}

#[test]
fn frames_that_the_driver_does_not_transmit_are_drops_with_a_reason() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let lab = lab(2)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 0)])?;
    lost_frames_are_drops(&lab, &balancer, (INTERFACE, "tx_failed"), || {
        xdp::detach(&lab.pins().join("switch"))
    })
}

#[test]
fn frames_that_another_interface_does_not_take_are_drops_with_a_reason() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_by_second_interface(2)?;
    let pin = lab.pins().join("second");
    xdp::pass(lab.switch(), "second", &pin)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 9)])?;
    assert_eq!(interface(&balancer)?, "eth1");
    lost_frames_are_drops(&lab, &balancer, ("eth1", "redirect_failed"), || xdp::detach(&pin))?;
    let counted = balancer.metrics()?;
    let line = counted.lines().find(|line| line.contains("redirect_failed"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    ensure!(value.is_some_and(|frames| frames != "0"), "{line:?}");
    assert_eq!(balancer.status()?.dropped("tx_failed"), 0);
    Ok(())
}

#[test]
fn frames_to_an_interface_that_is_gone_are_drops_under_its_name() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_by_second_interface(2)?;
    xdp::pass(lab.switch(), "second", &lab.pins().join("second"))?;
    let balancer = Balancer::start(&lab, &[service(&lab, 9)])?;
    lost_frames_are_drops(&lab, &balancer, ("eth1", "redirect_failed"), || {
        lab.balancer.namespace.ip("link del eth1").map(drop)
    })?;
    let shown = balancer.lbctl(&["status"])?;
    ensure!(shown.contains("there is no such interface"), "{shown}");
    Ok(())
}

#[test]
fn veth_whose_other_end_has_gro_alone_loses_what_comes_back_by_it_and_says_so() -> Result<()> {
    /// More than the ring of the other end has room for, which is not emptied.
    const SYNS: usize = 2_000;
    if !can_run() {
        return Ok(());
    }
    let lab = lab(2)?;
    let balancer = Balancer::start(&lab, &[service(&lab, 0)])?;
    all_are_answered(&lab)?;
    lab.without_xdp()?;
    lab.switch().ethtool(&lab.balancer.name, &["gro", "on"])?;
    // The device reports that it takes frames, and a test run of the program sends as XDP_REDIRECT does.
    all_are_usable(&balancer)?;
    until_egress(&balancer, &lab.webs[0].host.namespace.mac(INTERFACE)?, "forwards")?;
    // Its own frames have the ring emptied, too.
    balancer.signal(libc::SIGSTOP)?;
    let target = SocketAddr::new(IpAddr::V4(VIPS_V4[0]), 80);
    lab.client.namespace.enter(|| {
        for _ in 0..SYNS {
            let _ = TcpStream::connect_timeout(&target, Duration::from_millis(1));
        }
    })?;
    balancer.signal(libc::SIGCONT)?;
    wait::until(REFRESH, "lost frames are counted", || {
        let errors = tx_errors(&balancer)?;
        ensure!(errors.iter().any(|one| one.1 == "tx_failed" && one.2 > 0), "{errors:?}");
        Ok(())
    })?;
    let shown = balancer.lbctl(&["status"])?;
    ensure!(shown.contains("its queue was full"), "{shown}");
    Ok(())
}
