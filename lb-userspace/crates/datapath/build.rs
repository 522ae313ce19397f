//! Builds `lb-ebpf` for the BPF target and copies its objects to `OUT_DIR`, where `objects.rs`
//! embeds them.
//!
//! By hand and not by aya-build: that one passes every line of the inner build on as a warning,
//! and keeps a target folder for each profile of this crate. Here all share `target/bpf`.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

const OBJECTS: [&str; 7] =
    ["balancer", "bench", "capture", "decap", "local", "silent", "tx_errors"];

fn main() -> Result<()> {
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets this crate's folder")?);
    let root = root.ancestors().nth(3).context("the workspace's folder")?;
    for watched in ["lb-ebpf", "lb-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-env-changed=PATH");
    let tools = root.join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools].into_iter().chain(env::split_paths(&path)))?;
    ensure!(
        env::split_paths(&path).any(|dir| dir.join("bpf-linker").exists()),
        "bpf-linker is missing; `cargo xtask build` installs it into target/tools and builds"
    );
    let target_dir = root.join("target/bpf");
    let output = Command::new(env::var_os("CARGO").context("cargo sets CARGO")?)
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--release", "--package", "lb-ebpf"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("PATH", path)
        // build-std is unstable; this is what cargo offers it for on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        // Debug information is what the maps' BTF is made from.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "--cfg=bpf_target_arch=\"x86_64\"\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf",
        )
        // What cargo sets for the host's compiler, clippy among it, is not for the inner build.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .output()
        .context("run cargo for the BPF target")?;
    ensure!(
        output.status.success(),
        "the BPF programs do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    for object in OBJECTS {
        let built = target_dir.join("bpfel-unknown-none/release").join(object);
        fs::copy(&built, out.join(object)).with_context(|| format!("copy {}", built.display()))?;
    }
    Ok(())
}
