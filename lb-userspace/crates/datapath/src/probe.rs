//! The programs on an interface, for commands that look and change nothing.

use std::path::Path;

use super::{
    kernel_link,
    pin_names::{self, Kind},
    pinned,
};

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP, in the driver.
    Native,
    /// XDP, in the network stack.
    Generic,
    /// tc.
    Tc,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// It in words.
    pub name: String,
    /// Where it runs.
    pub hook: Hook,
    /// Whether one of the pins in the folder keeps it.
    pub ours: bool,
}

/// The balancer's program on an interface, or else the XDP program of another owner there.
#[must_use]
pub fn program_on(pin_dir: &Path, ifindex: u32) -> Option<Found> {
    let pins = pinned::all(pin_dir).unwrap_or_default();
    let kept = pins.iter().filter_map(|pin| {
        let (kind, _) = pin_names::parse(pin)?;
        let kept = pinned::kept(pin).ok().filter(|kept| kept.ifindex == ifindex)?;
        Some((kind, kept.program))
    });
    let kept: Vec<_> = kept.collect();
    let there = kernel_link::attached(ifindex).ok().flatten();
    let xdp = |program| kept.contains(&(Kind::Xdp, program));
    let tc = kept.iter().find(|(kind, _)| *kind != Kind::Xdp);
    match (there, tc) {
        (Some(there), None) => Some(Found {
            name: kernel_link::named(there.program),
            hook: if there.generic { Hook::Generic } else { Hook::Native },
            ours: xdp(there.program),
        }),
        (_, Some((_, program))) => {
            Some(Found { name: kernel_link::named(*program), hook: Hook::Tc, ours: true })
        }
        (None, None) => None,
    }
}
