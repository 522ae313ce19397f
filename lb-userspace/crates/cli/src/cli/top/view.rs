//! A frame of `lbctl top`: the state as it is drawn.

use std::time::Instant;

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Clear, Paragraph, Table, TableState},
};

use super::{
    app::{App, Place},
    head,
    looks::Looks,
    rates::KEPT,
    rows::{Cell, Column, Row, Tone},
};

/// Draws everything; how many rows there was room for.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, looks: Looks, now: Instant) -> usize {
    let head = head::lines(app, looks, frame.area().width);
    let [top, title, table, foot] = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Text::from(head), top);
    let rows = app.rows();
    frame.render_widget(self::title(app, looks, &rows, now), title);
    self::table(frame, app, looks, &rows, table);
    frame.render_widget(self::foot(app, looks), foot);
    if app.helps {
        help(frame, looks);
    }
    usize::from(table.height).saturating_sub(1)
}

/// The place, its order, and the reason if its data is stale.
fn title<'a>(app: &'a App, looks: Looks, rows: &[Row], now: Instant) -> Line<'a> {
    let page = app.page();
    let mut spans = vec![];
    let bold = Style::new().add_modifier(Modifier::BOLD);
    if let Some((since, why)) = &app.away {
        let time = now.saturating_duration_since(*since).as_secs();
        let text = format!(" NO ANSWER for {time} s, trying again: {why} ");
        let style = looks.style(Tone::Bad).add_modifier(Modifier::REVERSED);
        return Line::styled(text, style);
    }
    if app.pauses {
        spans.push(Span::styled(
            "PAUSED ",
            looks.style(Tone::Warn).add_modifier(Modifier::REVERSED),
        ));
    }
    let (place, count) = match &page.place {
        Place::Services => ("services".to_owned(), rows.len().to_string()),
        Place::Backends(name) => (format!("backends of {name}"), rows.len().to_string()),
        Place::Flows(name, backend) => {
            let count = match &app.found {
                Some(Ok(found)) if found.matched > found.flows.len() as u64 => {
                    format!("the latest {} of {}", rows.len(), found.matched)
                }
                _ => rows.len().to_string(),
            };
            (format!("flows of {name} on {backend}"), count)
        }
    };
    spans.push(Span::styled(place, bold));
    spans.push(Span::raw(format!(" ({count})")));
    let column = page.place.columns()[page.sort];
    let arrow = arrow(looks, page.descends);
    spans.push(Span::raw(format!(", by {} {arrow}", column.title)));
    if app.writes || !page.filter.is_empty() {
        spans.push(Span::raw(", filter: "));
        spans.push(Span::styled(page.filter.as_str(), looks.key()));
        if app.writes {
            spans.push(Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)));
        }
    }
    Line::from(spans)
}

const fn arrow(looks: Looks, descends: bool) -> &'static str {
    match (looks.unicode, descends) {
        (true, true) => "▼",
        (true, false) => "▲",
        (false, true) => "v",
        (false, false) => "^",
    }
}

fn table(frame: &mut Frame<'_>, app: &App, looks: Looks, rows: &[Row], area: Rect) {
    let page = app.page();
    let columns = page.place.columns();
    let widths = self::widths(columns, rows, area.width);
    let headings = columns.iter().enumerate().map(|(index, column)| {
        let sorted = index == page.sort;
        let mark = if sorted { arrow(looks, page.descends) } else { "" };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let style = if sorted { looks.key() } else { bold };
        let text = match column.is_number {
            true => format!("{mark}{}", column.title),
            false => format!("{}{mark}", column.title),
        };
        aligned(text, column.is_number).style(style)
    });
    let cells = |row: &Row| -> ratatui::widgets::Row<'_> {
        let cells = row.cells.iter().zip(columns.iter().zip(&widths));
        let cells = cells.map(|(cell, (column, &width))| {
            let Cell { text, tone, past, .. } = cell;
            let text = match past.is_empty() {
                true => text.clone(),
                false => looks.bars(past.iter().copied(), width.into()),
            };
            aligned(text, column.is_number).style(looks.style(*tone))
        });
        ratatui::widgets::Row::new(cells.collect::<Vec<_>>())
    };
    let constraints = widths.iter().map(|&width| Constraint::Length(width));
    let table = Table::new(rows.iter().map(cells), constraints)
        .header(ratatui::widgets::Row::new(headings.collect::<Vec<_>>()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(app.cursor(rows));
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let [_, first, _] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1)])
                .areas(area);
        frame.render_widget(Span::styled(nothing(app), looks.style(Tone::Faint)), first);
    }
}

