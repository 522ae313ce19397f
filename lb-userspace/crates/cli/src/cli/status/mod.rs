//! The node's status, for people.

use std::{collections::BTreeMap, time::Duration, time::SystemTime};

use lb_api::status::{
    Backend, Connections, Count, OneBackend, Service, Status, Totals, TxErrorStatus, Usage,
};
use lb_model::{
    backend_address::BackendAddress,
    desired::Admin,
    seen::Condition,
    units::{counted, format_bytes, format_count, format_duration},
};

use super::{drain_wait, health, table::Table};

/// The whole node.
pub(super) fn overview(status: &Status) -> String {
    let uptime = format_duration(Duration::from_secs(status.uptime_secs));
    let mut text = format!("lbd {}, up {uptime}\n", status.version);
    for interface in &status.interfaces {
        let attached = if interface.attached { "attached" } else { "NOT ATTACHED" };
        text += &format!("interface {}: {}, {attached}", interface.name, interface.hook());
        for other in &interface.others {
            text += &format!("; {other} runs there, too");
        }
        text += "\n";
    }
    let usage = |name: &str, usage: Usage| format!("{name} {} of {}", usage.used, usage.capacity);
    text += &format!(
        "{}, {}, {}\n",
        usage("services", status.services_used),
        usage("backends", status.backends_used),
        usage("pins", status.pins),
    );
    if status.node.draining_since.is_some() {
        text += &format!("{}\n", super::node::state(status));
    }
    if let Some(log) = status.log.as_ref().filter(|log| log.configured.is_some()) {
        text += &format!("{}\n", super::log::line(log));
    }
    for listener in &status.http {
        if let Some(why) = &listener.obstacle {
            text += &format!("NOT LISTENING for HTTP on {}: {why}\n", listener.address);
        }
    }
    text += &super::vrrp::lines(status);
    if let Some(error) = &status.last_error {
        text += &format!("LAST WRITE OF MAPS FAILED: {error}\n");
    }
    if let Some(error) = &status.state_file_error {
        text += &format!("CHANGES ARE NOT KEPT over a restart of lbd: {error}\n");
    }
    for (name, service) in &status.services {
        text += &format!("\n{}", self::service(name, service));
    }
    text += &counts("\ndropped", &status.dropped);
    text += &tx_errors(&status.tx_errors);
    text + &counts("\npassed to the node", &status.passed)
}

fn tx_errors(errors: &[TxErrorStatus]) -> String {
    let line = |one: &TxErrorStatus| {
        let TxErrorStatus { interface, egress, reason, why, frames } = one;
        let frames = format_count(*frames);
        format!("  {reason}: {egress} did not transmit {frames} frames from {interface}: {why}\n")
    };
    errors.iter().map(line).collect()
}

fn counts(title: &str, counts: &BTreeMap<String, Count>) -> String {
    let mut table = Table::new(&["REASON", ">PACKETS", ">BYTES"]).indented(2);
    for (reason, count) in counts.iter().filter(|(_, count)| count.packets > 0) {
        table.row([reason.clone(), format_count(count.packets), format_bytes(count.bytes)]);
    }
    if table.is_empty() {
        format!("{title}: none\n")
    } else {
        format!("{title}:\n{}", table.render())
    }
}

/// A line for each service.
pub(super) fn services(services: &BTreeMap<String, Service>) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "PROTOCOL",
        "VIP",
        "MODE",
        ">BACKENDS",
        ">USABLE",
        ">PACKETS",
        ">BYTES",
        ">NEW FLOWS",
        ">IN FLUX",
    ]);
    for (name, service) in services {
        let usable = service.backends.values().filter(|backend| takes_flows(backend)).count();
        let Totals { sent, new_flows } = service.totals;
        table.row([
            name.clone(),
            service.key.protocol.to_string(),
            vip(service),
            service.mode.to_string(),
            service.backends.len().to_string(),
            usable.to_string(),
            format_count(sent.packets),
            format_bytes(sent.bytes),
            format_count(new_flows),
            share(service.slots_in_flux, service.ring_slots),
        ]);
    }
    table.render()
}

/// One service with its backends.
pub(super) fn service(name: &str, service: &Service) -> String {
    let udp = match service.udp_policy {
        Some(policy) => format!(", {}", format!("{policy:?}").to_lowercase()),
        None => String::new(),
    };
    let flux = match service.slots_in_flux {
        0 => String::new(),
        slots => format!(", {} of the ring in flux", share(slots, service.ring_slots)),
    };
    let mut text = format!(
        "service {name}: {}, {}{udp}, {} slots, idle timeout {}{flux}\n",
        service.key,
        service.mode,
        service.ring_slots,
        format_duration(Duration::from_secs(service.idle_timeout_secs)),
    );
    if service.backends.is_empty() {
        return text + &format!("  no backends; add one with 'lbctl backend add {name} ADDRESS'\n");
    }
    if !service.backends.values().any(takes_flows) {
        text += "  NO BACKEND TAKES NEW FLOWS\n";
    }
    text += &health::standing(service);
    let mut table = Table::new(&[
        "BACKEND",
        "STATE",
        ">WEIGHT",
        ">SHARE",
        ">PACKETS",
        ">BYTES",
        ">NEW FLOWS",
        ">PINS",
        "INTERFACE",
    ])
    .indented(2);
    for (address, backend) in &service.backends {
        table.row(backend_cells(*address, backend, service));
    }
    text += &table.render();
    text
}

