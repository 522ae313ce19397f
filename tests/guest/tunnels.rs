//! Tunnels of the kernel, IP in IP and WireGuard, at both ends of the balancer at tc, over links that merge and cut packets.
//! Kernels of hosts may lack them; Debian's have them as modules.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run_lab,
    command::run,
    lab::{Host, INTERFACE, Lab, Options},
    namespace::Namespace,
    status::{ServiceExt as _, StatusExt as _},
    uploads::{self, PORT},
    ways::Way,
};
use lb_api::status::Backend;

use super::is_disposable;

/// A virtual machine without help of the processor is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an upload.
const UPLOAD: usize = 2 << 20;
/// Uploads of each service: to several hosts.
const UPLOADS: u64 = 6;
/// At most so many until one goes to a certain one of three.
const MOST: u64 = 60;
const WAYS: [Way; 3] = [Way::IpipV4, Way::IpipV6, Way::IpipV4InV6];

/// The services of these ways, which take uploads.
fn services(lab: &Lab) -> Result<[Service; 3]> {
    let services = WAYS.map(|way| Service { port: PORT, ..way.service(lab) });
    for service in &services {
        uploads::take(lab, SocketAddr::new(service.vip, PORT))?;
    }
    Ok(services)
}

/// Has the kernel of a host take packets out of tunnels to these addresses of it.
pub(super) fn take_tunnels(host: &Namespace, v4: &str, v6: &str) -> Result<()> {
    host.sysctl(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")])?;
    host.ip(&format!(
        "link add ipip0 type ipip local {v4} remote any\nlink set ipip0 up\n\
         link add ip6t0 type ip6tnl mode any local {v6} remote any\nlink set ip6t0 up"
    ))
    .context("make tunnels")?;
    Ok(())
}

/// Packets that the balancer has sent to the backends of a service, and their bytes.
fn sent(balancer: &Balancer, service: &Service) -> Result<(u64, u64)> {
    let status = balancer.status()?;
    let backends = &status.service(&service.name)?.backends;
    let sum = |count: fn(&Backend) -> u64| backends.values().map(count).sum::<u64>();
    Ok((sum(|one| one.sent.packets), sum(|one| one.sent.bytes)))
}

/// Uploads arrive whole, of which each packet is counted.
fn arrive_whole(lab: &Lab, balancer: &Balancer, services: &[Service]) -> Result<()> {
    for service in services {
        let address = SocketAddr::new(service.vip, PORT);
        let before = sent(balancer, service)?;
        for seed in 0..UPLOADS {
            uploads::send(lab, address, UPLOAD, seed, PATIENCE)
                .with_context(|| format!("{seed} to {address}"))?;
        }
        let after = sent(balancer, service)?;
        let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
        let expected = UPLOADS * UPLOAD as u64;
        ensure!(packets >= expected / 1_448, "{packets} packets to {address}");
        ensure!(bytes > expected + expected / 1_448 * 40, "{bytes} bytes to {address}");
    }
    Ok(())
}

/// Uploads go on until one has arrived at this backend.
fn reach(lab: &Lab, balancer: &Balancer, service: &Service, backend: IpAddr) -> Result<()> {
    let address = SocketAddr::new(service.vip, PORT);
    for seed in 0..MOST {
        if balancer.status()?.service(&service.name)?.backend(backend)?.new_flows > 0 {
            return Ok(());
        }
        uploads::send(lab, address, UPLOAD, seed, PATIENCE)
            .with_context(|| format!("{seed} to {address}, for {backend}"))?;
    }
    bail!("nothing went to {backend} by {}", service.name)
}

#[test]
fn merged_uploads_by_tc_arrive_whole_at_tunnels_of_the_kernel_and_at_a_backend_on_the_node()
-> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options { webs: 2, serve: true, attach: "tc", ..Options::default() })?;
    lab.with_offloads()?;
    for web in &lab.webs {
        let host = &web.host;
        take_tunnels(&host.namespace, &host.v4.to_string(), &host.v6.to_string())?;
    }
    let services = services(&lab)?;
    let balancer = Balancer::start(&lab, &services)?;
    let (frames, before) =
        (lab.balancer.namespace.received(INTERFACE)?, sent(&balancer, &services[0])?);
    arrive_whole(&lab, &balancer, &services[..1])?;
    let frames = lab.balancer.namespace.received(INTERFACE)? - frames;
    let packets = sent(&balancer, &services[0])?.0 - before.0;
    ensure!(frames < packets / 2, "{frames} frames for {packets} packets: nothing was merged");
    arrive_whole(&lab, &balancer, &services[1..])?;
    let own = |service: &Service| lab.balancer.address(service.backends[0]);
    services.iter().try_for_each(|service| reach(&lab, &balancer, service, own(service)))
}

