//! The comments of a capture: the decision for each saved packet.

use std::collections::BTreeMap;

use lb_common::{
    abi::LOOPBACK,
    capture::{FORWARDED, Head, NO_SERVICE, NO_SLOT, RETURNED, flags},
    verdict::{Drop, Pass, events},
};
use lb_model::backend_address::BackendAddress;

/// Annotates packets with the names for the ids in the maps, as they were when the capture began.
#[derive(Clone, Debug, Default)]
pub struct PacketAnnotator {
    /// Services by their ids.
    pub services: BTreeMap<u16, String>,
    /// Backends by their ids.
    pub backends: BTreeMap<u16, BackendAddress>,
    /// Interfaces with the program: index and name.
    pub interfaces: BTreeMap<u32, String>,
}

impl PacketAnnotator {
    /// The comment of a packet.
    #[must_use]
    pub(crate) fn comment(&self, head: &Head) -> String {
        let mut parts = vec![self.verdict(head)];
        if head.service != NO_SERVICE {
            let name = self.services.get(&head.service).cloned();
            parts.push(format!(
                "service {}",
                name.unwrap_or_else(|| format!("id {}", head.service))
            ));
        }
        if head.backend != 0 {
            parts.push(format!("backend {}", self.backend(head.backend)));
        }
        if head.slot != NO_SLOT {
            parts.push(match head.base {
                0 => format!("slot {}", head.slot),
                base => format!(
                    "slot {} in flux, current owner {}, base owner {}",
                    head.slot,
                    self.backend(head.current),
                    self.backend(base)
                ),
            });
        }
        parts.extend(notes(head).into_iter().map(str::to_owned));
        parts.join("; ")
    }

    fn verdict(&self, head: &Head) -> String {
        let after = head.flags & flags::AFTER != 0;
        let reason = u32::from(head.reason);
        if reason == RETURNED {
            return "verdict returned to the client".into();
        }
        if reason == FORWARDED {
            return match (after, head.action) {
                (true, 1) => format!("verdict dropped, {}", Drop::NoHeadroom.name()),
                _ if head.egress == LOOPBACK => "verdict delivered on this node".into(),
                _ => format!("verdict forwarded by {}", self.interface(head.egress)),
            };
        }
        if let Some(pass) = Pass::from_index(reason) {
            return format!("verdict passed, {}", pass.name());
        }
        let name = Drop::from_index(reason).map_or("for an unknown reason", Drop::name);
        format!("verdict dropped, {name}")
    }

    fn backend(&self, id: u16) -> String {
        match self.backends.get(&id) {
            Some(address) => address.to_string(),
            None if id == 0 => "none".into(),
            None => format!("id {id}"),
        }
    }

    /// The name of an interface.
    #[must_use]
    pub(crate) fn interface(&self, index: u32) -> String {
        self.interfaces.get(&index).cloned().unwrap_or_else(|| {
            let name = nix::net::if_::if_indextoname(index).ok();
            let name = name.and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| format!("interface {index}"))
        })
    }
}

fn notes(head: &Head) -> Vec<&'static str> {
    let flagged = [
        (flags::PIN_FOUND, "pin found"),
        (flags::PIN_MADE, "pin made"),
        (flags::PIN_REFUSED, "no room for a pin"),
        (flags::FLOW_FOUND, "flow known"),
    ];
    let happened = [
        (events::NEW_FLOW, "new flow"),
        (events::UNPINNED, "to the base owner, without a pin"),
        (events::SYN_RETRANSMISSION, "SYN sent again"),
        (events::SECOND_CHOICE, "second choice"),
        (events::DELIVERED, "forwarded by another balancer"),
    ];
    let flagged = flagged.into_iter().filter(|(bit, _)| head.flags & bit != 0);
    let happened = happened.into_iter().filter(|(bit, _)| u32::from(head.events) & bit != 0);
    flagged.map(|(_, word)| word).chain(happened.map(|(_, word)| word)).collect()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn a_comment_tells_verdict_service_backend_slot_and_pin() {
        let mut annotator = PacketAnnotator::default();
        annotator.services.insert(3, "web".into());
        annotator.backends.insert(1, [10, 0, 0, 11].into());
        annotator.backends.insert(2, [10, 0, 0, 12].into());
        annotator.interfaces.insert(7, "eth0".into());
        let blank = Head { service: NO_SERVICE, slot: NO_SLOT, ..Head::new_zeroed() };
        let forwarded = Head {
            reason: FORWARDED as u16,
            service: 3,
            backend: 1,
            slot: 99,
            current: 1,
            base: 2,
            egress: 7,
            flags: flags::PIN_MADE,
            events: events::NEW_FLOW as u16,
            ..blank
        };
        assert_eq!(
            annotator.comment(&forwarded),
            "verdict forwarded by eth0; service web; backend 10.0.0.11; slot 99 in flux, current \
             owner 10.0.0.11, base owner 10.0.0.12; pin made; new flow"
        );
        let passed = Head { reason: Pass::NotIp.index() as u16, ..blank };
        assert_eq!(annotator.comment(&passed), "verdict passed, not_ip");
        let dropped = Head { reason: Drop::NoBackend.index() as u16, service: 9, ..blank };
        assert_eq!(annotator.comment(&dropped), "verdict dropped, no_backend; service id 9");
    }
}
