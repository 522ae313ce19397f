//! Examples of each command, for the man pages.

/// A command by its words after `lbctl`, and examples: what each does, and its line.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

/// Of every command that has no commands of its own.
const ALL: &[Examples] = &[
    (
        "status",
        &[
            ("Interfaces, services, backends and drops:", "lbctl status"),
            (
                "The packets dropped for lack of a backend, for a script:",
                "lbctl status -o json | jq .dropped.no_backend",
            ),
        ],
    ),
    ("service list", &[("All services, a line for each:", "lbctl service list")]),
    ("service show", &[("One service with its backends:", "lbctl service show web")]),
    (
        "service add",
        &[
            (
                "HTTP, with a check each second:",
                "lbctl service add web --vip 10.0.0.100 --port 80 --check http --check-path /healthz --check-interval 1s",
            ),
            (
                "DNS over UDP, where each datagram is for itself:",
                "lbctl service add dns --vip 10.0.0.100 --port 53 --protocol udp --udp oneshot",
            ),
        ],
    ),
    (
        "service remove",
        &[(
            "See what would break, then do it:",
            "lbctl service remove dns --dry-run\nlbctl service remove dns --yes",
        )],
    ),
    ("backend list", &[("The backends of one service:", "lbctl backend list web")]),
    (
        "backend show",
        &[(
            "State, checks, flows and counters of one backend:",
            "lbctl backend show web 10.0.0.11",
        )],
    ),
    (
        "backend add",
        &[
            ("With twice the share of the others:", "lbctl backend add web 10.0.0.13 --weight 2"),
            ("For when no other backend can serve:", "lbctl backend add web 10.0.0.14 --backup"),
        ],
    ),
    (
        "backend drain",
        &[
            (
                "Before the backend is stopped, wait until it is safe, for an hour at most:",
                "lbctl backend drain web 10.0.0.11 --wait --timeout 1h",
            ),
            (
                "Move flows that are left after ten minutes:",
                "lbctl backend drain web 10.0.0.11 --deadline 10m",
            ),
        ],
    ),
    ("backend enable", &[("After maintenance:", "lbctl backend enable web 10.0.0.11")]),
    (
        "backend disable",
        &[
            ("No new flows; those that it has stay:", "lbctl backend disable web 10.0.0.11"),
            (
                "A dead one, whose flows are to move at once:",
                "lbctl backend disable web 10.0.0.11 --force",
            ),
        ],
    ),
    (
        "backend weight",
        &[(
            "Three times the share of a backend with weight 1:",
            "lbctl backend weight web 10.0.0.11 3",
        )],
    ),
    (
        "backend remove",
        &[
            ("When its last flow has ended:", "lbctl backend remove web 10.0.0.11"),
            (
                "See which flows would move if it went at once:",
                "lbctl backend remove web 10.0.0.11 --force --dry-run",
            ),
        ],
    ),
    (
        "events",
        &[
            ("The last ten minutes:", "lbctl events --since 10m"),
            (
                "Of one service, since a moment:",
                "lbctl events --service web --since 2026-11-22T09:30:00Z",
            ),
            ("As they happen, as JSON, for a program:", "lbctl events --follow -o json"),
        ],
    ),
    ("top", &[("Live, until q is pressed:", "lbctl top")]),
    (
        "flows",
        &[
            ("Of one client:", "lbctl flows --client 198.51.100.7"),
            ("How many each backend of a service has:", "lbctl flows web --count"),
        ],
    ),
    (
        "capture",
        &[
            (
                "What is dropped, for a minute:",
                "lbctl capture --verdict dropped --duration 1m -w drops.pcapng",
            ),
            ("Live in tshark:", "lbctl capture -w - --service web | tshark -r -"),
        ],
    ),
    (
        "explain",
        &[
            (
                "To which backend a client's next connection goes, and why:",
                "lbctl explain tcp 198.51.100.7:4242 10.0.0.100:80",
            ),
            (
                "The same for each TCP service of a VIP:",
                "lbctl explain tcp 198.51.100.7 10.0.0.100",
            ),
            (
                "Compared with the loaded program:",
                "lbctl explain tcp 198.51.100.7:4242 10.0.0.100:80 --ack --verify",
            ),
            ("The packets of a capture:", "lbctl explain --pcap drops.pcapng"),
        ],
    ),
    ("node status", &[("Whether this node is enabled:", "lbctl node status")]),
    (
        "node drain",
        &[(
            "Before a reboot, wait until no packet comes any more:",
            "lbctl node drain --wait --timeout 15m",
        )],
    ),
    ("node enable", &[("After the reboot:", "lbctl node enable")]),
    ("vrrp status", &[("Who is Active, and what the peers know:", "lbctl vrrp status")]),
    (
        "vrrp failover",
        &[
            ("See what it would do:", "lbctl vrrp failover --all --dry-run"),
            ("Hand one virtual router over:", "lbctl vrrp failover main"),
        ],
    ),
    ("sync status", &[("What was exchanged with each peer:", "lbctl sync status")]),
    (
        "sync key",
        &[(
            "A key, to be copied to the other nodes:",
            "(umask 027; lbctl sync key > /etc/lb/sync.key; chgrp lb /etc/lb/sync.key)",
        )],
    ),
    (
        "config check",
        &[(
            "Every mistake of a file, before it is copied to a node:",
            "lbctl config check ./lb.toml",
        )],
    ),
    (
        "config reload",
        &[(
            "See what it would do, then do it:",
            "lbctl config reload --dry-run\nlbctl config reload",
        )],
    ),
    ("config diff", &[("Has anybody changed something by hand?", "lbctl config diff --exit-code")]),
    ("config show", &[("What is in force, to compare two nodes:", "lbctl config show > lb1.toml")]),
    (
        "config save",
        &[(
            "See the lines that change, then write them:",
            "lbctl config save --dry-run\nlbctl config save",
        )],
    ),
    (
        "log level",
        &[
            ("What is logged:", "lbctl log level"),
            ("More of VRRP, for ten minutes:", "lbctl log level info,vrrp=debug --for 10m"),
        ],
    ),
    ("detach", &[("See what would end, then end it:", "lbctl detach --dry-run\nlbctl detach")]),
    (
        "decap attach",
        &[(
            "For the balancers' default tunnel sources:",
            "lbctl decap attach --dev eth0 --from 172.16.0.0/16 100::/64",
        )],
    ),
    (
        "decap run",
        &[(
            "In the foreground, where no lb-decap@eth0.service runs it:",
            "lbctl decap run --dev eth0 --from 172.16.0.0/16 100::/64",
        )],
    ),
    ("decap detach", &[("From one interface:", "lbctl decap detach --dev eth0")]),
    ("decap status", &[("What it takes, and has counted:", "lbctl decap status")]),
    ("doctor", &[("On a balancer, only what is not as it should be:", "lbctl doctor --quiet")]),
    ("doctor backend", &[("On a backend:", "lbctl doctor backend --vip 10.0.0.100 --port 80")]),
];

