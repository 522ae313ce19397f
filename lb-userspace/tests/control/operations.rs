//! Operations beside single changes: bursts, dry runs, queries, events, maintenance.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixListener,
    process::Stdio,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use hyper::{Method, body::Bytes};
use lb_api::{
    client::Error,
    event::{Event, Kind},
    requests::{Done, Reloaded},
    status::{Backend, Status},
};
use lb_daemon::daemon::Signal;
use lb_model::{
    backend_address::BackendAddress,
    desired::Admin,
    edit::{AdminChange, BackendChange},
};

use crate::{
    cli::{Ran, lbctl, lbctl_command},
    common::{Place, Running, WEB, events, eventually},
};

const A: &str = "/v1/services/web/backends/10.0.0.11";

/// A service with a ring of some size, that takes a moment to write.
fn large() -> String {
    WEB.replace("1009", "65537")
}

async fn status(lbd: &Running) -> Status {
    lbd.client.get("/v1/status").await.expect("it answers")
}

fn weight(weight: usize) -> BackendChange {
    let weight = weight.to_string().parse().expect("a weight");
    BackendChange { weight: Some(weight), admin: None }
}

fn kinds(events: &[Event]) -> Vec<Kind> {
    events.iter().map(|event| event.body.kind).collect()
}

#[tokio::test]
async fn a_thousand_changes_at_once_end_in_few_writes_and_the_last_one_wins() {
    let place = Place::new(&large());
    let lbd = place.start().await;
    let before = place.remote.ring_writes.load(Ordering::SeqCst);
    let changes = (0..1_000).map(|n| {
        let client = lbd.client.clone();
        tokio::spawn(async move {
            let path = if n % 2 == 0 { A.to_owned() } else { A.replace(".11", ".12") };
            client.send_json::<Done>(Method::PATCH, &path, &weight(2 + n % 100)).await
        })
    });
    for change in changes.collect::<Vec<_>>() {
        let done = change.await.expect("no panic").expect("it is possible");
        assert!(done.message.contains("has weight"), "{done:?}");
    }
    let writes = place.remote.ring_writes.load(Ordering::SeqCst) - before;
    assert!((1..=30).contains(&writes), "a thousand changes took {writes} writes of the ring");
    let _: Done = lbd.client.send_json(Method::PATCH, A, &weight(777)).await.expect("possible");
    assert_eq!(lbd.client.get::<Backend>(A).await.expect("it is there").weight, 777);
    lbd.stop().await;
}

#[tokio::test]
async fn each_change_of_a_burst_has_its_own_answer() {
    let place = Place::new(&large());
    let lbd = place.start().await;
    let changes = (0..200_usize).map(|n| {
        let client = lbd.client.clone();
        tokio::spawn(async move {
            match n % 4 {
                0 => client.send_json::<Done>(Method::PATCH, A, &weight(5)).await,
                // Not there; on a VIP, which breaks a rule of the whole; a service less.
                1 => client.send_json(Method::PATCH, &A.replace(".11", ".41"), &weight(5)).await,
                2 => {
                    let path = A.replace(".11", ".100");
                    client.send_json(Method::POST, &path, &serde_json::json!({})).await
                }
                _ => client.send(Method::DELETE, "/v1/services/web", Default::default()).await,
            }
        })
    });
    for (n, change) in changes.collect::<Vec<_>>().into_iter().enumerate() {
        let answer = change.await.expect("no panic");
        match (n % 4, answer) {
            (0, Ok(_)) => {}
            (1, Err(Error::Refused(no))) => assert!(no.error.contains("has no backend"), "{no:?}"),
            (2, Err(Error::Refused(no))) => assert!(no.error.contains("is a VIP"), "{no:?}"),
            (3, Err(Error::Refused(no))) => assert!(no.unconfirmed.is_some(), "{no:?}"),
            other => panic!("{other:?}"),
        }
    }
    let web = &status(&lbd).await.services["web"];
    assert_eq!(web.backends.len(), 2);
    assert_eq!(web.backends[&BackendAddress::from([10, 0, 0, 11])].weight, 5);
    lbd.stop().await;
}

