//! Mistakes of virtual routers, and what is said of them.

use super::*;

#[test]
fn single_mistakes_say_what_would_be_right() {
    for (line, expected) in [
        (
            "priority = 0",
            "5:12: virtual_router[0].priority: 0 is out of range; a number from 1 to 255 is expected",
        ),
        (
            "owner = true\npriority = 100",
            "6:12: virtual_router[0].priority: the owner's priority is 255; remove this, or `owner`",
        ),
        (
            "owner = true\npreempt = false",
            "6:11: virtual_router[0].preempt: the owner always preempts; remove this, or give a priority below 255",
        ),
        (
            "preempt = false\npreempt_delay = \"5s\"",
            "6:17: virtual_router[0].preempt_delay: there is nothing to delay with `preempt = false`; remove one of them",
        ),
        (
            "interval = \"9ms\"",
            "5:12: virtual_router[0].interval: `9ms` is out of range; from 10ms to 40s950ms is possible",
        ),
        (
            "interval = \"41s\"",
            "5:12: virtual_router[0].interval: `41s` is out of range; from 10ms to 40s950ms is possible",
        ),
        (
            "interval = \"15ms\"",
            "5:12: virtual_router[0].interval: `15ms` is no multiple of 10ms, which is what advertisements count in",
        ),
        (
            "version = 2\ninterval = \"100ms\"",
            "6:12: virtual_router[0].interval: `100ms`, but version 2 counts whole seconds, from 1s to 255s; use version 3 for less",
        ),
        (
            "version = 4",
            "5:11: virtual_router[0].version: 4 is out of range; a number from 2 to 3 is expected",
        ),
        (
            "password = \"secret\"",
            "5:12: virtual_router[0].password: a password is for version = 2; version 3 has none: use hmac_key_file",
        ),
        (
            "version = 2\npassword = \"\"",
            "6:12: virtual_router[0].password: a password of 0 bytes; 1 to 8 go into an advertisement",
        ),
        (
            "hmac_key_id = 3",
            "5:15: virtual_router[0].hmac_key_id: `hmac_key_id` is the number of a key; add hmac_key_file = \"/etc/lb/vrrp.key\"",
        ),
        (
            "hmac_key_file = \"/nonexistent/vrrp.key\"",
            "5:17: virtual_router[0].hmac_key_file: /nonexistent/vrrp.key is missing; make it on one node with '(umask 027; lbctl sync key > /nonexistent/vrrp.key; chgrp lb /nonexistent/vrrp.key)', and copy it to the others",
        ),
        (
            "version = 2\nchecksum = \"message\"",
            "6:12: virtual_router[0].checksum: there is only one checksum for version 2 and for IPv6; remove this",
        ),
        (
            "checksum = \"pseudo\"",
            "5:12: virtual_router[0].checksum: `pseudo` is unknown; write one of \"pseudo-header\", \"message\"",
        ),
        (
            "virtual_mac = \"a.device.too.long\"",
            "5:15: virtual_router[0].virtual_mac: `a.device.too.long` is no name of an interface: 17 characters, where 15 are possible",
        ),
        (
            "virtual_mac = \"eth0\"",
            "5:15: virtual_router[0].virtual_mac: eth0 is an interface of the node; give another name",
        ),
        (
            "min_ttl = 254",
            "5:11: virtual_router[0].min_ttl: `min_ttl` is for unicast: multicast is never forwarded; remove it, or name `peers`",
        ),
        (
            "peers = [\"fd00::3\"]",
            "5:10: virtual_router[0].peers[0]: fd00::3 is no IPv4 address, as those of the router are",
        ),
        (
            "peers = [\"10.0.0.3\", \"10.0.0.3\"]",
            "5:22: virtual_router[0].peers[1]: 10.0.0.3 is named twice; once is enough",
        ),
        (
            "peers = [\"10.0.0.3:112\"]",
            "5:10: virtual_router[0].peers[0]: `10.0.0.3:112` is no IP address; write peers = [\"10.0.0.3\"]",
        ),
        (
            "peers = [\"10.0.0.100\"]",
            "4:14: virtual_router[0].addresses[0]: 10.0.0.100 is a peer; a virtual address is of no one node",
        ),
        (
            "source = \"224.0.0.18\"",
            "5:10: virtual_router[0].source: 224.0.0.18 is a multicast address; a unicast address of one host is expected",
        ),
        (
            "second_path = { interface = \"eth0\", peers = [\"10.1.0.3\"] }",
            "5:29: virtual_router[0].second_path.interface: eth0 is the first path already; name another interface",
        ),
        (
            "second_path = { interface = \"eth1\" }",
            "5:15: virtual_router[0].second_path: `peers` is missing; add second_path = { interface = \"eth1\", peers = [\"192.168.9.3\"] }",
        ),
        (
            "announce = { repeat = 0 }",
            "5:23: virtual_router[0].announce.repeat: 0 is out of range; a number from 1 to 100 is expected",
        ),
        (
            "notify = [\"notify\"]",
            "5:10: virtual_router[0].notify: `notify` is not absolute; begin it with `/`",
        ),
        (
            "notify = []",
            "5:10: virtual_router[0].notify: no program; write notify = [\"/usr/local/bin/notify\", \"--argument\"]",
        ),
        (
            "prioritty = 5",
            "5:1: virtual_router[0].prioritty: unknown key; did you mean `priority`?",
        ),
        (
            "track = [{ type = \"forward\" }]",
            "5:19: virtual_router[0].track[0].type: `forward` is unknown; did you mean \"forwarding\"? (\"interface\", \"forwarding\", \"service\", \"script\", \"file\")",
        ),
        (
            "track = [{ type = \"service\", service = \"wbe\" }]",
            "5:40: virtual_router[0].track[0].service: no service wbe; did you mean web?",
        ),
        (
            "track = [{ type = \"interface\", interface = \"eth1\", weight = -255 }]",
            "5:61: virtual_router[0].track[0].weight: -255 is out of range; a number from -254 to 254 is expected",
        ),
        (
            "priority = 255\ntrack = [{ type = \"interface\", interface = \"eth1\", weight = -9 }]",
            "6:61: virtual_router[0].track[0].weight: the priority of the owner does not change; only weight 0, a fault, is possible",
        ),
        (
            "track = [{ type = \"script\" }]",
            "5:10: virtual_router[0].track[0]: `command` is missing; add command = [\"/usr/local/bin/check\"]",
        ),
        (
            "track = [{ type = \"file\", path = \"priority\" }]",
            "5:34: virtual_router[0].track[0].path: `priority` is not absolute; begin it with `/`",
        ),
        (
            "track = [{ type = \"forwarding\", interface = \"eth0\" }]",
            "5:33: virtual_router[0].track[0].interface: unknown key; the keys here are weight, type",
        ),
        (
            "track_forwarding = false\ntrack = [{ type = \"forwarding\" }]",
            "5:20: virtual_router[0].track_forwarding: there is a track with type = \"forwarding\"; remove it, or this",
        ),
    ] {
        assert_eq!(mistakes(&format!("{MAIN}{line}\n")), [expected], "{line}");
    }
}

