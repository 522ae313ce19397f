//! History, in terms that every node understands: services by their key, backends by address, slots
//! by number, times as ages.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_common::abi::Destination;
use lb_model::{backend_address::BackendAddress, desired::ServiceKey};

/// A part of a service's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The service's ring, as it is for new flows; earlier records about its slots are void. The
    /// base owners of all slots that have one follow, and then [`Self::ring_is_whole`]: until that
    /// comes, the earlier ones hold.
    Ring {
        /// The service.
        service: ServiceKey,
        /// Slots of the ring; 0: see [`Self::members`].
        slots: u32,
        /// The backends in the ring, by address, with their weights in it (thousandths); the current
        /// owner of each slot follows from them and the seed.
        members: Vec<(BackendAddress, u32)>,
        /// [`digest`] of the current owners, to be sure of that.
        digest: u64,
    },
    /// Base owners of slots of the last ring.
    Bases {
        /// The service.
        service: ServiceKey,
        /// The slots.
        bases: Vec<Base>,
    },
    /// Flows that go somewhere whatever the ring is.
    Pins {
        /// The service.
        service: ServiceKey,
        /// The flows.
        pins: Vec<Pin>,
    },
    /// Flows that have ended. Two flows that no client can have mean something else:
    /// [`Self::ring_is_whole`] and [`Self::history_is_whole`].
    Ended {
        /// The service.
        service: ServiceKey,
        /// The flows.
        flows: Vec<Flow>,
    },
}

/// The base owner of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The slot.
    pub slot: u32,
    /// The base owner; none: the slot has settled.
    pub backend: Option<BackendAddress>,
}

/// Which flow of a service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flow {
    /// A pinned TCP or QUIC flow: the client's address and port, and which of the service's VIPs and ports.
    Pinned(IpAddr, u16, Destination),
    /// A flow of a `tracked` UDP service: the same.
    Tracked(IpAddr, u16, Destination),
    /// A QUIC connection, by the first eight bytes of its id.
    Connection([u8; 8]),
}

/// A flow and its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The flow.
    pub flow: Flow,
    /// The backend.
    pub backend: BackendAddress,
    /// [`lb_common::abi::flow_flags`].
    pub flags: u16,
    /// How long ago its last packet was, in whole seconds.
    pub idle: Duration,
}

/// The flow that stands for [`Record::ring_is_whole`]: no client has this address.
const RING_IS_WHOLE: Flow = mark(1);
/// The flow that stands for [`Record::history_is_whole`].
const HISTORY_IS_WHOLE: Flow = mark(2);

const fn mark(number: u16) -> Flow {
    Flow::Pinned(IpAddr::V4(Ipv4Addr::UNSPECIFIED), number, Destination::ONLY)
}

impl Flow {
    /// Whether it stands for [`Record::ring_is_whole`].
    #[must_use]
    pub fn ends_a_ring(&self) -> bool {
        *self == RING_IS_WHOLE
    }

    /// Whether it stands for [`Record::history_is_whole`].
    #[must_use]
    pub fn ends_a_history(&self) -> bool {
        *self == HISTORY_IS_WHOLE
    }
}

impl Record {
    /// The owners of the new flows of a service that several nodes serve: a ring of no slots, which changes
    /// nothing of earlier records.
    #[must_use]
    pub fn members(service: ServiceKey, members: Vec<(BackendAddress, u32)>) -> Self {
        Self::Ring { service, slots: 0, members, digest: 0 }
    }

    /// The mark that all base owners of the ring that was sent last have been sent.
    #[must_use]
    pub fn ring_is_whole(service: ServiceKey) -> Self {
        Self::Ended { service, flows: vec![RING_IS_WHOLE] }
    }

    /// The mark that all of a service's history has been sent: it ends a full history, and flows that
    /// were not named in it are no more.
    #[must_use]
    pub fn history_is_whole(service: ServiceKey) -> Self {
        Self::Ended { service, flows: vec![HISTORY_IS_WHOLE] }
    }

    /// The service that it is of.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        match self {
            Self::Ring { service, .. }
            | Self::Bases { service, .. }
            | Self::Pins { service, .. }
            | Self::Ended { service, .. } => *service,
        }
    }
}

/// A hash of the current owners of a ring's slots, in their order; unspecified is for none.
#[must_use]
pub fn digest(owners: impl Iterator<Item = BackendAddress>) -> u64 {
    use std::hash::Hasher as _;
    let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0, 0);
    for owner in owners {
        hasher.write(&lb_model::entry::address(owner.ip));
        if let Some(port) = owner.port {
            hasher.write(&port.get().to_be_bytes());
        }
    }
    hasher.finish()
}
