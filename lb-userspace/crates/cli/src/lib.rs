//! `lbctl`: commands, their output, and `lbctl doctor`.
//!
//! [`cli`] sends requests to `lbd` over its socket and prints the answers. [`doctor`] first takes a snapshot of the node, then
//! decides without I/O which are faults.
//!
//! It knows the types of `lbd`'s answers, its configuration and the parts that work without it (detach, decap, leftovers);
//! nothing of how `lbd` comes to its answers.

pub mod cli;
pub mod doctor;
