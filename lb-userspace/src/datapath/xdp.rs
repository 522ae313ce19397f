//! The data plane in the kernel.
use super::*;
use crate::settings::Settings;
use std::path::Path;
/// The data plane in the kernel.
#[derive(Debug)]
pub struct Xdp;
/// A ring in the kernel.
#[derive(Debug)]
pub struct XdpRing;
impl Deref for XdpRing {
    type Target = [Slot];
    fn deref(&self) -> &[Slot] {
        todo!()
    }
}
impl Xdp {
    /// Loads or adopts.
    pub fn open(settings: &Settings) -> Result<Self> {
        let _ = settings;
        todo!()
    }
}
/// Removes everything; what was removed.
pub fn detach(pin_dir: &Path) -> Result<Vec<String>> {
    let _ = pin_dir;
    todo!()
}
#[allow(unused_variables)]
impl DataPlane for Xdp {
    type Ring = XdpRing;
    fn limits(&self) -> Limits {
        todo!()
    }
    fn online_cpus(&self) -> u32 {
        todo!()
    }
    fn interfaces(&self) -> Vec<status::Interface> {
        todo!()
    }
    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>> {
        todo!()
    }
    fn put_service(&mut self, key: &ServiceKey, value: &abi::Service) -> Result<()> {
        todo!()
    }
    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        todo!()
    }
    fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        todo!()
    }
    fn put_vip(&mut self, vip: IpAddr) -> Result<()> {
        todo!()
    }
    fn delete_vip(&mut self, vip: IpAddr) -> Result<()> {
        todo!()
    }
    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        todo!()
    }
    fn put_backend(&mut self, id: u16, value: &abi::Backend) -> Result<()> {
        todo!()
    }
    fn rings(&self) -> Result<BTreeSet<u16>> {
        todo!()
    }
    fn ring(&self, service: u16) -> Result<Self::Ring> {
        todo!()
    }
    fn publish_ring(&mut self, service: u16, owners: &[Owners]) -> Result<()> {
        todo!()
    }
    fn set_owners(&mut self, service: u16, slots: &[(u32, Owners)]) -> Result<()> {
        todo!()
    }
    fn delete_ring(&mut self, service: u16) -> Result<()> {
        todo!()
    }
    fn own_macs(&self) -> Result<Vec<[u8; 6]>> {
        todo!()
    }
    fn set_own_macs(&mut self, macs: &[[u8; 6]]) -> Result<()> {
        todo!()
    }
    fn flows(&self, table: FlowTable, visit: &mut dyn FnMut(FlowRef, FlowValue)) -> Result<()> {
        todo!()
    }
    fn delete_flow(&mut self, flow: &FlowRef, seen: FlowValue) -> Result<bool> {
        todo!()
    }
    fn forget_fragments(&mut self, backends: &BTreeSet<u16>) -> Result<()> {
        todo!()
    }
    fn verdicts(&self) -> Result<Vec<Count>> {
        todo!()
    }
    fn backend_totals(&self) -> Result<Vec<BackendTotals>> {
        todo!()
    }
    fn reset_backend_totals(&mut self, id: u16) -> Result<()> {
        todo!()
    }
    fn reset_syn_budget(&mut self, service: u16) -> Result<()> {
        todo!()
    }
}
