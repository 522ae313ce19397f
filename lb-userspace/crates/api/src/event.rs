//! The events in answers: every transition once, with its cause.

use std::{fmt, time::SystemTime};

use lb_model::{backend_address::BackendAddress, units::rfc3339};
use serde::{Deserialize, Serialize};

/// Events that are kept.
pub const KEPT: usize = 10_000;

/// An event, with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before, and more than all of earlier runs of
    /// `lbd`.
    pub seq: u64,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// Its content.
    #[serde(flatten)]
    pub body: EventBody,
}

/// The content of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBody {
    /// Its kind.
    pub kind: Kind,
    /// The service that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The backend that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// Its message, for people.
    pub message: String,
    /// Why.
    pub cause: String,
}

impl EventBody {
    /// Something that has happened to the node.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>, cause: impl Into<String>) -> Self {
        let (message, cause) = (message.into(), cause.into());
        Self { kind, service: None, backend: None, message, cause }
    }

    /// To this service.
    #[must_use]
    pub fn of_service(self, service: &str) -> Self {
        Self { service: Some(service.into()), ..self }
    }

    /// To this backend.
    #[must_use]
    pub fn of_backend(self, service: &str, backend: BackendAddress) -> Self {
        Self { service: Some(service.into()), backend: Some(backend), ..self }
    }
}

/// Defines [`Kind`] with the level that each is logged at, so that none is forgotten.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal $level:ident,)*) => {
        /// Kinds of events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name, in JSON and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// How much it matters: the level that it is logged at.
            #[must_use]
            pub const fn level(self) -> tracing::Level {
                match self { $(Self::$kind => tracing::Level::$level,)* }
            }
        }
    };
}

kinds! {
    /// A backend serves.
    BackendUp "backend_up" INFO,
    /// A backend does not serve.
    BackendDown "backend_down" WARN,
    /// By its clients' packets, a backend is silent.
    BackendSuspect "backend_suspect" WARN,
    /// A backend that was silent by its clients' packets has answered.
    BackendAnswers "backend_answers" INFO,
    /// A backend is up, and gets nothing yet since it was down too often.
    BackendHeld "backend_held" WARN,
    /// A backend is there.
    BackendAdded "backend_added" INFO,
    /// A backend is gone.
    BackendRemoved "backend_removed" INFO,
    /// A backend gets no new flows until it is enabled or gone.
    BackendDraining "backend_draining" INFO,
    /// A backend may have new flows.
    BackendEnabled "backend_enabled" INFO,
    /// A backend gets no new flows, or nothing.
    BackendDisabled "backend_disabled" INFO,
    /// A backend has another share.
    BackendWeight "backend_weight" INFO,
    /// A backend is configured otherwise.
    BackendChanged "backend_changed" INFO,
    /// The path to a backend is narrower than this node's link, or counts as such no longer.
    BackendPathMtu "backend_path_mtu" INFO,
    /// A service is there.
    ServiceAdded "service_added" INFO,
    /// A service is gone.
    ServiceRemoved "service_removed" INFO,
    /// A service is configured otherwise.
    ServiceChanged "service_changed" INFO,
    /// Enough backends of a service are up.
    ServiceReady "service_ready" INFO,
    /// Too few are.
    ServiceNotReady "service_not_ready" WARN,
    /// So few are up that checks are ignored.
    ServicePanic "service_panic" ERROR,
    /// Checks count again.
    ServicePanicOver "service_panic_over" INFO,
    /// The configuration's difference is in force.
    ConfigReloaded "config_reloaded" INFO,
    /// The configuration can't be used, and nothing was changed.
    ConfigRefused "config_refused" ERROR,
    /// The configuration took a change by `lbctl` back.
    ConfigConflict "config_conflict" WARN,
    /// An interface has lost the program.
    InterfaceLost "interface_lost" ERROR,
    /// The program is back.
    InterfaceBack "interface_back" INFO,
    /// The program's packets to a next hop do not arrive.
    EgressNotForwarding "egress_not_forwarding" ERROR,
    /// They arrive again.
    EgressForwarding "egress_forwarding" INFO,
    /// The maps can't be written.
    MapsFailing "maps_failing" ERROR,
    /// The maps are written again.
    MapsWritten "maps_written" INFO,
    /// The node drains.
    NodeDraining "node_draining" WARN,
    /// The node stays.
    NodeEnabled "node_enabled" INFO,
    /// The time of day was set.
    ClockJumped "clock_jumped" WARN,
    /// This node holds the addresses of a virtual router.
    VrrpActive "vrrp_active" INFO,
    /// Another node does, or may.
    VrrpBackup "vrrp_backup" INFO,
    /// This node can't hold them.
    VrrpFault "vrrp_fault" ERROR,
    /// A virtual router has ended on this node.
    VrrpEnded "vrrp_ended" INFO,
    /// Two nodes had the addresses at the same time.
    VrrpTwoActive "vrrp_two_active" ERROR,
    /// Another node's advertisements are made otherwise than this node's.
    VrrpMismatch "vrrp_mismatch" ERROR,
    /// Another host has an address of a virtual router.
    VrrpAddressElsewhere "vrrp_address_elsewhere" ERROR,
    /// Addresses that a predecessor left were found, or ones that were set by hand are gone.
    VrrpLeftover "vrrp_leftover" WARN,
    /// A resource that a virtual router needs does not work.
    VrrpTrouble "vrrp_trouble" ERROR,
    /// A tracked object of a virtual router has failed, or works again.
    VrrpTrack "vrrp_track" WARN,
    /// The virtual routers could not run for longer than their peers wait.
    VrrpStalled "vrrp_stalled" WARN,
    /// The addresses are handed over to another node, or were not.
    VrrpHandover "vrrp_handover" INFO,
    /// A peer is there.
    PeerJoined "peer_joined" INFO,
    /// A peer is gone.
    PeerLost "peer_lost" WARN,
    /// Nothing can be sent to a peer, or nothing taken from it.
    PeerRefused "peer_refused" ERROR,
    /// This node has all of a peer's history.
    PeerSynced "peer_synced" INFO,
    /// Something of a peer's history is missing.
    PeerUnsynced "peer_unsynced" WARN,
    /// A service has other backends at a peer, or other weights or states of them.
    PeerDiffers "peer_differs" WARN,
    /// `lbd` runs.
    Started "started" INFO,
    /// `lbd` ends.
    Stopping "stopping" INFO,
    /// The state file can't be written, or its disk does not take it.
    StateFileFailing "state_file_failing" ERROR,
    /// The state file is written again.
    StateFileWritten "state_file_written" INFO,
    /// The state file could not be used, and was set aside.
    StateFileSetAside "state_file_set_aside" ERROR,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Events in the order in which they happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The events.
    pub events: Vec<Event>,
    /// How many before them were requested and are not kept any more.
    #[serde(default)]
    pub missed: u64,
    /// The number to continue the requests from.
    pub last: u64,
}
