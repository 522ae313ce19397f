//! Which format a scraper wants.

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` field requests (RFC 9110, 12.5.1); without a preference it is the older format,
    /// which everything reads.
    pub(super) fn wanted(accept: &str) -> Self {
        let mut best = [0.0_f32; 2];
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let at = match parts.next().unwrap_or_default() {
                kind if kind.eq_ignore_ascii_case("application/openmetrics-text") => 0,
                kind if kind.eq_ignore_ascii_case("text/plain") => 1,
                _ => continue,
            };
            let parameter = |name: &str| {
                parts.clone().filter_map(|part| part.split_once('=')).find_map(|(key, value)| {
                    key.eq_ignore_ascii_case(name).then_some(value.trim_matches('"'))
                })
            };
            let is_known = match (at, parameter("version")) {
                (0, version) => matches!(version, None | Some("1.0.0" | "0.0.1")),
                (_, version) => matches!(version, None | Some("0.0.4")),
            };
            if is_known {
                let quality: f32 = parameter("q").map_or(Ok(1.0), str::parse).unwrap_or(0.0);
                best[at] = quality.max(best[at]);
            }
        }
        let [openmetrics, text] = best;
        if openmetrics > 0.0 && openmetrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The content's type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for (accept, wanted) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
            ("text/plain", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0", Format::OpenMetrics),
            // As Prometheus 2.42 asks, and as Prometheus 3 does.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.2,\
                 */*;q=0.1",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.3,text/plain;q=0.5", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=nonsense", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
        ] {
            assert_eq!(Format::wanted(accept), wanted, "{accept}");
        }
    }
}
