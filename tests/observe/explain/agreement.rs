//! Explanations against the loaded program: hundreds of flows, in every state of a slot.

use anyhow::{Context as _, Result, ensure};
use kit::{balancer::Balancer, can_run, lab::Lab};
use lb_inspect::explain::{Explained, Flags, Outcome, Packet};
use lb_model::desired::Protocol;

use super::testbed::{dump, explain, made, meet, program, testbed, unhex};

/// Flows of each service at each moment.
const FLOWS: u32 = 60;

/// Packets to all services, and to none: of flows from `first` on.
fn packets(first: u32, flags: Flags) -> Vec<Packet> {
    let numbers = first..first + FLOWS;
    let all = numbers.flat_map(|n| {
        [
            made(Protocol::Tcp, n, 80, flags),
            made(Protocol::Tcp, n, 81, flags),
            made(Protocol::Udp, n, 53, flags),
            made(Protocol::Udp, n, 54, flags),
        ]
    });
    all.chain([made(Protocol::Tcp, 1, 22, flags)]).collect()
}

/// Requests explanations, then runs the program on the same packets, which writes its entries.
fn agree(lab: &Lab, balancer: &Balancer, packets: Vec<Packet>) -> Result<Vec<Explained>> {
    let explained = explain(balancer, packets, false)?;
    let program = program(lab)?;
    for one in &explained {
        let (action, left) = meet(lab, &program, &unhex(&one.frame)?)?;
        ensure!(action == one.action, "the program: {action}; explained: {one:#?}");
        ensure!(left == unhex(&one.leaves)?, "the program left {left:02x?}; explained: {one:#?}");
    }
    Ok(explained)
}

fn how_many(all: &[Explained], is: impl Fn(&Explained) -> bool) -> usize {
    all.iter().filter(|one| is(one)).count()
}

#[test]
fn an_explanation_is_what_the_program_then_does() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = testbed()?;

    // Steady.
    let steady = agree(&lab, &balancer, packets(0, Flags::SYN)).context("steady, SYN")?;
    ensure!(how_many(&steady, |one| one.outcome == Outcome::Forwarded) == 4 * FLOWS as usize);
    agree(&lab, &balancer, packets(0, Flags::ACK)).context("steady, ACK")?;
    // A tracked flow goes on by its entry.
    let known = explain(&balancer, vec![made(Protocol::Udp, 0, 54, Flags::ACK)], false)?;
    ensure!(known[0].steps.iter().any(|step| step.about == "tracked flow"), "{known:#?}");

    // In flux: a backend drains in all services, and another one is worth less.
    for service in ["web", "tunnel", "dns", "game"] {
        balancer.lbctl(&["backend", "drain", service, "10.0.0.11"])?;
        balancer.lbctl(&["backend", "weight", service, "10.0.0.13", "3"])?;
    }
    let opened = agree(&lab, &balancer, packets(1_000, Flags::SYN)).context("in flux, SYN")?;
    let pinned = |one: &Explained| one.writes.iter().any(|write| write.starts_with("pin made"));
    ensure!(how_many(&opened, pinned) > 20, "few pins were made");
    let next_pinned = |one: &Explained| {
        one.next.as_ref().is_some_and(|next| next.differs && next.why == "by its pin")
    };
    ensure!(how_many(&opened, next_pinned) == how_many(&opened, pinned));
    let drained = |one: &Explained| one.backend == Some([10, 0, 0, 11].into());
    ensure!(how_many(&opened, drained) == 0, "a new flow goes to the one that drains");

    // Pinned, and its older flows.
    let followed = agree(&lab, &balancer, packets(1_000, Flags::ACK)).context("pinned, ACK")?;
    for (syn, ack) in opened.iter().zip(&followed) {
        ensure!(syn.backend == ack.backend, "a flow has moved: {syn:#?}, {ack:#?}");
    }
    let by_pin = |one: &Explained| {
        one.steps.iter().any(|step| step.about == "pin" && step.text.starts_with("to "))
    };
    ensure!(how_many(&followed, by_pin) == how_many(&opened, pinned));
    let older = agree(&lab, &balancer, packets(0, Flags::ACK)).context("in flux, ACK")?;
    ensure!(how_many(&older, drained) > 20, "the one that drains keeps its flows");
    let unpinned = |one: &Explained| one.counted.ends_with("unpinned_packets");
    ensure!(how_many(&older, unpinned) > 20);
    for (before, after) in steady.iter().zip(&older) {
        // Without a flow of its own, a oneshot packet goes to the ring's owner.
        let oneshot = after.service.as_deref() == Some("dns");
        ensure!(oneshot || before.backend == after.backend, "{before:#?}, {after:#?}");
    }

    // The output of lbctl.
    let output =
        balancer.lbctl(&["explain", "tcp", "198.51.100.9:4242", "10.0.0.100:80", "--ttl", "1"])?;
    ensure!(output.contains("answered, ttl_exceeded_replied (XDP_TX)"), "{output}");
    let output = balancer.lbctl(&["explain", "tcp", "198.51.100.9:4242", "10.0.0.100:22"])?;
    ensure!(output.contains("verdict  passed, not_a_service (XDP_PASS)"), "{output}");
    Ok(())
}

#[test]
fn to_verify_an_explanation_changes_no_byte_of_any_map() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = testbed()?;
    balancer.lbctl(&["backend", "drain", "web", "10.0.0.11"])?;
    balancer.lbctl(&["backend", "drain", "tunnel", "10.0.0.12"])?;
    agree(&lab, &balancer, packets(0, Flags::SYN))?;
    let mut frames = packets(0, Flags::ACK);
    frames.extend(packets(500, Flags::SYN));
    // The daemon writes as well: suspected backends, since these SYNs get no answer, and counters of the
    // probes that it sends through the program. What an explanation wrote would be there each time.
    let mut changed = Vec::new();
    for _ in 0..5 {
        let before = dump(&balancer)?;
        let explained = explain(&balancer, frames.clone(), true)?;
        for one in &explained {
            let verified = one.verified.as_ref().context("it was asked for")?;
            ensure!(verified.agrees, "{one:#?}");
        }
        ensure!(explained.iter().any(|one| !one.writes.is_empty()), "something would be written");
        let after = dump(&balancer)?;
        let differs =
            |(name, was): (String, Vec<u8>)| (after.get(&name) != Some(&was)).then_some(name);
        changed = before.into_iter().filter_map(differs).collect();
        if changed.is_empty() {
            break;
        }
    }
    ensure!(changed.is_empty(), "changed: {changed:?}");
    ensure!(!balancer.pins().join("verify").exists(), "nothing stays pinned");

    // By lbctl, with its exit status.
    let output =
        balancer.lbctl(&["explain", "udp", "198.51.100.9:99", "10.0.0.100:54", "--verify"])?;
    ensure!(output.contains("the loaded program does the same"), "{output}");
    Ok(())
}
