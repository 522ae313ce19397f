//! Past events, and new ones.

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::ArgValueCandidates;
use lb_api::{
    client::{Client, Error},
    event::{Event, KEPT, Kind, Page},
    paths,
    requests::Line,
};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    units::{counted, parse_duration, rfc3339},
};

use super::{
    complete,
    options::{Output, address_of, word},
    patience::Patient,
};

/// Which events, and how.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on showing them as they happen, over restarts of lbd as well.
    #[arg(short, long)]
    follow: bool,
    /// Show so many of those that have happened, the last ones: 100 unless given, or all with --since.
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Only those that have happened since this time, as 2026-11-22T09:30:00Z, or for so long, as 10m.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Only those of this service and its backends.
    #[arg(long, add = ArgValueCandidates::new(complete::services))]
    service: Option<String>,
    /// Only those of this backend; an address without port is that of all backends at it.
    #[arg(long, add = ArgValueCandidates::new(complete::backends))]
    backend: Option<BackendRef>,
    /// Only those of this kind, as backend_down.
    #[arg(long, value_parser = word::<Kind>)]
    kind: Option<Kind>,
}

/// A moment: a time, or how long ago it is.
fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    humantime::parse_rfc3339(text).map_err(|_| {
        format!(
            "`{text}` is neither a duration nor a time; write it as 10m, 2h or \
             2026-11-22T09:30:00Z (UTC)"
        )
    })
}

impl EventsArgs {
    /// Of what is kept, what is shown, and whether there may have been more in that time.
    fn select<'p>(
        &self,
        backend: Option<BackendAddress>,
        page: &'p Page,
    ) -> (Vec<&'p Event>, bool) {
        let recent = |event: &&Event| self.since.is_none_or(|since| event.at >= since);
        let wanted: Vec<_> =
            page.events.iter().filter(recent).filter(|event| self.wants(backend, event)).collect();
        let lines = self.lines.or_else(|| self.since.is_none().then_some(100));
        let skipped = lines.map_or(0, |lines| wanted.len().saturating_sub(lines));
        let oldest = page.events.first().filter(|_| page.events.len() >= KEPT);
        let forgotten = oldest.is_some_and(|oldest| self.since.is_some_and(|at| at < oldest.at));
        (wanted[skipped..].to_vec(), forgotten)
    }

    /// `backend` is the address of the wanted one.
    fn wants(&self, backend: Option<BackendAddress>, Event { body: entry, .. }: &Event) -> bool {
        self.kind.is_none_or(|kind| entry.kind == kind)
            && backend.is_none_or(|backend| entry.backend.is_some_and(|its| backend.covers(its)))
            && self.service.as_ref().is_none_or(|service| entry.service.as_ref() == Some(service))
    }
}

pub(super) async fn run(args: &EventsArgs, client: &Client, output: Output) -> Result<()> {
    let backend = address_of(client, args.service.as_deref(), args.backend.as_ref()).await?;
    let page: Page = client.get(paths::EVENTS).await?;
    let (wanted, forgotten) = args.select(backend, &page);
    if forgotten {
        eprintln!("lbctl: lbd keeps the last {KEPT} events; older ones are in its log");
    }
    for event in wanted {
        show(event, output)?;
    }
    if args.follow { follow((args, backend), client, output, page.last).await } else { Ok(()) }
}

/// Shows the events after the one of this number, until the daemon is away for too long.
async fn follow(
    (args, backend): (&EventsArgs, Option<BackendAddress>),
    client: &Client,
    output: Output,
    mut last: u64,
) -> Result<()> {
    let mut patient = Patient::new(client);
    loop {
        let lines = client.lines(&format!("{}?follow=true&since={last}", paths::EVENTS)).await;
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
                        if args.wants(backend, &event) {
                            show(&event, output)?;
                        }
                    }
                    Line::Missed { missed } => {
                        eprintln!("lbctl: {} missed", counted(missed, "event"));
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

fn text(Event { at, body: entry, .. }: &Event) -> String {
    let kind = entry.kind.name();
    format!("{}  {kind:<20}  {} ({})", rfc3339::format(*at), entry.message, entry.cause)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use lb_api::event::EventBody;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: EventsArgs,
    }

    fn parse(line: &str) -> Result<EventsArgs, clap::Error> {
        let args = ["lbctl"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(args).map(|line| line.args)
    }

    /// Events of these seconds since 1970.
    fn page(seconds: impl Iterator<Item = u64>) -> Page {
        let event = |at| Event {
            seq: at,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            body: EventBody::new(Kind::BackendDown, "it is down", "no answer"),
        };
        Page { events: seconds.map(event).collect(), ..Page::default() }
    }

    #[test]
    fn events_since_a_moment_are_all_of_them() {
        let shown = |line: &str, page: &Page| {
            let args = parse(line).expect(line);
            let (shown, forgotten) = args.select(None, page);
            (shown.iter().map(|event| event.seq).collect::<Vec<_>>(), forgotten)
        };
        let long = page(0..300);
        assert_eq!(shown("", &long), ((200..300).collect(), false));
        let since = "--since 1970-01-01T00:02:30Z";
        assert_eq!(shown(since, &long), ((150..300).collect(), false));
        assert_eq!(shown(&format!("{since} -n 2"), &long), (vec![298, 299], false));
        assert_eq!(shown("--since 10m", &long), (vec![], false), "all of it was long ago");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
        let recent = page([now.as_secs() - 3_600, now.as_secs() - 60].into_iter());
        assert_eq!(shown("--since 10m", &recent).0, [now.as_secs() - 60]);
        let full = page(1_000..1_000 + KEPT as u64);
        assert!(shown("--since 1970-01-01T00:00:00Z", &full).1, "there may have been more");
        assert!(!shown("--since 1970-01-01T01:00:00Z", &full).1);
    }

    #[test]
    fn a_moment_that_is_none_is_told() {
        for wrong in ["10", "yesterday", "2026-11-22", "2026-11-22 09:30"] {
            let args = ["lbctl", "--since", wrong];
            let error = Line::try_parse_from(args).expect_err(wrong).to_string();
            assert!(error.contains("is neither a duration nor a time"), "{error}");
        }
    }

    #[test]
    fn an_event_is_a_line_with_its_cause() {
        let body =
            EventBody::new(Kind::BackendDown, "backend A of web can't be reached", "no answer");
        let event = Event { seq: 1, at: SystemTime::UNIX_EPOCH, body };
        assert_eq!(
            text(&event),
            "1970-01-01T00:00:00.000Z  backend_down          backend A of web can't be reached (no answer)"
        );
    }
}
