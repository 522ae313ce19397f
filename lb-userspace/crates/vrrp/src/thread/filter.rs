//! What keeps a node from taking packets to addresses that it is only to forward (RFC 9568, 6.4.3,
//! `Accept_Mode` false): a table of nftables that is ours alone.
//!
//! Packets that a service takes are forwarded before the kernel's network stack, and never meet it.
//! The table is replaced in one transaction and stays when the process dies, as the addresses do; the
//! next one replaces or removes it. Neighbour discovery is let through, as RFC 9568, 6.1 requires.
//!
//! Where the table can't be made (there is no `nft`, or the kernel refuses), a router takes part
//! without it and reports it as a problem, and making it is tried again every second.

use std::{
    net::IpAddr,
    process::{Output, Stdio},
    time::Duration,
};

use lb_model::router::{OWNER, Router};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// The table, which no other program has.
pub const TABLE: &str = "lbd_vrrp";
/// How long `nft` may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The addresses that are not to be taken; the owner takes its own in any case.
pub(crate) fn closed(routers: &[Router]) -> Vec<IpAddr> {
    let closed = routers.iter().filter(|router| is_closed(router));
    let mut closed: Vec<_> =
        closed.flat_map(|router| router.addresses.iter().map(|one| one.address)).collect();
    closed.sort_unstable();
    closed.dedup();
    closed
}

/// Whether a router needs the filter.
pub(crate) fn is_closed(router: &Router) -> bool {
    !router.accept && router.priority.get() != OWNER
}

/// What makes the table be so, whatever there was; without addresses, there is none.
pub(crate) fn script(closed: &[IpAddr]) -> String {
    let mut script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    if closed.is_empty() {
        return script;
    }
    let list = |v4: bool| {
        let of_family = closed.iter().filter(|address| address.is_ipv4() == v4);
        of_family.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    script += &format!("table inet {TABLE} {{\n  chain input {{\n");
    script +=
        "    type filter hook input priority -10; policy accept;\n    iifname \"lo\" accept\n";
    let (v4, v6) = (list(true), list(false));
    if !v4.is_empty() {
        script += &format!("    ip daddr {{ {v4} }} counter drop\n");
    }
    if !v6.is_empty() {
        let discovery = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
        script += &format!("    ip6 daddr {{ {v6} }} {discovery}\n");
        script += &format!("    ip6 daddr {{ {v6} }} counter drop\n");
    }
    script += "  }\n}\n";
    script
}

fn nft(arguments: &[&str]) -> std::io::Result<Output> {
    std::process::Command::new("nft").args(arguments).stdin(Stdio::null()).output()
}

/// Whether there is the table; without an `nft` that could have made it, there is none.
pub(crate) fn is_there() -> Result<bool, String> {
    match nft(&["list", "table", "inet", TABLE]) {
        Ok(listed) => Ok(listed.status.success()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("nft: {error}")),
    }
}

/// Removes the table; false if there is none.
pub(crate) fn remove() -> Result<bool, String> {
    if !is_there()? {
        return Ok(false);
    }
    match nft(&["delete", "table", "inet", TABLE]) {
        Ok(output) if output.status.success() => Ok(true),
        Ok(output) => Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("nft: {error}")),
    }
}

/// Brings it about, with the `nft` command.
pub(crate) async fn apply(closed: &[IpAddr]) -> Result<(), String> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    nft.process_group(0).kill_on_drop(true);
    let run = async {
        let mut child = nft.spawn()?;
        let mut stdin = child.stdin.take().expect("it was requested");
        stdin.write_all(script(closed).as_bytes()).await?;
        drop(stdin);
        child.wait_with_output().await
    };
    match timeout(LIMIT, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        // Nothing was ever made by a command that is not there.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound && closed.is_empty() => {
            Ok(())
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("`accept = false` needs the nft command (package nftables)".to_owned())
        }
        Ok(Ok(output)) => Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Ok(Err(error)) => Err(format!("nft: {error}")),
        Err(_) => Err(format!("nft: took longer than {LIMIT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::thread::test_router;
    use lb_model::router::{Family, RouterKey};

    #[test]
    fn only_addresses_of_routers_that_do_not_accept_are_closed() {
        let router = |vrid, accept, priority| {
            let key = RouterKey { family: Family::V4, vrid: NonZeroU8::new(vrid).expect("one") };
            let mut router = test_router("one", key);
            router.accept = accept;
            router.priority = NonZeroU8::new(priority).expect("one");
            router.addresses[0].address = IpAddr::from([10, 0, 0, vrid]);
            router
        };
        let routers = [router(1, true, 100), router(2, false, 100), router(3, false, OWNER)];
        assert_eq!(closed(&routers), [IpAddr::from([10, 0, 0, 2])]);
    }

    #[test]
    fn neighbour_discovery_is_let_through() {
        let closed = ["10.0.0.100", "fd00::100"].map(|one| one.parse().expect("an address"));
        let script = script(&closed);
        let discovery = script.find("nd-neighbor-solicit").expect("a rule");
        assert!(discovery < script.find("ip6 daddr { fd00::100 } counter drop").expect("a rule"));
        assert!(script.contains("ip daddr { 10.0.0.100 } counter drop"));
    }

    #[test]
    fn without_addresses_there_is_no_table() {
        let script = script(&[]);
        assert_eq!(script.lines().last(), Some("delete table inet lbd_vrrp"));
    }
}
