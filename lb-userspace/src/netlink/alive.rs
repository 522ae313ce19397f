//! Whether a host in the same network answers for its address.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use tokio::time::sleep;

use super::{
    socket::{Failure, Sockets},
    tables::{NeighbourState, Route},
};

/// How soon the kernel is asked for the first time what became of its probe; then twice as long each time.
const SOON: Duration = Duration::from_millis(2);

/// Has the kernel ask the host that has this address for its MAC address (ARP, or neighbour discovery of IPv6),
/// and waits for an answer, seconds if there is none. The kernel forgets the one that it had before. False at once if a router is on the way to it, or if the
/// kernel asks nobody for a neighbour of that kind.
///
/// In the network namespace of the calling thread, which needs `CAP_NET_ADMIN`.
///
/// # Errors
///
/// If netlink can't be spoken to.
pub async fn answers(address: IpAddr) -> Result<bool> {
    let sockets = Sockets::for_requests()?;
    let Route::Via { oif, gateway: None, .. } = sockets.route(address).await? else {
        return Ok(false);
    };
    let key = (oif, address);
    let mut probed = false;
    let mut wait = SOON;
    loop {
        match sockets.neighbour(key).await?.map(|neighbour| neighbour.state) {
            Some(NeighbourState::Valid) if probed => return Ok(true),
            // A probe would go to the MAC address that it had: all are to be asked.
            Some(NeighbourState::Valid) => {
                for refused in
                    [sockets.forget_neighbour(key).await, sockets.use_neighbour(key).await]
                {
                    if let Err(Failure::Socket(error)) = refused {
                        return Err(error);
                    }
                }
            }
            Some(NeighbourState::Probed | NeighbourState::Incomplete) => {}
            // What is to be resolved is resolved by whoever sends there.
            None
            | Some(
                NeighbourState::Failed
                | NeighbourState::Forgotten
                | NeighbourState::NoArp
                | NeighbourState::Permanent,
            ) => return Ok(false),
        }
        probed = true;
        sleep(wait).await;
        wait *= 2;
    }
}
