//! The unit of `lbd` in systemd: how it stands, and as which user it runs `lbd`.
//!
//! `lbd --check` and `lbctl doctor` run as root mostly, who may read any file; `lbd` of the package runs as
//! another user. So both read the files that a configuration names as that user, too.

use std::{path::Path, process::Command, thread};

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::{Group, User, getgrouplist};
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::config::{self, Config, Problem};

/// `lbd.service`, as `systemctl show` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// `active`, `inactive`, `activating`, `failed` ...
    active: String,
    /// `running`, `dead`, `auto-restart` ...
    sub: String,
    enabled: bool,
    /// Empty: root.
    user: String,
    group: String,
}

impl Unit {
    /// The unit, if systemd runs and has it.
    #[must_use]
    pub fn read() -> Option<Self> {
        // sd_booted(3): elsewhere `systemctl` has nobody to ask.
        if !Path::new("/run/systemd/system").exists() {
            return None;
        }
        let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,User,Group";
        let shown = Command::new("systemctl").args(["show", properties, "lbd.service"]).output();
        Self::parse(&String::from_utf8_lossy(&shown.ok()?.stdout))
    }

    pub(crate) fn parse(shown: &str) -> Option<Self> {
        let property = |name: &str| {
            let lines = shown.lines().filter_map(|line| line.split_once('='));
            let value = lines.filter(|(key, _)| *key == name).map(|(_, value)| value).next();
            value.unwrap_or_default().to_owned()
        };
        (property("LoadState") == "loaded").then(|| Self {
            active: property("ActiveState"),
            sub: property("SubState"),
            enabled: property("UnitFileState") == "enabled",
            user: property("User"),
            group: property("Group"),
        })
    }

    /// The command that starts it, where nothing has kept it from running.
    #[must_use]
    pub const fn start(&self) -> &'static str {
        if self.enabled { "systemctl start lbd" } else { "systemctl enable --now lbd" }
    }

    /// Whether `lbd` does not stay, and systemd starts it again and again.
    #[must_use]
    pub fn is_retried(&self) -> bool {
        self.sub == "auto-restart"
    }

    /// What somebody does who finds no `lbd`; `unit` is none where systemd has none.
    #[must_use]
    pub fn remedy(unit: Option<&Self>) -> String {
        match unit {
            None => format!("start it with 'lbd --config {}'", config::DEFAULT_FILE),
            Some(unit) if unit.is_retried() || unit.active == "failed" => format!(
                "lbd.service is {} ({}); 'journalctl -u lbd -n 20' says why",
                unit.active, unit.sub
            ),
            Some(unit) if unit.active == "inactive" => format!("start it with '{}'", unit.start()),
            Some(unit) => {
                format!("lbd.service is {}; see 'systemctl status lbd'", unit.active)
            }
        }
    }

    /// The user that it runs `lbd` as, unless that is root.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        Some(self.user.as_str()).filter(|user| !matches!(*user, "" | "root" | "0"))
    }

    /// What keeps its user from starting with a configuration that this process could read: files that
    /// the user may not read. Empty if nothing does, or this process is of a user that can't find out.
    ///
    /// # Errors
    ///
    /// It can't be found out, though this process is root's.
    pub fn refuses(&self, config: &Config, file: &Path) -> Result<Vec<Problem>> {
        let Some(user) = self.user().filter(|_| rustix::process::geteuid().is_root()) else {
            return Ok(Vec::new());
        };
        let account = Account::find(user, &self.group)?;
        let (text, seed) = (&config.text.0, config.seed.is_there());
        account.run(|| {
            let mut problems = Config::parse(text).err().unwrap_or_default();
            // What root can't read either is no matter of rights.
            if seed.is_ok()
                && let Err(error) = config.seed.is_there()
            {
                let how = config.seed.file().map_or_else(String::new, readable);
                problems.push(Problem::of_file(format!("{error:#}; {how}")));
            }
            // Another file is a draft, perhaps.
            if file == Path::new(config::DEFAULT_FILE)
                && let Err(error) = std::fs::read(file)
            {
                problems.insert(0, Problem::of_file(format!("{error}; {}", readable(file))));
            }
            problems
        })
    }
}

/// What lets a user of the group `lb` read a file.
fn readable(file: &Path) -> String {
    let file = file.display();
    format!("let the group of lbd read it: 'chgrp lb {file}; chmod 0640 {file}'")
}

