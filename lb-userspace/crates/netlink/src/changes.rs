//! Reports changes of links or addresses, for commands that then read them anew ([`super::query`]).

use anyhow::Result;

use super::{client::AsyncEvents, interfaces::GROUPS};

/// A subscription to changes. Dropping it ends it.
pub struct Changes(AsyncEvents);

impl Changes {
    /// Subscribes in the network namespace of the calling thread to what changes from now on, in a runtime.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn listen() -> Result<Self> {
        Ok(Self(AsyncEvents::open(&GROUPS)?))
    }

    /// Waits until something has changed since the last call; many changes at once are one. That messages were lost
    /// is a message, too.
    ///
    /// # Errors
    ///
    /// If the socket is broken.
    pub async fn next(&mut self) -> Result<()> {
        self.0.ready().await?;
        self.0.read(drop)?;
        Ok(())
    }
}
