//! A service and a backend as they travel: in requests over the socket, and in the state file.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_common::abi::DEFAULT_RING_SLOTS;
use serde::{Deserialize, Serialize};

use crate::{
    check::Check,
    desired::{Admin, Backend, Mode, Protocol, Service, ServiceKey, UdpPolicy, Weight},
    policy::Policy,
};

/// How long a silent TCP flow is kept, unless the service says otherwise.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long nothing is heard of a backend when its drain is over by estimate, unless the service says
/// otherwise: longer than the pings of WebSocket, MQTT, SSH and pools of database connections are apart.
pub const DEFAULT_DRAIN_SILENCE: Duration = Duration::from_secs(90);
/// Flows per second that may be pinned, unless the service says otherwise.
pub const DEFAULT_SYN_BUDGET: u32 = 20_000;

/// A service, all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The virtual IP.
    pub vip: IpAddr,
    /// The port that clients connect to.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The forwarding mode.
    pub mode: Mode,
    /// What a UDP packet says of its flow; for UDP services only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpPolicy>,
    /// How long a silent flow is kept, in seconds.
    pub idle_timeout_secs: u64,
    /// Slots of the ring.
    pub ring_slots: u32,
    /// Flows per second that may be pinned.
    pub syn_budget: u32,
    /// How long a backend may drain, unless the command says otherwise; none: as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline_secs: Option<u64>,
    /// How long nothing is heard of a backend at least when its drain is over by estimate, in seconds.
    #[serde(default = "default_drain_silence", skip_serializing_if = "is_default_drain_silence")]
    pub drain_silence_secs: u64,
    /// How its backends are checked, and what is made of it.
    #[serde(default)]
    pub policy: Policy,
    /// The backends.
    #[serde(default)]
    pub backends: BTreeMap<IpAddr, BackendSpec>,
}

const fn default_drain_silence() -> u64 {
    DEFAULT_DRAIN_SILENCE.as_secs()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default_drain_silence(secs: &u64) -> bool {
    *secs == default_drain_silence()
}

/// A backend, all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its weight.
    #[serde(default)]
    pub weight: Weight,
    /// What the operator said of it.
    #[serde(default)]
    pub admin: Admin,
    /// Whether it serves only when no backend that is no backup can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// How it is checked, if not as the service says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Box<Check>>,
}

impl From<Backend> for BackendSpec {
    fn from(backend: Backend) -> Self {
        let Backend { weight, admin, backup, check } = backend;
        Self { weight, admin, backup, check }
    }
}

impl From<BackendSpec> for Backend {
    fn from(spec: BackendSpec) -> Self {
        let BackendSpec { weight, admin, backup, check } = spec;
        Self { weight, admin, backup, check }
    }
}

impl ServiceSpec {
    /// A TCP service without backends, everything else by default.
    #[must_use]
    pub fn new(vip: IpAddr, port: u16, mode: Mode) -> Self {
        Self {
            vip,
            port,
            protocol: Protocol::Tcp,
            mode,
            udp: None,
            idle_timeout_secs: DEFAULT_IDLE_TIMEOUT.as_secs(),
            ring_slots: DEFAULT_RING_SLOTS,
            syn_budget: DEFAULT_SYN_BUDGET,
            drain_deadline_secs: None,
            drain_silence_secs: default_drain_silence(),
            policy: Policy::default(),
            backends: BTreeMap::new(),
        }
    }

    /// What travels of a service.
    #[must_use]
    pub fn of(service: &Service, drain_deadline: Option<Duration>) -> Self {
        let ServiceKey { vip, port, protocol } = service.key;
        Self {
            vip,
            port,
            protocol,
            mode: service.mode,
            udp: (protocol == Protocol::Udp).then_some(service.udp_policy),
            idle_timeout_secs: service.idle_timeout.as_secs(),
            ring_slots: service.ring_slots,
            syn_budget: service.syn_budget,
            drain_deadline_secs: drain_deadline.map(|deadline| deadline.as_secs()),
            drain_silence_secs: service.drain_silence.as_secs(),
            policy: service.policy.clone(),
            backends: service
                .backends
                .iter()
                .map(|(at, backend)| (*at, backend.clone().into()))
                .collect(),
        }
    }

    /// VIP, port and protocol.
    #[must_use]
    pub const fn key(&self) -> ServiceKey {
        ServiceKey { vip: self.vip, port: self.port, protocol: self.protocol }
    }

    /// The service that is meant.
    #[must_use]
    pub fn to_service(&self) -> Service {
        Service {
            key: self.key(),
            mode: self.mode,
            udp_policy: self.udp.unwrap_or_default(),
            ring_slots: self.ring_slots,
            idle_timeout: Duration::from_secs(self.idle_timeout_secs),
            syn_budget: self.syn_budget,
            drain_silence: Duration::from_secs(self.drain_silence_secs),
            policy: self.policy.clone(),
            backends: self.backends.iter().map(|(at, spec)| (*at, spec.clone().into())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_travels_unchanged() {
        let mut spec = ServiceSpec::new(IpAddr::from([10, 0, 0, 100]), 53, Mode::Dsr);
        spec.protocol = Protocol::Udp;
        spec.udp = Some(UdpPolicy::Oneshot);
        (spec.drain_deadline_secs, spec.drain_silence_secs) = (Some(60), 45);
        spec.backends.insert(IpAddr::from([10, 0, 0, 1]), BackendSpec::default());
        let json = serde_json::to_string(&spec).expect("it has no map with odd keys");
        assert_eq!(serde_json::from_str::<ServiceSpec>(&json).expect(&json), spec);
        assert_eq!(ServiceSpec::of(&spec.to_service(), Some(Duration::from_secs(60))), spec);
    }
}
