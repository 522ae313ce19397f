//! One event is one line, whatever it contains.

use std::{borrow::Cow, fmt};

use lb_model::log::Form;
use serde_json::Value;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Makes one line of the text that `inner` makes of an event: received text, as a peer's name or a server's
/// answer, begins no line of its own.
#[derive(Debug)]
pub(super) struct Line<F> {
    pub(super) inner: F,
    /// The form in which `inner` makes it.
    pub(super) form: Form,
    /// Whether the line begins with its priority, as the journal reads it (sd-daemon(3)).
    pub(super) is_journal: bool,
}

/// The most bytes of a line, escaped: more is cut off by journals and by their readers.
const MOST: usize = 1_000;
/// The most bytes of a field, escaped, in lines of JSON that are longer; half if that is too much still.
const MOST_OF_FIELD: usize = 700;

/// The text as it is if it is short once it is escaped, else its begin, and how much is left out.
fn cut(text: &str, most: usize, form: Form) -> Cow<'_, str> {
    let mut escaped = String::new();
    let mut end = 0;
    for (start, letter) in text.char_indices() {
        escape(letter, form, &mut escaped);
        if escaped.len() > most {
            return format!("{}... ({} bytes more)", &text[..end], text.len() - end).into();
        }
        end = start + letter.len_utf8();
    }
    text.into()
}

/// Writes a letter as a line has it: none that moves a terminal's cursor or ends the line.
fn escape(letter: char, form: Form, to: &mut String) {
    match (form, letter) {
        (Form::Json, '"' | '\\') => to.extend(['\\', letter]),
        (Form::Json, letter) if letter.is_control() => {
            to.push_str(&format!("\\u{:04x}", u32::from(letter)));
        }
        (Form::Text, letter) if letter.is_control() && letter != '\t' => {
            to.extend(letter.escape_default());
        }
        (_, letter) => to.push(letter),
    }
}

/// A line that is short enough, and escaped; an object stays one.
fn shortened(line: &str, form: Form) -> String {
    if form == Form::Text {
        let mut escaped = String::new();
        cut(line, MOST - 24, form).chars().for_each(|letter| escape(letter, form, &mut escaped));
        return escaped;
    }
    let mut text = escaped_object(line);
    let mut most = MOST_OF_FIELD;
    while text.len() > MOST && most > 0 {
        let Ok(mut object) = serde_json::from_str::<serde_json::Map<String, Value>>(line) else {
            return cut(&text, MOST - 24, Form::Text).into_owned();
        };
        for value in object.values_mut() {
            if let Value::String(text) = value {
                *text = cut(text, most, form).into_owned();
            }
        }
        text = escaped_object(&Value::Object(object).to_string());
        most /= 2;
    }
    text
}

/// An object with the control characters escaped that JSON leaves alone: DEL, and those from U+0080 on.
fn escaped_object(object: &str) -> String {
    let mut escaped = String::with_capacity(object.len());
    for letter in object.chars() {
        if letter.is_control() {
            escape(letter, Form::Json, &mut escaped);
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.inner.format_event(context, Writer::new(&mut text), event)?;
        if self.is_journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        writeln!(writer, "{}", shortened(text.trim_end_matches('\n'), self.form))
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{
        fmt::{
            self,
            format::{Format, JsonFields},
        },
        layer::SubscriberExt as _,
    };

    use super::*;
    use crate::logs::written::Written;

    fn log_events() {
        tracing::warn!(backend = "10.0.0.7", "down\n<0>forged: \u{1b}[31m{}", "a\rb");
        tracing::info!("up");
        tracing::error!("gone");
    }

    #[test]
    fn the_journal_gets_a_priority_a_line_and_the_fields() {
        let written = Written::default();
        let inner = Format::default().with_target(false).without_time();
        let layer = fmt::layer().with_writer(written.clone()).with_ansi(false);
        let layer = layer.event_format(Line { inner, form: Form::Text, is_journal: true });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log_events);
        let text = written.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("<4> WARN down\\n<0>forged: "), "{text}");
        assert!(lines[0].ends_with("a\\rb backend=\"10.0.0.7\""), "{text}");
        assert_eq!(lines[1..], ["<6> INFO up", "<3>ERROR gone"]);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_line_stays_below_a_kibibyte() {
        let long = "web tcp 10.0.0.100:80 \u{e9} ".repeat(512);
        let text = shortened(&long, Form::Text);
        assert!(text.len() < 1_024 && text.ends_with(" bytes more)"), "{text}");
        let object = format!("{{\"level\":\"INFO\",\"message\":\"{long}\"}}");
        let object = shortened(&object, Form::Json);
        let read: Value = serde_json::from_str(&object).expect("it is an object still");
        assert!(object.len() < 1_024 && read["level"] == "INFO", "{object}");
        assert_eq!(shortened("short", Form::Text), "short");
    }

    /// Possible text of a peer's name or a server's answer: each letter takes more once it is escaped.
    const CONTROLS: &str = "\u{1b}[31m\0\u{7f}\u{9b}\r\n";

    #[test]
    fn a_line_stays_below_a_kibibyte_though_its_letters_are_escaped() {
        let written = Written::default();
        let inner = Format::default().with_target(false).without_time();
        let layer = fmt::layer().with_writer(written.clone()).with_ansi(false);
        let layer = layer.event_format(Line { inner, form: Form::Text, is_journal: true });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!("{}", CONTROLS.repeat(80));
        });
        let text = written.text();
        assert!(text.len() < 1_024, "{} bytes: {text}", text.len());
        assert!(text.ends_with(" bytes more)\n"), "{text}");
        assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text}");
    }

    #[test]
    fn an_object_stays_below_a_kibibyte_and_one_though_its_letters_are_escaped() {
        let written = Written::default();
        let inner = Format::default().with_target(false).json().flatten_event(true);
        let layer = fmt::layer().with_writer(written.clone()).fmt_fields(JsonFields::new());
        let layer = layer.event_format(Line { inner, form: Form::Json, is_journal: true });
        let (long, short) = (CONTROLS.repeat(80), CONTROLS);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(short, peer = long, answer = long, backend = "10.0.0.7", "{long}");
        });
        let text = written.text();
        assert!(text.len() < 1_024, "{} bytes: {text}", text.len());
        let line = text.strip_prefix("<4>").expect("a priority").trim_end_matches('\n');
        assert!(!line.contains(char::is_control), "{line}");
        let read: Value = serde_json::from_str(line).expect("it is an object still");
        assert_eq!((&read["level"], &read["backend"]), (&"WARN".into(), &"10.0.0.7".into()));
        assert_eq!(read["short"], CONTROLS);
    }

    #[test]
    fn programs_get_an_object_a_line() {
        let written = Written::default();
        let inner = Format::default().with_target(false).json().flatten_event(true);
        let layer = fmt::layer().with_writer(written.clone()).fmt_fields(JsonFields::new());
        let layer = layer.event_format(Line { inner, form: Form::Json, is_journal: false });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log_events);
        let text = written.text();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (&lines[0]["level"], &lines[0]["backend"]),
            (&"WARN".into(), &"10.0.0.7".into())
        );
        assert_eq!(lines[0]["message"], "down\n<0>forged: \u{1b}[31ma\rb");
        assert_eq!(lines[2]["message"], "gone");
    }
}
