//! `lbctl explain`: the balancer's decision for a packet, and its reasons.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

use anyhow::Result;
use clap::Args;
use hyper::Method;
use lb_api::paths;
use serde::Serialize;

use super::{Misuse, Printer, progress::Progress, table::Table};
use lb_api::client::Client;
use lb_api::status::Status;
use lb_inspect::explain::{
    Explained, Flags, IcmpError, Made, Packet, Payload, Questions, hex,
    saved::{self, Saved},
    sums,
};
use lb_model::{desired::Protocol, units::counted};

/// Packets of a saved capture in one request.
const BATCH: usize = 100;
/// Bytes of frames in one request.
const BATCH_BYTES: usize = 256 * 1024;

/// Which packet, and how much is printed.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// tcp or udp.
    #[arg(value_parser = super::options::word::<Protocol>, required_unless_present = "pcap", requires = "destination")]
    protocol: Option<Protocol>,
    #[allow(rustdoc::broken_intra_doc_links, reason = "an address, and the words of --help")]
    /// The client, as 198.51.100.7:4242 or [2001:db8::7]:4242; without a port, one is chosen.
    source: Option<Endpoint>,
    /// Where it goes to, as 10.0.0.100:80; without a port, each service of that VIP and protocol.
    destination: Option<Endpoint>,
    /// Explain the packets of this capture, pcap or pcapng, one by one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["protocol", "made"])]
    pcap: Option<PathBuf>,
    /// Explain so many packets of a capture.
    #[arg(long, default_value = "1000", value_name = "N", requires = "pcap")]
    limit: usize,
    /// Take the frames of a capture for frames to this node, whatever MAC address they have.
    #[arg(long, requires = "pcap")]
    any_mac: bool,
    /// Print all steps of each packet of a capture.
    #[arg(short, long, requires = "pcap")]
    verbose: bool,
    #[command(flatten)]
    made: MadeArgs,
    /// The interface that it comes in on; the first one with the program unless given.
    #[arg(long)]
    interface: Option<String>,
    /// The CPU that it comes in on: budgets of pins and signs of life are each CPU's own.
    #[arg(long, default_value = "0")]
    cpu: u32,
    /// Explain it as one that is met a second time: a SYN that is sent again.
    #[arg(long)]
    again: bool,
    /// Run it through the loaded program as well, on copies of the maps, and compare; exit with 1 unless
    /// it does the same.
    #[arg(long)]
    verify: bool,
}

/// The packet.
#[derive(Debug, Args)]
#[group(id = "made", multiple = true)]
struct MadeArgs {
    /// A SYN: it opens a connection. The default for TCP.
    #[arg(long, conflicts_with_all = ["ack", "flags"])]
    syn: bool,
    /// An ACK: it belongs to a connection.
    #[arg(long, conflicts_with = "flags")]
    ack: bool,
    /// Flags, as psh,ack.
    #[arg(long)]
    flags: Option<Flags>,
    /// The sequence number.
    #[arg(long)]
    sequence: Option<u32>,
    /// Time to live, or hop limit; 64 unless given.
    #[arg(long)]
    ttl: Option<u8>,
    /// Bytes of the IP packet; as few as its headers take unless given.
    #[arg(long)]
    length: Option<u16>,
    /// A VLAN tag; twice for two, the outer one first.
    #[arg(long = "vlan", value_name = "ID", value_parser = clap::value_parser!(u16).range(..4096))]
    vlans: Vec<u16>,
    /// The content of a datagram: plain, quic-initial, quic-handshake:ID or quic-short:ID, with the first
    /// eight bytes of the connection id in hexadecimal.
    #[arg(long)]
    payload: Option<Payload>,
    /// Instead, an ICMP error about the flow.
    #[arg(long, value_name = "KIND")]
    icmp: Option<IcmpError>,
    /// The sender of the ICMP error; the client unless given.
    #[arg(long, value_name = "ADDRESS", requires = "icmp")]
    from: Option<IpAddr>,
}

/// The port of a client of which only the address is given: the first dynamic one (RFC 6335, 6).
const CLIENT_PORT: u16 = 49_152;

/// An address, and a port if it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err(format!(
                "`{text}` is no address; write one as 10.0.0.100:80, [fd00::100]:80 or 10.0.0.100"
            )),
        }
    }
}

/// The ports of a VIP's services of this protocol; of several, the first.
fn ports_of(status: &Status, protocol: Protocol, vip: IpAddr) -> BTreeSet<u16> {
    let keys = status.services.values().map(|service| service.key);
    keys.filter(|key| key.vips().contains(vip) && key.protocol == protocol)
        .map(|key| key.port)
        .collect()
}

