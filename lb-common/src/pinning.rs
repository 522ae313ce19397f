//! Whether a flow may be pinned: the state of its backend, the lease, and the SYN budget.

use crate::{
    abi::{Service, backend_flags, service_flags},
    tables::Tables,
    token_bucket::take,
};

#[inline(always)]
pub(crate) fn flags_of_backend<T: Tables + ?Sized>(tables: &T, id: u16) -> u8 {
    match tables.backend(id) {
        Some(backend) => backend.flags,
        None => 0,
    }
}

#[inline(always)]
pub(crate) fn is_usable<T: Tables + ?Sized>(tables: &T, id: u16) -> bool {
    flags_of_backend(tables, id) & backend_flags::USABLE != 0
}

/// A backend that can be sent to, and takes no new flow.
pub(crate) const REFUSES: u8 = backend_flags::USABLE | backend_flags::SOFT_DOWN;

/// Whether a new flow may be given a pin, or the pin of an older one, if it goes to a backend with
/// these flags otherwise. A backend that is soft down would refuse the flow on every node, so a peer need
/// not know of the pin in time: if this node dies before the peer has it, the peer sends the flow to the
/// backend that refuses it, as this node would have without a pin. While pinning is paused, no pin is made: a
/// peer is about to take over, and gets the client's next SYN.
#[inline(always)]
pub(crate) fn may_pin<T: Tables + ?Sized>(tables: &T, service: &Service, holder: u8) -> bool {
    service.flags & service_flags::PINNING_PAUSED == 0
        && (holder & REFUSES == REFUSES || is_leased(tables))
}

/// Whether a service's pins may be made or renamed. They may not when the daemon has paused pinning or has
/// ceased to renew its lease: then no daemon would export them to a peer, which must find each flow
/// when it takes over.
#[inline(always)]
pub(crate) fn may_change_pins<T: Tables + ?Sized>(tables: &T, service: &Service) -> bool {
    service.flags & service_flags::PINNING_PAUSED == 0 && is_leased(tables)
}

#[inline(always)]
fn is_leased<T: Tables + ?Sized>(tables: &T) -> bool {
    let until = tables.pin_lease();
    until == 0 || tables.now_nanos() <= until
}

/// Whether another flow of a service may be pinned; takes a token of its budget if so.
#[inline(always)]
pub(crate) fn affords_pin<T: Tables + ?Sized>(tables: &T, service: &Service) -> bool {
    may_change_pins(tables, service) && takes_token(tables, service)
}

/// Whether there was a token left in a service's budget of pins on this CPU.
#[inline(always)]
pub(crate) fn takes_token<T: Tables + ?Sized>(tables: &T, service: &Service) -> bool {
    match tables.syn_budget(service.id) {
        Some(budget) => {
            let share = match budget.share.load() {
                0 => service.syn_budget,
                share => share,
            };
            take(&budget, share, share, tables.now_nanos())
        }
        None => false,
    }
}
