//! What becomes of the addresses of virtual routers when `lbd` has ended.
//!
//! An `lbd` that crashes leaves them, so that the next one, a second later, goes on where it was and nothing
//! fails over. One that then does not come up must not keep them: its peer has become Active, and both nodes
//! would answer for one address.

use anyhow::{Result, bail};

use super::addresses::Addresses;

/// The exit status of an `lbd` that could not start for a reason that may pass.
pub const NOT_STARTED: u8 = 3;

/// How `lbd` ended, as systemd passes it to `ExecStopPost`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// `SERVICE_RESULT`.
    pub result: Option<String>,
    /// `EXIT_CODE`; none: it was not even run.
    pub code: Option<String>,
    /// `EXIT_STATUS`.
    pub status: Option<String>,
}

impl End {
    /// The one that the environment names.
    #[must_use]
    pub fn from_env() -> Self {
        let read = |name| std::env::var(name).ok();
        Self {
            result: read("SERVICE_RESULT"),
            code: read("EXIT_CODE"),
            status: read("EXIT_STATUS"),
        }
    }

    /// Whether the addresses stay where they are.
    #[must_use]
    pub(crate) fn keeps_addresses(&self) -> bool {
        match (self.result.as_deref(), self.code.as_deref()) {
            // A process that was ordered to stop and did not is killed, and nothing starts it again.
            (Some("timeout"), _) => false,
            // A stop that came before lbd listened to signals. Nothing starts it again.
            (_, Some("killed")) if self.status.as_deref() == Some("TERM") => false,
            // The next start, which follows at once, goes on with them.
            (_, Some("killed" | "dumped")) => true,
            // It was ordered to end, and has handed over what another node takes; or it met with an error while
            // it served, and is started again. A start that failed would fail again.
            (_, Some("exited")) => matches!(self.status.as_deref(), Some("0" | "1")),
            _ => false,
        }
    }
}

/// Takes the addresses off that are left, unless a start follows that goes on with them; what was done.
///
/// # Errors
///
/// They can't be read, or not all of them could be taken off.
pub fn after_end(end: &End) -> Result<Vec<String>> {
    if end.keeps_addresses() {
        return Ok(Vec::new());
    }
    let (gone, problems) = Addresses::open()?.release_marked();
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(gone.into_iter().map(|address| format!("released {address}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_when_no_start_goes_on_with_them() {
        let end = |result: &str, code: &str, status: &str| End {
            result: Some(result.into()),
            code: Some(code.into()),
            status: Some(status.into()),
        };
        for (end, stays) in [
            (end("success", "exited", "0"), true),
            (end("exit-code", "exited", "1"), true),
            (end("exit-code", "exited", "2"), false),
            (end("exit-code", "exited", "3"), false),
            (end("signal", "killed", "KILL"), true),
            (end("core-dump", "dumped", "ABRT"), true),
            (end("watchdog", "dumped", "ABRT"), true),
            (end("oom-kill", "killed", "KILL"), true),
            (end("success", "killed", "TERM"), false),
            (end("timeout", "killed", "KILL"), false),
            (End { result: Some("exit-code".into()), ..End::default() }, false),
            (End::default(), false),
        ] {
            assert_eq!(end.keeps_addresses(), stays, "{end:?}");
        }
    }
}
