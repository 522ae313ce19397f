//! How two configurations differ.

use lb_model::diff::{Difference, diff};

use crate::Config;

fn config(service: &str) -> Config {
    let text = format!("interfaces = [\"eth0\"]\n{service}");
    Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn texts(before: &Config, after: &Config) -> Vec<String> {
    diff(&before.desired, &after.desired).iter().map(ToString::to_string).collect()
}

const WEB: &str = r#"
    [[service]]
    name = "web"
    vip = "10.0.0.100"
    port = 80
    protocol = "tcp"
    mode = "dsr"
    check = { type = "http" }
    backend = [{ address = "10.0.0.11" }, { address = "10.0.0.12", check = { port = 81 } }]
    "#;
const DNS: &str = r#"
    [[service]]
    name = "dns"
    vip = "10.0.0.100"
    port = 53
    protocol = "udp"
    mode = "ipip"
    "#;

#[test]
fn equal_states_do_not_differ() {
    assert_eq!(texts(&config(WEB), &config(WEB)), [""; 0]);
}

#[test]
fn every_difference_is_one_line() {
    let after = WEB
        .replace("port = 80\n", "port = 8080\ndrain_deadline = \"1h30m5s\"\n")
        .replace("type = \"http\"", "type = \"tcp\", interval = \"1s\"")
        .replace(
            "{ address = \"10.0.0.11\" }",
            "{ address = \"10.0.0.11\", weight = 3, state = \"draining\", backup = true, check = { type = \"none\" } }, { address = \"10.0.0.14\", weight = 2, backup = true }",
        )
        .replace(", { address = \"10.0.0.12\", check = { port = 81 } }", "");
    assert_eq!(
        texts(&config(&format!("{WEB}{DNS}")), &config(&after)),
        [
            "service dns removed",
            "service web: port 80 -> 8080",
            "service web: drain_deadline none -> 1h30m5s",
            "service web: check: type http -> tcp",
            "service web: check: method GET -> none",
            "service web: check: path / -> none",
            "service web: check: status 200-399 -> none",
            "service web: check: interval 2s -> 1s",
            "service web: check: fast_interval 500ms -> 250ms",
            "service web: check: down_interval 2s -> 1s",
            "service web: weight of 10.0.0.11 1 -> 3",
            "service web: state of 10.0.0.11 enabled -> draining",
            "service web: backup of 10.0.0.11 false -> true",
            "service web: check of 10.0.0.11 the service's -> its own",
            "service web: check of 10.0.0.11: type http -> none",
            "service web: check of 10.0.0.11: method GET -> none",
            "service web: check of 10.0.0.11: path / -> none",
            "service web: check of 10.0.0.11: status 200-399 -> none",
            "service web: check of 10.0.0.11: interval 2s -> 1s",
            "service web: check of 10.0.0.11: fast_interval 500ms -> 250ms",
            "service web: check of 10.0.0.11: down_interval 2s -> 1s",
            "service web: backend 10.0.0.12 removed",
            "service web: backend 10.0.0.14 added with weight 2, backup",
        ]
    );
    assert_eq!(
        texts(&config(WEB), &config(&format!("{WEB}{DNS}"))),
        ["service dns added: udp 10.0.0.100:53 by ipip, 0 backends"]
    );
}

#[test]
fn differences_travel_as_json() {
    let (before, after) = (config(WEB), config(DNS));
    let found = diff(&before.desired, &after.desired);
    let json = serde_json::to_string(&found).expect("it is JSON");
    assert_eq!(serde_json::from_str::<Vec<Difference>>(&json).expect(&json), found);
}
