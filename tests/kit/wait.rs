//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value; its last error is in the error.
///
/// # Errors
///
/// If it has not within `limit`.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() >= deadline => {
                return Err(why).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Waits until `condition` holds.
///
/// # Errors
///
/// If it does not within `limit`.
pub fn until_true(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(limit, what, || if condition()? { Ok(()) } else { bail!("it does not hold") })
}
