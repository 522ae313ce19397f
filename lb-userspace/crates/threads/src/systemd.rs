//! The daemon's notifications to systemd: ready, reloading, stopping, and that it is alive.
//!
//! Without systemd (no `NOTIFY_SOCKET`) nothing is sent.

use std::{env, time::Duration};

use sd_notify::NotifyState;

/// Notifies the service manager that started this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notifier {
    listens: bool,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The service manager that the environment names, if it does.
    #[must_use]
    pub fn from_env() -> Self {
        let listens = env::var_os("NOTIFY_SOCKET").is_some();
        Self { listens, watchdog: sd_notify::watchdog_enabled().filter(|_| listens) }
    }

    /// How often [`Self::alive`] is to be sent: twice in the time that the service manager waits.
    #[must_use]
    pub fn beat(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2).filter(|beat| !beat.is_zero())
    }

    /// The maps are as they should be.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!("read the clock for systemd: {error}"),
        }
    }

    /// The daemon ends.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// The daemon's own loop still turns.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// How things stand, in one line.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(status)]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        if !self.listens {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            // Forwarding does not depend on it, and what listened may have gone.
            tracing::warn!("notify systemd: {error}");
        }
    }
}
