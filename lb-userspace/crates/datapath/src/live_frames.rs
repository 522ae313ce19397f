//! Frames that the loaded program takes as if they had come in by an interface, and sends by the real egress
//! (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use lb_common::abi::{self, Destination, FlowKey, Owners, Slot};
use lb_model::{backend_address::BackendAddress, desired::ServiceKey, entry, flow::slot_of_flow};

use super::{
    Xdp,
    folders::CURRENT,
    maps::{self, OpenMaps},
    mmap::Mapped,
    sys,
    variants::BALANCE,
};

/// The program, and what its decision on a flow depends on. It never writes.
#[derive(Debug)]
pub struct LiveProgram {
    program: OwnedFd,
    maps: OpenMaps,
}

/// The services and backends that the maps hold at one moment.
#[derive(Debug)]
pub struct Served {
    services: BTreeMap<ServiceKey, abi::Service>,
    /// By the service's id and the backend's address.
    backends: BTreeMap<(u16, BackendAddress), u16>,
    own_mac: [u8; 6],
}

impl Xdp {
    /// The program over the same maps.
    ///
    /// # Errors
    ///
    /// The pins can't be opened.
    pub fn live_program(&self) -> Result<LiveProgram> {
        let program: &aya::programs::Xdp =
            self.object.program(BALANCE.native).context("the object has no program")?.try_into()?;
        let program = program.fd()?.as_fd().try_clone_to_owned().context("share the program")?;
        let maps = OpenMaps::open(&CURRENT.path(&self.settings.pin_dir));
        Ok(LiveProgram { program, maps: maps.context("open the maps")? })
    }
}

impl LiveProgram {
    /// What the maps hold.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn served(&self) -> Result<Served> {
        let services = maps::services(&self.maps)?;
        let backends = maps::backends(&self.maps)?;
        let backends =
            backends.iter().map(|(id, one)| ((one.service, entry::backend_of(one)), *id));
        let own_mac = self.maps.own_macs.get(&0)?.map(|own| own.mac).unwrap_or_default();
        Ok(Served { services, backends: backends.collect(), own_mac })
    }

    /// Up to `count` ports from which the flows of `source` go to a backend, by slots that are not in flux,
    /// searched from `first` on.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn ports(
        &self,
        served: &Served,
        (service, backend): (&ServiceKey, BackendAddress),
        (source, first): (IpAddr, u16),
        count: usize,
    ) -> Result<BTreeSet<u16>> {
        let Some(entry) = served.services.get(service) else { return Ok(BTreeSet::new()) };
        let Some(id) = served.backends.get(&(entry.id, backend)) else {
            return Ok(BTreeSet::new());
        };
        let Some(ring) = self.maps.rings.get(entry.id)? else { return Ok(BTreeSet::new()) };
        let slots = Mapped::<Slot>::new(&ring).context("map the ring")?;
        let [.., o, p] = entry::address(service.vip);
        let destination = Destination::of(entry, service.port.into(), [o, p]);
        let source = entry::address(source);
        let leads = |port: &u16| {
            let key = FlowKey { destination, ..FlowKey::new(source, (*port).into(), entry.id) };
            let slot = slots.get(slot_of_flow(entry, &key) as usize);
            slot.is_some_and(|slot| slot.owners() == Owners { current: *id, base: 0 })
        };
        // Those below are of servers.
        let ports = (0..=u16::MAX).map(|n| first.wrapping_add(n)).filter(|port| *port >= 1_024);
        Ok(ports.filter(leads).take(count).collect())
    }

    /// Has the program take an IP packet as if it had come in by `ingress`, and send it. Whether the frame has left is
    /// not known.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn take(&self, served: &Served, ingress: u32, packet: &[u8]) -> io::Result<()> {
        let ethertype: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let mut frame = Vec::with_capacity(14 + packet.len());
        frame.extend(served.own_mac);
        frame.extend(served.own_mac);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        sys::run_live(&self.program, ingress, &frame)
    }
}
