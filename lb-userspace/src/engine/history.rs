//! History: what this node tells its peers of its rings and flows, and what it takes from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;

use super::{Engine, Now};
use crate::{datapath::DataPlane, desired::ServiceKey, sync::Piece};

/// Whose history of a service counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// This node's: it is Active for the VIP, or has no peer. The default.
    #[default]
    Own,
    /// The Active peer's: rings follow what it tells, and nothing ends here before it ends there.
    Follows,
    /// Every node's, as with ECMP: pins are told in both directions, base owners to who joins.
    Shared,
}

impl<D: DataPlane> Engine<D> {
    /// Says whose history of each service counts; one that is not named is this node's own.
    ///
    /// # Errors
    ///
    /// A map can't be written; the roles are taken, and the next reconciliation does the rest.
    pub fn set_roles(&mut self, _roles: BTreeMap<ServiceKey, Role>, _now: Now) -> Result<()> {
        Ok(())
    }

    /// What has changed since the last call, of services whose history is this node's or shared.
    ///
    /// # Errors
    ///
    /// A map can't be read; the next call tells it.
    pub fn news(&mut self, _now: Now) -> Result<Vec<Piece>> {
        Ok(Vec::new())
    }

    /// All of the history of services whose history is this node's or shared.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn history(&mut self, _now: Now) -> Result<Vec<Piece>> {
        Ok(Vec::new())
    }

    /// What was learnt of the services that a peer is about to tell all of is void.
    pub fn forget(&mut self, _services: &BTreeSet<ServiceKey>) {}

    /// Takes pieces of a peer's history, of services that follow it or share it. What can't be taken
    /// is told, as `web: backend 10.0.0.13 is not known here`.
    ///
    /// # Errors
    ///
    /// A map can't be written.
    pub fn learn(&mut self, _pieces: Vec<Piece>, _now: Now) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// From now on no flow of these services is pinned: SYNs go to the base owner where a pin would
    /// be needed. So whoever takes over knows all pins that there are.
    ///
    /// # Errors
    ///
    /// A map can't be written.
    pub fn hold_pins(&mut self, _services: &BTreeSet<ServiceKey>) -> Result<()> {
        Ok(())
    }

    /// Flows may be pinned until this time on CLOCK_MONOTONIC; none: always. So the program ceases to
    /// make pins that no peer is told of when the daemon has ceased to run.
    pub fn lease_pins(&mut self, _until: Option<Duration>) {}

    /// Frames to this virtual MAC address are this node's, or no more.
    ///
    /// # Errors
    ///
    /// A map can't be written.
    pub fn take_mac(&mut self, _mac: [u8; 6], _take: bool) -> Result<()> {
        Ok(())
    }
}
