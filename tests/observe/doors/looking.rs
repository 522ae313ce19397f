//! Readers over HTTP: the answers with and without credentials; and no request changes anything.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use kit::{can_run, command, wait};

use super::{
    PATIENCE, PORT, client,
    client::{get, request},
    testbed,
};

/// The bcrypt hash of `correct horse`.
pub const HASH: &str = "$2y$05$hQCfj8TG9wJ29Y0W9EXl.OPYxkijuibs/vKZ62rn88Jn6Aul4UBea";
pub const TOKEN: &str = "6f0c3a5be4d97f1208c5b4a3f2e1d0c9";
/// `ann:correct horse`.
const BASIC: &str = "Authorization: Basic YW5uOmNvcnJlY3QgaG9yc2U=\r\n";

#[test]
fn who_looks_is_told_everything_and_can_do_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        format!("[http]\nlisten = [\"{}:{PORT}\"]\nallow_unprotected = true\n", lab.balancer.v4)
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let from = &lab.client.namespace;
    let to = (lab.balancer.v4, PORT).into();
    let look = |path: &str| get(from, to, path, "");
    for path in ["/v1/status", "/v1/services", "/v1/services/dsr-v4/backends", "/v1/node"] {
        let answer = look(path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        serde_json::from_str::<serde_json::Value>(&answer.body).with_context(|| path.to_owned())?;
    }
    for path in ["/v1/vrrp", "/v1/peers", "/v1/events"] {
        ensure!(look(path)?.status == 200, "{path}");
    }
    for path in ["/v1/config/diff", "/v1/log", "/v1/detach", "/nowhere", "/v1/../etc/passwd"] {
        ensure!(look(path)?.status == 404, "{path}");
    }
    let answer = look("/healthz")?;
    ensure!((answer.status, answer.body.as_str()) == (200, "ok\n"), "{answer:?}");
    wait::until(PATIENCE, "it is ready", || {
        let answer = look("/readyz")?;
        ensure!((answer.status, answer.body.as_str()) == (200, "ready\n"), "{answer:?}");
        Ok(())
    })?;
    let head = request(
        from,
        to,
        "HEAD /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )?;
    ensure!(head.status == 200 && head.body.is_empty(), "{head:?}");
    ensure!(head.head.contains("cache-control: no-store"), "{head:?}");

    // Whatever would do something.
    let before = balancer.status()?;
    for (method, path) in [
        ("POST", "/v1/detach?yes=true"),
        ("DELETE", "/v1/services/dsr-v4?yes=true"),
        ("PATCH", "/v1/node"),
        ("POST", "/v1/reload"),
        ("PUT", "/v1/log"),
        ("OPTIONS", "/v1/status"),
        ("GARBAGE", "/v1/status"),
    ] {
        let body = "{\"draining\":true}";
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let answer = request(from, to, &text)?;
        ensure!(answer.status == 405, "{method} {path}: {answer:?}");
        ensure!(answer.head.contains("allow: get, head"), "{answer:?}");
    }
    let text = "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    ensure!(request(from, to, text)?.status == 413, "a body is not read");
    let long = format!("X-Long: {}\r\n", "x".repeat(20_000));
    ensure!(get(from, to, "/healthz", &long)?.status == 431, "a head has its bounds");
    let many: String = (0..70).map(|number| format!("X-{number}: y\r\n")).collect();
    ensure!(get(from, to, "/healthz", &many)?.status == 431, "in fields as well");
    let after = balancer.status()?;
    ensure!(before.services.keys().eq(after.services.keys()), "nothing has changed");

    // A node that is to leave is no place to send traffic to, and lives.
    balancer.lbctl(&["node", "drain"])?;
    let answer = look("/readyz")?;
    ensure!(answer.status == 503 && answer.body.starts_with("not ready\n"), "{answer:?}");
    ensure!(look("/healthz")?.status == 200, "it lives");
    balancer.lbctl(&["node", "enable"])?;
    ensure!(look("/readyz")?.status == 200, "and it is back");
    balancer.signal(libc::SIGSTOP)?;
    let hangs = from.enter(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(std::time::Duration::from_millis(300)))?;
        client::read(&mut stream).map(drop)
    })?;
    balancer.signal(libc::SIGCONT)?;
    ensure!(hangs.is_err(), "who hangs answers nobody");
    Ok(())
}

