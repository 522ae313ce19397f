//! Builds `lb-ebpf` for the BPF target and leaves its objects in `OUT_DIR`, where
//! `datapath::objects` embeds them.

use std::{env, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")?;
    let tools = root.join("target/tools/bin");
    println!("cargo:rerun-if-changed={}", root.join("lb-common").display());
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools].into_iter().chain(env::split_paths(&path)))?;
    ensure!(
        env::split_paths(&path).any(|dir| dir.join("bpf-linker").exists()),
        "bpf-linker is missing; `cargo xtask build` installs it into target/tools and builds"
    );
    // SAFETY: the build script has one thread.
    unsafe { env::set_var("PATH", path) };
    // SAFETY: as above. build-std is what the BPF target's `core` comes from; cargo offers it on a
    // stable toolchain only with this variable.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "1.95.0".into());
    let ebpf = root.join("lb-ebpf");
    aya_build::build_ebpf(
        [Package {
            name: "lb-ebpf",
            root_dir: ebpf.to_str().context("the workspace's path is not UTF-8")?,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
}
