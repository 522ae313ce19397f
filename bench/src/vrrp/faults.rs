//! The faults of the Active node, and their end.

use std::time::Duration;

use anyhow::Result;
use kit::{pair::Wire, reports::vrrp::Fault};

use super::testbed::Testbed;

/// Lets it happen to the first node.
///
/// # Errors
///
/// If it can't be done.
pub fn strike(fault: Fault, testbed: &mut Testbed) -> Result<()> {
    match fault {
        Fault::Killed => testbed.kill(0),
        Fault::Stopped => testbed.stop(0),
        Fault::HandedOver => testbed.hand_over(0),
        Fault::LinkDown => testbed.lab().cut(&testbed.lab().balancer.name),
        Fault::PowerOff => testbed.lab().freeze(&testbed.lab().balancer),
        Fault::Parted => testbed.lab().part(Wire::First),
    }
}

/// Ends it.
///
/// # Errors
///
/// If it can't be done.
pub fn end(fault: Fault, testbed: &mut Testbed) -> Result<()> {
    match fault {
        Fault::Killed | Fault::Stopped => testbed.launch(0),
        Fault::HandedOver => testbed.hand_over(1),
        Fault::LinkDown => testbed.lab().mend(&testbed.lab().balancer.name),
        Fault::PowerOff => testbed.lab().thaw(&testbed.lab().balancer),
        Fault::Parted => testbed.lab().heal(Wire::First),
    }
}

/// How long the clients are watched after its end.
pub fn aftermath(fault: Fault, interval: Duration) -> Duration {
    match fault {
        // A client that goes to the wrong node, and that gets no correction, goes on doing so until
        // it doubts its neighbour entries: 8 s if it was not sure, up to 50 if it was.
        Fault::Parted | Fault::PowerOff => Duration::from_secs(9),
        _ => interval * 2 + Duration::from_millis(300),
    }
}
