//! `cargo xtask check`: the formatting, clippy on both targets and the documentation's links, with
//! warnings denied; that tests start the balancer in namespaces alone, and that no modules import each other.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo::{self, call, cargo},
    imports, workspace,
};

/// Tests that take the built programs elsewhere and start them there in a namespace: into a package, to another
/// user, behind a script in front of them, to the search path of a host's shell.
const COPIES: [&str; 7] = [
    "deploy/package/mod.rs",
    "deploy/systemd.rs",
    "network/commands.rs",
    "network/lifecycle.rs",
    "observe/doctor.rs",
    "observe/doors/user.rs",
    "observe/top/screen.rs",
];

/// Runs all checks; the first that fails ends it.
///
/// # Errors
///
/// If one fails.
pub fn run() -> Result<()> {
    println!("check: formatting");
    call(&["fmt", "--all", "--check"]).context("`cargo fmt --all` puts it right")?;
    println!("check: tests start lbd and lbctl in namespaces");
    starts(&workspace().join("tests"))?;
    println!("check: modules import each other in one direction");
    imports::check(&imports::packages(&workspace())?)?;
    println!("check: clippy on the host");
    // With lb-fuzz, which is no default member: by itself it would have others' crates compiled anew.
    let host = ["clippy", "--quiet", "--workspace", "--exclude", "lb-ebpf", "--all-targets"];
    call(&[&host[..], &["--", "-D", "warnings"]].concat())?;
    // Not one of all targets, as it never runs on a host (`test = false`).
    call(&[
        "clippy",
        "--quiet",
        "--package",
        "lb-tests",
        "--test",
        "guest",
        "--",
        "-D",
        "warnings",
    ])?;
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
    // It is for work on the project, private items and all.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    let doc = ["doc", "--quiet", "--no-deps", "--document-private-items"];
    cargo::run(cargo().env("RUSTDOCFLAGS", flags).args(doc))
}

/// That no test below this folder but [`COPIES`] and the kit takes the path of a built program: started by that, it
/// would run in the host's network.
fn starts(tests: &Path) -> Result<()> {
    let mut folders = vec![tests.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.strip_prefix(tests)?;
            if path.is_dir() {
                folders.extend((name != Path::new("kit")).then_some(path));
            } else if !COPIES.iter().any(|copies| name == Path::new(copies)) {
                let text = fs::read(&path).with_context(|| path.display().to_string())?;
                let takes = String::from_utf8_lossy(&text).contains("binaries()");
                ensure!(
                    !takes,
                    "{}: lbd and lbctl are started by kit::balancer::program, in a namespace",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_starts_lbd_outside_of_a_namespace_is_named() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("lb-xtask-check-{}", std::process::id()));
        let write = |name: &str, text: &str| -> Result<()> {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().context("a folder")?)?;
            Ok(fs::write(file, text)?)
        };
        let direct = "Command::new(balancer::binaries()?.join(\"lbd\"))";
        write("network/good.rs", "balancer::program(&host, \"lbd\")?")?;
        write("kit/balancer.rs", direct)?;
        write(COPIES[0], direct)?;
        starts(&folder)?;
        write("observe/doors/bad.rs", direct)?;
        let refused = starts(&folder);
        fs::remove_dir_all(&folder)?;
        let message = format!("{:#}", refused.err().context("it is refused")?);
        assert!(message.contains("observe/doors/bad.rs"), "{message}");
        Ok(())
    }

    #[test]
    fn what_may_copy_the_programs_is_there() {
        for name in COPIES {
            assert!(workspace().join("tests").join(name).is_file(), "{name}");
        }
    }
}
