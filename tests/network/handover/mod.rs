//! The program and its maps change hands while packets come: from an older layout, to other limits,
//! through crashes at every step; and interfaces that lose the program get it again.
//!
//! Needs root. Every test has a network namespace of its own, with frames on real wires.

mod content;
mod crash;
mod interfaces;
mod migration;
mod older;
mod testbed;
mod wide;
mod wire;
