//! The TCP packets that come to the client and answer no flow of it.
//!
//! Rules of nftables in the client's namespace note the flow of each packet that it sends, and each packet that comes by
//! whose addresses and ports there is no such flow. An answer with a backend's address or port as its source is one,
//! and one for another client's address or port, even where the connection that it should have reached goes on.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context as _, Result};
use kit::{command, lab::Lab, namespace::Namespace};
use serde_json::Value;

/// The rules. A flow is known for longer than a backend may retransmit after the client's last packet.
const RULES: &str = "
table inet soak {
  set flows_v4 {
    type ipv4_addr . inet_service . ipv4_addr . inet_service
    flags dynamic,timeout; timeout 10m; size 1048576
  }
  set flows_v6 {
    type ipv6_addr . inet_service . ipv6_addr . inet_service
    flags dynamic,timeout; timeout 10m; size 1048576
  }
  set unsolicited_v4 {
    type ipv4_addr . inet_service . ipv4_addr . inet_service
    flags dynamic; size 1024
  }
  set unsolicited_v6 {
    type ipv6_addr . inet_service . ipv6_addr . inet_service
    flags dynamic; size 1024
  }
  chain sent {
    type filter hook output priority 0
    update @flows_v4 { ip daddr . tcp dport . ip saddr . tcp sport }
    update @flows_v6 { ip6 daddr . tcp dport . ip6 saddr . tcp sport }
  }
  chain received {
    type filter hook prerouting priority -300
    ip saddr . tcp sport . ip daddr . tcp dport != @flows_v4 \
      add @unsolicited_v4 { ip saddr . tcp sport . ip daddr . tcp dport }
    ip6 saddr . tcp sport . ip6 daddr . tcp dport != @flows_v6 \
      add @unsolicited_v6 { ip6 saddr . tcp sport . ip6 daddr . tcp dport }
  }
}
";

/// Source and destination of a packet.
type Packet = (SocketAddr, SocketAddr);

/// The rules at work.
#[derive(Debug)]
pub struct Filter {
    client: Namespace,
    known: BTreeSet<Packet>,
}

impl Filter {
    /// Sets the rules, before the client sends anything.
    ///
    /// # Errors
    ///
    /// If nft refuses.
    pub fn start(lab: &Lab) -> Result<Self> {
        let client = Namespace::existing(lab.client.namespace.name());
        command::run_with_input(client.command("nft").args(["-f", "-"]), RULES)?;
        Ok(Self { client, known: BTreeSet::new() })
    }

    /// Unsolicited packets since the last call, each source and destination once.
    ///
    /// # Errors
    ///
    /// If nft fails.
    pub fn new_ones(&mut self) -> Result<Vec<Packet>> {
        let mut new = Vec::new();
        for set in ["unsolicited_v4", "unsolicited_v6"] {
            let mut nft = self.client.command("nft");
            let listed = command::run(nft.args(["-j", "list", "set", "inet", "soak", set]))?;
            new.extend(packets(&listed)?.into_iter().filter(|packet| self.known.insert(*packet)));
        }
        Ok(new)
    }
}

/// The elements of a listed set.
fn packets(listed: &str) -> Result<Vec<Packet>> {
    let listed: Value = serde_json::from_str(listed).context("the output of nft")?;
    let objects = listed["nftables"].as_array().context("a list of objects")?;
    let set = objects.iter().find_map(|object| object.get("set")).context("a set")?;
    let Some(elements) = set["elem"].as_array() else { return Ok(Vec::new()) };
    let packet = |element: &Value| {
        let end = |n: usize| {
            let address = element["concat"][n].as_str()?.parse().ok()?;
            Some(SocketAddr::new(address, element["concat"][n + 1].as_u64()?.try_into().ok()?))
        };
        end(0).zip(end(2)).with_context(|| format!("an element of a set: {element}"))
    };
    elements.iter().map(packet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_an_empty_set_has_none() -> Result<()> {
        let listed = |more: &str| {
            let set = format!(r#"{{"set": {{"name": "unsolicited_v4"{more}}}}}"#);
            packets(&format!(r#"{{"nftables": [{{"metainfo": {{}}}}, {set}]}}"#))
        };
        assert_eq!(listed("")?, []);
        let one = r#", "elem": [{"concat": ["10.0.0.11", 8080, "10.0.0.2", 4000]}]"#;
        assert_eq!(listed(one)?, [("10.0.0.11:8080".parse()?, "10.0.0.2:4000".parse()?)]);
        assert!(listed(r#", "elem": ["10.0.0.11"]"#).is_err());
        Ok(())
    }
}