#[test]
fn mistakes_of_addresses_say_what_would_be_right() {
    for (addresses, expected) in [
        (
            "[]",
            "4:13: virtual_router[0].addresses: no address; name at least one, as addresses = [\"10.0.0.100\"]",
        ),
        (
            "\"10.0.0.100\"",
            "4:13: virtual_router[0].addresses: a string instead of an array; write addresses = [\"10.0.0.100\"]",
        ),
        (
            "[\"10.0.0.300\"]",
            "4:14: virtual_router[0].addresses[0]: `10.0.0.300` is no address; write one as \"10.0.0.100\" or \"10.0.0.100/24\"",
        ),
        (
            "[\"10.0.0.100/33\"]",
            "4:14: virtual_router[0].addresses[0]: a prefix of 33 bits; from 1 to 32 are possible",
        ),
        (
            "[\"127.0.0.1\"]",
            "4:14: virtual_router[0].addresses[0]: 127.0.0.1 is a loopback address; a unicast address of one host is expected",
        ),
        (
            "[\"10.0.0.100\", \"10.0.0.100/24\"]",
            "4:28: virtual_router[0].addresses[1]: 10.0.0.100 is named twice; once is enough",
        ),
        (
            "[\"10.0.0.11\"]",
            "4:14: virtual_router[0].addresses[0]: 10.0.0.11 is a backend of service web, and can't be a VIP",
        ),
        (
            "[{ address = \"fd00::1\", label = \"a\" }]",
            "4:45: virtual_router[0].addresses[0].label: labels are for IPv4 addresses; remove it",
        ),
        (
            "[{ address = \"10.0.0.1\", nodad = true }]",
            "4:46: virtual_router[0].addresses[0].nodad: `nodad` is for IPv6 addresses; remove it",
        ),
        (
            "[{ address = \"10.0.0.1\", label = \"eth0:a-long-label\" }]",
            "4:46: virtual_router[0].addresses[0].label: `eth0:a-long-label` is no label; write up to 15 signs, as \"eth0:vip\"",
        ),
        (
            "[{ address = \"10.0.0.1\", advertised = false }]",
            "4:13: virtual_router[0].addresses: no IPv4 address that is advertised; an IPv4 router has one at least",
        ),
        (
            "[\"10.0.0.1\", { address = \"fd00::1\", advertised = true }]",
            "4:62: virtual_router[0].addresses[1].advertised: advertisements over IPv4 can't name fd00::1; remove `advertised`, or give it a router of its own",
        ),
        (
            "[\"fd00::1\"]\nversion = 2",
            "5:11: virtual_router[0].version: version 2 knows IPv4 only; remove it: IPv6 is version 3",
        ),
        (
            "[\"10.0.0.1\"]\nfamily = \"ipv6\"",
            "4:13: virtual_router[0].addresses: no IPv6 address that is advertised; an IPv6 router has one at least",
        ),
    ] {
        let lines = MAIN.replace("[\"10.0.0.100\"]", addresses);
        assert_eq!(mistakes(&lines), [expected], "{addresses}");
    }
    let many: Vec<String> = (0..256).map(|n| format!("\"10.1.0.{n}\"")).collect();
    let lines = MAIN.replace("[\"10.0.0.100\"]", &format!("[{}]", many.join(",")));
    assert_eq!(
        mistakes(&lines),
        [
            "4:13: virtual_router[0].addresses: 256 addresses are more than an advertisement can name; give all but 255 advertised = false"
        ]
    );
}

