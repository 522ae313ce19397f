//! Probes of a VIP at one backend, against real nginx in network namespaces: what the checks
//! see, and that the node's own network notices nothing of it.

mod prober;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    can_run,
    lab::{Lab, Options},
    nginx,
    process::{Orphan, kill_all},
    udp::Echo,
    wait,
    ways::{Way, balanced, decapsulate},
};
use lb_health::vip::{Error, Network};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::timeout,
};

use self::prober::*;

#[test]
fn handshake_works_on_every_way_and_the_kernel_notices_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    decapsulate(&lab)?;
    let before = resets(&lab.balancer)?;
    for holds_the_vips in [true, false] {
        if !holds_the_vips {
            become_backup(&lab.balancer)?;
        }
        Prober::run(&lab, async |prober| {
            for way in Way::DIRECT_RETURN {
                for web in 0..lab.webs.len() {
                    let to = prober.path(&lab, way, web);
                    for _ in 0..10 {
                        let shaken = prober.handshake(&to).await;
                        shaken.with_context(|| format!("{way:?}, VIPs here: {holds_the_vips}"))?;
                    }
                }
            }
            Ok(())
        })?;
        all_closed(&lab)?;
    }
    assert_eq!(resets(&lab.balancer)?, before, "the kernel has answered");
    Ok(())
}

#[test]
fn only_the_backend_that_does_not_serve_refuses() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lab = Lab::new(&Options::default())?;
    decapsulate(&lab)?;
    lab.webs[0].nginx.kill()?;
    let before = resets(&lab.balancer)?;
    Prober::run(&lab, async |prober| {
        for way in Way::DIRECT_RETURN {
            let (dead, alive) = (prober.path(&lab, way, 0), prober.path(&lab, way, 1));
            assert_eq!(prober.handshake(&dead).await, Err(Error::Refused), "{way:?}");
            assert_eq!(prober.handshake(&alive).await, Ok(()), "{way:?}");
            let refused = timeout(SOON, prober.network.connect(&dead, 80)).await?;
            assert_eq!(refused.err(), Some(Error::Refused), "{way:?}");
        }
        Ok(())
    })?;
    let web = &mut lab.webs[0];
    web.nginx.restart(&web.host.namespace, Orphan::Dies)?;
    Prober::run(&lab, async |prober| {
        for way in Way::DIRECT_RETURN {
            assert_eq!(prober.handshake(&prober.path(&lab, way, 0)).await, Ok(()), "{way:?}");
        }
        Ok(())
    })?;
    assert_eq!(resets(&lab.balancer)?, before, "the kernel has answered");
    Ok(())
}

#[test]
fn backend_without_the_vip_is_silent() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    decapsulate(&lab)?;
    let lines: String = vips().iter().map(|vip| format!("addr del {vip} dev lo\n")).collect();
    lab.webs[0].host.namespace.ip(&lines)?;
    Prober::run(&lab, async |prober| {
        for way in Way::DIRECT_RETURN {
            assert_eq!(prober.brief(&prober.path(&lab, way, 0)).await, None, "{way:?}");
            assert_eq!(prober.handshake(&prober.path(&lab, way, 1)).await, Ok(()), "{way:?}");
        }
        Ok(())
    })
}

#[test]
fn backend_without_the_tunnel_is_silent_until_it_has_one() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let tunnels = Way::DIRECT_RETURN.into_iter().filter(|way| way.overhead() > 0);
    let tunnels: Vec<_> = tunnels.collect();
    Prober::run(&lab, async |prober| {
        for &way in &tunnels {
            assert_eq!(prober.brief(&prober.path(&lab, way, 0)).await, None, "{way:?}");
        }
        decapsulate(&lab)?;
        for &way in &tunnels {
            assert_eq!(prober.handshake(&prober.path(&lab, way, 0)).await, Ok(()), "{way:?}");
        }
        Ok(())
    })
}

