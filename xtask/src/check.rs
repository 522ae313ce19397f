//! `cargo xtask check`: the formatting, and clippy on both targets and the documentation's
//! links, with warnings denied.

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
    // No default member.
    call(&["clippy", "--quiet", "--package", "lb-fuzz", "--", "-D", "warnings"])?;
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
    // It is read by who works on the project, private items and all.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    let doc = ["doc", "--quiet", "--no-deps", "--document-private-items"];
    cargo::run(cargo().env("RUSTDOCFLAGS", flags).args(doc))
}