/// A host's end of a WireGuard tunnel.
struct End<'a> {
    host: &'a Host,
    /// Where its interface listens.
    port: u16,
    /// The addresses that the other end may send from.
    addresses: String,
}

/// Joins two hosts by WireGuard, whose interface has this name on both. Packets for the addresses of an end go there.
fn wireguard(lab: &Lab, name: &str, ends: &[End<'_>; 2]) -> Result<()> {
    let keys = ends.each_ref().map(|end| -> Result<_> {
        let file = lab.folder().join(format!("{name}-{}", end.host.name));
        let key = run(end.host.namespace.command("wg").arg("genkey"))?;
        fs::write(&file, &key).context("write a key")?;
        let public =
            kit::command::run_with_input(end.host.namespace.command("wg").arg("pubkey"), &key)?;
        Ok((file, public.trim().to_owned()))
    });
    let [one, other] = keys;
    let keys = [one?, other?];
    for (number, end) in ends.iter().enumerate() {
        let peer = &ends[1 - number];
        end.host.namespace.ip(&format!("link add {name} type wireguard"))?;
        let mut wg = end.host.namespace.command("wg");
        wg.args(["set", name, "listen-port", &end.port.to_string(), "private-key"]);
        wg.arg(&keys[number].0).args(["peer", &keys[1 - number].1, "allowed-ips", &peer.addresses]);
        run(wg.args(["endpoint", &SocketAddr::new(peer.host.v4.into(), peer.port).to_string()]))?;
        end.host.namespace.ip(&format!("link set {name} up"))?;
    }
    Ok(())
}

/// The client's requests come by one tunnel, and a web host is behind another one. Answers go by the switch.
#[test]
fn uploads_by_wireguard_arrive_whole_at_hosts_on_the_link_and_behind_wireguard() -> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options { attach: "tc", ..Options::default() })?;
    lab.with_offloads()?;
    let (client, node) = (&lab.client, &lab.balancer);
    let vips = WAYS.map(|way| way.vip().to_string());
    let [from_client, from_node] = [format!("{},{}", client.v4, client.v6), vips.join(",")];
    wireguard(
        &lab,
        "wg0",
        &[
            End { host: client, port: 51_820, addresses: from_client },
            End { host: node, port: 51_820, addresses: from_node },
        ],
    )?;
    for way in WAYS {
        let source = client.address(way.vip());
        client.namespace.ip(&format!("route add {} dev wg0 src {source}", way.vip()))?;
    }
    let far = &lab.webs[0].host;
    let addresses = |last| format!("10.77.0.{last}/32,fd77::{last}/128");
    // Tunnels come from other addresses.
    let tunnels = format!("{},172.16.0.0/16,100::/64", addresses(1));
    wireguard(
        &lab,
        "wg1",
        &[
            End { host: node, port: 51_821, addresses: tunnels },
            End { host: far, port: 51_821, addresses: addresses(2) },
        ],
    )?;
    for (host, last) in [(node, 1), (far, 2)] {
        host.namespace.ip(&format!(
            "addr add 10.77.0.{last}/24 dev wg1\naddr add fd77::{last}/64 dev wg1 nodad"
        ))?;
    }
    for (number, web) in lab.webs.iter().enumerate() {
        let (v4, v6) = (web.host.v4.to_string(), web.host.v6.to_string());
        let (v4, v6) = if number == 0 { ("10.77.0.2", "fd77::2") } else { (&*v4, &*v6) };
        take_tunnels(&web.host.namespace, v4, v6)?;
    }
    let mut services = services(&lab)?;
    for service in &mut services {
        let far = if service.backends[0].is_ipv4() { "10.77.0.2" } else { "fd77::2" };
        service.backends[0] = far.parse()?;
    }
    let mut balancer = Balancer::new(&lab, &services)?;
    let text = fs::read_to_string(balancer.config()).context("read the configuration")?;
    let text = text.replace(&format!("[\"{INTERFACE}\"]"), &format!("[\"{INTERFACE}\", \"wg0\"]"));
    fs::write(balancer.config(), text).context("write the configuration")?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let before = node.namespace.received("wg0")?;
    arrive_whole(&lab, &balancer, &services)?;
    ensure!(node.namespace.received("wg0")? > before + 100, "they come by WireGuard");
    services.iter().try_for_each(|one| reach(&lab, &balancer, one, one.backends[0]))
}
