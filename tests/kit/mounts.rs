//! The file systems that tests need, mounted where they are missing.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use crate::{command, lab::ROOT};

/// Where bpffs is mounted.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs where it belongs, and memory where labs are if /run is on a disk, unless they are there: a web host
/// whose log waits for the disk of a machine that compiles answers no request for seconds.
///
/// # Errors
///
/// If the kernel refuses.
pub fn prepare() -> Result<()> {
    bpffs()?;
    let _lock = lock()?;
    if !is_mounted("tmpfs", "/run")? && !is_mounted("tmpfs", ROOT)? {
        fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT}"))?;
        let mut mount = command::command("mount");
        command::run(mount.args(["-t", "tmpfs", "-o", "mode=755", "tmpfs", ROOT]))?;
    }
    Ok(())
}

/// Mounts bpffs where it belongs, unless it is there.
///
/// # Errors
///
/// If the kernel refuses.
pub fn bpffs() -> Result<()> {
    let _lock = lock()?;
    if !is_mounted("bpf", BPFFS)? {
        command::run(command::command("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    ensure!(Path::new(BPFFS).is_dir(), "{BPFFS} is missing; this kernel has no BPF file system");
    Ok(())
}

/// Of two that find a mount missing, the second would hide the first one's.
fn lock() -> Result<File> {
    let lock = File::create("/run/lb-lab.lock").context("create the lock of labs")?;
    lock.lock().context("wait for the lock of labs")?;
    Ok(lock)
}

fn is_mounted(kind: &str, place: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(place) && fields.next() == Some(kind)
    }))
}