#[test]
fn stream_brings_nginxs_page_and_a_long_body() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    decapsulate(&lab)?;
    let big = nginx::big();
    let before = resets(&lab.balancer)?;
    for holds_the_vips in [true, false] {
        if !holds_the_vips {
            become_backup(&lab.balancer)?;
        }
        Prober::run(&lab, async |prober| {
            for way in Way::DIRECT_RETURN {
                for (web, host) in lab.webs.iter().enumerate() {
                    let page = timeout(SOON, prober.get(&prober.path(&lab, way, web), "/")).await;
                    let page = page.with_context(|| format!("{way:?}"))??;
                    let text = String::from_utf8_lossy(&page);
                    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{way:?}: {text}");
                    assert!(text.ends_with(&format!("\r\n\r\n{}\n", host.host.name)), "{text}");
                }
                let long = timeout(6 * SOON, prober.get(&prober.path(&lab, way, 0), "/big")).await;
                let long = long.with_context(|| format!("{way:?}, the long body"))??;
                assert!(long.ends_with(&big), "{way:?}: {} bytes", long.len());
            }
            Ok(())
        })?;
        all_closed(&lab)?;
    }
    assert_eq!(resets(&lab.balancer)?, before, "the kernel has answered");
    Ok(())
}

#[test]
fn halves_of_a_stream_can_be_in_two_tasks() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let body: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    Prober::run(&lab, async |prober| {
        for way in [Way::DsrV4, Way::DsrV6] {
            let stream = prober.network.connect(&prober.path(&lab, way, 2), 80).await?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            let mut tasks = JoinSet::new();
            let body = body.clone();
            let length = body.len();
            tasks.spawn(async move {
                let head = format!(
                    "POST /upload HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\
                     Content-Length: {length}\r\n\r\n"
                );
                writer.write_all(head.as_bytes()).await?;
                writer.write_all(&body).await?;
                writer.flush().await
            });
            let mut answer = String::new();
            timeout(2 * SOON, reader.read_to_string(&mut answer)).await??;
            assert!(answer.ends_with(&format!("\r\n\r\n{length}\n")), "{answer}");
            tasks.join_next().await.context("the writer")???;
        }
        Ok(())
    })
}

#[test]
fn stream_takes_no_more_than_its_window_while_nobody_reads() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let web = &lab.webs[0].host.namespace;
    Prober::run(&lab, async |prober| {
        let mut stream = prober.network.connect(&prober.path(&lab, Way::DsrV4, 0), 80).await?;
        request(&mut stream, "/big").await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await?;
        // The backend has filled the window, and waits with the rest in its own queue.
        wait::until_true(SOON, "the backend waits", || Ok(queues(web)?.0 > 10_000))?;
        let mut rest = Vec::new();
        timeout(6 * SOON, stream.read_to_end(&mut rest)).await??;
        assert!(rest.ends_with(&nginx::big()));
        // One that is dropped in the midst of it is reset.
        let mut stream = prober.network.connect(&prober.path(&lab, Way::DsrV4, 0), 80).await?;
        request(&mut stream, "/big").await?;
        stream.read_exact(&mut first).await?;
        assert_eq!(connections(web, ESTABLISHED)?, 1);
        drop(stream);
        Ok(())
    })?;
    all_closed(&lab)
}

#[test]
fn end_of_what_is_written_reaches_the_server() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    Prober::run(&lab, async |prober| {
        let mut stream = prober.network.connect(&prober.path(&lab, Way::DsrV4, 0), 80).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        // nginx ends a connection without a request.
        timeout(SOON, stream.read_to_end(&mut answer)).await??;
        assert_eq!(answer, b"");
        let written = stream.write_all(b"GET").await;
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        Ok(())
    })?;
    all_closed(&lab)
}

#[test]
fn server_that_dies_resets_the_stream() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    Prober::run(&lab, async |prober| {
        let mut stream = prober.network.connect(&prober.path(&lab, Way::DsrV4, 0), 80).await?;
        request(&mut stream, "/big?rate=10k").await?;
        stream.read_exact(&mut [0; 1]).await?;
        // Unread data of an nginx that dies makes a reset of the end.
        request(&mut stream, "/").await?;
        let web = &lab.webs[0].host.namespace;
        wait::until_true(SOON, "the second request is there", || Ok(queues(web)?.1 > 0))?;
        kill_all(&lab.webs[0].host.namespace.pids()?)?;
        let mut rest = Vec::new();
        let end = timeout(SOON, stream.read_to_end(&mut rest)).await?;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        Ok(())
    })
}

