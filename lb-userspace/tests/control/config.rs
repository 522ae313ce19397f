//! `lbctl config`: differences, and saving them.

use std::fs;

use lb_api::requests::{ConfigDiff, Saved, Shown};
use lb_config::Config;
use lb_model::{backend_address::BackendAddress, check::Via, desired::Admin, policy::Policy};

use crate::{
    cli::{Ran, lbctl},
    common::{Place, WEB},
};

/// The output of a command that works.
async fn works(place: &Place, line: &str) -> String {
    let Ran { code, out, err } = lbctl(place, line).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{line}: {out}");
    out
}

async fn refused(place: &Place, line: &str) -> String {
    let Ran { code, out, err } = lbctl(place, line).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{line}: {err}");
    err
}

fn state(place: &Place) -> serde_json::Value {
    let text = fs::read_to_string(place.path("state.json")).expect("it is there");
    serde_json::from_str(&text).expect("it is JSON")
}

#[tokio::test]
async fn diff_tells_both_what_lbctl_changed_and_what_the_file_would() {
    let place = Place::new(WEB);
    let running = place.start().await;
    let file = place.file().display().to_string();
    let none = format!(
        "changed by lbctl against the configuration in force:\n  nothing\nwhat a reload of {file} would change:\n  nothing\n"
    );
    assert_eq!(works(&place, "config diff --exit-code").await, none);
    works(&place, "backend weight web 10.0.0.12 9").await;
    works(&place, "backend add web 10.0.0.13").await;
    place.configure(
        &WEB.replace("weight = 3", "weight = 5").replace("mode", "syn_budget = 7\nmode"),
    );
    let expected = format!(
        "changed by lbctl against the configuration in force:
  service web: weight of 10.0.0.12 3 -> 9
  service web: backend 10.0.0.13 added with weight 1
what a reload of {file} would change:
  service web: syn_budget 20000 -> 7
  service web: weight of 10.0.0.12 9 -> 5
  web 10.0.0.12: weight 5 of the configuration replaces 9, set by lbctl
"
    );
    assert_eq!(works(&place, "config diff").await, expected);
    let ran = lbctl(&place, "config diff --exit-code").await;
    assert_eq!((ran.code, ran.out), (Some(1), expected));
    let json = works(&place, "config diff -o json").await;
    let diff: ConfigDiff = serde_json::from_str(&json).expect(&json);
    assert_eq!((diff.runtime.len(), diff.reload.differences.len()), (2, 2));
    place.configure(&WEB.replace("dsr", "drs"));
    let out = lbctl(&place, "config diff --exit-code").await;
    assert_eq!(out.code, Some(1));
    assert!(
        out.out.contains("can't be loaded:\n") && out.out.contains("`drs` is unknown"),
        "{out:?}"
    );
    running.stop().await;
}

#[tokio::test]
async fn what_is_in_force_is_shown_as_a_file_though_the_file_is_another_by_now() {
    let place = Place::new(&format!("# services\n{WEB}# end\n"));
    let running = place.start().await;
    works(&place, "backend weight web 10.0.0.12 9").await;
    works(&place, "backend add web 10.0.0.13").await;
    place.configure("what is no configuration");
    let shown = works(&place, "config show").await;
    assert!(shown.contains("# services\n") && shown.contains("# end\n"), "{shown}");
    assert!(shown.contains("seed = \"(hidden)\""), "{shown}");
    let config = shown.replace("(hidden)", "000102030405060708090a0b0c0d0e0f");
    let config = Config::parse(&config).expect("it is one");
    let weights = config.desired.services["web"].backends.iter();
    let weights: Vec<_> =
        weights.map(|(at, backend)| (at.to_string(), backend.weight.0.get())).collect();
    let (second, third) = (("10.0.0.12".to_owned(), 9), ("10.0.0.13".to_owned(), 1));
    assert!(weights.contains(&second) && weights.contains(&third), "{shown}");
    let json = works(&place, "config show -o json").await;
    let answer: Shown = serde_json::from_str(&json).expect(&json);
    assert_eq!((answer.toml, answer.file), (shown, place.file()));
    running.stop().await;
}

