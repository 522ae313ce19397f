//! The flow hash: in range, even, keyed, and the same in every version.

use lb_common::hash::{FlowKeys, entropy_of, flow_hash_v4, flow_hash_v6, slot_of};
use proptest::prelude::*;

const SEED: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn v4(keys: &FlowKeys, address: u32, port: u16) -> u64 {
    flow_hash_v4(&keys.0, address.to_be_bytes(), port.to_be_bytes(), [0; 2])
}

fn v6(keys: &FlowKeys, address: u128, port: u16) -> u64 {
    flow_hash_v6(&keys.0, &address.to_be_bytes(), port.to_be_bytes(), [0; 2])
}

/// Chi-square of the counts against an even distribution, in standard deviations from its mean.
fn unevenness(counts: &[u32]) -> f64 {
    let total: u32 = counts.iter().sum();
    let expected = f64::from(total) / counts.len() as f64;
    let chi: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    let freedom = (counts.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// Counts the slots of hashes in a ring of `slots` slots.
fn count(slots: u32, hashes: impl Iterator<Item = u64>) -> Vec<u32> {
    let mut counts = vec![0; slots as usize];
    hashes.for_each(|hash| counts[slot_of(hash, slots) as usize] += 1);
    counts
}

/// Claims that the slots are even under several seeds. A keyed hash is even on average over its
/// keys: some seed may be unlucky, all of them can't be.
fn assert_even(name: &str, hashes: impl Fn(&FlowKeys) -> Vec<u64>) {
    for slots in [61, 1021] {
        let mut off = Vec::new();
        for seed in 0..8 {
            let keys = FlowKeys::derive(&[seed; 16], b"web");
            off.push(unevenness(&count(slots, hashes(&keys).into_iter())).abs());
        }
        off.sort_by(f64::total_cmp);
        // Eight standard normal draws: the median is near 0.7, the largest rarely over 3.
        assert!(off[4] < 2.0 && off[7] < 6.0, "{name}, {slots} slots: {off:?}");
    }
}

#[test]
fn derived_keys_are_the_same_in_every_version() {
    let keys = FlowKeys::derive(&SEED, b"web");
    assert_eq!(keys.0, GOLDEN_KEYS);
    assert_eq!(v4(&keys, 0xc633_6401, 40_000), GOLDEN_V4);
    assert_eq!(v6(&keys, 0x2001_0db8_0000_0000_0000_0000_0000_0001, 40_000), GOLDEN_V6);
    assert_eq!(slot_of(GOLDEN_V4, 65_537), GOLDEN_SLOT);
}

#[test]
fn slots_are_even_over_sequential_clients() {
    assert_even("v4", |keys| (0..50_000).map(|n| v4(keys, 0x0a00_0000 + n, 40_000)).collect());
    assert_even("v6", |keys| {
        (0..50_000).map(|n| v6(keys, (0x2001_0db8 << 96) + n, 40_000)).collect()
    });
}

#[test]
fn slots_are_even_over_sequential_networks() {
    // Clients that differ in their highest bytes only.
    assert_even("v4", |keys| (0..50_000).map(|n: u32| v4(keys, n.rotate_left(16), 443)).collect());
    assert_even("v6", |keys| (0..50_000).map(|n: u128| v6(keys, n << 64 | 1, 443)).collect());
}

#[test]
fn slots_are_even_over_sequential_ports() {
    assert_even("v4", |keys| (1024..=65_535).map(|port| v4(keys, 0x0a00_0001, port)).collect());
    assert_even("v6", |keys| (1024..=65_535).map(|port| v6(keys, 1, port)).collect());
}

#[test]
fn slots_are_even_over_the_ports_of_a_service_that_one_client_port_connects_to() {
    let (v4, v6) = ([10, 0, 0, 1], [7; 16]);
    let to = |port: u16| port.to_be_bytes();
    assert_even("v4", |keys| {
        (1..=u16::MAX).map(|port| flow_hash_v4(&keys.0, v4, to(40_000), to(port))).collect()
    });
    assert_even("v6", |keys| {
        (1..=u16::MAX).map(|port| flow_hash_v6(&keys.0, &v6, to(40_000), to(port))).collect()
    });
}

#[test]
fn entropy_is_even_where_the_slot_is_fixed() {
    let keys = FlowKeys::derive(&SEED, b"web");
    let mut counts = vec![0; 256];
    for n in 0..400_000 {
        let hash = v4(&keys, n, 40_000);
        if slot_of(hash, 7) == 3 {
            counts[entropy_of(hash) as usize & 0xff] += 1;
        }
    }
    assert!(unevenness(&counts).abs() < 4.0);
}

#[test]
fn other_seeds_and_names_give_unrelated_slots() {
    let keys = FlowKeys::derive(&SEED, b"web");
    let mut seed = SEED;
    seed[15] ^= 0x80;
    for other in [FlowKeys::derive(&seed, b"web"), FlowKeys::derive(&SEED, b"wec")] {
        let slots = 61;
        let same = (0..61_000)
            .filter(|&n| slot_of(v4(&keys, n, 1), slots) == slot_of(v4(&other, n, 1), slots))
            .count();
        // 1,000 by chance.
        assert!((850..1150).contains(&same), "{same} of 61,000 flows share their slot");
    }
}

#[test]
fn no_difference_collides_under_most_seeds() {
    // Under a hash of xor and multiply without keys inside, flows that differ in the top bits of a
    // word only would collide, or share their slot, whatever the seed is.
    let differences = (0..32).map(|bit| (1_u32 << bit, 0)).chain((0..16).map(|bit| (0, 1 << bit)));
    for (address, port) in differences.chain([(0x8000_0000, 0x8000), (0xc000_0000, 0xc000)]) {
        let mut same = 0;
        for seed in 0..64_u8 {
            let keys = FlowKeys::derive(&[seed; 16], b"web");
            let one = v4(&keys, 0x0a00_0001, 40_000);
            let two = v4(&keys, 0x0a00_0001 ^ address, 40_000 ^ port);
            assert_ne!(one, two, "difference {address:x} {port:x}, seed {seed}");
            same += u32::from(slot_of(one, 1021) == slot_of(two, 1021));
        }
        assert!(
            same <= 3,
            "difference {address:x} {port:x}: the same slot under {same} of 64 seeds"
        );
    }
    for bit in 0..128 {
        let same = (0..64_u8)
            .filter(|&seed| {
                let keys = FlowKeys::derive(&[seed; 16], b"web");
                slot_of(v6(&keys, 1, 1), 1021) == slot_of(v6(&keys, 1 ^ (1 << bit), 1), 1021)
            })
            .count();
        assert!(same <= 3, "bit {bit}: the same slot under {same} of 64 seeds");
    }
}

proptest! {
    #[test]
    fn every_slot_is_in_range(hash: u64, slots in 1..=u32::MAX) {
        prop_assert!(slot_of(hash, slots) < slots);
    }

    #[test]
    fn the_last_hash_has_the_last_slot(slots in 1_u32..1 << 20) {
        prop_assert_eq!(slot_of(u64::MAX, slots), slots - 1);
        prop_assert_eq!(slot_of(0, slots), 0);
    }

    #[test]
    fn equal_flows_have_equal_hashes(seed: [u8; 16], name: Vec<u8>, a: [u8; 16], port: [u8; 2]) {
        let (one, two) = (FlowKeys::derive(&seed, &name), FlowKeys::derive(&seed, &name));
        prop_assert_eq!(one, two);
        prop_assert_eq!(flow_hash_v6(&one.0, &a, port, [0; 2]), flow_hash_v6(&two.0, &a, port, [0; 2]));
    }
}

// Two versions of the balancer, or two nodes of a pair, must agree on these: a change moves every
// flow. The values are from an implementation in another language.
const GOLDEN_KEYS: [u64; 6] = [
    0xb400_3f5d_a2e2_b70f,
    0x3f4f_7b46_745c_3231,
    0x1454_3d28_2982_1117,
    0xff69_3899_9f7f_b855,
    0x89f3_b31a_310a_452f,
    0x7c20_7f4f_47e3_a0c9,
];
const GOLDEN_V4: u64 = 0xf358_5ced_6b9e_5b0e;
const GOLDEN_V6: u64 = 0x91f1_9272_5dec_f097;
const GOLDEN_SLOT: u32 = 62297;
