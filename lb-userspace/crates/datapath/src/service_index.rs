//! The writer of the services' index; its purpose and its safety are described in
//! [`lb_common::service_index`].

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
};

use aya::maps::MapData;
use lb_common::{
    abi::{Service, ServiceKeyV4, ServiceKeyV6},
    service_index::{Bucket, Entry, OVERFLOW, Place, WAYS, rewritten},
    shared::SharedU32,
};
use lb_model::{desired::ServiceKey, entry};

use super::{mmap::Mapped, sys::Table};

/// The index, and what it holds.
#[derive(Debug)]
pub(crate) struct ServiceIndex {
    buckets: Mapped<Bucket>,
    entries: Table<u32, Entry>,
    words: HashMap<u32, BTreeMap<ServiceKey, u32>>,
}

/// The key of an IPv4 service in the maps.
pub(crate) fn key_v4(vip: std::net::Ipv4Addr, key: &ServiceKey) -> ServiceKeyV4 {
    let proto = key.protocol.number();
    ServiceKeyV4 { address: vip.octets(), port: key.port.into(), proto, reserved: 0 }
}

/// The key of an IPv6 service in the maps.
pub(crate) fn key_v6(vip: std::net::Ipv6Addr, key: &ServiceKey) -> ServiceKeyV6 {
    let proto = key.protocol.number();
    ServiceKeyV6 { address: vip.octets(), port: key.port.into(), proto, reserved: 0 }
}

impl ServiceIndex {
    /// Makes the index hold exactly `services`, whatever a predecessor left: a word that is right
    /// already is not touched.
    pub fn open(
        buckets: &MapData,
        entries: Table<u32, Entry>,
        services: &BTreeMap<ServiceKey, Service>,
    ) -> io::Result<Self> {
        let mut index = Self { buckets: Mapped::new(buckets)?, entries, words: HashMap::new() };
        for (key, service) in services {
            index.put_entry(key, service)?;
            // Others have their entry here alone.
            if key.extent.is_one() {
                index.note(key, service.id);
            }
        }
        for bucket in 0..index.buckets.len() as u32 {
            index.write(bucket);
        }
        Ok(index)
    }

    /// The service of an IPv4 packet, as the program finds it by the index; the outer none: the index
    /// has no room for it, and the truth is to be asked.
    pub(crate) fn find_v4(&self, key: &ServiceKeyV4) -> io::Result<Option<Option<Service>>> {
        let place = Place::of_v4(key, self.buckets.len() as u32 - 1);
        self.find(place, |entry| entry.is_v4(key))
    }

    /// The same for IPv6.
    pub(crate) fn find_v6(&self, key: &ServiceKeyV6) -> io::Result<Option<Option<Service>>> {
        let place = Place::of_v6(key, self.buckets.len() as u32 - 1);
        self.find(place, |entry| entry.is_v6(key))
    }

    fn find(
        &self,
        place: Place,
        is_it: impl Fn(&Entry) -> bool,
    ) -> io::Result<Option<Option<Service>>> {
        let Some(bucket) = self.buckets.get(place.bucket as usize) else { return Ok(Some(None)) };
        for word in bucket.words.iter().map(SharedU32::load) {
            if word & 0xffff_0000 != place.tag {
                continue;
            }
            if let Some(entry) = self.entries.get(&(word & 0xffff))?
                && is_it(&entry)
            {
                return Ok(Some(Some(entry.service)));
            }
        }
        let overflows = bucket.words[WAYS - 1].load() == OVERFLOW;
        Ok(if overflows { None } else { Some(None) })
    }

    /// The service with this id.
    pub(crate) fn service(&self, id: u32) -> io::Result<Option<Service>> {
        Ok(self.entries.get(&id)?.map(|entry| entry.service))
    }

    /// Writes a service's entry, which no word names yet, or which is the same service's.
    pub(crate) fn put_entry(&self, key: &ServiceKey, service: &Service) -> io::Result<()> {
        let entry = Entry {
            service: *service,
            address: entry::address(key.vip),
            port: key.port.into(),
            proto: key.protocol.number(),
            reserved: [0; 5],
        };
        self.entries.put(&service.id.into(), &entry)
    }

    /// Makes a service whose entry is written be found.
    pub(crate) fn publish(&mut self, key: &ServiceKey, id: u16) {
        let bucket = self.note(key, id);
        self.write(bucket);
    }

    /// Makes a service be found no longer.
    pub(crate) fn withdraw(&mut self, key: &ServiceKey) {
        let bucket = self.place(key).bucket;
        if let Some(words) = self.words.get_mut(&bucket) {
            words.remove(key);
        }
        self.write(bucket);
    }

    fn place(&self, key: &ServiceKey) -> Place {
        let mask = self.buckets.len() as u32 - 1;
        match key.vip {
            IpAddr::V4(vip) => Place::of_v4(&key_v4(vip, key), mask),
            IpAddr::V6(vip) => Place::of_v6(&key_v6(vip, key), mask),
        }
    }

    fn note(&mut self, key: &ServiceKey, id: u16) -> u32 {
        let place = self.place(key);
        self.words.entry(place.bucket).or_default().insert(*key, place.word(id));
        place.bucket
    }

    fn write(&self, bucket: u32) {
        let words: Vec<u32> = match self.words.get(&bucket) {
            Some(words) => words.values().copied().collect(),
            None => Vec::new(),
        };
        let shared = &self.buckets[bucket as usize].words;
        let stored = std::array::from_fn(|way| shared[way].load());
        for (place, word) in shared.iter().zip(rewritten(stored, &words)) {
            if place.load() != word {
                place.store(word);
            }
        }
    }
}
