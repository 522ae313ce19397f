//! `cargo xtask check`: the formatting, and clippy on both targets with warnings denied.

use anyhow::{Context as _, Result};

use crate::cargo::{self, call, cargo};

/// Runs all checks; the first that fails ends it.
///
/// # Errors
///
/// If one fails.
pub fn run() -> Result<()> {
    println!("check: formatting");
    call(&["fmt", "--all", "--check"]).context("`cargo fmt --all` puts it right")?;
    println!("check: clippy on the host");
    call(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"])?;
    println!("check: clippy on the BPF target");
    // Cargo offers -Z build-std on a stable toolchain only with this variable; the BPF target has
    // no `core` of its own.
    cargo::run(cargo().env("RUSTC_BOOTSTRAP", "1").args([
        "clippy",
        "--quiet",
        "--package",
        "lb-ebpf",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
        "--",
        "-D",
        "warnings",
    ]))?;
    println!("check: documentation");
    cargo::run(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--quiet",
        "--no-deps",
        "--document-private-items",
    ]))
}
