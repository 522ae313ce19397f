//! `lbctl decap`: the program that takes packets out of their tunnel, on a backend.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

use anyhow::Result;
use clap::Subcommand;

use super::{Printer, table::Table};
use crate::{
    api::Done,
    config,
    datapath::decap,
    flows::Prefix,
    rules,
    units::{format_bytes, format_count},
};

/// What to do with the decapsulator.
#[derive(Debug, Subcommand)]
pub(super) enum DecapCommand {
    /// Attach it to an interface, or change what it takes.
    Attach {
        /// The interface.
        #[arg(long)]
        dev: String,
        /// A destination of tunnelled packets; all addresses of the interface unless given.
        #[arg(long = "address", value_name = "ADDRESS", value_parser = rules::backend_address)]
        addresses: Vec<IpAddr>,
        /// A VIP that packets in the tunnel may be for; those on the loopback at this moment unless given.
        #[arg(long = "vip", value_name = "ADDRESS", value_parser = rules::vip)]
        vips: Vec<IpAddr>,
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
        #[arg(long, default_value = config::DEFAULT_PIN_DIR)]
        pin_dir: PathBuf,
    },
    /// Remove it from an interface.
    Detach {
        /// The interface.
        #[arg(long)]
        dev: String,
        /// Where it is pinned.
        #[arg(long, default_value = config::DEFAULT_PIN_DIR)]
        pin_dir: PathBuf,
    },
    /// Show what it takes and has counted.
    Status {
        /// Where it is pinned.
        #[arg(long, default_value = config::DEFAULT_PIN_DIR)]
        pin_dir: PathBuf,
    },
}

/// What `--from` says: a prefix, or all.
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

pub(super) fn run(command: &DecapCommand, printer: Printer) -> Result<()> {
    match command {
        DecapCommand::Attach { dev, addresses, vips, sources, generic, allow_gro, pin_dir } => {
            let options = decap::Options {
                addresses: addresses.clone(),
                vips: vips.clone(),
                sources: sources.iter().flat_map(|from| from.0.clone()).collect(),
                generic: *generic,
                allow_gro: *allow_gro,
            };
            let attached = decap::attach(dev, &options, pin_dir)?;
            printer.print(&attached, || {
                let how = if attached.replaced { "replaced" } else { "attached" };
                format!(
                    "decapsulator {how} on {dev}, {} mode: tunnels to {} from {}, for {}\n",
                    attached.mode,
                    list(&attached.addresses),
                    list(&attached.sources),
                    list(&attached.vips)
                )
            })
        }
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

fn one(status: &decap::DecapStatus) -> String {
    let vips = if status.vips.is_empty() { "any VIP".into() } else { list(&status.vips) };
    let sources = status.sources.as_deref().map_or_else(|| "anywhere".into(), list);
    let mut table = Table::new(&["RESULT", ">PACKETS", ">BYTES"]).indented(2);
    for (reason, count) in status.counters.iter().filter(|(_, count)| count.packets > 0) {
        table.row([reason.clone(), format_count(count.packets), format_bytes(count.bytes)]);
    }
    let head = format!(
        "{}: {}, tunnels to {} from {sources}, for {vips}\n",
        status.dev,
        status.mode,
        list(&status.addresses)
    );
    if table.is_empty() { head } else { head + &table.render() }
}

fn list(addresses: &[impl ToString]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
