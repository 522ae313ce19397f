//! The order in which the list of the node's MAC addresses is written.
//!
//! The program walks `OWN_MACS` while it is written, entry by entry. So an address that is in the
//! list before and after a change keeps its entry: were it moved, a packet that had passed its new
//! entry would miss it in the old one, and the node's own stack would reset the connection.

use lb_common::abi::OWN_MACS;

/// A MAC address; zero ends the list.
type Mac = [u8; 6];

const NONE: Mac = [0; 6];

/// The addresses that these entries list, each once.
pub(crate) fn listed(entries: &[Mac]) -> Vec<Mac> {
    let mut macs = Vec::new();
    for mac in entries.iter().take_while(|mac| **mac != NONE) {
        if !macs.contains(mac) {
            macs.push(*mac);
        }
    }
    macs
}

/// The writes, in order, after which `entries` list `wanted`: an entry's index and its address.
///
/// New addresses take the entries of those that leave. An entry that is left over between others
/// repeats the last address that stays, since zero would end the list. The first entry comes last:
/// while it is zero every frame is taken.
pub fn writes(entries: &[Mac], wanted: &[Mac]) -> Vec<(u32, Mac)> {
    let stored = |place: usize| entries.get(place).copied().unwrap_or_default();
    // The others behind it are no more listed, and a packet that has passed the first finds its own.
    if wanted.is_empty() {
        return if stored(0) == NONE { Vec::new() } else { vec![(0, NONE)] };
    }
    let mut after = [NONE; OWN_MACS as usize];
    let listed = entries.iter().take_while(|mac| **mac != NONE);
    for (place, mac) in listed.enumerate() {
        if wanted.contains(mac) && !after.contains(mac) {
            after[place] = *mac;
        }
    }
    for mac in wanted {
        let free = after.iter().position(|entry| *entry == NONE);
        if !after.contains(mac)
            && let Some(free) = free
        {
            after[free] = *mac;
        }
    }
    if let Some(last) = after.iter().rposition(|mac| *mac != NONE) {
        let filler = after[last];
        after[..last].iter_mut().filter(|mac| **mac == NONE).for_each(|mac| *mac = filler);
    }
    let writes = (0_u32..).zip(after).filter(|(place, mac)| stored(*place as usize) != *mac);
    let mut writes: Vec<_> = writes.collect();
    writes.reverse();
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        [2, 0, 0, 0, 0, n]
    }

    /// Whether a packet that reads entry n of `states[at(n)]` is taken, as the program decides.
    fn is_taken(states: &[Vec<Mac>], at: impl Fn(usize) -> usize, to: Mac) -> bool {
        for place in 0..OWN_MACS as usize {
            let entry = states[at(place)][place];
            if entry == NONE {
                return place == 0;
            }
            if entry == to {
                return true;
            }
        }
        false
    }

    /// The entries before the change, and after each of its writes.
    fn states(before: &[Mac], wanted: &[Mac]) -> Vec<Vec<Mac>> {
        let mut states = vec![before.to_vec()];
        for (place, mac) in writes(before, wanted) {
            let mut next = states[states.len() - 1].clone();
            next[place as usize] = mac;
            states.push(next);
        }
        states
    }

    fn entries(macs: &[Mac]) -> Vec<Mac> {
        let mut entries = macs.to_vec();
        entries.resize(OWN_MACS as usize, NONE);
        entries
    }

    /// Every list of up to `most` of these addresses, in every order.
    fn lists(of: &[Mac], most: usize) -> Vec<Vec<Mac>> {
        let mut lists = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..most {
            let until = lists.len();
            for at in from..until {
                let shorter: Vec<Mac> = lists[at].clone();
                let others = of.iter().filter(|mac| !shorter.contains(mac));
                lists.extend(others.map(|mac| [&shorter[..], &[*mac]].concat()));
            }
            from = until;
        }
        lists
    }

    #[test]
    fn an_address_that_stays_is_found_after_each_write_and_by_a_reader_during_all_of_them() {
        let macs: Vec<_> = (1..=5).map(mac).collect();
        for before in lists(&macs, 4) {
            for wanted in lists(&macs, 4) {
                let states = states(&entries(&before), &wanted);
                let last = states.len() - 1;
                let stays = |mac: &&Mac| {
                    (before.is_empty() || before.contains(mac))
                        && (wanted.is_empty() || wanted.contains(mac))
                };
                for to in macs.iter().filter(stays) {
                    let case = format!("{to:?} of {before:?} to {wanted:?}");
                    for at in 0..=last {
                        assert!(is_taken(&states, |_| at, *to), "{case}, after {at} writes");
                        // A reader that is interrupted before entry n while the rest is written.
                        for n in 0..OWN_MACS as usize {
                            let at = |place| if place < n { at } else { last };
                            assert!(is_taken(&states, at, *to), "{case}, interrupted at {n}");
                        }
                    }
                }
                let mut now = listed(&states[last]);
                let mut wanted = wanted.clone();
                now.sort_unstable();
                wanted.sort_unstable();
                assert_eq!(now, wanted, "from {before:?}");
            }
        }
    }

    #[test]
    fn an_entry_that_repeats_another_is_freed_by_the_next_change() {
        let before = entries(&[mac(1), mac(2), mac(3)]);
        let after = states(&before, &[mac(1), mac(3)]).pop().unwrap();
        assert_eq!(after, entries(&[mac(1), mac(3), mac(3)]));
        let after = states(&after, &[mac(1), mac(3), mac(4)]).pop().unwrap();
        assert_eq!(after, entries(&[mac(1), mac(3), mac(4)]));
        let after = states(&after, &[mac(1), mac(3)]).pop().unwrap();
        assert_eq!(after, entries(&[mac(1), mac(3)]));
    }

    #[test]
    fn what_a_crash_has_left_behind_the_end_of_the_list_is_never_listed() {
        // The writes of [1, 2, 3], all but the last.
        let crashed = entries(&[mac(1), NONE, mac(3)]);
        assert_eq!(listed(&crashed), [mac(1)]);
        for state in states(&crashed, &[mac(1), mac(2)]) {
            assert!(!listed(&state).contains(&mac(3)), "{state:?}");
        }
        assert!(writes(&entries(&[mac(2), mac(1)]), &[mac(1), mac(2)]).is_empty());
    }
}
