//! The state that this node sends, and the fragments of a peer's state that have arrived.

use std::time::{Duration, Instant};

use crate::{
    NodeState,
    wire::{
        bytes::Read,
        node_state::{self, FRAGMENTS, HALVES},
    },
};

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(200);
/// Changes that follow each other at once are sent together.
const TOGETHER: Duration = Duration::from_millis(5);

/// A half of the encoded state, for all peers.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// Rises with each change; 0: nothing was set yet.
    pub(super) generation: u32,
    bytes: Vec<u8>,
}

/// The state that this node sends.
#[derive(Debug, Default)]
pub(super) struct SentState {
    pub(super) halves: [Half; HALVES],
}

impl SentState {
    pub(super) fn set(&mut self, node_state: &NodeState) {
        for (number, half) in self.halves.iter_mut().enumerate() {
            let bytes = node_state::encode(number as u8, node_state);
            if half.generation == 0 || half.bytes != bytes {
                half.generation += 1;
                half.bytes = bytes;
            }
        }
    }

    pub(super) fn generations(&self) -> [u32; HALVES] {
        [0, 1].map(|half: usize| self.halves[half].generation)
    }

    /// The fragments of a half, with their numbers.
    pub(super) fn fragments(&self, half: usize) -> impl Iterator<Item = ((u16, u16), &[u8])> {
        let bytes = &self.halves[half].bytes;
        let count = node_state::fragments(bytes).count().min(usize::from(FRAGMENTS)) as u16;
        (0..count)
            .zip(node_state::fragments(bytes))
            .map(move |(at, fragment)| ((at, count), fragment))
    }
}

/// How far a peer is with a half.
#[derive(Debug)]
pub(super) struct NodeStateSender {
    has: u32,
    sent: u32,
    sent_at: Option<Instant>,
    retry: Duration,
}

impl Default for NodeStateSender {
    fn default() -> Self {
        Self { has: 0, sent: 0, sent_at: None, retry: FIRST_RETRY }
    }
}

impl NodeStateSender {
    /// The peer reports to have this generation; less than before, if it has begun anew.
    pub(super) const fn acknowledged(&mut self, generation: u32) {
        self.has = generation;
    }

    /// When this generation is to be sent, if it is.
    pub(super) fn deadline(&self, generation: u32) -> Option<Instant> {
        let sent_at = self.sent_at.filter(|_| self.has < generation)?;
        let wait = if self.sent < generation { TOGETHER } else { self.retry };
        Some(sent_at + wait)
    }

    /// Whether this generation is to be sent at this time; it counts as sent then.
    pub(super) fn is_due(&mut self, generation: u32, now: Instant) -> bool {
        let waits = self.deadline(generation).is_some_and(|at| at > now);
        if self.has >= generation || waits {
            return false;
        }
        let again = self.sent == generation;
        self.retry = if again { (self.retry * 2).min(LONGEST_RETRY) } else { FIRST_RETRY };
        self.sent = generation;
        self.sent_at = Some(now);
        true
    }
}

/// What has arrived of a half.
#[derive(Debug, Default)]
pub(super) struct NodeStateReceiver {
    /// The last generation that is whole.
    pub(super) generation: u32,
    /// A later one, of which fragments are missing.
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    generation: u32,
    fragments: Vec<Option<Vec<u8>>>,
    missing: u16,
}

impl NodeStateReceiver {
    /// Takes a fragment; with the last one, `node_state` with this half replaced.
    pub(super) fn take(
        &mut self,
        half: u8,
        generation: u32,
        (index, count): (u16, u16),
        bytes: &[u8],
        node_state: &NodeState,
    ) -> Read<Option<NodeState>> {
        let latest = self.partial.as_ref().map_or(self.generation, |partial| partial.generation);
        if count > FRAGMENTS || generation <= self.generation || generation < latest {
            return Ok(None);
        }
        let fits = |partial: &Partial| {
            partial.generation == generation && partial.fragments.len() == usize::from(count)
        };
        let partial = match &mut self.partial {
            Some(partial) if fits(partial) => partial,
            other => other.insert(Partial {
                generation,
                fragments: vec![None; usize::from(count)],
                missing: count,
            }),
        };
        let fragment = &mut partial.fragments[usize::from(index)];
        if fragment.is_none() {
            *fragment = Some(bytes.to_vec());
            partial.missing -= 1;
        }
        if partial.missing > 0 {
            return Ok(None);
        }
        let whole: Vec<u8> = partial.fragments.iter().flatten().flatten().copied().collect();
        self.partial = None;
        let mut read = node_state.clone();
        node_state::decode(half, &whole, &mut read)?;
        self.generation = generation;
        Ok(Some(read))
    }
}
