//! Names of pinned links. Names in a BPF file system have no dots, names of interfaces may: VLANs
//! mostly do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::sys::LinkInfo;

/// What the pins of links start with.
pub const PREFIX: &str = "link-";

/// Where the link of an interface is pinned: dots and per cent signs as in a URL (RFC 3986, 2.1),
/// so that no two interfaces share a pin.
pub fn link_path(pin_dir: &Path, interface: &str) -> PathBuf {
    let name = interface.replace('%', "%25").replace('.', "%2e");
    pin_dir.join(format!("{PREFIX}{name}"))
}

/// Gives the link of an interface its name, if lbd 0.1.0 has pinned it: there `a.b` and `a_b` were
/// one name.
pub fn adopt_legacy(pin_dir: &Path, interface: &str, ifindex: u32) -> Result<()> {
    let legacy = pin_dir.join(format!("{PREFIX}{}", interface.replace('.', "_")));
    let path = link_path(pin_dir, interface);
    let is_its = |info: LinkInfo| info.kind == LinkInfo::XDP && info.ifindex == ifindex;
    if legacy == path || path.exists() || !LinkInfo::of_pinned(&legacy).is_ok_and(is_its) {
        return Ok(());
    }
    fs::rename(&legacy, &path)
        .with_context(|| format!("rename {} to {}", legacy.display(), path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_interfaces_share_a_pin() {
        let path = |interface| link_path(Path::new("/p"), interface);
        assert_eq!(path("eth0"), Path::new("/p/link-eth0"));
        assert_eq!(path("eth0.7"), Path::new("/p/link-eth0%2e7"));
        let names = ["a.b", "a_b", "a%2eb", "a%252eb", "a%b"];
        let paths: std::collections::BTreeSet<_> = names.into_iter().map(path).collect();
        assert_eq!(paths.len(), names.len());
        assert!(paths.iter().all(|path| !path.to_str().unwrap().contains('.')), "{paths:?}");
    }
}
