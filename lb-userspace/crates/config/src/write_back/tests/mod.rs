mod any;

use std::{num::NonZeroU8, time::Duration};

use lb_model::{
    backend_address::BackendAddress,
    check::Kind,
    desired::{Mode, Service},
};
use proptest::{prelude::*, sample::select};

use self::any::any_state;
use super::*;

/// The example, changed; `edit` gets its parsed form.
fn written(text: &str, edit: impl FnOnce(&mut Writable)) -> String {
    let config = Config::parse(text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut wanted = Writable { desired: config.desired.clone(), left: Vec::new() };
    edit(&mut wanted);
    write_back(text, &wanted.desired).unwrap_or_else(|error| panic!("{error:#}\n{text}"))
}

fn at(last: u8) -> BackendAddress {
    BackendAddress::from([10, 0, 0, last])
}

fn weight(wanted: &mut Writable, backend: u8, weight: &str) {
    let web = wanted.desired.services.get_mut("web").expect("it is there");
    web.backends.entry(at(backend)).or_default().weight = weight.parse().expect(weight);
}

fn take(wanted: &mut Writable, backend: u8) {
    let web = wanted.desired.services.get_mut("web").expect("it is there");
    web.backends.remove(&at(backend)).expect("it is there");
}

/// The removed and added lines, as `diff` prints them.
fn changes(before: &str, after: &str) -> Vec<String> {
    let diff = similar::TextDiff::from_lines(before, after);
    let lines = diff.iter_all_changes().filter(|line| line.tag() != similar::ChangeTag::Equal);
    lines.map(|line| format!("{}{}", line.tag(), line.value())).collect()
}

const EXAMPLE: &str = include_str!("../../../../../../deploy/lb.toml");

#[test]
fn what_changes_nothing_changes_no_byte() {
    assert_eq!(written(EXAMPLE, |_| {}), EXAMPLE);
    let odd = "\u{feff}interface = 'eth0'\r\n\r\n# end".to_owned();
    assert_eq!(written(&odd, |_| {}), odd);
    for text in [EXAMPLE.to_owned(), odd, EXAMPLE.replace('\n', "\r\n")] {
        assert_eq!(edit(&text, |_| {}).expect("it is TOML"), text);
    }
}

#[test]
fn changes_of_the_example_touch_nothing_else() {
    let new = written(EXAMPLE, |wanted| {
        weight(wanted, 11, "3");
        weight(wanted, 12, "5");
        weight(wanted, 13, "1");
        let web = wanted.desired.services.get_mut("web").expect("it is there");
        web.syn_budget = 7;
        web.policy.check.rise = NonZeroU8::new(9).expect("it is not zero");
        web.backends.get_mut(&at(13)).expect("it is there").admin = Admin::Disabled;
        web.drain_deadline = Some(Duration::from_secs(90));
    });
    assert_eq!(
        changes(EXAMPLE, &new),
        [
            "+syn_budget = 7\n",
            "+drain_deadline = \"1m30s\"\n",
            "+    rise = 9\n",
            "+    weight = 3\n",
            "-    weight = 2\n",
            "+    weight = 5\n",
            "+\n",
            "+    [[service.backend]]\n",
            "+    address = \"10.0.0.13\"\n",
            "+    state = \"disabled\"\n",
        ]
    );
}

#[test]
fn a_service_that_came_and_went_leaves_nothing() {
    let with = written(EXAMPLE, |wanted| {
        let new = Service::new(at(3).ip, 80, Mode::Dsr);
        wanted.desired.services.insert("new".to_owned(), new);
    });
    assert!(with.ends_with("\n\n[[service]]\nname = \"new\"\nvip = \"10.0.0.3\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n"), "{with}");
    let without = written(&with, |wanted| drop(wanted.desired.services.remove("new")));
    assert_eq!(without, EXAMPLE);
}

#[test]
fn a_target_port_comes_and_goes_and_no_backend_changes() {
    const HEAD: &str = "interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";
    let ported = || at(11).or_port(std::num::NonZeroU16::new(80));
    let with = "target_port = 80\n\n[[service.backend]]\naddress = \"10.0.0.11\" # the first\n";
    let text = |rest: &str| format!("{HEAD}{rest}");
    let gone = written(&text(with), |wanted| {
        let web = wanted.desired.services.get_mut("web").expect("it is there");
        assert_eq!(web.backends.keys().copied().collect::<Vec<_>>(), [ported()]);
        web.target_port = None;
    });
    assert_eq!(gone, text("\n[[service.backend]]\naddress = \"10.0.0.11:80\" # the first\n"));
    // What has no port can't have none where the service gives it one.
    let without = text("\n[[service.backend]]\naddress = \"10.0.0.11\"\n");
    let mut wanted = Config::parse(&without).expect("it is valid").desired;
    wanted.services.get_mut("web").expect("it is there").target_port = 80.try_into().ok();
    let Writable { desired, left } = Writable::of(&wanted, &wanted);
    assert_eq!(
        left,
        ["backend 10.0.0.11 of web: that it has no port; the file's target_port gives it one"]
    );
    assert!(desired.services["web"].backends.is_empty());
    write_back(&without, &desired).expect("it can be written");
}

#[test]
fn what_goes_takes_its_own_comments_along() {
    let new = written(EXAMPLE, |wanted| {
        take(wanted, 12);
        wanted.desired.services.remove("dns");
    });
    assert_eq!(
        changes(EXAMPLE, &new).concat(),
        "-    [[service.backend]]
-    address = \"10.0.0.12\"
-    weight = 2
-
-# UDP services need a policy: udp = \"oneshot\" (each packet by itself, as for DNS), \"tracked\" (a flow keeps its backend
-# until it is idle), \"quic\" (as TCP, and by the connection id of its handshake when the client's address changes).
-[[service]]
-name = \"dns\"
-vip = \"10.0.0.100\"
-port = 53
-protocol = \"udp\"
-mode = \"ipip\"
-udp = \"oneshot\"
-
-    # For \"https\" there are insecure = true (lbd does not verify the certificate), server_name and
-    # ca_file; for \"udp\" send = 'PING\\r\\n' and expect = 'PONG'; for \"exec\" command = [\"/path\", \"argument\"],
-    # which lbctl and the API cannot change.
-    [service.check]
-    type = \"dns\"
-    # query = \".\"
-    # record = \"NS\"
-
-    [[service.backend]]
-    address = \"10.1.0.11\"
-        [service.backend.check] # overrides for this backend
-        port = 5353
-
-    [[service.backend]]
-    address = \"fd00:1::12\"    # IPv4 in IPv6
-
"
    );
    let first = written(EXAMPLE, |wanted| take(wanted, 11));
    assert!(first.contains("    # start = \"up\"            # its state"), "{first}");
}

/// One service in the forms that people write, with the result: 11 gets a weight, 12 goes,
/// 13 comes.
#[test]
fn every_form_survives() {
    const HEAD: &str = "interface = \"eth0\" # one\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";
    for (before, after) in [
        (
            "backend = [{ address = \"10.0.0.11\" }, { address = \"10.0.0.12\" }] # both",
            "backend = [{ address = \"10.0.0.11\", weight = 3 }, { address = \"10.0.0.13\" }] # both",
        ),
        (
            "backend = [{address=\"10.0.0.12\"},{address=\"10.0.0.11\",weight=2,},]",
            "backend = [{address=\"10.0.0.11\",weight=3,}, { address = \"10.0.0.13\" }]",
        ),
        (
            "backend = [\n  # the first\n  { address = \"10.0.0.11\" }, # one\n  # the second\n  { address = \"10.0.0.12\" } # two\n  # end\n]\n",
            "backend = [\n  # the first\n  { address = \"10.0.0.11\", weight = 3 }, # one\n  { address = \"10.0.0.13\" },\n  # end\n]\n",
        ),
        (
            "backend = [\n\t{ address = \"10.0.0.12\" },\n\t{ address = \"10.0.0.11\" }\n]",
            "backend = [\n\t{ address = \"10.0.0.11\", weight = 3 },\n\t{ address = \"10.0.0.13\" },\n]",
        ),
        (
            "[[service.backend]]\naddress = \"10.0.0.12\"\n# weight = 1\n[[service.backend]]\naddress = '10.0.0.11' # eleven",
            "# weight = 1\n[[service.backend]]\naddress = '10.0.0.11' # eleven\nweight = 3\n[[service.backend]]\naddress = \"10.0.0.13\"",
        ),
        (
            "  [[service.backend]]\n    address = \"10.0.0.11\"\n    weight = 0x2 # two\n\n  # gone soon\n  [[service.backend]]\n    address = \"10.0.0.12\"\n    # weight = 9\n\n[limits] # few\nservices = 5\n",
            "  [[service.backend]]\n    address = \"10.0.0.11\"\n    weight = 3 # two\n  [[service.backend]]\n    address = \"10.0.0.13\"\n\n[limits] # few\nservices = 5\n",
        ),
    ] {
        for eol in ["\n", "\r\n"] {
            let text = |service: &str| format!("{HEAD}{service}").replace('\n', eol);
            let new = written(&text(before), |wanted| {
                weight(wanted, 11, "3");
                take(wanted, 12);
                weight(wanted, 13, "1");
            });
            assert_eq!(new, text(after), "{before}");
        }
    }
}

#[test]
fn checks_survive_in_every_form() {
    const HEAD: &str = "interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";
    let edit = |wanted: &mut Writable| {
        let web = wanted.desired.services.get_mut("web").expect("it is there");
        web.policy.check.kind = Kind::Tcp;
        web.policy.check.fall = NonZeroU8::new(9).expect("it is not zero");
    };
    for (before, after) in [
        (
            "check.type = \"http\"\ncheck.path = \"/x\"\nsyn_budget = 5\n",
            "check.type = \"tcp\"\ncheck.fall = 9\nsyn_budget = 5\n",
        ),
        (
            "check = { type = \"http\", path = \"/x\", interval = \"1s\" }\n",
            "check = { type = \"tcp\", interval = \"1s\", fall = 9 }\n",
        ),
        ("check = { type = \"http\" , path = \"/x\" }\n", "check = { type = \"tcp\", fall = 9 }\n"),
        ("# none\n", "check = { type = \"tcp\", fall = 9 }\n# none\n"),
        (
            "check.path = \"/x\"\n# a\ncheck.type = \"http\"\n",
            "# a\ncheck.type = \"tcp\"\ncheck.fall = 9\n",
        ),
        (
            "# a\ncheck.path = \"/x\"\ncheck.type = \"http\" # b\nsyn_budget = 5\n",
            "# a\ncheck.type = \"tcp\" # b\ncheck.fall = 9\nsyn_budget = 5\n",
        ),
        (
            "[service.check]\n# a\npath = \"/x\" # b\n# c\ntype = \"http\"\n",
            "[service.check]\n# a\n# c\ntype = \"tcp\"\nfall = 9\n",
        ),
        ("check = {}\n", "check = { type = \"tcp\", fall = 9 }\n"),
        (
            "[service.check] # how\ntype = \"http\" # H\npath = \"/x\" # P\n# fall = 3\n",
            "[service.check] # how\ntype = \"tcp\" # H\nfall = 9\n# fall = 3\n",
        ),
    ] {
        assert_eq!(written(&format!("{HEAD}{before}"), edit), format!("{HEAD}{after}"));
    }
}

#[test]
fn a_check_of_a_backend_comes_changes_and_goes() {
    let text = "interface = \"eth0\"\nservice = [{ name = \"web\", vip = \"10.0.0.100\", port = 80, protocol = \"tcp\", mode = \"dsr\", check = { type = \"tcp\", interval = \"1s\" }, backend = [{ address = \"10.0.0.11\" }] }]";
    let with = |text: &str, check: Option<Check>| {
        written(text, |wanted| {
            let web = wanted.desired.services.get_mut("web").expect("it is there");
            web.backends.get_mut(&at(11)).expect("it is there").check = check.map(Box::new);
        })
    };
    let config = Config::parse(text).expect("it is valid");
    let base = config.desired.services["web"].policy.check.clone();
    let one = with(text, Some(Check { port: Some(81), ..base.clone() }));
    assert!(one.ends_with("{ address = \"10.0.0.11\", check = { port = 81 } }] }]"), "{one}");
    let interval = Duration::from_millis(400);
    let two = with(&one, Some(Check { port: Some(81), interval, ..base.clone() }));
    let expected = "check = { port = 81, interval = \"400ms\", fast_interval = \"250ms\", down_interval = \"1s\", timeout = \"1s\" } }] }]";
    assert!(two.ends_with(expected), "{two}");
    let expected = "check = { interval = \"1s\", fast_interval = \"250ms\", down_interval = \"1s\", timeout = \"1s\" } }] }]";
    let three = with(&two, Some(base));
    assert!(three.ends_with(expected), "{three}");
    assert_eq!(with(&two, None), text);
}

/// A service `web` and a service `dns` in the file, of which `dns` goes and `new` comes; 11 of `web` changes.
#[test]
fn services_come_and_go_in_every_form() {
    const WEB: &str =
        "name = \"web\", vip = \"10.0.0.1\", port = 80, protocol = \"tcp\", mode = \"dsr\"";
    const DNS: &str =
        "name = \"dns\", vip = \"10.0.0.2\", port = 53, protocol = \"tcp\", mode = \"dsr\"";
    const NEW: &str =
        "name = \"new\", vip = \"10.0.0.3\", port = 80, protocol = \"tcp\", mode = \"dsr\"";
    let lines = |keys: &str| keys.replace(", ", "\n");
    let (web, dns, new) = (lines(WEB), lines(DNS), lines(NEW));
    let new =
        format!("\n[[service]]\n{new}\n    [[service.backend]]\n    address = \"10.0.0.13\"\n");
    let backends = "backend = [{ address = \"10.0.0.13\" }]";
    for (before, after) in [
        (
            format!("service = [{{ {WEB} }}, {{ {DNS} }}]\n"),
            format!("service = [{{ {WEB}, syn_budget = 7 }}, {{ {NEW}, {backends} }}]\n"),
        ),
        (
            format!("service = [ # all\n  {{ {DNS} }}, # D\n  # W\n  {{ {WEB} }} # w\n]\n"),
            format!(
                "service = [ # all\n  # W\n  {{ {WEB}, syn_budget = 7 }}, # w\n  {{ {NEW}, {backends} }},\n]\n"
            ),
        ),
        (
            format!(
                "service = [{{\n  name = \"web\", # W\n{}\n  mode = \"dsr\" # M\n}}, {{ {DNS} }}]\n",
                "  vip = \"10.0.0.1\",\n  port = 80, protocol = \"tcp\","
            ),
            format!(
                "service = [{{\n  name = \"web\", # W\n{}\n  mode = \"dsr\", # M\n  syn_budget = 7,\n}}, {{ {NEW}, {backends} }}]\n",
                "  vip = \"10.0.0.1\",\n  port = 80, protocol = \"tcp\","
            ),
        ),
        (
            format!("[[service]]\n{dns}\n\n# W\n[[service]]\n{web}\n# w\n\n# end"),
            format!("\n# W\n[[service]]\n{web}\nsyn_budget = 7\n# w\n\n# end\n{new}"),
        ),
        (
            format!(
                "[[service]]\n{web}\n\n# D\n[[service]]\n{dns}\n# d\n\n# none\n\n[limits]\npins = 64\n"
            ),
            format!("[[service]]\n{web}\nsyn_budget = 7\n\n# none\n\n[limits]\npins = 64\n{new}"),
        ),
        (
            format!("[[service]]\n{web}\n\n# D\n[[service]]\n{dns}\n"),
            format!("[[service]]\n{web}\nsyn_budget = 7\n{new}"),
        ),
    ] {
        for (mark, eol) in [("", "\n"), ("", "\r\n"), ("\u{feff}", "\n")] {
            let text = |services: &str| {
                format!("{mark}interface = \"eth0\"\n{services}").replace('\n', eol)
            };
            let new = written(&text(&before), |wanted| {
                let services = &mut wanted.desired.services;
                services.remove("dns").expect("it is there");
                services.get_mut("web").expect("it is there").syn_budget = 7;
                let mut new = Service::new(at(3).ip, 80, Mode::Dsr);
                new.backends.insert(at(13), Backend::default());
                services.insert("new".to_owned(), new);
            });
            let after = if before.ends_with('\n') { &after } else { after.trim_end() };
            assert_eq!(new, text(after), "{before}");
        }
    }
}

#[test]
fn dotted_keys_in_an_inline_table_survive() {
    const WEB: &str =
        "name = \"web\", vip = \"10.0.0.1\", port = 80, protocol = \"tcp\", mode = \"dsr\"";
    for (before, after) in [
        ("check.type = \"http\", check.path = \"/x\" }", "check.type = \"tcp\", check.fall = 9 }"),
        (
            "check.path = \"/x\", check.type = \"http\", syn_budget = 5}",
            "check.type = \"tcp\", check.fall = 9, syn_budget = 5}",
        ),
    ] {
        let text = |check| format!("interface = \"eth0\"\nservice = [{{ {WEB}, {check}]\n");
        let new = written(&text(before), |wanted| {
            let web = wanted.desired.services.get_mut("web").expect("it is there");
            web.policy.check.kind = Kind::Tcp;
            web.policy.check.fall = NonZeroU8::new(9).expect("it is not zero");
        });
        assert_eq!(new, text(after));
    }
}

#[test]
fn comments_of_other_keys_stay_when_a_key_goes() {
    const HEAD: &str = "interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";
    for (before, after) in [
        (
            "# syn_budget = 1\ndrain_deadline = \"1h\" # of an hour\n# slow_start = \"0s\"\n",
            "# syn_budget = 1\n# slow_start = \"0s\"\n",
        ),
        (
            "\n# One.\ndrain_deadline = \"1h\"\n# Two.\nsyn_budget = 5 # five",
            "\n# One.\n# Two.\nsyn_budget = 5 # five",
        ),
    ] {
        let new = written(&format!("{HEAD}{before}"), |wanted| {
            let web = wanted.desired.services.get_mut("web").expect("it is there");
            web.drain_deadline = None;
        });
        assert_eq!(new, format!("{HEAD}{after}"));
    }
}

#[test]
fn checks_of_a_backend_go_in_every_form() {
    const HEAD: &str = "interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n\n[[service.backend]]\naddress = \"10.0.0.11\"\n";
    for (before, after) in [
        ("check.port = 81\ncheck.fall = 2 # F\nweight = 2\n", "weight = 2\n"),
        ("check = { port = 81 }\nweight = 2\n", "weight = 2\n"),
        (
            "weight = 2\n\n  # C\n  [service.backend.check]\n  port = 81\n  # fall = 3\n",
            "weight = 2\n",
        ),
    ] {
        let new = written(&format!("{HEAD}{before}"), |wanted| {
            let web = wanted.desired.services.get_mut("web").expect("it is there");
            web.backends.get_mut(&at(11)).expect("it is there").check = None;
        });
        assert_eq!(new, format!("{HEAD}{after}"));
    }
}

#[test]
fn backends_come_behind_all_sections_of_their_service() {
    const HEAD: &str = "interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";
    const NEW: &str = "[[service.backend]]\naddress = \"10.0.0.13\"\n\n[[service.backend]]\naddress = \"10.0.0.14\"\n";
    const OLD: &str = "\n[[service.backend]]\naddress = \"10.0.0.11\"\n";
    let indented = NEW.replace("[[", "    [[").replace("address", "    address");
    for (before, after) in [
        (
            format!(
                "{OLD}\n[service.check]\ntype = \"tcp\"\n# fall = 3\n\n# L\n[limits]\npins = 64\n"
            ),
            format!(
                "{OLD}\n[service.check]\ntype = \"tcp\"\n# fall = 3\n\n{NEW}\n# L\n[limits]\npins = 64\n"
            ),
        ),
        (
            format!("{OLD}  [service.backend.check]\n  type = \"tcp\"\n"),
            format!("{OLD}  [service.backend.check]\n  type = \"tcp\"\n\n{NEW}"),
        ),
        ("# no backend\n".to_owned(), format!("# no backend\n\n{indented}")),
        (
            "backend = []\n".to_owned(),
            "backend = [{ address = \"10.0.0.13\" }, { address = \"10.0.0.14\" }]\n".to_owned(),
        ),
    ] {
        let new = written(&format!("{HEAD}{before}"), |wanted| {
            weight(wanted, 13, "1");
            weight(wanted, 14, "1");
        });
        assert_eq!(new, format!("{HEAD}{after}"));
    }
}

#[test]
fn what_a_file_can_not_say_is_left() {
    let config = Config::parse(EXAMPLE).expect("it is valid");
    let mut wanted = config.desired.clone();
    let web = wanted.services.get_mut("web").expect("it is there");
    web.policy.check.port = Some(81);
    let deadline = Some(std::time::UNIX_EPOCH);
    for (backend, admin) in [
        (11, Admin::Draining { deadline }),
        (12, Admin::Removing { deadline: None }),
        (13, Admin::Down),
        (14, Admin::Draining { deadline: None }),
    ] {
        web.backends.entry(at(backend)).or_default().admin = admin;
    }
    web.backends.entry(at(15)).or_default().check = Some(Box::default());
    let writable = Writable::of(&config.desired, &wanted);
    assert_eq!(
        writable.left,
        [
            "backend 10.0.0.11 of web: state draining until 1970-01-01T00:00:00Z; the file has draining, without an end",
            "backend 10.0.0.12 of web: state removing; the file does not have it",
            "backend 10.0.0.13 of web: state down; the file has disabled, which keeps flows",
            "backend 10.0.0.15 of web: its check; it has less than the service's, which a file can't express",
        ]
    );
    assert!(write_back(EXAMPLE, &writable.desired).is_ok());
    assert!(write_back(EXAMPLE, &wanted).is_err(), "no file means that");
}

#[test]
fn what_is_no_valid_configuration_is_refused() {
    let error = write_back(
        EXAMPLE,
        &Desired {
            services: [("no name".to_owned(), Service::new(at(1).ip, 80, Mode::Dsr))].into(),
        },
    );
    let error = error.expect_err("the name is none").to_string();
    assert!(
        error.contains("what is in force makes no valid file") && error.contains("name `no name`"),
        "{error}"
    );
}

/// Files with room for services, and with services in odd forms.
const STARTS: [&str; 5] = [
    "interface = \"eth0\"",
    "interface = \"eth0\"\nservice = []",
    "\u{feff}interface = \"eth0\"\r\n# S\r\n[[service]] # s\r\nname = \"s1\"\r\nvip = \"10.0.1.1\"\r\ncheck.path = '/x' # P\r\n\
     # p\r\nport = 80\r\n check.type = \"http\"\r\nprotocol = \"tcp\"\r\n# b\r\nmode = \"dsr\"\r\nbackend = [{ address = \"10.0.0.1\", \
     check.port = 5 }]\r\n[limits]\r\n[[service]]\r\nname = \"s2\"\r\nvip = \"10.0.1.2\"\r\nport = 80\r\nprotocol = \"tcp\"\r\n\
     mode = \"dsr\"\r\n[tunnel]\r\n[[service.backend]]\r\naddress = '10.0.0.2'\r\n check.port = 5\r\n[service.check]",
    "interface = \"eth0\"\nservice = [ # all\n  # one\n  {\n    name = \"s1\" # n\n    , vip = \"10.0.1.1\", port = 80, # p\n\
     protocol = \"tcp\", mode = \"dsr\", check.type = \"http\", check.path = \"/x\" # x\n  } # S\n  , # comma\n  { name = \"s2\", \
     vip = \"10.0.1.2\", port = 80, protocol = \"tcp\", mode = \"dsr\", check = {}, backend = [\n # none\n]}\n  # end\n]\n",
    "interface = \"eth0\"\n[[service]]\nname = \"s1\"\nvip = \"10.0.1.1\"\nport = 80\nprotocol = \"udp\"\nudp = \"oneshot\"\nmode = \"dsr\"\n\
     [[service.backend]]\n# a\n\n# b\naddress = \"10.0.0.1\"\n# c\n[service.backend.check]\n# d\n\n[[service.backend]]\n\
     address = \"10.0.0.3\"\n[service.check]\ntype = \"dns\" # e\nquery = \".\"\n\n# f\n\n# g\n",
];

#[test]
fn odd_files_are_valid_and_stay_as_they_are() {
    for text in STARTS {
        let config = Config::parse(text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        assert_eq!(write_back(text, &config.desired).expect("nothing is to be changed"), text);
    }
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_as_it_was(
        first in any_state(),
        second in any_state(),
        start in select(STARTS.to_vec()),
    ) {
        // `write_back` ensures that it is read as the wanted state.
        let one = write_back(start, &first.desired);
        prop_assert!(one.is_ok(), "{:?}\n{}", one, start);
        let one = one.expect("it was just checked");
        let two = write_back(&one, &second.desired);
        prop_assert!(two.is_ok(), "{:?}\n{}", two, one);
        let config = Config::parse(&two.expect("it was just checked")).expect("it is valid");
        prop_assert_eq!(config.desired, second.desired);
    }
}