/// Examples of a command by its words after `lbctl`: what each does, and its lines. A command that only
/// has commands of its own has none.
#[must_use]
pub fn examples(command: &str) -> &'static [(&'static str, &'static str)] {
    ALL.iter().find(|(name, _)| *name == command).map_or(&[], |(_, examples)| examples)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    /// The commands that do something themselves.
    fn leaves(command: &Command, path: &str, found: &mut Vec<String>) {
        let mut commands = command.get_subcommands().peekable();
        if commands.peek().is_none() || !command.is_subcommand_required_set() {
            found.push(path.to_owned());
        }
        for command in commands {
            leaves(command, format!("{path} {}", command.get_name()).trim_start(), found);
        }
    }

    #[test]
    fn every_command_has_an_example_and_no_other_has() {
        let mut commands = Vec::new();
        leaves(&Cli::command(), "", &mut commands);
        let mut named: Vec<_> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
        commands.sort();
        named.sort();
        assert_eq!(named, commands);
    }

    #[test]
    fn examples_are_what_the_grammar_takes() {
        for (name, examples) in ALL {
            assert!(!examples.is_empty(), "{name}");
            for line in examples.iter().flat_map(|(_, lines)| lines.lines()) {
                let (_, words) = line.split_once("lbctl ").expect(line);
                assert!(words.starts_with(name), "{line} is no example of {name}");
                let words = words.split([';', '|', '>']).next().expect("the first part");
                let words = std::iter::once("lbctl").chain(words.split_whitespace());
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }
}
