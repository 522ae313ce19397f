//! What happens to the node that is Active, and how it ends.

use std::time::Duration;

use anyhow::Result;
use kit::pair::Wire;
use serde::Serialize;

use super::site::Site;

/// A fault, or an operator's deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The process that holds the address is killed.
    Killed,
    /// The node's cable is pulled.
    LinkDown,
    /// The process is stopped in order.
    Stopped,
    /// The node loses power.
    PowerOff,
    /// The nodes don't hear each other, and clients reach both.
    Parted,
    /// The operator hands the address to the other node.
    HandedOver,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Killed,
        Self::LinkDown,
        Self::Stopped,
        Self::PowerOff,
        Self::Parted,
        Self::HandedOver,
    ];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::LinkDown => "link-down",
            Self::Stopped => "stopped",
            Self::PowerOff => "power-off",
            Self::Parted => "parted",
            Self::HandedOver => "handed-over",
        }
    }

    /// In a sentence.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Killed => "lbd, or keepalived with its children, is killed; then started again",
            Self::LinkDown => "the node's cable is pulled; then plugged in again",
            Self::Stopped => "lbd, or keepalived, is stopped in order; then started again",
            Self::PowerOff => "the node is frozen and off the net; then goes on where it was",
            Self::Parted => {
                "the nodes don't hear each other, clients reach both; then they do again"
            }
            Self::HandedOver => "`lbctl vrrp failover --all`; then back the same way",
        }
    }

    /// Lets it happen to the first node.
    ///
    /// # Errors
    ///
    /// If it can't be done.
    pub fn strike(self, site: &mut Site) -> Result<()> {
        match self {
            Self::Killed => site.kill(0),
            Self::Stopped => site.stop(0),
            Self::HandedOver => site.hand_over(0),
            Self::LinkDown => site.lab().cut(&site.lab().balancer.name),
            Self::PowerOff => site.lab().freeze(&site.lab().balancer),
            Self::Parted => site.lab().part(Wire::First),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// If it can't be done.
    pub fn end(self, site: &mut Site) -> Result<()> {
        match self {
            Self::Killed | Self::Stopped => site.launch(0),
            Self::HandedOver => site.hand_over(1),
            Self::LinkDown => site.lab().mend(&site.lab().balancer.name),
            Self::PowerOff => site.lab().thaw(&site.lab().balancer),
            Self::Parted => site.lab().heal(Wire::First),
        }
    }

    /// How long the clients are watched after its end.
    pub fn aftermath(self, interval: Duration) -> Duration {
        match self {
            // A client that goes to the wrong node, and that nobody corrects, goes on doing so until
            // it doubts what it knows of its neighbours: 8 s if it was not sure, up to 50 if it was.
            Self::Parted | Self::PowerOff => Duration::from_secs(9),
            _ => interval * 2 + Duration::from_millis(300),
        }
    }
}
