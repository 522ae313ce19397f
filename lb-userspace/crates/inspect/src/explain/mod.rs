//! The balancer's decision for a packet, and its reasons.
//!
//! The core itself decides: [`lb_common::returns::decide`] runs over an [`overlay`] of the maps,
//! which reads through to them, keeps every write to itself, and notes each lookup. The notes,
//! as text, are the explanation ([`mod@format`]), so it can't differ from the program's decision.

mod format;
mod frame;
mod leave;
mod overlay;
mod packet;
pub mod saved;
mod steps;
mod text;
mod view;

use std::collections::BTreeMap;

use anyhow::Result;
use lb_api::status::Status;
use lb_common::{
    returns::decide,
    verdict::{Drop, Pass, ReplyKind, Verdict, events},
};
use lb_model::backend_address::BackendAddress;
use serde::{Deserialize, Serialize};

use self::overlay::Overlay;
pub use self::{
    frame::{Flags, IcmpError, Made, Payload},
    overlay::Entry,
    packet::{Snap, describe, hex},
    view::View,
};

/// The most packets that are explained at once.
pub const MOST: usize = 1_000;

/// A request for explanations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Questions {
    /// The packets, at most [`MOST`].
    pub packets: Vec<Packet>,
    /// The interface that they come in on; the first one with the program unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The CPU that they come in on: budgets and signs of life are each CPU's own.
    #[serde(default)]
    pub cpu: u32,
    /// Explain frames as if they were addressed to this node.
    #[serde(default)]
    pub any_mac: bool,
    /// Explain each as one that is met a second time: a SYN that is sent again.
    #[serde(default)]
    pub again: bool,
    /// Have the program in the kernel decide as well, and compare.
    #[serde(default)]
    pub verify: bool,
}

/// A packet of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packet {
    /// One that is to be made.
    Made(Box<Made>),
    /// One that was saved.
    Frame {
        /// Its bytes, in hexadecimal, as far as they were saved.
        bytes: String,
        /// How many it had on the wire.
        length: u32,
    },
}

/// The balancer's decision for a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The packet, as text.
    pub packet: String,
    /// Why, step by step.
    pub steps: Vec<Step>,
    /// `forwarded`, `passed`, `dropped` or `answered`.
    pub outcome: Outcome,
    /// The reason, by the name of its counter; none for what is forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The counters that the packet ends in, as text.
    pub counted: String,
    /// The service, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The slot of its ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The backend that gets the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// Its id in the maps; 0 for none.
    #[serde(default)]
    pub backend_id: u16,
    /// The writes that the program would make in its tables, as text; nothing was written.
    #[serde(default)]
    pub writes: Vec<String>,
    /// The XDP action of the frame: `XDP_PASS`, `XDP_DROP`, `XDP_TX` or `XDP_REDIRECT`.
    pub action: String,
    /// The frame that comes in, in hexadecimal, as far as it is known.
    pub frame: String,
    /// The frame that is left, in hexadecimal.
    pub leaves: String,
    /// The flow's next packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// The result of the program in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// How a packet ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A backend gets it.
    Forwarded,
    /// The node's own network stack gets it.
    #[default]
    Passed,
    /// No node gets it.
    Dropped,
    /// No node gets it, and its sender gets an ICMP error.
    Answered,
    /// It is the answer of a backend in mode `nat`, and the client gets it.
    Returned,
}

impl Outcome {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::Answered => "answered",
            Self::Returned => "returned",
        }
    }
}

/// A step of the decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its subject: `slot`, `pin`.
    pub about: String,
    /// The finding, and its consequence.
    pub text: String,
}

/// The decision for the flow's next packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Its kind: `ACK`.
    pub packet: String,
    /// The backend that gets it, or the reason why none does.
    pub goes_to: String,
    /// Whether that differs from what happens to this packet, or happens for another reason.
    pub differs: bool,
    /// Why.
    pub why: String,
}

/// The result of the program in the kernel for a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether it did what is explained.
    pub agrees: bool,
    /// Whether it could be run; [`Self::differences`] has the reason if not.
    pub asked: bool,
    /// The XDP action that the program returned.
    pub action: String,
    /// The frame that it left, in hexadecimal.
    pub leaves: String,
    /// The differences, or the reason why it could not be run.
    #[serde(default)]
    pub differences: Vec<String>,
    /// How long it took, in nanoseconds.
    #[serde(default)]
    pub nanos: u64,
}

