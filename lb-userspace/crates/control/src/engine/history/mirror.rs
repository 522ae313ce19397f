//! A peer's ring, as it was received: the owners of its slots there. A pure value; [`super::import`] writes
//! this node's maps from it.

use std::collections::HashMap;

use lb_common::abi::Owners;
use lb_model::{
    backend_address::BackendAddress,
    maglev::{self, Member},
};
use lb_sync::record::{Base, digest};

/// A peer's ring: slots, members and base owners.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PeerRing {
    /// Number of slots.
    pub slots: u32,
    /// The backends that share new flows there, in the order of their addresses.
    pub members: Vec<(BackendAddress, u32)>,
    digest: u64,
    /// Every backend that was named: the members, then base owners.
    names: Vec<BackendAddress>,
    /// Base owners by slot, as places in `names`, from 1 on; 0 for none. Empty while there is none.
    bases: Vec<u16>,
    in_flux: u32,
}

impl PeerRing {
    /// The ring of a record, without base owners. None if no ring can be like that.
    pub fn new(slots: u32, mut members: Vec<(BackendAddress, u32)>, digest: u64) -> Option<Self> {
        members.sort_unstable();
        members.dedup_by_key(|(address, _)| *address);
        let most = usize::from(u16::MAX) / 2;
        if slots == 0 || members.len() > most || members.iter().any(|(_, weight)| *weight == 0) {
            return None;
        }
        let names = members.iter().map(|(address, _)| *address).collect();
        Some(Self { slots, members, digest, names, ..Self::default() })
    }

    /// Takes over the base owner of a slot; false if there is no such slot.
    pub(crate) fn set_base(&mut self, base: &Base) -> bool {
        if base.slot >= self.slots {
            return false;
        }
        let name = match base.backend {
            Some(backend) => self.name_of(backend),
            None => 0,
        };
        if self.bases.is_empty() {
            if name == 0 {
                return true;
            }
            self.bases = vec![0; self.slots as usize];
        }
        let place = &mut self.bases[base.slot as usize];
        self.in_flux += u32::from(name != 0);
        self.in_flux -= u32::from(*place != 0);
        *place = name;
        if self.in_flux == 0 {
            self.bases = Vec::new();
        }
        true
    }

    /// The place of a name, from 1 on; 0 when there are too many.
    fn name_of(&mut self, backend: BackendAddress) -> u16 {
        let known = self.names.iter().rposition(|name| *name == backend);
        let place = known.unwrap_or_else(|| {
            self.names.push(backend);
            self.names.len() - 1
        });
        u16::try_from(place + 1).unwrap_or(0)
    }

    /// The backends that may have flows there: the members, and those that are still base owners.
    pub(crate) fn named(&self) -> impl Iterator<Item = BackendAddress> {
        let mut used = vec![false; self.names.len() + 1];
        self.bases.iter().for_each(|&name| used[usize::from(name)] = true);
        let members = self.members.len();
        self.names
            .iter()
            .enumerate()
            .filter(move |(place, _)| *place < members || used[place + 1])
            .map(|(_, name)| *name)
    }

    /// The owners of every slot for new flows, as places among the members.
    pub(crate) fn table(&self, seed: &[u8; 16]) -> Vec<u16> {
        let members = self.members.iter();
        let members: Vec<_> =
            members.map(|&(address, weight)| Member { address, weight }).collect();
        maglev::table(&members, seed, self.slots)
    }

    /// Whether this table is the peer's.
    pub(crate) fn is_like(&self, table: &[u16]) -> bool {
        let owner = |slot| match table.get(slot) {
            Some(&member) => self.names[usize::from(member)],
            None => BackendAddress::from([0; 4]),
        };
        digest((0..self.slots as usize).map(owner)) == self.digest
    }

    /// The same in ids of this node: `table` as by [`Self::table`], none if the owners for new flows
    /// are the same here. A backend that is not in `ids` counts as none.
    pub(crate) fn in_ids<'a>(
        &'a self,
        table: Option<&'a [u16]>,
        ids: &HashMap<BackendAddress, u16>,
    ) -> PeerOwners<'a> {
        let id = |name: &BackendAddress| ids.get(name).copied().unwrap_or(0);
        PeerOwners { ring: self, table, ids: self.names.iter().map(id).collect() }
    }
}

/// A peer's ring in ids of this node.
#[derive(Debug)]
pub(crate) struct PeerOwners<'a> {
    ring: &'a PeerRing,
    table: Option<&'a [u16]>,
    ids: Vec<u16>,
}

impl PeerOwners<'_> {
    /// The owners of a slot there; `own` is its current owner here.
    pub(crate) fn of(&self, slot: usize, own: u16) -> Owners {
        let current = match self.table {
            None => own,
            Some(table) => table.get(slot).map_or(0, |&member| self.ids[usize::from(member)]),
        };
        let base = match self.ring.bases.get(slot) {
            None | Some(0) => 0,
            Some(&name) => self.ids[usize::from(name) - 1],
        };
        Owners { current, base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> BackendAddress {
        BackendAddress::from([10, 0, 0, last])
    }

    fn ring() -> PeerRing {
        let ring = PeerRing::new(13, vec![(at(2), 1), (at(1), 1)], 0).unwrap();
        let table = ring.table(&[7; 16]);
        let owners = table.iter().map(|&member| ring.names[usize::from(member)]);
        PeerRing { digest: digest(owners), ..ring }
    }

    #[test]
    fn a_ring_is_told_by_its_members_and_its_seed() {
        let ring = ring();
        assert!(ring.is_like(&ring.table(&[7; 16])));
        assert!(!ring.is_like(&ring.table(&[8; 16])));
        let empty =
            PeerRing::new(13, vec![], digest((0..13).map(|_| BackendAddress::from([0; 4]))));
        let empty = empty.unwrap();
        assert!(empty.is_like(&empty.table(&[7; 16])));
    }

    #[test]
    fn what_no_ring_can_be_is_not_taken() {
        assert_eq!(PeerRing::new(0, vec![], 0), None);
        assert_eq!(PeerRing::new(13, vec![(at(1), 0)], 0), None);
        assert!(!ring().set_base(&Base { slot: 13, backend: Some(at(1)) }));
    }

    #[test]
    fn bases_come_and_go_in_ids_of_this_node() {
        let mut ring = ring();
        let table = ring.table(&[7; 16]);
        let ids = HashMap::from([(at(1), 4), (at(2), 5), (at(9), 6)]);
        assert!(ring.set_base(&Base { slot: 3, backend: Some(at(9)) }));
        assert!(ring.set_base(&Base { slot: 4, backend: Some(at(8)) }));
        assert_eq!(ring.named().collect::<Vec<_>>(), [at(1), at(2), at(9), at(8)]);
        let owners = ring.in_ids(Some(&table), &ids);
        let current = |slot: usize| [4, 5][usize::from(table[slot])];
        assert_eq!(owners.of(3, 0), Owners { current: current(3), base: 6 });
        assert_eq!(owners.of(4, 0), Owners { current: current(4), base: 0 }, "unknown here");
        assert_eq!(owners.of(5, 0), Owners { current: current(5), base: 0 });
        assert_eq!(ring.in_ids(None, &ids).of(3, 7), Owners { current: 7, base: 6 });
        for slot in [3, 3, 4, 5] {
            assert!(ring.set_base(&Base { slot, backend: None }));
        }
        assert!(ring.bases.is_empty());
        assert_eq!(ring.named().collect::<Vec<_>>(), [at(1), at(2)]);
    }
}
