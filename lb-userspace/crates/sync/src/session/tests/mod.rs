//! Sessions over links that lose, repeat, delay and reorder, with nodes that start anew or stand still.

mod simulation;
mod stories;

use std::{net::Ipv4Addr, num::NonZeroU8, ops::Range, time::Duration};

use lb_common::abi::Destination;
use lb_model::{
    desired::{Protocol, ServiceKey},
    router::{Family, RouterKey},
};
use proptest::prelude::*;

use self::simulation::{Links, World};
use crate::{
    Record,
    record::{Base, Flow, Pin},
};

fn service() -> ServiceKey {
    ServiceKey::new(Ipv4Addr::new(10, 0, 0, 100).into(), 443, Protocol::Tcp)
}

fn backend(number: u32) -> lb_model::backend_address::BackendAddress {
    Ipv4Addr::from(0x0a00_0200 + number).into()
}

fn pin(number: u32, to: u32) -> Pin {
    let flow = Flow::Pinned(Ipv4Addr::from(0x0a01_0000 + number).into(), 1000, Destination::ONLY);
    Pin { flow, backend: backend(to), flags: 1, idle: Duration::from_secs(u64::from(number % 60)) }
}

fn pins(numbers: Range<u32>, to: u32) -> Record {
    Record::Pins { service: service(), pins: numbers.map(|number| pin(number, to)).collect() }
}

fn ring(members: u32, digest: u64) -> Record {
    let members = (0..members).map(|number| (backend(number), 1000)).collect();
    Record::Ring { service: service(), slots: 65_537, members, digest }
}

fn bases(slots: Range<u32>, to: u32) -> Record {
    let base = |slot| Base { slot, backend: (slot % 5 != 0).then(|| backend(to)) };
    Record::Bases { service: service(), bases: slots.map(base).collect() }
}

fn ended(numbers: Range<u32>) -> Record {
    let flows = numbers.map(|number| pin(number, 0).flow).collect();
    Record::Ended { service: service(), flows }
}

fn router(number: u8) -> RouterKey {
    let vrid = NonZeroU8::new(number).expect("numbers begin with 1");
    RouterKey { family: Family::V4, vrid }
}

/// What disturbs a world.
#[derive(Clone, Debug)]
enum Trouble {
    /// A node publishes something, small or of several packets.
    Publish { node: usize, what: u32 },
    /// A node requests another to take over.
    RequestTakeover { node: usize, other: usize },
    /// A node wants all of another's history again.
    RequestTransfer { node: usize, other: usize },
    /// A node starts anew, as another session.
    Restart { node: usize },
    /// A node sends its goodbye and starts anew.
    Stop { node: usize },
    /// A node stands still.
    Freeze { node: usize, millis: u64 },
    /// Nothing arrives from one node at another.
    Cut { node: usize, other: usize, millis: u64 },
    /// An attacker sends again what was on the links before.
    Replay,
}

fn trouble(nodes: usize) -> impl Strategy<Value = Trouble> {
    let node = 0..nodes;
    let pair = (0..nodes, 1..nodes).prop_map(move |(node, step)| (node, (node + step) % nodes));
    prop_oneof![
        12 => (node.clone(), any::<u32>()).prop_map(|(node, what)| Trouble::Publish { node, what }),
        2 => pair.clone().prop_map(|(node, other)| Trouble::RequestTakeover { node, other }),
        1 => pair.clone().prop_map(|(node, other)| Trouble::RequestTransfer { node, other }),
        1 => node.clone().prop_map(|node| Trouble::Restart { node }),
        1 => node.clone().prop_map(|node| Trouble::Stop { node }),
        1 => (node, 100_u64..3000).prop_map(|(node, millis)| Trouble::Freeze { node, millis }),
        2 => (pair, 10_u64..3000)
            .prop_map(|((node, other), millis)| Trouble::Cut { node, other, millis }),
        1 => Just(Trouble::Replay),
    ]
}

fn links() -> impl Strategy<Value = Links> {
    (0_u64..30, 0_u64..10, 0_u64..20_000).prop_map(
        |(loss_percent, repeat_percent, jitter_micros)| Links {
            loss_percent,
            repeat_percent,
            jitter_micros,
        },
    )
}

fn troubles(nodes: usize) -> impl Strategy<Value = Vec<(u64, Trouble)>> {
    proptest::collection::vec((0_u64..200, trouble(nodes)), 0..80)
}

/// Lives through all of it; in the end every node has everything.
fn live(nodes: usize, group: bool, seed: u64, links: Links, troubles: Vec<(u64, Trouble)>) {
    let mut world = World::new(nodes, group, seed, links);
    for (pause, trouble) in troubles {
        world.run(Duration::from_millis(pause));
        match trouble {
            Trouble::Publish { node, what } => {
                let from = what % 200;
                world.publish(
                    node,
                    match what / 200 % 5 {
                        0 => vec![ended(from..from + 20)],
                        1 => vec![ring(300 + from, u64::from(what)), bases(from..from + 900, 3)],
                        2 => vec![bases(from..from + 5, 9)],
                        _ => vec![pins(from..from + 1 + what % 90, what % 7)],
                    },
                );
            }
            Trouble::RequestTakeover { node, other } => world.request_takeover(node, other),
            Trouble::RequestTransfer { node, other } => world.request_transfer(node, other),
            Trouble::Restart { node } => world.restart(node, false),
            Trouble::Stop { node } => world.restart(node, true),
            Trouble::Freeze { node, millis } => world.freeze(node, Duration::from_millis(millis)),
            Trouble::Cut { node, other, millis } => {
                world.cut(node, other, Duration::from_millis(millis));
            }
            Trouble::Replay => world.replay(),
        }
    }
    world.converge();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_nodes_know_each_others_history_in_the_end(
        seed: u64, links in links(), troubles in troubles(2),
    ) {
        live(2, false, seed, links, troubles);
    }

    #[test]
    fn three_nodes_know_each_others_history_in_the_end(
        seed: u64, links in links(), troubles in troubles(3),
    ) {
        live(3, false, seed, links, troubles);
    }

    #[test]
    fn three_nodes_of_a_group_know_each_others_history_in_the_end(
        seed: u64, links in links(), troubles in troubles(3),
    ) {
        live(3, true, seed, links, troubles);
    }
}
