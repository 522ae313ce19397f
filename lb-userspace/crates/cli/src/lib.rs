//! `lbctl`: commands, what they print, and `lbctl doctor`.
//!
//! [`cli`] asks `lbd` over its socket and prints what it answers. [`doctor`] looks at the node itself: facts come from its
//! `rim`, and what is wrong with them is decided without I/O.
//!
//! It knows what `lbd` answers, its configuration and the parts that work without it (detach, decap, leftovers); nothing
//! of how `lbd` comes to its answers.

pub mod cli;
pub mod doctor;