#[test]
fn a_site_whose_name_resolves_to_the_node_reads_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        format!(
            "[http]\nlisten = [\"127.0.0.1:{PORT}\", \"{}:{PORT}\"]\nallow_unprotected = true\n\
             allowed_hosts = [\"lb.example.com\"]\n",
            lab.balancer.v4
        )
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let node = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let get_by_host = |from, to, path: &str, host: &str| {
        request(
            from,
            to,
            &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        )
    };
    let inside = (&lab.balancer.namespace, ([127, 0, 0, 1], PORT).into());
    let outside = (&lab.client.namespace, (lab.balancer.v4, PORT).into());
    for (from, to) in [inside, outside] {
        for host in ["127.0.0.1:9105", "[::1]:9105", "localhost", "LB.example.com.:80", &node] {
            for path in ["/", "/v1/status", "/metrics"] {
                let answer = get_by_host(from, to, path, host)?;
                ensure!(answer.status == 200, "{to}{path} as {host}: {answer:?}");
            }
        }
        for path in ["/", "/v1/status", "/v1/samples", "/v1/events"] {
            let answer = get_by_host(from, to, path, "site.test:9105")?;
            ensure!(answer.status == 421, "{to}{path}: {answer:?}");
            ensure!(answer.body.contains("allowed_hosts"), "the remedy is named: {answer:?}");
            ensure!(get_by_host(from, to, path, "")?.status == 400, "{to}{path} without a host");
        }
        ensure!(
            get_by_host(from, to, "/healthz", "site.test")?.status == 200,
            "probes are answered"
        );
    }
    let metrics = |(from, to)| get_by_host(from, to, "/metrics", "scraped.test:9105");
    ensure!(metrics(inside)?.status == 421, "nobody scrapes loopback by a name of DNS");
    ensure!(metrics(outside)?.status == 200, "scrapers go by names");

    // A reload takes another name.
    let text = fs::read_to_string(balancer.config())?.replace("lb.example.com", "site.test");
    fs::write(balancer.config(), text)?;
    balancer.lbctl(&["config", "reload"])?;
    wait::until(PATIENCE, "the name is taken", || {
        let answer = get_by_host(inside.0, inside.1, "/v1/status", "site.test")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    ensure!(
        get_by_host(inside.0, inside.1, "/", "lb.example.com")?.status == 421,
        "the old one is not"
    );
    Ok(())
}

#[test]
fn who_may_look_is_configured_and_read_again_at_a_reload() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        let folder = lab.folder().display();
        format!(
            "[http]\nlisten = [\"{}:{PORT}\"]\n\
             tls = {{ certificate = \"{folder}/http.crt\", key = \"{folder}/http.key\" }}\n\
             basic_auth_file = \"{folder}/http.users\"\nbearer_token_file = \"{folder}/http.token\"\n",
            lab.balancer.v4
        )
    })?;
    let folder = lab.folder();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text);
    let make = |name: &str| -> Result<()> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        write("http.crt", &made.cert.pem())?;
        Ok(write("http.key", &made.signing_key.serialize_pem())?)
    };
    make("first.test")?;
    write("http.users", &format!("ann:{HASH}\n"))?;
    write("http.token", &format!("{TOKEN}\n"))?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let (from, address) = (&lab.client.namespace, lab.balancer.v4);
    // The certificate counts as an authority: only the name that it is for will do.
    let curl = |name: &str, path: &str, with: &[&str]| {
        let mut curl: Command = from.command("curl");
        curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
        curl.arg(folder.join("http.crt")).args(with);
        curl.arg("--resolve").arg(format!("{name}:{PORT}:{address}"));
        curl.arg(format!("https://{name}:{PORT}{path}"));
        command::run(&mut curl)
    };
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let basic = BASIC.trim_end();
    for (path, with, expected) in [
        ("/v1/status", &[][..], "401"),
        ("/v1/status", &["-H", &bearer][..], "200"),
        ("/v1/status", &["-H", basic], "200"),
        ("/v1/status", &["-u", "ann:correct horse"], "200"),
        ("/v1/status", &["-u", "ann:wrong"], "401"),
        ("/v1/status", &["-u", "eve:correct horse"], "401"),
        ("/v1/status", &["-H", "Authorization: Bearer 6f0c"], "401"),
        ("/nowhere", &[], "401"),
        // Of probes, which have no credentials.
        ("/healthz", &[], "200"),
        ("/readyz", &[], "200"),
    ] {
        let code = curl("first.test", path, with)?;
        ensure!(code == expected, "{path} with {with:?}: {code}");
    }
    let plain = get(from, (address, PORT).into(), "/healthz", "");
    ensure!(plain.is_err(), "without TLS there is no answer: {plain:?}");
    // The reason why a node is not ready needs credentials.
    balancer.lbctl(&["node", "drain"])?;
    let why = |with: &[&str]| {
        let mut curl: Command = from.command("curl");
        curl.args(["-sSk", "--max-time", "10"]).args(with);
        command::run(curl.arg(format!("https://{address}:{PORT}/readyz")))
    };
    ensure!(!why(&[])?.contains("draining"), "without credentials the answer has no reason");
    ensure!(
        why(&["-H", &bearer])?.contains("draining"),
        "with credentials the answer has the reason"
    );

    // Files that have changed, and a configuration that has not.
    make("second.test")?;
    write("http.token", "fedcba98765432100123456789abcdef\n")?;
    let output = balancer.lbctl(&["config", "reload"])?;
    ensure!(
        output.contains("[http]: it has changed") && !output.contains("nothing changed"),
        "{output}"
    );
    let again = balancer.lbctl(&["config", "reload"])?;
    ensure!(again.contains("nothing changed"), "{again}");
    wait::until(PATIENCE, "the new certificate is used", || {
        let code = curl("second.test", "/v1/status", &["-H", &bearer])?;
        ensure!(code == "401", "the old token opens no more: {code}");
        Ok(())
    })?;
    let new = "Authorization: Bearer fedcba98765432100123456789abcdef";
    ensure!(curl("second.test", "/v1/status", &["-H", new])? == "200", "the new one does");

    // A mistake changes nothing.
    write("http.key", "no key")?;
    let refused = balancer.lbctl_output(&["config", "reload"])?;
    ensure!(!refused.status.success(), "it is refused");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(words.contains("http.tls.key: no private key in it"), "{words}");
    ensure!(curl("second.test", "/v1/status", &["-H", new])? == "200", "as before");
    Ok(())
}
