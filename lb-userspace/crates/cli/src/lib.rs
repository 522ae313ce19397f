//! `lbctl`: commands, what they print, and `lbctl doctor`.
//!
//! [`cli`] asks `lbd` over its socket and prints what it answers. [`doctor`] first reads facts of the node, then decides
//! without I/O what is wrong with them.
//!
//! It knows what `lbd` answers, its configuration and the parts that work without it (detach, decap, leftovers); nothing
//! of how `lbd` comes to its answers.

pub mod cli;
pub mod doctor;
