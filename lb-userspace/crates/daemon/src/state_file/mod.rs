//! The file that keeps changes of `lbctl` over a restart of `lbd`.
//!
//! It is replaced whole: a temporary file beside it is written, synced and renamed, so that a crash
//! leaves the old content or the new. A file that is no state of ours is set aside, never
//! overwritten.

pub mod writer;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use lb_api::status::{Node, Totals};
use lb_model::{
    desired::{Desired, Service, ServiceKey},
    overrides::Overrides,
};
use serde::{Deserialize, Serialize};

/// Number of the layout in this file.
///
/// Version 1 had no policies, backups and checks; missing keys have their defaults.
const VERSION: u32 = 2;
/// The oldest layout that can be read.
const OLDEST: u32 = 1;

/// The kept state: the configuration that was in force, and the changes over it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The configuration's services.
    pub configured: Desired,
    /// The changes.
    pub overrides: Overrides,
    /// Whether the node leaves.
    pub node: Node,
    /// Counters of backends that were removed from their services.
    pub retired: BTreeMap<ServiceKey, Totals>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    configured: BTreeMap<String, Service>,
    overrides: Overrides,
    #[serde(default, skip_serializing_if = "Node::is_default")]
    node: Node,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
}

#[derive(Serialize, Deserialize)]
struct Retired {
    #[serde(flatten)]
    service: ServiceKey,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The result of loading the file.
#[derive(Debug, PartialEq)]
pub enum Loaded {
    /// Nothing: a first start.
    Absent,
    /// A state.
    State(State),
    /// Something else, which was renamed.
    SetAside {
        /// Its new name.
        to: PathBuf,
        /// The mistake in it.
        reason: String,
    },
}

/// Reads the file; sets it aside if it is no state.
///
/// # Errors
///
/// The file is there and can't be read or renamed.
pub fn load(path: &Path) -> Result<Loaded> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    match parse(&bytes) {
        Ok(state) => Ok(Loaded::State(state)),
        Err(reason) => Ok(Loaded::SetAside { to: set_aside(path)?, reason }),
    }
}

/// Renames the file, so that it is kept for an operator; returns the new name.
///
/// # Errors
///
/// It can't be renamed.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    let to = aside(path);
    fs::rename(path, &to)
        .with_context(|| format!("rename {} to {}", path.display(), to.display()))?;
    Ok(to)
}

/// Parses the file's content.
///
/// # Errors
///
/// The mistake in it.
pub fn parse(bytes: &[u8]) -> Result<State, String> {
    let Version { version } =
        serde_json::from_slice(bytes).map_err(|error| format!("no state of lbd: {error}"))?;
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(format!(
            "version {version}, where this lbd knows versions {OLDEST} to {VERSION}"
        ));
    }
    let content: Content = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let retired = content.retired.into_iter().map(|Retired { service, totals }| (service, totals));
    Ok(State {
        configured: Desired { services: content.configured },
        overrides: content.overrides,
        node: content.node,
        retired: retired.collect(),
    })
}

/// A free name beside the file.
fn aside(path: &Path) -> PathBuf {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = |count: u32| {
        let mut name = OsString::from(path);
        name.push(format!(".broken-{secs}"));
        if count > 0 {
            name.push(format!("-{count}"));
        }
        PathBuf::from(name)
    };
    (0..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0))
}

/// The file's text for a state.
///
/// # Errors
///
/// It can't be written as JSON.
pub fn text(state: &State) -> Result<Vec<u8>> {
    let content = Content {
        version: VERSION,
        configured: state.configured.services.clone(),
        overrides: state.overrides.clone(),
        node: state.node,
        retired: state
            .retired
            .iter()
            .map(|(&service, &totals)| Retired { service, totals })
            .collect(),
    };
    serde_json::to_vec_pretty(&content).context("write the state as JSON")
}

