//! The balancer at tc between real hosts: over links whose ends merge and cut packets, and beside XDP.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run, command,
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    process::Process,
    status::StatusExt as _,
    uploads::{self, PORT},
    wait,
    ways::{self, Way},
};
use lb_api::status::Backend;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an upload.
const UPLOAD: usize = 32 << 20;

/// A lab whose balancer is at tc.
fn at_tc() -> Options {
    Options { attach: "tc", ..Options::default() }
}

/// The balancer of such a lab.
fn balanced(lab: &Lab, services: &[Service]) -> Result<Balancer> {
    let balancer = Balancer::start(lab, services)?;
    let status = balancer.status()?;
    let modes: Vec<_> = status.interfaces.iter().map(|one| one.mode.as_str()).collect();
    ensure!(modes == ["tc"], "{modes:?}");
    Ok(balancer)
}

/// Each way but one by tunnel needs the backends' decapsulator, which is XDP: segmentation stays off.
#[test]
fn http_reaches_all_web_hosts_by_tc_in_each_mode() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let balancer = balanced(&lab, &Way::DIRECT_RETURN.map(|way| way.service(&lab)))?;
    ways::decapsulate(&lab)?;
    ways::all_reach_all(&lab, &balancer, 60)
}

/// The balancer of a lab at tc with a service of each family that takes uploads.
fn taking_uploads(lab: &Lab) -> Result<(Balancer, [Service; 2])> {
    let services = [Way::DsrV4, Way::DsrV6].map(|way| Service { port: PORT, ..way.service(lab) });
    let balancer = balanced(lab, &services)?;
    for service in &services {
        uploads::take(lab, SocketAddr::new(service.vip, PORT))?;
    }
    Ok((balancer, services))
}

#[test]
fn uploads_arrive_whole_where_links_merge_and_cut_packets() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    lab.with_offloads()?;
    let (balancer, services) = taking_uploads(&lab)?;
    for service in &services {
        let address = SocketAddr::new(service.vip, PORT);
        let before = lab.balancer.namespace.received(INTERFACE)?;
        for seed in 0..4 {
            uploads::send(&lab, address, UPLOAD, seed, PATIENCE * 4)
                .with_context(|| format!("{seed} to {address}"))?;
        }
        let frames = lab.balancer.namespace.received(INTERFACE)? - before;
        let status = balancer.status()?;
        let backends = &status.service(&service.name)?.backends;
        let sent = |count: fn(&Backend) -> u64| backends.values().map(count).sum::<u64>();
        let (packets, bytes) = (sent(|one| one.sent.packets), sent(|one| one.sent.bytes));
        // Segments of 1,448 bytes, and all of the bytes in them; far fewer frames came.
        ensure!(packets as usize >= 4 * UPLOAD / 1_448, "{packets} packets for {address}");
        ensure!(bytes as usize > 4 * UPLOAD + 4 * UPLOAD / 1_448 * 40, "{bytes} bytes");
        ensure!(frames < packets / 4, "{frames} frames for {packets} packets");
    }
    Ok(())
}

/// Where iperf3 serves.
const IPERF: u16 = 5_201;

