//! A node's state, as bytes: in two halves, so that a change of a router's state is one
//! packet however many services there are.
//!
//! A half has a generation, which rises with each change, and goes as fragments: each datagram of
//! it has its number, and their count. The receiver reports in its heartbeats the generations that
//! it has, and gets the fragments again until it does.

use std::num::NonZeroU8;

use lb_model::router::{Family, RouterKey, State};

use super::{
    FRAGMENT,
    bytes::{Malformed, Read, Reader, Writer},
};
use crate::{Fingerprint, NodeState, RouterState, ServiceFingerprint};

/// How many halves there are.
pub(crate) const HALVES: usize = 2;

/// The half with the routers.
pub(crate) const ROUTERS: u8 = 0;
/// The half with the fingerprint.
pub(crate) const FINGERPRINT: u8 = 1;

/// Most fragments of a half: over 25,000 services.
pub(crate) const FRAGMENTS: u16 = 1024;

/// Encodes a half.
#[must_use]
pub fn encode(half: u8, node_state: &NodeState) -> Vec<u8> {
    let mut bytes = Vec::new();
    if half == ROUTERS {
        bytes.put(&[u8::from(node_state.draining)]);
        bytes.put_varint(node_state.routers.len() as u64);
        for (key, router) in &node_state.routers {
            put_router_key(&mut bytes, key);
            put_router(&mut bytes, router);
        }
    } else {
        bytes.put(&node_state.fingerprint.seed.to_be_bytes());
        bytes.put_varint(node_state.fingerprint.services.len() as u64);
        for (key, fingerprint) in &node_state.fingerprint.services {
            bytes.put_service(key);
            bytes.put(&fingerprint.settings.to_be_bytes());
            bytes.put(&fingerprint.backends.to_be_bytes());
            bytes.put(&fingerprint.shares.to_be_bytes());
        }
    }
    bytes
}

/// Reads a half into `node_state`.
///
/// # Errors
///
/// The bytes are no such half; `node_state` may have been changed in part.
pub fn decode(half: u8, bytes: &[u8], node_state: &mut NodeState) -> Read<()> {
    let mut reader = Reader(bytes);
    match half {
        ROUTERS => {
            node_state.draining = reader.bool()?;
            node_state.routers.clear();
            for _ in 0..reader.varint32()? {
                let key = router_key(&mut reader)?;
                node_state.routers.insert(key, router(&mut reader)?);
            }
        }
        FINGERPRINT => {
            node_state.fingerprint = Fingerprint { seed: reader.u64()?, ..Fingerprint::default() };
            for _ in 0..reader.varint32()? {
                let key = reader.service()?;
                let (settings, backends) = (reader.u64()?, reader.u64()?);
                let fingerprint = ServiceFingerprint { settings, backends, shares: reader.u64()? };
                node_state.fingerprint.services.insert(key, fingerprint);
            }
        }
        _ => return Err(Malformed("no such half")),
    }
    reader.end()
}

/// The fragments of a half, in order; there is at least one.
pub fn fragments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    bytes.chunks(FRAGMENT).chain(empty)
}

/// Appends a router's key.
pub(crate) fn put_router_key(bytes: &mut Vec<u8>, key: &RouterKey) {
    let family = match key.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    bytes.put(&[family, key.vrid.get()]);
}

/// Reads what [`put_router_key`] has written.
///
/// # Errors
///
/// The bytes are none.
pub(crate) fn router_key(reader: &mut Reader<'_>) -> Read<RouterKey> {
    let family = match reader.u8()? {
        4 => Family::V4,
        6 => Family::V6,
        _ => return Err(Malformed("a router is of no family")),
    };
    let vrid = NonZeroU8::new(reader.u8()?).ok_or(Malformed("a router has VRID 0"))?;
    Ok(RouterKey { family, vrid })
}

fn put_router(bytes: &mut Vec<u8>, router: &RouterState) {
    let state = match router.state {
        State::Initialize => 0,
        State::Fault => 1,
        State::Backup => 2,
        State::Active => 3,
    };
    let family = router.source.map_or(0, |source| if source.is_ipv6() { 6 } else { 4 });
    let (wants, lowered) = (u8::from(router.wants), u8::from(router.lowered));
    bytes.put(&[state, router.priority, wants, lowered, family]);
    if let Some(source) = router.source {
        bytes.put_address(source);
    }
    bytes.put(&router.fingerprint.to_be_bytes());
    bytes.put(&router.interval_centis.to_be_bytes());
    bytes.put(&router.addresses.to_be_bytes());
}

fn router(reader: &mut Reader<'_>) -> Read<RouterState> {
    Ok(RouterState {
        state: match reader.u8()? {
            0 => State::Initialize,
            1 => State::Fault,
            2 => State::Backup,
            3 => State::Active,
            _ => return Err(Malformed("a router is in no state")),
        },
        priority: reader.u8()?,
        wants: reader.bool()?,
        lowered: reader.bool()?,
        source: match reader.u8()? {
            0 => None,
            4 => Some(reader.address(false)?),
            6 => Some(reader.address(true)?),
            _ => return Err(Malformed("a source is of no family")),
        },
        fingerprint: reader.u64()?,
        interval_centis: reader.u16()?,
        addresses: reader.u64()?,
    })
}
