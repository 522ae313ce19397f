//! Backends, flows and verdicts, as text.

use lb_api::status::{self, BackendState};
use lb_common::verdict::{Drop, Pass};
use lb_model::{flow::FlowRef, seen::Condition};

/// A backend's state, and its meaning for flows.
pub(super) fn state(backend: &status::Backend) -> String {
    let state = backend.state();
    let flows = match state {
        BackendState::TakenDown => ": its flows move",
        BackendState::Down if backend.condition == Condition::HardDown => ": its flows move",
        BackendState::Down
        | BackendState::Draining
        | BackendState::Removing
        | BackendState::Disabled => ": no new flows",
        _ => "",
    };
    format!("{}{flows}, weight {}", state.name(), backend.weight)
}

pub(super) const fn flow_word(flow: &FlowRef) -> &'static str {
    match flow {
        FlowRef::Pin(_) => "pin",
        FlowRef::Tracked(_) => "tracked flow",
        FlowRef::Connection(_) => "connection",
    }
}

pub(super) fn pass_text(reason: Pass) -> String {
    let text = match reason {
        Pass::NotAService => "no service: the node's own stack gets it",
        Pass::NotIp => "neither IPv4 nor IPv6: the node's own stack gets it",
        Pass::Protocol => "neither TCP, UDP nor an ICMP error: the node's own stack gets it",
        Pass::OtherHost => "the frame is for another MAC address than this node's",
        Pass::VlanDepth => "more than two VLAN tags",
        Pass::Truncated => "the frame ends before its headers do",
        Pass::Malformed => "a header contradicts itself",
        Pass::ExtensionHeaders => "IPv6 extension headers that can't be followed",
        Pass::Fragment => "a fragment of a packet for the node itself",
        Pass::ReturnUntranslated => {
            "a backend's answer that the kernel is to deal with: it has no hop left, no route, or is for the node itself"
        }
    };
    text.into()
}

pub(super) fn drop_text(reason: Drop) -> String {
    let text = match reason {
        Drop::NoBackend => "no backend can take it",
        Drop::FragmentWithoutFirst => "a fragment whose first fragment was not seen",
        Drop::TooBig => "too big for the way to the backend, and no error may be sent for it",
        Drop::TtlExceeded => "its time to live has run out, and no error may be sent for it",
        Drop::TooBigReplied | Drop::TtlExceededReplied => "its sender got an ICMP error",
        Drop::IcmpRateLimited => {
            "its sender would have to get an ICMP error, and no more may be sent (limits.icmp_errors)"
        }
        Drop::IcmpBadSource => {
            "its sender would have to get an ICMP error, and its source is no address that may get one"
        }
        Drop::NoHeadroom => "the frame has no room for the headers",
        Drop::Unpinnable => {
            "it would begin at a backend that takes no new flow, and no pin to another one can be made yet"
        }
        Drop::Hairpin => {
            "its client is this backend itself, which would take it for a packet of its own; it can connect to its own address"
        }
    };
    text.into()
}
