//! The daemon's status: the types that `lbctl` prints and programs read as JSON.

mod state;

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16, time::SystemTime};

use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Mode, ServiceKey, UdpPolicy},
    router::{RouterKey, State},
    seen::Condition,
    units::rfc3339,
};
use serde::{Deserialize, Serialize};

pub use self::state::BackendState;
use crate::{
    check_status::{CheckStatus, Histogram, Load},
    log,
    peers::PeerStatus,
    routers::RouterStatus,
};

/// The whole node at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of `lbd`.
    pub version: String,
    /// The node's name.
    #[serde(default)]
    pub name: String,
    /// Seconds since `lbd` started.
    pub uptime_secs: u64,
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<Interface>,
    /// The ways out, and whether frames arrive that the program sends by them.
    #[serde(default)]
    pub egress: Vec<EgressStatus>,
    /// Frames that were dropped after the program had sent them; they are in [`Self::dropped`], too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tx_errors: Vec<TxErrorStatus>,
    /// The services by name.
    pub services: BTreeMap<String, Service>,
    /// Packets left to the node's own stack, by reason.
    pub passed: BTreeMap<String, Count>,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, Count>,
    /// Live pins, and how many there is room for.
    pub pins: Usage,
    /// Services, and how many there is room for.
    pub services_used: Usage,
    /// Backends, and how many there is room for.
    pub backends_used: Usage,
    /// The error of the last attempt to write the maps, if it failed.
    pub last_error: Option<String>,
    /// The error of the last attempt to write the state file, if it failed or has taken more than 5 s so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_file_error: Option<String>,
    /// Whether this node is draining.
    #[serde(default)]
    pub node: Node,
    /// The virtual routers.
    #[serde(default)]
    pub vrrp: Vec<RouterStatus>,
    /// The peers.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// How much is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<log::Current>,
    /// Where it is answered over HTTP, or should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<Listener>,
    /// The number of events since `lbd` started, by kind.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
    /// The writes of maps since `lbd` started.
    #[serde(default)]
    pub writes: Writes,
    /// The load of the health checks, and their delays.
    #[serde(default)]
    pub checks: Load,
}

/// A listener of the configuration's `[http]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its address and port.
    pub address: SocketAddr,
    /// Why it can't be had; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// The work of making the maps equal to the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// How long each attempt took, those included that found nothing to write.
    pub duration: Histogram,
    /// Attempts that failed.
    pub failed: u64,
    /// Entries of maps that were written; the slots of one ring count as one.
    pub changes: u64,
    /// Slots whose new flows have got a new owner.
    pub slots_moved: u64,
}

/// The administrative state of the whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Since when it drains, for maintenance; none: it is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub draining_since: Option<SystemTime>,
}

impl Node {
    /// Whether nothing is wanted of it in particular.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The virtual routers and the peers: the holders of the addresses, and whether flows are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The virtual routers.
    pub routers: Vec<RouterStatus>,
    /// The peers.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A peer at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Whether it is there, and has all flows.
    #[serde(flatten)]
    pub session: PeerStatus,
    /// How its virtual routers stand.
    #[serde(default)]
    pub routers: Vec<PeerRouter>,
    /// Whether it is draining.
    #[serde(default)]
    pub draining: bool,
    /// In what it differs from this node, where it must not.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Peer {
    /// Its name: its own, or its address.
    #[must_use]
    pub fn name(&self) -> String {
        self.session.node.clone().unwrap_or_else(|| self.session.address.to_string())
    }
}

/// A virtual router on a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRouter {
    /// Its name on this node, if it is configured here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Family and VRID.
    #[serde(flatten)]
    pub key: RouterKey,
    /// Its state there.
    pub state: State,
    /// Its priority there.
    pub priority: u8,
}

/// An interface with the program on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `native` or `generic`, of XDP, or `tc`.
    pub mode: String,
    /// Whether the program is there at this moment.
    pub attached: bool,
    /// Programs of others at the same hook.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
}

impl Interface {
    /// Whether the program runs at tc.
    #[must_use]
    pub fn is_at_tc(&self) -> bool {
        self.mode == "tc"
    }

    /// Where the program runs, for people.
    #[must_use]
    pub fn hook(&self) -> String {
        match self.mode.as_str() {
            "tc" => "tc".into(),
            mode => format!("XDP {mode}"),
        }
    }
}

