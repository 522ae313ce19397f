//! The thread that runs the virtual routers: it owns their sockets, addresses and timers, and does
//! what [`super::machine`] decides.
//!
//! It waits for nothing but its next deadline, its sockets and its orders, and has a real-time
//! priority where that is allowed ([`super::realtime`]); what may take time is done by a helper
//! thread. Its reports go through a channel that has always room, and the routers' status is
//! left where others read it, so nothing outside makes it late.
//!
//! ```text
//!   orders ──► ┌─────────── driver ──────────┐ ──► reports
//!   helper ──► │ sockets → machine → actions │ ──► helper (scripts, files, notify, devices, filter)
//!              └─────────────────────────────┘ ──► netlink (addresses), frames (ARP, NA), adverts
//! ```
//!
//! It waits for the daemon in one case, for 20 ms at most: when the program is to take frames for a virtual MAC
//! address. The advertisements of a round are sent first. Addresses are added and announced in turns of 2 ms;
//! repeated announcements are spread out ([`announcement_queue`]).

mod announcement_queue;
mod claims;
mod driver;
pub mod filter;
mod helper;
mod member;
mod notices;
mod receivers;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
};

use anyhow::{Context as _, Result};
use lb_api::routers::RouterStatus;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::UnboundedSender;

use self::driver::Driver;
use super::{Order, Report, Vrrp, realtime};

/// The virtual routers of this node, in their thread.
///
/// When it is dropped the thread ends, and leaves everything as it is: addresses stay where they are.
/// To leave in order, there is [`Order::Stop`].
pub struct Thread {
    inputs: Inputs,
    shown: Shown,
}

/// The routers' status, for its readers.
type Shown = Arc<Mutex<Vec<RouterStatus>>>;

/// What comes to the thread from others.
#[derive(Debug)]
enum Input {
    Order(Order),
    Helper(helper::JobResult),
    End,
}

/// Gives it to the thread, and wakes it.
#[derive(Clone)]
struct Inputs {
    queue: Sender<Input>,
    wake: Arc<EventFd>,
}

impl Inputs {
    fn give(&self, input: Input) {
        if self.queue.send(input).is_ok() {
            // It fails only when it is about to wake the thread anyway.
            let _ = self.wake.write(1);
        }
    }
}

impl Thread {
    /// Starts the thread in the network namespace of the calling one. It has no routers until an
    /// order configures some.
    ///
    /// # Errors
    ///
    /// If it can't have its sockets: that takes CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn start(reports: UnboundedSender<Report>) -> Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = Arc::new(wake.map_err(io::Error::from).context("make an eventfd")?);
        let (queue, inputs) = mpsc::channel();
        let given = Inputs { queue, wake: Arc::clone(&wake) };
        let shown = Shown::default();
        let for_helper = given.clone();
        let jobs = helper::start(move |result| for_helper.give(Input::Helper(result)))?;
        let driver = Driver::open(reports, inputs, wake, jobs, Arc::clone(&shown))?;
        thread::Builder::new()
            .name("lb-vrrp".to_owned())
            .spawn(move || {
                let scheduling = realtime::prefer();
                driver.run(scheduling);
            })
            .context("start the thread of the virtual routers")?;
        Ok(Self { inputs: given, shown })
    }
}

impl Vrrp for Thread {
    fn order(&self, order: Order) {
        self.inputs.give(Input::Order(order));
    }

    fn status(&self) -> Vec<RouterStatus> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.inputs.give(Input::End);
    }
}

/// A router as tests have them.
#[cfg(test)]
pub(crate) fn test_router(
    name: &str,
    key: lb_model::router::RouterKey,
) -> lb_model::router::Router {
    use std::{num::NonZeroU8, time::Duration};

    use lb_model::router::{Announce, Auth, Checksum, Family, Router, Version, VirtualAddress};

    let address = match key.family {
        Family::V4 => [10, 0, 0, 100].into(),
        Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, 0x100].into(),
    };
    Router {
        name: name.to_owned(),
        interface: "eth0".to_owned(),
        key,
        version: Version::V3,
        priority: NonZeroU8::new(100).expect("not 0"),
        interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        accept: true,
        addresses: vec![VirtualAddress {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
            interface: None,
            label: None,
            nodad: true,
            advertised: true,
        }],
        source: None,
        peers: Vec::new(),
        min_ttl: 255,
        second_path: None,
        auth: Auth::None,
        checksum: Checksum::PseudoHeader,
        virtual_mac: None,
        announce: Announce::default(),
        tracks: Vec::new(),
        notify: None,
    }
}
