//! The tables: their columns, and the order of their rows.

use std::{cmp::Ordering, net::IpAddr};

use lb_api::status::{Backend, BackendState, Service, Status};
use lb_inspect::flows::Flow;
use lb_model::{backend_address::BackendAddress, seen::Condition, units::format_count};

use super::rates::{Of, Rate, Rates};
use crate::cli::{flows as flow_text, status as text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its heading.
    pub(super) title: &'static str,
    /// How wide it is; one that is zero shares what the others leave.
    pub(super) width: u16,
    /// Whether its cells are numbers: aligned to the right, and sorted from the largest on.
    pub(super) is_number: bool,
}

impl Column {
    /// Whether it shows how rates were of late, in all the room that there is.
    pub(super) fn is_rates(&self) -> bool {
        *self == RATE
    }
}

const RATE: Column = number("RATE", 10);

const fn words(title: &'static str, width: u16) -> Column {
    Column { title, width, is_number: false }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column { title, width, is_number: true }
}

pub(super) const SERVICES: [Column; 8] = [
    words("SERVICE", 12),
    words("ADDRESS", 0),
    number("UP", 6),
    number("PPS", 7),
    number("BIT/S", 7),
    number("NEW/S", 7),
    number("PINS", 6),
    RATE,
];
/// Of the backends of a service.
pub(super) const BACKENDS: [Column; 9] = [
    words("BACKEND", 15),
    words("STATE", 0),
    number("WEIGHT", 7),
    number("SHARE", 6),
    number("PPS", 6),
    number("BIT/S", 6),
    number("NEW/S", 6),
    number("PINS", 6),
    RATE,
];
/// Of the flows of a backend.
pub(super) const FLOWS: [Column; 5] = [
    words("CLIENT", 0),
    words("KIND", 8),
    words("STATE", 12),
    number("SLOT", 8),
    number("IDLE", 8),
];
/// How a cell looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// As all do.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// It is on its way.
    Warn,
    /// It is not well.
    Bad,
    /// It matters less.
    Faint,
}

/// The sort key of a cell.
#[derive(Clone, Debug, PartialEq)]
enum Sort {
    Word(String),
    Number(f64),
    Address(IpAddr, u16),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    /// How it looks.
    pub(super) tone: Tone,
    /// Rates of late, instead of a text.
    pub(super) past: Vec<f64>,
    sort: Sort,
}

impl Cell {
    fn word(text: impl Into<String>) -> Self {
        let text = text.into();
        let sort = Sort::Word(text.to_lowercase());
        Self { text, tone: Tone::Plain, past: Vec::new(), sort }
    }

    fn number(text: impl Into<String>, value: f64) -> Self {
        Self { sort: Sort::Number(value), ..Self::word(text) }
    }

    fn count(value: u64) -> Self {
        Self::number(format_count(value), value as f64)
    }

    /// A rate, if it is known.
    fn rate(value: Option<f64>) -> Self {
        match value {
            Some(value) => Self::number(rate_text(value), value).toned(match value {
                0.0 => Tone::Faint,
                _ => Tone::Plain,
            }),
            None => Self::number("-", -1.0).toned(Tone::Faint),
        }
    }

    fn address(text: String, address: IpAddr, port: u16) -> Self {
        Self { sort: Sort::Address(address, port), ..Self::word(text) }
    }

    fn past(rates: &Rates, of: &Of) -> Self {
        let past: Vec<f64> = rates.packets(of).collect();
        let now = past.last().copied().unwrap_or(-1.0);
        Self { past, ..Self::number("", now) }
    }

    fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

/// A rate in few characters: one that is below ten has a decimal.
pub(super) fn rate_text(value: f64) -> String {
    match value {
        value if value > 0.0 && value < 9.95 => format!("{value:.1}"),
        value => format_count(value.round() as u64),
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Its subject: stays while the row moves.
    pub(super) key: String,
    /// As many as there are columns.
    pub(super) cells: Vec<Cell>,
}

impl Row {
    /// Whether a text is in any of its cells; `text` is in lower case.
    fn has(&self, text: &str) -> bool {
        self.cells.iter().any(|cell| cell.text.to_lowercase().contains(text))
    }
}

/// A line for each service.
pub(super) fn services(status: &Status, rates: &Rates) -> Vec<Row> {
    let row = |(name, service): (&String, &Service)| {
        let of = Of::Service(name.clone());
        let rate = rates.of(&of);
        let all = service.backends.len();
        let up = service.backends.values().filter(|backend| is_up(backend)).count();
        let tone = match up {
            0 => Tone::Bad,
            up if up < all => Tone::Warn,
            _ => Tone::Good,
        };
        let pins = service.backends.values().map(|backend| backend.pins).sum();
        let key = &service.key;
        let mut cells = vec![Cell::word(name), Cell::address(key.to_string(), key.vip, key.port)];
        cells.push(Cell::number(format!("{up}/{all}"), up as f64).toned(tone));
        cells.extend(rate_cells(rate));
        cells.extend([Cell::count(pins), Cell::past(rates, &of)]);
        Row { key: name.clone(), cells }
    };
    status.services.iter().map(row).collect()
}

/// A line for each backend of a service.
pub(super) fn backends(name: &str, service: &Service, rates: &Rates) -> Vec<Row> {
    let row = |(address, backend): (&BackendAddress, &Backend)| {
        let of = Of::Backend(name.to_owned(), *address);
        let share = 100.0 * f64::from(backend.slots) / f64::from(service.ring_slots.max(1));
        let mut cells = vec![
            Cell::address(text::label(*address, backend), address.ip, address.port_or(0)),
            Cell::word(text::state(backend)).toned(tone(backend)),
            Cell::number(backend.weight.to_string(), backend.weight.into()),
            Cell::number(format!("{share:.1}%"), share),
        ];
        cells.extend(rate_cells(rates.of(&of)));
        cells.extend([Cell::count(backend.pins), Cell::past(rates, &of)]);
        Row { key: address.to_string(), cells }
    };
    service.backends.iter().map(row).collect()
}

/// A line for each flow.
pub(super) fn flows(flows: &[Flow]) -> Vec<Row> {
    let row = |flow: &Flow| {
        let client = flow_text::client(flow);
        let first = match (flow.client, flow.port) {
            (Some(address), Some(port)) => Cell::address(client.clone(), address, port),
            _ => Cell::word(client.clone()),
        };
        let tone = if flow.closing { Tone::Faint } else { Tone::Plain };
        let slot = flow.slot.map_or_else(|| "-".into(), |slot| slot.to_string());
        let cells = vec![
            first,
            Cell::word(flow.kind.name()),
            Cell::word(flow.state()).toned(tone),
            Cell::number(slot, flow.slot.map_or(-1.0, f64::from)),
            Cell::number(flow_text::idle(flow), flow.idle_secs.into()),
        ];
        Row { key: format!("{} {client}", flow.kind.name()), cells }
    };
    flows.iter().map(row).collect()
}

fn rate_cells(rate: Option<Rate>) -> [Cell; 3] {
    [
        Cell::rate(rate.map(|rate| rate.packets)),
        Cell::rate(rate.map(|rate| rate.bytes * 8.0)),
        Cell::rate(rate.map(|rate| rate.new_flows)),
    ]
}

/// Whether it serves.
fn is_up(backend: &Backend) -> bool {
    use BackendState::{Backup, Suspect, Up};

    matches!(backend.state(), Up | Backup | Suspect)
}

fn tone(backend: &Backend) -> Tone {
    match backend.state() {
        BackendState::Disabled | BackendState::TakenDown => Tone::Faint,
        BackendState::Up | BackendState::Backup => Tone::Good,
        BackendState::Down if backend.condition == Condition::HardDown => Tone::Bad,
        BackendState::Unresolved => Tone::Bad,
        BackendState::Draining
        | BackendState::Removing
        | BackendState::Suspect
        | BackendState::Held
        | BackendState::Down => Tone::Warn,
    }
}

/// The rows in which a text is, in the order of a column; equal ones by their subject.
pub(super) fn arrange(mut rows: Vec<Row>, filter: &str, column: usize, descends: bool) -> Vec<Row> {
    let filter = filter.to_lowercase();
    rows.retain(|row| row.has(&filter));
    rows.sort_by(|a, b| {
        let order = compare(&a.cells[column].sort, &b.cells[column].sort);
        let order = if descends { order.reverse() } else { order };
        order.then_with(|| compare(&a.cells[0].sort, &b.cells[0].sort))
    });
    rows
}

fn compare(a: &Sort, b: &Sort) -> Ordering {
    match (a, b) {
        (Sort::Word(a), Sort::Word(b)) => a.cmp(b),
        (Sort::Number(a), Sort::Number(b)) => a.total_cmp(b),
        (Sort::Address(a, x), Sort::Address(b, y)) => (a, x).cmp(&(b, y)),
        // Clients by their address come before connections by their id.
        (Sort::Address(..), _) => Ordering::Less,
        (_, Sort::Address(..)) => Ordering::Greater,
        (Sort::Number(_), _) => Ordering::Less,
        (_, Sort::Number(_)) => Ordering::Greater,
    }
}
