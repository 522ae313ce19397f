//! The configurations that are accepted, and the errors for others.

mod check;
mod diff;
mod extent;

use lb_model::{
    desired::{Admin, Mode, Protocol, UdpPolicy},
    settings::{Attach, TcOrder},
};

use super::*;

const SERVICE: &str = r#"
[[service]]
name = "web"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
"#;

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The mistakes, one a line.
fn mistakes(text: &str) -> Vec<String> {
    Config::parse(text).expect_err("there are mistakes").iter().map(ToString::to_string).collect()
}

/// The only mistake of a service with this line in it.
fn mistake_of(line: &str) -> String {
    let text = format!("interfaces = [\"eth0\"]{SERVICE}{line}\n");
    let found = mistakes(&text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].clone()
}

#[test]
fn the_example_is_valid() {
    let config = parse(include_str!("../../../../../deploy/lb.toml"));
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!(config.summary(), "2 services, 4 backends, 1 virtual router, on eth0");
    assert_eq!(config.warnings, []);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.tunnel, Tunnel::default());
}

#[test]
fn a_backend_has_its_port_that_of_its_address_or_the_services() {
    let addresses = |lines: &str| -> Vec<String> {
        let config = parse(&format!("interfaces = [\"eth0\"]{SERVICE}{lines}\n"));
        config.desired.services["web"].backends.keys().map(ToString::to_string).collect()
    };
    let three = "backend = [{ address = \"10.0.0.1\", port = 80 }, { address = \"10.0.0.2:80\" }, \
                 { address = \"10.0.0.3\", name = \"web3\" }]";
    assert_eq!(addresses(three), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3"]);
    let of_the_service = format!("target_port = 80\n{three}");
    assert_eq!(addresses(&of_the_service), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    for (line, expected) in [
        (
            "backend = [{ address = \"10.0.0.1:80\", port = 81 }]",
            "8:46: service[0].backend[0].port: `address` has port 80 already; give the port once",
        ),
        (
            "backend = [{ address = \"10.0.0.1\", port = 0 }]",
            "8:43: service[0].backend[0].port: 0 is out of range; a number from 1 to 65535 is expected",
        ),
        (
            "backend = [{ address = \"10.0.0.1\" }, { address = \"10.0.0.1:80\" }]",
            "8:50: service[0].backend[1].address: 10.0.0.1:80 is the backend 10.0.0.1 already; give each once, with its weight",
        ),
        (
            "backend = [{ address = \"10.0.0.1\", name = \"a\" }, { address = \"10.0.0.2\", name = \"a\" }]",
            "8:81: service[0].backend[1].name: name `a`: it is that of 10.0.0.1 already; give each backend its own",
        ),
    ] {
        assert_eq!(mistake_of(line), expected);
    }
}

#[test]
fn a_service_without_a_mode_lacks_that_alone_whatever_ports_its_backends_have() {
    let without = SERVICE.replace("mode = \"dsr\"\n", "");
    for backend in ["10.0.0.1", "10.0.0.1:80", "10.0.0.1:8080"] {
        let text =
            format!("interfaces = [\"eth0\"]{without}backend = [{{ address = \"{backend}\" }}]\n");
        let found = mistakes(&text);
        assert!(matches!(&found[..], [one] if one.contains("`mode` is missing")), "{found:#?}");
    }
}

#[test]
fn every_default_in_the_example_is_the_default() {
    let text = include_str!("../../../../../deploy/lb.toml");
    let all: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix("# ") {
            // `seed` and `seed_file` exclude each other; the others have no default.
            Some(key)
                if [
                    "seed",
                    "seed_file",
                    "drain_deadline",
                    "host",
                    "body",
                    "port",
                    "target_port",
                    "name",
                ]
                .into_iter()
                .chain(["peers", "source", "min_ttl", "password", "notify", "second_path"])
                .chain(["hmac_key_file", "hmac_key_id", "local_cgroup"])
                .any(|name| key.split_once(' ').is_some_and(|(first, _)| first == name)) =>
            {
                "\n".into()
            }
            Some(key)
                if key.split_once(" = ").is_some_and(|(name, _)| {
                    name.bytes().all(|b| b.is_ascii_lowercase() || b"_46".contains(&b))
                }) =>
            {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(all.lines().any(|line| line.starts_with("idle_timeout")));
    let (specified, unsaid) = (parse(&all), parse(text));
    assert!(specified.unsaid.len() < unsaid.unsaid.len());
    assert_eq!(specified, Config { unsaid: specified.unsaid.clone(), ..unsaid });
}

#[test]
fn the_seed_is_beside_the_state_unless_a_file_is_named() {
    let seed = |text: &str| match parse(&format!("interface = \"a\"\n{text}")).seed {
        seed::Source::Default { file, .. } | seed::Source::File(file) => file,
        seed::Source::Given(_) => panic!("none is given"),
    };
    assert_eq!(seed(""), Path::new("/var/lib/lb/seed"));
    assert_eq!(seed("state_file = \"/srv/lb/state.json\""), Path::new("/srv/lb/seed"));
    let named = seed("state_file = \"/srv/lb/state.json\"\nseed_file = \"/etc/lb/seed\"");
    assert_eq!(named, Path::new("/etc/lb/seed"));
}

#[test]
fn interfaces_are_those_of_all_keys_that_name_one() {
    let config = parse(
        r#"
        interface = "eth0"
        [sync]
        key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        listen = "10.0.0.1:3780"
        peers = ["10.0.0.2:3780"]
        multicast = { group = "239.0.0.7:3780", interface = "sync0" }
        [[virtual_router]]
        name = "main"
        interface = "eth1"
        vrid = 7
        priority = 100
        addresses = ["10.0.0.100", { address = "10.0.0.101", interface = "front0" }]
        second_path = { interface = "eth2", peers = ["192.168.9.3"] }
        [[virtual_router.track]]
        type = "interface"
        interface = "uplink0"
        [[virtual_router.track]]
        type = "forwarding"
        "#,
    );
    let names: Vec<_> = config.interface_names().into_iter().collect();
    assert_eq!(names, ["eth0", "eth1", "eth2", "front0", "sync0", "uplink0"]);
}

#[test]
fn all_keys_arrive() {
    let config = parse(
        r#"
        interface = "eth1"
        xdp = "native-or-generic"
        pin_dir = "/sys/fs/bpf/other"
        socket = "/run/other.sock"
        group = "adm"
        state_file = "/tmp/state"
        seed = "000102030405060708090a0b0c0d0e0f"
        [limits]
        services = 65535
        backends = 65534
        pins = 1_000_000
        icmp_errors = 0
        [tunnel]
        source_v4 = "10.9.0.0/24"
        source_v6 = "fd00::/120"
        [[service]]
        name = "quic"
        vip = "fd00::100"
        port = 443
        protocol = "udp"
        mode = "ipip"
        udp = "quic"
        idle_timeout = "30s"
        ring_slots = 1009
        syn_budget = 0
        drain_deadline = "1h30m"
        drain_silence = "2m"
        backend = [{ address = "fd00::1", weight = 7, state = "draining" }, { address = "fd00::2" }]
        "#,
    );
    assert_eq!(config.interfaces, ["eth1"]);
    assert_eq!(config.xdp, XdpModes::NativeOrGeneric);
    assert_eq!((config.limits.pins, config.limits.icmp_errors), (1_000_000, 0));
    assert_eq!(config.tunnel.source_v4, (Ipv4Addr::new(10, 9, 0, 0), 24));
    assert!(matches!(config.seed, seed::Source::Given(seed) if seed[15] == 15));
    let service = &config.desired.services["quic"];
    assert_eq!((service.key.protocol, service.mode), (Protocol::Udp, Mode::Ipip));
    assert_eq!(service.udp_policy, UdpPolicy::Quic);
    assert_eq!((service.ring_slots, service.syn_budget), (1009, 0));
    assert_eq!(service.idle_timeout, Duration::from_secs(30));
    assert_eq!(config.desired.services["quic"].drain_deadline, Some(Duration::from_secs(5400)));
    assert_eq!(service.drain_silence, Duration::from_secs(120));
    let backend = service.backends.values().next().expect("there are two");
    assert_eq!(backend.weight.0.get(), 7);
    assert_eq!(backend.admin, Admin::Draining { deadline: None });
}

#[test]
fn all_mistakes_are_told_at_once() {
    let found = mistakes(
        r#"interface = ["eth0"]
xpd = "native"
socket = "lbd.sock"
seed = "12"

[limits]
pins = 0
backend = 5

[[service]]
name = "web"
vip = "10.0.0.300"
port = 70000
protocol = "tpc"
mode = "drs"
idle_timeout = 900
udp = "quick"

[[service.backend]]
adress = "10.0.0.11"

[[service.backend]]
address = "10.0.0.12:0"
weight = 0

[[service]]
name = "web"
vip = "0.0.0.0"
port = 80
protocol = "tcp"
mode = "dsr"
"#,
    );
    let expected = [
        "1:13: interface: an array instead of a string; write interfaces = [\"eth0\"]",
        "2:1: xpd: unknown key; did you mean `xdp`?",
        "3:10: socket: `lbd.sock` is not absolute; begin it with `/`",
        "4:8: seed: 2 characters that are no seed; write 32 hexadecimal digits in quotes, as `openssl rand -hex 16` prints them",
        "7:8: limits.pins: 0 is out of range; a number from 1 to 67108864 is expected",
        "8:1: limits.backend: unknown key; did you mean `backends`?",
        "12:7: service[0].vip: `10.0.0.300` is no IP address; write one as \"10.0.0.100\", or a prefix as \"198.51.100.0/28\"",
        "13:8: service[0].port: 70000 is out of range; a number from 1 to 65535 is expected",
        "14:12: service[0].protocol: `tpc` is unknown; did you mean \"tcp\"? (\"tcp\", \"udp\")",
        "15:8: service[0].mode: `drs` is unknown; did you mean \"dsr\"? (\"dsr\", \"ipip\", \"nat\")",
        "16:16: service[0].idle_timeout: an integer instead of a string; write idle_timeout = \"15m\"",
        "17:7: service[0].udp: `quick` is unknown; did you mean \"quic\"? (\"oneshot\", \"tracked\", \"quic\")",
        "19:1: service[0].backend[0]: `address` is missing; add address = \"10.0.0.11\"",
        "20:1: service[0].backend[0].adress: unknown key; did you mean `address`?",
        "23:11: service[0].backend[1].address: `10.0.0.12:0` has port 0; a number from 1 to 65535 is expected",
        "24:10: service[0].backend[1].weight: weight 0; use 'drain' to take a backend out of service",
        "27:8: service[1].name: service web is service[0] already; give each its own name",
    ];
    assert_eq!(found, expected);
}

#[test]
fn hooks_are_for_all_interfaces_or_by_interface() {
    let with = |lines: &str| format!("interfaces = [\"eth0\", \"br0\"]\n{lines}\n");
    let hooks = |lines: &str| parse(&with(lines)).hooks;
    let of = |hooks: &Hooks| (hooks.of("eth0"), hooks.of("br0"), hooks.tc_order);
    assert_eq!(of(&hooks("")), (Attach::Auto, Attach::Auto, TcOrder::First));
    assert_eq!(of(&hooks("attach = \"tc\"")), (Attach::Tc, Attach::Tc, TcOrder::First));
    let mixed = hooks("attach = { br0 = \"tc\" }\ntc_order = \"last\"");
    assert_eq!(of(&mixed), (Attach::Auto, Attach::Tc, TcOrder::Last));
    let found = mistakes(&with("attach = \"tx\"\ntc_order = \"middle\""));
    assert_eq!(
        found,
        [
            "2:10: attach: `tx` is unknown; write one of \"auto\", \"xdp\", \"tc\"",
            "3:12: tc_order: `middle` is unknown; write one of \"first\", \"last\"",
        ]
    );
    let found = mistakes(&with("[attach]\neth1 = \"tc\"\nbr0 = \"generic\""));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("3:8: attach.eth1: eth1 is not one of `interfaces`"), "{found:?}");
    assert!(found[1].starts_with("4:7: attach.br0: `generic` is unknown"), "{found:?}");
}

#[test]
fn an_unknown_type_of_check_is_one_mistake() {
    let service = "interface = \"a\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\n\
                   protocol = \"tcp\"\nmode = \"dsr\"\n";
    let found =
        mistakes(&format!("{service}[service.check]\ntype = \"htp\"\npath = \"/healthz\"\n"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`htp` is unknown; did you mean \"http\"?"), "{found:?}");
    let found =
        mistakes(&format!("{service}[[service.backend]]\naddress = \"10.0.0.11\"\nweight = -1\n"));
    let expected = "weight `-1`; a number from 1 to 65535 is expected";
    assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}");
}

#[test]
fn a_service_without_backends_is_doubted() {
    let service = "interface = \"a\"\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\n\
                   protocol = \"tcp\"\nmode = \"dsr\"\n";
    let doubts =
        |text: &str| parse(text).warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    let found = doubts(service);
    assert!(found.len() == 1 && found[0].contains("it has no backend"), "{found:?}");
    let with = format!("{service}[[service.backend]]\naddress = \"10.0.0.11\"\n");
    assert_eq!(doubts(&with), [""; 0]);
}

#[test]
fn a_mistake_hides_no_other_of_its_service() {
    let found = mistakes(
        r#"interfaces = ["eth0"]

[[service]]
vip = "10.0.0.100"
port = 0
protocol = "tcp"
mode = "dsr"
ring_slots = 100
backend = [{ address = "fd00::1" }]
"#,
    );
    let expected = [
        "3:1: service[0]: `name` is missing; add name = \"web\"",
        "5:8: service[0].port: 0 is out of range; a number from 1 to 65535 is expected",
        "8:14: service[0].ring_slots: 100 slots; Maglev needs a prime: the next one is 101",
        "9:24: service[0].backend[0].address: fd00::1 is IPv6 and the VIP 10.0.0.100 IPv4; dsr sends packets on unchanged: give the backend's IPv4 address, or use mode ipip",
    ];
    assert_eq!(found, expected);
}

#[test]
fn rules_between_values_have_their_place() {
    let found = mistakes(
        r#"interfaces = ["eth0"]
[limits]
backends = 2

[[service]]
name = "one"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
ring_slots = 100
backend = [{ address = "fd00::1" }, { address = "10.0.0.100" }]

[[service]]
name = "two"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "ipip"
backend = [{ address = "10.0.0.1" }, { address = "10.0.0.1" }]
"#,
    );
    let expected = [
        "1:1: limits.backends: 3 backends, but limits.backends is 2; raise it",
        "11:14: service[0].ring_slots: 100 slots; Maglev needs a prime: the next one is 101",
        "12:24: service[0].backend[0].address: fd00::1 is IPv6 and the VIP 10.0.0.100 IPv4; dsr sends packets on unchanged: give the backend's IPv4 address, or use mode ipip",
        "12:49: service[0].backend[1].address: 10.0.0.100 is a VIP of service two; give the backend's own address",
        "16:7: service[1].vip: tcp 10.0.0.100:80 is service one already",
        "20:50: service[1].backend[1].address: backend 10.0.0.1 is there already; give each backend once, with its weight",
    ];
    assert_eq!(found, expected);
}

#[test]
fn broken_syntax_has_its_line() {
    let found = mistakes("interfaces = [\"eth0\"]\nxdp = \nsocket = \"/run/x\nport 80\n");
    assert!(found.len() >= 2, "{found:#?}");
    assert!(found[0].starts_with("2:"), "{found:#?}");
}

#[test]
fn no_interface_is_a_mistake() {
    assert_eq!(mistakes(""), ["1:1: `interfaces` is missing; add interfaces = [\"eth0\"]"]);
    assert_eq!(
        mistakes("interfaces = []"),
        ["1:14: interfaces: no interface; name at least one, as interfaces = [\"eth0\"]"]
    );
    assert_eq!(
        mistakes("interfaces = [\"a\", \"a\"]"),
        ["1:20: interfaces[1]: a is named twice; once is enough"]
    );
    let long = mistakes("interface = \"averylongnameofalink\"");
    assert!(long[0].contains("20 characters, where 15 are possible"), "{long:?}");
    let odd = mistakes("interface = \"a b\"");
    assert!(odd[0].contains("`ip link` lists them"), "{odd:?}");
}

#[test]
fn single_mistakes_say_what_would_be_right() {
    for (line, message) in [
        (
            "ring_slots = 1048583",
            "8:14: service[0].ring_slots: 1048583 is out of range; a number from 2 to 1048573 is expected",
        ),
        (
            "idle_timeout = \"13h\"",
            "8:16: service[0].idle_timeout: `13h` is out of range; from 1s to 12h is possible",
        ),
        (
            "idle_timeout = \"15\"",
            "8:16: service[0].idle_timeout: `15` is no duration; write a number and its unit, as 500ms, 30s, 15m or 2h",
        ),
        (
            "udp = \"oneshot\"",
            "8:7: service[0].udp: `udp` is for services with protocol = \"udp\"; remove it",
        ),
        ("backends = []", "8:1: service[0].backends: unknown key; did you mean `backend`?"),
        (
            "seed_file = \"/etc/lb/seed\"",
            "8:1: service[0].seed_file: unknown key here; the top level of the file has a key `seed_file`, which stands above the first [table]",
        ),
        (
            "backend = 5",
            "8:11: service[0].backend: an integer instead of tables; begin each with [[service.backend]]",
        ),
        (
            "backend = [{ address = \"10.0.0.1\", weight = -1 }]",
            "8:45: service[0].backend[0].weight: weight `-1`; a number from 1 to 65535 is expected",
        ),
        (
            "backend = [{ address = \"10.0.0.1\", state = \"drain\" }]",
            "8:44: service[0].backend[0].state: `drain` is unknown; did you mean \"draining\"? (\"enabled\", \"draining\", \"disabled\")",
        ),
        (
            "drain_deadline = \"0s\"",
            "8:18: service[0].drain_deadline: `0s` is out of range; from 1s to 30d is possible",
        ),
        (
            "drain_silence = \"0s\"",
            "8:17: service[0].drain_silence: `0s` is out of range; from 1s to 12h is possible",
        ),
        (
            "drain_silence = 90",
            "8:17: service[0].drain_silence: an integer instead of a string; write drain_silence = \"90s\"",
        ),
    ] {
        assert_eq!(mistake_of(line), message);
    }
}

#[test]
fn prefixes_end_in_zeros() {
    for (key, value) in [
        ("source_v4", "172.16.0.1/16"),
        ("source_v4", "172.16.0.0"),
        ("source_v4", "172.16.0.0/33"),
        ("source_v6", "100::1/64"),
        ("source_v6", "100::/129"),
    ] {
        let found = mistakes(&format!("interface = \"eth0\"\n[tunnel]\n{key} = \"{value}\""));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("is no prefix; write an address and a length"), "{found:?}");
    }
    parse(
        "interface = \"eth0\"\n[tunnel]\nsource_v4 = \"10.0.0.1/32\"\nsource_v6 = \"fd00::1/128\"",
    );
}

#[test]
fn seed_is_given_once_and_never_shown() {
    let seed = "00ff00ff00ff00ff00ff00ff00ff00ff";
    let found = mistakes(&format!("interface = \"a\"\nseed = \"{seed}\"\nseed_file = \"/x\""));
    assert_eq!(found, ["2:8: seed: both `seed` and `seed_file` are given; keep one of them"]);
    let config = parse(&format!("interface = \"a\"\nseed = \"{seed}\""));
    assert!(!format!("{config:?}").contains("255"), "{config:?}");
}

#[test]
fn coarse_rings_are_a_doubt() {
    let config = parse(&format!(
        "interface = \"a\"{SERVICE}ring_slots = 101\nbackend = [{{ address = \"10.0.0.1\" }}, {{ address = \"10.0.0.2\" }}]"
    ));
    let doubts: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        doubts,
        [
            "8:14: service[0].ring_slots: 101 slots for 2 backends make shares coarse; at least 200 are recommended"
        ]
    );
}

