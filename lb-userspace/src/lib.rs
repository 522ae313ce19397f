//! The user side of the balancer: everything that `lbd` and `lbctl` are made of.
//!
//! The walk of a change: a configuration file, a request over the socket or an event of netlink
//! edits [`desired::Desired`]; [`reconcile`] plans the difference to what the maps hold;
//! [`engine`] applies it through a [`datapath::DataPlane`]. Nothing else writes maps.

pub use lb_api::{check_status, status};
pub use lb_cli::{cli, doctor};
pub use lb_config::{self as config, seed, unit};
pub use lb_control::{engine, reconcile};
pub use lb_daemon::{api, clock, daemon, egress, logs, state_file, web};
pub use lb_datapath::{self as datapath, objects};
pub use lb_health as health;
pub use lb_inspect::{capture, explain, flows};
pub use lb_model::{
    check, desired, diff, edit, entry, flow, hop, keys, maglev, overrides, plan, policy, refusal,
    ring, router, rules, seen, settings, spec, time, units,
};
pub use lb_netlink::{self as netlink, path_mtu};
pub use lb_observe::{dashboard, events, metrics, samples};
pub use lb_sync as sync;
pub use lb_vrrp as vrrp;

pub use lb_threads::notify;
