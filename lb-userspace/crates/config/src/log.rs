//! The `[log]` table of a configuration.

use lb_model::log::{Form, Settings};

use super::tree::Table;

/// How much is logged, and in what form.
pub(super) fn read_log(root: &Table<'_>) -> Settings {
    let Some(table) = root.optional("log").and_then(|field| field.table("log")) else {
        return Settings::default();
    };
    let level = table.optional("level");
    let filter = level.and_then(|field| field.parsed("level = \"info\"", str::parse));
    let form = table.optional("format");
    let form = form.and_then(|field| field.word(&[("text", Form::Text), ("json", Form::Json)]));
    table.finish();
    Settings { filter: filter.unwrap_or_default(), form: form.unwrap_or_default() }
}
