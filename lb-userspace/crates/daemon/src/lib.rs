//! The parts of `lbd`: the daemon's task, its API, the listener, the log and the state file.
//!
//! [`daemon`] owns the engine and turns inputs into changes of the desired state: requests of [`api`], reloads, and
//! reports of health, virtual routers, peers and [`egress`] checks. [`web`] is the read-only listener over TCP,
//! [`state_file`] the state across a restart, [`logs`] the log of the process.
//!
//! The parts do not depend on it: it wires them.

pub mod api;
pub mod clock;
pub mod daemon;
pub mod egress;
pub mod logs;
pub mod state_file;
mod store;
pub mod web;
