//! The terminal's capabilities, and their use.

use std::{env, time::Duration};

use lb_model::units::format_duration;
use ratatui::style::{Color, Modifier, Style};

use super::rows::Tone;

/// The terminal's capabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    /// Colours; otherwise only bold, faint and reversed.
    pub(super) colours: bool,
    /// Characters beyond ASCII.
    pub(super) unicode: bool,
}

impl Looks {
    /// By the environment: NO_COLOR, and the locale.
    pub(super) fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            colours: set("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    pub(super) fn style(self, tone: Tone) -> Style {
        let plain = Style::new();
        match (tone, self.colours) {
            (Tone::Plain, _) => plain,
            (Tone::Good, true) => plain.fg(Color::Green),
            (Tone::Good, false) => plain,
            (Tone::Warn, true) => plain.fg(Color::Yellow),
            (Tone::Bad, true) => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Warn | Tone::Bad, false) => plain.add_modifier(Modifier::BOLD),
            (Tone::Faint, _) => plain.add_modifier(Modifier::DIM),
        }
    }

    pub(super) fn key(self) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if self.colours { bold.fg(Color::Cyan) } else { bold }
    }

    /// Rates as bars of eight heights, the latest at the right; the highest one is full.
    pub(super) fn bars(self, rates: impl DoubleEndedIterator<Item = f64>, width: usize) -> String {
        let levels: &[char] = match self.unicode {
            true => &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            false => &['_', '.', '-', ':', '=', '+', '*', '#'],
        };
        let mut rates: Vec<f64> = rates.rev().take(width).collect();
        rates.reverse();
        let most = rates.iter().copied().fold(0.0, f64::max);
        let bar = |rate: f64| match most {
            0.0 => levels[0],
            most => levels[((rate / most * 7.0).ceil() as usize).min(7)],
        };
        let bars: String = rates.into_iter().map(bar).collect();
        format!("{bars:>width$}")
    }
}

/// A duration in whole seconds.
pub(super) fn seconds(secs: u64) -> String {
    format_duration(Duration::from_secs(secs))
}
