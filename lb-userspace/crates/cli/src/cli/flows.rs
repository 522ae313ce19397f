//! The flows that tables have.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use lb_api::{client::Client, paths};
use lb_inspect::flows::{Flow, Found, Kind, LIMIT, Line, MOST};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    prefix::Prefix,
    units::format_duration,
};

use super::{
    Misuse, Printer, complete,
    options::{Output, address_of},
    table::Table,
};

/// Which flows, and how.
#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    /// Only those of this service.
    #[arg(add = ArgValueCandidates::new(complete::services))]
    service: Option<String>,
    /// Only those on this backend.
    #[arg(long, add = ArgValueCandidates::new(complete::backends))]
    backend: Option<BackendRef>,
    /// Only those of this client, or of all in this prefix, as 198.51.100.0/24.
    #[arg(long, value_name = "PREFIX")]
    client: Option<Prefix>,
    /// Only those in entries of this kind.
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Count them by backend.
    #[arg(short, long, conflicts_with = "limit")]
    count: bool,
    /// Show so many at most: those with the latest packets, by default 100. With -o json it is
    /// all, or as many as are met first.
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
}

/// The kinds of entries that hold a flow.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    /// A pin: a change of the ring would otherwise move the flow.
    Pin,
    /// A flow of a tracked UDP service.
    Tracked,
    /// A connection of a QUIC service.
    Quic,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Pin => Self::Pin,
            KindArg::Tracked => Self::Tracked,
            KindArg::Quic => Self::Quic,
        }
    }
}

impl FlowsArgs {
    /// The request path for them, on the backend at this address, with these beside the filters.
    fn path(&self, at: Option<BackendAddress>, more: &[(&str, String)]) -> String {
        let Self { service, client, kind, .. } = self;
        let filters = [
            ("service", service.clone()),
            ("backend", at.map(|at| at.to_string())),
            ("client", client.map(|client| client.to_string())),
            ("kind", kind.map(|kind| Kind::from(kind).name().to_owned())),
        ];
        let filters = filters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        path(filters.chain(more.iter().cloned()))
    }
}

/// The request path for flows with these parameters.
pub(super) fn path<'a>(parameters: impl Iterator<Item = (&'a str, String)>) -> String {
    let all = parameters.map(|(name, value)| format!("{name}={}", paths::encoded(&value)));
    format!("{}?{}", paths::FLOWS, all.collect::<Vec<_>>().join("&"))
}

pub(super) async fn run(args: &FlowsArgs, client: &Client, printer: Printer) -> Result<()> {
    let at = address_of(client, args.service.as_deref(), args.backend.as_ref()).await?;
    let limit = |limit: usize| ("limit", limit.to_string());
    if args.count {
        let found: Found = client.get(&args.path(at, &[limit(0)])).await?;
        return printer.print(&found, || counts(&found));
    }
    if printer.output == Output::Json {
        let limit = args.limit.map(limit);
        let stream = ("stream", "true".to_owned());
        let path = args.path(at, &[stream].into_iter().chain(limit).collect::<Vec<_>>());
        return lines(client, &path).await;
    }
    let most = args.limit.unwrap_or(LIMIT);
    if most > MOST {
        let many = format!("{most} flows are too many for a table of {MOST}");
        return Err(Misuse(format!("{many}; 'lbctl -o json flows' prints all")).into());
    }
    let found: Found = client.get(&args.path(at, &[limit(most)])).await?;
    printer.print(&found, || text(&found))
}

/// Prints flows as they come, one to a line.
async fn lines(client: &Client, path: &str) -> Result<()> {
    let mut lines = client.lines(path).await?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    while let Some(line) = lines.next().await? {
        match serde_json::from_slice(&line).context("read a flow")? {
            Line::Flow(_) => out.write_all(&line)?,
            Line::End { .. } => return Ok(out.flush()?),
            Line::Broken { error } => {
                out.flush()?;
                bail!("not all flows were printed: {error}");
            }
        }
    }
    out.flush()?;
    bail!("not all flows were printed: lbd has stopped, or this reads too slowly")
}

/// A line for each flow.
fn text(found: &Found) -> String {
    let mut table =
        Table::new(&["SERVICE", "KIND", "CLIENT", "BACKEND", "STATE", ">SLOT", ">IDLE"]);
    for flow in &found.flows {
        table.row([
            flow.service.clone().unwrap_or_else(|| "-".into()),
            flow.kind.name().into(),
            client(flow),
            backend(flow.backend),
            flow.state().into(),
            flow.slot.map_or_else(|| "-".into(), |slot| slot.to_string()),
            idle(flow),
        ]);
    }
    let mut text = if table.is_empty() { String::new() } else { table.render() };
    let more = found.matched.saturating_sub(found.flows.len() as u64);
    text += &match (found.matched, more) {
        (0, _) => "no flow is in a table; others go by the ring alone\n".into(),
        (_, 0) => String::new(),
        (matched, more) => format!(
            "{more} more of {matched}: narrow them by service, --backend, --client or --kind, raise \
             --limit, or count them by --count\n"
        ),
    };
    text
}

