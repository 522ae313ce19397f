//! What runs on an interface, for who looks and changes nothing.

use std::path::Path;

use super::{attach::pinned_links, kernel_link, sys::LinkInfo};

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// It in words.
    pub name: String,
    /// Whether the network stack runs it instead of the driver.
    pub generic: bool,
    /// Whether one of the links that are pinned in the folder holds it.
    pub ours: bool,
}

/// The XDP program of an interface, if it has one.
#[must_use]
pub fn program_on(pin_dir: &Path, ifindex: u32) -> Option<Found> {
    let there = kernel_link::attached(ifindex).ok().flatten()?;
    let links = pinned_links(pin_dir).unwrap_or_default();
    let ours = links.iter().filter_map(|link| LinkInfo::of_pinned(link).ok()).any(|link| {
        link.kind == LinkInfo::XDP && link.ifindex == ifindex && link.program == there.program
    });
    let name = kernel_link::named(there.program);
    Some(Found { name, generic: there.generic, ours })
}
