//! The JSON of a service: in requests over the socket, and in the state file.

use std::{collections::BTreeMap, num::NonZeroU16, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Backend, DEFAULT_DRAIN_SILENCE, Mode, Ports, Protocol, Service, ServiceKey, UdpPolicy, Vips,
};
use crate::{backend_address::BackendAddress, policy::Policy};

/// A service with its durations in seconds. What is left out has its default.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceJson {
    vip: Vips,
    port: Ports,
    protocol: Protocol,
    mode: Mode,
    /// For UDP services only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    udp: Option<UdpPolicy>,
    idle_timeout_secs: u64,
    ring_slots: u32,
    syn_budget: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drain_deadline_secs: Option<u64>,
    #[serde(default = "default_drain_silence", skip_serializing_if = "is_default_drain_silence")]
    drain_silence_secs: u64,
    #[serde(default)]
    policy: Policy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_port: Option<NonZeroU16>,
    #[serde(default)]
    backends: BTreeMap<BackendAddress, Backend>,
}

const fn default_drain_silence() -> u64 {
    DEFAULT_DRAIN_SILENCE.as_secs()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default_drain_silence(secs: &u64) -> bool {
    *secs == default_drain_silence()
}

impl From<Service> for ServiceJson {
    fn from(service: Service) -> Self {
        let protocol = service.key.protocol;
        Self {
            vip: service.key.vips(),
            port: service.key.ports(),
            protocol,
            mode: service.mode,
            udp: (protocol == Protocol::Udp).then_some(service.udp_policy),
            idle_timeout_secs: service.idle_timeout.as_secs(),
            ring_slots: service.ring_slots,
            syn_budget: service.syn_budget,
            drain_deadline_secs: service.drain_deadline.map(|deadline| deadline.as_secs()),
            drain_silence_secs: service.drain_silence.as_secs(),
            policy: service.policy,
            target_port: service.target_port,
            backends: service.backends,
        }
    }
}

impl From<ServiceJson> for Service {
    fn from(json: ServiceJson) -> Self {
        let ServiceJson { vip, port, protocol, mode, udp, .. } = json;
        Self {
            key: ServiceKey::of(vip, port, protocol),
            mode,
            udp_policy: udp.unwrap_or_default(),
            ring_slots: json.ring_slots,
            idle_timeout: Duration::from_secs(json.idle_timeout_secs),
            syn_budget: json.syn_budget,
            drain_deadline: json.drain_deadline_secs.map(Duration::from_secs),
            drain_silence: Duration::from_secs(json.drain_silence_secs),
            policy: json.policy,
            target_port: json.target_port,
            backends: json.backends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_read_as_it_was_written() {
        let mut service = Service::new(std::net::IpAddr::from([10, 0, 0, 100]), 53, Mode::Dsr);
        service.key.protocol = Protocol::Udp;
        service.udp_policy = UdpPolicy::Oneshot;
        service.drain_deadline = Some(Duration::from_secs(60));
        service.drain_silence = Duration::from_secs(45);
        service.target_port = NonZeroU16::new(5353);
        // One that came before target_port has no port, also behind a restart.
        let at = BackendAddress::from([10, 0, 0, 1]);
        service.backends.insert(at, Backend { name: Some("a".into()), ..Backend::default() });
        service.backends.insert(at.or_port(service.target_port), Backend::default());
        let json = serde_json::to_string(&service).expect("it has no map with odd keys");
        assert_eq!(serde_json::from_str::<Service>(&json).expect(&json), service);
    }
}