/// How wide the columns are: the one that has no width of its own takes what it needs of what the
/// others leave, and the rates take the rest, or it does itself.
fn widths(columns: &[Column], rows: &[Row], all: u16) -> Vec<u16> {
    let gaps = columns.len() as u16 - 1;
    let left = columns
        .iter()
        .map(|column| column.width)
        .fold(all.saturating_sub(gaps), u16::saturating_sub);
    let longest = |index: usize| {
        let lengths = rows.iter().map(|row| row.cells[index].text.chars().count() as u16);
        lengths.max().unwrap_or(0).max(columns[index].title.len() as u16 + 1)
    };
    let has_rates = columns.last().is_some_and(Column::is_rates);
    let mut rest = left;
    let mut widths: Vec<u16> = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        let width = match column.width {
            0 if has_rates => left.min(longest(index)),
            0 => left,
            width if column.is_rates() => (width + rest).min(KEPT as u16),
            width => width,
        };
        if column.width == 0 {
            rest -= width;
        }
        widths.push(width);
    }
    widths
}

/// Why there is no row.
fn nothing(app: &App) -> String {
    let page = app.page();
    match (&page.place, &app.found) {
        _ if app.status.is_none() => "waiting for lbd".into(),
        (Place::Flows(..), None) => "reading the flows".into(),
        (Place::Flows(..), Some(Err(why))) => why.clone(),
        _ if !page.filter.is_empty() => "nothing matches the filter; Esc clears it".into(),
        (Place::Flows(..), _) => "no flow is in a table; others go by the ring alone".into(),
        (Place::Backends(name), _) => format!("{name} has no backends"),
        (Place::Services, _) => "there are no services; 'lbctl service add' adds one".into(),
    }
}

fn aligned(text: String, right: bool) -> ratatui::widgets::Cell<'static> {
    let alignment = if right { Alignment::Right } else { Alignment::Left };
    ratatui::widgets::Cell::from(Text::from(text).alignment(alignment))
}

/// The keys that can be pressed here.
fn foot(app: &App, looks: Looks) -> Line<'static> {
    type Keys = &'static [(&'static str, &'static str)];
    const EVERYWHERE: Keys = &[
        ("< >", "sort"),
        ("r", "reverse"),
        ("/", "filter"),
        ("p", "pause"),
        ("?", "help"),
        ("q", "quit"),
    ];
    let (here, everywhere): (Keys, Keys) = match (app.writes, &app.page().place) {
        (true, _) => (&[("Enter", "keep the filter"), ("Esc", "clear it")], &[]),
        (false, Place::Services) => (&[("Enter", "backends")], EVERYWHERE),
        (false, Place::Backends(_)) => (&[("Enter", "flows"), ("Esc", "back")], EVERYWHERE),
        (false, Place::Flows(..)) => (&[("Esc", "back")], EVERYWHERE),
    };
    let mut spans = Vec::new();
    for (key, meaning) in here.iter().chain(everywhere) {
        spans.push(Span::styled(*key, looks.key()));
        spans.push(Span::raw(format!(" {meaning}  ")));
    }
    Line::from(spans)
}

const HELP: [(&str, &str); 13] = [
    ("Up Down j k", "move the cursor"),
    ("PgUp PgDn", "move it by a page"),
    ("Home End", "to the first row, to the last"),
    ("Enter", "open: service, backend, flows"),
    ("Esc", "clear the filter, or go back"),
    ("< >", "sort by the column before, after"),
    ("1 to 9", "sort by this column; again: reverse"),
    ("r", "reverse the order"),
    ("/", "show only rows with a text"),
    ("p", "pause, and go on"),
    ("+ -", "ask less often, more often"),
    ("Ctrl-Z", "suspend; 'fg' comes back"),
    ("q Ctrl-C", "quit"),
];

fn help(frame: &mut Frame<'_>, looks: Looks) {
    let width = 52.min(frame.area().width);
    let height = (HELP.len() as u16 + 2).min(frame.area().height);
    let area = frame.area().centered(Constraint::Length(width), Constraint::Length(height));
    let lines: Vec<_> = HELP
        .iter()
        .map(|(keys, meaning)| {
            Line::from(vec![Span::styled(format!("{keys:<13}"), looks.key()), Span::raw(*meaning)])
        })
        .collect();
    let block = Block::bordered().title(" keys; any of them closes this ");
    let block = match looks.unicode {
        true => block,
        false => block.border_set(ASCII),
    };
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

const ASCII: ratatui::symbols::border::Set<'static> = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};
