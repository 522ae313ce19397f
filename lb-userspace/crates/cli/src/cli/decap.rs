//! `lbctl decap`: the program that takes packets out of their tunnel, on a backend.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use lb_api::requests::Done;
use lb_datapath::decap::{self, Follower, Step};
use lb_model::{
    defaults,
    desired::Vips,
    prefix::Prefix,
    rules,
    units::{format_bytes, format_count},
};
use lb_netlink::changes::Changes;
use lb_threads::systemd::Notifier;
use tokio::signal::unix::{SignalKind, signal};

use super::{Printer, table::Table};

/// What to do with the decapsulator.
#[derive(Debug, Subcommand)]
pub(super) enum DecapCommand {
    /// Attach it to an interface, or change what it takes.
    ///
    /// Addresses and VIPs that are not named are taken as they are at this moment; `decap run` follows them.
    Attach(AttachArgs),
    /// Attach it, and follow the addresses until SIGTERM: a VIP that comes onto the loopback is unwrapped.
    ///
    /// Addresses and VIPs that are named stay as they are. At the end it stays attached, with the lists as they are
    /// then; `decap detach` removes it. lb-decap@DEV.service runs this at boot.
    Run(AttachArgs),
    /// Remove it from an interface.
    Detach {
        /// The interface.
        #[arg(long)]
        dev: String,
        /// Where it is pinned.
        #[arg(long, default_value = defaults::PIN_DIR)]
        pin_dir: PathBuf,
    },
    /// Show what it takes and has counted.
    Status {
        /// Where it is pinned.
        #[arg(long, default_value = defaults::PIN_DIR)]
        pin_dir: PathBuf,
    },
}

/// Where it is attached, and what it takes.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The interface.
    #[arg(long)]
    dev: String,
    /// A destination of tunnelled packets; all addresses of the interface unless given.
    #[arg(long = "address", value_name = "ADDRESS", value_parser = rules::address)]
    addresses: Vec<IpAddr>,
    /// A VIP that packets in the tunnel may be for, or a prefix of them; those on the loopback unless given.
    #[arg(long = "vip", value_name = "ADDRESS", value_parser = str::parse::<Vips>)]
    vips: Vec<Vips>,
    /// Prefixes of addresses that tunnelled packets may come from, as in `tunnel` of the balancers'
    /// configuration; `any`: all.
    #[arg(long = "from", value_name = "PREFIX", num_args = 1..)]
    sources: Vec<From>,
    /// Attach in the network stack if the driver can't.
    #[arg(long)]
    generic: bool,
    /// Attach in the network stack though GRO merges packets below.
    #[arg(long, requires = "generic")]
    allow_gro: bool,
    /// Where it is pinned.
    #[arg(long, default_value = defaults::PIN_DIR)]
    pin_dir: PathBuf,
}

impl AttachArgs {
    fn options(&self) -> decap::Options {
        decap::Options {
            addresses: self.addresses.clone(),
            vips: self.vips.iter().flat_map(Vips::addresses).collect(),
            sources: self.sources.iter().flat_map(|from| from.0.clone()).collect(),
            generic: self.generic,
            allow_gro: self.allow_gro,
        }
    }
}

/// The value of `--from`: a prefix, or all.
#[derive(Clone, Debug)]
pub(super) struct From(Vec<Prefix>);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text != "any" {
            return Ok(Self(vec![text.parse()?]));
        }
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        Ok(Self(all.map(|address| Prefix::new(address, 0)).into()))
    }
}

pub(super) async fn run(command: &DecapCommand, printer: Printer) -> Result<()> {
    match command {
        DecapCommand::Attach(args) => {
            let attached = decap::attach(&args.dev, &args.options(), &args.pin_dir)?;
            printer.print(&attached, || attached_text(&args.dev, &attached))
        }
        DecapCommand::Run(args) => follow(args, printer).await,
        DecapCommand::Detach { dev, pin_dir } => {
            let message = if decap::detach(dev, pin_dir)? {
                format!("decapsulator removed from {dev}")
            } else {
                format!("there is no decapsulator on {dev}")
            };
            printer.done(&Done { message, ..Done::default() })
        }
        DecapCommand::Status { pin_dir } => {
            let all = decap::status(pin_dir)?;
            printer.print(&all, || all.iter().map(one).collect())
        }
    }
}

/// How long addresses are not read if netlink reports no change: it may have lost one.
const REFRESH: Duration = Duration::from_secs(10);

async fn follow(args: &AttachArgs, printer: Printer) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to signals")?;
    // Before the addresses are read: changes meanwhile are read again.
    let mut changes = Changes::listen()?;
    let (follower, attached) = Follower::start(&args.dev, &args.options(), &args.pin_dir)?;
    printer.print(&attached, || attached_text(&args.dev, &attached))?;
    let notifier = Notifier::from_env();
    notifier.ready(&format!("follows the addresses of {} and of the loopback", args.dev));
    let mut last = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(REFRESH) => {}
            changed = changes.next() => changed?,
        }
        match follower.step() {
            Ok(Step::Same) => last = None,
            Ok(Step::Changed(change)) => {
                printer.print(&change, || changed_text(&change))?;
                last = None;
            }
            Ok(Step::Detached) => return Ok(()),
            Ok(Step::Lost(why)) => bail!(why),
            // The next step tries again.
            Err(error) => {
                let error = format!("{error:#}");
                if last.as_ref() != Some(&error) {
                    eprintln!("lbctl: {error}");
                }
                last = Some(error);
            }
        }
    }
    notifier.stopping("the decapsulator stays attached");
    Ok(())
}

fn attached_text(dev: &str, attached: &decap::Attached) -> String {
    let how = if attached.replaced { "replaced" } else { "attached" };
    format!(
        "decapsulator {how} on {dev}, {} mode: tunnels to {} from {}, for {}\n",
        attached.mode,
        list(&attached.addresses),
        list(&attached.sources),
        list(&attached.vips)
    )
}

fn changed_text(change: &decap::Change) -> String {
    let lines = [
        ("takes tunnels to", &change.addresses_added),
        ("no longer takes tunnels to", &change.addresses_removed),
        ("takes packets for", &change.vips_added),
        ("no longer takes packets for", &change.vips_removed),
    ];
    let lines = lines.into_iter().filter(|(_, addresses)| !addresses.is_empty());
    lines.map(|(what, addresses)| format!("{what} {}\n", list(addresses))).collect()
}

fn one(status: &decap::DecapStatus) -> String {
    let kept = |is_followed| if is_followed { "followed" } else { "fixed" };
    let vips = match &status.vips {
        Some(vips) => format!("{} ({})", list(vips), kept(status.followed.vips)),
        None => "any VIP".into(),
    };
    let sources = status.sources.as_deref().map_or_else(|| "anywhere".into(), list);
    let mut table = Table::new(&["RESULT", ">PACKETS", ">BYTES"]).indented(2);
    for (reason, count) in status.counters.iter().filter(|(_, count)| count.packets > 0) {
        table.row([reason.clone(), format_count(count.packets), format_bytes(count.bytes)]);
    }
    let mut text = format!(
        "{}: {}, tunnels to {} ({}) from {sources}, for {vips}\n",
        status.dev,
        status.mode,
        list(&status.addresses),
        kept(status.followed.addresses)
    );
    if let Some(unlisted) = &status.unlisted {
        text += &format!("  {unlisted}\n");
    }
    if table.is_empty() { text } else { text + &table.render() }
}

fn list(addresses: &[impl ToString]) -> String {
    if addresses.is_empty() {
        return "none yet".into();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
