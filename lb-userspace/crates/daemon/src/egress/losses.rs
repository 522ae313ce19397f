//! Frames that were dropped after the program had sent them: in the status, and as a cause to probe at once. No I/O.
//!
//! An interface that is gone for five minutes and has lost nothing meanwhile is forgotten: its name, and its
//! entries in the map. Its frames stay in the sum of the reason, which is a counter.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_api::status::{Status, TxErrorStatus};
use lb_common::tx_errors::Reason;
use lb_datapath::TxError;

/// An interface is forgotten when it is gone and has lost nothing for so long.
const KEPT: Duration = Duration::from_mins(5);

/// Interfaces that frames were to leave by, and the losses of interfaces that are gone.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Names by index: an interface that loses frames may be no exit any more.
    names: BTreeMap<u32, String>,
    /// Indexes that ever were the balancer's own.
    own: BTreeSet<u32>,
    /// Since when interfaces are gone, and have lost nothing.
    gone: BTreeMap<u32, Instant>,
    /// Frames that forgotten interfaces had lost. They stay in the sums, which are counters and must not fall.
    lost: BTreeMap<&'static str, u64>,
}

impl Memory {
    /// Takes names of exits.
    pub(super) fn add_names(&mut self, names: impl Iterator<Item = (u32, String)>) {
        self.names.extend(names);
    }

    /// Forgets interfaces that are not among `there` any more, by index, of which `own` are the balancer's.
    /// The indexes of those of which the counts can go.
    pub(super) fn forget(
        &mut self,
        errors: &[TxError],
        grown: &[u32],
        there: &BTreeSet<u32>,
        own: &BTreeSet<u32>,
        now: Instant,
    ) -> BTreeSet<u32> {
        self.own.extend(own);
        let counted = errors.iter().flat_map(|error| [error.ingress, error.egress]);
        let known: BTreeSet<u32> =
            counted.chain(self.names.keys().copied()).chain(self.own.iter().copied()).collect();
        self.gone.retain(|index, _| known.contains(index) && !there.contains(index));
        for index in known.difference(there) {
            let since = self.gone.entry(*index).or_insert(now);
            if grown.contains(index) {
                *since = now;
            }
        }
        let is_over = |(index, since): (&u32, &Instant)| {
            (now.saturating_duration_since(*since) >= KEPT).then_some(*index)
        };
        let over: BTreeSet<u32> = self.gone.iter().filter_map(is_over).collect();
        self.names.retain(|index, _| !over.contains(index));
        over
    }

    /// The counts of these interfaces are gone: these errors, which the sums keep.
    pub(super) fn fold(&mut self, forgotten: &BTreeSet<u32>, errors: &[TxError]) {
        for error in errors.iter().filter(|error| self.own.contains(&error.ingress)) {
            *self.lost.entry(error.reason.name()).or_default() += error.frames;
        }
        self.own.retain(|index| !forgotten.contains(index));
        self.gone.retain(|index, _| !forgotten.contains(index));
    }
}

/// The number of frames that each interface has lost, by its index.
#[derive(Debug, Default)]
pub(super) struct LossCounters(BTreeMap<u32, u64>);

impl LossCounters {
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

/// Adds the errors of the balancer's interfaces to the status. In the sum of a reason are those of interfaces that are
/// gone, too.
pub(super) fn report(errors: &[TxError], memory: &Memory, status: &mut Status) {
    let names = &memory.names;
    for reason in Reason::ALL {
        let total = status.dropped.entry(reason.name().into()).or_default();
        total.packets =
            total.packets.wrapping_add(memory.lost.get(reason.name()).copied().unwrap_or(0));
    }
    for error in errors {
        let interfaces = &status.interfaces;
        let own = |index| interfaces.iter().find(|one| one.ifindex == index).map(|one| &one.name);
        let Some(interface) = own(error.ingress).cloned() else {
            // One that was made anew has another index.
            if memory.own.contains(&error.ingress) {
                let total = status.dropped.entry(error.reason.name().into()).or_default();
                total.packets = total.packets.wrapping_add(error.frames);
            }
            continue;
        };
        let egress = own(error.egress).or(names.get(&error.egress)).cloned();
        let error_status = TxErrorStatus {
            interface,
            egress: egress.unwrap_or_else(|| format!("interface {}", error.egress)),
            reason: error.reason.name().into(),
            why: why(error.errno),
            frames: error.frames,
        };
        let total = status.dropped.entry(error_status.reason.clone()).or_default();
        total.packets = total.packets.wrapping_add(error_status.frames);
        status.tx_errors.push(error_status);
    }
    status.tx_errors.sort_by(|a, b| (&a.interface, &a.egress).cmp(&(&b.interface, &b.egress)));
}

/// The cause of an error at the transmitting interface (`xdp_ok_fwd_dev` and `ndo_xdp_xmit` in the kernel).
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
    use lb_api::status::{Count, Interface};

