//! Checks of backends.

use super::*;

/// The check of the only service of a configuration with these lines in it.
fn check_of(lines: &str) -> lb_model::check::Check {
    let config = parse(&format!("interfaces = [\"eth0\"]{SERVICE}[service.check]\n{lines}\n"));
    config.desired.services["web"].policy.check.clone()
}

#[test]
fn a_check_has_every_setting() {
    use lb_model::check::{Http, Kind, Start, Tls, Via};
    let check = check_of(
        r#"
type = "https"
method = "HEAD"
path = "/healthz?deep=1"
host = "www.example.com"
status = "200-204, 301"
body = "ok"
insecure = true
server_name = "other.example.com"
port = 8443
via = "backend"
interval = "1s"
fast_interval = "100ms"
down_interval = "5s"
timeout = "300ms"
rise = 3
fall = 2
jitter = "0%"
start = "down"
"#,
    );
    let http = Http {
        method: "HEAD".into(),
        path: "/healthz?deep=1".into(),
        host: Some("www.example.com".into()),
        status: vec![200..=204, 301..=301],
        body: Some("ok".into()),
    };
    let server_name = Some("other.example.com".into());
    let tls = Tls { insecure: true, server_name, ca_file: None };
    assert_eq!(check.kind, Kind::Https(http, tls));
    assert_eq!((check.port, check.via, check.start), (Some(8443), Via::Backend, Start::Down));
    let times = [check.interval, check.fast_interval, check.down_interval, check.timeout];
    assert_eq!(times.map(|time| time.as_millis()), [1_000, 100, 5_000, 300]);
    assert_eq!((check.rise.get(), check.fall.get(), check.jitter), (3, 2, 0));
}

#[test]
fn the_other_times_of_a_check_follow_its_interval() {
    let times = |lines| {
        let check = check_of(lines);
        [check.interval, check.fast_interval, check.down_interval, check.timeout]
            .map(|time| time.as_millis())
    };
    assert_eq!(times("type = \"tcp\""), [2_000, 500, 2_000, 1_000]);
    assert_eq!(times("interval = \"100ms\""), [100, 50, 100, 100]);
    assert_eq!(times("interval = \"10s\""), [10_000, 2_500, 10_000, 1_000]);
    let check = check_of("interval = \"589ms\"");
    assert_eq!(check.fast_interval, std::time::Duration::from_millis(147), "whole milliseconds");
    assert_eq!(times("interval = \"50ms\"\ntimeout = \"1s\""), [50, 50, 50, 1_000]);
}

#[test]
fn a_backend_s_check_is_the_service_s_but_for_what_it_says() {
    use lb_model::check::Kind;
    let config = parse(&format!(
        "interfaces = [\"eth0\"]{SERVICE}{}",
        r#"
[service.check]
type = "http"
path = "/a"
[[service.backend]]
address = "10.0.0.1"
backup = true
    [service.backend.check]
    port = 8080
    path = "/b"
[[service.backend]]
address = "10.0.0.2"
"#
    ));
    let service = &config.desired.services["web"];
    let backends: Vec<_> = service.backends.values().collect();
    let path = |index: usize| match &service.check_of(backends[index]).kind {
        Kind::Http(http) => http.path.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((path(0), path(1)), ("/b".into(), "/a".into()));
    assert_eq!(service.check_of(backends[0]).port, Some(8080));
    assert!(backends[0].backup && !backends[1].backup);
    assert_eq!(backends[1].check, None);
}

#[test]
fn a_service_says_what_it_makes_of_its_checks() {
    let config = parse(&format!(
        "interfaces = [\"eth0\"]{SERVICE}slow_start = \"30s\"\npanic_threshold = \"50%\"\n\
         min_healthy = 2\nflap_half_life = \"0s\"\non_down = \"move\"\nsyn_failover = false\n"
    ));
    let policy = &config.desired.services["web"].policy;
    assert_eq!(policy.slow_start.as_secs(), 30);
    assert_eq!((policy.panic_threshold, policy.min_healthy), (50, 2));
    assert_eq!(policy.on_down, lb_model::policy::OnDown::Move);
    assert!(policy.flap_half_life.is_zero() && !policy.second_choice);
}

#[test]
fn mistakes_of_a_check_say_what_would_be_right() {
    for (lines, wanted) in [
        ("type = \"htp\"", "did you mean \"http\"?"),
        ("type = \"http\"\npath = \"healthz\"", "begin it with `/`"),
        ("type = \"http\"\nstatus = \"2xx\"", "\"200-299, 301\""),
        ("type = \"http\"\nmethod = \"get\"", "\"GET\" or \"HEAD\""),
        ("type = \"exec\"", "`command` is missing"),
        ("type = \"exec\"\ncommand = [\"check\"]", "begin it with `/`"),
        ("type = \"udp\"\nsend = '\\q'", "write \\xNN"),
        ("type = \"dns\"\nquery = \"a..b\"", "no domain name"),
        ("type = \"tcp\"\ninterval = \"10ms\"", "from 50ms to 1h is possible"),
        ("type = \"tcp\"\nrise = 0", "a number from 1 to 255"),
        ("type = \"tcp\"\njitter = \"80%\"", "\"0%\" to \"50%\""),
        ("type = \"tcp\"\npath = \"/\"", "unknown key"),
    ] {
        let found = mistake_of(&format!("[service.check]\n{lines}"));
        assert!(found.contains(wanted), "{lines}: {found}");
    }
}
