//! The parts of `lbd`: the daemon's task, its API, the listener, the log and the state file.
//!
//! [`daemon`] owns the engine and turns what comes into changes of what is desired: requests of [`api`], reloads, what
//! health, virtual routers, peers and [`egress`] checks report. [`web`] is the read-only listener over TCP, [`state_file`]
//! what a restart finds again, [`logs`] the log of the process.
//!
//! The parts know nothing of it: it wires them.

pub mod api;
pub mod clock;
pub mod daemon;
pub mod egress;
pub mod logs;
pub mod state_file;
mod store;
pub mod web;
