//! The kernel's routes to clients, for answers in mode `nat`.

use std::{fs, io, net::IpAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use lb_common::return_route;

use super::{
    generate::{VIP_V4, VIP_V6},
    model::{Neighbours, Routes},
};
use crate::{
    command,
    tun::{Layer, Tun},
};

/// Index of the tap by which clients are reached.
pub const TAP: u32 = 7;

/// Moves the calling thread to a network namespace with routes to the clients of [`super::generate`], by a tap.
///
/// # Errors
///
/// If the kernel refuses.
pub fn by_tap() -> Result<(Tun, Routes)> {
    // SAFETY: no precondition; only this thread moves.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(moved == 0, "make a network namespace: {}", io::Error::last_os_error());
    let tap = Tun::new("tap0", Layer::Ethernet, Some(TAP))?;
    let mac = [2, 0, 0, 0, 0, 0x77];
    let routes = Routes { mac, mtu: 1_400, neighbours: Neighbours::Even };
    set_routes(routes, "main")?;
    Ok((tap, routes))
}

/// Sets them in this table, in the network namespace of the calling thread.
fn set_routes(routes: Routes, table: &str) -> Result<()> {
    let Routes { mtu, .. } = routes;
    let mut lines = format!(
        "link set lo up\nlink set tap0 address 02:00:00:00:00:77 mtu {mtu}\n\
         route add 198.51.100.0/24 dev tap0 table {table}\n\
         route add 2001:db8:c100::/48 dev tap0 table {table}\n",
    );
    for last in 0..=u8::MAX {
        if routes.neighbours == Neighbours::Even
            && let Some([.., a, b]) = routes.neighbour(last)
        {
            for address in [format!("198.51.100.{last}"), format!("2001:db8:c100::{last:x}")] {
                let mac = format!("02:00:00:00:{a:02x}:{b:02x}");
                lines += &format!("neigh replace {address} lladdr {mac} dev tap0 nud permanent\n");
            }
        }
    }
    command::run_with_input(command::command("ip").args(["-batch", "-"]), &lines)?;
    for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{path}"), "1")?;
    }
    Ok(())
}

/// The same where packets come by a tun, and leave by its tap: the routes are for packets from a VIP alone, as the kernel would
/// forward every other packet that passes.
///
/// # Errors
///
/// If the kernel refuses.
pub fn from_vip() -> Result<Routes> {
    for interface in ["tun0", "tap0"] {
        let set = |key: &str, value: &str| {
            fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{key}"), value)
        };
        set("addr_gen_mode", "1")?;
        set("disable_ipv6", "0")?;
    }
    let mac = [2, 0, 0, 0, 0, 0x77];
    let routes = Routes { mac, mtu: 9_000, neighbours: Neighbours::NotAsked };
    command::run(command::command("ip").args(["link", "set", "tap0", "arp", "off"]))?;
    set_routes(routes, "100")?;
    let vips = [IpAddr::from(VIP_V4), IpAddr::from(VIP_V6)];
    for (family, vip) in ["-4", "-6"].into_iter().zip(vips) {
        let vip = vip.to_string();
        // Without it the kernel sends ICMP errors for what has no route.
        let rest = [family, "route", "add", "blackhole", "default"];
        command::run(command::command("ip").args(rest))?;
        // An ICMP error of a router has the route of one of the VIP. The kernel then looks up its next hop as that of a packet
        // of its own.
        for which in [["from", &vip], ["iif", "lo"]] {
            let rule = [&[family, "rule", "add"][..], &which, &["table", "100"]].concat();
            command::run(command::command("ip").args(rule))?;
        }
    }
    Ok(routes)
}

/// Takes all clients' MAC addresses from the kernel, and waits until the program keeps none of them.
///
/// # Errors
///
/// If the kernel refuses.
pub fn forget_neighbours() -> Result<()> {
    let all = ["neigh", "flush", "dev", "tap0", "nud", "permanent"];
    command::run(command::command("ip").args(all))?;
    // A tick of the clock that the program reads is 10 ms at most.
    thread::sleep(Duration::from_nanos(return_route::LIFETIME) + Duration::from_millis(10));
    Ok(())
}
