//! Inputs from outside, as any bytes: nothing panics, and the assertions of each target hold.
//!
//! A target is a function of one input. Whatever it finds is a panic, which the engine (libFuzzer)
//! takes for a crash and writes the input down. `cargo xtask fuzz` runs them.

mod api;
mod config;
mod input;
mod packets;
mod state;
mod sync;
mod vrrp;

use std::cell::RefCell;

/// The variable that names the target.
pub const VARIABLE: &str = "LB_FUZZ_TARGET";

/// A target's function.
type Target = Box<dyn FnMut(&[u8])>;

thread_local! {
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
}

/// The target of this name, ready.
///
/// # Panics
///
/// If there is none, or its requirements are not there.
#[must_use]
pub fn target(name: &str) -> Target {
    match name {
        "packets" => packets::target().expect("the object is loaded, as root"),
        "vrrp" => Box::new(vrrp::run),
        "sync" => Box::new(sync::run),
        "api" => Box::new(api::run),
        "config" => Box::new(config::run),
        "state" => Box::new(state::run),
        _ => panic!("{VARIABLE} is {name:?}, and there is no such target"),
    }
}

/// Makes the target ready that the variable names.
pub fn begin() {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    TARGET.with_borrow_mut(|place| *place = Some(target(&name)));
}

/// Gives it an input.
pub fn run(input: &[u8]) {
    TARGET.with_borrow_mut(|target| {
        if let Some(target) = target {
            target(input);
        }
    });
}