#[test]
fn datagram_is_answered_and_a_closed_port_refuses() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    decapsulate(&lab)?;
    let payload: Vec<u8> = (0..1500_u32).map(|n| (n / 7) as u8).collect();
    for holds_the_vips in [true, false] {
        if !holds_the_vips {
            become_backup(&lab.balancer)?;
        }
        for way in Way::DIRECT_RETURN {
            let _echo = Echo::start(&lab, way.vip(), 5353)?;
            Prober::run(&lab, async |prober| {
                for (web, host) in lab.webs.iter().enumerate() {
                    let to = prober.path(&lab, way, web);
                    for question in [&b"even"[..], b"odd", b""] {
                        let answer = prober.network.exchange(&to, 5353, question);
                        let answer = timeout(SOON, answer).await;
                        let answer = answer.with_context(|| format!("{way:?}"))??;
                        let expected = [host.host.name.as_bytes(), b" ", question].concat();
                        assert_eq!(answer, expected, "{way:?}");
                    }
                    let refused = timeout(SOON, prober.network.exchange(&to, 5354, b"?")).await;
                    let refused = refused.with_context(|| format!("{way:?}, closed port"))?;
                    assert_eq!(refused, Err(Error::Refused), "{way:?}");
                }
                let to = prober.path(&lab, way, 0);
                // The answer is five bytes longer, and comes without a tunnel.
                let link = 1500 - if way.vip().is_ipv4() { 28 } else { 48 };
                let largest = link - way.overhead();
                let long = &payload[..largest.min(link - 5)];
                let answer = timeout(SOON, prober.network.exchange(&to, 5353, long)).await;
                let answer = answer.with_context(|| format!("{way:?}, the longest"))??;
                assert_eq!(&answer[5..], long, "{way:?}");
                let longer = prober.network.exchange(&to, 5353, &payload[..=largest]).await;
                assert!(matches!(longer, Err(Error::Local(_))), "{way:?}: {longer:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn questions_that_nobody_answers_leave_nothing_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    lab.webs[0].host.namespace.ip("addr del 10.0.0.100 dev lo")?;
    Prober::run(&lab, async |prober| {
        let silent = prober.path(&lab, Way::DsrV4, 0);
        // More than there are ports, so that one that is lost would be missed.
        for _ in 0..25 {
            let mut probes = JoinSet::new();
            for _ in 0..200 {
                let (network, path) = (prober.network.clone(), silent.clone());
                probes.spawn(async move {
                    let wait = Duration::from_millis(20);
                    timeout(wait, network.handshake(&path, 80)).await
                });
            }
            while let Some(answer) = probes.join_next().await {
                match answer? {
                    Err(_) => {}
                    Ok(answer) => bail!("{answer:?} is no silence"),
                }
            }
        }
        prober.handshake(&prober.path(&lab, Way::DsrV4, 1)).await?;
        Ok(())
    })
}

#[test]
fn question_that_is_given_up_is_taken_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let web = &lab.webs[0].host;
    // The backend does not know whom to answer to: its SYN-ACK waits.
    web.namespace.ip("neigh replace 10.0.0.5 lladdr 02:00:00:00:00:99 dev eth0 nud permanent\n")?;
    Prober::run(&lab, async |prober| {
        let to = prober.path(&lab, Way::DsrV4, 0);
        let half_open = || async {
            while connections(&web.namespace, SYN_RECEIVED)? != 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            answer = prober.network.handshake(&to, 80) => bail!("{answer:?} without a way back"),
            waited = timeout(SOON, half_open()) => waited.context("the SYN did not come")??,
        }
        all_closed(&lab)?;
        tokio::select! {
            stream = prober.network.connect(&to, 80) => bail!("{stream:?} without a way back"),
            waited = timeout(SOON, half_open()) => waited.context("the SYN did not come")??,
        }
        Ok(())
    })?;
    all_closed(&lab)
}

#[test]
fn node_without_an_address_says_so() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    Prober::run(&lab, async |prober| {
        lab.balancer.namespace.ip("addr del 10.0.0.5/24 dev eth0")?;
        let network = Network::new();
        network.set_vips(vips());
        let to = prober.path(&lab, Way::DsrV4, 0);
        let none = first(&network, &to).await?;
        let text = "this node has no IPv4 address of its own on eth0 to check from; use via = \
                    \"backend\"";
        assert_eq!(none, Some(Err(Error::Local(text.into()))));
        assert_eq!(network.handshake(&prober.path(&lab, Way::DsrV6, 0), 80).await, Ok(()));
        // Another one is found when there is one.
        lab.balancer.namespace.ip("addr add 10.0.0.6/24 dev eth0")?;
        let found = timeout(SOON, async {
            while network.handshake(&to, 80).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        found.await.context("10.0.0.6 is not used")
    })
}

#[test]
fn only_vips_that_are_known_can_be_asked() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    Prober::run(&lab, async |prober| {
        let (v4, v6) = (prober.path(&lab, Way::DsrV4, 0), prober.path(&lab, Way::DsrV6, 0));
        prober.handshake(&v4).await?;
        prober.network.set_vips(BTreeSet::from([v6.vip]));
        let unknown = prober.network.handshake(&v4, 80).await;
        let text = "10.0.0.100 is none of the VIPs that are known";
        assert_eq!(unknown, Err(Error::Local(text.into())));
        prober.handshake(&v6).await?;
        prober.network.set_vips(vips());
        prober.handshake(&v4).await?;
        Ok(())
    })
}

#[test]
fn without_the_capability_it_says_so() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    Prober::run(&lab, async |prober| {
        const NOBODY: libc::uid_t = 65_534;
        // SAFETY: the call touches no memory. Past the C library it changes this thread only, which
        // ends with the test.
        let gave_up = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        ensure!(gave_up == 0, "become nobody");
        let network = Network::new();
        network.set_vips(vips());
        let refused = network.handshake(&prober.path(&lab, Way::DsrV4, 0), 80).await;
        let Err(Error::Local(text)) = refused else { bail!("{refused:?}") };
        assert!(text.contains("CAP_NET_RAW"), "{text}");
        Ok(())
    })
}

#[test]
fn checks_pass_the_data_plane_at_work() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &Way::DIRECT_RETURN, "")?;
    Prober::run(&lab, async |prober| {
        for way in Way::DIRECT_RETURN {
            for (web, host) in lab.webs.iter().enumerate() {
                let to = prober.path(&lab, way, web);
                prober.handshake(&to).await.with_context(|| format!("{way:?}"))?;
                let page = timeout(SOON, prober.get(&to, "/")).await??;
                assert!(String::from_utf8_lossy(&page).ends_with(&format!("{}\n", host.host.name)));
            }
        }
        Ok(())
    })?;
    // They are no clients' packets.
    let status = balancer.status()?;
    assert_eq!(status.dropped.values().map(|count| count.packets).sum::<u64>(), 0);
    Ok(())
}

#[test]
fn thousands_of_questions_at_a_time_are_answered() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let before = resets(&lab.balancer)?;
    Prober::run(&lab, async |prober| {
        let mut probes = JoinSet::new();
        for n in 0..3_000 {
            let way = [Way::DsrV4, Way::DsrV6][n % 2];
            let (network, path) = (prober.network.clone(), prober.path(&lab, way, n % 3));
            probes.spawn(async move { timeout(4 * SOON, network.handshake(&path, 80)).await });
        }
        while let Some(answer) = probes.join_next().await {
            answer?.context("silence")??;
        }
        Ok(())
    })?;
    all_closed(&lab)?;
    assert_eq!(resets(&lab.balancer)?, before, "the kernel has answered");
    Ok(())
}