#[test]
fn invalid_shows_file_and_count() {
    let problems = Config::parse("interfaces = []\nx = 1").expect_err("two mistakes");
    let invalid = Invalid { file: "/etc/lb/lb.toml".into(), problems };
    let text = invalid.to_string();
    assert!(text.starts_with("/etc/lb/lb.toml:1:14: interfaces: "), "{text}");
    assert!(text.ends_with("\n/etc/lb/lb.toml: 2 errors"), "{text}");
}

#[test]
fn only_what_the_data_plane_holds_needs_a_restart() {
    let old = parse("interface = \"a\"");
    let new = parse(&format!("interface = \"b\"\nlimits = {{ pins = 5 }}{SERVICE}"));
    assert_eq!(old.needs_restart(&new), ["interfaces", "limits"]);
    assert_eq!(old.needs_restart(&parse(&format!("interface = \"a\"{SERVICE}"))), [""; 0]);
}

#[test]
fn processes_of_the_node_are_served_unless_that_is_switched_off() {
    let clients = |text: &str| parse(&format!("interface = \"a\"\n{text}")).local_clients;
    assert_eq!(clients(""), LocalClients::All);
    let below = LocalClients::Below("/sys/fs/cgroup/a.slice".into());
    assert_eq!(clients("local_cgroup = \"/sys/fs/cgroup/a.slice\""), below);
    assert_eq!(clients("local_clients = false"), LocalClients::None);
    let off = "local_clients = false\nlocal_cgroup = \"/sys/fs/cgroup/a.slice\"";
    assert_eq!(clients(off), LocalClients::None);
}
