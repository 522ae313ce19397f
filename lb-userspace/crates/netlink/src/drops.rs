//! Packets that the kernel has dropped at an interface behind the program, as the interface counts them: by its queueing
//! discipline or by its device.
//!
//! What tc redirects goes the way of any packet that the interface sends. The kernel has no count of it alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    tc::{TcAttribute, TcHandle, TcMessage, TcStats2},
};
use tracing::debug;

use super::client::Client;

/// What an interface has dropped of all that it was to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// By its queueing discipline, whose count begins anew when it is replaced.
    pub qdisc: u64,
    /// By its device: no room in the ring, no carrier, errors.
    pub device: u64,
}

/// Those of these interfaces of the calling thread's network namespace that are there; none if they can't be read.
#[must_use]
pub fn of(interfaces: &BTreeSet<String>) -> BTreeMap<String, Drops> {
    let (links, qdiscs) = counters().unwrap_or_else(|error| {
        debug!("read the counters of interfaces: {error:#}");
        Default::default()
    });
    let all = links.iter().filter_map(|link| drops_of(link, &qdiscs));
    all.filter(|(name, _)| interfaces.contains(name)).collect()
}

fn counters() -> Result<(Vec<LinkMessage>, Vec<TcMessage>)> {
    let mut client = Client::open()?;
    let links = client.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    let qdiscs = client.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let qdiscs = qdiscs.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => Some(qdisc),
        _ => None,
    });
    Ok((links.collect(), qdiscs.collect()))
}

fn drops_of(link: &LinkMessage, qdiscs: &[TcMessage]) -> Option<(String, Drops)> {
    let index = link.header.index;
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let device = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats.tx_dropped + stats.tx_errors),
        _ => None,
    });
    // The root counts what the disciplines below it drop.
    let root = qdiscs.iter().find(|qdisc| {
        u32::try_from(qdisc.header.index) == Ok(index) && qdisc.header.parent == TcHandle::ROOT
    });
    Some((name, Drops { qdisc: root.map_or(0, dropped), device: device.unwrap_or_default() }))
}

/// What a queueing discipline has dropped.
fn dropped(qdisc: &TcMessage) -> u64 {
    let stats = qdisc.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Stats2(stats) => Some(stats),
        _ => None,
    });
    let drops = stats.flatten().find_map(|stats| match stats {
        TcStats2::Queue(queue) => Some(queue.drops.into()),
        _ => None,
    });
    drops.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{link::Stats64, tc::TcStatsQueue};

    use super::*;

    fn qdisc(index: i32, parent: TcHandle, drops: u32) -> TcMessage {
        let mut message = TcMessage::default();
        (message.header.index, message.header.parent) = (index, parent);
        let mut queue = TcStatsQueue::default();
        queue.drops = drops;
        message.attributes = vec![TcAttribute::Stats2(vec![TcStats2::Queue(queue)])];
        message
    }

    #[test]
    fn the_root_of_the_interface_counts_for_its_queueing_discipline() {
        let mut link = LinkMessage::default();
        link.header.index = 3;
        link.attributes = vec![LinkAttribute::IfName("eth0".into())];
        let child = TcHandle { major: 1, minor: 1 };
        let mut qdiscs =
            vec![qdisc(2, TcHandle::ROOT, 1), qdisc(3, child, 2), qdisc(3, TcHandle::CLSACT, 4)];
        let counted = |link: &LinkMessage, qdiscs: &[TcMessage]| {
            let (name, drops) = drops_of(link, qdiscs).expect("it has a name");
            assert_eq!(name, "eth0");
            (drops.qdisc, drops.device)
        };
        assert_eq!(counted(&link, &qdiscs), (0, 0));
        qdiscs.push(qdisc(3, TcHandle::ROOT, 8));
        let mut stats = Stats64::default();
        (stats.tx_dropped, stats.tx_errors) = (16, 32);
        link.attributes.push(LinkAttribute::Stats64(stats));
        assert_eq!(counted(&link, &qdiscs), (8, 48));
    }
}
