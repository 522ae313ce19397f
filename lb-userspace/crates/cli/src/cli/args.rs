//! The grammar of `lbctl`.

use std::num::NonZeroU16;
use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use clap_complete::ArgValueCandidates;
use lb_model::{
    backend_address::BackendAddress,
    defaults,
    desired::{Mode, Ports, Protocol, Service, ServiceKey, UdpPolicy, Vips, Weight},
    rules,
    units::{parse_duration, whole_secs},
};

use super::{
    Misuse,
    capture::CaptureArgs,
    check::{CheckArgs, PolicyArgs},
    complete,
    decap::DecapCommand,
    doctor::DoctorArgs,
    drain_wait::Until,
    events::EventsArgs,
    explain::ExplainArgs,
    flows::FlowsArgs,
    log::LogCommand,
    node::NodeCommand,
    options::{BackendSelector, Confirm, Dry, Output, number, word},
    top::TopArgs,
    vrrp::{SyncCommand, VrrpCommand},
};

/// Operates the load balancer: connects to lbd's socket.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, arg_required_else_help = true)]
pub struct Cli {
    /// The socket that lbd listens on.
    #[arg(long, global = true, env = "LB_SOCKET", default_value = defaults::SOCKET)]
    pub(super) socket: PathBuf,
    /// How to print: for people, or for programs.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(super) output: Output,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show interfaces, services, backends and what was dropped.
    Status,
    /// List, show, add and remove services.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// List, show, add, drain, enable, disable, weigh and remove backends.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Show what has happened, and follow what happens.
    Events(EventsArgs),
    /// Watch services, backends and flows as they are from second to second.
    Top(TopArgs),
    /// Show which client is on which backend: pins, tracked UDP flows, QUIC connections.
    Flows(FlowsArgs),
    /// Save packets before and after the decision, with the verdict, as pcapng for Wireshark.
    Capture(CaptureArgs),
    /// Show what the balancer does with a packet, and why, step by step; nothing is changed.
    Explain(Box<ExplainArgs>),
    /// Show this node, and take it out for maintenance.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show the virtual routers, and hand their addresses over to another node.
    #[command(subcommand)]
    Vrrp(VrrpCommand),
    /// Show the peers that know this node's flows, and make a key for them.
    #[command(subcommand)]
    Sync(SyncCommand),
    /// Check, show, compare, reload and save the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show and change how much lbd logs.
    #[command(subcommand)]
    Log(LogCommand),
    /// Stop forwarding: remove the program from the interfaces, and all that is pinned.
    ///
    /// Without a running lbd, the addresses of virtual routers, their interfaces and the table of
    /// nftables go as well. They are found by marks that each lbd of this network namespace has, so it
    /// asks, or takes --yes, if one runs that has another socket.
    Detach {
        /// Where links and maps are pinned, for when lbd is not running; without it, the
        /// configured folder.
        #[arg(long)]
        pin_dir: Option<PathBuf>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// On a backend: take packets out of their tunnel without a tunnel device.
    #[command(subcommand)]
    Decap(DecapCommand),
    /// Examine this machine: what is wrong, why it matters, and the command that fixes it.
    Doctor(DoctorArgs),
}

/// What to do with services.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// List all services.
    List,
    /// Show one service and its backends.
    Show {
        /// The service's name.
        #[arg(add = ArgValueCandidates::new(complete::services))]
        service: String,
    },
    /// Add a service.
    Add(Box<ServiceAdd>),
    /// Remove a service.
    Remove {
        /// The service's name.
        #[arg(add = ArgValueCandidates::new(complete::services))]
        service: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// A service to add.
#[derive(Debug, Args)]
pub(super) struct ServiceAdd {
    /// The service's name.
    pub(super) service: String,
    /// The virtual IP, or a prefix of them, as 198.51.100.0/28.
    #[arg(long, value_parser = str::parse::<Vips>)]
    vip: Vips,
    /// The port that clients connect to, a range, as 8000-8100, or any.
    #[arg(long, allow_negative_numbers = true, value_parser = str::parse::<Ports>)]
    port: Ports,
    /// The port that backends listen at which give none of their own.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = number::<u16>(1..=65_535))]
    target_port: Option<u16>,
    /// The protocol.
    #[arg(long, default_value = "tcp", value_name = "tcp|udp", value_parser = word::<Protocol>)]
    protocol: Protocol,
    /// dsr (the backends are on the link), ipip (they may be behind routers) or nat (their answers come back through this node).
    #[arg(long, default_value = "dsr", value_name = "dsr|ipip|nat", value_parser = word::<Mode>)]
    mode: Mode,
    /// For UDP: how datagrams of one client are kept together.
    #[arg(long, value_name = "oneshot|tracked|quic", value_parser = word::<UdpPolicy>)]
    udp: Option<UdpPolicy>,
    /// How long a silent flow is kept, as 15m.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    idle_timeout: Option<Duration>,
    /// Slots of the ring, a prime.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<u32>(2..=rules::MAX_RING_SLOTS.into()))]
    ring_slots: Option<u32>,
    /// Flows per second that may be pinned while backends change.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<u32>(0..=u32::MAX.into()))]
    syn_budget: Option<u32>,
    /// How long a drain may take, as 1h; without it, as long as flows last.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain_deadline: Option<Duration>,
    /// How long flows of a backend have no packet at least when its drain is over by estimate, as 90s.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain_silence: Option<Duration>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    pub(super) dry: Dry,
}

/// What to do with backends.
#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// List the backends of a service, or of all.
    List {
        /// The service's name.
        #[arg(add = ArgValueCandidates::new(complete::services))]
        service: Option<String>,
    },
    /// Show one backend.
    Show(BackendSelector),
    /// Add a backend; it gets new flows at once.
    Add {
        /// The service's name.
        #[arg(add = ArgValueCandidates::new(complete::services))]
        service: String,
        /// The backend's address, with its port if that is not the service's: 10.0.1.10, 10.0.1.10:6432.
        address: BackendAddress,
        /// A name that stands for its address in other commands.
        #[arg(long)]
        name: Option<String>,
        /// Its share, against the other backends' weights.
        #[arg(long, default_value = "1", allow_negative_numbers = true)]
        weight: Weight,
        /// Let it serve only while no backend that is no backup can.
        #[arg(long)]
        backup: bool,
        #[command(flatten)]
        check: CheckArgs,
        #[command(flatten)]
        dry: Dry,
    },
    /// Give a backend no new flows, and let the ones that it has end.
    ///
    /// A drain is over by estimate when clients have closed all pinned flows (FIN or RST, and nothing
    /// for five seconds since), and no packet has come of any flow for the service's drain_silence (90
    /// seconds by default), or for twice as long as older flows have been silent and gone on. Then it is
    /// safe to stop the backend, unless a client is silent for longer. It is proven to be over when all
    /// flows have been silent for the service's idle timeout. Neither end moves a flow; a deadline does. A
    /// Backup without the flow sync does not know, and exits with 1: run it on the Active.
    Drain {
        #[command(flatten)]
        target: BackendSelector,
        /// Return when no flow is left, and print how that is known.
        #[arg(long)]
        wait: bool,
        /// How certain the end is that is waited for.
        #[arg(long, value_enum, default_value_t = Until::Estimated, requires = "wait")]
        until: Until,
        /// Move flows that are left after this time, as 10m.
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        deadline: Option<Duration>,
        /// Wait no longer than this, as 15m; then print what is left, and exit with 1.
        #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
        timeout: Option<Duration>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Give a backend new flows again.
    Enable {
        #[command(flatten)]
        target: BackendSelector,
        #[command(flatten)]
        dry: Dry,
    },
    /// Give a backend no new flows.
    Disable {
        #[command(flatten)]
        target: BackendSelector,
        /// And move the flows that it has, at once.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Change a backend's share.
    Weight {
        #[command(flatten)]
        target: BackendSelector,
        /// 1 to 65535, against the other backends' weights.
        #[arg(allow_negative_numbers = true)]
        weight: Weight,
        #[command(flatten)]
        dry: Dry,
    },
    /// Remove a backend when its last flow has ended.
    Remove {
        #[command(flatten)]
        target: BackendSelector,
        /// At once; its flows move.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every mistake in a file; exit with 2 if there is one.
    Check {
        /// The file.
        #[arg(default_value = defaults::CONFIG)]
        file: PathBuf,
    },
    /// Have lbd apply what has changed in its file, and print the changes.
    ///
    /// The last change wins: a value that the file has changed since replaces what lbctl set, and
    /// is named; all other changes by lbctl stay.
    Reload(Dry),
    /// Show what is in force, in the file's syntax; passwords and seeds are hidden.
    Show,
    /// Show what lbctl changed against the configuration, and what a reload would change.
    Diff {
        /// Exit with 1 if there are differences, or mistakes in the file.
        #[arg(long)]
        exit_code: bool,
    },
    /// Have lbd write into its file what lbctl changed; comments and order stay.
    Save {
        /// Only show how the file would change.
        #[arg(long)]
        dry_run: bool,
    },
}

impl ServiceAdd {
    /// The service that is meant.
    pub(super) fn service(&self) -> Result<Service> {
        if self.udp.is_some() && self.protocol != Protocol::Udp {
            return Err(Misuse("--udp is for services with --protocol udp".into()).into());
        }
        let key = ServiceKey::of(self.vip, self.port, self.protocol);
        let mut service = Service { key, ..Service::new(self.vip.first(), 1, self.mode) };
        service.udp_policy = self.udp.unwrap_or_default();
        service.policy = self.policy.policy()?;
        service.target_port = self.target_port.and_then(NonZeroU16::new);
        service.syn_budget = self.syn_budget.unwrap_or(service.syn_budget);
        service.ring_slots = self.ring_slots.unwrap_or(service.ring_slots);
        let drain_deadline = self.drain_deadline.map(whole_secs);
        service.drain_deadline = drain_deadline.map(Duration::from_secs);
        service.idle_timeout = self.idle_timeout.unwrap_or(service.idle_timeout);
        service.drain_silence = self.drain_silence.unwrap_or(service.drain_silence);
        Ok(service)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn misuse_is_told_by_the_grammar() {
        for (line, expected) in [
            ("backend weight web 10.0.0.1 0", "use 'drain' to take a backend out of service"),
            ("backend add web 10.0.0.300", "`10.0.0.300` is no address of a backend; write one as"),
            (
                "backend add web web1.example",
                "`web1.example` is no address of a backend; write one as",
            ),
            ("backend add web 10.77.0.13:0", "`10.77.0.13:0` has port 0"),
            ("backend weight web 10.0.0.1 -1", "weight `-1`; a number from 1 to 65535 is expected"),
            ("backend add web 10.0.0.1 --weight -1", "weight `-1`; a number from 1 to 65535"),
            (
                "service add web --vip 10.0.0.1:80 --port 80",
                "has a port in it; write the address alone",
            ),
            ("service add web --vip 10.0.0.1 --port 1 --mode drs", "did you mean \"dsr\"?"),
            ("backend drain web 10.0.0.1 --deadline 10", "is no duration"),
            ("backend drain web 10.0.0.1 --timeout 10s", "--wait"),
            ("backend drain web 10.0.0.1 --until proven", "--wait"),
            (
                "backend drain web 10.0.0.1 --wait --until soon",
                "[possible values: estimated, proven]",
            ),
            (
                "service add web --vip 10.0.0.1 --port 0",
                "0 is out of range; a number from 1 to 65535 is expected",
            ),
            (
                "service add web --vip 10.0.0.1 --port -1",
                "-1 is out of range; a number from 1 to 65535",
            ),
            (
                "service add w --vip 10.0.0.1 --port 1 --ring-slots 0",
                "0 is out of range; a number from 2 to 1048573",
            ),
            (
                "service add w --vip 10.0.0.1 --port www",
                "`www` is no port; write 80, a range as 8000-8100, or any",
            ),
            (
                "service add w --vip 10.0.0.1 --port 1 --syn-budget -1",
                "-1 is out of range; a number from 0 to",
            ),
            (
                "service add w --vip 10.0.0.1/28 --port 1",
                "`10.0.0.1` is not the first address of its /28",
            ),
            ("service add w --vip 10.0.0.1 --port 90-80", "`90-80` ends before it begins"),
            ("doctor backend --vip web1", "`web1` is no IP address; write one as"),
            ("decap attach --dev eth0 --vip 10.0.0.1:80", "write the address alone"),
            ("explain tcp web1 10.0.0.1", "`web1` is no address; write one as 10.0.0.100:80"),
            (
                "service add web --vip 10.0.0.1 --port 1 --mode masq",
                "`masq` is unknown; write one of \"dsr\", \"ipip\", \"nat\"",
            ),
            ("servcie list", "'service'"),
        ] {
            let error = Cli::try_parse_from(["lbctl"].into_iter().chain(line.split(' ')));
            let error = error.expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }
}
