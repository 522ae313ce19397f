//! Netlink, which the balancer learns of its neighbours by: flooded, and gone.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    lab::{INTERFACE, Lab, Options},
    status::BackendExt as _,
    wait,
    ways::balanced,
};

use super::{
    AT_ONCE, CHECK, SOON, WAY, clients, none_failed, run_for, wait_all_serve, wait_answered,
    wait_for,
};

/// A netlink socket of `lbd`, as its own process has it.
struct Socket {
    inode: u64,
    /// Whether it is for events.
    follows: bool,
    /// How often the kernel had no room for an event.
    drops: u64,
}

/// `lbd`'s sockets for routes, links and neighbours.
fn sockets(balancer: &Balancer) -> Result<Vec<Socket>> {
    let own = descriptors(balancer)?;
    let table = fs::read_to_string(format!("/proc/{}/net/netlink", balancer.pid()?));
    let table = table.context("read the table of netlink sockets")?;
    let socket = |row: &str| {
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; protocol 0 is NETLINK_ROUTE.
        let row: Vec<_> = row.split_whitespace().collect();
        let inode = row.get(9)?.parse().ok()?;
        let follows = *row.get(3)? != "00000000";
        let drops = row.get(8)?.parse().ok()?;
        let is_own = row.get(1) == Some(&"0") && own.iter().any(|(_, own)| *own == inode);
        is_own.then_some(Socket { inode, follows, drops })
    };
    Ok(table.lines().skip(1).filter_map(socket).collect())
}

/// The descriptors of `lbd` that are sockets, with their inodes.
fn descriptors(balancer: &Balancer) -> Result<Vec<(i32, u64)>> {
    let folder = format!("/proc/{}/fd", balancer.pid()?);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        let entry = entry.with_context(|| folder.clone())?;
        // It may be closed by now.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        let number = entry.file_name().to_string_lossy().parse();
        if let (Some(inode), Ok(number)) = (inode.and_then(|inode| inode.parse().ok()), number) {
            found.push((number, inode));
        }
    }
    Ok(found)
}

/// A second handle of a socket of `lbd`: an option that is set on it is set on both.
fn borrow(balancer: &Balancer, socket: &Socket) -> Result<OwnedFd> {
    let sockets = descriptors(balancer)?;
    let found = sockets.iter().find(|(_, inode)| *inode == socket.inode);
    let (number, _) = found.context("the socket is closed")?;
    // SAFETY: these calls take numbers only; their results are checked.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, balancer.pid()?, 0) };
    ensure!(pidfd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just given this descriptor.
    let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(pidfd)?) };
    // SAFETY: as above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), *number, 0) };
    ensure!(fd >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just given this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> Result<()> {
    let (fd, length) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads as many bytes of `value` as it has.
    let done = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), length)
    };
    ensure!(done == 0, "setsockopt {option}: {}", io::Error::last_os_error());
    Ok(())
}

/// Gives a web host another MAC address, which it announces.
fn change_mac(lab: &Lab, web: usize, mac: &str) -> Result<()> {
    let host = &lab.webs[web].host.namespace;
    host.sysctl(&[("ipv4/conf/eth0/arp_notify", "1")])?;
    host.ip(&format!("link set {INTERFACE} address {mac}")).map(drop)
}

/// Waits until the balancer sends to that address.
fn wait_mac(lab: &Lab, balancer: &Balancer, web: usize, mac: &str) -> Result<()> {
    let at = WAY.backend(&lab.webs[web]);
    wait_for(balancer, WAY, at, &format!("is at {mac}"), |backend| {
        backend.mac.as_deref() == Some(mac)
    })
    .map(drop)
}

#[test]
fn flood_of_events_hides_no_change_of_a_mac_and_costs_no_request() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&Options::default(), &[WAY], CHECK)?;
    let events: Vec<_> = sockets(&balancer)?.into_iter().filter(|socket| socket.follows).collect();
    ensure!(events.len() >= 2, "one of the resolver, one of the virtual routers");
    for socket in &events {
        // The least that the kernel grants, so that any flood is too much.
        set(&borrow(&balancer, socket)?, libc::SO_RCVBUF, &0_i32)?;
    }
    let mut flood = String::new();
    for what in ["add", "del"] {
        for number in 0..5_000 {
            let (high, low) = (number / 250, number % 250);
            flood.push_str(&format!("route {what} blackhole 10.200.{high}.{low}\n"));
        }
    }
    let arrivals = clients(&lab, WAY)?;
    balancer_floods(&lab, &flood)?;
    none_failed(arrivals)?;
    // In the midst of the next one.
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| balancer_floods(&lab, &flood));
        change_mac(&lab, 1, "02:00:00:00:00:77")?;
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
    })?;
    wait_mac(&lab, &balancer, 1, "02:00:00:00:00:77")?;
    let lossy = sockets(&balancer)?.iter().filter(|socket| socket.drops > 0).count();
    ensure!(lossy == 1, "routes are followed by one socket, and {lossy} have lost events");
    wait_all_serve(&lab, &balancer, WAY)?;
    wait_answered(&lab, WAY)
}

fn balancer_floods(lab: &Lab, flood: &str) -> Result<()> {
    lab.balancer.namespace.ip(flood).map(drop)
}

#[test]
fn netlink_that_says_nothing_any_more_is_opened_again_without_a_restart() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let mut service = WAY.service(&lab).with(CHECK);
    let added = service.backends.remove(2);
    let mut balancer = Balancer::start(&lab, &[service])?;
    let before: Vec<_> = sockets(&balancer)?.iter().map(|socket| socket.inode).collect();
    ensure!(before.len() >= 2, "one for requests, one for events: {before:?}");
    // `ret 0`: nothing passes.
    let mut nothing = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    for socket in sockets(&balancer)? {
        set(&borrow(&balancer, &socket)?, libc::SO_ATTACH_FILTER, &filter)?;
    }
    let arrivals = clients(&lab, WAY)?;
    // The route to it has to be looked up.
    balancer.lbctl(&["backend", "add", WAY.name(), &added.to_string()])?;
    wait_for(&balancer, WAY, added, "serves", |backend| backend.is_up() && backend.slots > 0)?;
    run_for(AT_ONCE);
    none_failed(arrivals)?;
    // The virtual routers have two of their own, and send nothing while there are none.
    wait::until_true(SOON, "two of its sockets are others", || {
        let now = sockets(&balancer)?;
        let others = now.iter().filter(|socket| !before.contains(&socket.inode)).count();
        Ok(now.len() == before.len() && others >= 2)
    })?;
    balancer.check()?;
    ensure!(balancer.log().contains("its sockets are opened again"), "{}", balancer.log());
    // It gets events again.
    change_mac(&lab, 2, "02:00:00:00:00:78")?;
    wait_mac(&lab, &balancer, 2, "02:00:00:00:00:78")?;
    wait_all_serve(&lab, &balancer, WAY)?;
    wait_answered(&lab, WAY)
}
