//! `lbctl capture`: packets before and after the decision, to a file that Wireshark opens.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::ArgValueCandidates;
use hyper::{Method, body::Bytes};
use lb_api::{client::Client, paths, requests::Done};
use lb_inspect::capture::{Spec, pcapng::Follower};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    units::{counted, parse_duration},
};
use serde::Serialize;

use super::{
    Misuse, Printer, complete,
    options::address_of,
    progress::{Progress, SHOWN},
};

/// Which packets, and how many.
#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// Write to this file; - for standard output, as in 'lbctl capture -w - | tshark -r -'.
    #[arg(short, long, value_name = "FILE", default_value = "lb.pcapng")]
    write: PathBuf,
    /// Only packets of this service.
    #[arg(long, add = ArgValueCandidates::new(complete::services))]
    service: Option<String>,
    /// Only packets to this backend.
    #[arg(long, add = ArgValueCandidates::new(complete::backends))]
    backend: Option<BackendRef>,
    /// Only packets that end so: forwarded, passed, dropped, or a reason as no_backend; several by
    /// commas.
    #[arg(long, value_name = "VERDICT", value_delimiter = ',')]
    verdict: Vec<String>,
    /// Only packets from this address, or network as 198.51.100.0/24.
    #[arg(long, value_name = "ADDRESS", value_parser = network)]
    client: Option<(IpAddr, u8)>,
    /// End after so many packets; before and after count as one.
    #[arg(short = 'c', long, default_value = "1000", value_name = "N")]
    count: u64,
    /// End after this time, as 10s.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Save so many bytes of each frame; at most 2048.
    #[arg(short, long, default_value = "256", value_name = "BYTES")]
    snaplen: u32,
    /// Save one packet in so many, at random: 1/100.
    #[arg(long, default_value = "1/1", value_name = "1/N", value_parser = fraction)]
    sample: u32,
    /// Save at most so many packets a second on each CPU; more are counted, and forwarded as ever.
    #[arg(long, default_value = "2000", value_name = "N")]
    rate: u32,
}

/// An address, or a network.
fn network(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("`{text}` is neither an address nor a network as 198.51.100.0/24"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        "" => Some(most),
        bits => bits.parse().ok().filter(|bits| *bits <= most),
    };
    Ok((address, bits.ok_or_else(|| format!("`{text}`: the prefix has 0 to {most} bits"))?))
}

/// One in so many: `1/100`, or `100`.
fn fraction(text: &str) -> Result<u32, String> {
    let n = text.strip_prefix("1/").unwrap_or(text).parse().ok().filter(|n| *n > 0);
    n.ok_or_else(|| format!("`{text}`: write one packet in a hundred as 1/100"))
}

impl CaptureArgs {
    fn spec(&self, backend: Option<BackendAddress>) -> Spec {
        Spec {
            service: self.service.clone(),
            backend,
            verdicts: self.verdict.clone(),
            client: self.client,
            count: self.count,
            millis: self.duration.as_millis() as u64,
            snaplen: self.snaplen,
            sample: self.sample,
            rate: self.rate,
        }
    }
}

/// The outcome of a capture.
#[derive(Serialize)]
struct Captured {
    packets: u64,
    file: Option<PathBuf>,
    summary: Option<String>,
}

pub(super) async fn run(args: &CaptureArgs, client: &Client, printer: Printer) -> Result<()> {
    let backend = address_of(client, args.service.as_deref(), args.backend.as_ref()).await?;
    let spec = args.spec(backend);
    spec.check().map_err(Misuse)?;
    let to_stdout = args.write == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        let pipe = "lbctl capture -w - | tshark -r -";
        return Err(
            Misuse(format!("pcapng is nothing for a terminal; pipe it, as '{pipe}'")).into()
        );
    }
    // A capture that is refused leaves an older file as it was.
    let patient = client.for_a_program();
    let mut pieces = patient.stream(Method::POST, paths::CAPTURE, &spec).await?;
    let name = || format!("write {}", args.write.display());
    let mut out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout()),
        false => Box::new(File::create(&args.write).with_context(name)?),
    };
    let mut follower = Follower::default();
    let mut progress = Progress::new();
    let began = Instant::now();
    let mut stopping = false;
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece?,
            () = tokio::time::sleep(SHOWN) => Some(Bytes::new()),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("listen to signals")?;
                if stopping {
                    // A second signal ends at once; the file is whole up to here.
                    break;
                }
                stopping = true;
                let _: Done = client.send(Method::DELETE, paths::CAPTURE, Bytes::new()).await?;
                Some(Bytes::new())
            }
        };
        let Some(piece) = piece else { break };
        out.write_all(&piece).and_then(|()| out.flush()).with_context(name)?;
        follower.follow(&piece);
        progress.show(|| {
            let time = began.elapsed().as_secs_f64();
            format!("{}, {time:.1} s; Ctrl-C ends it ", counted(follower.packets, "packet"))
        });
    }
    drop(progress);
    let file = (!to_stdout).then(|| args.write.clone());
    let captured = Captured { packets: follower.packets, file, summary: follower.sum };
    let text = || {
        let to = args.write.display();
        let mut text = format!("{} written to {to}\n", counted(captured.packets, "packet"));
        match &captured.summary {
            Some(summary) => text += &format!("{summary}\n"),
            None => text += "lbd ended before the capture did\n",
        }
        text
    };
    if to_stdout {
        eprint!("{}", text());
        return Ok(());
    }
    printer.print(&captured, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_fractions_are_read_as_people_write_them() {
        assert_eq!(network("10.0.0.1"), Ok(([10, 0, 0, 1].into(), 32)));
        assert_eq!(network("fd00::/8").unwrap().1, 8);
        assert!(network("10.0.0.0/33").unwrap_err().contains("0 to 32"));
        assert!(network("somebody").unwrap_err().contains("neither"));
        assert_eq!((fraction("1/100"), fraction("5")), (Ok(100), Ok(5)));
        assert!(fraction("2/3").is_err() && fraction("1/0").is_err());
    }
}
