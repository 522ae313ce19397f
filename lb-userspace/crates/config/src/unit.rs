//! The unit of `lbd` in systemd: its state, and the user that it runs `lbd` as.

use std::{path::Path, process::Command, thread};

use anyhow::{Context as _, Result, anyhow};
use lb_model::defaults;
use nix::unistd::{Group, User, getgrouplist};
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

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
        // sd_booted(3): elsewhere `systemctl` has no service manager.
        if !Path::new("/run/systemd/system").exists() {
            return None;
        }
        let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,User,Group";
        let shown = Command::new("systemctl").args(["show", properties, "lbd.service"]).output();
        Self::parse(&String::from_utf8_lossy(&shown.ok()?.stdout))
    }

    /// Reads what `systemctl show` prints; none if there is no such unit.
    #[must_use]
    pub fn parse(shown: &str) -> Option<Self> {
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

    /// The remedy where no `lbd` answers; `unit` is none where systemd has none.
    #[must_use]
    pub fn remedy(unit: Option<&Self>) -> String {
        match unit {
            None => format!("start it with 'lbd --config {}'", defaults::CONFIG),
            Some(unit) if unit.is_retried() || unit.active == "failed" => format!(
                "lbd.service is {} ({}); 'journalctl -u lbd -n 20' shows why",
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

    /// Runs something on a thread of its own with the rights of this user and of the unit's group.
    ///
    /// # Errors
    ///
    /// There is no such user, or this process may not take its rights.
    pub(crate) fn run_as<T: Send>(&self, user: &str, what: impl FnOnce() -> T + Send) -> Result<T> {
        Account::find(user, &self.group)?.run(what)
    }
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

    /// Without root's capabilities. Linux keeps credentials for each thread; only the C library's functions change those
    /// of all (nptl(7)).
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
    fn the_remedy_depends_on_the_state_of_the_unit() {
        for (unit, expected) in [
            (None, "start it with 'lbd --config /etc/lb/lb.toml'"),
            (Some(unit("inactive", "dead", false)), "start it with 'systemctl enable --now lbd'"),
            (Some(unit("inactive", "dead", true)), "start it with 'systemctl start lbd'"),
            (
                Some(unit("activating", "auto-restart", true)),
                "lbd.service is activating (auto-restart); 'journalctl -u lbd -n 20' shows why",
            ),
            (
                Some(unit("failed", "failed", true)),
                "lbd.service is failed (failed); 'journalctl -u lbd -n 20' shows why",
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
}
