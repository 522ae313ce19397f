//! The text format of Prometheus (version 0.0.4), made of OpenMetrics (version 1.0).
//!
//! Samples are written alike in both. In the older format a counter's head has the name of its
//! samples, there are neither units nor infos, and nothing marks the end.

/// Writes to `text` the head of a family in OpenMetrics, or the end of a page, in the text format.
pub(super) fn head(openmetrics: &str, text: &mut String) {
    let Some(head) = openmetrics.strip_prefix("# HELP ") else { return };
    let (help, rest) = head.split_once('\n').unwrap_or((head, ""));
    let kind = rest.lines().next().unwrap_or_default();
    let (name, help) = help.split_once(' ').unwrap_or((help, ""));
    let (suffix, kind) = match kind.rsplit(' ').next() {
        Some("counter") => ("_total", "counter"),
        Some("info") => ("_info", "gauge"),
        Some("unknown" | "") | None => ("", "untyped"),
        Some(kind) => ("", kind),
    };
    for part in ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"] {
        text.push_str(part);
    }
}
