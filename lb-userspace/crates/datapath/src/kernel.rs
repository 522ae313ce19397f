//! What the balancer asks of a kernel: the one list of it, which `lbd` goes through at its start and
//! `lbctl doctor` shows.
//!
//! Features are probed, since distributions bring them to older kernels; releases only show where one
//! is found.

use aya::{
    maps::{MapData, MapType},
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported},
};
use lb_netlink::generic;
use thiserror::Error;
use tracing::warn;

/// The oldest release that runs the project's tests. `cargo xtask test kernels` does that.
pub const LEAST: (u32, u32) = (6, 1);

/// Something that a kernel has or lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// It in words.
    pub name: &'static str,
    /// The first release of Linux that has it.
    pub since: &'static str,
    /// What changes where it is missing; none: the balancer can't do without.
    pub without: Option<&'static str>,
    /// Whether it is there.
    pub there: bool,
}

/// A kernel that the balancer can't run on.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "Linux {release} lacks what the balancer is made of: {}; Linux {}.{} or later has all of it \
     (Debian 12 or later: `apt-get install linux-image-amd64` and a reboot)",
    .missing.join(", "), LEAST.0, LEAST.1
)]
pub struct TooOld {
    /// As `uname -r` has it.
    pub release: String,
    /// What is missing, and where it is found.
    pub missing: Vec<String>,
}

/// Goes through the list: an error for what the balancer can't do without, a warning in the log for
/// what it can. Without the right to probe, loading shows it.
///
/// # Errors
///
/// If something is missing.
pub(crate) fn check() -> Result<(), TooOld> {
    let features = features().unwrap_or_default();
    for feature in features.iter().filter(|feature| !feature.there) {
        if let Some(without) = feature.without {
            warn!(feature = feature.name, since = feature.since, "the kernel lacks it: {without}");
        }
    }
    let release = release();
    judge(&release, &features)?;
    if is_untried(&release) {
        let (major, minor) = LEAST;
        warn!(
            release,
            "older than Linux {major}.{minor}, the oldest that this version was tried on"
        );
    }
    Ok(())
}

/// Whether a release is known and older than all that run the tests.
fn is_untried(release: &str) -> bool {
    version(release).is_some_and(|version| version < LEAST)
}

/// Whether the balancer can run with these features.
///
/// # Errors
///
/// If one is missing that it can't do without.
pub fn judge(release: &str, features: &[Feature]) -> Result<(), TooOld> {
    let missing = features.iter().filter(|feature| !feature.there && feature.without.is_none());
    let missing = missing.map(|Feature { name, since, .. }| format!("{name} (Linux {since})"));
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(TooOld { release: release.to_owned(), missing })
}

/// The kernel's release, as `uname -r` has it.
#[must_use]
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The first two numbers of a release.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the balancer asks of the kernel, and whether that is there; none if this process may not ask.
#[must_use]
pub fn features() -> Option<Vec<Feature>> {
    let needed = |name, since, there| Feature { name, since, without: None, there };
    let map = |kind| allowed(is_map_supported(kind).map_err(code));
    let helper = |helper| allowed(is_helper_supported(ProgramType::Xdp, helper).map_err(denied));
    let xdp = allowed(is_program_supported(ProgramType::Xdp).map_err(denied))?;
    Some(vec![
        needed("XDP", "4.8", xdp),
        needed("hash maps", "3.19", map(MapType::Hash)?),
        needed("maps that make room by themselves", "4.10", map(MapType::LruHash)?),
        needed("arrays", "3.19", map(MapType::Array)?),
        needed("arrays of maps", "4.12", map(MapType::ArrayOfMaps)?),
        needed("maps in shared memory", "5.5", array(MMAPABLE)),
        needed("ring buffers", "5.8", map(MapType::RingBuf)?),
        needed("rings of different sizes in one map", "5.10", array(MMAPABLE | INNER_MAP)),
        needed(
            "a clock for programs that is cheap to read",
            "5.11",
            helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns)?,
        ),
        needed(
            "XDP for frames of several buffers",
            "5.18",
            helper(BpfHelper::BPF_FUNC_xdp_get_buff_len)?,
        ),
        Feature {
            name: "drivers that report what they can do for XDP",
            since: "6.3",
            without: Some(
                "whether an interface can have the program in its driver shows when it is attached, \
                 and `lbctl doctor` can't check it before",
            ),
            there: generic::has_family("netdev"),
        },
    ])
}

/// Whether it is there; none if one may not ask.
fn allowed(supported: Result<bool, Option<i32>>) -> Option<bool> {
    match supported {
        Ok(supported) => Some(supported),
        Err(Some(libc::EPERM)) => None,
        Err(_) => Some(false),
    }
}

fn denied(error: ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => code(error),
        _ => None,
    }
}

fn code(SyscallError { io_error, .. }: SyscallError) -> Option<i32> {
    io_error.raw_os_error()
}

/// Rings and counters are read and written through memory.
const MMAPABLE: u32 = 1 << 10;
/// Rings may differ in size.
const INNER_MAP: u32 = 1 << 12;

/// Whether there can be an array with these flags.
fn array(flags: u32) -> bool {
    let word = size_of::<u64>() as u32;
    let array = aya_obj::Map::new_from_params(MapType::Array as u32, 4, word, 1, flags);
    MapData::create(array, "probe", None).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_has_it() {
        let feature = |name, without, there| Feature { name, since: "5.18", without, there };
        let features = [
            feature("XDP", None, true),
            feature("frames of several buffers", None, false),
            feature("names of drivers", Some("nothing is named"), false),
        ];
        let refused = judge("5.10.0-31-amd64", &features).expect_err("one is needed");
        let message = refused.to_string();
        assert!(message.starts_with("Linux 5.10.0-31-amd64 lacks"), "{message}");
        assert!(
            message.contains("frames of several buffers (Linux 5.18); Linux 6.1 or"),
            "{message}"
        );
        assert_eq!(judge("5.18.0", &[feature("XDP", None, true), features[2]]), Ok(()));
    }

    #[test]
    fn releases_are_read_by_their_first_numbers() {
        assert_eq!(version("6.1.0-56-amd64"), Some((6, 1)));
        assert_eq!(version("7.2-rc1"), Some((7, 2)));
        assert_eq!(version("unknown"), None);
        assert!(is_untried("5.19.17-generic") && is_untried("6.0.0"));
        assert!(!is_untried("6.1.0-9-amd64") && !is_untried("6.12.117") && !is_untried("unknown"));
    }
}
