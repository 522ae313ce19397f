//! Services in mode `ipip` on a node whose hardware takes VLAN tags off: their ICMP errors, which clients need for path MTU
//! discovery, leave untagged.
//!
//! A service that is new is refused. One that is in force at a start is not: health checks and virtual routers would go with it.

use lb_config::Config;
use lb_model::{
    desired::{Desired, Mode},
    refusal::{Refusal, RefusalKind},
};
use lb_plane::DataPlane;

use super::Daemon;

/// Names the interfaces with VLANs whose tags are taken off.
pub(crate) type Trunks = Box<dyn Fn() -> Vec<String> + Send>;

impl<D: DataPlane> Daemon<D> {
    /// Has it look for trunks before a service in mode `ipip` is added.
    #[must_use]
    pub fn with_trunks(self, trunks: Trunks) -> Self {
        Self { trunks: Some(trunks), ..self }
    }

    pub(super) fn check_trunks(&self, config: &Config, wanted: &Desired) -> Result<(), Refusal> {
        let is_tunnelled = |desired: &Desired, name: &str| {
            desired.services.get(name).is_some_and(|service| service.mode == Mode::Ipip)
        };
        let is_new = |name: &&String| {
            is_tunnelled(wanted, name) && !is_tunnelled(self.store.desired(), name)
        };
        let (Some(trunks), Some(name)) = (&self.trunks, wanted.services.keys().find(is_new)) else {
            return Ok(());
        };
        if config.allow_rxvlan {
            return Ok(());
        }
        match trunks().as_slice() {
            [] => Ok(()),
            [interface, ..] => {
                let text = format!(
                    "service {name}: mode \"ipip\" needs ICMP errors, and {interface} takes VLAN tags \
                     off in hardware (rxvlan), so that errors for clients of its VLANs would leave \
                     untagged"
                );
                let hint = format!(
                    "`ethtool -K {interface} rxvlan off`; or `allow_rxvlan = true` in the \
                     configuration if no client comes by a VLAN"
                );
                Err(Refusal::new(RefusalKind::Invalid, text).hint(hint))
            }
        }
    }
}
