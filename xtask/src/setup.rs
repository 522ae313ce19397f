//! The tools that a fresh machine lacks: printed, then installed; where that can't be, the command to run.
//!
//! Pinned tools go to the workspace's `target/tools`, nothing to the user's home. When all is
//! there, this reads a few files and is done.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo::{self, cargo};

/// The BPF linker's version: the one that was built and run together with the pinned aya.
const BPF_LINKER: &str = "0.10.3";

/// Kept while packages are installed: Debian's packages run it to know whether to start their services.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The tools of builds: the BPF linker, and the sources of `core` for the BPF target.
///
/// # Errors
///
/// If it can't be installed; the error names the command.
pub fn tools() -> Result<()> {
    rust_src()?;
    let root = crate::workspace().join("target/tools");
    if installed(&root) {
        return Ok(());
    }
    // Optimised, it takes twice as long to build and links no faster: LLVM does the work.
    let args = ["install", "--debug", "bpf-linker", "--version", BPF_LINKER, "--locked", "--root"];
    println!("set-up: bpf-linker {BPF_LINKER} is missing; installing it into {}", root.display());
    println!("set-up: cargo {} {} (takes minutes)", args.join(" "), root.display());
    cargo::run(cargo().env("CARGO_PROFILE_DEV_DEBUG", "false").args(args).arg(&root))
        .context("the BPF program can't be linked without it; see above")
}

/// The programs of the lab ([`kit::LAB`]), and other programs of [`kit::PROGRAMS`].
///
/// # Errors
///
/// If a program is missing and can't be installed; the error names the command.
pub fn lab_with(others: &[&str]) -> Result<()> {
    these(&lab_and(others))
}

/// The programs of the tests in namespaces: all of [`kit::PROGRAMS`].
///
/// # Errors
///
/// If a program is missing and can't be installed; the error names the command.
pub fn all_tests() -> Result<()> {
    these(kit::PROGRAMS)
}

/// The lab's programs and others, with their packages.
fn lab_and(others: &[&str]) -> Vec<(&'static str, &'static str)> {
    let is_wanted = |program| kit::LAB.contains(&program) || others.contains(&program);
    kit::PROGRAMS.iter().copied().filter(|&(program, _)| is_wanted(program)).collect()
}

/// The compiler of C++ for the fuzzing engine.
///
/// # Errors
///
/// If there is none and it can't be installed; the error names the command.
pub fn compiler() -> Result<()> {
    these(&[("c++", "g++")])
}

/// More requirements of some commands: programs, or files by their whole path, with the Debian package
/// of each.
///
/// # Errors
///
/// If something is missing and can't be installed; the error names the command.
pub fn these(wanted: &[(&str, &str)]) -> Result<()> {
    let here = |program: &str| kit::command::find(program).is_some();
    let missing: Vec<_> = wanted.iter().filter(|(program, _)| !here(program)).collect();
    let mut packages: Vec<_> = missing.iter().map(|&&(_, package)| package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(|&&(program, _)| program).collect();
    install(&packages, &missing.join(", "))?;
    for (program, package) in wanted {
        ensure!(here(program), "{package} is installed and {program} is not there");
    }
    Ok(())
}

/// The typeface of the pictures. They can be made without it: the page takes the machine's fonts.
///
/// # Errors
///
/// If it is missing and can't be installed; the error names the command.
pub fn typeface() -> Result<()> {
    match Path::new("/usr/share/fonts/opentype/inter").exists() {
        true => Ok(()),
        false => install(&["fonts-inter"], "the typeface of the pictures"),
    }
}

/// Installs packages of Debian for missing programs.
fn install(packages: &[&str], missing: &str) -> Result<()> {
    let install = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    let apt = kit::command::find("apt-get");
    let Some(apt) = apt.filter(|_| kit::is_root()) else {
        bail!("not here: {missing}. On Debian and Ubuntu, this installs it: sudo {install}");
    };
    println!("set-up: missing: {missing}; {install}");
    let quiet = Quiet::new(packages)?;
    let apt_get = |args: &[&str]| {
        let mut command = Command::new(&apt);
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(args);
        cargo::run(&mut command)
    };
    let order = [&["install", "--no-install-recommends"], packages].concat();
    // The lists of packages may be missing or old.
    if apt_get(&order).is_err() {
        apt_get(&["update"])?;
        apt_get(&order)?;
    }
    drop(quiet);
    Ok(())
}

/// Whether the pinned BPF linker is in this folder.
fn installed(root: &Path) -> bool {
    let crates = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    root.join("bin/bpf-linker").is_file() && crates.contains(&format!("\"bpf-linker {BPF_LINKER} "))
}

/// The BPF target's `core` is built from the toolchain's `rust-src`.
fn rust_src() -> Result<()> {
    let Some(toolchain) = env::var_os("CARGO").map(PathBuf::from).and_then(|cargo| {
        // <toolchain>/bin/cargo
        Some(cargo.parent()?.parent()?.to_owned())
    }) else {
        return Ok(());
    };
    if toolchain.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Ok(());
    }
    println!("set-up: rustup component add rust-src (the sources of `core`, for the BPF target)");
    let mut rustup = Command::new("rustup");
    rustup.current_dir(crate::workspace()).args(["component", "add", "rust-src"]);
    cargo::run(&mut rustup)
        .context("without rustup, install the sources of the toolchain's standard library")
}