#[tokio::test]
async fn what_was_not_written_is_tried_again_while_the_sweep_fails() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let slots = async || lbd.client.get::<Backend>(A).await.expect("it is there").slots;
    let before = slots().await;
    place.remote.failing_walks.store(true, Ordering::SeqCst);
    place.remote.failing_writes.store(2, Ordering::SeqCst);
    let refused = lbd.client.send_json::<Done>(Method::PATCH, A, &weight(30)).await;
    let Err(Error::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.hint.is_some_and(|hint| hint.contains("tried again each second")));
    assert_eq!(slots().await, before);
    eventually("it is written all the same", async || slots().await > before).await;
    let error = async || status(&lbd).await.last_error;
    eventually("the error of the sweep is shown", async || {
        error().await.is_some_and(|error| error.contains("walks were ordered to fail"))
    })
    .await;
    place.remote.failing_walks.store(false, Ordering::SeqCst);
    eventually("nothing fails", async || error().await.is_none()).await;
    let seen = kinds(&events(&lbd.client).await);
    // The same failure each second is one event.
    assert!(seen.iter().filter(|kind| **kind == Kind::MapsFailing).count() <= 3, "{seen:?}");
    assert_eq!(seen.iter().filter(|kind| **kind == Kind::MapsWritten).count(), 1, "{seen:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn a_reload_is_refused_only_when_it_changed_nothing() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.remote.failing_walks.store(true, Ordering::SeqCst);
    place.remote.failing_writes.store(2, Ordering::SeqCst);
    place.configure(&WEB.replace("weight = 3", "weight = 30"));
    let done = lbd.client.send::<Reloaded>(Method::POST, "/v1/reload", Bytes::new()).await;
    let Err(Error::Refused(refusal)) = done else { panic!("the maps are not written: {done:?}") };
    assert!(refusal.error.starts_with("configuration reloaded: "), "{refusal:?}");
    assert!(refusal.error.contains(", but the maps could not be written: "), "{refusal:?}");
    assert!(refusal.hint.is_some_and(|hint| hint.starts_with("the configuration is in force")));
    let weights = status(&lbd).await.services["web"].backends.clone();
    assert_eq!(weights[&BackendAddress::from([10, 0, 0, 12])].weight, 30);
    let seen = kinds(&events(&lbd.client).await);
    assert!(seen.contains(&Kind::ConfigReloaded) && seen.contains(&Kind::MapsFailing), "{seen:?}");
    assert!(!seen.contains(&Kind::ConfigRefused), "{seen:?}");
    place.remote.failing_walks.store(false, Ordering::SeqCst);
    eventually("the maps are written", async || status(&lbd).await.last_error.is_none()).await;
    // One with a mistake has changed nothing, as its hint states.
    place.configure("[[service]]\nname = 7\n");
    let done = lbd.client.send::<Reloaded>(Method::POST, "/v1/reload", Bytes::new()).await;
    let Err(Error::Refused(refusal)) = done else { panic!("it has a mistake: {done:?}") };
    assert_eq!(refusal.hint.as_deref(), Some("nothing was changed"));
    lbd.stop().await;
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let before = serde_json::to_value(status(&lbd).await.services).expect("JSON");
    for (line, expected) in [
        (
            "backend drain web 10.0.0.11 --dry-run",
            "dry run, nothing was changed; this would happen: backend 10.0.0.11 of web drains until its last flow has ended\n",
        ),
        (
            "backend disable web 10.0.0.12 --force --dry-run",
            "  flows of web move at once: those of ",
        ),
        (
            "backend weight web 10.0.0.11 3 --dry-run",
            " of the slots of web get another owner for new flows\n  no flow of web moves\n",
        ),
        (
            "backend add web 10.0.0.13 --dry-run",
            " of the slots of web get another owner for new flows\n  no flow of web moves\n",
        ),
        ("backend enable web 10.0.0.11 --dry-run", "  no flow moves\n"),
        ("backend remove web 10.0.0.11 --dry-run", ", and is removed then\n"),
        (
            "service remove web --dry-run",
            "  flows of web break at once: those of 1,009 slots (100.0 %)\n",
        ),
        (
            "service add dns --vip 10.0.0.101 --port 53 --dry-run",
            "  service dns added: tcp 10.0.0.101:53 by dsr\n",
        ),
        (
            "node drain --dry-run",
            "dry run, nothing was changed; this would happen: this node drains\n",
        ),
        ("detach --dry-run", "  lbd ends\n"),
    ] {
        let ran = lbctl(&place, line).await;
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        assert!(
            ran.out.starts_with("dry run, nothing was changed; this would happen: "),
            "{line}: {ran:?}"
        );
        assert!(ran.out.contains(expected), "{line}: {ran:?}");
    }
    // A request that would be refused is.
    for (line, expected) in [
        ("backend drain web 10.0.0.41 --dry-run", "has no backend 10.0.0.41"),
        ("backend add web 10.0.0.100 --dry-run", "is a VIP of service web"),
        ("service add web --vip 10.0.0.101 --port 53 --dry-run", "is there already"),
    ] {
        let ran = lbctl(&place, line).await;
        assert!(ran.code == Some(1) && ran.err.contains(expected), "{line}: {ran:?}");
    }
    let after = serde_json::to_value(status(&lbd).await.services).expect("JSON");
    assert_eq!(before, after);
    assert_eq!(kinds(&events(&lbd.client).await), [Kind::Started]);
    lbd.stop().await;
}

