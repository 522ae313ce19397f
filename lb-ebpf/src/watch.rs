//! The maps, and a note of what was found in them for the packet at hand.

use core::ops::Deref;

use lb_common::{
    abi::{
        Backend, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, PeerKey,
        ReverseKey, Service, ServiceKeyV4, ServiceKeyV6, Slot, TokenBucket, Unanswered, VipKey,
    },
    capture::{NO_SLOT, flags},
    shared::{SharedU32, SharedU64},
    tables::Tables,
};

use crate::{
    maps::{Maps, global_in_flux},
    save::with_head,
};

/// [`Maps`] whose answers are noted.
pub struct Watched;

#[inline(always)]
fn note_service(
    found: Option<impl Deref<Target = Service>>,
) -> Option<impl Deref<Target = Service>> {
    if let Some(service) = &found {
        let id = service.id;
        with_head(|head| head.service = id);
    }
    found
}

#[inline(always)]
fn note_flow(found: Option<impl Deref<Target = Flow>>) -> Option<impl Deref<Target = Flow>> {
    if found.is_some() {
        with_head(|head| head.flags |= flags::FLOW_FOUND);
    }
    found
}

global_in_flux!(in_flux, in_flux_watched, &Watched);

impl Tables for Watched {
    type Backend<'a> = &'a Backend;

    #[inline(always)]
    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        note_service(Maps.exact_service_v4(key))
    }

    #[inline(always)]
    fn has_wide(&self) -> bool {
        Maps.has_wide()
    }

    #[inline(always)]
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        note_service(Maps.service_v4(key))
    }

    #[inline(always)]
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        note_service(Maps.service_v6(key))
    }

    #[inline(always)]
    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>> {
        Maps.service(id)
    }

    #[inline(always)]
    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        let found = Maps.slot(service, index);
        if let Some(slot) = &found {
            let owners = slot.owners();
            with_head(|head| {
                // The flow's own, not those that are searched for a second choice.
                if head.slot == NO_SLOT {
                    head.slot = index;
                    head.current = owners.current;
                    head.base = owners.base;
                }
            });
        }
        found
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<&Backend> {
        Maps.backend(id)
    }

    #[inline(always)]
    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        let found = Maps.pin(key);
        if found.is_some() {
            with_head(|head| head.flags |= flags::PIN_FOUND);
        }
        found
    }

    #[inline(always)]
    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        let made = Maps.insert_pin(key, value);
        let flag = if made { flags::PIN_MADE } else { flags::PIN_REFUSED };
        with_head(|head| head.flags |= flag);
        made
    }

    #[inline(always)]
    fn note_pin(&self, key: &FlowKey) {
        Maps.note_pin(key);
    }

    #[inline(always)]
    fn pin_lease(&self) -> u64 {
        Maps.pin_lease()
    }

    #[inline(always)]
    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        note_flow(Maps.tracked(key))
    }

    #[inline(always)]
    fn insert_tracked(&self, key: &FlowKey, value: FlowValue) {
        Maps.insert_tracked(key, value);
    }

    #[inline(always)]
    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>> {
        note_flow(Maps.connection(key))
    }

    #[inline(always)]
    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue) {
        Maps.insert_connection(key, value);
    }

    #[inline(always)]
    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>> {
        Maps.handshake(hash)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        Maps.fragment(key)
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, value: Fragment) {
        Maps.insert_fragment(key, value);
    }

    #[inline(always)]
    fn is_vip(&self, key: &VipKey) -> bool {
        Maps.is_vip(key)
    }

    #[inline(always)]
    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        Maps.own_mac(index)
    }

    #[inline(always)]
    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        Maps.delivered_to(key)
    }

    #[inline(always)]
    fn has_nat(&self) -> bool {
        Maps.has_nat()
    }

    #[inline(always)]
    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16> {
        Maps.reverse_nat(key)
    }

    #[inline(always)]
    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>> {
        Maps.syn_budget(service)
    }

    #[inline(always)]
    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>> {
        Maps.icmp_budget()
    }

    #[inline(always)]
    fn too_big_budget(&self, source: u64) -> Option<impl Deref<Target = TokenBucket>> {
        Maps.too_big_budget(source)
    }

    #[inline(always)]
    fn icmp_rate(&self) -> u32 {
        Maps.icmp_rate()
    }

    #[inline(always)]
    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>> {
        Maps.syn_seen(index)
    }

    #[inline(always)]
    fn unanswered(&self, id: u16) -> Unanswered {
        Maps.unanswered(id)
    }

    #[inline(always)]
    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
        in_flux(service, key, slot, what)
    }

    #[inline(always)]
    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
        Maps.second_choice(service, slots, hash, first, nanos)
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        Maps.now_nanos()
    }
}