/// The programs among [`kit::PROGRAMS`] whose packages would run them as services of this machine,
/// where nginx would take port 80. The lab runs them itself, in namespaces.
const DAEMONS: [&str; 6] =
    ["nginx", "haproxy", "keepalived", "prometheus", "postgresql", "pgbouncer"];

/// While it lives, a package that is installed starts no service.
struct Quiet {
    made: bool,
    services: Vec<&'static str>,
}

impl Quiet {
    fn new(packages: &[&str]) -> Result<Self> {
        let made = !Path::new(POLICY).exists();
        if made {
            crate::signals::catch();
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .with_context(|| format!("write {POLICY}"))?;
            kit::command::run(Command::new("chmod").args(["755", POLICY]))?;
        }
        Ok(Self { made, services: services(packages, has_unit) })
    }
}

/// The services that these packages bring. A service whose unit `is_there` before the packages is in use.
fn services(packages: &[&str], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut services = DAEMONS.to_vec();
    services.retain(|service| packages.iter().any(|package| package.starts_with(service)));
    services.retain(|service| !is_there(service));
    services
}

/// Whether systemd has a unit for this service.
fn has_unit(service: &str) -> bool {
    ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
        .iter()
        .any(|folder| Path::new(folder).join(format!("{service}.service")).exists())
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.made
            && let Err(err) = fs::remove_file(POLICY)
        {
            eprintln!("set-up: remove {POLICY} by hand: {err}");
        }
        let Some(systemctl) = kit::command::find("systemctl") else { return };
        for service in &self.services {
            println!(
                "set-up: systemctl disable {service}, so that the next boot does not start it"
            );
            let disabled = kit::command::run(Command::new(&systemctl).args(["disable", service]));
            if let Err(err) = disabled {
                eprintln!("set-up: {err:#}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(others: &[&str]) -> Vec<&'static str> {
        lab_and(others).into_iter().map(|(_, package)| package).collect()
    }

    #[test]
    fn the_lab_needs_five_packages_and_none_of_the_tests() {
        assert_eq!(packages(&[]), ["nginx-light", "iproute2", "ethtool", "curl", "util-linux"]);
        let with = packages(&["haproxy", "keepalived"]);
        assert!(with.contains(&"haproxy") && with.contains(&"keepalived"), "{with:?}");
        assert!(!with.contains(&"chromium"), "{with:?}");
    }

    #[test]
    fn the_packages_of_every_command_are_known() {
        let known = |program| kit::PROGRAMS.iter().any(|&(name, _)| name == program);
        for program in kit::LAB.iter().chain(&crate::soak::PROGRAMS) {
            assert!(known(*program), "{program} has no package");
        }
    }

    #[test]
    fn only_services_that_the_packages_bring_are_disabled() {
        let none = |_: &str| false;
        assert_eq!(services(&["nginx-light", "curl"], none), ["nginx"]);
        assert_eq!(services(&["curl", "chromium"], none), [""; 0]);
        let there = |service: &str| service == "nginx";
        assert_eq!(services(&["nginx-light", "haproxy"], there), ["haproxy"]);
    }

    #[test]
    fn another_version_of_the_linker_does_not_count() -> Result<()> {
        let folder = env::temp_dir().join(format!("lb-xtask-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin"))?;
        let crates = |version: &str| {
            let source = "(registry+https://example.org/index)";
            fs::write(
                folder.join(".crates.toml"),
                format!("[v1]\n\"bpf-linker {version} {source}\" = [\"bpf-linker\"]\n"),
            )
        };
        assert!(!installed(&folder));
        crates(BPF_LINKER)?;
        assert!(!installed(&folder), "the record alone is not the program");
        fs::write(folder.join("bin/bpf-linker"), "")?;
        assert!(installed(&folder));
        crates("0.10.30")?;
        assert!(!installed(&folder));
        fs::remove_dir_all(folder)?;
        Ok(())
    }
}
