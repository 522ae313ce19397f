//! Waiting for a daemon that is started again while one waits for something else.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use lb_api::client::{Client, Error};

/// How long a daemon may be away.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// Retries while the daemon is away.
#[derive(Debug)]
pub(super) struct Patient<'a> {
    client: &'a Client,
    away: Option<Instant>,
}

impl<'a> Patient<'a> {
    pub(super) const fn new(client: &'a Client) -> Self {
        Self { client, away: None }
    }

    /// Retries until there is an answer, or until the daemon has been away for too long.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        loop {
            match self.client.get(path).await {
                Err(error) if error.is_absence() => self.wait(error).await?,
                answer => {
                    self.is_back();
                    return answer;
                }
            }
        }
    }

    /// Waits a moment, and logs that once.
    ///
    /// # Errors
    ///
    /// The one that is given, when it has lasted for too long.
    pub(super) async fn wait(&mut self, error: Error) -> Result<(), Error> {
        let since = match self.away {
            Some(since) => since,
            None => {
                eprintln!("lbctl: {error}; waiting for it to come back");
                *self.away.insert(Instant::now())
            }
        };
        if since.elapsed() >= AWAY {
            return Err(error);
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }

    /// Logs once that it is back.
    pub(super) fn is_back(&mut self) {
        if self.away.take().is_some() {
            eprintln!("lbctl: lbd is back");
        }
    }
}
