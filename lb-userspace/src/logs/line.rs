//! One event is one line, whatever is in it.

use std::{borrow::Cow, fmt};

use serde_json::Value;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Makes a line of what `inner` makes of an event: what others have said, as a peer's name or a server's
/// answer, begins no line of its own.
#[derive(Debug)]
pub(super) struct Line<F> {
    pub(super) inner: F,
    /// Whether the line begins with its priority, as the journal reads it (sd-daemon(3)).
    pub(super) is_journal: bool,
}

/// The most bytes of a line: more is cut off by journals and by who reads them.
const MOST: usize = 1_000;
/// The most bytes of a field, in lines of JSON that are longer.
const MOST_OF_FIELD: usize = 700;

/// The text as it is if it is short, else its begin, and how much is left out.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let begin = &text[..text.floor_char_boundary(most)];
    format!("{begin}... ({} bytes more)", text.len() - begin.len()).into()
}

/// A line that is short enough; an object stays one.
fn shortened(line: &str) -> Cow<'_, str> {
    if line.len() <= MOST {
        return line.into();
    }
    let Ok(mut object) = serde_json::from_str::<serde_json::Map<String, Value>>(line) else {
        return cut(line, MOST - 24);
    };
    for value in object.values_mut() {
        if let Value::String(text) = value {
            *text = cut(text, MOST_OF_FIELD).into_owned();
        }
    }
    Value::Object(object).to_string().into()
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
        for letter in shortened(text.trim_end_matches('\n')).chars() {
            match letter {
                letter if letter.is_control() && letter != '\t' => {
                    write!(writer, "{}", letter.escape_default())?;
                }
                letter => writer.write_char(letter)?,
            }
        }
        writer.write_char('\n')
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{
        fmt::{
            self, MakeWriter,
            format::{Format, JsonFields},
        },
        layer::SubscriberExt as _,
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Written {
        type Writer = Self;

        fn make_writer(&'w self) -> Self {
            self.clone()
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("nobody panics").clone()).expect("text")
        }
    }

    fn say() {
        tracing::warn!(backend = "10.0.0.7", "down\n<0>forged: \u{1b}[31m{}", "a\rb");
        tracing::info!("up");
        tracing::error!("gone");
    }

    #[test]
    fn the_journal_gets_a_priority_a_line_and_the_fields() {
        let written = Written::default();
        let inner = Format::default().with_target(false).without_time();
        let layer = fmt::layer().with_writer(written.clone()).with_ansi(false);
        let layer = layer.event_format(Line { inner, is_journal: true });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
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
        let text = shortened(&long);
        assert!(text.len() < 1_024 && text.ends_with(" bytes more)"), "{text}");
        let object = format!("{{\"level\":\"INFO\",\"message\":\"{long}\"}}");
        let object = shortened(&object).into_owned();
        let read: Value = serde_json::from_str(&object).expect("it is an object still");
        assert!(object.len() < 1_024 && read["level"] == "INFO", "{object}");
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn programs_get_an_object_a_line() {
        let written = Written::default();
        let inner = Format::default().with_target(false).json().flatten_event(true);
        let layer = fmt::layer().with_writer(written.clone()).fmt_fields(JsonFields::new());
        let layer = layer.event_format(Line { inner, is_journal: false });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
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
