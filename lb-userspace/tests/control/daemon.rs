//! The daemon over its socket, with maps in memory.

use std::{fs, net::IpAddr, time::Duration};

use hyper::{Method, body::Bytes};
use lb_api::{
    client::{Client, Error},
    event::Kind,
    requests::{Done, Reloaded},
    status::{Backend, OneBackend, Service, Status},
};
use lb_daemon::daemon::{Ended, Signal};
use lb_health::prober::Prober;
use lb_model::{
    desired::{self, Admin, Mode},
    edit::{AdminChange, BackendChange},
};
use tokio::sync::mpsc;

use crate::common::{Place, WEB, events, eventually, names};

const A: &str = "/v1/services/web/backends/10.0.0.11";
const B: &str = "/v1/services/web/backends/10.0.0.12";
const NEW: &str = "/v1/services/web/backends/10.0.0.13";

async fn status(client: &Client) -> Status {
    client.get("/v1/status").await.expect("it answers")
}

async fn backend(client: &Client, path: &str) -> Backend {
    client.get(path).await.expect("it is there")
}

async fn send(client: &Client, method: Method, path: &str) -> Result<Done, Error> {
    client.send(method, path, Bytes::new()).await
}

async fn set(client: &Client, path: &str, admin: AdminChange) {
    let change = BackendChange { admin: Some(admin), weight: None };
    let done: Result<Done, _> = client.send_json(Method::PATCH, path, &change).await;
    done.expect("it is possible");
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result.expect_err("it is refused") {
        error @ Error::Refused(_) => error.to_string(),
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn the_configuration_is_in_the_maps_when_it_is_ready() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let status = status(&lbd.client).await;
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    let web = &status.services["web"];
    assert_eq!(web.ring_slots, 1_009);
    let slots: Vec<u32> = web.backends.values().map(|backend| backend.slots).collect();
    assert_eq!(slots.iter().sum::<u32>(), 1_009);
    assert!((200..300).contains(&slots[0]), "a weight of 1 against 3: {slots:?}");
    assert!(web.backends.values().all(|backend| backend.unusable.is_none()), "{web:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn changes_are_in_the_maps_when_they_are_answered() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let spec = desired::Backend { weight: "4".parse().expect("a weight"), ..Default::default() };
    let done: Done = lbd.client.send_json(Method::POST, NEW, &spec).await.expect("it is added");
    assert_eq!(done.message, "backend 10.0.0.13 of web added with weight 4");
    eventually("it owns slots", async || backend(&lbd.client, NEW).await.slots > 0).await;
    let change = BackendChange { weight: Some("9".parse().expect("a weight")), admin: None };
    let _: Done = lbd.client.send_json(Method::PATCH, A, &change).await.expect("it is possible");
    assert_eq!(backend(&lbd.client, A).await.weight, 9);
    set(&lbd.client, B, AdminChange::Down).await;
    assert_eq!(backend(&lbd.client, B).await.slots, 0);
    lbd.stop().await;
}

#[tokio::test]
async fn services_come_and_go() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let spec = desired::Service::new(IpAddr::from([10, 0, 0, 101]), 443, Mode::Ipip);
    let done: Done =
        lbd.client.send_json(Method::POST, "/v1/services/tls", &spec).await.expect("it is added");
    assert_eq!(done.message, "service tls added: tcp 10.0.0.101:443 by ipip");
    let _: Service = lbd.client.get("/v1/services/tls").await.expect("it is there");
    assert_eq!(
        refusal(lbd.client.send_json::<Done>(Method::POST, "/v1/services/tls2", &spec).await),
        "service tls2: tcp 10.0.0.101:443 is service tls already"
    );
    for name in ["web", "tls"] {
        let path = format!("/v1/services/{name}");
        let refused = refusal(send(&lbd.client, Method::DELETE, &path).await);
        assert!(refused.starts_with(&format!("this ends service {name}")), "{refused}");
        send(&lbd.client, Method::DELETE, &format!("{path}?yes=true")).await.expect("a yes");
    }
    assert!(status(&lbd.client).await.services.is_empty());
    lbd.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let client = &lbd.client;
    let spec = desired::Backend::default();
    for (path, expected) in [
        ("/v1/services/wbe/backends/10.0.0.13", "no service wbe; did you mean web?"),
        (
            "/v1/services/web/backends/10.0.0.300",
            "`10.0.0.300` is no address of a backend; write one as \"10.0.0.11\", \"fd00::11\", \"10.0.0.11:8080\" or \"[fd00::11]:8080\"",
        ),
        (
            "/v1/services/web/backends/10.0.0.100",
            "service web: backend 10.0.0.100: 10.0.0.100 is a VIP of service web; give the backend's own address",
        ),
        (
            A,
            "backend 10.0.0.11 of web is there already; change it with 'lbctl backend weight web 10.0.0.11 N', or 'enable'",
        ),
    ] {
        assert_eq!(refusal(client.send_json::<Done>(Method::POST, path, &spec).await), expected);
    }
    assert_eq!(
        refusal(client.get::<Backend>("/v1/services/web/backends/10.0.0.41").await),
        "service web has no backend 10.0.0.41; did you mean 10.0.0.11?"
    );
    assert_eq!(refusal(client.get::<Status>("/v1/stauts").await), "no such path");
    let zero = client.send::<Done>(Method::PATCH, A, Bytes::from_static(b"{\"weight\": 0}")).await;
    assert!(refusal(zero).contains("expected a nonzero u16"));
    let junk = client.send::<Done>(Method::PATCH, A, Bytes::from_static(b"}\xff")).await;
    assert!(refusal(junk).contains("expected value"));
    assert_eq!(status(client).await.services["web"].backends.len(), 2);
    lbd.stop().await;
}

#[tokio::test]
async fn a_backend_is_found_by_address_by_address_and_port_and_by_name() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let client = &lbd.client;
    let path = |at: &str| lb_api::paths::backend("web", &at.to_owned().into());
    let spec = desired::Backend { name: Some("web3".into()), ..Default::default() };
    let done: Done =
        client.send_json(Method::POST, &path("10.0.0.13:80"), &spec).await.expect("added");
    assert_eq!(done.message, "backend 10.0.0.13:80 of web added with weight 1");
    for name in ["web3", "10.0.0.13", "10.0.0.13:80"] {
        let found: OneBackend = client.get(&path(name)).await.expect(name);
        assert_eq!(found.address.to_string(), "10.0.0.13:80");
        assert_eq!(found.backend.name.as_deref(), Some("web3"));
        set(client, &path(name), AdminChange::Disabled).await;
        set(client, &path(name), AdminChange::Enabled).await;
    }
    for (at, name, expected) in [
        (
            "10.0.0.13",
            None,
            "service web: backend 10.0.0.13:80: 10.0.0.13:80 is the backend 10.0.0.13 already; give each once, with its weight",
        ),
        (
            "10.0.0.14",
            Some("web3"),
            "service web: backend 10.0.0.14: name `web3`: it is that of 10.0.0.13:80 already; give each backend its own",
        ),
        (
            "10.0.0.14:8080",
            None,
            "service web: backend 10.0.0.14:8080: port 8080, and clients connect to 80: dsr sends packets on with the port that they have; give the address without a port, and let the backend listen at 80, or use mode nat",
        ),
    ] {
        let spec = desired::Backend { name: name.map(str::to_owned), ..Default::default() };
        let refused = client.send_json::<Done>(Method::POST, &path(at), &spec).await;
        assert_eq!(refusal(refused), expected);
    }
    assert_eq!(
        refusal(client.get::<OneBackend>(&path("web4")).await),
        "service web has no backend web4; did you mean web3?"
    );
    lbd.stop().await;

    // Its port and its name are in the state file, and in the maps.
    let lbd = place.start().await;
    let web = &status(&lbd.client).await.services["web"];
    let (at, one) = web.backends.iter().next_back().expect("three");
    assert_eq!((at.to_string().as_str(), one.name.as_deref()), ("10.0.0.13:80", Some("web3")));
    assert!(one.slots > 0, "{one:?}");
    send(&lbd.client, Method::DELETE, &format!("{}?force=true", path("web3"))).await.expect("gone");
    lbd.stop().await;
}