/// A line for each backend.
pub(super) fn backends(services: &BTreeMap<String, Service>) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "BACKEND",
        "STATE",
        ">WEIGHT",
        ">SHARE",
        ">PACKETS",
        ">BYTES",
        ">NEW FLOWS",
        ">PINS",
        "INTERFACE",
    ]);
    for (name, service) in services {
        for (address, backend) in &service.backends {
            let [address, state, weight, share, packets, bytes, flows, pins, by] =
                backend_cells(*address, backend, service);
            table.row([
                name.clone(),
                address,
                state,
                weight,
                share,
                packets,
                bytes,
                flows,
                pins,
                by,
            ]);
        }
    }
    table.render()
}

fn backend_cells(address: BackendAddress, backend: &Backend, service: &Service) -> [String; 9] {
    [
        label(address, backend),
        state(backend),
        backend.weight.to_string(),
        share(backend.slots, service.ring_slots),
        format_count(backend.sent.packets),
        format_bytes(backend.sent.bytes),
        format_count(backend.new_flows),
        format_count(backend.pins),
        backend.interface.clone().unwrap_or_else(|| "-".into()),
    ]
}

/// A backend's address, and the name that it has.
pub(super) fn label(address: BackendAddress, backend: &Backend) -> String {
    match &backend.name {
        None => address.to_string(),
        Some(name) => format!("{address} ({name})"),
    }
}

/// Everything about one backend.
pub(super) fn backend(service: &str, shown: &OneBackend) -> String {
    let OneBackend { address, backend } = shown;
    let mut table = Table::new(&[&format!("backend {address}"), &format!("of {service}")]);
    let mut row = |name: &str, value: String| table.row([format!("  {name}"), value]);
    if let Some(name) = &backend.name {
        row("name", name.clone());
    }
    row("state", state(backend));
    row("weight", backend.weight.to_string());
    for (name, value) in backend.check.iter().flat_map(health::rows) {
        row(name, value);
    }
    row("interface", backend.interface.clone().unwrap_or_else(|| "-".into()));
    row("next hop", backend.mac.clone().unwrap_or_else(|| "-".into()));
    if let Some(mtu) = backend.path_mtu {
        row("path MTU", format!("{mtu} bytes, by the ICMP error of a router"));
    }
    row("id", backend.id.to_string());
    row("slots for new flows", backend.slots.to_string());
    row("slots for older flows", backend.base_slots.to_string());
    let closing = match backend.pins_closing {
        0 => String::new(),
        closing => format!(", {closing} of them closing"),
    };
    row("pins", format!("{}{closing}", backend.pins));
    let flows_left = match backend.has_flows() {
        _ if backend.is_unsynced() => drain_wait::UNSYNCED.into(),
        false => "none".into(),
        true if backend.is_estimated_over() => drain_wait::estimate(backend),
        true if backend.drain.is_some() => drain_wait::left(backend) + &drain_wait::times(backend),
        true => "possible; counted while it drains".into(),
    };
    row("flows left", flows_left);
    row("packets", backend.sent.packets.to_string());
    row("bytes", format!("{} ({})", backend.sent.bytes, format_bytes(backend.sent.bytes)));
    if let Some(Count { packets, bytes }) = backend.returned {
        row("answers", format!("{packets} packets, {}", format_bytes(bytes)));
    }
    if let Some(Connections { open, accepted, refused }) = backend.connections {
        row("connections", format!("{open} open; {accepted} accepted, {refused} refused so far"));
    }
    if let Some(sockets) = backend.local_sockets.filter(|sockets| *sockets > 0) {
        row("of this node", format!("{} so far, in no other count", counted(sockets, "socket")));
    }
    row("new flows", backend.new_flows.to_string());
    row("unpinned packets", backend.unpinned_packets.to_string());
    row("SYN retransmissions", backend.syn_retransmissions.to_string());
    row("SYNs as second choice", backend.second_choices.to_string());
    table.render()
}

/// A backend's state, and the notes on it.
pub(super) fn state(backend: &Backend) -> String {
    let left = |deadline: Option<SystemTime>| {
        let left = deadline?.duration_since(SystemTime::now()).unwrap_or_default();
        Some(format!("at most {}", format_duration(Duration::from_secs(left.as_secs()))))
    };
    let left = match backend.admin {
        Admin::Draining { deadline } | Admin::Removing { deadline } => left(deadline),
        _ => None,
    };
    let drained = match backend.has_flows() {
        _ if backend.is_unsynced() => Some("only the Active sees its flows"),
        false if backend.drains() => Some("no flow left"),
        _ => None,
    };
    let left = left.filter(|_| drained.is_none());
    let why = backend.why();
    let drained = drained.map(String::from).filter(|drained| why.as_ref() != Some(drained));
    let silent = backend.is_estimated_over().then(|| match backend.drain {
        Some(drain) if drain.closed => "no connection left".into(),
        _ => format!("silent for {}", drain_wait::silence(backend)),
    });
    let closing = backend.drains() && backend.pins_closing > 0;
    let closing = closing.then(|| {
        let plural = if backend.pins_closing == 1 { "" } else { "s" };
        format!("{} pin{plural} closing", format_count(backend.pins_closing))
    });
    let notes: Vec<_> = [why, silent, closing, drained, left].into_iter().flatten().collect();
    let state = backend.state().name();
    if notes.is_empty() { state.into() } else { format!("{state} ({})", notes.join(", ")) }
}

/// Whether it gets new flows, or would if it were not a backup.
fn takes_flows(backend: &Backend) -> bool {
    let up = backend.condition == Condition::Up || backend.slots > 0;
    backend.admin == Admin::Enabled && backend.unusable.is_none() && up
}

fn vip(service: &Service) -> String {
    service.key.destination()
}

fn share(slots: u32, of: u32) -> String {
    match of {
        0 => "-".into(),
        of => format!("{:.1} %", 100.0 * f64::from(slots) / f64::from(of)),
    }
}

#[cfg(test)]
mod tests;