/// A line for each backend.
fn counts(found: &Found) -> String {
    let mut table =
        Table::new(&["SERVICE", "BACKEND", ">PINS", ">TRACKED", ">QUIC", ">ALL", ">CLOSING"]);
    for count in &found.backends {
        table.row([
            count.service.clone().unwrap_or_else(|| "-".into()),
            backend(count.backend),
            count.pins.to_string(),
            count.tracked.to_string(),
            count.quic.to_string(),
            count.all().to_string(),
            count.closing.to_string(),
        ]);
    }
    if found.backends.len() > 1 {
        let sum = |of: fn(&lb_inspect::flows::Count) -> u64| {
            found.backends.iter().map(of).sum::<u64>().to_string()
        };
        table.row([
            "all".into(),
            String::new(),
            sum(|count| count.pins),
            sum(|count| count.tracked),
            sum(|count| count.quic),
            found.matched.to_string(),
            sum(|count| count.closing),
        ]);
    }
    if table.is_empty() { text(found) } else { table.render() }
}

/// The client of a flow, and where it has connected to among several VIPs or ports; or the connection.
pub(super) fn client(flow: &Flow) -> String {
    let client = match (flow.client, flow.port, &flow.connection) {
        (Some(client), Some(port), _) => SocketAddr::new(client, port).to_string(),
        (_, _, Some(connection)) => format!("connection {connection}"),
        _ => "-".into(),
    };
    match flow.destination {
        Some(destination) => format!("{client} > {destination}"),
        None => client,
    }
}

/// For how long a flow has been idle.
pub(super) fn idle(flow: &Flow) -> String {
    format_duration(Duration::from_secs(flow.idle_secs.into()))
}

fn backend(address: Option<BackendAddress>) -> String {
    address.map_or_else(|| "gone".into(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use lb_inspect::flows::Count;

    use super::*;

    fn flow(kind: Kind, client: Option<&str>, backend: Option<[u8; 4]>) -> Flow {
        Flow {
            kind,
            service: Some("web".into()),
            client: client.map(|client| client.parse().expect(client)),
            port: client.map(|_| 4_242),
            destination: None,
            connection: client.is_none().then(|| "ab01020304050607".into()),
            backend: backend.map(BackendAddress::from),
            backend_id: 1,
            slot: client.map(|_| 1_008),
            established: client.is_none(),
            closing: false,
            idle_secs: 62,
        }
    }

    #[test]
    fn flows_are_lines_and_what_is_left_out_is_told() {
        let flows = vec![
            flow(Kind::Pin, Some("198.51.100.7"), Some([10, 0, 0, 11])),
            flow(Kind::Tracked, Some("2001:db8::7"), None),
            flow(Kind::Quic, None, Some([10, 0, 0, 12])),
        ];
        let found = Found { matched: 262_144, backends: Vec::new(), flows };
        assert_eq!(
            text(&found),
            "\
SERVICE  KIND     CLIENT                       BACKEND    STATE        SLOT  IDLE
web      pin      198.51.100.7:4242            10.0.0.11  opening      1008  1m2s
web      tracked  [2001:db8::7]:4242           gone       opening      1008  1m2s
web      quic     connection ab01020304050607  10.0.0.12  established     -  1m2s
262141 more of 262144: narrow them by service, --backend, --client or --kind, raise --limit, or count them by --count
"
        );
    }

    #[test]
    fn counts_have_a_sum() {
        let count = |at: u8, pins| Count {
            service: Some("web".into()),
            backend: Some(BackendAddress::from([10, 0, 0, at])),
            pins,
            tracked: 1,
            quic: 0,
            closing: pins - 2,
        };
        let backends = vec![count(11, 5), count(12, 70)];
        let found = Found { matched: 77, backends, flows: Vec::new() };
        assert_eq!(
            counts(&found),
            "\
SERVICE  BACKEND    PINS  TRACKED  QUIC  ALL  CLOSING
web      10.0.0.11     5        1     0    6        3
web      10.0.0.12    70        1     0   71       68
all                   75        2     0   77       71
"
        );
        assert_eq!(counts(&Found::default()), text(&Found::default()));
    }
}