#[tokio::test]
async fn what_is_saved_is_in_the_file_and_no_override_any_more() {
    let place = Place::new(&format!("# services\n{WEB}# end\n"));
    let running = place.start().await;
    let before = fs::read_to_string(place.file()).expect("it is there");
    for line in [
        "backend weight web 10.0.0.12 9",
        "backend disable web 10.0.0.11",
        "backend add web 10.0.0.13 --weight 2",
        "backend drain web 10.0.0.13 --deadline 1h",
    ] {
        works(&place, line).await;
    }
    let dry = works(&place, "config save --dry-run").await;
    for expected in [
        "-backend = [{ address = \"10.0.0.11\" }, { address = \"10.0.0.12\", weight = 3 }]\n",
        "+backend = [{ address = \"10.0.0.11\", state = \"disabled\" }, { address = \"10.0.0.12\", weight = 9 }, { address = \"10.0.0.13\", weight = 2, state = \"draining\" }]\n",
        "# kept beside it: backend 10.0.0.13 of web: state draining until ",
    ] {
        assert!(dry.contains(expected), "{dry}");
    }
    assert_eq!(fs::read_to_string(place.file()).expect("it is there"), before);
    let json = works(&place, "config save -o json").await;
    let saved: Saved = serde_json::from_str(&json).expect(&json);
    assert_eq!((saved.differences.len(), saved.left.len()), (3, 1));
    let after = fs::read_to_string(place.file()).expect("it is there");
    assert!(after.contains("# services\n") && after.ends_with("# end\n"), "{after}");
    let overrides = state(&place)["overrides"]["services"].clone();
    let backends = overrides["web"]["backends"].as_object().expect("one is left").clone();
    assert_eq!(backends.keys().collect::<Vec<_>>(), ["10.0.0.13"], "{overrides}");
    // A reload and a restart find nothing to do, and the drain keeps its end.
    let out = works(&place, "config reload").await;
    assert!(out.starts_with("configuration reloaded, nothing changed"), "{out}");
    running.stop().await;
    let running = place.start().await;
    let backend: lb_api::status::Backend =
        running.client.get("/v1/services/web/backends/10.0.0.13").await.expect("it is there");
    assert!(matches!(backend.admin, Admin::Draining { deadline: Some(_) }), "{backend:?}");
    let out = works(&place, "config save").await;
    assert!(out.starts_with("nothing to save: "), "{out}");
    running.stop().await;
}

#[tokio::test]
async fn a_drain_goes_on_when_the_backend_is_copied_into_the_file_without_a_state() {
    let place = Place::new(WEB);
    let running = place.start().await;
    works(&place, "backend add web 10.0.0.13 --weight 2").await;
    works(&place, "backend drain web 10.0.0.13").await;
    let with = |backend: &str| WEB.replace("weight = 3 }", &format!("weight = 3 }}, {backend}"));
    place.configure(&with("{ address = \"10.0.0.13\" }"));
    let out = works(&place, "config reload").await;
    assert!(out.starts_with("configuration reloaded, nothing changed"), "{out}");
    let backend = async || {
        let path = "/v1/services/web/backends/10.0.0.13";
        running.client.get::<lb_api::status::Backend>(path).await.expect("it is there")
    };
    assert_eq!(backend().await.admin, Admin::Draining { deadline: None });
    assert_eq!(backend().await.weight, 2);
    // And over a reload that finds nothing new.
    works(&place, "config reload").await;
    assert_eq!(backend().await.admin, Admin::Draining { deadline: None });
    // The file's state is in force.
    place.configure(&with("{ address = \"10.0.0.13\", state = \"disabled\" }"));
    works(&place, "config reload").await;
    assert_eq!(backend().await.admin, Admin::Disabled);
    running.stop().await;
}

