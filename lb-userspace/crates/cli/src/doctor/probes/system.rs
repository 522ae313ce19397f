//! Parts of the snapshot from /proc and a few system calls.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    thread,
};

use lb_model::desired::Protocol;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::doctor::{
    backend::OwnPorts,
    snapshot::{Process, Sysctls, conf},
};

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub(super) fn number(path: &str) -> Option<i64> {
    read(path).trim().parse().ok()
}

/// The settings that checks look at, in the network namespace of the calling thread.
pub(super) fn sysctls<'a>(interfaces: impl Iterator<Item = &'a String>) -> Sysctls {
    let names = ["net/ipv4/ip_forward"].map(str::to_owned);
    let interfaces = interfaces.map(String::as_str).chain(["all"]);
    let of_interface = interfaces.flat_map(|interface| {
        ["rp_filter", "accept_local", "send_redirects", "arp_ignore", "arp_announce"]
            .map(|setting| conf(interface, setting))
            .into_iter()
            .chain(
                ["accept_redirects", "forwarding"]
                    .map(|name| format!("net/ipv6/conf/{interface}/{name}")),
            )
    });
    let value = |name: String| Some((name.clone(), number(&format!("/proc/sys/{name}"))?));
    Sysctls(names.into_iter().chain(of_interface).filter_map(value).collect())
}

/// The ports that the kernel chooses from for connections of this host, as ranges: without those that are reserved.
pub(super) fn own_ports() -> OwnPorts {
    let ports = |name: &str| read(&format!("/proc/sys/net/ipv4/{name}"));
    OwnPorts::of(&ports("ip_local_port_range"), &ports("ip_local_reserved_ports"))
}

/// How many CPUs are online, or else how many this process may run on.
pub(super) fn cpus() -> u32 {
    let online = read("/sys/devices/system/cpu/online");
    let count = count_of_list(online.trim());
    count.unwrap_or_else(|| thread::available_parallelism().map_or(1, |count| count.get() as u32))
}

/// How many numbers a list as `0-3,8` has.
fn count_of_list(list: &str) -> Option<u32> {
    list.split(',')
        .map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
            Some(to.checked_sub(from)? + 1)
        })
        .sum()
}

/// Where BPF file systems are mounted.
pub(super) fn bpffs() -> Vec<PathBuf> {
    bpffs_in(&read("/proc/self/mounts"))
}

fn bpffs_in(mounts: &str) -> Vec<PathBuf> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "bpf").then(|| at.replace("\\040", " ").into())
    });
    mounts.collect()
}

/// Whether something keeps the clock right.
pub(super) fn clock_synchronised() -> Option<bool> {
    // SAFETY: the type is numbers, for which zero bytes are a value.
    let mut clock = unsafe { std::mem::zeroed::<libc::timex>() };
    // SAFETY: `clock` is valid for the write; with no modes in it, nothing is set.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    (state >= 0).then_some(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0)
}

pub(super) fn group_exists(name: &str) -> bool {
    read("/etc/group").lines().any(|line| line.split(':').next() == Some(name))
}

pub(super) fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path).map(|data| data.permissions().mode()).ok()
}

/// The process that answers on the socket, or why none does.
pub(super) fn daemon(socket: &Path) -> (Option<Process>, Option<String>) {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => return (None, Some(error.to_string())),
    };
    match getsockopt(&stream, PeerCredentials) {
        Ok(peer) => (Some(process(peer.pid().cast_unsigned())), None),
        Err(error) => (None, Some(error.to_string())),
    }
}

fn process(pid: u32) -> Process {
    let status = read(&format!("/proc/{pid}/status"));
    let limits = read(&format!("/proc/{pid}/limits"));
    process_of(pid, &status, &limits)
}

fn process_of(pid: u32, status: &str, limits: &str) -> Process {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default()
    };
    // Soft and hard stand after the name, in columns.
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Process {
        pid,
        // Real, effective, saved and of the file system.
        uid: field("Uid").split_whitespace().nth(1).and_then(|uid| uid.parse().ok()).unwrap_or(0),
        capabilities: u64::from_str_radix(field("CapEff"), 16).unwrap_or(0),
        files: limit("Max open files"),
        memlock: limit("Max locked memory"),
    }
}

/// Where something listens, in the network namespace of the calling thread.
pub(super) fn listeners() -> BTreeSet<(Protocol, SocketAddr)> {
    let tables = [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ];
    let tables = tables.into_iter().flat_map(|(file, protocol)| {
        let listening = listeners_in(&read(&format!("/proc/thread-self/net/{file}")), protocol);
        listening.into_iter().map(move |address| (protocol, address))
    });
    tables.collect()
}

fn listeners_in(table: &str, protocol: Protocol) -> Vec<SocketAddr> {
    // TCP_LISTEN, and TCP_CLOSE, in which sockets of UDP without a peer are.
    let state = if protocol == Protocol::Tcp { "0A" } else { "07" };
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next()?;
        (fields.nth(1)? == state).then(|| address(local))?
    });
    rows.collect()
}

/// An address as the kernel prints it: words in the machine's byte order, in hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Option<Vec<u8>> = address
        .as_bytes()
        .chunks(8)
        .map(|digits| u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok())
        .try_fold(Vec::new(), |mut bytes, word| {
            bytes.extend(word?.to_ne_bytes());
            Some(bytes)
        });
    let bytes = words?;
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st\n   \
             0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000\n   \
             1: 6400000A:0050 0B00000A:C350 01 00000000:00000000 00:00000000\n   \
             2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000\n";
        let found = listeners_in(table, Protocol::Tcp);
        let expected = if cfg!(target_endian = "little") {
            ["127.0.0.1:2024", "0.0.0.0:80"]
        } else {
            ["1.0.0.127:2024", "0.0.0.0:80"]
        };
        assert_eq!(found, expected.map(|text| text.parse().expect("an address")));
        let v6 = "x\n 0: 00000000000000000000000001000000:1F90 00:0 0A\n";
        let found = listeners_in(v6, Protocol::Tcp);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].port(), 8080);
    }

    #[test]
    fn a_process_is_read_from_proc() {
        let status = "Name:\tlbd\nUid:\t0\t998\t998\t998\nCapEff:\t000000c000003000\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 65536                files\n\
             Max locked memory         unlimited            unlimited            bytes\n";
        let expected = Process {
            pid: 7,
            uid: 998,
            capabilities: 0xc0_0000_3000,
            files: Some(1024),
            memlock: None,
        };
        assert_eq!(process_of(7, status, limits), expected);
    }

    #[test]
    fn mounts_and_lists_are_read() {
        let mounts = "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\nnone /a\\040b bpf rw 0 0\n";
        assert_eq!(bpffs_in(mounts), [PathBuf::from("/sys/fs/bpf"), PathBuf::from("/a b")]);
        assert_eq!(count_of_list("0-3,8"), Some(5));
        assert_eq!(count_of_list("0"), Some(1));
        assert_eq!(count_of_list(""), None);
    }
}