/// A packet that was explained, for the program to decide on as well.
#[derive(Clone, Debug)]
pub struct Case {
    /// The packet.
    pub snap: Snap,
    /// The entries of the maps that its decision depends on.
    pub entries: Vec<Entry>,
    /// Whether it is met twice, and the second time counts.
    pub again: bool,
    /// The index of the interface that it comes in on.
    pub ingress: u32,
    /// When it was explained, in nanoseconds of the program's clock.
    pub nanos: u64,
    /// Whether there was room for a pin.
    pub room_for_pins: bool,
}

/// The program's result for a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// The action that it returned: `XDP_TX`.
    pub action: &'static str,
    /// The frame that it left.
    pub bytes: Vec<u8>,
    /// The reason that it counted, by name.
    pub reason: Option<String>,
    /// The backend that it counted the packet for, by id; 0 for none.
    pub backend: u16,
    /// How long it took, in nanoseconds.
    pub nanos: u64,
}

impl Ran {
    /// Compares it to the explanation.
    fn verify(&self, explained: &Explained) -> Verified {
        let mut differences = Vec::new();
        let mut compare = |what: &str, program: &str, core: &str| {
            if program != core {
                differences.push(format!("{what}: the program {program}, the explanation {core}"));
            }
        };
        let leaves = hex(&self.bytes);
        // The action of an answer follows from the kernel's routes, and so do its MAC addresses: those of this program's run
        // say nothing of the interface that the packet comes by.
        if explained.outcome == Outcome::Returned {
            let agrees = self.action != "XDP_DROP";
            let differences = if agrees { Vec::new() } else { vec!["the program drops it".into()] };
            let (action, nanos) = (self.action.into(), self.nanos);
            return Verified { agrees, asked: true, action, leaves, differences, nanos };
        }
        compare("action", self.action, &explained.action);
        compare("frame", &leaves, &explained.leaves);
        let reason = |reason: Option<&String>| reason.map_or("none", String::as_str).to_owned();
        compare("reason", &reason(self.reason.as_ref()), &reason(explained.reason.as_ref()));
        compare("backend", &self.backend.to_string(), &explained.backend_id.to_string());
        let agrees = differences.is_empty();
        let (action, nanos) = (self.action.into(), self.nanos);
        Verified { agrees, asked: true, action, leaves, differences, nanos }
    }
}

/// Lets the program decide on packets: loads it once more, over copies of the maps.
pub type Verifier = Box<dyn FnOnce() -> Result<Vec<Result<Ran>>> + Send>;

/// The answers to a request.
pub struct Answers {
    /// The core's decisions.
    pub explained: Vec<Explained>,
    /// Runs the program; takes a while, and nothing of the daemon's.
    pub verifier: Option<Verifier>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Answers").field(&self.explained).finish()
    }
}

impl Answers {
    /// The core's decisions, compared to the program's if that was requested.
    ///
    /// # Errors
    ///
    /// If the program can't be run.
    pub fn verified(self) -> Result<Vec<Explained>> {
        let Self { mut explained, verifier } = self;
        let Some(verifier) = verifier else { return Ok(explained) };
        for (one, ran) in explained.iter_mut().zip(verifier()?) {
            one.verified = Some(ran.map_or_else(
                |error| Verified {
                    agrees: false,
                    asked: false,
                    action: String::new(),
                    leaves: String::new(),
                    differences: vec![format!("{error:#}")],
                    nanos: 0,
                },
                |ran| ran.verify(one),
            ));
        }
        Ok(explained)
    }
}

/// The context beside the maps.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The names for the ids in the maps.
    pub status: &'a Status,
    /// The program's clock, in nanoseconds.
    pub nanos: u64,
    /// Whether there is room for another pin.
    pub room_for_pins: bool,
}

/// Explains what would happen to each packet if it came in at this moment.
///
/// # Errors
///
/// A packet can't be made, the interface has no program, or a map can't be read.
pub fn explain<V: View + ?Sized>(
    view: &V,
    questions: &Questions,
    around: &Around<'_>,
) -> Result<Vec<(Explained, Case)>> {
    anyhow::ensure!(
        questions.packets.len() <= MOST,
        "{} packets; at most {MOST} are explained at once",
        questions.packets.len()
    );
    let ingress = ingress(questions, around.status)?;
    let own = view.own_mac(0)?.map(|own| own.mac).filter(|mac| *mac != [0; 6]);
    let mut all = Vec::with_capacity(questions.packets.len());
    for packet in &questions.packets {
        let snap = match packet {
            Packet::Made(made) => made.frame(own.unwrap_or([2, 0, 0, 0, 0, 1]))?,
            Packet::Frame { bytes, length } => {
                let mut bytes = packet::unhex(bytes)?;
                let for_anyone = questions.any_mac || packet::is_raw_ip(&bytes);
                if let (true, Some(own)) = (for_anyone, own)
                    && let Some(destination) = bytes.get_mut(..6)
                {
                    destination.copy_from_slice(&own);
                }
                Snap { length: (*length as usize).max(bytes.len()), bytes }
            }
        };
        all.push(one(view, snap, questions, ingress, around)?);
    }
    Ok(all)
}