#[tokio::test]
async fn changes_survive_a_restart() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let _: Done =
        lbd.client.send_json(Method::POST, NEW, &desired::Backend::default()).await.expect("added");
    set(&lbd.client, A, AdminChange::Draining { deadline_secs: Some(600) }).await;
    let admin = backend(&lbd.client, A).await.admin;
    assert!(matches!(admin, Admin::Draining { deadline: Some(_) }));
    lbd.stop().await;

    let lbd = place.start().await;
    assert_eq!(backend(&lbd.client, A).await.admin, admin);
    assert_eq!(backend(&lbd.client, NEW).await.weight, 1);
    set(&lbd.client, A, AdminChange::Enabled).await;
    send(&lbd.client, Method::DELETE, &format!("{NEW}?force=true")).await.expect("by force");
    lbd.stop().await;
    let text = fs::read_to_string(place.path("state.json")).expect("it is there");
    let state: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(state["overrides"]["services"], serde_json::json!({}), "taken back: no trace");
}

#[tokio::test]
async fn a_torn_state_file_is_set_aside() {
    let place = Place::new(WEB);
    fs::write(place.path("state.json"), "{\"version\": 1, \"conf").expect("it is written");
    let lbd = place.start().await;
    assert_eq!(status(&lbd.client).await.services["web"].backends.len(), 2);
    let aside = |name: &String| name.starts_with("state.json.broken-");
    assert!(names(&place.path("")).iter().any(aside));
    lbd.stop().await;
}

