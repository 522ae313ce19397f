//! The values that `[sync]` accepts, and the errors for others.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::Config as Whole;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A file with these lines in `[sync]`, of which the first one has number 1.
fn with(lines: &str) -> String {
    format!("interfaces = [\"eth0\"]\n[sync]\n{lines}\n")
}

fn sync(lines: &str) -> Config {
    let config = Whole::parse(&with(lines)).unwrap_or_else(|problems| panic!("{problems:#?}"));
    config.sync.expect("there is one")
}

fn mistakes(lines: &str) -> Vec<String> {
    let problems = Whole::parse(&with(lines)).expect_err(lines);
    let lines = problems.into_iter().map(|problem| {
        format!("{}:{}: {}: {}", problem.line - 2, problem.column, problem.path, problem.message)
    });
    lines.collect()
}

fn pair() -> String {
    format!("key = \"{KEY}\"\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\n")
}

#[test]
fn without_the_table_there_is_no_peer() {
    let config = Whole::parse("interfaces = [\"eth0\"]").expect("it is valid");
    assert_eq!(config.sync, None);
}

#[test]
fn a_pair_needs_three_lines() {
    let read = sync(&pair());
    let key = Key(std::array::from_fn(|index| index as u8));
    assert_eq!((read.key, read.rate.get()), (key, 12_500_000));
    assert_eq!(read.listen, "10.0.0.2:3780".parse().expect("an address"));
    assert_eq!(read.peers, ["10.0.0.3:3780".parse().expect("an address")]);
    assert_eq!((read.multicast, read.timeout), (None, Duration::from_secs(1)));
    assert!(!read.node.is_empty(), "the host has a name");
}

#[test]
fn all_keys_arrive() {
    let read = sync(&format!(
        "key = \"{KEY}\"\nlisten = \"[fd00::2]:1\"\npeers = [\"[fd00::3]:1\", \"[fd00::4]:2\"]\n\
         node = \"lb-1\"\nrate = \"34Gbit\"\ntimeout = \"300ms\"\n\
         multicast = {{ group = \"[ff02::7]:3\", interface = \"eth1\" }}\n"
    ));
    assert_eq!((read.node.as_str(), read.rate.get()), ("lb-1", 4_250_000_000));
    assert_eq!(read.peers.len(), 2);
    let group = "[ff02::7]:3".parse().expect("an address");
    assert_eq!(read.multicast, Some((group, "eth1".into())));
    assert_eq!(read.timeout.as_millis(), 300);
}

#[test]
fn what_the_example_says_is_valid_and_the_default() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("sync.key");
    fs::write(&file, KEY).expect("it is written");
    let example = include_str!("../../../../../deploy/lb.toml");
    let at = example.find("#     [sync]").expect("it is there");
    let lines = example[at..].lines().map(|line| line.trim_start_matches("#     "));
    let lines: Vec<_> = lines.filter(|line| !line.starts_with("[sync]")).collect();
    assert_eq!(lines.len(), 7);
    let lines = lines.join("\n").replace("/etc/lb/sync.key\"", &format!("{}\"", file.display()));
    let (example, short) = (sync(&lines), sync(&pair()));
    assert_eq!((example.rate, example.timeout), (short.rate, short.timeout));
    assert_eq!((example.listen, &example.peers), (short.listen, &short.peers));
    assert_eq!(example.key, short.key);
}