    use super::*;

    fn error(ingress: u32, egress: u32, reason: Reason, frames: u64) -> TxError {
        TxError { ingress, egress, reason, errno: libc::ENXIO, frames }
    }

    #[test]
    fn errors_of_own_interfaces_are_drops_with_a_reason() {
        let mut status = Status::default();
        for (ifindex, name) in [(2, "eth0"), (3, "eth1")] {
            let (name, mode) = (name.into(), "native".into());
            status.interfaces.push(Interface {
                name,
                ifindex,
                mode,
                attached: true,
                others: Vec::new(),
            });
        }
        let mut memory = Memory::default();
        memory.add_names([(7, "eth7".to_owned())].into_iter());
        let errors = [
            error(2, 7, Reason::Redirect, 5),
            error(2, 9, Reason::Redirect, 1),
            error(3, 3, Reason::Tx, 4),
            error(8, 7, Reason::Redirect, 100),
        ];
        report(&errors, &memory, &mut status);
        let packets = |packets| Count { packets, bytes: 0 };
        let dropped = [("redirect_failed", packets(6)), ("tx_failed", packets(4))];
        assert_eq!(status.dropped, dropped.map(|(name, count)| (name.to_owned(), count)).into());
        let error_status: Vec<_> =
            status.tx_errors.iter().map(|one| (&*one.interface, &*one.egress)).collect();
        assert_eq!(error_status, [("eth0", "eth7"), ("eth0", "interface 9"), ("eth1", "eth1")]);
        assert!(status.tx_errors.iter().all(|one| one.why.contains("veth")));
    }

    #[test]
    fn an_interface_that_is_gone_is_forgotten_after_minutes_and_its_frames_stay_in_the_sum() {
        let mut memory = Memory::default();
        let own = BTreeSet::from([2]);
        let (start, there) = (Instant::now(), BTreeSet::from([1, 2, 7]));
        memory.add_names([(7, "eth7".to_owned())].into_iter());
        // Index 8 is another program's.
        let errors = [error(2, 7, Reason::Redirect, 5), error(8, 7, Reason::Redirect, 100)];
        let left = BTreeSet::from([1, 2]);
        let mut at = |after: Duration, there: &BTreeSet<u32>, grown: &[u32]| {
            memory.forget(&errors, grown, there, &own, start + after)
        };
        let second = Duration::from_secs(1);
        assert!(at(Duration::ZERO, &there, &[]).is_empty());
        assert!(at(KEPT, &left, &[]).contains(&8), "it was never there");
        assert!(at(KEPT + second, &left, &[7]).contains(&8));
        assert!(!at(2 * KEPT, &left, &[]).contains(&7), "it has lost frames since");
        assert!(at(2 * KEPT + second, &left, &[]).contains(&7));
        let gone = BTreeSet::from([7, 8]);
        assert_eq!(at(2 * KEPT + second, &left, &[]), gone);
        memory.fold(&gone, &errors);
        assert!(memory.names.is_empty() && memory.gone.is_empty());
        let mut status = Status::default();
        report(&[], &memory, &mut status);
        assert_eq!(status.dropped["redirect_failed"].packets, 5);
        assert!(status.tx_errors.is_empty());
    }

    #[test]
    fn frames_of_an_own_interface_that_was_made_anew_stay_in_the_sum() {
        let mut memory = Memory::default();
        let (own, there) = (BTreeSet::from([2]), BTreeSet::from([2]));
        let errors = [error(2, 2, Reason::Tx, 5)];
        memory.forget(&errors, &[], &there, &own, Instant::now());
        let mut status = Status::default();
        let (name, mode) = ("eth0".into(), "native".into());
        status.interfaces.push(Interface {
            name,
            ifindex: 9,
            mode,
            attached: true,
            others: Vec::new(),
        });
        report(&errors, &memory, &mut status);
        assert_eq!(status.dropped["tx_failed"].packets, 5);
        assert!(status.tx_errors.is_empty());
    }

    #[test]
    fn only_an_interface_that_loses_more_is_asked() {
        let mut loss_counters = LossCounters::default();
        let at = |a, b| [error(2, 7, Reason::Redirect, a), error(3, 3, Reason::Tx, b)];
        assert!(loss_counters.grown(&[]).is_empty());
        assert_eq!(loss_counters.grown(&at(1, 1)), [3, 7]);
        assert!(loss_counters.grown(&at(1, 1)).is_empty());
        assert_eq!(loss_counters.grown(&at(2, 1)), [7]);
    }
}