#[tokio::test]
async fn a_removed_backend_leaves_when_its_last_flow_has_ended() {
    let place =
        Place::new(&format!("{WEB}idle_timeout = \"1s\"\n").replace("backend =", "#backend ="));
    let lbd = place.start().await;
    for path in [A, B] {
        let _: Done = lbd
            .client
            .send_json(Method::POST, path, &desired::Backend::default())
            .await
            .expect("added");
    }
    let done = send(&lbd.client, Method::DELETE, A).await.expect("it drains");
    assert_eq!(
        done.message,
        "backend 10.0.0.11 of web drains, and is removed when its last flow has ended"
    );
    assert!(matches!(backend(&lbd.client, A).await.admin, Admin::Removing { .. }));
    eventually("it is gone", async || lbd.client.get::<Backend>(A).await.is_err()).await;
    assert_eq!(status(&lbd.client).await.services["web"].backends.len(), 1);
    lbd.stop().await;
}

#[tokio::test]
async fn a_reload_applies_the_difference_and_keeps_changes() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    set(&lbd.client, B, AdminChange::Disabled).await;
    let id = backend(&lbd.client, B).await.id;
    place.configure(
        &WEB.replace("weight = 3", "weight = 5")
            .replace("{ address = \"10.0.0.11\" }", "{ address = \"10.0.0.13\" }"),
    );
    let done = send(&lbd.client, Method::POST, "/v1/reload").await.expect("it is valid");
    assert_eq!(done.message, "configuration reloaded: 1 service, 2 backends, on eth0");
    let kept = backend(&lbd.client, B).await;
    assert_eq!((kept.id, kept.weight, kept.admin), (id, 5, Admin::Disabled));
    assert!(matches!(backend(&lbd.client, A).await.admin, Admin::Removing { .. }));
    backend(&lbd.client, NEW).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_reload_says_what_it_changed_and_what_it_overruled() {
    let place = Place::new(&format!("{WEB}{}", WEB.replace("web", "gone").replace("= 80", "= 81")));
    let lbd = place.start().await;
    let change = BackendChange { weight: Some("9".parse().expect("a weight")), admin: None };
    let _: Done = lbd.client.send_json(Method::PATCH, B, &change).await.expect("it is possible");
    set(&lbd.client, A, AdminChange::Disabled).await;
    place.configure(&WEB.replace("weight = 3", "weight = 5"));
    let reload = async || {
        let reloaded = lbd.client.send::<Reloaded>(Method::POST, "/v1/reload", Bytes::new());
        reloaded.await.expect("it is valid")
    };
    let reloaded = reload().await;
    assert_eq!(
        reloaded.done.notes,
        [
            "service gone removed",
            "service web: weight of 10.0.0.12 9 -> 5",
            "the flows of service gone end: nothing is forwarded for it any more",
            "web 10.0.0.12: weight 5 of the configuration replaces 9, set by lbctl",
        ]
    );
    assert_eq!((reloaded.differences.len(), reloaded.conflicts.len()), (2, 1));
    assert_eq!(backend(&lbd.client, B).await.weight, 5);
    assert_eq!(backend(&lbd.client, A).await.admin, Admin::Disabled);
    let again = reload().await;
    assert_eq!(
        again.done.message,
        "configuration reloaded, nothing changed: 1 service, 2 backends, on eth0"
    );
    assert_eq!(again.done.notes, [""; 0]);
    lbd.stop().await;
}

#[tokio::test]
async fn a_value_that_was_configured_while_lbd_was_stopped_wins() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let change = BackendChange { weight: Some("9".parse().expect("a weight")), admin: None };
    for path in [A, B] {
        let _: Done = lbd.client.send_json(Method::PATCH, path, &change).await.expect("possible");
    }
    lbd.stop().await;
    place.configure(&WEB.replace("weight = 3", "weight = 5"));
    let lbd = place.start().await;
    assert_eq!(backend(&lbd.client, A).await.weight, 9);
    assert_eq!(backend(&lbd.client, B).await.weight, 5);
    lbd.stop().await;
}

