//! The changes that an edit would make, without making them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The planned changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// As text.
    pub changes: Vec<String>,
    /// In slots and flows.
    #[serde(flatten)]
    pub preview: Preview,
}

/// The planned changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The changes of each affected service.
    pub services: BTreeMap<String, ServicePreview>,
    /// Entries that would have no room in the maps.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// The changes of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePreview {
    /// Slots of its ring.
    pub slots: u32,
    /// Slots that get another owner for new flows.
    pub slots_moved: u32,
    /// Slots of which the flows that are there already move at once, but those that are pinned.
    pub flow_slots_moved: u32,
    /// Those of them that are in flux: only flows move that are older than the ring's last change.
    #[serde(default)]
    pub flow_slots_in_flux: u32,
    /// Flows that are known each by itself (pinned, or tracked) and move at once.
    pub flows_moved: u64,
    /// Whether no backend has new flows afterwards.
    pub starved: bool,
    /// Whether it is gone afterwards, and its flows break instead of moving.
    pub removed: bool,
}
