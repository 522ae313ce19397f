//! What the helper makes for the routers: interfaces with virtual MAC addresses, and the packet filter.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
};

use lb_netlink::interfaces::Interfaces;
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    macvlan::Device,
    thread::{filter, helper::Job, member::Member},
};

/// What is wrong without the filter.
pub(super) const UNFILTERED: &str =
    "packets to its addresses are not filtered, as accept = false asks";

/// The jobs that were given to the helper, and its answers.
pub(super) struct Preparations {
    jobs: UnboundedSender<Job>,
    /// The devices with virtual MAC addresses that were requested; none before the first configuration.
    devices: Option<Vec<Device>>,
    /// How often that was requested without an answer yet.
    device_jobs: u32,
    filter: Filter,
}

/// The packet filter: what it is, and what was requested of it.
#[derive(Default)]
struct Filter {
    /// Addresses that are known to be filtered.
    done: BTreeSet<IpAddr>,
    /// Requested, and not answered yet.
    requested: VecDeque<Vec<IpAddr>>,
    /// The last request.
    wanted: Option<Vec<IpAddr>>,
    /// Why the last request failed; it is tried again.
    failed: Option<String>,
}

impl Preparations {
    pub(super) fn new(jobs: UnboundedSender<Job>) -> Self {
        Self { jobs, devices: None, device_jobs: 0, filter: Filter::default() }
    }

    pub(super) fn give(&self, job: Job) {
        // The helper ends only after this thread.
        let _ = self.jobs.send(job);
    }

    /// Whether devices were requested, so that those of a predecessor are known.
    pub(super) const fn has_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// Has these devices made, and all others of lbd removed.
    pub(super) fn request_devices(&mut self, devices: Vec<Device>) {
        // At the start those of a predecessor may be there, which are to go.
        if self.devices.as_ref() != Some(&devices) {
            self.devices = Some(devices);
            self.make_devices();
        }
    }

    /// Has the devices made again, unless the helper is about to answer.
    pub(super) fn make_missing_devices(&mut self) {
        if self.device_jobs == 0 {
            self.make_devices();
        }
    }

    fn make_devices(&mut self) {
        let devices = self.devices.clone().unwrap_or_default();
        self.device_jobs += 1;
        self.give(Job::Devices(devices));
    }

    /// The helper has answered a request of devices.
    pub(super) const fn take_devices(&mut self) {
        self.device_jobs = self.device_jobs.saturating_sub(1);
    }

    /// Has packets to these addresses filtered, and no others.
    pub(super) fn request_filter(&mut self, closed: Vec<IpAddr>) {
        if self.filter.wanted.as_ref() != Some(&closed) {
            self.filter.requested.push_back(closed.clone());
            self.filter.wanted = Some(closed.clone());
            self.give(Job::Filter(closed));
        }
    }

    /// Requests a filter again that could not be made.
    pub(super) fn retry_filter(&mut self) {
        if self.filter.failed.is_some() && self.filter.requested.is_empty() {
            let wanted = self.filter.wanted.take().unwrap_or_default();
            self.request_filter(wanted);
        }
    }

    /// The helper has answered a request of the filter; whether that fails otherwise than the one before.
    pub(super) fn take_filter(&mut self, result: Result<(), String>) -> bool {
        let requested = self.filter.requested.pop_front().unwrap_or_default();
        let changed = self.filter.failed.as_ref() != result.as_ref().err();
        if result.is_ok() {
            self.filter.done = requested.into_iter().collect();
        }
        self.filter.failed = result.err();
        changed
    }

    /// Whether a router needs what the helper has not answered for yet.
    pub(super) fn awaits(
        &self,
        member: &Member,
        interfaces: &Interfaces,
        takes_part: bool,
    ) -> bool {
        let device = !member.has_device(interfaces) && self.device_jobs > 0;
        self.awaits_filter(member, takes_part) || device
    }

    /// Whether a router does not take part yet, as the filter that it needs is being made.
    ///
    /// Where it can't be made, the router takes part without it: that its addresses are served counts
    /// for more than that they are served by nothing else. One that takes part already goes on while
    /// the filter follows a change of it.
    pub(super) fn awaits_filter(&self, member: &Member, takes_part: bool) -> bool {
        self.filter.failed.is_none() && !takes_part && !self.is_filtered(member)
    }

    /// Whether packets to its addresses are filtered, if they are to be.
    fn is_filtered(&self, member: &Member) -> bool {
        let mut addresses = member.router.addresses.iter();
        !filter::is_closed(&member.router)
            || addresses.all(|one| self.filter.done.contains(&one.address))
    }

    /// That packets to a router's addresses are to be filtered and can't be.
    pub(super) fn lack_of_filter(&self, member: &Member) -> Option<String> {
        let why = self.filter.failed.as_ref().filter(|_| !self.is_filtered(member))?;
        Some(format!("{UNFILTERED}: {why}"))
    }
}
