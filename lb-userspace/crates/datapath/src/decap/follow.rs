//! A decapsulator whose lists follow the addresses of the host: a VIP that comes onto the loopback is
//! unwrapped from then on.
//!
//! The program itself can't know the addresses: `bpf_fib_lookup` has one answer for what is local, for
//! broadcasts and for what no route leads to (`NOT_FWDED`), and on a host that does not route another one
//! for everything (`FWD_DISABLED`). So a process follows them. Packets do not depend on it: without it the
//! lists stay as they are.

use std::{fs::File, net::IpAddr, path::Path};

use anyhow::Result;
use lb_netlink::query;
use serde::{Deserialize, Serialize};

use super::{
    Attached, Options, attach_locked,
    lists::{self, ADDRESSES, Lists, Origin, VIPS},
    pins::Pins,
};

/// Keeps the lists of one decapsulator as the addresses are. While it lives, no other process attaches there.
#[derive(Debug)]
pub struct Follower {
    dev: String,
    options: Options,
    pins: Pins,
    _lock: File,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Outer destinations that are taken from now on.
    pub addresses_added: Vec<IpAddr>,
    /// Those that are no longer.
    pub addresses_removed: Vec<IpAddr>,
    /// VIPs that are taken from now on.
    pub vips_added: Vec<IpAddr>,
    /// Those that are no longer.
    pub vips_removed: Vec<IpAddr>,
}

/// How things stand with a decapsulator that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The lists are as the addresses are, and were.
    Same,
    /// The lists have become as the addresses are.
    Changed(Change),
    /// Another process has detached it, as `lbctl decap detach` does.
    Detached,
    /// The interface is gone, or has lost the program, which only to attach it again mends.
    Lost(String),
}

impl Follower {
    /// Attaches the decapsulator to `dev` as [`super::attach`] does, though there may be no address yet.
    ///
    /// # Errors
    ///
    /// As [`super::attach`], and if another process follows it.
    pub fn start(dev: &str, options: &Options, pin_dir: &Path) -> Result<(Self, Attached)> {
        let (attached, pins, lock) = attach_locked(dev, options, pin_dir, |_| Ok(()))?;
        let (dev, options) = (dev.into(), options.clone());
        Ok((Self { dev, options, pins, _lock: lock }, attached))
    }

    /// Looks at the addresses, and makes the lists like them.
    ///
    /// # Errors
    ///
    /// If the addresses can't be read, or a list can't be written.
    pub fn step(&self) -> Result<Step> {
        if !self.pins.link().exists() {
            return Ok(Step::Detached);
        }
        let interfaces = query::interfaces()?;
        match (interfaces.get(&self.dev), self.pins.program()) {
            (None, _) => return Ok(Step::Lost(format!("interface {} is gone", self.dev))),
            (Some(interface), Some(program)) if interface.xdp_prog_id != Some(program) => {
                return Ok(Step::Lost(format!("interface {} has lost the program", self.dev)));
            }
            _ => {}
        }
        let lists = Lists::of(&self.dev, &self.options, &interfaces)?;
        let update = |name, list: &lists::List| match list.origin {
            Origin::Named => Ok(lists::Difference::default()),
            Origin::Found => lists::update(&self.pins.map(name), list),
        };
        let addresses = update(ADDRESSES, &lists.addresses)?;
        let vips = update(VIPS, &lists.vips)?;
        let change = Change {
            addresses_added: addresses.added,
            addresses_removed: addresses.removed,
            vips_added: vips.added,
            vips_removed: vips.removed,
        };
        Ok(if change.is_empty() { Step::Same } else { Step::Changed(change) })
    }
}

impl Change {
    fn is_empty(&self) -> bool {
        let Self { addresses_added, addresses_removed, vips_added, vips_removed } = self;
        [addresses_added, addresses_removed, vips_added, vips_removed]
            .iter()
            .all(|list| list.is_empty())
    }
}