/// The index of the interface that the packets come in on.
fn ingress(questions: &Questions, status: &Status) -> Result<u32> {
    let Some(name) = &questions.interface else {
        return Ok(status.interfaces.first().map_or(1, |interface| interface.ifindex));
    };
    let found = status.interfaces.iter().find(|interface| interface.name == *name);
    found.map(|interface| interface.ifindex).ok_or_else(|| {
        let names: Vec<_> = status.interfaces.iter().map(|i| i.name.as_str()).collect();
        anyhow::anyhow!(
            "the balancer's program is not on interface {name}; it is on {}",
            names.join(", ")
        )
    })
}

/// A verdict without its borrowed parts.
type Plain = Verdict<lb_common::abi::Backend>;

fn run<V: View + ?Sized>(snap: &Snap, tables: &Overlay<'_, V>) -> Plain {
    decide(snap, tables).owned()
}

fn one<V: View + ?Sized>(
    view: &V,
    snap: Snap,
    questions: &Questions,
    ingress: u32,
    around: &Around<'_>,
) -> Result<(Explained, Case)> {
    let tables = Overlay::new(view, questions.cpu, around.nanos, around.room_for_pins);
    if questions.again {
        let first = run(&snap, &tables);
        tables.count(&first);
    }
    tables.begin();
    let verdict = run(&snap, &tables);
    tables.check()?;
    let (notes, writes) = (tables.notes(), tables.writes());
    let entries = tables.entries();
    let left = leave::leave(&snap, &verdict, ingress);
    let narrator = format::Narrator::new(around, ingress, questions);
    let mut explained = Explained {
        packet: describe(&snap.bytes),
        frame: packet::hex(&snap.bytes),
        leaves: packet::hex(&left.bytes),
        action: left.action.into(),
        writes: narrator.writes(&writes),
        ..Explained::default()
    };
    narrator.fill(&mut explained, &snap, &verdict, &notes, &left);
    if let Some(next) = snap.next() {
        tables.count(&verdict);
        tables.begin();
        let second = run(&next.0, &tables);
        tables.check()?;
        explained.next = narrator.next(next.1, &verdict, &second, &tables.notes());
    }
    let &Around { nanos, room_for_pins, .. } = around;
    let again = questions.again;
    Ok((explained, Case { snap, entries, again, ingress, nanos, room_for_pins }))
}

/// The counter that a verdict ends in, of those that have a reason.
fn reason_of(verdict: &Plain, no_room: bool) -> Option<(Outcome, &'static str)> {
    if no_room {
        return Some((Outcome::Dropped, Drop::NoHeadroom.name()));
    }
    match verdict {
        Verdict::Pass(reason) => Some((Outcome::Passed, Pass::name(*reason))),
        Verdict::Drop(reason) => Some((Outcome::Dropped, reason.name())),
        Verdict::Reply(reply) => Some((
            Outcome::Answered,
            match reply.kind {
                ReplyKind::TooBig => Drop::TooBigReplied.name(),
                ReplyKind::TtlExceeded => Drop::TtlExceededReplied.name(),
            },
        )),
        Verdict::Forward(_) | Verdict::Return(_) => None,
    }
}

/// The counters of a backend that a forwarded packet is counted in.
fn counters_of(bits: u32) -> Vec<&'static str> {
    let names = [
        (events::NEW_FLOW, "new_flows"),
        (events::UNPINNED, "unpinned_packets"),
        (events::SYN_RETRANSMISSION, "syn_retransmissions"),
        (events::SECOND_CHOICE, "second_choices"),
    ];
    let more = names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name);
    ["packets", "bytes"].into_iter().chain(more).collect()
}

/// How many packets ended how, for the sum of a capture.
#[must_use]
pub fn sums(all: &[Explained]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for one in all {
        let word = match (&one.reason, one.backend) {
            (Some(reason), _) => format!("{} {reason}", one.outcome.name()),
            (None, Some(backend)) => {
                let service = one.service.as_deref().unwrap_or("-");
                format!("forwarded {service} {backend}")
            }
            (None, None) => one.outcome.name().into(),
        };
        *sums.entry(word).or_default() += 1;
    }
    sums
}
