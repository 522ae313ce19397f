//! What happens to the node that is Active, and how it ends.

use std::time::Duration;

use anyhow::Result;
use kit::{pair::Wire, reports::vrrp::Fault};

use super::site::Site;

/// Lets it happen to the first node.
///
/// # Errors
///
/// If it can't be done.
pub fn strike(fault: Fault, site: &mut Site) -> Result<()> {
    match fault {
        Fault::Killed => site.kill(0),
        Fault::Stopped => site.stop(0),
        Fault::HandedOver => site.hand_over(0),
        Fault::LinkDown => site.lab().cut(&site.lab().balancer.name),
        Fault::PowerOff => site.lab().freeze(&site.lab().balancer),
        Fault::Parted => site.lab().part(Wire::First),
    }
}

/// Ends it.
///
/// # Errors
///
/// If it can't be done.
pub fn end(fault: Fault, site: &mut Site) -> Result<()> {
    match fault {
        Fault::Killed | Fault::Stopped => site.launch(0),
        Fault::HandedOver => site.hand_over(1),
        Fault::LinkDown => site.lab().mend(&site.lab().balancer.name),
        Fault::PowerOff => site.lab().thaw(&site.lab().balancer),
        Fault::Parted => site.lab().heal(Wire::First),
    }
}

/// How long the clients are watched after its end.
pub fn aftermath(fault: Fault, interval: Duration) -> Duration {
    match fault {
        // A client that goes to the wrong node, and that nobody corrects, goes on doing so until
        // it doubts what it knows of its neighbours: 8 s if it was not sure, up to 50 if it was.
        Fault::Parted | Fault::PowerOff => Duration::from_secs(9),
        _ => interval * 2 + Duration::from_millis(300),
    }
}
