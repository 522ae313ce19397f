//! Where the tuples of a flood fall. A sender with the seed can find tuples that meet in one slot; one that
//! guesses a seed finds tuples that meet in a slot under the guess, and nowhere else.

use std::net::{IpAddr, Ipv4Addr};

use kit::{flood, reports::attack::Spread};
use lb_common::hash::{FlowKeys, flow_hash_v4, slot_of};
use lb_model::maglev::{self, Member};

use crate::harness::SLOTS;

/// Frames of a flood of new tuples.
const FRAMES: u64 = 1_048_576;
/// Tuples that are aimed. To find one takes as many tries as there are slots.
const AIMED: usize = 4_096;
/// Backends of the service.
const BACKENDS: u8 = 3;
/// The seed of the balancer, and an attacker's guess.
const SEED: [u8; 16] = *b"the node's seed.";
const GUESS: [u8; 16] = *b"what it might be";

/// A tuple: the client's address and port.
type Tuple = (Ipv4Addr, u16);

/// Counts four floods.
pub fn measure() -> Vec<Spread> {
    let keys = keys(&SEED);
    let new = (0..FRAMES).map(flood::stranger);
    let aimed = aimed(&self::keys(&GUESS), SLOTS, AIMED);
    let with_seed = self::aimed(&keys, SLOTS, AIMED);
    let same = std::iter::repeat_n(flood::stranger(0), FRAMES as usize);
    vec![
        spread("new tuples", &keys, SLOTS, new),
        spread("aimed at one slot, seed guessed", &keys, SLOTS, aimed.into_iter()),
        spread("aimed at one slot, seed known", &keys, SLOTS, with_seed.into_iter()),
        spread("one tuple", &keys, SLOTS, same),
    ]
}

fn keys(seed: &[u8; 16]) -> FlowKeys {
    FlowKeys::derive(seed, b"10.0.0.100:80/tcp")
}

fn slot(keys: &FlowKeys, slots: u32, (address, port): Tuple) -> u32 {
    slot_of(flow_hash_v4(&keys.0, address.octets(), port.to_be_bytes(), [0; 2]), slots)
}

/// Tuples that meet in one slot under these keys.
fn aimed(keys: &FlowKeys, slots: u32, count: usize) -> Vec<Tuple> {
    let goal = slot(keys, slots, flood::stranger(0));
    // In the order of addresses and ports, as a sender would look for them.
    let tuples = (0..=u32::MAX >> 15).flat_map(|n| {
        let address = Ipv4Addr::from(0xc612_0000 | n);
        (1_024..=u16::MAX).map(move |port| (address, port))
    });
    tuples.filter(|&tuple| slot(keys, slots, tuple) == goal).take(count).collect()
}

/// How even these tuples fall.
fn spread(flood: &str, keys: &FlowKeys, slots: u32, tuples: impl Iterator<Item = Tuple>) -> Spread {
    let members: Vec<_> = (1..=BACKENDS)
        .map(|n| Member { address: IpAddr::from([10, 0, 0, 10 + n]).into(), weight: 1 })
        .collect();
    let owners = maglev::table(&members, &SEED, slots);
    let mut counts = vec![0_u32; slots as usize];
    let mut backends = [0_u64; BACKENDS as usize];
    let mut frames = 0;
    for tuple in tuples {
        let slot = slot(keys, slots, tuple) as usize;
        counts[slot] += 1;
        backends[usize::from(owners[slot])] += 1;
        frames += 1;
    }
    let busiest = backends.into_iter().max().unwrap_or_default();
    Spread {
        flood: flood.to_owned(),
        frames,
        slots,
        slots_hit: counts.iter().filter(|&&count| count > 0).count(),
        mean_frames: frames as f64 / f64::from(slots),
        busiest_slot_frames: counts.into_iter().max().unwrap_or_default(),
        busiest_slot_frames_by_lot: by_lot(frames, slots),
        busiest_backend_share: busiest as f64 / frames.max(1) as f64,
    }
}

/// The most frames of a slot, if each frame's slot is drawn by lot: a xorshift generator (Marsaglia,
/// 2003) that knows nothing of tuples.
fn by_lot(frames: u64, slots: u32) -> u32 {
    let mut counts = vec![0_u32; slots as usize];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..frames {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        counts[slot_of(state, slots) as usize] += 1;
    }
    counts.into_iter().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: u32 = 1_009;

    #[test]
    fn who_guesses_the_seed_hits_no_slot_more_than_by_lot() {
        let tuples = aimed(&keys(&GUESS), FEW, 4_000);
        let at_home = spread("", &keys(&GUESS), FEW, tuples.iter().copied());
        assert_eq!((at_home.slots_hit, at_home.busiest_slot_frames), (1, 4_000));
        let there = spread("", &keys(&SEED), FEW, tuples.into_iter());
        assert!(there.busiest_slot_frames < 2 * there.busiest_slot_frames_by_lot, "{there:?}");
        assert!(there.slots_hit > 900 && there.busiest_backend_share < 0.4, "{there:?}");
    }

    #[test]
    fn one_tuple_is_in_one_slot() {
        let same = spread("", &keys(&SEED), FEW, std::iter::repeat_n(flood::stranger(7), 50));
        assert_eq!((same.frames, same.slots_hit, same.busiest_slot_frames), (50, 1, 50));
        assert_eq!(same.busiest_backend_share, 1.0);
    }
}
