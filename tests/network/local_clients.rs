//! Clients on the balancer's own node: sockets get a backend in mode `nat` for its VIP.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run, command,
    http::Connection,
    lab::Lab,
    status::{ServiceExt as _, StatusExt as _},
    udp::{Echo, Probe},
    wait,
    wide::table_of_nat,
};
use lb_model::{backend_address::BackendAddress, seen::Condition};

use crate::nat::{FAMILIES, PATIENCE, PORT, lab_of_gateways, service};

/// The port of the UDP service, and that of its backends.
const UDP: [u16; 2] = [5300, 5353];
/// A port of a range that the backends serve.
const RANGE: u16 = 80;

/// This process in a control group of its own, so that no other process of the machine gets what a test attaches there.
struct ControlGroup {
    mounted: PathBuf,
    own: PathBuf,
    /// Where it came from.
    before: PathBuf,
}

impl ControlGroup {
    fn enter() -> Result<Self> {
        let mounted = std::env::temp_dir().join(format!("lbt-cgroup-{}", process::id()));
        fs::create_dir_all(&mounted)?;
        command::run(Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&mounted))?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let path =
            groups.lines().find_map(|line| line.strip_prefix("0::/")).context("version 2")?;
        let before = mounted.join(path);
        let own = mounted.join(format!("lbt-{}", process::id()));
        let group = Self { mounted, own, before };
        fs::create_dir(&group.own)?;
        group.go(&group.own)?;
        Ok(group)
    }

    fn go(&self, to: &Path) -> io::Result<()> {
        fs::write(to.join("cgroup.procs"), process::id().to_string())
    }

    /// As configurations name it.
    fn setting(&self) -> String {
        format!("local_cgroup = \"{}\"\n", self.own.display())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = self.go(&self.before);
        // What was started here has ended by now, or goes where this process goes.
        for process in fs::read_to_string(self.own.join("cgroup.procs")).unwrap_or_default().lines()
        {
            let _ = fs::write(self.before.join("cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.own);
        let _ = command::run(Command::new("umount").arg(&self.mounted));
        let _ = fs::remove_dir(&self.mounted);
    }
}

/// The VIPs of the ranges.
fn other_vips() -> [IpAddr; 2] {
    [kit::lab::VIPS_V4[1].into(), kit::lab::VIPS_V6[1].into()]
}

/// The services of both families: HTTP at another port, UDP, and a range.
fn tables(lab: &Lab, settings: &str) -> String {
    let mut services = String::from(settings);
    for (way, vip) in FAMILIES.into_iter().zip(other_vips()) {
        let mut echo = service(lab, way);
        echo.name = format!("echo-{}", way.name());
        echo.protocol = "udp";
        echo.port = UDP[0];
        echo.settings = format!("target_port = {}\ncheck = {{ type = \"none\" }}\n", UDP[1]);
        let check = "check = { type = \"tcp\", interval = \"200ms\" }";
        services += &service(lab, way).with(check).toml();
        services += &echo.toml();
        let (name, vip) = (format!("range-{}", way.name()), vip.to_string());
        services += &table_of_nat(lab, &name, (&vip, "\"80-89\""), way, 3);
    }
    services
}

/// A balancer that has the VIPs itself, as the Active node of a pair has.
fn balanced(attach: &'static str, settings: &str) -> Result<(Lab, Balancer)> {
    let lab = lab_of_gateways(attach)?;
    let own = |vip: IpAddr| format!("addr add {vip} dev lo\n");
    let vips = kit::lab::VIPS_V4.map(|vip| own(vip.into())).concat()
        + &kit::lab::VIPS_V6.map(|vip| own(vip.into())).concat();
    lab.balancer.namespace.ip(&vips)?;
    let mut balancer =
        Balancer::on(&lab, &lab.balancer, &[] as &[Service], &tables(&lab, settings))?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok((lab, balancer))
}

fn open(lab: &Lab, to: SocketAddr) -> Result<Connection> {
    Connection::open(&lab.balancer.namespace, to, PATIENCE)
}

fn is_refused(lab: &Lab, to: SocketAddr) -> Result<()> {
    Connection::refused(&lab.balancer.namespace, to, PATIENCE)
}

/// Sockets of the node that the backends of a service were given to.
fn local_sockets(balancer: &Balancer, service: &str) -> Result<u64> {
    let status = balancer.status()?;
    let backends = status.service(service)?.backends.values();
    Ok(backends.filter_map(|backend| backend.local_sockets).sum())
}

/// The hosts that answer new connections of the balancer's own.
fn serving(lab: &Lab, to: SocketAddr) -> Result<BTreeSet<String>> {
    (0..40)
        .map(|_| {
            let mut open = open(lab, to)?;
            ensure!(open.peer_addr()? == to, "the peer is the VIP: {}", open.peer_addr()?);
            open.get("/")?.backend()
        })
        .collect()
}

fn names(lab: &Lab) -> BTreeSet<String> {
    lab.webs.iter().map(|web| web.host.name.clone()).collect()
}

/// Datagrams of a socket without a peer: each is answered by the VIP, and all by one host.
fn datagrams(lab: &Lab, to: SocketAddr, from: IpAddr) -> Result<()> {
    let socket = lab.balancer.namespace.enter(|| UdpSocket::bind((from, 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut hosts = BTreeSet::new();
    for n in 0..20_u8 {
        socket.send_to(format!("{n} ").as_bytes(), to)?;
        let mut answer = [0; 100];
        let (length, from) = socket.recv_from(&mut answer)?;
        ensure!(from == to, "{from} answers in place of {to}");
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let host = names(lab).into_iter().find(|name| answer.contains(name)).context(answer)?;
        hosts.insert(host);
    }
    ensure!(hosts.len() == 1, "{hosts:?}");
    Ok(())
}

fn all_protocols_are_served(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let _echoes =
        FAMILIES.map(|way| Echo::start_at(lab, |web| SocketAddr::new(way.backend(web), UDP[1])));
    for (way, vip) in FAMILIES.into_iter().zip(other_vips()) {
        let at = || way.name();
        ensure!(serving(lab, way.target()).with_context(at)? == names(lab), "{}", at());
        ensure!(serving(lab, SocketAddr::new(vip, RANGE)).with_context(at)? == names(lab));
        let echo = SocketAddr::new(way.vip(), UDP[0]);
        let any: IpAddr = if way.vip().is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        datagrams(lab, echo, any).with_context(at)?;
        let probe = Probe::start(&lab.balancer.namespace, echo, 10, Duration::from_millis(2))?;
        thread::sleep(Duration::from_millis(300));
        probe.finish()?.check().with_context(|| format!("{}, connected sockets", at()))?;
    }
    // A socket of IPv6 that talks IPv4.
    let IpAddr::V4(vip) = FAMILIES[0].vip() else { anyhow::bail!("a VIP of IPv4") };
    let mapped = vip.to_ipv6_mapped();
    ensure!(serving(lab, SocketAddr::new(mapped.into(), 80))? == names(lab));
    datagrams(lab, SocketAddr::new(mapped.into(), UDP[0]), Ipv6Addr::UNSPECIFIED.into())?;
    let local = |name: &str| local_sockets(balancer, name);
    ensure!(local(FAMILIES[0].name())? == 80, "two rounds of 40 connections");
    ensure!(local(FAMILIES[1].name())? == 40);
    // One without a peer is given a host once; ten have one each.
    ensure!(local(&format!("echo-{}", FAMILIES[0].name()))? == 12);
    let metrics = balancer.metrics()?;
    ensure!(metrics.contains("lb_backend_local_sockets_total{"), "{metrics}");
    // Nothing of that came to the interfaces, where the program would have refused it or counted it.
    ensure!(balancer.status()?.dropped("no_backend") == 0);
    Ok(())
}

#[test]
fn processes_of_the_node_reach_each_service_of_mode_nat_by_its_vip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let group = ControlGroup::enter()?;
    for attach in ["xdp", "tc"] {
        let (lab, balancer) = balanced(attach, &group.setting())?;
        all_protocols_are_served(&lab, &balancer).with_context(|| attach)?;
    }
    Ok(())
}

/// The hooks outlive the daemon; connections keep their backend, and new ones go where those of other clients go.
#[test]
fn connections_of_the_node_outlive_a_drain_and_a_restart_of_lbd() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let group = ControlGroup::enter()?;
    let (mut lab, mut balancer) = balanced("xdp", &group.setting())?;
    let way = FAMILIES[0];
    let mut older = Vec::new();
    for _ in 0..12 {
        let mut open = open(&lab, way.target())?;
        let host = open.get("/")?.backend()?;
        older.push((open, host));
    }
    let mut stay = |when: &str| -> Result<()> {
        for (open, host) in &mut older {
            let now = open.get("/").and_then(kit::http::Response::backend);
            ensure!(now.with_context(|| when.to_owned())? == *host, "{when}");
            ensure!(open.peer_addr()? == way.target(), "{when}: {}", open.peer_addr()?);
        }
        Ok(())
    };
    let drained_host = lab.webs[0].host.name.clone();
    let drained = lab.webs[0].host.v4.to_string();
    balancer.lbctl(&["backend", "drain", way.name(), &drained])?;
    let others: BTreeSet<_> =
        names(&lab).into_iter().filter(|name| *name != drained_host).collect();
    ensure!(serving(&lab, way.target())? == others, "none but the drained one");
    stay("drained")?;
    balancer.stop()?;
    ensure!(serving(&lab, way.target())? == others, "without lbd");
    stay("without lbd")?;
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(serving(&lab, way.target())? == others, "after a restart");
    stay("after a restart")?;
    // What no backend can serve is refused at once, by the node itself.
    for web in &mut lab.webs {
        web.nginx.stop()?;
    }
    wait::until(PATIENCE, "all are down", || {
        let status = balancer.status()?;
        let backends = status.service(way.name())?.backends.values();
        let up = |backend: &&lb_api::status::Backend| backend.condition == Condition::Up;
        ensure!(backends.filter(up).count() == 0);
        Ok(())
    })?;
    is_refused(&lab, way.target())
}

/// Connections of the node to the backend's own address do not count.
#[test]
fn a_drain_waits_for_the_connections_of_the_nodes_processes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let group = ControlGroup::enter()?;
    let lab = lab_of_gateways("xdp")?;
    let quick = "idle_timeout = \"3s\"\ndrain_silence = \"1s\"\n";
    let check = "check = { type = \"tcp\", interval = \"200ms\" }";
    let services = FAMILIES.map(|way| service(&lab, way).with(check).with(quick).toml());
    let tables = group.setting() + &services.concat();
    let mut balancer = Balancer::on(&lab, &lab.balancer, &[] as &[Service], &tables)?;
    balancer.confine();
    balancer.launch()?;
    balancer.wait_usable()?;
    for way in FAMILIES {
        let of_host = || -> Result<Connection> {
            loop {
                let mut open = open(&lab, way.target())?;
                if open.get("/")?.backend()? == lab.webs[0].host.name {
                    return Ok(open);
                }
            }
        };
        let mut kept = [of_host()?, of_host()?];
        let at = BackendAddress::from(way.backend(&lab.webs[0])).or_port(PORT.try_into().ok());
        let direct = open(&lab, SocketAddr::new(at.ip, PORT))?;
        let change = |words: &[&str]| {
            balancer.lbctl_output(&[&["backend"], words, &[way.name(), &at.to_string()]].concat())
        };
        change(&["drain"])?;
        thread::sleep(Duration::from_secs(6));
        let waited = change(&["drain", "--wait", "--timeout", "1s"])?;
        let said = String::from_utf8(waited.stderr)?;
        ensure!(waited.status.code() == Some(1), "{}: {said}", way.name());
        ensure!(said.contains("still drains: 2 connections of this node"), "{said}");
        for open in &mut kept {
            ensure!(open.get("/")?.backend()? == lab.webs[0].host.name);
        }
        let [one, other] = kept;
        drop(one);
        wait::until(PATIENCE, "one is left", || {
            let backend = balancer.status()?.service(way.name())?.backend(at)?.clone();
            let drain = backend.drain.context("it drains")?;
            ensure!(drain.local_connections == 1 && backend.has_flows(), "{backend:?}");
            Ok(())
        })?;
        drop(other);
        let waited = change(&["drain", "--wait", "--timeout", "5s"])?;
        ensure!(waited.status.success(), "{}", String::from_utf8(waited.stderr)?);
        drop(direct);
    }
    Ok(())
}

#[test]
fn only_processes_of_the_nodes_namespace_and_control_group_are_given_backends() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let group = ControlGroup::enter()?;
    let (lab, mut balancer) = balanced("xdp", &group.setting())?;
    let way = FAMILIES[0];
    ensure!(serving(&lab, way.target())? == names(&lab));
    ensure!(local_sockets(&balancer, way.name())? == 40);
    // Of another namespace, though the control group is the same: by packets, as any client.
    let mut client = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
    client.get("/")?.backend()?;
    ensure!(
        local_sockets(&balancer, way.name())? == 40,
        "a client's connection is none of the node's"
    );
    // Of another control group: the VIP is the node's own, where nothing listens.
    group.go(&group.before)?;
    is_refused(&lab, way.target())?;
    group.go(&group.own)?;
    ensure!(serving(&lab, way.target())? == names(&lab));
    // Switched off, and detached.
    balancer.stop()?;
    balancer.set_more(&tables(&lab, "local_clients = false\n"));
    balancer.configure(&[])?;
    balancer.launch()?;
    balancer.wait_usable()?;
    is_refused(&lab, way.target())?;
    balancer.stop()?;
    balancer.set_more(&tables(&lab, &group.setting()));
    balancer.configure(&[])?;
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(serving(&lab, way.target())? == names(&lab));
    balancer.stop()?;
    balancer.lbctl(&["detach", "--pin-dir", &balancer.pins().display().to_string(), "--yes"])?;
    is_refused(&lab, way.target())
}
