//! The fast path decides as the slow path does.

use lb_common::{
    abi::{Owners, backend_flags, stamp},
    shared::SharedU32,
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FIN, Family, RST, SYN},
    model::{BACKENDS, Model, START, WEB},
};

/// A world in some state: its slots have one owner or two, pins or none; a backend can't be sent to,
/// another is suspect.
fn world(state: &[u8; 8]) -> Model {
    let model = Model::new(8);
    for (slot, byte) in model.rings[&1].iter().zip(state) {
        let current = u16::from(byte & 7);
        let base = if byte & 8 == 0 { 0 } else { 1 + u16::from(byte >> 4 & 7) };
        slot.set_owners(Owners { current, base });
        slot.set_stamps(0, if byte & 128 == 0 { 0 } else { stamp(START) });
    }
    model.set_flags(2, 0);
    model.set_flags(3, backend_flags::USABLE | backend_flags::SUSPECT);
    model.set_flags(4, backend_flags::USABLE | backend_flags::TUNNEL);
    model.pin_capacity.set(3);
    model
}

/// All that a packet leaves behind.
fn traces(model: &Model) -> impl PartialEq + std::fmt::Debug + use<> {
    let slots: Vec<_> = model.rings[&1]
        .iter()
        .map(|slot| (slot.owners(), slot.unpinned(), slot.pinned()))
        .collect();
    let mut pins: Vec<_> = model
        .pins
        .borrow()
        .iter()
        .map(|(key, flow)| (key.source, key.port.get(), flow.get()))
        .collect();
    pins.sort_by_key(|(source, port, _)| (*source, *port));
    let mut seen: Vec<_> =
        model.seen.borrow().iter().map(|(place, mark)| (*place, SharedU32::load(mark))).collect();
    seen.sort_unstable();
    let counters: Vec<_> = model.counters.iter().map(|counter| format!("{counter:?}")).collect();
    let budget = &model.budgets[&1];
    let budget = (budget.tokens.load(), budget.refilled.load());
    (slots, pins, seen, counters, budget, model.notes.borrow().clone())
}

fn frame((client, flags, ttl, len, port): (u8, u8, u8, usize, bool)) -> Vec<u8> {
    let flags = [SYN, ACK, ACK, ACK | FIN, RST, SYN | ACK, 0][usize::from(flags) % 7];
    let port = if port { WEB } else { WEB + 1 };
    Client::new(client.into()).tcp_with(Family::V4, port, flags, ttl, &vec![0x5a; len])
}

proptest! {
    #[test]
    fn the_fast_path_decides_and_writes_what_the_slow_path_does(
        state: [u8; 8],
        frames in prop::collection::vec(
            (0_u8..6, any::<u8>(), 0_u8..4, prop_oneof![Just(0_usize), 1_usize..1600], prop::bool::weighted(0.9)),
            1..40,
        ),
        // Where a frame is changed, and how often.
        changes in prop::collection::vec((0_usize..60, any::<u8>(), prop::bool::weighted(0.2)), 40),
        wait in 0_u32..3,
    ) {
        let (slow, fast) = (world(&state), world(&state));
        let (mut taken, mut changed) = (0, 0);
        for (frame_of, (at, value, change)) in frames.iter().zip(changes) {
            let mut bytes = frame(*frame_of);
            if change && at < bytes.len() {
                bytes[at] = value;
            } else if change {
                bytes.truncate(at);
            }
            changed += usize::from(change);
            slow.pass_seconds(wait);
            fast.pass_seconds(wait);
            let expected = slow.decide(&bytes);
            let decided = match fast.try_decide(&bytes) {
                Some(decided) => {
                    taken += 1;
                    decided
                }
                None => fast.decide(&bytes),
            };
            prop_assert_eq!(expected, decided, "{:?}", bytes);
            prop_assert_eq!(traces(&slow), traces(&fast), "{:?}", bytes);
        }
        // What nobody has changed is, whatever port it is for.
        prop_assert!(taken >= frames.len() - changed, "{} of {}", taken, frames.len());
    }
}

#[test]
fn every_forwarded_segment_without_options_takes_the_fast_path() {
    let model = Model::new(1_009);
    for number in 0..u32::from(BACKENDS) * 100 {
        let client = Client::new(number);
        for flags in [SYN, ACK, ACK | FIN, RST] {
            let frame = client.tcp(Family::V4, WEB, flags);
            assert!(model.try_decide(&frame).is_some(), "{number} {flags}");
        }
    }
}