#[test]
fn mistakes_say_what_would_be_right() {
    for (from, to, expected) in [
        (
            "10.0.0.3:3780",
            "[fd00::3]:3780",
            "3:10: sync.peers[0]: [fd00::3]:3780 is of another family than `listen`, 10.0.0.2:3780; give an IPv4 address",
        ),
        (
            "10.0.0.3:3780",
            "10.0.0.2:3780",
            "3:10: sync.peers[0]: 10.0.0.2:3780 is this node's own `listen`; name the others",
        ),
        (
            "10.0.0.3:3780",
            "10.0.0.3",
            "3:10: sync.peers[0]: `10.0.0.3` has no port; write \"10.0.0.3:3780\"",
        ),
        (
            "10.0.0.3:3780",
            "10.0.0.3:0",
            "3:10: sync.peers[0]: `10.0.0.3:0` has port 0; a number from 1 to 65535 is expected",
        ),
        (
            "10.0.0.2:3780",
            "0.0.0.0:3780",
            "2:10: sync.listen: `0.0.0.0:3780` is no address of one node; write one as \"10.0.0.2:3780\"",
        ),
        (
            "10.0.0.2:3780",
            "fd00::2",
            "2:10: sync.listen: `fd00::2` has no port; write \"[fd00::2]:3780\"",
        ),
        (
            "\"10.0.0.3:3780\"",
            "",
            "3:9: sync.peers: 0 peers; name 1 to 15, as peers = [\"10.0.0.3:3780\"]",
        ),
        (
            "\"10.0.0.3:3780\"",
            "\"10.0.0.3:1\", \"10.0.0.3:1\"",
            "3:24: sync.peers[1]: 10.0.0.3:1 is named twice; once is enough",
        ),
        (
            "peers =",
            "rate = \"100Mbps\"\npeers =",
            "3:8: sync.rate: `100Mbps` is no rate; write bits in a second, as \"100Mbit\" or \"1Gbit\"",
        ),
        (
            "peers =",
            "rate = \"999kbit\"\npeers =",
            "3:8: sync.rate: `999kbit` is out of range; from 1Mbit to 34Gbit is possible",
        ),
        (
            "peers =",
            "timeout = \"100ms\"\npeers =",
            "3:11: sync.timeout: `100ms` is out of range; from 300ms to 1m is possible",
        ),
        (
            "peers =",
            "node = \"a b\"\npeers =",
            "3:8: sync.node: name `a b`; a name is 1 to 63 letters, digits, `-`, `_` or `.`, and begins with none of `-.`",
        ),
        (
            "peers =",
            "multicast = { group = \"10.0.0.7:1\", interface = \"eth0\" }\npeers =",
            "3:23: sync.multicast.group: `10.0.0.7:1` is no multicast group; write one as \"239.0.0.7:3780\"",
        ),
        (
            "peers =",
            "multicast = { group = \"[ff02::7]:1\", interface = \"eth0\" }\npeers =",
            "3:23: sync.multicast.group: [ff02::7]:1 is of another family than `listen`, 10.0.0.2:3780; give an IPv4 address",
        ),
        (
            "peers =",
            "port = 1\npeers =",
            "3:1: sync.port: unknown key; the keys here are key, key_file, listen, peers, node, multicast, rate, timeout",
        ),
        (
            KEY,
            "0011",
            "1:7: sync.key: 4 characters that are no key; write 64 hexadecimal digits, as 'lbctl sync key' makes them",
        ),
    ] {
        assert_eq!(mistakes(&pair().replace(from, to)), [expected], "{to}");
    }
}

#[test]
fn what_is_missing_is_named_with_what_makes_it() {
    assert_eq!(
        mistakes(""),
        [
            "0:1: sync: `key_file` is missing; add key_file = \"/etc/lb/sync.key\", and make it with 'lbctl sync key'",
            "0:1: sync: `listen` is missing; add listen = \"10.0.0.2:3780\"",
            "0:1: sync: `peers` is missing; add peers = [\"10.0.0.3:3780\"]",
        ]
    );
    let file = "key_file = \"/nonexistent/sync.key\"";
    let lines = pair().replace(&format!("key = \"{KEY}\""), file);
    assert_eq!(
        mistakes(&lines),
        [
            "1:12: sync.key_file: /nonexistent/sync.key is missing; make it on one node with '(umask 027; lbctl sync key > /nonexistent/sync.key; chgrp lb /nonexistent/sync.key)', and copy it to the others"
        ]
    );
}

#[test]
fn a_key_s_file_holds_the_key_and_is_for_few() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("sync.key");
    let lines =
        pair().replace(&format!("key = \"{KEY}\""), &format!("key_file = \"{}\"", file.display()));
    fs::write(&file, format!("{KEY}\n")).expect("it is written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    assert_eq!(sync(&lines).key, sync(&pair()).key);
    let warnings = || Whole::parse(&with(&lines)).expect("it is valid").warnings;
    assert_eq!(warnings(), []);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).expect("it is ours");
    assert_eq!(warnings().len(), 1);
    assert_eq!((warnings()[0].line, warnings()[0].path.as_str()), (3, "sync.key_file"));
    fs::write(&file, &KEY[1..]).expect("it is written");
    assert_eq!(
        mistakes(&lines),
        [format!(
            "1:12: sync.key_file: {0} holds no key of 64 hexadecimal digits; copy it from another node, or make one for all with '(umask 027; lbctl sync key > {0}; chgrp lb {0})'",
            file.display()
        )]
    );
    fs::remove_file(&file).expect("it is there");
    fs::create_dir(&file).expect("it is free");
    assert!(mistakes(&lines)[0].ends_with("it is no file with a key"), "{:?}", mistakes(&lines));
}

#[test]
fn a_key_is_not_told() {
    let text = format!("{:?}", sync(&pair()));
    assert!(text.contains("Key(..)") && !text.contains("1, 2, 3"), "{text}");
}

#[test]
fn a_change_of_it_takes_a_restart_and_one_of_routers_does_not() {
    let parse = |text: &str| Whole::parse(text).expect("it is valid");
    let (before, after) = (parse(&with(&pair())), parse("interfaces = [\"eth0\"]"));
    assert_eq!(before.needs_restart(&after), ["sync"]);
    let router = "[[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"10.0.0.1\"]\n";
    let routed = parse(&format!("{}{router}", with(&pair())));
    assert_eq!(before.needs_restart(&routed), [""; 0]);
    assert_ne!(before.routers, routed.routers);
}
