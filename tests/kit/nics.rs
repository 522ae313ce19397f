//! NICs that this machine has for tests: those of a virtual machine, joined two by two outside of it.
//!
//! One of a pair is a balancer's, the other the switch's port to it. They are known by their MAC
//! addresses: when a namespace goes, the kernel gives its NICs back under names of its own choice.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::{command, run},
    namespace::Namespace,
    wait,
};

/// The variable that lists them: MAC addresses, separated by commas, those that are joined side by side.
pub const VARIABLE: &str = "LB_NICS";

/// How long a namespace may take to give its NICs back.
const SOON: Duration = Duration::from_secs(20);

/// The MAC addresses of two NICs that are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The balancer's.
    pub host: String,
    /// The switch's.
    pub port: String,
}

/// Those that [`VARIABLE`] lists; none where it is not set.
///
/// # Errors
///
/// If it is set to something else.
pub fn of_this_machine() -> Result<Vec<Joined>> {
    env::var(VARIABLE).map_or_else(|_| Ok(Vec::new()), |list| parse(&list))
}

fn parse(list: &str) -> Result<Vec<Joined>> {
    let macs: Vec<_> = list.split(',').map(str::trim).filter(|mac| !mac.is_empty()).collect();
    ensure!(macs.len().is_multiple_of(2), "{VARIABLE} names a NIC that is joined to none: {list}");
    let pair = |pair: &[&str]| Joined { host: pair[0].to_owned(), port: pair[1].to_owned() };
    Ok(macs.chunks(2).map(pair).collect())
}

/// Moves a NIC of this machine into a namespace, under a name.
pub(crate) fn plug(mac: &str, namespace: &Namespace, name: &str) -> Result<()> {
    let there = wait::until(SOON, &format!("the NIC {mac} is there"), || named(mac))?;
    let target = namespace.name();
    let mut ip = command("ip");
    ip.args(["link", "set", "dev", &there, "down", "netns", target, "name", name]);
    run(&mut ip).map(drop)
}

/// The name of the NIC with this address.
fn named(mac: &str) -> Result<String> {
    let folder = Path::new("/sys/class/net");
    for entry in fs::read_dir(folder).context("read /sys/class/net")? {
        let entry = entry.context("read /sys/class/net")?;
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if address.trim() == mac {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    anyhow::bail!("no interface has this address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_nics_stand_side_by_side() -> Result<()> {
        let pairs = parse("02:00:00:00:00:01,02:00:00:00:00:02, a,b")?;
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[0].host, "02:00:00:00:00:01");
        assert_eq!(pairs[1], Joined { host: "a".into(), port: "b".into() });
        assert_eq!(parse("")?, []);
        assert!(parse("a,b,c").is_err());
        Ok(())
    }
}
