//! The lines above the tables: the node, the holders of the addresses, and the rates.

use ratatui::text::{Line, Span};

use super::{
    app::App,
    looks::{Looks, seconds},
    rates::Of,
    rows::{Tone, rate_text},
};
use lb_api::routers::RouterStatus;
use lb_api::status::{Peer, Status};
use lb_model::router::State;
use lb_model::units::{format_count, format_duration};

use crate::cli::{node, vrrp};

/// A piece of text, and how it looks.
pub(super) type Piece = (String, Tone);

/// The lines, as wide as the terminal.
pub(super) fn lines(app: &App, looks: Looks, width: u16) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = pieces(app)
        .into_iter()
        .map(|line| {
            let spans = line.into_iter().map(|(text, tone)| Span::styled(text, looks.style(tone)));
            Line::from(spans.collect::<Vec<_>>())
        })
        .collect();
    // The rest of the line of rates shows their recent values.
    if let Some(line) = lines.get_mut(usize::from(app.status.is_some()) * RATES)
        && app.rates.is_known()
    {
        let left = usize::from(width).saturating_sub(line.width() + 2);
        if left >= 8 {
            let past = app.rates.packets(&Of::Node);
            line.push_span(Span::styled(
                format!("  {}", looks.bars(past, left.min(super::rates::KEPT))),
                looks.style(Tone::Good),
            ));
        }
    }
    lines
}

/// Which line has the rates.
const RATES: usize = 1;

/// The same without a width: for batches as well.
pub(super) fn pieces(app: &App) -> Vec<Vec<Piece>> {
    let every = format_duration(app.interval);
    let Some(status) = &app.status else {
        return vec![vec![
            (format!("lbctl top on {}", app.host), Tone::Plain),
            (format!(", every {every}"), Tone::Faint),
        ]];
    };
    let mut first = vec![(
        format!("lbd {} on {}, up {}", status.version, app.host, seconds(status.uptime_secs)),
        Tone::Plain,
    )];
    first.extend(interfaces(status));
    first.push((format!(", every {every}"), Tone::Faint));
    let mut lines = vec![first, rates(app, status)];
    lines.push(losses(app, status));
    if !status.vrrp.is_empty() || !status.peers.is_empty() {
        lines.push(pair(status));
    }
    if status.node.draining_since.is_some() {
        lines.push(vec![(node::state(status), Tone::Warn)]);
    }
    if let Some(error) = &status.last_error {
        lines.push(vec![(format!("LAST WRITE OF MAPS FAILED: {error}"), Tone::Bad)]);
    }
    lines.extend(service(app));
    lines
}

fn interfaces(status: &Status) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for interface in &status.interfaces {
        let (text, tone) = match (interface.attached, interface.mode.as_str()) {
            (false, _) => ("NOT ATTACHED".to_owned(), Tone::Bad),
            (true, "native" | "tc") => (interface.hook(), Tone::Good),
            (true, _) => (interface.hook(), Tone::Warn),
        };
        pieces.push((format!(", {} ", interface.name), Tone::Plain));
        pieces.push((text, tone));
    }
    pieces
}

fn rates(app: &App, status: &Status) -> Vec<Piece> {
    let text = match app.rates.of(&Of::Node) {
        None => "forwarding: - pps, - bit/s, - new/s".to_owned(),
        Some(rate) => format!(
            "forwarding: {} pps, {}bit/s, {} new/s",
            rate_text(rate.packets),
            spaced(&rate_text(rate.bytes * 8.0)),
            rate_text(rate.new_flows),
        ),
    };
    let usage = status.pins;
    let tone = match usage.used * 10 >= usage.capacity * 9 && usage.capacity > 0 {
        true => Tone::Bad,
        false => Tone::Plain,
    };
    let pins = format!(", pins {} of {}", format_count(usage.used), format_count(usage.capacity));
    vec![(text, Tone::Plain), (pins, tone)]
}

/// `1.2M` as `1.2 M`, for a unit to follow.
fn spaced(count: &str) -> String {
    let digits = count.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    format!("{digits} {}", &count[digits.len()..])
}

fn losses(app: &App, status: &Status) -> Vec<Piece> {
    let total: u64 = status.dropped.values().map(|count| count.packets).sum();
    let total = format!("dropped: {} in all", format_count(total));
    let reasons = app.rates.reasons();
    if reasons.is_empty() {
        return vec![(total, Tone::Plain), (", none at this moment".into(), Tone::Faint)];
    }
    let now = app.rates.of(&Of::Drops).map_or(0.0, |rate| rate.packets);
    let reasons: Vec<_> = reasons
        .iter()
        .take(3)
        .map(|(reason, rate)| format!("{reason} {}", rate_text(*rate)))
        .collect();
    let now = format!(", {} pps ({})", rate_text(now), reasons.join(", "));
    vec![(total, Tone::Plain), (now, Tone::Bad)]
}

fn pair(status: &Status) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, router) in status.vrrp.iter().enumerate() {
        pieces.push((if index == 0 { "VIPs: " } else { ", " }.into(), Tone::Plain));
        pieces.push(router_piece(router));
    }
    for (index, peer) in status.peers.iter().enumerate() {
        let before = match (index, pieces.is_empty()) {
            (0, true) => "peers: ",
            (0, false) => "; peers: ",
            _ => ", ",
        };
        pieces.push((before.into(), Tone::Plain));
        pieces.push(peer_piece(peer));
    }
    pieces
}

/// A virtual router: which node is Active.
fn router_piece(router: &RouterStatus) -> Piece {
    let (who, tone) = match (router.state, &router.active) {
        (State::Active, _) => ("active here".to_owned(), Tone::Good),
        (State::Backup, Some(active)) => (format!("active on {}", active.address), Tone::Plain),
        (State::Backup, None) => ("backup, no advertisement received".into(), Tone::Warn),
        (State::Fault, _) => ("FAULT".into(), Tone::Bad),
        (State::Initialize, _) => ("not started".into(), Tone::Warn),
    };
    let problem = router.problems.first().map(|problem| format!(" ({problem})"));
    let tone = if problem.is_some() { Tone::Bad } else { tone };
    (format!("{} {who}{}", router.name, problem.unwrap_or_default()), tone)
}

fn peer_piece(peer: &Peer) -> Piece {
    let state = vrrp::peer_state(peer);
    let tone = if state == "synced" { Tone::Good } else { Tone::Bad };
    (format!("{} {state}", peer.name()), tone)
}

/// The service that is looked at.
fn service(app: &App) -> Vec<Vec<Piece>> {
    let Some((name, service)) = app.service() else { return Vec::new() };
    let flux = match service.slots_in_flux {
        0 => String::new(),
        slots => format!(", {slots} of {} slots in flux", service.ring_slots),
    };
    let text = format!(
        "{name}: {}, {}, idle timeout {}{flux}",
        service.key,
        service.mode,
        seconds(service.idle_timeout_secs)
    );
    let mut lines = vec![vec![(text, Tone::Plain)]];
    let standing = crate::cli::health::standing(service);
    lines.extend(standing.lines().map(|line| vec![(line.trim().to_owned(), Tone::Bad)]));
    lines
}
