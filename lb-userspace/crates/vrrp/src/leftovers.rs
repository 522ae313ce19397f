//! Takes away what virtual routers have left on this node, without a daemon and its configuration: what is
//! ours is found by its mark.

use lb_netlink::interfaces::Key;

use super::{addresses::Addresses, macvlan::Devices, thread::filter};

/// What [`remove_all`] would take away, for people.
#[must_use]
pub fn left() -> Vec<String> {
    let mut left = Vec::new();
    if let Ok(addresses) = Addresses::open() {
        let all = addresses.leftovers(&[]);
        let name = |&(index, address, _): &Key| (addresses.interface(index).to_owned(), address);
        let all = all.iter().map(name);
        left.extend(all.map(|(interface, address)| format!("{address} is taken off {interface}")));
    }
    if let Ok(mut devices) = Devices::open() {
        let all = devices.ours().unwrap_or_default().into_iter();
        left.extend(all.map(|(_, name)| format!("interface {name} is removed")));
    }
    if filter::is_there().unwrap_or_default() {
        left.push(format!("table inet {} of nftables is removed", filter::TABLE));
    }
    left
}

/// Takes off all addresses with our mark, and removes our macvlans and the table of nftables. What was
/// there, and what did not work, for people.
///
/// On kernels before 5.18, which keep no mark, addresses stay.
#[must_use]
pub fn remove_all() -> (Vec<String>, Vec<String>) {
    let (mut released, mut problems) = (Vec::new(), Vec::new());
    match Addresses::open() {
        Ok(mut addresses) => {
            let (gone, failed) = addresses.release_marked();
            released.extend(gone.into_iter().map(|address| format!("address {address} removed")));
            problems.extend(failed);
        }
        Err(error) => problems.push(format!("find addresses: {error:#}")),
    }
    match Devices::open() {
        Ok(mut devices) => {
            let (removed, failed) = devices.remove_all();
            released.extend(removed.into_iter().map(|name| format!("interface {name} removed")));
            problems.extend(failed);
        }
        Err(error) => problems.push(format!("find interfaces: {error:#}")),
    }
    match filter::remove() {
        Ok(true) => released.push(format!("table inet {} of nftables removed", filter::TABLE)),
        Ok(false) => {}
        Err(error) => problems.push(error),
    }
    (released, problems)
}