impl ExplainArgs {
    fn questions(&self, packets: Vec<Packet>) -> Questions {
        Questions {
            packets,
            interface: self.interface.clone(),
            cpu: self.cpu,
            any_mac: self.any_mac,
            again: self.again,
            verify: self.verify,
        }
    }

    /// The packets that are meant: one, or one for each service of a VIP without a port.
    async fn all_made(&self, client: &Client) -> Result<Vec<Made>> {
        let (Some(protocol), Some(source), Some(destination)) =
            (self.protocol, self.source, self.destination)
        else {
            let example = "lbctl explain tcp 198.51.100.7:4242 10.0.0.100:80";
            return Err(Misuse(format!("which packet? as in '{example}'")).into());
        };
        let source = SocketAddr::new(source.address, source.port.unwrap_or(CLIENT_PORT));
        let vip = destination.address;
        if let Some(port) = destination.port {
            return Ok(vec![self.made(protocol, source, SocketAddr::new(vip, port))]);
        }
        let status: Status = client.get(paths::STATUS).await?;
        let ports = ports_of(&status, protocol, vip);
        anyhow::ensure!(
            !ports.is_empty(),
            "no {protocol} service has the VIP {vip}; write the port as well ('lbctl service list' \
             lists what there is)"
        );
        let made = |port| self.made(protocol, source, SocketAddr::new(vip, port));
        Ok(ports.into_iter().map(made).collect())
    }

    fn made(&self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Made {
        let made = &self.made;
        let flags = match (made.flags, made.ack) {
            (Some(flags), _) => flags,
            (None, true) => Flags::ACK,
            (None, false) => Flags::SYN,
        };
        Made {
            protocol,
            source,
            destination,
            flags,
            sequence: made.sequence.unwrap_or(0),
            ttl: made.ttl.unwrap_or(64),
            length: made.length,
            vlans: made.vlans.clone(),
            payload: made.payload.clone().unwrap_or_default(),
            error: made.icmp.map(|kind| (kind, made.from.unwrap_or(source.ip()))),
        }
    }
}

pub(super) async fn run(args: &ExplainArgs, client: &Client, printer: Printer) -> Result<ExitCode> {
    let client = if args.verify { &client.for_a_program() } else { client };
    let request = async |questions: &Questions| -> Result<Vec<Explained>> {
        Ok(client.send_json(Method::POST, paths::EXPLAIN, questions).await?)
    };
    let Some(file) = &args.pcap else {
        let made = args.all_made(client).await?;
        let packets = made.into_iter().map(|made| Packet::Made(Box::new(made))).collect();
        let all = request(&args.questions(packets)).await?;
        let text = || all.iter().map(steps).collect::<Vec<_>>().join("\n");
        match args.destination.and_then(|destination| destination.port) {
            Some(_) => printer.print(&all.first(), text)?,
            None => printer.print(&all, text)?,
        }
        return Ok(code(&all));
    };
    let saved = saved::read(file, args.limit)?;
    let mut all = Vec::new();
    let mut progress = Progress::new();
    let mut packets = saved.packets.iter().peekable();
    while packets.peek().is_some() {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some(packet) = packets.next()
        {
            bytes += packet.bytes.len();
            let length = packet.length as u32;
            batch.push(Packet::Frame { bytes: hex(&packet.bytes), length });
        }
        let batch = request(&args.questions(batch)).await?;
        all.extend(batch);
        progress.show(|| format!("{} of {} packets ", all.len(), saved.packets.len()));
    }
    drop(progress);
    let summary = CaptureSummary {
        counts: sums(&all),
        more: saved.more,
        foreign: saved.foreign,
        packets: &all,
    };
    printer.print(&summary, || capture(&summary, &saved, args.verbose))?;
    Ok(code(&all))
}

/// 1 if the program in the kernel ran and differs from the explanation.
fn code(all: &[Explained]) -> ExitCode {
    let agrees = |one: &Explained| one.verified.as_ref().is_none_or(|verified| verified.agrees);
    if all.iter().all(agrees) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A capture's packets and their sums.
#[derive(Serialize)]
struct CaptureSummary<'a> {
    counts: std::collections::BTreeMap<String, u64>,
    more: bool,
    foreign: usize,
    packets: &'a [Explained],
}

fn capture(summary: &CaptureSummary<'_>, saved: &Saved, verbose: bool) -> String {
    let mut text = String::new();
    for (number, one) in summary.packets.iter().enumerate() {
        text += &match verbose {
            true => format!("{}: {}\n", number + 1, steps(one)),
            false => format!("{}: {}: {}{}\n", number + 1, one.packet, end(one), verified(one)),
        };
    }
    let mut table = Table::new(&[">PACKETS", "END"]).indented(2);
    for (end, count) in &summary.counts {
        table.row([count.to_string(), end.clone()]);
    }
    text += &format!("{}, each as if it came in now:\n", counted(summary.packets.len(), "packet"));
    if !table.is_empty() {
        text += &table.render();
    }
    if summary.more {
        text += &format!("there are more; --limit is {}\n", saved.packets.len());
    }
    if summary.foreign > 0 {
        text += &format!(
            "left out, as neither of Ethernet nor of IP: {}\n",
            counted(summary.foreign, "packet")
        );
    }
    text
}

/// How a packet ends, in brief.
fn end(one: &Explained) -> String {
    let outcome = one.outcome.name();
    match (&one.reason, one.backend) {
        (Some(reason), _) => format!("{outcome}, {reason}"),
        (None, Some(backend)) => {
            let service = one.service.as_deref().unwrap_or("a service");
            format!("{outcome} by {service} to {backend}")
        }
        (None, None) => outcome.into(),
    }
}

fn verified(one: &Explained) -> &'static str {
    match &one.verified {
        None => "",
        Some(verified) if verified.agrees => ", the program agrees",
        Some(verified) if !verified.asked => ", the program could not be asked",
        Some(_) => ", THE PROGRAM DIFFERS",
    }
}

