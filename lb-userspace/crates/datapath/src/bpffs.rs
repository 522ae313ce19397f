//! The BPF file system that holds the pins.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// Where it is mounted by convention.
const ROOT: &str = "/sys/fs/bpf";
/// From linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Makes sure that `pin_dir` is, or will be, in a BPF file system; mounts the conventional one if
/// it is to be there and is missing.
pub(super) fn ensure_mounted(pin_dir: &Path) -> Result<()> {
    if is_bpffs(pin_dir)? {
        return Ok(());
    }
    if !pin_dir.starts_with(ROOT) {
        bail!(
            "{}: not in a BPF file system, which pins need; set `pin_dir` to a folder below {ROOT}",
            pin_dir.display()
        );
    }
    if !is_mount_point(Path::new(ROOT)) {
        mount().with_context(|| {
            format!("mount the BPF file system; `mount -t bpf bpf {ROOT}` does the same")
        })?;
    }
    if is_bpffs(pin_dir)? { Ok(()) } else { bail!("{ROOT} is mounted, but is no BPF file system") }
}

/// Makes a folder of pins, for its owner alone.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("make {}", path.display()))
}

/// Makes the caller the only one that writes what is pinned in `pin_dir`, until the file is dropped
/// or the process ends, however it does. The API's socket can't: two configurations may differ in
/// it and share the pins.
pub(super) fn lock(pin_dir: &Path) -> Result<fs::File> {
    let folder = fs::File::open(pin_dir).with_context(|| format!("open {}", pin_dir.display()))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(fs::TryLockError::WouldBlock) => bail!(
            "{}: an lbd is running with these pins; stop it first, or talk to it with \
             `lbctl --socket` and the `socket` of its configuration",
            pin_dir.display()
        ),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", pin_dir.display()))
        }
    }
}

/// Whether a path, or the nearest folder above it that exists, is in a BPF file system.
fn is_bpffs(path: &Path) -> Result<bool> {
    let there = path.ancestors().find(|path| path.exists()).context("no such path")?;
    let name = CString::new(there.as_os_str().as_bytes())?;
    let mut info = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the name ends in a zero byte, and `info` has room for the answer.
    let result = unsafe { libc::statfs(name.as_ptr(), info.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| there.display().to_string());
    }
    // SAFETY: the call has succeeded, so it has filled it.
    let info = unsafe { info.assume_init() };
    Ok(info.f_type == BPF_FS_MAGIC)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    device(path) != path.parent().and_then(device)
}

fn mount() -> io::Result<()> {
    // SAFETY: all strings end in a zero byte, and no data is passed.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            c"/sys/fs/bpf".as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
