//! The one place that marks the types of maps as plain bytes for aya.

use crate::{abi, service_index, tx_errors};

macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        const _: () = {
            const fn is_plain<T: zerocopy::FromBytes + zerocopy::IntoBytes + Copy>() {}
            is_plain::<$t>();
        };
        // SAFETY: FromBytes, IntoBytes and Copy hold: any bytes are a valid value, none is padding.
        unsafe impl aya::Pod for $t {}
    )+};
}
pod!(
    abi::ServiceKeyV4,
    abi::ServiceKeyV6,
    abi::Service,
    abi::Backend,
    abi::FlowKey,
    abi::FlowValue,
    abi::FragmentKey,
    abi::Fragment,
    abi::ConnectionKey,
    abi::VipKey,
    abi::OwnMac,
    abi::PeerKey,
    abi::NatConnectionKey,
    abi::NatConnectionValue,
    abi::ReverseKey,
    service_index::Entry,
    tx_errors::Key,
);
