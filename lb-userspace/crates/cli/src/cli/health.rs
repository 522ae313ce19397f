//! The texts of `lbctl` for the health of services and backends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_api::{check_status::CheckStatus, status::Service};
use lb_model::seen::Condition;
use lb_model::units::{counted, format_duration};

/// The lines of a service before its backends.
pub(super) fn standing(service: &Service) -> String {
    let standing = service.standing;
    let mut text = String::new();
    if standing.panic {
        text += &format!(
            "  PANIC: {} of {} up, checks are ignored for choosing\n",
            standing.up,
            counted(standing.enabled, "backend")
        );
    }
    if standing.on_backups {
        text += "  BACKUPS SERVE: no other backend is up\n";
    }
    if !standing.ready && standing.enabled > 0 {
        let enabled = counted(standing.enabled, "backend");
        text += &format!("  NOT READY: {} of {enabled} up\n", standing.up);
    }
    text
}

/// The lines of `lbctl backend show` about its checks: name and value.
pub(super) fn rows(check: &CheckStatus) -> Vec<(&'static str, String)> {
    let ago = |secs: u64| format!("{} ago", format_duration(Duration::from_secs(secs)));
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(check.since))
        .map_or(0, |since| since.as_secs());
    let mut rows = vec![("check", check.kind.clone())];
    if check.kind == "none" {
        return rows;
    }
    let condition = match check.condition {
        Condition::Up => "up",
        Condition::SoftDown => "down, no new flows; it keeps those that it has",
        Condition::HardDown => "down, its flows move",
    };
    let how = if check.assumed { ", assumed until it answers" } else { "" };
    rows.push(("condition", format!("{condition}, since {}{how}", ago(since))));
    let last = match (&check.last, check.last_secs) {
        (Some(last), Some(secs)) => format!("{last}, {}", ago(secs)),
        _ if check.waiting => "not asked, its next hop is not known".into(),
        _ => "not asked yet".into(),
    };
    rows.push(("last answer", last));
    if let Some(micros) = check.latency_us {
        let micros = micros as f64;
        rows.push(("took", format!("{:.1} ms", micros / 1_000.0)));
    }
    if check.against > 0 {
        let (of, what) = match check.condition {
            Condition::Up => (check.fall, "bad"),
            Condition::SoftDown | Condition::HardDown => (check.rise, "good"),
        };
        rows.push(("in a row", format!("{} of {of} {what} answers", check.against)));
    }
    if check.silent > 0 {
        let (silent, fall) = (check.silent, check.fall);
        rows.push(("silent", format!("{silent} of {fall} probes; then its flows move")));
    }
    let counts = check.counts;
    let unknown = match counts.unknown {
        0 => String::new(),
        unknown => format!(", {unknown} could not be asked"),
    };
    rows.push(("answers", format!("{} good, {} bad{unknown}", counts.ok, counts.failed)));
    rows.push(("transitions", format!("{} up, {} down", check.went_up, check.went_down)));
    if check.suspicions > 0 {
        rows.push(("suspicions", format!("{} by its clients' packets", check.suspicions)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use lb_api::check_status::{Counts, Histogram};

    use super::*;

    fn check() -> CheckStatus {
        CheckStatus {
            kind: "http".into(),
            condition: Condition::SoftDown,
            assumed: false,
            waiting: false,
            held_secs: Some(42),
            suspect: false,
            last: Some("status 503 Service Unavailable".into()),
            last_secs: Some(2),
            since: 0,
            latency_us: Some(1_500),
            counts: Counts { ok: 3, failed: 4, unknown: 1 },
            latency: Histogram::default(),
            went_up: 1,
            went_down: 2,
            suspicions: 3,
            against: 1,
            silent: 1,
            rise: 2,
            fall: 3,
        }
    }

    #[test]
    fn a_check_is_shown_with_its_last_answer_and_its_progress() {
        let shown = rows(&check());
        let value = |name| shown.iter().find(|row| row.0 == name).map(|row| row.1.as_str());
        assert_eq!(value("last answer"), Some("status 503 Service Unavailable, 2s ago"));
        assert_eq!(value("took"), Some("1.5 ms"));
        assert_eq!(value("in a row"), Some("1 of 2 good answers"));
        assert_eq!(value("suspicions"), Some("3 by its clients' packets"));
        assert_eq!(value("silent"), Some("1 of 3 probes; then its flows move"));
        assert_eq!(value("answers"), Some("3 good, 4 bad, 1 could not be asked"));
        assert_eq!(rows(&CheckStatus { kind: "none".into(), ..check() }).len(), 1);
    }
}