#[tokio::test]
async fn a_start_takes_back_only_the_changes_that_do_not_fit() {
    let mut place = Place::new(WEB);
    let lbd = place.start().await;
    let _: Done =
        lbd.client.send_json(Method::POST, NEW, &desired::Backend::default()).await.expect("added");
    let spec = desired::Service::new(IpAddr::from([10, 0, 0, 101]), 443, Mode::Dsr);
    let _: Done =
        lbd.client.send_json(Method::POST, "/v1/services/tls", &spec).await.expect("added");
    set(&lbd.client, A, AdminChange::Draining { deadline_secs: None }).await;
    lbd.stop().await;
    // There is room for the configuration, and for the service, but not for the backend.
    place.limits.backends = 2;
    let lbd = place.start().await;
    assert_eq!(backend(&lbd.client, A).await.admin, Admin::Draining { deadline: None });
    let services = status(&lbd.client).await.services;
    assert_eq!(services.keys().collect::<Vec<_>>(), ["tls", "web"]);
    assert_eq!(services["web"].backends.len(), 2);
    let seen = events(&lbd.client).await;
    let conflicts = seen.iter().filter(|event| event.body.kind == Kind::ConfigConflict);
    let conflicts: Vec<_> = conflicts.map(|event| event.body.message.as_str()).collect();
    assert_eq!(
        conflicts,
        [
            "web 10.0.0.13: what lbctl changed of it does not go with the configuration: 3 backends, but limits.backends is 2; raise it"
        ]
    );
    let aside = |name: &String| name.starts_with("state.json.broken-");
    assert!(!names(&place.path("")).iter().any(aside));
    lbd.stop().await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.configure(&WEB.replace("weight = 3", "weight = 0").replace("dsr", "drs"));
    let refused = refusal(send(&lbd.client, Method::POST, "/v1/reload").await);
    for expected in
        ["mode: `drs` is unknown", "weight 0; use 'drain'", "2 errors", "nothing was changed"]
    {
        assert!(refused.contains(expected), "{refused}");
    }
    assert_eq!(backend(&lbd.client, B).await.weight, 3);
    // By a signal as well; later requests find the daemon unchanged.
    lbd.signals.send(Signal::Reload).await.expect("it runs");
    assert_eq!(backend(&lbd.client, B).await.weight, 3);
    place.configure(&WEB.replace("weight = 3", "weight = 7"));
    lbd.signals.send(Signal::Reload).await.expect("it runs");
    eventually("it is reloaded", async || backend(&lbd.client, B).await.weight == 7).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_reload_tells_what_takes_a_restart() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.configure(&format!("xdp = \"generic\"\nlimits = {{ pins = 5 }}\n{WEB}"));
    for _ in 0..2 {
        let done = send(&lbd.client, Method::POST, "/v1/reload").await.expect("it is valid");
        assert_eq!(done.notes, ["restart lbd for the change of xdp, limits"]);
    }
    lbd.stop().await;
}

#[tokio::test]
async fn detach_answers_and_ends() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let done =
        send(&lbd.client, Method::POST, "/v1/detach?yes=true").await.expect("it is possible");
    assert_eq!(done.notes, ["link-eth0"]);
    assert_eq!(lbd.task.await.expect("no panic").expect("no error"), Ended::Detached);
    assert_eq!(*lbd.log.lock().expect("nobody panics"), ["detach"]);
}

#[tokio::test]
async fn end_of_the_health_checks_ends_the_daemon() {
    let place = Place::new(WEB);
    let (prober, _own) = Prober::start().expect("a thread");
    let (reports_to, reports) = mpsc::unbounded_channel();
    let lbd = place.start_with(prober, reports).await;
    drop(reports_to);
    let error = lbd.task.await.expect("no panic").expect_err("nobody checks any more");
    assert_eq!(error.to_string(), "the health checks have ended");
}

#[tokio::test]
async fn a_state_that_can_not_be_kept_is_told() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    fs::create_dir(place.path("state.json.partial")).expect("a folder is in the way");
    let change = BackendChange { weight: Some("9".parse().expect("a weight")), admin: None };
    let done: Done = lbd.client.send_json(Method::PATCH, A, &change).await.expect("it is done");
    assert_eq!(done.notes.len(), 1);
    assert!(done.notes[0].contains("not kept over a restart"), "{done:?}");
    assert_eq!(backend(&lbd.client, A).await.weight, 9);
    fs::remove_dir(place.path("state.json.partial")).expect("it is empty");
    let kept = async || {
        let text = fs::read_to_string(place.path("state.json")).expect("it is there");
        text.contains("\"weight\": 9")
    };
    assert!(!kept().await);
    eventually("it is kept by itself", kept).await;
    tokio::time::timeout(Duration::from_secs(5), lbd.stop()).await.expect("it stops");
}
