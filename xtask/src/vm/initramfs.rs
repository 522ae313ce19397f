//! The guest's first root: busybox, the modules for its own devices, and two scripts.
//!
//! `guest/init` mounts this machine's root under a scratch layer; `guest/run`, in that root, runs the
//! script and prints its exit code.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use kit::command;

use super::kernel::Kernel;

/// Disks of files, networks, and the layer above the root; all else the guest loads from there.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_net", "9pnet_virtio", "9p", "overlay"];

const INIT: &str = include_str!("guest/init");
const RUN: &str = include_str!("guest/run");

/// Packs it for a script; the file.
pub(super) fn build(kernel: &Kernel, script: &str, work: &Path) -> Result<PathBuf> {
    let root = work.join("initramfs");
    for folder in ["bin", "dev", "proc", "sys", "lb"] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    busybox(&root)?;
    modules(kernel, &root)?;
    write(&root.join("init"), INIT)?;
    write(&root.join("lb/run"), RUN)?;
    write(&root.join("lb/script"), script)?;
    let init = root.join("init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make init a program")?;
    let packed = work.join("initrd");
    pack(&root, &packed)?;
    Ok(packed)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn busybox(root: &Path) -> Result<()> {
    let there = command::find("busybox").context("no busybox")?;
    let program = root.join("bin/busybox");
    fs::copy(&there, &program).context("copy busybox")?;
    let elf = fs::read(&program).context("read busybox")?;
    let is_static = !needs_linker(&elf);
    ensure!(is_static, "{} is not static: apt-get install -y busybox-static", there.display());
    for link in ["sh", "modprobe"] {
        symlink("busybox", root.join("bin").join(link)).context("link to busybox")?;
    }
    Ok(())
}

/// Whether a program of 64 bits names a dynamic linker, which the guest has not: by a segment of the
/// type PT_INTERP (elf(5)).
fn needs_linker(elf: &[u8]) -> bool {
    const INTERPRETER: u64 = 3;
    let number = |at: u64, len: usize| {
        let at = at as usize;
        let bytes = elf.get(at..at + len).unwrap_or_default();
        bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|n| number(table + n * size, 4) == INTERPRETER)
}

/// Copies the modules with their dependencies, unpacked: busybox can't read all kinds of packing.
fn modules(kernel: &Kernel, root: &Path) -> Result<()> {
    let Kernel { release, lib, .. } = kernel;
    let base = lib.parent().context("the folder of lib")?;
    let theirs = lib.join("modules").join(release);
    let ours = root.join("lib/modules").join(release);
    for module in MODULES {
        let mut modprobe = command::command("modprobe");
        modprobe.arg("-d").arg(base).args(["-S", release, "--show-depends", module]);
        // One that is built in has no file; one that is missing is noticed by the guest.
        let Ok(listed) = command::run(&mut modprobe) else { continue };
        for line in listed.lines() {
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let path = Path::new(path.trim());
            // `-d` may leave a path with and without `usr`.
            let name = path.to_string_lossy();
            let (_, inside) =
                name.split_once(&format!("/{release}/")).context("a module's path")?;
            copy_module(&theirs.join(inside), &ours.join(inside))?;
        }
    }
    fs::create_dir_all(&ours).with_context(|| ours.display().to_string())?;
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let _ = fs::copy(theirs.join(list), ours.join(list));
    }
    command::run(command::command("depmod").arg("-b").arg(root).arg(release)).map(drop)
}

fn copy_module(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a module's folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    if from.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = to.with_extension("");
        let file = fs::File::create(&unpacked).with_context(|| unpacked.display().to_string())?;
        let mut xz = command::command("xz");
        let status = xz.arg("-dc").arg(from).stdout(file).status().context("xz")?;
        ensure!(status.success(), "xz -dc {}: {status}", from.display());
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display())).map(drop)
}

fn pack(root: &Path, packed: &Path) -> Result<()> {
    let mut names = Vec::new();
    list(root, Path::new("."), &mut names)?;
    let file = fs::File::create(packed).with_context(|| packed.display().to_string())?;
    let mut cpio = command::command("cpio");
    cpio.current_dir(root).args(["-0", "-o", "-H", "newc", "--quiet", "--owner", "0:0"]);
    let mut child = cpio.stdin(Stdio::piped()).stdout(file).spawn().context("cpio")?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    std::io::Write::write_all(&mut stdin, names.join("\0").as_bytes()).context("cpio")?;
    drop(stdin);
    let status = child.wait().context("cpio")?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}

/// Names of all files, a folder before its content.
fn list(root: &Path, inside: &Path, names: &mut Vec<String>) -> Result<()> {
    names.push(inside.to_string_lossy().into_owned());
    let path = root.join(inside);
    if path.is_symlink() || !path.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        list(root, &inside.join(entry.context("a folder's entry")?.file_name()), names)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_dynamic_linker_is_told() -> Result<()> {
        let own = fs::read(std::env::current_exe()?)?;
        assert!(needs_linker(&own), "this program is linked dynamically");
        let mut header = vec![0; 0x40 + 0x38];
        (header[0x20], header[0x36], header[0x38]) = (0x40, 0x38, 1);
        header[0x40] = 1;
        assert!(!needs_linker(&header), "its one segment is loaded");
        header[0x40] = 3;
        assert!(needs_linker(&header));
        assert!(!needs_linker(b""));
        Ok(())
    }
}
