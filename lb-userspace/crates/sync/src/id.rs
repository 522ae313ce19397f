//! The identity of a session in sealed datagrams and their headers.

use anyhow::{Result, anyhow};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes that prove a datagram.
pub(crate) const TAG_BYTES: usize = 16;

/// Names one run of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// A random one.
    ///
    /// # Errors
    ///
    /// The system has no randomness.
    pub fn generate() -> Result<Self> {
        loop {
            let id = Self(random()?);
            if id.tag() != 0 {
                return Ok(id);
            }
        }
    }

    /// What stands for it in headers of datagrams to it; never 0.
    #[must_use]
    pub const fn tag(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes)
}
