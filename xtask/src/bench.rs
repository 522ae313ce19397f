//! `cargo xtask bench`: builds the benchmark optimised, and runs it as root.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use kit::{record, signals};

use crate::{
    cargo::{self, call},
    documents::{self, Saving},
    root, setup,
};

/// The programs that `http` needs beside those of the tests.
const HTTP: [(&str, &str); 4] = [
    ("wrk", "wrk"),
    ("ipvsadm", "ipvsadm"),
    ("perf", "linux-perf"),
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
];

#[derive(Subcommand)]
pub enum Bench {
    /// Cost of a packet in the program beside two floors, of a ring's change, and of the maps in
    /// memory
    Datapath {
        #[command(flatten)]
        saving: Saving,
        /// How often each case is measured [default: 11]
        #[arg(long)]
        rounds: Option<u32>,
        /// Packets in each measurement [default: 200000]
        #[arg(long)]
        packets: Option<u32>,
    },
    /// Instructions that a packet takes, here and with IPVS, in a virtual machine whose clock counts
    /// them: the same however busy this machine is
    Instructions(crate::instructions::Arguments),
    /// What a fault of one backend costs the clients, here and with HAProxy
    Failover {
        #[command(flatten)]
        saving: Saving,
        /// Only these systems and faults; the beginning of a name will do: `lb,haproxy-guides,killed`
        #[arg(long)]
        only: Option<String>,
    },
    /// What a failover of a pair costs the clients, here and with keepalived and HAProxy
    Vrrp {
        #[command(flatten)]
        saving: Saving,
        /// How often each fault comes [default: 20]
        #[arg(long)]
        trials: Option<u32>,
        /// Times between two advertisements [default: 1s,100ms,10ms]
        #[arg(long)]
        interval: Option<String>,
        /// Only these systems and faults; the beginning of a name will do: `lb,keepalived,killed`
        #[arg(long)]
        only: Option<String>,
    },
    /// Packets and CPU time of a pair's advertisements at each interval
    Advertisements {
        #[command(flatten)]
        saving: Saving,
        /// Times between two advertisements [default: 1s,100ms,10ms]
        #[arg(long)]
        interval: Option<String>,
        /// How long each is measured, in seconds [default: 20]
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Requests a second, latency and CPU time through lb, HAProxy, nginx, nftables and IPVS, and without
    /// a balancer; and where the time goes
    Http {
        #[command(flatten)]
        saving: Saving,
        /// How often each case is measured [default: 5]
        #[arg(long)]
        rounds: Option<u32>,
        /// How long each run takes, in seconds [default: 3]
        #[arg(long)]
        seconds: Option<u64>,
        /// Only these systems; the beginning of a name will do: `direct,lb,haproxy`
        #[arg(long)]
        only: Option<String>,
    },
    /// What floods of SYNs, datagrams, fragments, ICMP errors and nonsense cost legitimate traffic, and what
    /// they do to pins and to a table of all flows in the same memory
    Attack {
        #[command(flatten)]
        saving: Saving,
        /// How long each flood lasts, in seconds [default: 6]
        #[arg(long)]
        seconds: Option<u64>,
        /// Frames of a flood in a second, if this machine can send as many [default: 50000]
        #[arg(long)]
        rate: Option<u32>,
        /// Only these floods and parts; the beginning of a name will do: `syn,steady,tables`
        #[arg(long)]
        only: Option<String>,
    },
    /// CPU time of health checks, and how late they begin, with thousands of backends
    Health {
        #[command(flatten)]
        saving: Saving,
        /// How many backends are probed once a second [default: 4096]
        #[arg(long)]
        backends: Option<u32>,
        /// How long each case is measured, in seconds [default: 10]
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// What more services, backends, flows and pins cost: packets, changes, starts, memory, health checks;
    /// and the errors at the limits
    Scale {
        #[command(flatten)]
        saving: Saving,
        /// How often packets and changes are measured [default: 9]
        #[arg(long)]
        rounds: Option<u32>,
        /// Packets in each measurement [default: 524288]
        #[arg(long)]
        packets: Option<u32>,
        /// How often lbd is started at each size [default: 3]
        #[arg(long)]
        starts: Option<u32>,
        /// How long health checks are measured, in seconds for each kind [default: 5]
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// How long a scrape of /metrics takes, with a hundred services of ten backends each
    Metrics {
        #[command(flatten)]
        saving: Saving,
        /// How many services [default: 100]
        #[arg(long)]
        services: Option<u16>,
        /// How many scrapes [default: 40]
        #[arg(long)]
        scrapes: Option<u32>,
    },
}

/// Builds and runs a benchmark.
///
/// # Errors
///
/// If it does not build, or fails.
pub fn run(bench: &Bench) -> Result<()> {
    setup::tools()?;
    match bench {
        Bench::Datapath { saving, rounds, packets } => {
            let rounds = rounds.map(|rounds| rounds.to_string());
            let packets = packets.map(|packets| packets.to_string());
            let options = [("--rounds", rounds), ("--packets", packets)];
            measure("datapath", &[], *saving, options, "half a minute")
        }
        Bench::Instructions(arguments) => crate::instructions::run(arguments),
        Bench::Failover { saving, only } => {
            setup::lab_with(&["haproxy"])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            measure(
                "failover",
                &["haproxy", "nginx"],
                *saving,
                [("--only", only.clone())],
                "a quarter of an hour, or 10 to 25 s a line of what `--only` leaves",
            )
        }
        Bench::Vrrp { saving, trials, interval, only } => {
            setup::lab_with(&["haproxy", "keepalived", "nft"])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let trials = trials.map(|trials| trials.to_string());
            measure(
                "vrrp",
                &["haproxy", "keepalived", "nginx"],
                *saving,
                [("--trials", trials), ("--interval", interval.clone()), ("--only", only.clone())],
                "an hour and a half, or 20 to 60 s a trial of all faults and both systems",
            )
        }
        Bench::Advertisements { saving, interval, seconds } => {
            setup::lab_with(&[])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let seconds = seconds.map(|seconds| seconds.to_string());
            let options = [("--interval", interval.clone()), ("--seconds", seconds)];
            measure("advertisements", &[], *saving, options, "a minute and a half")
        }
        Bench::Http { saving, rounds, seconds, only } => {
            setup::lab_with(&["haproxy", "iperf3", "nft"])?;
            setup::these(&HTTP)?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let rounds = rounds.map(|rounds| rounds.to_string());
            let seconds = seconds.map(|seconds| seconds.to_string());
            let programs = ["haproxy", "iperf3", "ipvsadm", "nft", "nginx", "perf", "wrk"];
            let options = [("--rounds", rounds), ("--seconds", seconds), ("--only", only.clone())];
            measure("http", &programs, *saving, options, "seventeen minutes")
        }
        Bench::Attack { saving, seconds, rate, only } => {
            setup::lab_with(&["nft"])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let seconds = seconds.map(|seconds| seconds.to_string());
            let rate = rate.map(|rate| rate.to_string());
            let options = [("--seconds", seconds), ("--rate", rate), ("--only", only.clone())];
            measure("attack", &["nft", "nginx"], *saving, options, "five minutes")
        }
        Bench::Health { saving, backends, seconds } => {
            let backends = backends.map(|backends| backends.to_string());
            let seconds = seconds.map(|seconds| seconds.to_string());
            let options = [("--backends", backends), ("--seconds", seconds)];
            measure("health", &[], *saving, options, "a minute")
        }
        Bench::Scale { saving, rounds, packets, starts, seconds } => {
            setup::lab_with(&[])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let options = [
                ("--rounds", rounds.map(|rounds| rounds.to_string())),
                ("--packets", packets.map(|packets| packets.to_string())),
                ("--starts", starts.map(|starts| starts.to_string())),
                ("--seconds", seconds.map(|seconds| seconds.to_string())),
            ];
            measure("scale", &[], *saving, options, "five minutes")
        }
        Bench::Metrics { saving, services, scrapes } => {
            setup::lab_with(&[])?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            call(&["build", "--quiet", "--release", "--package", "lb-userspace", "--bins"])?;
            let services = services.map(|services| services.to_string());
            let scrapes = scrapes.map(|scrapes| scrapes.to_string());
            let options = [("--services", services), ("--scrapes", scrapes)];
            measure("metrics", &[], *saving, options, "half a minute")
        }
    }
}

fn build(package: &str) -> Result<()> {
    let build = ["build", "--release", "--bins", "--package", package];
    call(&[&build, cargo::quiet()].concat())
}

/// Builds the benchmarks and runs one as root; `programs` take part in it.
fn measure(
    name: &str,
    programs: &[&str],
    saving: Saving,
    options: impl IntoIterator<Item = (&'static str, Option<String>)>,
    time: &str,
) -> Result<()> {
    eprintln!("bench: building it optimised; the first time takes minutes");
    build("lb-bench")?;
    let folder = cargo::folder(true)?;
    let mut command = Command::new(folder.join("lb-bench"));
    command.arg(name);
    if saving.json {
        command.arg("--json");
    }
    let results = folder.join("lb-bench-results.json");
    if saving.save {
        // A program that would be missing at the end is missing now.
        record::versions(programs)?;
        // Made by the calling user, so that files written by root stay theirs.
        fs::write(&results, "").with_context(|| format!("write {}", results.display()))?;
        command.arg("--json-file").arg(&results);
    }
    for (option, value) in options {
        command.args(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    eprintln!("bench: measuring; {time}");
    // It removes its objects before it ends.
    signals::catch();
    cargo::run(&mut root::as_root(command, "measuring in the kernel")?)?;
    if saving.save {
        let text =
            fs::read_to_string(&results).with_context(|| format!("read {}", results.display()))?;
        documents::save(name, programs, &text)?;
    }
    Ok(())
}
