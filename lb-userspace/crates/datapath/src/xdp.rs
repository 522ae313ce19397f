//! The data plane in the kernel: the program, its links and its maps.

use std::fs::File;

use anyhow::Result;
use aya::Ebpf;
use lb_common::abi::RETURN_EGRESS_TC;
use lb_model::settings::{Limits, Settings};
use tracing::warn;

use super::{
    attach::ProgramLink,
    folders,
    maps::OpenMaps,
    pin_log::PinLog,
    pinned,
    program_log::ProgramLog,
    program_pins,
    reverse_nat::{self, ReverseNat},
    service_index::ServiceIndex,
    variants::{self, BALANCE, Mode},
    wide_index::WideIndex,
};

/// The data plane in the kernel. When it is dropped everything stays: the program goes on with
/// what the maps hold.
#[derive(Debug)]
pub struct Xdp {
    pub(super) maps: OpenMaps,
    pub(super) index: ServiceIndex,
    pub(super) wide: WideIndex,
    pub(super) reverse_nat: ReverseNat,
    pub(super) pin_log: PinLog,
    pub(super) log: Option<ProgramLog>,
    pub(super) limits: Limits,
    pub(super) possible_cpus: u32,
    /// Holds the program, to attach it again.
    pub(super) object: Ebpf,
    pub(super) settings: Settings,
    pub(super) links: Vec<ProgramLink>,
    /// Ids of the variants that a running capture has put in the place of the program.
    pub(super) capture: Option<Vec<u32>>,
    /// Whether clients on this node are to be served; none before that was tried.
    pub(super) local_clients: Option<bool>,
    /// Of the folder of the pins: there is one writer.
    pub(super) _lock: File,
}

impl Xdp {
    /// Lets answers be redirected to the interfaces that have the program, by XDP to those that have it in the driver, which
    /// take frames of XDP.
    pub(super) fn set_return_egress(&self) -> Result<()> {
        let elements = self.links.iter().filter_map(|link| match link.mode() {
            Mode::Native => Some(link.ifindex()),
            Mode::Generic | Mode::Tc => Some(link.ifindex() | RETURN_EGRESS_TC),
            // A frame with an Ethernet header is none for it.
            Mode::TcRaw => None,
        });
        reverse_nat::set_egress(&self.maps, elements)
    }

    /// The ids of the programs that may be on the interfaces.
    pub(super) fn programs(&self) -> Vec<u32> {
        let captures = self.capture.iter().flatten();
        BALANCE.loaded(&self.object).into_iter().chain(captures.copied()).collect()
    }

    /// Has the kernel unload programs that no interface uses any more. What stays is removed by the next start.
    pub(super) fn unload_unused(&mut self) {
        // While a capture runs, the programs that it has replaced come back.
        if self.capture.is_some() {
            return;
        }
        if let Err(error) = self.try_unload_unused() {
            warn!("programs that no interface uses stay loaded: {error:#}");
        }
    }

    fn try_unload_unused(&mut self) -> Result<()> {
        let mut used = pinned::running(&self.settings.pin_dir)?;
        variants::unload(&mut self.object, BALANCE, &used)?;
        used.extend(BALANCE.loaded(&self.object));
        program_pins::retain(&folders::current(&self.settings.pin_dir), &used)
    }

    /// The program's log, to be passed on; once.
    pub const fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }
}
