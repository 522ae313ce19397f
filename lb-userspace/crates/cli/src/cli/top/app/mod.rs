//! The view of `lbctl top` and how keys change it: a function of the events.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use lb_api::status::{Service, Status};
use lb_inspect::flows::Found;
use lb_model::backend_address::BackendAddress;

use super::{
    rates::Rates,
    rows::{self, BACKENDS, Column, FLOWS, Row, SERVICES},
};

/// Rows that a page moves by, until it is known how many there are.
const PAGE: usize = 10;

/// An input of the view.
#[derive(Debug)]
pub(super) enum Event {
    /// A key.
    Key(KeyEvent),
    /// The state of everything.
    Status(Box<Status>),
    /// The requested flows of a backend.
    Flows(Place, Found),
    /// The flows can't be read, for this reason.
    NoFlows(Place, String),
    /// `lbd` does not answer, for this reason.
    Away(String),
}

/// An action for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Give the terminal back, and end.
    Quit,
    /// Give the terminal back until the shell continues this.
    Suspend,
    /// Draw everything anew: something else has written to the terminal.
    Redraw,
    /// Request now, and not when the interval is over.
    Refresh,
}

/// A place that can be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All services.
    Services,
    /// The backends of a service.
    Backends(String),
    /// The flows of a service on a backend.
    Flows(String, BackendAddress),
}

impl Place {
    /// The columns of its table.
    pub(super) const fn columns(&self) -> &'static [Column] {
        match self {
            Self::Services => &SERVICES,
            Self::Backends(_) => &BACKENDS,
            Self::Flows(..) => &FLOWS,
        }
    }

    /// The column that it is sorted by before a key changes it.
    const fn first_sort(&self) -> (usize, bool) {
        match self {
            Self::Services => (3, true),
            Self::Backends(_) => (4, true),
            Self::Flows(..) => (4, false),
        }
    }
}

/// A place, and how it is looked at.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) place: Place,
    /// The column that rows are sorted by.
    pub(super) sort: usize,
    /// Whether from the largest on.
    pub(super) descends: bool,
    /// The filter of the rows.
    pub(super) filter: String,
    /// The key of the row that the cursor is on, and where that was.
    cursor: Option<(String, usize)>,
}

impl Page {
    const fn new(place: Place) -> Self {
        let (sort, descends) = place.first_sort();
        Self { place, sort, descends, filter: String::new(), cursor: None }
    }
}

/// The state of `lbctl top`.
#[derive(Debug)]
pub(super) struct App {
    /// The places, each opened from the one before; the last is looked at.
    pages: Vec<Page>,
    /// The last state of everything.
    pub(super) status: Option<Box<Status>>,
    pub(super) rates: Rates,
    /// The flows at the place that is looked at.
    pub(super) found: Option<Result<Found, String>>,
    /// Since when `lbd` does not answer, and why.
    pub(super) away: Option<(Instant, String)>,
    /// Whether the filter is being written.
    pub(super) writes: bool,
    pub(super) helps: bool,
    pub(super) pauses: bool,
    /// The name of this host.
    pub(super) host: String,
    pub(super) interval: Duration,
    /// Rows that there was room for.
    pub(super) room: usize,
}

impl App {
    pub(super) fn new(host: String, interval: Duration) -> Self {
        Self {
            pages: vec![Page::new(Place::Services)],
            status: None,
            rates: Rates::default(),
            found: None,
            away: None,
            writes: false,
            helps: false,
            pauses: false,
            host,
            interval,
            room: PAGE,
        }
    }

    /// The place that is shown.
    pub(super) fn page(&self) -> &Page {
        self.pages.last().expect("the services are never left")
    }

    fn page_mut(&mut self) -> &mut Page {
        self.pages.last_mut().expect("the services are never left")
    }

    /// The service that is looked at, if it is there.
    pub(super) fn service(&self) -> Option<(&str, &Service)> {
        let (Place::Backends(name) | Place::Flows(name, _)) = &self.page().place else {
            return None;
        };
        let service = self.status.as_ref()?.services.get(name)?;
        Some((name, service))
    }

    /// The rows of the place that is looked at, in their order.
    pub(super) fn rows(&self) -> Vec<Row> {
        let page = self.page();
        let rows = match (&page.place, &self.status) {
            (Place::Flows(..), _) => match &self.found {
                Some(Ok(found)) => rows::flows(&found.flows),
                _ => Vec::new(),
            },
            (_, None) => Vec::new(),
            (Place::Services, Some(status)) => rows::services(status, &self.rates),
            (Place::Backends(name), Some(_)) => self
                .service()
                .map(|(_, service)| rows::backends(name, service, &self.rates))
                .unwrap_or_default(),
        };
        rows::arrange(rows, &page.filter, page.sort, page.descends)
    }

    /// Where the cursor is in these rows: it stays on its row, or at its position if that row is gone.
    pub(super) fn cursor(&self, rows: &[Row]) -> Option<usize> {
        let last = rows.len().checked_sub(1)?;
        let Some((key, at)) = &self.page().cursor else { return Some(0) };
        let found = rows.iter().position(|row| row.key == *key);
        Some(found.unwrap_or((*at).min(last)))
    }