#[tokio::test]
async fn a_dry_run_of_a_reload_tells_what_the_reload_then_does() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    assert_eq!(lbctl(&place, "backend weight web 10.0.0.12 9").await.code, Some(0));
    place.configure(
        &WEB.replace("weight = 3", "weight = 5").replace("mode", "syn_budget = 7\nmode"),
    );
    let before = serde_json::to_value(status(&lbd).await.services).expect("JSON");
    let seen = kinds(&events(&lbd.client).await);
    let reload = async |query: &str| {
        let path = format!("/v1/reload{query}");
        lbd.client.send::<Reloaded>(Method::POST, &path, Default::default()).await.expect("valid")
    };
    let tried = reload("?dry_run=true").await;
    let plan = tried.done.plan.clone().expect("a plan");
    assert_eq!(
        plan.changes,
        ["service web: syn_budget 20000 -> 7", "service web: weight of 10.0.0.12 9 -> 5"]
    );
    assert!(plan.preview.services["web"].slots_moved > 0, "{plan:?}");
    let ran = lbctl(&place, "config reload --dry-run").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for expected in [
        "dry run, nothing was changed; this would happen: configuration reloaded: 1 service, 2 backends, on eth0\n",
        "  service web: weight of 10.0.0.12 9 -> 5\n",
        " of the slots of web get another owner for new flows\n",
        "  web 10.0.0.12: weight 5 of the configuration replaces 9, set by lbctl\n",
    ] {
        assert!(ran.out.contains(expected), "{ran:?}");
    }
    assert_eq!(before, serde_json::to_value(status(&lbd).await.services).expect("JSON"));
    assert_eq!(seen, kinds(&events(&lbd.client).await));
    let made = reload("").await;
    assert_eq!(made.done.message, tried.done.message);
    assert_eq!((made.differences, made.conflicts), (tried.differences, tried.conflicts));
    place.configure("[[service]]\nname = 7\n");
    assert_eq!(lbctl(&place, "config reload --dry-run").await.code, Some(1));
    lbd.stop().await;
}

