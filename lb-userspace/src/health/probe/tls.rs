//! TLS of https checks.

/// What TLS connections are made with, kept between checks.
#[derive(Debug, Default)]
pub struct Cache;

impl Cache {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}