    /// Takes one event at `now`; the caller does the action.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Option<Action> {
        match event {
            Event::Key(key) if key.kind == KeyEventKind::Release => None,
            Event::Key(key) => self.key(key),
            Event::Status(status) => {
                self.away = None;
                if !self.pauses {
                    self.rates.look(&status, now);
                    self.status = Some(status);
                    self.rest();
                }
                None
            }
            Event::Flows(place, found) => {
                self.take_flows(&place, Ok(found));
                None
            }
            Event::NoFlows(place, why) => {
                self.take_flows(&place, Err(why));
                None
            }
            Event::Away(why) => {
                let since = self.away.take().map_or(now, |(since, _)| since);
                self.away = Some((since, why));
                None
            }
        }
    }

    /// An answer may be of a place that was left meanwhile.
    fn take_flows(&mut self, place: &Place, found: Result<Found, String>) {
        if self.page().place == *place && !self.pauses {
            self.found = Some(found);
            self.rest();
        }
    }

    /// Notes where the cursor has come to, so that it stays near if its row goes.
    fn rest(&mut self) {
        let rows = self.rows();
        if self.page().cursor.is_some()
            && let Some(at) = self.cursor(&rows)
        {
            self.page_mut().cursor = Some((rows[at].key.clone(), at));
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Action> {
        let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if with_control => return Some(Action::Quit),
            KeyCode::Char('z') if with_control => return Some(Action::Suspend),
            KeyCode::Char('l') if with_control => return Some(Action::Redraw),
            _ if with_control => return None,
            _ => {}
        }
        if self.helps {
            // Any key closes it.
            self.helps = false;
            return (key.code == KeyCode::Char('q')).then_some(Action::Quit);
        }
        if self.writes {
            self.write(key.code);
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Char('?' | 'h') => self.helps = true,
            KeyCode::Char('/') => self.writes = true,
            KeyCode::Char('p' | ' ') => {
                self.pauses = !self.pauses;
                return (!self.pauses).then_some(Action::Refresh);
            }
            KeyCode::Char('+') => self.interval = slower(self.interval),
            KeyCode::Char('-') => {
                self.interval = faster(self.interval);
                return Some(Action::Refresh);
            }
            KeyCode::Char('<' | ',') => self.sort_by(self.page().sort.checked_sub(1)),
            KeyCode::Char('>' | '.') => self.sort_by(Some(self.page().sort + 1)),
            KeyCode::Char(digit @ '1'..='9') => {
                self.sort_by(digit.to_digit(10).map(|digit| digit as usize - 1));
            }
            KeyCode::Char('r') => self.page_mut().descends ^= true,
            KeyCode::Enter | KeyCode::Right => return self.open(),
            KeyCode::Esc if !self.page().filter.is_empty() => self.page_mut().filter.clear(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.leave(),
            KeyCode::Up | KeyCode::Char('k') => self.go(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at, _| at + 1),
            KeyCode::PageUp => self.go(|at, room| at.saturating_sub(room)),
            KeyCode::PageDown => self.go(|at, room| at + room),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_, _| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_, _| usize::MAX),
            _ => {}
        }
        None
    }

    fn write(&mut self, code: KeyCode) {
        let page = self.page_mut();
        match code {
            KeyCode::Char(letter) => page.filter.push(letter),
            KeyCode::Backspace => drop(page.filter.pop()),
            KeyCode::Esc => {
                page.filter.clear();
                self.writes = false;
            }
            KeyCode::Enter => self.writes = false,
            _ => {}
        }
    }

    /// The column that is sorted by already turns round.
    fn sort_by(&mut self, column: Option<usize>) {
        let page = self.page_mut();
        let columns = page.place.columns();
        match column.filter(|column| *column < columns.len()) {
            Some(column) if column == page.sort => page.descends ^= true,
            Some(column) => (page.sort, page.descends) = (column, columns[column].is_number),
            None => {}
        }
    }

    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        let rows = self.rows();
        let Some(at) = self.cursor(&rows) else { return };
        let at = to(at, self.room.max(1)).min(rows.len() - 1);
        self.page_mut().cursor = Some((rows[at].key.clone(), at));
    }

    fn open(&mut self) -> Option<Action> {
        let rows = self.rows();
        let row = &rows[self.cursor(&rows)?];
        let place = match &self.page().place {
            Place::Services => Place::Backends(row.key.clone()),
            Place::Backends(name) => Place::Flows(name.clone(), row.key.parse().ok()?),
            Place::Flows(..) => return None,
        };
        let cursor = self.cursor(&rows).map(|at| (row.key.clone(), at));
        self.page_mut().cursor = cursor;
        self.found = None;
        self.pages.push(Page::new(place));
        Some(Action::Refresh)
    }

    fn leave(&mut self) {
        if self.pages.len() > 1 {
            self.pages.pop();
            self.found = None;
        }
    }
}

/// The next longer interval, in steps that people think in.
fn slower(interval: Duration) -> Duration {
    STEPS.into_iter().find(|step| *step > interval).unwrap_or(interval)
}

fn faster(interval: Duration) -> Duration {
    STEPS.into_iter().rev().find(|step| *step < interval).unwrap_or(interval)
}

const STEPS: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

#[cfg(test)]
mod tests;