#[tokio::test]
async fn a_dry_run_tells_what_the_change_then_does() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let slots = async |path: &str| lbd.client.get::<Backend>(path).await.expect("there").slots;
    let drain =
        BackendChange { admin: Some(AdminChange::Draining { deadline_secs: None }), weight: None };
    let owned = slots(A).await;
    let path = format!("{A}?dry_run=true");
    let tried: Done = lbd.client.send_json(Method::PATCH, &path, &drain).await.expect("possible");
    let seen = tried.plan.expect("a plan").preview.services["web"];
    assert_eq!((seen.slots, seen.flow_slots_moved, seen.flows_moved), (1_009, 0, 0));
    assert_eq!(seen.slots_moved, owned, "those of the backend, and no other");
    let done: Done = lbd.client.send_json(Method::PATCH, A, &drain).await.expect("possible");
    assert_eq!((done.message, done.plan), (tried.message, None));
    assert_eq!(slots(A).await, 0);
    lbd.stop().await;
}

#[tokio::test]
async fn what_takes_a_service_away_takes_a_yes() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    assert_eq!(lbctl(&place, "backend disable web 10.0.0.11").await.code, Some(0));
    for line in [
        "backend drain web 10.0.0.12",
        "backend disable web 10.0.0.12",
        "backend disable web 10.0.0.12 --force",
        "backend remove web 10.0.0.12",
        "backend remove web 10.0.0.12 --force",
        "service remove web",
        "detach",
    ] {
        let ran = lbctl(&place, line).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{line}: {ran:?}");
        assert!(ran.err.ends_with("; pass --yes to do it all the same\n"), "{line}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{line}: {ran:?}");
    }
    // Other programs than lbctl can't do it by accident, either, and get the effects that it would have.
    let refused = lbd.client.send::<Done>(Method::DELETE, "/v1/services/web", Default::default());
    let Err(Error::Refused(refused)) = refused.await else { panic!("it is refused") };
    let seen = refused.unconfirmed.expect("a plan").preview.services["web"];
    assert!(seen.removed && seen.flow_slots_moved == 1_009, "{seen:?}");
    let done = lbctl(&place, "backend drain web 10.0.0.12 --yes").await;
    assert_eq!(done.code, Some(0), "{done:?}");
    // Now it is the last one no more.
    assert_eq!(lbctl(&place, "backend disable web 10.0.0.12").await.code, Some(0));
    assert_eq!(lbctl(&place, "service remove web -y").await.code, Some(0));
    lbd.stop().await;
}

#[tokio::test]
async fn every_change_is_one_event_with_its_cause() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    for line in [
        "backend weight web 10.0.0.11 5",
        "backend drain web 10.0.0.11",
        "backend enable web 10.0.0.11",
        "backend add web 10.0.0.13",
        "service add dns --vip 10.0.0.101 --port 53 --protocol udp",
        "service remove dns --yes",
        "config reload",
        "node drain",
        "node enable",
    ] {
        assert_eq!(lbctl(&place, line).await.code, Some(0), "{line}");
    }
    place.configure("[[service]]\nname = 7\n");
    lbd.signals.send(Signal::Reload).await.expect("it runs");
    let expected = [
        Kind::Started,
        Kind::BackendWeight,
        Kind::BackendDraining,
        Kind::BackendEnabled,
        Kind::BackendAdded,
        Kind::ServiceAdded,
        // It has no backend.
        Kind::ServiceNotReady,
        Kind::ServiceRemoved,
        Kind::ConfigReloaded,
        Kind::NodeDraining,
        Kind::NodeEnabled,
        Kind::ConfigRefused,
    ];
    eventually("the last one", async || events(&lbd.client).await.len() >= expected.len()).await;
    let seen = events(&lbd.client).await;
    assert_eq!(kinds(&seen), expected);
    assert!(seen.iter().all(|event| !event.body.cause.is_empty()), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "{seen:?}");
    let counts = status(&lbd).await.events;
    assert_eq!((counts["backend_added"], counts["config_refused"]), (1, 1));
    // The same, as people and programs see it.
    let table = lbctl(&place, "events --service web --kind backend_draining").await.out;
    assert!(
        table.contains("backend 10.0.0.11 of web drains until its last flow has ended (lbctl)")
    );
    assert_eq!(table.lines().count(), 1, "{table}");
    let json = lbctl(&place, "events -n 2 -o json --backend 10.0.0.11").await.out;
    let parsed = json.lines().map(|line| serde_json::from_str(line).expect(line));
    let parsed: Vec<Event> = parsed.collect();
    assert_eq!(kinds(&parsed), [Kind::BackendDraining, Kind::BackendEnabled]);
    assert_eq!(lbctl(&place, "events --kind backend_dwon").await.code, Some(2));
    lbd.stop().await;
}

