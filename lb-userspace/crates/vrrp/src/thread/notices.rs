//! Reports to the daemon; lasting conditions are not reported again and again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{Notice, NoticeKind, Report};

/// How long the same notice is not reported again.
const PAUSE: Duration = Duration::from_secs(60);
/// So much of one kind is reported of one router meanwhile: more differ only if a sender makes them up.
const MOST: usize = 32;

/// Sends reports to the daemon.
pub(crate) struct Reporter {
    reports: UnboundedSender<Report>,
    /// The notices that were sent.
    pub log: NoticeLog,
}

impl Reporter {
    /// Sends to this channel.
    pub fn new(reports: UnboundedSender<Report>) -> Self {
        Self { reports, log: NoticeLog::default() }
    }

    /// Sends a report.
    pub(crate) fn report(&self, report: Report) {
        // The channel may be closed, when the daemon ends.
        let _ = self.reports.send(report);
    }

    /// Sends a notice, unless the same was sent just now.
    pub(crate) fn notice(
        &mut self,
        router: &str,
        kind: NoticeKind,
        message: &str,
        cause: &str,
        now: Instant,
    ) {
        if self.log.is_new(router, kind, &format!("{message}: {cause}"), now) {
            // The daemon logs it, as all that is reported.
            self.report(Report::Notice(Notice {
                router: router.to_owned(),
                kind,
                message: message.to_owned(),
                cause: cause.to_owned(),
            }));
        }
    }
}

/// The notices that were reported, and when.
#[derive(Debug, Default)]
pub(crate) struct NoticeLog {
    times: Vec<(String, NoticeKind, BTreeMap<String, Instant>)>,
}

impl NoticeLog {
    /// Whether `what` of a router is to be reported now: it was not for a while.
    pub(crate) fn is_new(
        &mut self,
        router: &str,
        kind: NoticeKind,
        what: &str,
        now: Instant,
    ) -> bool {
        let known = self.times.iter().position(|(of, one, _)| of == router && *one == kind);
        let known = known.unwrap_or_else(|| {
            self.times.push((router.to_owned(), kind, BTreeMap::new()));
            self.times.len() - 1
        });
        let times = &mut self.times[known].2;
        let is_fresh = |log: Instant| now.duration_since(log) < PAUSE;
        if times.get(what).is_some_and(|log| is_fresh(*log)) {
            return false;
        }
        if times.len() >= MOST {
            times.retain(|_, log| is_fresh(*log));
        }
        if times.len() >= MOST {
            return false;
        }
        times.insert(what.to_owned(), now);
        true
    }

    /// Forgets the routers that are not any more.
    pub(crate) fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.times.retain(|(of, _, _)| of.is_empty() || is_there(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_is_told_once_a_minute() {
        let mut log = NoticeLog::default();
        let start = Instant::now();
        let mut is_new = |of, at| log.is_new(of, NoticeKind::Trouble, "trouble", at);
        assert!(is_new("main", start));
        assert!(!is_new("main", start + Duration::from_secs(59)));
        assert!(is_new("other", start));
        assert!(is_new("main", start + Duration::from_secs(60)));
    }

    #[test]
    fn stranger_fills_no_memory_and_hides_nothing_else() {
        let mut log = NoticeLog::default();
        let start = Instant::now();
        for n in 0..10_000 {
            log.is_new("main", NoticeKind::Mismatch, &format!("sender {n}"), start);
        }
        assert!(log.times.iter().all(|(_, _, times)| times.len() <= MOST));
        assert!(log.is_new("main", NoticeKind::Trouble, "an address stays", start));
        assert!(log.is_new("other", NoticeKind::Mismatch, "sender 1", start));
        assert!(log.is_new("main", NoticeKind::Mismatch, "sender 1", start + PAUSE));
    }

    #[test]
    fn router_that_is_no_more_is_forgotten() {
        let mut log = NoticeLog::default();
        let start = Instant::now();
        assert!(log.is_new("main", NoticeKind::Trouble, "trouble", start));
        log.keep(|router| router != "main");
        assert!(log.times.is_empty());
    }
}
