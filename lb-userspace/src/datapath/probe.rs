//! What the kernel can do, and what runs on an interface, for who looks and changes nothing.

use std::path::Path;

use aya::{
    maps::{MapData, MapType},
    programs::{ProgramError, ProgramType},
    sys::{SyscallError, is_map_supported, is_program_supported},
};

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

/// What the balancer's objects need, and whether the kernel has it; none if this process may not ask.
#[must_use]
pub fn features() -> Option<Vec<(String, bool)>> {
    const MAPS: [(&str, MapType); 5] = [
        ("hash maps", MapType::Hash),
        ("maps that make room by themselves", MapType::LruHash),
        ("arrays", MapType::Array),
        ("arrays of maps", MapType::ArrayOfMaps),
        ("ring buffers", MapType::RingBuf),
    ];
    let mut features = vec![("XDP".to_owned(), is_supported(program(ProgramType::Xdp))?)];
    for (name, kind) in MAPS {
        features.push((name.to_owned(), is_supported(map(kind))?));
    }
    features.push(("maps in shared memory".to_owned(), maps_in_memory()));
    Some(features)
}

/// Whether it is there; none if one may not ask.
fn is_supported(told: Result<bool, Option<i32>>) -> Option<bool> {
    match told {
        Ok(supported) => Some(supported),
        Err(Some(libc::EPERM)) => None,
        Err(_) => Some(false),
    }
}

fn program(kind: ProgramType) -> Result<bool, Option<i32>> {
    is_program_supported(kind).map_err(|error| match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    })
}

fn map(kind: MapType) -> Result<bool, Option<i32>> {
    is_map_supported(kind).map_err(|SyscallError { io_error, .. }| io_error.raw_os_error())
}

/// Rings and counters are read and written through memory (Linux 5.5).
fn maps_in_memory() -> bool {
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    let word = size_of::<u64>() as u32;
    let array = aya_obj::Map::new_from_params(MapType::Array as u32, 4, word, 1, BPF_F_MMAPABLE);
    MapData::create(array, "probe", None).is_ok()
}
