//! Frames that were dropped after the program had sent them: in the status, and as a cause to ask at once. No I/O.

use std::collections::BTreeMap;

use lb_common::tx_errors::Reason;

use crate::{
    datapath::TxError,
    status::{Status, TxErrorStatus},
};

/// How many frames each interface has not taken.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<u32, u64>);

impl Seen {
    /// The indexes of interfaces that have lost frames since the last call.
    pub(super) fn grown(&mut self, errors: &[TxError]) -> Vec<u32> {
        let mut sums = BTreeMap::new();
        for error in errors {
            *sums.entry(error.egress).or_default() += error.frames;
        }
        let before = std::mem::replace(&mut self.0, sums);
        let is_more = |(egress, frames): (&u32, &u64)| {
            (before.get(egress).is_none_or(|before| before < frames)).then_some(*egress)
        };
        self.0.iter().filter_map(is_more).collect()
    }
}

/// Adds the errors of the status's interfaces to it. `names` has names of other interfaces by index.
pub(super) fn tell(errors: &[TxError], names: &BTreeMap<u32, String>, status: &mut Status) {
    for reason in Reason::ALL {
        status.dropped.entry(reason.name().into()).or_default();
    }
    for error in errors {
        let interfaces = &status.interfaces;
        let own = |index| interfaces.iter().find(|one| one.ifindex == index).map(|one| &one.name);
        let Some(interface) = own(error.ingress).cloned() else { continue };
        let egress = own(error.egress).or(names.get(&error.egress)).cloned();
        let told = TxErrorStatus {
            interface,
            egress: egress.unwrap_or_else(|| format!("interface {}", error.egress)),
            reason: error.reason.name().into(),
            why: why(error.errno),
            frames: error.frames,
        };
        let total = status.dropped.entry(told.reason.clone()).or_default();
        total.packets = total.packets.wrapping_add(told.frames);
        status.tx_errors.push(told);
    }
    status.tx_errors.sort_by(|a, b| (&a.interface, &a.egress).cmp(&(&b.interface, &b.egress)));
}

/// What an error means of the interface that was to transmit (`xdp_ok_fwd_dev` and `ndo_xdp_xmit` in the kernel).
fn why(errno: i32) -> String {
    match errno {
        0 | libc::ENOSPC | libc::EBUSY => "its queue was full".into(),
        libc::EOPNOTSUPP => "it takes no frames from XDP".into(),
        libc::ENXIO => "it is not ready for XDP: the other end of a veth needs an XDP program, a \
                        driver its queues"
            .into(),
        libc::ENETDOWN => "it is down".into(),
        libc::EMSGSIZE => "they are larger than its MTU".into(),
        libc::EINVAL => "there is no such interface".into(),
        other => std::io::Error::from_raw_os_error(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Count, Interface};

    fn error(ingress: u32, egress: u32, reason: Reason, frames: u64) -> TxError {
        TxError { ingress, egress, reason, errno: libc::ENXIO, frames }
    }

    #[test]
    fn errors_of_own_interfaces_are_drops_with_a_reason() {
        let mut status = Status::default();
        for (ifindex, name) in [(2, "eth0"), (3, "eth1")] {
            let (name, mode) = (name.into(), "native".into());
            status.interfaces.push(Interface { name, ifindex, mode, attached: true });
        }
        let names = BTreeMap::from([(7, "eth7".to_owned())]);
        let errors = [
            error(2, 7, Reason::Redirect, 5),
            error(2, 9, Reason::Redirect, 1),
            error(3, 3, Reason::Tx, 4),
            error(8, 7, Reason::Redirect, 100),
        ];
        tell(&errors, &names, &mut status);
        let packets = |packets| Count { packets, bytes: 0 };
        let dropped = [("redirect_failed", packets(6)), ("tx_failed", packets(4))];
        assert_eq!(status.dropped, dropped.map(|(name, count)| (name.to_owned(), count)).into());
        let told: Vec<_> =
            status.tx_errors.iter().map(|one| (&*one.interface, &*one.egress)).collect();
        assert_eq!(told, [("eth0", "eth7"), ("eth0", "interface 9"), ("eth1", "eth1")]);
        assert!(status.tx_errors.iter().all(|one| one.why.contains("veth")));
    }

    #[test]
    fn only_an_interface_that_loses_more_is_asked() {
        let mut seen = Seen::default();
        let at = |a, b| [error(2, 7, Reason::Redirect, a), error(3, 3, Reason::Tx, b)];
        assert!(seen.grown(&[]).is_empty());
        assert_eq!(seen.grown(&at(1, 1)), [3, 7]);
        assert!(seen.grown(&at(1, 1)).is_empty());
        assert_eq!(seen.grown(&at(2, 1)), [7]);
    }
}
