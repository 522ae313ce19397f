//! A client that floods the listener, or is slow on purpose, disturbs no other.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{can_run, http::Connection};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    PATIENCE, PORT, WAY, client,
    looking::{HASH, TOKEN},
    testbed,
};

/// Connections that send nothing.
const IDLE: usize = 10_000;
/// Connections that never finish a request.
const SLOW: usize = 300;
/// The limit of connections in the configuration.
const MOST: usize = 64;
/// Descriptors that `lbd` has for other things, and room for those that it is about to close.
const OTHERS: usize = 300;

#[test]
fn who_floods_the_listener_hurts_nobody() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("limit of descriptors")?;
    let needed = (IDLE + SLOW + 1_000) as u64;
    ensure!(hard >= needed, "{needed} descriptors are needed, and {hard} allowed");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(needed), hard).context("more of them")?;
    let (lab, mut balancer) = testbed(|lab| {
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\nconnections = {MOST}\n\
             [[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\n\
             interval = \"100ms\"\naddresses = [\"10.77.77.77/32\"]\n",
            lab.balancer.v4
        )
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let to: SocketAddr = (lab.balancer.v4, PORT).into();
    let (attacker, other) = (&lab.client.namespace, &lab.webs[0].host.namespace);
    let descriptors = format!("/proc/{}/fd", balancer.pid()?);
    let descriptors = || Ok::<_, anyhow::Error>(fs::read_dir(&descriptors)?.count());
    let before = descriptors()?;

    let idle = client::open(attacker, to, IDLE, "")?;
    ensure!(idle.len() > IDLE * 9 / 10, "{} connections came about", idle.len());
    let mut slow =
        client::open(attacker, to, SLOW, "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: ")?;
    let over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                for stream in &mut slow {
                    // One that was closed for another can't be written to.
                    let _ = stream.write(b"x");
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        scope.spawn(|| {
            while !over.load(Relaxed) {
                // And ever new ones.
                let _ = client::open(attacker, to, 50, "GET / HTTP/1.1\r\n");
            }
        });
        let report = (|| {
            for round in 0..20 {
                let started = Instant::now();
                for path in ["/v1/status", "/healthz", "/readyz"] {
                    let answer = client::get(other, to, path, "")?;
                    ensure!(answer.status == 200, "{path} in round {round}: {answer:?}");
                }
                balancer.lbctl(&["status"])?;
                let mut web = Connection::open(attacker, WAY.target(), PATIENCE)?;
                ensure!(web.get("/")?.status == 200, "forwarding goes on");
                let took = started.elapsed();
                ensure!(took < Duration::from_secs(5), "round {round} took {took:?}");
                let now = descriptors()?;
                ensure!(now <= before + MOST + OTHERS, "{now} descriptors, {before} before");
            }
            Ok(())
        })();
        over.store(true, Relaxed);
        report
    });
    report.with_context(|| format!("lbd wrote:\n{}", balancer.log()))?;
    let log = balancer.log();
    ensure!(!log.contains("and was active"), "it stayed Active throughout:\n{log}");
    ensure!(log.contains("is active: this node holds"), "it became Active:\n{log}");
    drop((idle, slow));
    Ok(())
}

#[test]
fn who_guesses_passwords_keeps_nobody_out() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        let folder = lab.folder().display();
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\nconnections = {MOST}\n\
             basic_auth_file = \"{folder}/http.users\"\nbearer_token_file = \"{folder}/http.token\"\n",
            lab.balancer.v4
        )
    })?;
    // To compare a password with it takes long; its password is unknown.
    let hash = HASH.replace("$05$", "$13$");
    fs::write(lab.folder().join("http.users"), format!("ann:{hash}\n"))?;
    fs::write(lab.folder().join("http.token"), format!("{TOKEN}\n"))?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let to: SocketAddr = (lab.balancer.v4, PORT).into();
    let (attacker, other) = (&lab.client.namespace, &lab.webs[0].host.namespace);
    // `ann:wrong`
    let guess =
        "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic YW5uOndyb25n\r\n\r\n";
    let guesses = client::open(attacker, to, 2 * MOST, guess)?;
    ensure!(guesses.len() == 2 * MOST, "{} came about", guesses.len());
    for round in 0..5 {
        let started = Instant::now();
        let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
        for (path, fields) in [("/v1/status", &*bearer), ("/metrics", &bearer), ("/healthz", "")] {
            let answer = client::get(other, to, path, fields)?;
            ensure!(answer.status == 200, "{path} in round {round}: {answer:?}");
        }
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(5), "round {round} took {took:?}");
    }
    drop(guesses);
    Ok(())
}

#[test]
fn who_never_finishes_a_request_or_reads_no_answer_is_let_go() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\nstreams = 2\n",
            lab.balancer.v4
        )
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let (from, to) = (&lab.client.namespace, (lab.balancer.v4, PORT).into());
    // Streams have a bound of their own, and leave the rest alone.
    const FOLLOW: &str = "GET /v1/events?follow=true&since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let streams = client::open(from, to, 2, FOLLOW)?;
    for stream in &streams {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut first = [0; 12];
        let mut stream = stream;
        std::io::Read::read_exact(&mut stream, &mut first).context("a stream begins")?;
        ensure!(&first == b"HTTP/1.1 200", "{first:?}");
    }
    let third =
        client::request(from, to, &FOLLOW.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))?;
    ensure!(third.status == 503 && third.head.contains("retry-after: 10"), "{third:?}");
    ensure!(client::get(from, to, "/v1/status", "")?.status == 200, "others are answered");
    drop(streams);
    kit::wait::until(PATIENCE, "their places are free again", || {
        let mut stream = client::open(from, to, 1, FOLLOW)?.pop().context("a connection")?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut first = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut first)?;
        ensure!(&first == b"HTTP/1.1 200", "{first:?}");
        Ok(())
    })?;
    // One that sends a byte now and then has ten seconds for its head all the same.
    let mut slow =
        client::open(from, to, 1, "GET /healthz HTTP/1.1\r\nX: ")?.pop().context("one")?;
    slow.set_read_timeout(Some(Duration::from_millis(500)))?;
    let started = Instant::now();
    loop {
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(15), "it is still there after {took:?}");
        let mut rest = [0; 512];
        match std::io::Read::read(&mut slow, &mut rest) {
            Ok(0) => break,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        if slow.write_all(b"x").is_err() {
            break;
        }
    }
    ensure!(started.elapsed() > Duration::from_secs(5), "it had its time: {:?}", started.elapsed());
    Ok(())
}
