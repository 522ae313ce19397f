//! The smallest XDP programs: one that lets every packet pass, for the far end of the balancer's wire, and one that sends
//! every packet to another interface.
//!
//! Frames that a program transmits (`XDP_TX`) on one end of a veth pair are queued at the other end; the
//! kernel wakes the other end to look there only if that has an XDP program too
//! (`veth_xdp_flush()` in drivers/net/veth.c), whatever else makes it poll. A few instructions are no
//! reason for an object file and its loader: they are handed to bpf(2) here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;

// From linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type.
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`, linux/if_link.h: native mode.
const NATIVE: u32 = 4;

/// `r0 = XDP_PASS; exit`, as in `struct bpf_insn`.
const PASS: [u64; 2] = [(2 << 32) | 0xb7, 0x95];

/// The first fields of `union bpf_attr` for `PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The fields of `union bpf_attr` for `LINK_CREATE`.
#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    ifindex: u32,
    attach: u32,
    flags: u32,
}

/// For `OBJ_PIN`.
#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

/// Attaches a program that lets every packet pass to an interface, in native mode, until `pin` is
/// removed.
///
/// # Errors
///
/// If the kernel refuses.
pub fn pass(namespace: &Namespace, interface: &str, pin: &Path) -> Result<()> {
    attach(namespace, interface, &PASS, pin)
}

/// The same with a program that sends every packet to another interface by its index, which need not be there.
///
/// # Errors
///
/// If the kernel refuses.
pub fn redirect(namespace: &Namespace, interface: &str, to: u32, pin: &Path) -> Result<()> {
    // `r1 = to; r2 = 0; call bpf_redirect; exit`
    let program = [(u64::from(to) << 32) | 0x1b7, 0x2b7, (23 << 32) | 0x85, 0x95];
    attach(namespace, interface, &program, pin)
}

fn attach(namespace: &Namespace, interface: &str, code: &[u64], pin: &Path) -> Result<()> {
    let license = c"GPL";
    let load = Load {
        kind: PROG_TYPE_XDP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    let program = descriptor(call(PROG_LOAD, &load)).context("load an XDP program")?;
    let name = CString::new(interface).context("an interface's name")?;
    let link = namespace.enter(|| {
        // SAFETY: the name is a string that ends with a zero byte.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let link = LinkCreateAttr {
            program: program.as_raw_fd() as u32,
            ifindex,
            attach: ATTACH_XDP,
            flags: NATIVE,
        };
        descriptor(call(LINK_CREATE, &link))
    })?;
    let link = link.with_context(|| format!("attach an XDP program to {interface}"))?;
    let path = CString::new(pin.as_os_str().as_encoded_bytes()).context("a path")?;
    let attr = Pin { path: path.as_ptr() as u64, object: link.as_raw_fd() as u32, flags: 0 };
    call(OBJ_PIN, &attr).with_context(|| format!("pin {}", pin.display()))?;
    Ok(())
}

/// Takes the program of a pinned link off its interface, as `bpftool link detach` does.
///
/// # Errors
///
/// If there is no such link.
pub fn detach(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes()).context("a path")?;
    let attr = Pin { path: path.as_ptr() as u64, object: 0, flags: 0 };
    let link = descriptor(call(OBJ_GET, &attr)).with_context(|| pin.display().to_string())?;
    call(LINK_DETACH, &link.as_raw_fd()).context("detach a link")?;
    Ok(())
}

/// bpf(2). What `attr` points to must live and be as its command reads it, which the callers here
/// all see to.
fn call<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size` bytes of `attr` and what that points to; these commands write
    // nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn descriptor(result: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: these commands return a descriptor that belongs to the caller alone.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
