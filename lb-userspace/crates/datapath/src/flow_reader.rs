//! Reads the flow tables beside the engine, over descriptors of its own: a reader of flows takes
//! nothing of the one writer's time.

use std::{collections::BTreeMap, io::Error, ops::ControlFlow};

use anyhow::{Context as _, Result};
use lb_common::abi::{self, FlowValue};
use lb_inspect::flows::Source;
use lb_model::{
    desired::ServiceKey,
    flow::{FlowRef, FlowTable},
};

use super::{
    Xdp,
    folders::CURRENT,
    maps::{self, OpenMaps},
};

/// The flow tables, and what gives names to what is in them. It never writes.
#[derive(Debug)]
pub struct FlowReader {
    maps: OpenMaps,
}

impl Xdp {
    /// A reader of the same maps.
    ///
    /// # Errors
    ///
    /// The pins can't be opened.
    pub fn flow_reader(&self) -> Result<FlowReader> {
        let maps = OpenMaps::open(&CURRENT.path(&self.settings.pin_dir));
        Ok(FlowReader { maps: maps.context("open the maps to read flows")? })
    }
}

/// Lets all others run before the calling thread: a walk through full tables takes a CPU for a while,
/// and no packet needs it meanwhile.
pub fn stand_back() {
    const NICE: libc::c_int = 15;
    // SAFETY: touches no memory; 0 is the calling thread, as Linux has a nice value for each.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if result != 0 {
        // Every process may do so, but for what a sandbox forbids; it goes on all the same.
        tracing::debug!("flows are read at the daemon's own priority: {}", Error::last_os_error());
    }
}

impl Source for FlowReader {
    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>> {
        maps::services(&self.maps)
    }

    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        maps::backends(&self.maps)
    }

    fn walk(
        &self,
        table: FlowTable,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> Result<()> {
        let maps = &self.maps;
        match table {
            FlowTable::Pins => maps.pins.walk_while(|key, value| visit(FlowRef::Pin(key), value)),
            FlowTable::Tracked => {
                maps.tracked.walk_while(|key, value| visit(FlowRef::Tracked(key), value))
            }
            FlowTable::Connections => {
                maps.connections.walk_while(|key, value| visit(FlowRef::Connection(key), value))
            }
        }
        .map_err(Into::into)
    }
}