fn steps(one: &Explained) -> String {
    let mut rows: Vec<(&str, String)> =
        one.steps.iter().map(|step| (step.about.as_str(), step.text.clone())).collect();
    rows.push(("verdict", format!("{} ({})", end(one), one.action)));
    rows.push(("counted", one.counted.clone()));
    rows.extend(one.writes.iter().map(|write| ("would write", write.clone())));
    if let Some(next) = one.next.as_ref().filter(|next| next.differs) {
        rows.push(("next", format!("{}: {}, {}", next.packet, next.goes_to, next.why)));
    }
    if let Some(verified) = &one.verified {
        let text = match (verified.agrees, verified.asked) {
            (true, _) => format!("the loaded program does the same ({} ns)", verified.nanos),
            (false, true) => "THE PROGRAM DIFFERS".into(),
            (false, false) => "the program could not be asked".into(),
        };
        rows.push(("verified", text));
        rows.extend(verified.differences.iter().map(|difference| ("", difference.clone())));
    }
    let width = rows.iter().map(|(about, _)| about.len()).max().unwrap_or(0);
    let mut text = format!("{}\n", one.packet);
    let mut before = "";
    for (about, line) in &rows {
        let shown = if *about == before { "" } else { about };
        text += format!("  {shown:width$}  {line}").trim_end();
        text.push('\n');
        before = about;
    }
    text
}

#[cfg(test)]
mod tests {
    use lb_inspect::explain::Verified;

    use super::*;

    fn explained(agrees: bool, asked: bool) -> Explained {
        let differences = if agrees { Vec::new() } else { vec!["because".to_owned()] };
        let (action, leaves) = (String::new(), String::new());
        let verified = Verified { agrees, asked, action, leaves, differences, nanos: 9 };
        Explained { verified: Some(verified), ..Explained::default() }
    }

    #[test]
    fn an_endpoint_may_lack_its_port() {
        for (text, expected) in [
            ("10.0.0.100:80", Ok(("10.0.0.100", Some(80)))),
            ("10.0.0.100", Ok(("10.0.0.100", None))),
            ("[fd00::100]:80", Ok(("fd00::100", Some(80)))),
            ("[fd00::100]", Ok(("fd00::100", None))),
            ("fd00::100", Ok(("fd00::100", None))),
            ("web1", Err(())),
            ("10.0.0.100:http", Err(())),
        ] {
            let expected = expected
                .map(|(address, port)| Endpoint { address: address.parse().expect(address), port });
            assert_eq!(text.parse::<Endpoint>().map_err(drop), expected, "{text}");
        }
    }

    #[test]
    fn a_program_that_was_not_asked_is_not_said_to_differ() {
        for (agrees, asked, words) in [
            (true, true, "the loaded program does the same (9 ns)"),
            (false, true, "THE PROGRAM DIFFERS\n            because"),
            (false, false, "the program could not be asked\n            because"),
        ] {
            let one = explained(agrees, asked);
            assert!(steps(&one).contains(words), "{}", steps(&one));
            assert_eq!(verified(&one).contains("DIFFERS"), !agrees && asked);
            let code = if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            assert_eq!(format!("{:?}", super::code(&[one])), format!("{code:?}"));
        }
    }
}
