//! The effects of keys and answers, and the frames.

use std::net::IpAddr;
use std::{fs, path::Path};

use lb_inspect::flows::{Flow, Kind};
use lb_model::backend_address::BackendAddress;
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{
    super::tests::{node, send},
    *,
};
use crate::cli::top::{
    batch,
    looks::Looks,
    rates::{Of, Rate},
    view,
};

const COLOURS: Looks = Looks { colours: true, unicode: true };

/// The app in a test, and its time.
struct Story {
    app: App,
    now: Instant,
}

impl Story {
    /// Two looks: of the second on, rates are known. `web`'s first backend gets 100 packets in a
    /// second, its second one 300, and `dns` 50.
    fn new() -> Self {
        let app = App::new("lb1".into(), Duration::from_secs(1));
        let mut story = Self { app, now: Instant::now() };
        story.receives(Event::Status(Box::new(node())));
        story.now += Duration::from_secs(1);
        story.receives(Event::Status(Box::new(later())));
        story
    }

    fn receives(&mut self, event: Event) -> Option<Action> {
        self.app.handle(event, self.now)
    }

    fn presses(&mut self, code: KeyCode) -> Option<Action> {
        self.receives(Event::Key(code.into()))
    }

    fn types(&mut self, text: &str) {
        for letter in text.chars() {
            self.presses(KeyCode::Char(letter));
        }
    }

    /// The first cell of each row.
    fn firsts(&self) -> Vec<String> {
        self.app.rows().iter().map(|row| row.cells[0].text.clone()).collect()
    }

    /// The first cell of the row with the cursor.
    fn under_cursor(&self) -> Option<String> {
        let rows = self.app.rows();
        self.app.cursor(&rows).map(|at| rows[at].cells[0].text.clone())
    }

    fn frame(&mut self, width: u16, height: u16, looks: Looks) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
        let (app, now) = (&mut self.app, self.now);
        let mut room = 0;
        terminal.draw(|frame| room = view::draw(frame, app, looks, now)).expect("in memory");
        app.room = room;
        terminal
    }

    /// Compares a frame to the one that is kept; `UPDATE_GOLDEN=1` keeps it.
    fn looks_like(&mut self, name: &str, width: u16, height: u16) {
        is_kept(name, &text(&self.frame(width, height, COLOURS)));
    }
}

/// Compares a text to the file that is kept.
fn is_kept(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/frames");
    let path = path.join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("it is written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, kept, "{name}: is:\n{text}\nand was:\n{kept}");
}

/// A frame's characters, a line for each row without the spaces at its end.
fn text(terminal: &Terminal<TestBackend>) -> String {
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(buffer.area.width.into());
    let line = |cells: &[ratatui::buffer::Cell]| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    };
    rows.map(line).collect()
}

fn later() -> Status {
    let mut status = node();
    for (name, last, packets) in [("web", 11, 100), ("web", 12, 300), ("dns", 11, 50)] {
        send(&mut status, name, last, packets);
    }
    status.dropped.get_mut("no_backend").expect("it is there").packets += 3;
    status
}

fn flow(last: u8, idle_secs: u32) -> Flow {
    Flow {
        kind: Kind::Pin,
        service: Some("web".into()),
        client: Some(IpAddr::from([198, 51, 100, last])),
        port: Some(4_242),
        destination: None,
        connection: None,
        backend: Some(IpAddr::from([10, 0, 0, 12]).into()),
        backend_id: 2,
        slot: Some(u32::from(last)),
        established: true,
        closing: false,
        idle_secs,
    }
}

fn flows_of_12() -> Place {
    Place::Flows("web".into(), IpAddr::from([10, 0, 0, 12]).into())
}

#[test]
fn services_come_with_their_rates_the_busiest_first() {
    let mut story = Story::new();
    assert_eq!(story.firsts(), ["web", "dns"]);
    let rate = |packets| Some(Rate { packets, bytes: packets * 100.0, new_flows: packets / 10.0 });
    assert_eq!(story.app.rates.of(&Of::Service("web".into())), rate(400.0));
    story.looks_like("services", 80, 24);
}

#[test]
fn a_wider_terminal_shows_more_and_a_smaller_one_does_not_break() {
    let mut story = Story::new();
    story.looks_like("wide", 120, 16);
    for (width, height) in [(40, 10), (10, 5), (1, 1), (200, 60)] {
        story.frame(width, height, COLOURS);
    }
}