#[tokio::test]
async fn what_is_added_with_checks_has_them_in_the_file() {
    let place = Place::new(WEB);
    let running = place.start().await;
    for line in [
        "service add www --vip 10.0.0.101 --port 80 --check http --check-path /healthz --check-interval 400ms --check-fall 5 --slow-start 30s --panic-threshold 25% --no-syn-failover",
        "backend add www 10.0.0.14 --backup --check tcp --check-port 8080 --check-via backend",
        "backend add web 10.0.0.13 --check none",
    ] {
        works(&place, line).await;
    }
    works(&place, "config save").await;
    let text = fs::read_to_string(place.file()).expect("it is there");
    let config = Config::parse(&text).expect(&text);
    let www = &config.desired.services["www"];
    let check = &www.policy.check;
    assert_eq!((check.kind.name(), check.fall.get()), ("http", 5), "{text}");
    assert_eq!((check.interval.as_millis(), check.fast_interval.as_millis()), (400, 100));
    assert_eq!((www.policy.slow_start.as_secs(), www.policy.panic_threshold), (30, 25));
    assert_ne!(www.policy.second_choice, Policy::default().second_choice);
    assert!(text.contains("syn_failover = false") && !text.contains("second_choice"), "{text}");
    let backend = &www.backends[&BackendAddress::from([10, 0, 0, 14])];
    let own = backend.check.as_ref().expect("one of its own");
    assert!(backend.backup && own.kind.name() == "tcp" && own.port == Some(8080), "{text}");
    assert_eq!(own.via, Via::Backend);
    let ran = lbctl(&place, "backend add web 10.0.0.15 --check tcp --check-port 0").await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
    assert!(ran.err.starts_with("lbctl: --check-port: 0 is out of range"), "{ran:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_file_that_was_edited_is_not_overwritten() {
    let place = Place::new(WEB);
    let running = place.start().await;
    works(&place, "backend weight web 10.0.0.12 9").await;
    place.configure(&WEB.replace("weight = 3", "weight = 5"));
    let edited = fs::read_to_string(place.file()).expect("it is there");
    let err = refused(&place, "config save").await;
    assert!(
        err.contains("was edited since it was loaded (service web: weight of 10.0.0.12 3 -> 5)"),
        "{err}"
    );
    assert!(err.contains("run 'lbctl config reload' first"), "{err}");
    place.configure(&WEB.replace("weight = 3", "weight = 0"));
    assert!(refused(&place, "config save").await.contains("weight 0; use 'drain'"));
    fs::write(place.file(), &edited).expect("it is ours");
    works(&place, "config reload").await;
    let out = works(&place, "config save").await;
    assert!(out.starts_with("nothing to save"), "{out}");
    // Comments may be edited at any time.
    works(&place, "backend weight web 10.0.0.12 8").await;
    fs::write(place.file(), format!("# by hand\n{edited}")).expect("it is ours");
    works(&place, "config save").await;
    let text = fs::read_to_string(place.file()).expect("it is there");
    assert_eq!(text, format!("# by hand\n{}", edited.replace("weight = 5", "weight = 8")));
    running.stop().await;
}

#[tokio::test]
async fn a_file_that_can_not_be_written_stays_and_so_do_the_overrides() {
    let place = Place::new(WEB);
    let running = place.start().await;
    works(&place, "backend weight web 10.0.0.12 9").await;
    fs::create_dir(place.path("lb.toml.partial")).expect("a folder is in the way");
    let before = fs::read_to_string(place.file()).expect("it is there");
    let err = refused(&place, "config save").await;
    assert!(err.contains("where lbd must be allowed to make files"), "{err}");
    assert!(err.contains("nothing was changed"), "{err}");
    assert_eq!(fs::read_to_string(place.file()).expect("it is there"), before);
    assert!(works(&place, "config diff").await.contains("weight of 10.0.0.12 3 -> 9"));
    running.stop().await;
}
