//! The resources of a host that a configuration names: interfaces, the seed, and files that the user of `lbd` may read.
//!
//! A start finds out by itself. `lbd --check` and `lbctl doctor` look before it; both run as root mostly, which may
//! read any file, and `lbd` of the package runs as another user.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use lb_model::{
    defaults,
    desired::{Mode, Service},
    rules::Violation,
    settings::Attach,
};
use lb_netlink::{LinkLayer, of_other_layer, query, xdp_without_ethernet};
use rustix::process::geteuid;

use super::{Config, Problem, secret::make_readable};
use crate::{seed, unit::Unit};

/// The resources that a host lacks for a configuration without mistakes, in lines for people.
#[derive(Debug, Default)]
pub struct Lacks {
    /// `lbd` does not start here, or never reaches a backend.
    pub errors: Vec<String>,
    /// It starts, and this is probably not meant.
    pub warnings: Vec<String>,
}

/// The resources that this host lacks for a configuration that was read from `file`.
#[must_use]
pub fn lacks(config: &Config, file: &Path) -> Lacks {
    let (mut lacks, shown) = (Lacks::default(), file.display());
    for name in config.interface_names() {
        let text = format!("{name} is no interface of this host; `ip link` lists them");
        let is_own = config.interfaces.iter().any(|own| own == name);
        let place = Path::new("/sys/class/net").join(name);
        if place.exists() {
            if is_own && let Some(problem) = unfit(config, name, &place) {
                lacks.errors.push(format!("{shown}:{problem}"));
            }
        } else if is_own {
            lacks.errors.push(format!("{shown}: interfaces: {text}"));
        } else {
            lacks.warnings.push(format!("{shown}: warning: {text}"));
        }
    }
    match without_way(config) {
        Ok(problems) => {
            lacks.errors.extend(problems.iter().map(|problem| format!("{shown}:{problem}")));
        }
        Err(error) => lacks.warnings.push(format!("{shown}: warning: {error:#}")),
    }
    match config.seed.is_there() {
        Ok(false) if config.sync.is_some() => lacks.warnings.push(format!(
            "{shown}: warning: {} is missing, and lbd makes a new seed at its start; if another node has one, copy it \
             from there first",
            config.seed.file().unwrap_or(file).display()
        )),
        Ok(_) => {}
        // A user without the right to look does not know.
        Err(error) if seed::is_denied(&error) && !geteuid().is_root() => {}
        Err(error) => lacks.errors.push(format!("{shown}: {error:#}")),
    }
    let Some(unit) = Unit::read() else { return lacks };
    match unreadable_by(&unit, config, file) {
        Ok(problems) => {
            let user = unit.user().unwrap_or_default();
            let line = |problem| format!("{shown}:{problem} (lbd.service runs lbd as {user})");
            lacks.errors.extend(problems.iter().map(line));
        }
        Err(error) => lacks.errors.push(format!("{shown}: {error:#}")),
    }
    lacks
}

/// Why the interface with this folder of sysfs can't have the configured hook, as far as the kernel reports.
fn unfit(config: &Config, name: &str, place: &Path) -> Option<Problem> {
    let kind: u16 = fs::read_to_string(place.join("type")).ok()?.trim().parse().ok()?;
    let message = match LinkLayer::of(kind.into()) {
        LinkLayer::RawIp if config.hooks.of(name) == Attach::Xdp => xdp_without_ethernet(name),
        LinkLayer::Ethernet | LinkLayer::RawIp => return None,
        LinkLayer::Other => of_other_layer(name),
    };
    Some(config.problem_of_interface(name, message))
}

/// The backends in mode `dsr` to which a way leads that no such packet can take.
fn without_way(config: &Config) -> Result<Vec<Problem>> {
    let services = config.desired.services.iter();
    let dsr: Vec<_> = services.filter(|(_, service)| service.mode == Mode::Dsr).collect();
    let addresses: BTreeSet<_> =
        dsr.iter().flat_map(|(_, service)| service.backends.keys().map(|at| at.ip)).collect();
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let why = query::not_for_dsr(&addresses)?;
    let of = |(name, service): (&String, &Service)| {
        let backends = service.backends.keys();
        let violations = backends.filter_map(|backend| {
            let message = format!("{} {}", backend.ip, why.get(&backend.ip)?);
            let (service, backend) = (name.clone(), Some(*backend));
            Some(Violation { service, backend, field: "address", message })
        });
        violations.collect::<Vec<_>>()
    };
    Ok(config.problems_of(dsr.into_iter().flat_map(of)))
}

/// Files that the user of a unit may not read, though this process could: those that the configuration names, and the
/// file that `lbd` starts with. None if that user is root, or this process is not, and can't find out.
///
/// # Errors
///
/// It can't be found out, though this process is root's.
pub fn unreadable_by(unit: &Unit, config: &Config, file: &Path) -> Result<Vec<Problem>> {
    let Some(user) = unit.user().filter(|_| geteuid().is_root()) else { return Ok(Vec::new()) };
    let seed = config.seed.is_there();
    unit.run_as(user, || {
        let mut problems = Config::parse(&config.text.0).err().unwrap_or_default();
        // A file that root can't read either is no matter of rights.
        if let (Ok(_), Err(error), Some(seed)) = (seed, config.seed.is_there(), config.seed.file())
        {
            problems.push(unreadable(seed, &format!("{error:#}")));
        }
        // Another file is a draft, perhaps.
        if file == Path::new(defaults::CONFIG)
            && let Err(error) = std::fs::read(file)
        {
            problems.insert(0, unreadable(file, &format!("read {}: {error}", file.display())));
        }
        problems
    })
}

fn unreadable(file: &Path, why: &str) -> Problem {
    let fix = make_readable(file);
    Problem::of_file(format!("{why}; let the group of lbd read it: '{fix}'"), fix)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn files_that_the_user_of_the_unit_may_not_read_are_named_with_the_command_that_mends_it()
    -> Result<()> {
        if !geteuid().is_root() {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (key, seed) = (folder.path().join("sync.key"), folder.path().join("seed"));
        fs::write(&key, "01".repeat(32))?;
        fs::write(&seed, "01".repeat(16))?;
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        mode(folder.path(), 0o755)?;
        let text = format!(
            "interfaces = [\"eth0\"]\nseed_file = \"{}\"\n[sync]\nkey_file = \"{}\"\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\n",
            seed.display(),
            key.display()
        );
        let config = Config::parse(&text).expect("root can read it");
        let unit = Unit::parse("LoadState=loaded\nUser=nobody\n").expect("it is loaded");
        let fixes = || -> Result<Vec<_>> {
            let problems = unreadable_by(&unit, &config, Path::new("/tmp/draft.toml"))?;
            // This thread is still root's.
            assert!(geteuid().is_root());
            Ok(problems.into_iter().filter_map(|problem| problem.fix).collect())
        };
        let both = [make_readable(&key), make_readable(&seed)];
        for (of_key, of_seed, expected) in
            [(0o640, 0o640, &both[..]), (0o644, 0o640, &both[1..]), (0o644, 0o644, &[])]
        {
            mode(&key, of_key)?;
            mode(&seed, of_seed)?;
            assert_eq!(fixes()?, expected);
        }
        // A file that could be read is of no use in a folder that can't be entered.
        mode(folder.path(), 0o700)?;
        assert_eq!(fixes()?, both);
        Ok(())
    }
}
