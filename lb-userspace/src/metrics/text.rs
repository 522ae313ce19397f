//! The text format of Prometheus (version 0.0.4), made of OpenMetrics (version 1.0).
//!
//! Samples are written alike in both. In the older format a counter's head has the name of its
//! samples, there are neither units nor infos, and nothing marks the end.

/// What OpenMetrics says, in the text format.
pub(super) fn from_openmetrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let body = page.strip_suffix("# EOF\n").unwrap_or(page);
    let Some(body) = body.strip_prefix("# HELP ") else { return text };
    // What stands in labels has its line ends escaped, so a line that begins like this is a head.
    for family in body.split("\n# HELP ") {
        let (help, rest) = family.split_once('\n').unwrap_or((family, ""));
        let (kind, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let samples = match rest.starts_with("# UNIT ") {
            true => rest.split_once('\n').map_or("", |(_, samples)| samples),
            false => rest,
        };
        let (name, help) = help.split_once(' ').unwrap_or((help, ""));
        let (suffix, kind) = match kind.rsplit(' ').next() {
            Some("counter") => ("_total", "counter"),
            Some("info") => ("_info", "gauge"),
            Some("unknown") | None => ("", "untyped"),
            Some(kind) => ("", kind),
        };
        for part in ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]
        {
            text.push_str(part);
        }
        text.push_str(samples);
        if !samples.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_infos_units_and_the_end_are_told_as_the_older_format_does() {
        let page = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                    a_bytes_total{x=\"\\n# HELP \"} 1\na_bytes_total 2\n\
                    # HELP b What it is.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP c_seconds Long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                    c_seconds_sum 1.5\n# HELP d More.\n# TYPE d gauge\nd 3\n# EOF\n";
        let text = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\n\
                    a_bytes_total{x=\"\\n# HELP \"} 1\na_bytes_total 2\n\
                    # HELP b_info What it is.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
                    # HELP c_seconds Long.\n# TYPE c_seconds histogram\nc_seconds_sum 1.5\n\
                    # HELP d More.\n# TYPE d gauge\nd 3\n";
        assert_eq!(from_openmetrics(page), text);
        assert_eq!(from_openmetrics("# EOF\n"), "");
    }
}