#[test]
fn enter_goes_from_services_to_backends_to_flows_and_escape_comes_back() {
    let mut story = Story::new();
    assert_eq!(story.presses(KeyCode::Enter), Some(Action::Refresh));
    assert_eq!(story.app.page().place, Place::Backends("web".into()));
    assert_eq!(story.firsts(), ["10.0.0.12", "10.0.0.11", "10.0.0.13", "10.0.0.14"]);
    story.looks_like("backends", 80, 24);
    story.presses(KeyCode::Enter);
    assert_eq!(story.app.page().place, flows_of_12());
    assert!(text(&story.frame(80, 24, COLOURS)).contains("reading the flows"));
    let flows = vec![flow(7, 62), flow(8, 0)];
    let found = Found { matched: 5_000, backends: Vec::new(), flows };
    story.receives(Event::Flows(flows_of_12(), found));
    assert_eq!(story.firsts(), ["198.51.100.8:4242", "198.51.100.7:4242"]);
    story.looks_like("flows", 80, 24);
    assert_eq!(story.presses(KeyCode::Enter), None, "there is nothing behind a flow");
    story.presses(KeyCode::Esc);
    assert_eq!(story.under_cursor().as_deref(), Some("10.0.0.12"));
    story.presses(KeyCode::Esc);
    story.presses(KeyCode::Esc);
    assert_eq!(story.app.page().place, Place::Services);
}

#[test]
fn an_answer_of_a_place_that_was_left_is_not_shown() {
    let mut story = Story::new();
    story.presses(KeyCode::Enter);
    story.presses(KeyCode::Enter);
    story.presses(KeyCode::Esc);
    story.presses(KeyCode::Down);
    story.presses(KeyCode::Enter);
    story.receives(Event::Flows(flows_of_12(), Found::default()));
    assert_eq!(story.app.found, None);
    let here = story.app.page().place.clone();
    story.receives(Event::NoFlows(here, "service web has no backend".into()));
    assert!(text(&story.frame(80, 24, COLOURS)).contains("service web has no backend"));
}

#[test]
fn columns_are_sorted_by_keys_and_the_heading_shows_it() {
    let mut story = Story::new();
    let heading = |story: &mut Story| {
        let frame = text(&story.frame(80, 24, COLOURS));
        let line = frame.lines().find(|line| line.starts_with("SERVICE"));
        line.expect("there is a heading").to_owned()
    };
    assert!(heading(&mut story).contains("▼PPS"));
    story.presses(KeyCode::Char('r'));
    assert!(heading(&mut story).contains("▲PPS"));
    assert_eq!(story.firsts(), ["dns", "web"]);
    story.presses(KeyCode::Char('1'));
    assert!(heading(&mut story).contains("SERVICE▲"));
    assert_eq!(story.firsts(), ["dns", "web"]);
    story.presses(KeyCode::Char('1'));
    assert_eq!(story.firsts(), ["web", "dns"], "the same again turns it round");
    story.presses(KeyCode::Char('>'));
    assert!(heading(&mut story).contains("ADDRESS▲"));
    story.presses(KeyCode::Char('<'));
    story.presses(KeyCode::Char('<'));
    assert_eq!(story.app.page().sort, 0, "there is no column before the first");
    story.presses(KeyCode::Char('9'));
    assert_eq!(story.app.page().sort, 0, "there is no ninth one");
}