/// A user, with the groups that a service of it has.
struct Account {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Account {
    fn find(name: &str, group: &str) -> Result<Self> {
        let user = User::from_name(name).with_context(|| format!("look up the user {name}"))?;
        let user =
            user.with_context(|| format!("lbd.service runs as {name}, and there is no such user"))?;
        let gid = match group {
            "" => user.gid,
            group => {
                let found = Group::from_name(group).with_context(|| format!("look up {group}"))?;
                found.with_context(|| format!("there is no group {group}"))?.gid
            }
        };
        let c_name = std::ffi::CString::new(name)?;
        let groups = getgrouplist(&c_name, gid).context("look up the user's groups")?;
        Ok(Self {
            uid: Uid::from_raw(user.uid.as_raw()),
            gid: Gid::from_raw(gid.as_raw()),
            groups: groups.into_iter().map(|gid| Gid::from_raw(gid.as_raw())).collect(),
        })
    }

    /// Runs something as the user, without root's capabilities: on a thread of its own, since Linux keeps
    /// credentials for each thread, and the C library's functions alone change those of all (nptl(7)).
    fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> Result<T> {
        let run = || {
            set_thread_groups(&self.groups).context("set groups")?;
            set_thread_res_gid(self.gid, self.gid, self.gid).context("set the group")?;
            set_thread_res_uid(self.uid, self.uid, self.uid).context("set the user")?;
            Ok(what())
        };
        thread::scope(|scope| scope.spawn(run).join()).map_err(|_| anyhow!("it panicked"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str, enabled: bool) -> Unit {
        let state = if enabled { "enabled" } else { "disabled" };
        let shown = format!(
            "LoadState=loaded\nActiveState={active}\nSubState={sub}\nUnitFileState={state}\nUser=lb\nGroup=lb\n"
        );
        Unit::parse(&shown).expect("it is loaded")
    }

    #[test]
    fn the_remedy_depends_on_how_the_unit_stands() {
        for (unit, expected) in [
            (None, "start it with 'lbd --config /etc/lb/lb.toml'"),
            (Some(unit("inactive", "dead", false)), "start it with 'systemctl enable --now lbd'"),
            (Some(unit("inactive", "dead", true)), "start it with 'systemctl start lbd'"),
            (
                Some(unit("activating", "auto-restart", true)),
                "lbd.service is activating (auto-restart); 'journalctl -u lbd -n 20' says why",
            ),
            (
                Some(unit("failed", "failed", true)),
                "lbd.service is failed (failed); 'journalctl -u lbd -n 20' says why",
            ),
            (
                Some(unit("activating", "start", true)),
                "lbd.service is activating; see 'systemctl status lbd'",
            ),
        ] {
            assert_eq!(Unit::remedy(unit.as_ref()), expected);
        }
        assert_eq!(Unit::parse("LoadState=not-found\nActiveState=inactive\n"), None);
        assert_eq!(Unit::parse(""), None);
    }

    #[test]
    fn a_service_of_root_has_no_user_to_ask() {
        assert_eq!(unit("active", "running", true).user(), Some("lb"));
        assert_eq!(Unit { user: String::new(), ..unit("active", "running", true) }.user(), None);
    }

    #[test]
    fn files_that_the_user_of_the_unit_may_not_read_are_named() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir()?;
        let key = folder.path().join("sync.key");
        std::fs::write(&key, "01".repeat(32))?;
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        };
        mode(folder.path(), 0o755)?;
        let text = format!(
            "interfaces = [\"eth0\"]\n[sync]\nkey_file = \"{}\"\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\n",
            key.display()
        );
        let config = Config::parse(&text).map_err(|problems| anyhow!("{problems:?}"))?;
        let nobody = Unit { user: "nobody".into(), ..Unit::default() };
        let refused = |expected: bool| -> Result<()> {
            let problems = nobody.refuses(&config, Path::new("/tmp/draft.toml"))?;
            let text: String = problems.iter().map(ToString::to_string).collect();
            assert_eq!(text.contains("chgrp lb"), expected, "{text:?}");
            // This thread is still root's.
            assert!(rustix::process::geteuid().is_root());
            Ok(())
        };
        mode(&key, 0o640)?;
        refused(true)?;
        mode(&key, 0o644)?;
        refused(false)?;
        // A file that could be read is of no use in a folder that can't be entered.
        mode(folder.path(), 0o700)?;
        refused(true)
    }
}
