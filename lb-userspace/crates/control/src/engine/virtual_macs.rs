//! The virtual MAC addresses of virtual routers (RFC 9568, 7.3): frames to them are this node's while it is Active.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi;
use lb_plane::DataPlane;
use tracing::debug;

use super::{maps::AppliedMaps, wanted::Wanted};

/// The virtual MAC addresses that the node answers to.
#[derive(Debug, Default)]
pub(super) struct VirtualMacs(BTreeSet<[u8; 6]>);

impl VirtualMacs {
    pub(super) const fn all(&self) -> &BTreeSet<[u8; 6]> {
        &self.0
    }

    /// Sets whether frames to this virtual MAC address are this node's.
    ///
    /// # Errors
    ///
    /// A map can't be written, or it has no room.
    pub(super) fn set_own<D: DataPlane>(
        &mut self,
        (maps, wanted): (&mut AppliedMaps<D>, &Wanted),
        mac: [u8; 6],
        is_own: bool,
    ) -> Result<()> {
        let mut virtual_macs = self.0.clone();
        let changed = if is_own { virtual_macs.insert(mac) } else { virtual_macs.remove(&mac) };
        if !changed {
            return Ok(());
        }
        // While the list is empty every frame is taken, and the first entry would shut the others out.
        let mut macs = maps.applied.own_macs.clone();
        if !macs.is_empty() {
            let real = wanted.neighbourhood.as_ref().map(|known| &known.own_macs);
            let is_real = real.is_some_and(|real| real.contains(&mac));
            match macs.iter().position(|known| *known == mac) {
                Some(place) if !is_own && !is_real => drop(macs.remove(place)),
                None if is_own => macs.push(mac),
                _ => {}
            }
        }
        let room = abi::OWN_MACS as usize;
        ensure!(
            macs.len().max(virtual_macs.len()) <= room,
            "there is room for {room} MAC addresses of this node and of its virtual routers; use \
             fewer interfaces, or `virtual_mac` on fewer of them",
        );
        if macs != maps.applied.own_macs {
            maps.plane.set_own_macs(&macs).context("write the node's MAC addresses")?;
            maps.applied.own_macs = macs;
        }
        self.0 = virtual_macs;
        debug!("{} frames to {mac:02x?}", if is_own { "take" } else { "leave" });
        Ok(())
    }
}
