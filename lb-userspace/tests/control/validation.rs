//! One validation for the file, the API and the state file.

use std::{fs, net::IpAddr, time::Duration};

use hyper::{Method, body::Bytes};
use lb_api::{
    client::Error,
    event::Kind,
    requests::{Done, Reloaded},
    status::{self, Status},
};
use lb_model::{
    check::{self, Check, Exec, Http},
    desired::{Admin, Backend, Mode, Service},
    edit::{AdminChange, BackendChange},
};

use crate::common::{Place, Running, WEB, events, eventually};

const A: &str = "/v1/services/web/backends/10.0.0.11";
const NEW: &str = "/v1/services/web/backends/10.0.0.13";

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    outcome.expect_err("it is refused").to_string()
}

fn exec(command: &[&str]) -> Check {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Check {
        kind: check::Kind::Exec(Exec { command }),
        interval: Duration::from_millis(50),
        ..Check::default()
    }
}

fn spec(check: Check) -> Service {
    let mut spec = Service::new(IpAddr::from([10, 0, 0, 101]), 443, Mode::Dsr);
    spec.policy.check = check;
    spec.backends.insert(IpAddr::from([10, 0, 0, 14]).into(), Backend::default());
    spec
}

fn own(check: Check) -> Backend {
    Backend { check: Some(Box::new(check)), ..Backend::default() }
}

async fn services(lbd: &Running) -> Vec<String> {
    lbd.client.get::<Status>("/v1/status").await.expect("it answers").services.into_keys().collect()
}

async fn conflicts(lbd: &Running) -> Vec<String> {
    let all = events(&lbd.client).await.into_iter();
    let conflicts = all.filter(|event| event.body.kind == Kind::ConfigConflict);
    conflicts.map(|event| event.body.message).collect()
}

#[tokio::test]
async fn the_api_refuses_what_the_file_refuses() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let ran = place.path("ran");
    let touch = ["/usr/bin/touch", &ran.display().to_string()].map(str::to_owned);
    let touch = exec(&[&touch[0], &touch[1]]);
    let zero = Check { interval: Duration::ZERO, kind: check::Kind::Tcp, ..Check::default() };
    let path = Http { path: "/ HTTP/1.1\r\nX: y".into(), ..Http::default() };
    let path = Check { kind: check::Kind::Http(path), ..Check::default() };
    for (check, expected) in [
        (touch, "is not in the configuration's file for this service"),
        (zero, "check.interval: `0s` is out of range; from 50ms to 1h is possible"),
        (path, "check.path: "),
    ] {
        let given = spec(check.clone());
        let service = lbd.client.send_json::<Done>(Method::POST, "/v1/services/tls", &given).await;
        let refused = refusal(service);
        assert!(refused.contains("service tls: check"), "{refused}");
        assert!(refused.contains(expected), "{refused}");
        let refused = refusal(lbd.client.send_json::<Done>(Method::POST, NEW, &own(check)).await);
        assert!(refused.contains("service web: backend 10.0.0.13: check"), "{refused}");
        assert!(refused.contains(expected), "{refused}");
    }
    let mut slow = spec(Check::default());
    (slow.drain_deadline, slow.policy.slow_start) = (Some(Duration::ZERO), Duration::MAX);
    slow.drain_silence = Duration::ZERO;
    let refused =
        refusal(lbd.client.send_json::<Done>(Method::POST, "/v1/services/tls", &slow).await);
    assert!(refused.contains("slow_start: ") && refused.contains("drain_deadline: "), "{refused}");
    let silence = "drain_silence: `0s` is out of range; from 1s to 12h is possible";
    assert!(refused.contains(silence), "{refused}");
    assert_eq!(services(&lbd).await, ["web"]);
    assert!(lbd.client.get::<status::Backend>(NEW).await.is_err());
    assert!(!ran.exists(), "no command was run");
    lbd.stop().await;
}

#[tokio::test]
async fn a_command_of_the_file_may_be_given_again_until_the_file_has_it_no_more() {
    let checked = format!("{WEB}[service.check]\ntype = \"exec\"\ncommand = [\"/bin/true\"]\n");
    let place = Place::new(&checked);
    let lbd = place.start().await;
    let given = own(exec(&["/bin/true"]));
    let _: Done = lbd.client.send_json(Method::POST, NEW, &given).await.expect("the file's own");
    let other = spec(exec(&["/bin/true"]));
    let refused = lbd.client.send_json::<Done>(Method::POST, "/v1/services/tls", &other).await;
    assert!(refusal(refused).contains("for this service"), "it is another service's");
    place.configure(WEB);
    let _: Done =
        lbd.client.send(Method::POST, "/v1/reload", Default::default()).await.expect("valid");
    let messages = conflicts(&lbd).await;
    assert!(messages.len() == 1 && messages[0].starts_with("web 10.0.0.13: "), "{messages:?}");
    let backend: status::Backend = lbd.client.get(NEW).await.expect("it stays");
    assert_eq!(backend.weight, 1);
    lbd.stop().await;
    let state = fs::read_to_string(place.path("state.json")).expect("it is kept");
    assert!(!state.contains("/bin/true"), "{state}");
}