#[test]
fn all_mistakes_of_a_router_are_told_at_once() {
    assert_eq!(
        mistakes("name = \"a b\"\nvrid = 256\npriority = \"high\"\n"),
        [
            "0:1: virtual_router[0]: `interface` is missing; add interface = \"eth0\"",
            "0:1: virtual_router[0]: `addresses` is missing; add addresses = [\"10.0.0.100\"]",
            "1:8: virtual_router[0].name: name `a b`; a name is 1 to 63 letters, digits, `-`, `_` or `.`, and begins with none of `-.`",
            "2:8: virtual_router[0].vrid: 256 is out of range; a number from 1 to 255 is expected",
            "3:12: virtual_router[0].priority: a string instead of a number; a number from 1 to 255 is expected",
        ]
    );
}

#[test]
fn routers_that_clash_are_told() {
    let second = |from: &str, to: &str| {
        let second = MAIN.replace("main", "other").replace("51", "52").replace("0.100", "0.101");
        let first = format!("{MAIN}virtual_mac = true\n");
        mistakes(&format!("{first}[[virtual_router]]\n{}", second.replace(from, to)))
    };
    for (from, to, expected) in [
        (
            "other",
            "main",
            "7:8: virtual_router[1].name: virtual router main is there already; give each its own name",
        ),
        (
            "52",
            "51",
            "9:8: virtual_router[1].vrid: IPv4 VRID 51 is virtual router main already, on eth0; give each one of the node its own",
        ),
        (
            "0.101",
            "0.100",
            "10:14: virtual_router[1].addresses[0]: 10.0.0.100 is an address of virtual router main already",
        ),
        (
            "vrid",
            "virtual_mac = \"vrrp.51\"\nvrid",
            "9:15: virtual_router[1].virtual_mac: vrrp.51 is the device of virtual router main already; give a name of its own, as virtual_mac = \"vrrp.other\"",
        ),
    ] {
        assert_eq!(second(from, to), [expected], "{to}");
    }
    // Of another family a VRID is another one.
    let other = MAIN.replace("main", "other").replace("10.0.0.100", "fd00::101");
    parse(&with(&format!("{MAIN}[[virtual_router]]\n{other}")));
    // But not on another link: nothing else than the key is sent to peers, and in orders.
    let other = MAIN.replace("main", "other").replace("0.100", "0.101").replace("eth0", "eth1");
    assert_eq!(
        mistakes(&format!("{MAIN}[[virtual_router]]\n{other}")),
        [
            "8:8: virtual_router[1].vrid: IPv4 VRID 51 is virtual router main already, on eth0; give each one of the node its own"
        ]
    );
    // And so is a link-local address.
    let local = |link: &str, name: &str| {
        MAIN.replace("10.0.0.100", "fe80::1").replace("eth0", link).replace("main", name)
    };
    parse(&with(&format!(
        "{}[[virtual_router]]\n{}",
        local("eth0", "a"),
        local("eth1", "b").replace("51", "52")
    )));
}

#[test]
fn groups_are_of_routers_that_there_are() {
    let two = format!("{MAIN}[[virtual_router]]\n{}", {
        MAIN.replace("main", "main6").replace("10.0.0.100", "fd00::100")
    });
    let group = "[[sync_group]]\nname = \"all\"\nrouters = [\"main\", \"main6\"]\n";
    let config = parse(&with(&format!("{two}{group}")));
    let routers = vec!["main".into(), "main6".into()];
    assert_eq!(config.routers.groups, [SyncGroup { name: "all".into(), routers }]);
    for (from, to, expected) in [
        (
            "\"main6\"",
            "\"main7\"",
            "12:20: sync_group[0].routers[1]: no virtual router main7; did you mean main?",
        ),
        (
            ", \"main6\"",
            "",
            "12:11: sync_group[0].routers: 1 of two routers or more; write routers = [\"main\", \"main6\"]",
        ),
        (
            "\"main6\"",
            "\"main\"",
            "12:20: sync_group[0].routers[1]: main is in sync group all already; a router is in one at most",
        ),
    ] {
        assert_eq!(mistakes(&format!("{two}{}", group.replace(from, to))), [expected], "{to}");
    }
    let twice = mistakes(&format!("{two}{group}{group}"));
    assert_eq!(twice.len(), 3, "{twice:#?}");
    assert!(twice[0].contains("sync group all is there already"), "{twice:#?}");
}