/// A way out: an interface and a next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressStatus {
    /// The interface that frames leave by.
    pub interface: String,
    /// MAC address of the next hop.
    pub mac: String,
    /// `forwards`, `egress_not_forwarding` or `unknown`.
    pub state: String,
    /// Why it is not known to forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl EgressStatus {
    /// The state of one whose device drops, or whose peer does not pass on, what the program sends by it.
    pub const LOST: &str = "egress_not_forwarding";
}

/// Frames that were dropped after the program had sent them, since `lbd` started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxErrorStatus {
    /// The interface that they came by.
    pub interface: String,
    /// The one that they were to leave by.
    pub egress: String,
    /// `tx_failed`, or `redirect_failed`: to another interface, or on behalf of a check of the egress.
    pub reason: String,
    /// Why, as far as the kernel reports it.
    pub why: String,
    /// How many.
    pub frames: u64,
}

/// How much of a map is used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Entries.
    pub used: u64,
    /// Room for as many.
    pub capacity: u64,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP.
    pub bytes: u64,
}

/// The traffic to backends of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Packets and bytes.
    #[serde(flatten)]
    pub sent: Count,
    /// Packets that opened a flow.
    pub new_flows: u64,
}

impl Totals {
    /// Adds what went to more of them.
    pub const fn add(&mut self, more: Self) {
        // The program's counters wrap as well.
        self.sent.packets = self.sent.packets.wrapping_add(more.sent.packets);
        self.sent.bytes = self.sent.bytes.wrapping_add(more.sent.bytes);
        self.new_flows = self.new_flows.wrapping_add(more.new_flows);
    }
}

/// How a service stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Backends that are up and can take new flows: those that are held back only while they do.
    pub up: u16,
    /// Backends that take new flows, and those that would if it came to that; in panic, those that answer checks,
    /// whatever they answer: one that this node does not reach may be reached from another.
    #[serde(default)]
    pub serving: u16,
    /// Backends that the operator lets take new flows.
    pub enabled: u16,
    /// Whether so few are up that checks are ignored for choosing.
    pub panic: bool,
    /// Whether backups serve.
    pub on_backups: bool,
    /// Whether as many are up as the service needs.
    pub ready: bool,
}

/// A service at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// VIP, port, protocol.
    pub key: ServiceKey,
    /// The forwarding mode.
    pub mode: Mode,
    /// For UDP services: the policy.
    pub udp_policy: Option<UdpPolicy>,
    /// Slots of the ring.
    pub ring_slots: u32,
    /// Slots whose base owner differs from the current one.
    pub slots_in_flux: u32,
    /// Seconds after which a silent flow is forgotten.
    pub idle_timeout_secs: u64,
    /// How it stands: how many of its backends are up, and what is made of that.
    #[serde(default)]
    pub standing: Standing,
    /// The traffic to its backends, including removed ones.
    #[serde(default)]
    pub totals: Totals,
    /// The port that backends listen at which give none of their own; none: the key's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<NonZeroU16>,
    /// The backends by address.
    pub backends: BTreeMap<BackendAddress, Backend>,
}

/// A backend at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Backend {
    /// A name that stands for its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its weight.
    pub weight: u16,
    /// Its administrative state.
    pub admin: Admin,
    /// Whether it serves only when no other backend can.
    #[serde(default)]
    pub backup: bool,
    /// The checks' result.
    #[serde(default)]
    pub condition: Condition,
    /// Whether it is up and held back all the same, since it was down too often of late.
    #[serde(default)]
    pub held: bool,
    /// Whether its clients find it silent, and no check has decided yet.
    #[serde(default)]
    pub suspect: bool,
    /// Thousandths of its share that it has in a slow start; none: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_permille: Option<u16>,
    /// The status of its checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckStatus>,
    /// Whether it can be sent to, and if not why: `neighbour 10.0.0.7 does not answer`.
    pub unusable: Option<String>,
    /// That what the program sends to it does not arrive, and how that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_fault: Option<String>,
    /// Largest packet on the path to it, in bytes with the tunnel's header, where a router has reported
    /// that it is less than the link takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u16>,
    /// Name of the interface by which it is reached.
    pub interface: Option<String>,
    /// MAC address of the next hop.
    pub mac: Option<String>,
    /// Its id in the maps.
    pub id: u16,
    /// Slots that it owns for new flows.
    pub slots: u32,
    /// Slots of which it is the base owner while another has new flows.
    pub base_slots: u32,
    /// Live pins to it.
    pub pins: u64,
    /// Those of `pins` whose client has sent FIN or RST, and nothing for five seconds.
    #[serde(default)]
    pub pins_closing: u64,
    /// Whether `pins` was counted before it ceased to get new flows, so that there may be more.
    #[serde(default)]
    pub pins_stale: bool,
    /// How far its drain is; none if it does not drain, or that was not looked at yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Packets and bytes sent to it.
    pub sent: Count,
    /// Packets that opened a flow.
    pub new_flows: u64,
    /// Packets sent to it as base owner without a pin.
    pub unpinned_packets: u64,
    /// SYNs seen again.
    pub syn_retransmissions: u64,
    /// SYNs that came to it as their slot's second choice.
    #[serde(default)]
    pub second_choices: u64,
    /// Mode `nat`: packets and bytes of its answers, which this node has translated; none in other modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Count>,
    /// Mode `nat`: sockets of this node itself that were given it for its VIP; none in other modes. They are in no other
    /// count, as their packets are not translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_sockets: Option<u64>,
    /// TCP in mode `nat`: its connections, by the packets of both directions that this node has translated; none in other
    /// modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
}

