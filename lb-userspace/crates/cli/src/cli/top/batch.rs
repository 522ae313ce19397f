//! The same as lines, for a pipe, a log or a ticket.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use lb_api::{client::Client, paths, status::Status};
use lb_model::{backend_address::BackendAddress, units::rfc3339};
use serde::Serialize;

use super::{
    app::{App, Event, Place},
    head,
    rates::{Of, Rate},
    rows::{self, Column, Row},
};
use crate::cli::{options::Output, patience::Patient, table::Table};

/// Prints `times` times, or until the output is closed.
pub(super) async fn run(
    interval: Duration,
    times: Option<u64>,
    client: &Client,
    output: Output,
) -> Result<()> {
    let mut app = App::new(super::host(), interval);
    let mut patient = Patient::new(client);
    let mut printed = 0;
    while times.is_none_or(|times| printed < times) {
        let status: Box<Status> = patient.get(paths::STATUS).await?;
        app.handle(Event::Status(status), Instant::now());
        // The first look gives no rate.
        if app.rates.is_known() {
            let mut out = io::stdout().lock();
            match output {
                Output::Text if printed > 0 => write!(out, "\n{}", text(&app))?,
                Output::Text => write!(out, "{}", text(&app))?,
                Output::Json => writeln!(out, "{}", serde_json::to_string(&look(&app))?)?,
            }
            out.flush()?;
            printed += 1;
        }
        if times.is_none_or(|times| printed < times) {
            tokio::time::sleep(interval).await;
        }
    }
    Ok(())
}

/// Everything, in plain lines.
pub(super) fn text(app: &App) -> String {
    let Some(status) = &app.status else { return String::new() };
    let mut text = String::new();
    for line in head::pieces(app) {
        text.extend(line.into_iter().map(|(piece, _)| piece));
        text.push('\n');
    }
    let services = rows::services(status, &app.rates);
    text += &table("", Place::Services.columns(), services);
    for (name, service) in &status.services {
        let backends = rows::backends(name, service, &app.rates);
        if !backends.is_empty() {
            let columns = Place::Backends(name.clone());
            text += &table(&format!("{name}:\n"), columns.columns(), backends);
        }
    }
    text
}

/// All columns but the last one, which is drawn.
fn table(title: &str, columns: &[Column], rows: Vec<Row>) -> String {
    let columns = &columns[..columns.len() - 1];
    let headings: Vec<String> = columns
        .iter()
        .map(|column| format!("{}{}", if column.is_number { ">" } else { "" }, column.title))
        .collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(&headings).indented(if title.is_empty() { 0 } else { 2 });
    for row in rows {
        table.cells(row.cells.into_iter().take(columns.len()).map(|cell| cell.text).collect());
    }
    format!("{title}{}", table.render())
}

/// One look, for programs.
#[derive(Serialize)]
struct Look<'a> {
    #[serde(with = "rfc3339")]
    at: SystemTime,
    per_second: PerSecond<'a>,
}

/// The rates per second.
#[derive(Serialize)]
struct PerSecond<'a> {
    forwarded: Option<Rate>,
    dropped_packets: BTreeMap<&'a str, f64>,
    services: BTreeMap<&'a str, ServiceLook>,
}

#[derive(Serialize)]
struct ServiceLook {
    #[serde(flatten)]
    rate: Option<Rate>,
    backends: BTreeMap<BackendAddress, Option<Rate>>,
}

fn look(app: &App) -> Look<'_> {
    let services = app.status.iter().flat_map(|status| &status.services);
    let services = services.map(|(name, service)| {
        let of = |at: &BackendAddress| app.rates.of(&Of::Backend(name.clone(), *at));
        let backends = service.backends.keys().map(|at| (*at, of(at))).collect();
        let rate = app.rates.of(&Of::Service(name.clone()));
        (name.as_str(), ServiceLook { rate, backends })
    });
    let per_second = PerSecond {
        forwarded: app.rates.of(&Of::Node),
        dropped_packets: app.rates.reasons().into_iter().collect(),
        services: services.collect(),
    };
    Look { at: SystemTime::now(), per_second }
}
