//! The results of `bench datapath`, as tables for people and as JSON for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// The cost of a packet, by case.
    pub packets: Vec<PacketCase>,
    /// The cost of a ring's change, by number of backends.
    pub rings: Vec<RingCase>,
    /// The memory of the maps with the default capacities, in bytes, by map.
    pub memory: Vec<MapMemory>,
}

/// One case of packets.
#[derive(Serialize, Deserialize)]
pub struct PacketCase {
    /// The frames that were sent.
    pub name: String,
    /// Whether it is a floor and not the balancer.
    pub is_floor: bool,
    /// Nanoseconds of one run with the frame's restoring: median of the rounds.
    pub median_ns: f64,
    /// The same: minimum.
    pub min_ns: f64,
    /// Less the median of `transmit`, which is the cost of restoring.
    pub net_median_ns: f64,
    /// The same of the minima.
    pub net_min_ns: f64,
    /// The floor to compare with, or for a variant of the balancer's program the program itself.
    pub floor: String,
    /// Ratio of the net medians.
    pub ratio_median: Option<f64>,
    /// Ratio of the net minima.
    pub ratio_min: Option<f64>,
}

/// One size of a ring's change.
#[derive(Serialize, Deserialize)]
pub struct RingCase {
    /// Backends of the service.
    pub backends: usize,
    /// Milliseconds to compute the table alone: median.
    pub build_ms: f64,
    /// Milliseconds from the wish to the last slot written in the kernel, with the table: median.
    pub change_ms: f64,
    /// The same: minimum.
    pub change_min_ms: f64,
    /// Slots that changed.
    pub slots_changed: usize,
}

/// One map's memory.
#[derive(Serialize, Deserialize)]
pub struct MapMemory {
    /// Its name.
    pub map: String,
    /// Bytes, as the kernel accounts them.
    pub bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cost of a packet, in nanoseconds; `net` is without restoring the frame")?;
        writeln!(
            f,
            "{:<40}{:>8}{:>8}{:>8}{:>8}  {:<33}{:>6}",
            "", "median", "min", "net", "net min", "against", "ratio"
        )?;
        for case in &self.packets {
            let ratio = case.ratio_median.map_or_else(|| "-".into(), |r| format!("{r:.2}"));
            writeln!(
                f,
                "{:<40}{:>8.0}{:>8.0}{:>8.0}{:>8.0}  {:<33}{:>6}",
                case.name,
                case.median_ns,
                case.min_ns,
                case.net_median_ns,
                case.net_min_ns,
                case.floor,
                ratio
            )?;
        }
        writeln!(
            f,
            "\na change of a ring of 65,537 slots, one backend drained or back, in milliseconds: the table\nalone, and the whole from the wish to the last slot written in the kernel"
        )?;
        writeln!(
            f,
            "{:>9}{:>9}{:>9}{:>13}{:>15}",
            "backends", "table", "change", "change, min", "slots changed"
        )?;
        for case in &self.rings {
            writeln!(
                f,
                "{:>9}{:>9.2}{:>9.2}{:>13.2}{:>15}",
                case.backends,
                case.build_ms,
                case.change_ms,
                case.change_min_ms,
                case.slots_changed
            )?;
        }
        let total: u64 = self.memory.iter().map(|map| map.bytes).sum();
        writeln!(f, "\nmemory of the maps at the default capacities, with one service")?;
        for map in &self.memory {
            writeln!(f, "{:<18}{:>9.2} MiB", map.map, map.bytes as f64 / 1_048_576.0)?;
        }
        writeln!(f, "{:<18}{:>9.2} MiB", "together", total as f64 / 1_048_576.0)
    }
}
