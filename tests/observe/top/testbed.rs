//! A balancer of one service whose pins a test makes.

use std::{net::IpAddr, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use kit::{
    balancer::Balancer,
    lab::{Lab, Options},
    status::ServiceExt as _,
    ways::{Way, balanced},
};
use lb_api::status::Status;
use lb_common::abi::{self, ABI_VERSION, FlowKey, FlowValue, flow_flags};
use lb_model::time::Now;

/// The service.
pub const WAY: Way = Way::DsrV4;

/// A balancer, and the handle of its pins.
pub struct Testbed {
    pub balancer: Balancer,
    pub lab: Lab,
    pins: HashMap<MapData, FlowKey, FlowValue>,
    service: u16,
}

fn open(pins: &Path, name: &str) -> Result<MapData> {
    let path = pins.join(format!("v{ABI_VERSION}/{name}"));
    MapData::from_pin(&path).with_context(|| path.display().to_string())
}

impl Testbed {
    pub fn new() -> Result<Self> {
        let (lab, balancer) = balanced(&Options::default(), &[WAY], "")?;
        let pins = Map::HashMap(open(balancer.pins(), "PINS")?).try_into().context("PINS")?;
        let mut testbed = Self { balancer, lab, pins, service: 0 };
        let backends: Array<_, abi::Backend> =
            Map::Array(open(testbed.balancer.pins(), "BACKENDS")?)
                .try_into()
                .context("BACKENDS")?;
        let id = testbed.id(0)?;
        testbed.service = backends.get(&id.into(), 0).context("a backend")?.service;
        Ok(testbed)
    }

    /// The address of a backend.
    pub fn backend(&self, index: usize) -> IpAddr {
        WAY.backend(&self.lab.webs[index])
    }

    /// The id of a backend in the maps.
    pub fn id(&self, index: usize) -> Result<u16> {
        let status: Status =
            serde_json::from_str(&self.balancer.lbctl(&["-o", "json", "status"])?)?;
        let service = status.services.get(WAY.name()).context("the service")?;
        Ok(service.backend(self.backend(index))?.id)
    }

    /// Pins a flow, as the program would: of client 198.51.x.y, whose last two numbers are `client`'s.
    pub fn pin(&mut self, client: u16, port: u16, backend: u16) -> Result<()> {
        let [high, low] = client.to_be_bytes();
        let key = FlowKey::new(abi::mapped([198, 51, high, low]), port.into(), self.service);
        let value =
            FlowValue { backend, flags: flow_flags::ESTABLISHED, seen: Now::read().mono_secs() };
        self.pins.insert(key, value, 0).context("pin a flow")
    }
}