#[tokio::test]
async fn a_state_file_loses_only_the_checks_that_it_must_not_have() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let change = BackendChange {
        weight: Some("7".parse().expect("a weight")),
        admin: Some(AdminChange::Draining { deadline_secs: None }),
    };
    let _: Done = lbd.client.send_json(Method::PATCH, A, &change).await.expect("it is changed");
    let _: Done =
        lbd.client.send_json(Method::POST, NEW, &own(Check::default())).await.expect("added");
    let tls = spec(Check { kind: check::Kind::Tcp, ..Check::default() });
    let _: Done =
        lbd.client.send_json(Method::POST, "/v1/services/tls", &tls).await.expect("it is added");
    lbd.stop().await;

    let (file, ran) = (place.path("state.json"), place.path("ran"));
    let text = fs::read_to_string(&file).expect("it is there");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let services = &mut state["overrides"]["services"];
    let check = &mut services["web"]["backends"]["10.0.0.13"]["added"]["check"];
    assert!(check.is_object(), "{text}");
    check["kind"] = serde_json::json!({"exec": {"command": ["/usr/bin/touch", ran]}});
    let check = &mut services["tls"]["added"]["policy"]["check"];
    assert!(check.is_object(), "{text}");
    check["interval"] = 0.into();
    fs::write(&file, state.to_string()).expect("it is ours");

    let lbd = place.start().await;
    let mut messages = conflicts(&lbd).await;
    messages.sort();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(
        messages[0].starts_with("tls: ") && messages[0].contains("check.interval: `0s`"),
        "{messages:?}"
    );
    assert!(
        messages[1].starts_with("web 10.0.0.13: ") && messages[1].contains("the command"),
        "{messages:?}"
    );
    let backend: status::Backend = lbd.client.get(A).await.expect("it is there");
    assert_eq!((backend.weight, backend.admin), (7, Admin::Draining { deadline: None }));
    assert_eq!(self::services(&lbd).await, ["tls", "web"]);
    assert_eq!(lbd.client.get::<status::Backend>(NEW).await.expect("it stays").weight, 1);
    let kept = async || {
        let text = fs::read_to_string(&file).expect("it is there");
        let state: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        state["overrides"]["services"]["tls"]["added"]["policy"]["check"].clone()
    };
    eventually("it is kept as it is in force", async || kept().await["interval"] == 2_000).await;
    assert_eq!(kept().await["kind"], "tcp", "what it asks stays");
    assert!(!ran.exists(), "no command was run");
    lbd.stop().await;
}

const TUNNELLED: &str = r#"
[[service]]
name = "tls"
vip = "10.0.0.102"
port = 443
protocol = "tcp"
mode = "ipip"
"#;

#[tokio::test]
async fn a_tunnelled_service_is_refused_where_hardware_takes_tags_off_unless_the_operator_insists()
{
    const REFUSED: &str = "eth0 takes VLAN tags off in hardware (rxvlan)";
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.trunks.lock().expect("nobody panics").push("eth0".into());
    let spec = |mode, last| Service::new(IpAddr::from([10, 0, 0, last]), 443, mode);
    let add = async |name: &str, spec: &Service| {
        lbd.client.send_json::<Done>(Method::POST, &format!("/v1/services/{name}"), spec).await
    };
    let refused = refusal(add("tunnel", &spec(Mode::Ipip, 101)).await);
    assert!(refused.contains(REFUSED) && refused.contains("allow_rxvlan = true"), "{refused}");
    add("flat", &spec(Mode::Dsr, 103)).await.expect("the link needs no tunnel");
    place.configure(&format!("{WEB}{TUNNELLED}"));
    let reload =
        async || lbd.client.send::<Reloaded>(Method::POST, "/v1/reload", Bytes::new()).await;
    assert!(refusal(reload().await).contains(REFUSED));
    assert_eq!(services(&lbd).await, ["flat", "web"]);

    place.configure(&format!("allow_rxvlan = true\n{WEB}{TUNNELLED}"));
    reload().await.expect("the operator insists");
    add("tunnel", &spec(Mode::Ipip, 101)).await.expect("here as well");
    place.configure(&format!("{WEB}{TUNNELLED}"));
    reload().await.expect("what is in force stays");
    assert_eq!(services(&lbd).await, ["flat", "tls", "tunnel", "web"]);
    lbd.stop().await;
    place.start().await.stop().await;
}