/// The connections of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Those that are open, when they were last counted: every ten seconds, and each second while a backend drains.
    pub open: u64,
    /// Connections that the backend has accepted: SYN-ACKs, without repetitions.
    pub accepted: u64,
    /// RSTs of the backend that ended no known connection: SYNs that it has refused.
    pub refused: u64,
}

/// A backend with its address, which a name may have stood for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneBackend {
    /// Its address.
    pub address: BackendAddress,
    /// It at one moment.
    #[serde(flatten)]
    pub backend: Backend,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Whether it is over by estimate: clients have closed all pinned flows, and for `silence_secs` no
    /// packet has come of a flow that may be on the backend. A client without a pin that is silent for
    /// longer may be left. Or all its connections are [closed](Self::closed).
    pub estimated: bool,
    /// TCP in mode `nat`: by the packets of both directions all its connections are closed, and this node has seen all of them
    /// for the idle timeout.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// Mode `nat`: connections of this node's own processes to the backend, for whose end it waits, too.
    #[serde(default, skip_serializing_if = "is_none")]
    pub local_connections: u64,
    /// Seconds without a packet after which it is over by estimate: the service's `drain_silence`, or
    /// more where its flows were silent for longer and went on. 0 if there is no estimate.
    #[serde(default)]
    pub silence_secs: u64,
    /// Why there is no estimate: this node does not see all packets of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Unseen>,
    /// Seconds since the last packet of a flow that may be on the backend; none if there is no such
    /// flow, or not all packets of the service come to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_secs: Option<u64>,
    /// Seconds until no flow can be left if none sends any more, or the deadline has passed; none if
    /// none can be left, or not all packets of the service come to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in_secs: Option<u64>,
}

/// Whether there are none.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Why a node does not see all packets of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unseen {
    /// Other nodes forward them as well (ECMP).
    Shared,
    /// Another node is Active, and sends its flows to this one: this node knows when none is left.
    Synced,
    /// Another node is Active, and sends no flows to this one: it does not know when no flow is left.
    Unsynced,
}

impl Backend {
    /// Whether this node does not know its flows while it drains: another node is Active for the
    /// service, and sends no flows to this one.
    #[must_use]
    pub fn is_unsynced(&self) -> bool {
        self.drains() && self.drain.is_some_and(|drain| drain.unseen == Some(Unseen::Unsynced))
    }

    /// Whether its drain is over by estimate, and not for certain.
    #[must_use]
    pub fn is_estimated_over(&self) -> bool {
        self.has_flows() && self.drain.is_some_and(|drain| drain.estimated)
    }

    /// Whether a flow may still be on the backend: it owns slots, is a slot's base owner, has pins,
    /// or may have some that were not counted yet; or a process of this node has a connection to it.
    #[must_use]
    pub fn has_flows(&self) -> bool {
        let is_local = self.drain.is_some_and(|drain| drain.local_connections > 0);
        self.slots > 0 || self.base_slots > 0 || self.pins > 0 || self.pins_stale || is_local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status in which nothing is left out, as programs read it since version 0.1.0. A field that is added may be
    /// added here; one that is renamed, gone or written otherwise breaks its readers.
    #[test]
    fn programs_read_the_status_as_they_always_did() {
        let text = include_str!("status.json");
        let status: Status = serde_json::from_str(text).expect("it is a status");
        let written = serde_json::to_string_pretty(&status).expect("it is JSON");
        let diff = similar::TextDiff::from_lines(text.trim_end(), &written);
        assert!(written == text.trim_end(), "{}", diff.unified_diff());
    }
}
