//! Names of pinned links. Names in a BPF file system have no dots, names of interfaces may: VLANs
//! mostly do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::sys::LinkInfo;

/// What a pin keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A link of XDP.
    Xdp,
    /// One of tc.
    Tcx,
    /// The mark of a filter of the qdisc `clsact`.
    Clsact,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Xdp, Self::Tcx, Self::Clsact];

    /// What the names start with.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Xdp => "link-",
            Self::Tcx => "tcx-",
            Self::Clsact => "clsact-",
        }
    }

    /// Where the pin of an interface is: dots and per cent signs as in a URL (RFC 3986, 2.1), so that no two
    /// interfaces share one.
    pub(crate) fn path(self, pin_dir: &Path, interface: &str) -> PathBuf {
        pin_dir.join(format!("{}{}", self.prefix(), escaped(interface)))
    }
}

/// Where a second tc link of an interface is until it takes the place of the first.
pub(crate) fn aside_path(pin_dir: &Path, interface: &str) -> PathBuf {
    let path = Kind::Tcx.path(pin_dir, interface);
    // What no escaped name ends with.
    let mut name = path.into_os_string();
    name.push("%");
    name.into()
}

/// What a pin keeps, and of which interface; none if it is a pin of something else.
pub fn parse(path: &Path) -> Option<(Kind, String)> {
    let name = path.file_name()?.to_str()?;
    let parse = |kind: Kind| {
        let interface = name.strip_prefix(kind.prefix())?;
        Some((kind, interface.replace("%2e", ".").replace("%25", "%")))
    };
    Kind::ALL.into_iter().find_map(parse)
}

fn escaped(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

/// Gives the link of an interface its name, if lbd 0.1.0 has pinned it: there `a.b` and `a_b` were
/// one name.
pub(crate) fn adopt_legacy(pin_dir: &Path, interface: &str, ifindex: u32) -> Result<()> {
    let legacy = pin_dir.join(format!("{}{}", Kind::Xdp.prefix(), interface.replace('.', "_")));
    let path = Kind::Xdp.path(pin_dir, interface);
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
        let path = |interface| Kind::Xdp.path(Path::new("/p"), interface);
        assert_eq!(path("eth0"), Path::new("/p/link-eth0"));
        assert_eq!(path("eth0.7"), Path::new("/p/link-eth0%2e7"));
        let names = ["a.b", "a_b", "a%2eb", "a%252eb", "a%b"];
        let paths: std::collections::BTreeSet<_> = names.into_iter().map(path).collect();
        assert_eq!(paths.len(), names.len());
        for kind in Kind::ALL {
            for name in names {
                let parsed = parse(&kind.path(Path::new("/p"), name));
                assert_eq!(parsed, Some((kind, name.to_owned())));
            }
        }
        assert_eq!(parse(Path::new("/p/v2")), None);
        assert!(paths.iter().all(|path| !path.to_str().unwrap().contains('.')), "{paths:?}");
    }
}
