//! What has happened, and what happens.

use std::{
    io::{self, Write as _},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{args::Output, args::word, complete, patience::Patient};
use crate::{
    api::{
        Line,
        client::{Client, Error},
    },
    events::{Event, Kind, Page},
    units::rfc3339,
};

/// Which events, and how.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on showing them as they happen, over restarts of lbd as well.
    #[arg(short, long)]
    follow: bool,
    /// Show so many of those that have happened.
    #[arg(short = 'n', long, default_value = "100", value_name = "N")]
    lines: usize,
    /// Only those of this service and its backends.
    #[arg(long, add = ArgValueCandidates::new(complete::services))]
    service: Option<String>,
    /// Only those of this backend.
    #[arg(long, add = ArgValueCandidates::new(complete::backends))]
    backend: Option<IpAddr>,
    /// Only those of this kind, as backend_down.
    #[arg(long, value_parser = word::<Kind>)]
    kind: Option<Kind>,
}

impl EventsArgs {
    fn wants(&self, Event { news, .. }: &Event) -> bool {
        self.kind.is_none_or(|kind| news.kind == kind)
            && self.backend.is_none_or(|backend| news.backend == Some(backend))
            && self.service.as_ref().is_none_or(|service| news.service.as_ref() == Some(service))
    }
}

pub(super) async fn run(args: &EventsArgs, client: &Client, output: Output) -> Result<()> {
    let page: Page = client.get("/v1/events").await?;
    let wanted: Vec<_> = page.events.iter().filter(|event| args.wants(event)).collect();
    for event in &wanted[wanted.len().saturating_sub(args.lines)..] {
        show(event, output)?;
    }
    if args.follow { follow(args, client, output, page.last).await } else { Ok(()) }
}

/// Shows what happens after the event of this number, until the daemon is away for too long.
async fn follow(args: &EventsArgs, client: &Client, output: Output, mut last: u64) -> Result<()> {
    let mut patient = Patient::new(client);
    loop {
        let lines = client.lines(&format!("/v1/events?follow=true&since={last}")).await;
        let mut lines = match lines {
            Ok(lines) => lines,
            Err(error) if error.is_absence() => {
                patient.wait(error).await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        patient.is_back();
        let ended = loop {
            match lines.next().await {
                Ok(Some(line)) => match serde_json::from_slice(&line).context("read an event")? {
                    Line::Event(event) => {
                        last = event.seq;
                        if args.wants(&event) {
                            show(&event, output)?;
                        }
                    }
                    Line::Missed { missed } => {
                        eprintln!("lbctl: {missed} events were missed");
                    }
                },
                Ok(None) => break Error::Stopping,
                Err(error) => break error,
            }
        };
        patient.wait(ended).await?;
    }
}

fn show(event: &Event, output: Output) -> Result<()> {
    let line = match output {
        Output::Json => serde_json::to_string(event)?,
        Output::Text => text(event),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn text(Event { at, news, .. }: &Event) -> String {
    let kind = news.kind.name();
    format!("{}  {kind:<20}  {} ({})", rfc3339::format(*at), news.message, news.cause)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::events::News;

    #[test]
    fn an_event_is_a_line_with_its_cause() {
        let news = News::new(Kind::BackendDown, "backend A of web can't be reached", "no answer");
        let event = Event { seq: 1, at: SystemTime::UNIX_EPOCH, news };
        assert_eq!(
            text(&event),
            "1970-01-01T00:00:00.000Z  backend_down          backend A of web can't be reached (no answer)"
        );
    }
}