/// One web host, for iperf3's server takes its streams from whom its first connection comes.
#[test]
fn iperf3_with_four_streams_goes_by_tc_in_merged_packets() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options { webs: 1, ..at_tc() })?;
    lab.with_offloads()?;
    let services = [Way::DsrV4, Way::DsrV6].map(|way| Service { port: IPERF, ..way.service(&lab) });
    let host = &lab.webs[0].host.namespace;
    let program = command::find("iperf3").context("iperf3 is not installed")?;
    let log = lab.folder().join("iperf3.log");
    let mut server = Process::start(host, &program, &["-s"], &log, lab.orphan())?;
    let balancer = balanced(&lab, &services)?;
    wait::until(PATIENCE, "iperf3 serves", || {
        server.check()?;
        let mut ss = host.command("ss");
        let listening = command::run(ss.args(["-Hltn", "sport", "=", &format!(":{IPERF}")]))?;
        ensure!(!listening.is_empty(), "{}", server.log());
        Ok(())
    })?;
    for service in &services {
        let sent = || -> Result<(u64, u64)> {
            let status = balancer.status()?;
            let backends = status.service(&service.name)?.backends.values();
            let sent = backends.map(|one| (one.sent.packets, one.sent.bytes));
            Ok(sent.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1)))
        };
        let frames = || lab.balancer.namespace.received(INTERFACE);
        let (had, had_frames) = (sent()?, frames()?);
        let (vip, port) = (service.vip.to_string(), IPERF.to_string());
        let mut client = lab.client.namespace.command(&program);
        client.args(["-J", "-c", &vip, "-p", &port, "-P", "4", "-t", "2"]);
        let output: Value = serde_json::from_str(&command::run(&mut client)?)?;
        let bytes =
            |end: &str| output["end"][end]["bytes"].as_u64().with_context(|| output.to_string());
        let (written, received) = (bytes("sum_sent")?, bytes("sum_received")?);
        let (now, now_frames) = (sent()?, frames()?);
        let (packets, carried, frames) = (now.0 - had.0, now.1 - had.1, now_frames - had_frames);
        // Data in the sender's buffers at the end does not come.
        ensure!(received > written / 10 * 9, "{received} bytes of {written} came to {vip}");
        ensure!(carried > received, "{carried} bytes in packets for {received} to {vip}");
        ensure!(frames < packets / 4, "{frames} frames for {packets} packets to {vip}");
    }
    Ok(())
}

/// MTU of the way to the backends. No less: IPv6 has no smaller (RFC 8200, 5).
const NARROW: u64 = 1_300;

/// The packets that are too big here are frames of many segments without checksums: the errors for them must be
/// right all the same.
#[test]
fn a_sender_whose_merged_packets_are_too_big_is_told_so_and_sends_smaller_ones() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    lab.with_offloads()?;
    lab.balancer.namespace.ip(&format!(
        "route replace 10.0.0.0/24 dev {INTERFACE} proto kernel scope link src 10.0.0.5 mtu lock {NARROW}\n\
         route replace fd00::/64 dev {INTERFACE} proto kernel metric 256 mtu lock {NARROW}"
    ))?;
    let (balancer, services) = taking_uploads(&lab)?;
    for service in &services {
        let address = SocketAddr::new(service.vip, PORT);
        let before = balancer.status()?.dropped("too_big_replied");
        uploads::send(&lab, address, UPLOAD, 1, PATIENCE * 4)
            .with_context(|| address.to_string())?;
        let replied = balancer.status()?.dropped("too_big_replied") - before;
        ensure!((1..100).contains(&replied), "{replied} errors for {address}");
        let mut ip = lab.client.namespace.command("ip");
        let shown = command::run(ip.args(["route", "get", &service.vip.to_string()]))?;
        ensure!(shown.contains(&format!("mtu {NARROW}")), "{shown}");
    }
    Ok(())
}

/// Segmentation stays off, as XDP is on the links at times. One packet is on its way at a time: a veth loses what its
/// ring has no room for, whatever the hook.
#[test]
fn a_reload_exchanges_xdp_and_tc_and_loses_no_packet() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let services = [Service { port: PORT, ..Way::DsrV4.service(&lab) }];
    let mut balancer = Balancer::start(&lab, &services)?;
    let address = SocketAddr::new(services[0].vip, PORT);
    for web in &lab.webs {
        let listener = web.host.namespace.enter(|| TcpListener::bind(address))??;
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream
                        .read_exact(&mut byte)
                        .and_then(|()| stream.write_all(&byte))
                        .is_ok()
                    {}
                });
            }
        });
    }
    let retransmitted = || -> Result<u64> {
        let mut nstat = lab.client.namespace.command("cat");
        let shown = command::run(nstat.arg("/proc/net/snmp"))?;
        let mut lines = shown.lines().filter(|line| line.starts_with("Tcp:"));
        let names = lines.next().context("names")?.split_whitespace();
        let values = lines.next().context("values")?.split_whitespace();
        let mut both = names.zip(values);
        let (_, count) = both.find(|(name, _)| *name == "RetransSegs").context("RetransSegs")?;
        count.parse().context("a count")
    };
    let before = retransmitted()?;
    let done = AtomicBool::new(false);
    let exchanges = thread::scope(|scope| -> Result<u32> {
        let client = scope.spawn(|| -> Result<u32> {
            let open = || TcpStream::connect_timeout(&address, PATIENCE);
            let mut stream = lab.client.namespace.enter(open)?.context("connect")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            let (mut count, mut byte) = (0, [0]);
            while !done.load(Ordering::Relaxed) {
                stream.write_all(&[count as u8])?;
                stream.read_exact(&mut byte)?;
                ensure!(byte == [count as u8], "another answer");
                count += 1;
            }
            Ok(count)
        });
        let mut exchange = || -> Result<()> {
            for (attach, mode) in
                [("tc", "tc"), ("xdp", "native"), ("tc", "tc"), ("auto", "native")]
            {
                balancer.set_attach(attach);
                balancer.configure(&services)?;
                let output = balancer.lbctl(&["config", "reload"])?;
                ensure!(output.contains("attach: eth0 "), "{output}");
                let status = balancer.status()?;
                let interface = &status.interfaces[0];
                ensure!(interface.mode == mode && interface.attached, "{attach}: {interface:?}");
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        };
        let exchanged = exchange();
        done.store(true, Ordering::Relaxed);
        let count = client.join().map_err(|_| anyhow!("the client panicked"))??;
        exchanged.map(|()| count)
    })?;
    ensure!(exchanges > 1_000, "only {exchanges} exchanges");
    let lost = retransmitted()? - before;
    ensure!(lost == 0, "{lost} segments were sent again in {exchanges} exchanges");
    Ok(())
}