#[test]
fn addresses_are_sorted_as_numbers() {
    let mut story = Story::new();
    let mut status = later();
    let web = status.services.get_mut("web").expect("it is there");
    web.backends.insert(IpAddr::from([10, 0, 0, 9]).into(), lb_api::status::Backend::default());
    story.receives(Event::Status(Box::new(status)));
    story.presses(KeyCode::Enter);
    story.presses(KeyCode::Char('1'));
    assert_eq!(story.firsts(), ["10.0.0.9", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"]);
}

#[test]
fn a_filter_leaves_the_rows_with_its_text() {
    let mut story = Story::new();
    story.presses(KeyCode::Enter);
    story.presses(KeyCode::Char('/'));
    story.types("DRAIq");
    story.presses(KeyCode::Backspace);
    assert_eq!(story.firsts(), ["10.0.0.14"]);
    assert!(text(&story.frame(80, 24, COLOURS)).contains("filter: DRAI"));
    story.presses(KeyCode::Enter);
    assert_eq!(story.app.page().place, Place::Backends("web".into()), "it ends the writing");
    story.presses(KeyCode::Esc);
    assert_eq!(story.firsts().len(), 4, "the first Esc clears the filter");
    story.presses(KeyCode::Char('/'));
    story.types("nothing of this");
    assert!(text(&story.frame(80, 24, COLOURS)).contains("nothing matches the filter"));
    story.presses(KeyCode::Esc);
    assert_eq!(story.firsts().len(), 4);
}

#[test]
fn the_cursor_stays_on_its_row_and_near_it_when_that_goes() {
    let mut story = Story::new();
    story.presses(KeyCode::Enter);
    story.presses(KeyCode::Down);
    assert_eq!(story.under_cursor().as_deref(), Some("10.0.0.11"));
    story.presses(KeyCode::Char('r'));
    assert_eq!(story.under_cursor().as_deref(), Some("10.0.0.11"), "it moves with its row");
    for (code, expected) in [
        (KeyCode::Home, "10.0.0.13"),
        (KeyCode::End, "10.0.0.12"),
        (KeyCode::Down, "10.0.0.12"),
        (KeyCode::PageUp, "10.0.0.13"),
        (KeyCode::Char('j'), "10.0.0.14"),
    ] {
        story.presses(code);
        assert_eq!(story.under_cursor().as_deref(), Some(expected), "{code:?}");
    }
    let mut status = later();
    let web = status.services.get_mut("web").expect("it is there");
    web.backends.remove(&BackendAddress::from([10, 0, 0, 14]));
    story.receives(Event::Status(Box::new(status)));
    assert_eq!(story.under_cursor().as_deref(), Some("10.0.0.11"), "it stays where it was");
}

#[test]
fn a_daemon_that_is_away_is_told_and_waited_for() {
    let mut story = Story::new();
    story.receives(Event::Away("lbd is not running".into()));
    story.now += Duration::from_secs(4);
    story.receives(Event::Away("lbd is not running".into()));
    let frame = text(&story.frame(80, 24, COLOURS));
    assert!(frame.contains("NO ANSWER for 4 s, trying again: lbd is not running"), "{frame}");
    assert!(frame.contains("web"), "what was known stays:\n{frame}");
    story.receives(Event::Status(Box::new(later())));
    assert!(!text(&story.frame(80, 24, COLOURS)).contains("NO ANSWER"));
}

#[test]
fn a_pause_holds_what_is_shown() {
    let mut story = Story::new();
    story.presses(KeyCode::Char('p'));
    let mut status = later();
    status.services.remove("dns");
    story.receives(Event::Status(Box::new(status.clone())));
    assert_eq!(story.firsts(), ["web", "dns"]);
    assert!(text(&story.frame(80, 24, COLOURS)).contains("PAUSED"));
    assert_eq!(story.presses(KeyCode::Char('p')), Some(Action::Refresh));
    story.receives(Event::Status(Box::new(status)));
    assert_eq!(story.firsts(), ["web"]);
}

#[test]
fn help_tells_all_keys_and_any_key_closes_it() {
    let mut story = Story::new();
    story.presses(KeyCode::Char('?'));
    story.looks_like("help", 80, 24);
    story.presses(KeyCode::Enter);
    assert!(!story.app.helps);
    assert_eq!(story.app.page().place, Place::Services, "and does nothing else");
}

#[test]
fn keys_end_suspend_and_redraw() {
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    let mut story = Story::new();
    assert_eq!(story.presses(KeyCode::Char('q')), Some(Action::Quit));
    assert_eq!(story.receives(Event::Key(control('c'))), Some(Action::Quit));
    assert_eq!(story.receives(Event::Key(control('z'))), Some(Action::Suspend));
    assert_eq!(story.receives(Event::Key(control('l'))), Some(Action::Redraw));
    story.presses(KeyCode::Char('/'));
    assert_eq!(story.presses(KeyCode::Char('q')), None, "it is a letter of the filter");
    assert_eq!(story.receives(Event::Key(control('c'))), Some(Action::Quit));
}

#[test]
fn the_interval_goes_in_steps() {
    let mut story = Story::new();
    let seconds = |story: &Story| story.app.interval.as_secs_f64();
    story.presses(KeyCode::Char('+'));
    assert_eq!(seconds(&story), 2.0);
    for _ in 0..9 {
        // A shorter interval does not wait for the end of the longer one.
        assert_eq!(story.presses(KeyCode::Char('-')), Some(Action::Refresh));
    }
    assert_eq!(seconds(&story), 0.25);
}

#[test]
fn colours_tell_states_and_none_are_there_where_they_are_not_wanted() {
    let colours = |looks| {
        let mut story = Story::new();
        story.presses(KeyCode::Enter);
        let terminal = story.frame(80, 24, looks);
        let cells = terminal.backend().buffer().content.iter();
        let all: std::collections::BTreeSet<String> =
            cells.map(|cell| format!("{:?} {:?}", cell.fg, cell.bg)).collect();
        all
    };
    let all = colours(COLOURS);
    for colour in [Color::Green, Color::Yellow, Color::Red] {
        assert!(all.contains(&format!("{colour:?} Reset")), "{colour:?}: {all:?}");
    }
    let plain = colours(Looks { colours: false, ..COLOURS });
    assert_eq!(plain.into_iter().collect::<Vec<_>>(), ["Reset Reset"]);
}

#[test]
fn a_terminal_without_unicode_gets_ascii() {
    let mut story = Story::new();
    story.presses(KeyCode::Char('?'));
    let frame = text(&story.frame(80, 24, Looks { colours: true, unicode: false }));
    assert!(frame.is_ascii(), "{frame}");
}

#[test]
fn batches_are_plain_lines_of_all_services_and_backends() {
    let story = Story::new();
    is_kept("batch", &batch::text(&story.app));
}
