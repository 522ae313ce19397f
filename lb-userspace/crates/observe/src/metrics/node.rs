//! The node: its program, its maps, passed and dropped packets, and its events.

use std::{collections::BTreeMap, fmt};

use lb_api::{
    event::Kind,
    status::{EgressStatus, Status, Usage},
};
use lb_common::abi::ABI_VERSION;
use lb_netlink::drops::Drops;

use super::page::{Family, Page, truth};

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let abi = ABI_VERSION.to_string();
    page.infos(
        Family::new("lb_build", "Version of lbd, and of the layout of its maps"),
        [[("version", status.version.as_str()), ("abi", &abi)]],
    )?;
    page.gauge(
        Family::new(
            "lb_state_file_failing",
            "Whether the last attempt to write the state file failed, or has taken more than 5 s so far",
        ),
        truth(status.state_file_error.is_some()),
    )?;
    page.gauge(
        Family::new("lb_node_draining", "Whether the node is draining, for maintenance"),
        truth(status.node.draining_since.is_some()),
    )?;
    program(page, status)?;
    listeners(page, status)?;
    verdicts(page, status)?;
    maps(page, status)?;
    writes(page, status)?;
    let count = |kind: &Kind| status.events.get(kind.name()).copied().unwrap_or_default();
    page.counters(
        Family::new("lb_events", "Events since lbd started, by kind, as lbctl events lists them"),
        Kind::ALL.iter().map(|kind| ([("kind", kind.name())], count(kind))),
    )
}

fn program(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let modes = |modes: &'static [&'static str]| {
        status.interfaces.iter().flat_map(move |interface| {
            modes.iter().map(move |mode| {
                (
                    [("interface", interface.name.as_str()), ("mode", *mode)],
                    truth(*mode == interface.mode),
                )
            })
        })
    };
    page.gauges(
        Family::new(
            "lb_attach_mode",
            "How the program runs on an interface: native is XDP in the driver, generic is XDP in the network stack, which is slow, tc is the network stack's ingress",
        ),
        modes(&["native", "generic", "tc"]),
    )?;
    page.gauges(
        Family::new("lb_xdp_mode", "Deprecated: lb_attach_mode without tc"),
        modes(&["native", "generic"]),
    )?;
    page.gauges(
        Family::new(
            "lb_xdp_attached",
            "Whether the balancer's program is on the interface at this moment",
        ),
        status
            .interfaces
            .iter()
            .map(|interface| ([("interface", interface.name.as_str())], truth(interface.attached))),
    )?;
    let lost = status.egress.iter().filter(|exit| exit.state == EgressStatus::LOST).count();
    page.gauge(
        Family::new(
            "lb_egress_not_forwarding",
            "Next hops to which packets that XDP sends are lost, while those of a packet socket arrive",
        ),
        lost as u64,
    )
}

pub(super) fn egress_drops(page: &mut Page<'_>, drops: &BTreeMap<String, Drops>) -> fmt::Result {
    let each = drops.iter().flat_map(|(interface, drops)| {
        [("qdisc", drops.qdisc), ("device", drops.device)]
            .map(|(by, count)| ([("interface", interface.as_str()), ("by", by)], count))
    });
    page.counters(
        Family::new(
            "lb_egress_dropped_packets",
            "Packets that an interface by which backends are reached from tc has dropped, by its queueing discipline or its device: the interface's own counters, of all its traffic",
        ),
        each,
    )
}

fn verdicts(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let packets = |of: &'static str| {
        let counts = if of == "dropped" { &status.dropped } else { &status.passed };
        counts.iter().map(|(reason, count)| ([("reason", reason.as_str())], count))
    };
    page.counters(
        Family::new(
            "lb_dropped_packets",
            "Packets of services that were dropped, or answered instead of forwarded, by reason",
        ),
        packets("dropped").map(|(labels, count)| (labels, count.packets)),
    )?;
    page.counters(
        Family::bytes("lb_dropped", "Bytes of IP of packets that were dropped, by reason"),
        packets("dropped").map(|(labels, count)| (labels, count.bytes)),
    )?;
    page.counters(
        Family::new(
            "lb_passed_packets",
            "Packets that were left to the node's own network stack, by reason",
        ),
        packets("passed").map(|(labels, count)| (labels, count.packets)),
    )?;
    page.counters(
        Family::bytes("lb_passed", "Bytes of IP of packets that were left to the node, by reason"),
        packets("passed").map(|(labels, count)| (labels, count.bytes)),
    )
}

fn listeners(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let all: Vec<_> =
        status.http.iter().map(|one| (one.address.to_string(), one.obstacle.is_none())).collect();
    page.gauges(
        Family::new("lb_http_listening", "Whether an address of [http] is listened on"),
        all.iter().map(|(address, is)| ([("address", address.as_str())], truth(*is))),
    )
}

fn maps(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.gauge(
        Family::new("lb_pins", "Flows that are pinned, since a change of backends would move them"),
        status.pins.used,
    )?;
    let all = |value: fn(Usage) -> u64| {
        [
            ("backends", status.backends_used),
            ("pins", status.pins),
            ("services", status.services_used),
        ]
        .map(|(map, usage)| ([("map", map)], value(usage)))
    };
    page.gauges(
        Family::new("lb_map_entries", "Entries of a map that are used"),
        all(|map| map.used),
    )?;
    page.gauges(
        Family::new("lb_map_capacity", "Entries that a map has room for, as [limits] says"),
        all(|map| map.capacity),
    )
}

fn writes(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let writes = &status.writes;
    page.gauge(
        Family::new("lb_maps_failing", "Whether the last attempt to write the maps failed"),
        truth(status.last_error.is_some()),
    )?;
    page.histogram(
        Family::seconds(
            "lb_reconcile_duration",
            "Duration of each reconcile: writes of the maps until they equal the desired state",
        ),
        &writes.duration,
    )?;
    page.counter(
        Family::new("lb_reconcile_failures", "Times that the maps could not be written"),
        writes.failed,
    )?;
    page.counter(
        Family::new(
            "lb_reconcile_changes",
            "Entries of maps that were written; the slots of a ring count as one",
        ),
        writes.changes,
    )?;
    page.counter(
        Family::new("lb_reconcile_slots_moved", "Slots whose new flows have got another backend"),
        writes.slots_moved,
    )
}