#[tokio::test]
async fn who_follows_events_sees_a_restart_and_what_comes_after_it() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let mut command = lbctl_command(&place.socket(), "events --follow -n 0 -o json");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut messages = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let (to, mut seen) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            let event: Event = serde_json::from_str(&line).expect(&line);
            let _ = to.send(event.body.kind);
        }
    });
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(20), seen.recv()).await;
        next.expect("an event").expect("it goes on")
    };
    // Until it follows, nothing is shown; the same change twice is one event only.
    let mut n = 1;
    eventually("it follows", async || {
        n += 1;
        lbctl(&place, &format!("backend weight web 10.0.0.11 {n}")).await;
        tokio::time::timeout(Duration::from_millis(100), next()).await.is_ok()
    })
    .await;
    lbd.stop().await;
    while next().await != Kind::Stopping {}
    let lbd = place.start().await;
    assert_eq!(next().await, Kind::Started);
    lbctl(&place, "backend drain web 10.0.0.11").await;
    assert_eq!(next().await, Kind::BackendDraining);
    child.kill().expect("it runs");
    child.wait().expect("it ended");
    let messages: Vec<String> = messages.by_ref().map(|line| line.expect("text")).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].ends_with("waiting for it to come back"), "{messages:?}");
    assert_eq!(messages[1], "lbctl: lbd is back");
    lbd.stop().await;
}

#[tokio::test]
async fn who_reads_no_events_holds_nobody_up() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    // It sends requests, and reads nothing: answers pile up in the socket's buffers, and no further.
    let _lines = lbd.client.lines("/v1/events?follow=true").await.expect("it follows");
    for n in 0..20 {
        let _: Done = lbd.client.send_json(Method::PATCH, A, &weight(2 + n)).await.expect("done");
    }
    let stop = tokio::time::timeout(Duration::from_secs(5), lbd.stop());
    stop.await.expect("it stops");
}

#[tokio::test]
async fn a_node_that_drains_is_known_over_a_restart() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let ran = lbctl(&place, "node drain").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for expected in ["this node drains\n", "nothing takes over by itself", "10.0.0.100"] {
        assert!(ran.out.contains(expected), "{ran:?}");
    }
    let since = status(&lbd).await.node.draining_since;
    assert!(since.is_some());
    lbd.stop().await;
    let lbd = place.start().await;
    let kept = status(&lbd).await.node.draining_since;
    let millis = |at: Option<SystemTime>| {
        at.expect("it drains").duration_since(SystemTime::UNIX_EPOCH).expect("now").as_millis()
    };
    assert_eq!(millis(kept), millis(since));
    assert!(lbctl(&place, "status").await.out.contains("\nnode: draining since "));
    assert!(lbctl(&place, "node show").await.out.ends_with("\nVIPs: 10.0.0.100\n"));
    // A second drain succeeds, without a second event.
    assert_eq!(lbctl(&place, "node drain").await.code, Some(0));
    assert!(!kinds(&events(&lbd.client).await).contains(&Kind::NodeDraining));
    let waited = lbctl(&place, "node drain --wait --quiet 1s --timeout 20s").await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    assert!(waited.err.contains("no packet for a service has come for 1s"), "{waited:?}");
    assert_eq!(lbctl(&place, "node enable").await.code, Some(0));
    assert_eq!(status(&lbd).await.node.draining_since, None);
    lbd.stop().await;
}

