//! The calls of bpf(2) that aya lacks: batches, and the kernel's records of links and programs.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    ops::ControlFlow,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::maps::MapData;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

pub mod program;

// From linux/bpf.h, enum bpf_cmd.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_DETACH: libc::c_int = 34;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_QUERY: libc::c_int = 16;

/// A command of bpf(2) with its attributes.
///
/// # Safety
///
/// Every pointer in `attr` is valid for what the kernel reads and writes there.
unsafe fn bpf<A: IntoBytes + FromBytes>(command: libc::c_int, attr: &mut A) -> io::Result<i32> {
    let bytes = attr.as_mut_bytes();
    // SAFETY: the attributes are valid for their size; what they point at is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, bytes.as_mut_ptr(), bytes.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes a map of kind `kind` whose elements are maps like `inner`; its keys and values have four
/// bytes each.
pub(crate) fn map_of_maps(
    kind: u32,
    name: &str,
    entries: u32,
    inner: &MapData,
) -> io::Result<MapData> {
    let mut attr = NewMap::new_zeroed();
    attr.kind = kind;
    attr.key_size = size_of::<u32>() as u32;
    attr.value_size = size_of::<u32>() as u32;
    attr.max_entries = entries;
    attr.inner_map_fd = map_fd(inner);
    // The last byte stays zero: the kernel wants a string.
    for (to, from) in attr.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the attributes hold no pointer.
    let fd = unsafe { bpf(MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for this process.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    MapData::from_fd(fd).map_err(io::Error::other)
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    data_in_len: u32,
    data_out_len: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_len: u32,
    context_out_len: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// Gives an XDP program one frame, as if it had come in by an interface of the calling thread's network namespace, and
/// applies the program's verdict to it (Linux 5.18). XDP_TX becomes a redirect to the same interface there.
pub(crate) fn run_live(program: &OwnedFd, ingress: u32, frame: &[u8]) -> io::Result<()> {
    /// `BPF_F_TEST_XDP_LIVE_FRAMES`.
    const LIVE: u32 = 2;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, frame.len() as u32, 0, ingress, 0, 0];
    let mut attr = TestRun::new_zeroed();
    attr.program = program.as_raw_fd() as u32;
    attr.data_in = frame.as_ptr() as u64;
    attr.data_in_len = frame.len() as u32;
    attr.context_in = context.as_ptr() as u64;
    attr.context_in_len = size_of_val(&context) as u32;
    attr.repeat = 1;
    attr.flags = LIVE;
    // SAFETY: the kernel reads the frame and the context, which live until it returns, and writes neither.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// A map's descriptor, as the kernel takes it for the element of a map of maps.
pub(crate) fn map_fd(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd() as u32
}

/// Whether these are one map in the kernel.
pub(crate) fn is_same_map(one: &MapData, other: &MapData) -> io::Result<bool> {
    let id = |map: &MapData| map.info().map(|info| info.id()).map_err(io::Error::other);
    Ok(id(one)? == id(other)?)
}

/// Waits until every run of a program that is under way has ended, so that one that was swapped out
/// does not write any more. The kernel does so after each write to a map of maps
/// (`maybe_wait_bpf_programs()` in kernel/bpf/syscall.c, Linux 4.20).
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    let word = size_of::<u32>() as u32;
    let inner = aya_obj::Map::new_from_params(ARRAY, word, word, 1, 0);
    let inner = MapData::create(inner, "inner", None).map_err(io::Error::other)?;
    let outer = Table::<u32, u32>::new(map_of_maps(ARRAY_OF_MAPS, "outer", 1, &inner)?)?;
    outer.put(&0, &map_fd(&inner))
}

/// A map with keys and values of known types.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    map: MapData,
    id: u32,
    entries: u32,
    types: PhantomData<fn(K) -> V>,
}

/// Entries of a batch; grown when a bucket of the kernel's hash table holds more.
const BATCH: usize = 4_096;

impl<K, V> Table<K, V>
where
    K: IntoBytes + FromBytes + Immutable + Copy,
    V: IntoBytes + FromBytes + Immutable + Copy,
{
    /// A typed view of a map.
    pub fn new(map: MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other(format!("keys and values of {sizes:?} bytes")));
        }
        let (id, entries) = (info.id(), info.max_entries());
        Ok(Self { map, id, entries, types: PhantomData })
    }

    /// Whether this is a view of the same map.
    pub(crate) const fn is_same<L>(&self, other: &Table<L, V>) -> bool {
        self.id == other.id
    }

    /// How many entries it has room for.
    pub(crate) const fn entries(&self) -> u32 {
        self.entries
    }

    fn element(&self, key: &K, value: *const V) -> Element {
        Element {
            map_fd: map_fd(&self.map),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value as u64,
            flags: 0,
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let mut attr = self.element(key, &raw mut value);
        // SAFETY: key and value have the map's sizes, which `new` has checked.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds or replaces an entry.
    pub(crate) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.element(key, value);
        // SAFETY: key and value have the map's sizes, which `new` has checked.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
    }

    /// Adds or replaces entries, each as [`Self::put`] does. For an array of maps the kernel then waits for
    /// programs once instead of each time (Linux 6.8); one that has no batches for these (before 5.15) is
    /// given them one by one.
    pub(crate) fn put_all(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        // Of the kernel's own, which the C library has no name for.
        const ENOTSUPP: i32 = 524;
        if let ([key], [value]) = (keys, values) {
            return self.put(key, value);
        }
        let count = keys.len().min(values.len());
        if count == 0 {
            return Ok(());
        }
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: count as u32,
            map_fd: map_fd(&self.map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: both buffers hold `count` elements of the map's sizes, which `new` has checked.
        match unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) } {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)
                ) =>
            {
                keys.iter().zip(values).try_for_each(|(key, value)| self.put(key, value))
            }
            Err(error) => Err(error),
        }
    }

    /// Adds an entry unless its key has one; whether it did.
    pub(crate) fn put_new(&self, key: &K, value: &V) -> io::Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        let mut attr = Element { flags: BPF_NOEXIST, ..self.element(key, value) };
        // SAFETY: key and value have the map's sizes, which `new` has checked.
        match unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry; whether there was one.
    pub(crate) fn delete(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.element(key, std::ptr::null());
        // SAFETY: the key has the map's size, which `new` has checked.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Visits every entry, thousands to a call. An entry that moves meanwhile may be met twice.
    pub(crate) fn walk(&self, mut visit: impl FnMut(K, V)) -> io::Result<()> {
        self.walk_while(|key, value| {
            visit(key, value);
            ControlFlow::Continue(())
        })
    }

    /// The same, until the visitor has seen enough.
    pub(crate) fn walk_while(
        &self,
        mut visit: impl FnMut(K, V) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut keys = vec![K::new_zeroed(); BATCH];
        let mut values = vec![V::new_zeroed(); BATCH];
        // Where to go on: opaque, at most as large as a key or a word.
        let mut position = vec![0_u8; size_of::<K>().max(8)];
        let mut next = position.clone();
        let mut first = true;
        loop {
            let mut attr = Batch {
                in_batch: if first { 0 } else { position.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: keys.len() as u32,
                map_fd: map_fd(&self.map),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: both buffers hold `count` elements of the map's sizes, which `new` has
            // checked, and both positions have room for a key.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let last = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket has more entries than the buffers.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    keys.resize(keys.len() * 2, K::new_zeroed());
                    values.resize(values.len() * 2, V::new_zeroed());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(keys.len());
            let mut entries = keys[..count].iter().zip(&values[..count]);
            let seen = entries.try_for_each(|(key, value)| visit(*key, *value));
            if last || seen.is_break() {
                return Ok(());
            }
            std::mem::swap(&mut position, &mut next);
            first = false;
        }
    }
}

/// The kernel's record of a link of XDP or tc.
#[derive(Clone, Copy, Debug, IntoBytes, FromBytes)]
#[repr(C)]
pub(crate) struct LinkInfo {
    /// Kind of link: [`Self::XDP`] or [`Self::TCX`].
    pub kind: u32,
    /// Id of the link.
    pub id: u32,
    /// Id of the program.
    pub program: u32,
    reserved: u32,
    /// Index of the interface; 0 if that is gone.
    pub ifindex: u32,
    rest: [u32; 7],
}

impl LinkInfo {
    /// `BPF_LINK_TYPE_XDP`.
    pub(crate) const XDP: u32 = 6;
    /// `BPF_LINK_TYPE_TCX`.
    pub(crate) const TCX: u32 = 11;

    /// Of the link that is pinned at `path`.
    pub(crate) fn of_pinned(path: &Path) -> io::Result<Self> {
        let fd = open_pinned(path)?;
        let mut info = Self::new_zeroed();
        let mut attr = Info {
            fd: fd.as_raw_fd() as u32,
            length: size_of::<Self>() as u32,
            info: (&raw mut info) as u64,
        };
        // SAFETY: `info` has room for `length` bytes.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
        Ok(info)
    }
}

/// For `PROG_QUERY`.
#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The ids of the programs at the ingress of an interface, in the order in which they run (TCX, Linux 6.6).
pub(crate) fn tcx_programs(ifindex: u32) -> io::Result<Vec<u32>> {
    /// `BPF_TCX_INGRESS`.
    const TCX_INGRESS: u32 = 46;
    // As many as there may be (`BPF_MPROG_MAX`).
    let mut programs = [0_u32; 64];
    let mut attr = Query::new_zeroed();
    attr.ifindex = ifindex;
    attr.attach_type = TCX_INGRESS;
    attr.programs = programs.as_mut_ptr() as u64;
    attr.count = programs.len() as u32;
    // SAFETY: `programs` has room for `count` ids, and no other pointer is set.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(programs[..(attr.count as usize).min(programs.len())].to_vec())
}

/// Takes the program of the link that is pinned at `path` off its interface, at once: removing the
/// pin does so too, but some time later. Linux 5.9.
pub(crate) fn detach_link(path: &Path) -> io::Result<()> {
    let fd = open_pinned(path)?;
    let mut attr = fd.as_raw_fd() as u32;
    // SAFETY: the only attribute is a descriptor.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(|_| ())
}

/// The object that is pinned at `path`.
fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path ends in a zero byte.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just given this descriptor, and no other code has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel's errors of full maps, in words.
pub(crate) fn explain(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => anyhow::Error::new(error)
            .context("the map is full; raise its limit under [limits] and restart lbd"),
        _ => error.into(),
    }
}

/// Whether an entry was refused because its map has no room: a hash map reports that it is full, and one
/// that makes room by itself that it could not find any at this moment.
pub(crate) fn has_no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM))
}

/// The cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to places that outlive the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_no_room_in_the_words_of_either_kind() {
        let no_room = |errno| has_no_room(&io::Error::from_raw_os_error(errno));
        assert!(no_room(libc::E2BIG) && no_room(libc::ENOMEM));
        assert!(!no_room(libc::EINVAL) && !no_room(libc::EEXIST));
    }
}
