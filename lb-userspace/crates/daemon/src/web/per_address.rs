//! A semaphore for each address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Semaphore;

/// Semaphores by address. One that nobody uses any more is removed.
#[derive(Debug)]
pub(super) struct Semaphores {
    permits: usize,
    used: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

impl Semaphores {
    /// Each with so many permits.
    pub(super) fn new(permits: usize) -> Self {
        Self { permits, used: Mutex::default() }
    }

    pub(super) fn of(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, semaphore| semaphore.strong_count() > 0);
        used.get(&address).and_then(Weak::upgrade).unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.permits));
            used.insert(address, Arc::downgrade(&semaphore));
            semaphore
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_semaphore_while_it_is_used() {
        let semaphores = Semaphores::new(2);
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let permit = semaphores.of(address(1)).try_acquire_owned().expect("a permit");
        assert_eq!(semaphores.of(address(1)).available_permits(), 1);
        assert_eq!(semaphores.of(address(2)).available_permits(), 2, "the other one is its own");
        drop(permit);
        assert_eq!(semaphores.of(address(1)).available_permits(), 2);
        assert_eq!(semaphores.used.lock().expect("no thread panics").len(), 1, "the other is gone");
    }
}