#[test]
fn what_the_queueing_discipline_behind_tc_drops_is_in_the_metrics() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let services = [Service { port: PORT, ..Way::DsrV4.service(&lab) }];
    let balancer = balanced(&lab, &services)?;
    let address = SocketAddr::new(services[0].vip, PORT);
    uploads::take(&lab, address)?;
    let count = |by: &str| -> Result<u64> {
        let page = balancer.metrics()?;
        let name = "lb_egress_dropped_packets_total";
        let head = format!("{name}{{interface=\"{INTERFACE}\",by=\"{by}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&head));
        line.with_context(|| page.clone())?.trim().parse().context("a count")
    };
    let before = (count("qdisc")?, count("device")?);
    let mut tc = lab.balancer.namespace.command("tc");
    let slow = "root tbf rate 500kbit burst 2000 limit 3000";
    command::run(tc.args(["qdisc", "replace", "dev", INTERFACE]).args(slow.split(' ')))?;
    // A new discipline counts from 0.
    assert_eq!(count("qdisc")?, 0);
    let open = || TcpStream::connect_timeout(&address, PATIENCE);
    let mut stream = lab.client.namespace.enter(open)?.context("connect")?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Ten segments at once, of which two have room.
    stream.write_all(&[0; 14_480])?;
    wait::until(PATIENCE, "drops are counted", || {
        let dropped = count("qdisc")?;
        ensure!((1..50).contains(&dropped), "{dropped} after {before:?}");
        Ok(())
    })?;
    assert_eq!(count("device")?, before.1);
    // By XDP nothing passes the discipline.
    let mut balancer = balancer;
    balancer.set_attach("xdp");
    balancer.configure(&services)?;
    balancer.lbctl(&["config", "reload"])?;
    ensure!(!balancer.metrics()?.contains("lb_egress_dropped_packets_total"));
    Ok(())
}

#[test]
fn a_hook_that_can_not_be_had_is_refused_by_the_reload_and_what_runs_goes_on() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&at_tc())?;
    let services = [Way::DsrV4.service(&lab)];
    let mut balancer = balanced(&lab, &services)?;
    // A foreign XDP program.
    let pin = lab.pins().join("foreign");
    kit::xdp::pass(&lab.balancer.namespace, INTERFACE, &pin)?;
    balancer.set_attach("xdp");
    balancer.configure(&services)?;
    let refused = balancer.lbctl_output(&["config", "reload"])?;
    let output = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && output.contains("take it off"), "{output}");
    ensure!(output.contains("nothing was changed"), "{output}");
    let interface = &balancer.status()?.interfaces[0];
    ensure!(interface.mode == "tc" && interface.attached, "{interface:?}");
    Connection::open(&lab.client.namespace, Way::DsrV4.target(), PATIENCE)?.get("/")?.ok()?;
    Ok(())
}