/// Replaces the file; after a crash it is the old one or the new one, whole.
///
/// # Errors
///
/// The file can't be written. The old one is still there.
pub(crate) fn save(path: &Path, state: &State) -> Result<()> {
    replace(path, &text(state)?).with_context(|| format!("write state file {}", path.display()))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let mut options = fs::File::options();
    // Nothing in it is secret; all the same other users need not see how a site is built.
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use lb_api::status::Count;
    use lb_model::{
        desired::{Admin, Mode},
        overrides::ServiceOverride,
    };

    use super::*;

    fn state() -> State {
        let mut web = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Ipip);
        web.drain_deadline = Some(Duration::from_secs(60));
        let change = ServiceOverride { added: Some(web.clone()), ..Default::default() };
        State {
            configured: Desired { services: [("web".into(), web.clone())].into() },
            overrides: Overrides { services: [("late".into(), change)].into() },
            node: Node { draining_since: Some(UNIX_EPOCH + Duration::from_secs(7)) },
            retired: [(web.key, Totals { sent: Count { packets: 3, bytes: 4 }, new_flows: 1 })]
                .into(),
        }
    }

    fn loaded_of(bytes: &[u8]) -> (tempfile::TempDir, Loaded) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("state.json");
        fs::write(&path, bytes).expect("it is written");
        let loaded = load(&path).expect("it is read");
        (dir, loaded)
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("lb/state.json");
        assert_eq!(load(&path).expect("nothing is fine"), Loaded::Absent);
        save(&path, &state()).expect("it is written");
        assert_eq!(load(&path).expect("it is read"), Loaded::State(state()));
        save(&path, &State::default()).expect("it is replaced");
        assert_eq!(load(&path).expect("it is read"), Loaded::State(State::default()));
        assert_eq!(fs::read_dir(dir.path().join("lb")).expect("a folder").count(), 1);
    }

    #[test]
    fn a_state_torn_anywhere_is_set_aside() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("state.json");
        save(&path, &state()).expect("it is written");
        let whole = fs::read(&path).expect("it is there");
        // The last two bytes are the closing brace and a newline.
        for length in 0..whole.len() - 2 {
            let (dir, loaded) = loaded_of(&whole[..length]);
            let Loaded::SetAside { to, .. } = loaded else { panic!("{length}: {loaded:?}") };
            assert_eq!(fs::read(&to).expect("it was kept"), &whole[..length]);
            assert!(!dir.path().join("state.json").exists());
        }
    }

    #[test]
    fn a_state_of_version_1_is_read() {
        let (_dir, loaded) = loaded_of(
            br#"{
              "version": 1,
              "configured": {
                "web": {
                  "vip": "10.0.0.100", "port": 80, "protocol": "tcp", "mode": "ipip",
                  "idle_timeout_secs": 900, "ring_slots": 65537, "syn_budget": 20000,
                  "backends": { "10.0.0.1": { "weight": 2, "admin": { "state": "enabled" } } }
                }
              },
              "overrides": { "services": { "web": {
                "removed": false,
                "backends": {
                  "10.0.0.1": { "changed": { "weight": 3, "admin": { "state": "disabled" } } },
                  "10.0.0.2": { "added": { "weight": 1, "admin": { "state": "draining", "deadline": null } } },
                  "10.0.0.3": "removed"
                }
              } } }
            }"#,
        );
        let Loaded::State(state) = loaded else { panic!("{loaded:?}") };
        let web = &state.configured.services["web"];
        assert_eq!(web.policy, lb_model::policy::Policy::default());
        let desired = state.overrides.apply(&state.configured);
        let backends: Vec<_> = desired.services["web"].backends.values().collect();
        assert_eq!(backends.len(), 2);
        assert_eq!(backends[0].weight, "3".parse().expect("a weight"));
        assert_eq!(backends[0].admin, Admin::Disabled);
        assert_eq!(backends[1].admin, Admin::Draining { deadline: None });
        assert!(backends.iter().all(|backend| !backend.backup && backend.check.is_none()));
    }

    /// A state in which nothing is left out, as version 2 has it. A field that is renamed, gone or written otherwise
    /// loses changes that an operator made by `lbctl`.
    #[test]
    fn a_state_is_written_as_it_always_was() {
        let golden = include_str!("state.json");
        let state = parse(golden.as_bytes()).expect("it is a state");
        let written = text(&state).expect("it is JSON");
        assert_eq!(String::from_utf8(written).expect("it is text"), golden.trim_end());
    }

    #[test]
    fn a_foreign_file_is_set_aside_with_the_reason() {
        for (bytes, expected) in [
            (&b"[1, 2]"[..], "no state of lbd"),
            (b"{\"version\": 99}", "version 99, where this lbd knows versions 1 to 2"),
            (
                b"{\"version\": 1, \"configured\": {}, \"overrides\": {}, \"more\": 1}",
                "unknown field",
            ),
            (b"\xff\xfe\x00", "no state of lbd"),
        ] {
            let (_dir, loaded) = loaded_of(bytes);
            let Loaded::SetAside { reason, .. } = loaded else { panic!("{loaded:?}") };
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_state_that_can_not_be_written_leaves_the_old_one() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("state.json");
        save(&path, &state()).expect("it is written");
        fs::create_dir(dir.path().join("state.json.partial")).expect("a folder is in the way");
        let error = save(&path, &State::default()).expect_err("it can't be written");
        assert!(format!("{error:#}").contains("write state file"), "{error:#}");
        assert_eq!(load(&path).expect("it is read"), Loaded::State(state()));
    }
}
