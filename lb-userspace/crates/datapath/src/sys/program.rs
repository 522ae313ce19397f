//! The kernel's record of a program.

use std::{
    collections::BTreeSet,
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use zerocopy::{FromBytes, FromZeros as _, IntoBytes};

use super::{Info, OBJ_GET_INFO_BY_FD, Object, bpf, open_pinned};

// From linux/bpf.h, enum bpf_cmd.
const OBJ_PIN: libc::c_int = 6;
const PROG_GET_FD_BY_ID: libc::c_int = 13;

/// The beginning of `struct bpf_prog_info`.
#[derive(Clone, Copy, IntoBytes, FromBytes)]
#[repr(C)]
struct RawProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    machine_code_len: u32,
    instructions_len: u32,
    machine_code: u64,
    instructions: u64,
    loaded: u64,
    user: u32,
    maps_len: u32,
    maps: u64,
    name: [u8; 16],
}

/// A program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// What it is called, if it is called anything.
    pub name: Option<String>,
    /// The ids of its maps.
    pub maps: BTreeSet<u32>,
}

impl ProgramInfo {
    /// Of the program that is pinned at `path`.
    pub(crate) fn of_pinned(path: &Path) -> io::Result<Self> {
        Self::of(&open_pinned(path)?)
    }

    /// Of an open program.
    pub(crate) fn of(program: &OwnedFd) -> io::Result<Self> {
        let mut raw = RawProgInfo::new_zeroed();
        query(program, &mut raw)?;
        // What is queried twice is the list: how long it is, and then what is in it.
        let mut maps = vec![0_u32; raw.maps_len as usize];
        let mut raw = RawProgInfo::new_zeroed();
        raw.maps_len = maps.len() as u32;
        raw.maps = maps.as_mut_ptr() as u64;
        query(program, &mut raw)?;
        maps.truncate(raw.maps_len as usize);
        let end = raw.name.iter().position(|&byte| byte == 0).unwrap_or(raw.name.len());
        let name = String::from_utf8_lossy(&raw.name[..end]).into_owned();
        let name = Some(name).filter(|name| !name.is_empty());
        Ok(Self { id: raw.id, name, maps: maps.into_iter().collect() })
    }
}

fn query(program: &OwnedFd, raw: &mut RawProgInfo) -> io::Result<()> {
    let mut attr = Info {
        fd: program.as_raw_fd() as u32,
        length: size_of::<RawProgInfo>() as u32,
        info: std::ptr::from_mut(raw) as u64,
    };
    // SAFETY: `raw` has room for `length` bytes, and the list in it for as many as it declares.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// Opens a program by its id, for which the kernel wants `CAP_SYS_ADMIN`.
pub(crate) fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attr = id;
    // SAFETY: the only attribute is an id.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel has just given this descriptor, and no other code has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an open program.
pub(crate) fn pin_program(program: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = program.as_raw_fd() as u32;
    let mut attr = Object { path: path.as_ptr() as u64, fd, flags: 0 };
    // SAFETY: the path ends in a zero byte.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}