#[tokio::test]
async fn a_wait_outlasts_a_restart() {
    let place = Place::new(&format!("{WEB}idle_timeout = \"3s\"\n"));
    let lbd = place.start().await;
    let mut command = lbctl_command(&place.socket(), "backend drain web 10.0.0.11 --wait");
    let waiting = tokio::task::spawn_blocking(move || command.output());
    eventually("it drains", async || lbctl(&place, "backend list").await.out.contains("draining"))
        .await;
    lbd.stop().await;
    // Long enough for a poll to find no lbd.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lbd = place.start().await;
    let ran = Ran::from(waiting.await.expect("no panic").expect("it runs"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for expected in ["waiting for it to come back\n", "lbctl: lbd is back\n", "has no flow left"] {
        assert_eq!(ran.err.matches(expected).count(), 1, "{ran:?}");
    }
    lbd.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_set_neither_ends_a_drain_nor_prolongs_it() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let before = SystemTime::now();
    assert_eq!(lbctl(&place, "backend drain web 10.0.0.11 --deadline 10m").await.code, Some(0));
    let deadline = async |lbd: &Running| match lbd
        .client
        .get::<Backend>(A)
        .await
        .expect("it is there")
        .admin
    {
        Admin::Draining { deadline } => deadline.expect("one"),
        other => panic!("{other:?}"),
    };
    let first = deadline(&lbd).await;
    let year = Duration::from_secs(365 * 86_400);
    *place.skew.lock().expect("nobody panics") = year;
    eventually("the jump is seen", async || {
        kinds(&events(&lbd.client).await).contains(&Kind::ClockJumped)
    })
    .await;
    let moved = deadline(&lbd).await.duration_since(first).expect("it is later");
    assert!(moved.abs_diff(year) < Duration::from_secs(1), "{moved:?}");
    let base: BTreeSet<u32> =
        [lbd.client.get::<Backend>(A).await.expect("it is there").base_slots].into();
    assert!(!base.contains(&0), "its flows are still its own");
    lbd.stop().await;
    // It starts with a clock that is a year behind its file.
    let file = std::fs::File::options().append(true).open(place.path("state.json")).expect("there");
    file.set_modified(SystemTime::now() + year).expect("it is ours");
    *place.skew.lock().expect("nobody panics") = Duration::ZERO;
    let lbd = place.start().await;
    let left = deadline(&lbd).await.duration_since(before).expect("it is later");
    assert!(left.abs_diff(Duration::from_secs(600)) < Duration::from_secs(60), "{left:?}");
    lbd.stop().await;
}

#[test]
fn a_daemon_that_hangs_is_told() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("lbd.sock");
    // It listens, and never takes a connection in; its queue is full.
    let listener = UnixListener::bind(&socket).expect("it binds");
    // SAFETY: the descriptor is the listener's, which lives.
    let result = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    assert_eq!(result, 0);
    let _first = std::os::unix::net::UnixStream::connect(&socket).expect("there is room for one");
    let ran = Ran::from(lbctl_command(&socket, "status").output().expect("it runs"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let expected = format!("lbctl: lbd does not answer on {} within 5 s", socket.display());
    assert!(ran.err.starts_with(&expected), "{ran:?}");
}

#[tokio::test]
async fn doctor_examines_the_configuration_of_the_daemon_on_the_socket() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let ran = lbctl(&place, "doctor -o json").await;
    let report: lb_cli::doctor::Report = serde_json::from_str(&ran.out).expect("it is JSON");
    let found = |check: &str| {
        let all = report.findings.iter().filter(|one| one.check == check);
        all.map(|one| one.found.clone()).collect::<Vec<_>>().join("\n")
    };
    let file = place.file().display().to_string();
    assert!(found("configuration").contains(&file), "{report:#?}");
    assert!(found("lbd").starts_with("lbd runs"), "{report:#?}");
    lbd.stop().await;
}
