//! The results of `bench scale`, as tables for people and as JSON for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::health;

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// The constants of a sweep.
    pub base: Base,
    /// Programs that decide nothing.
    pub floors: Vec<Floor>,
    /// The cost of a packet.
    pub packets: Vec<Packets>,
    /// New flows when there is no room for pins.
    pub pins_full: PinsFull,
    /// The memory of the maps.
    pub memory: Vec<Memory>,
    /// The cost of a change.
    pub changes: Vec<Change>,
    /// `lbd` itself.
    pub daemon: Vec<Daemon>,
    /// The limits.
    pub limits: Vec<Limit>,
    /// Health checks.
    pub health: health::Report,
}

/// The constants of a sweep.
#[derive(Serialize, Deserialize)]
pub struct Base {
    /// Services.
    pub services: u16,
    /// Backends of a service.
    pub backends: u16,
    /// Flows.
    pub flows: u32,
    /// Pins.
    pub pins: u32,
    /// Slots of each ring.
    pub ring_slots: u32,
    /// The forwarding mode.
    pub mode: String,
}

/// A program that decides nothing.
#[derive(Serialize, Deserialize)]
pub struct Floor {
    /// `transmit` or `encapsulate`.
    pub name: String,
    /// Nanoseconds of one run with the frame's restoring: median of the rounds.
    pub median_ns: f64,
    /// The same: minimum.
    pub min_ns: f64,
    /// Less the median of `transmit`, which is the cost of restoring.
    pub net_median_ns: f64,
    /// The same of the minima.
    pub net_min_ns: f64,
}

/// The variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sweep {
    /// The services.
    Services,
    /// The backends of the one service.
    Backends,
    /// The flows.
    Flows,
    /// The pins.
    Pins,
}

impl Sweep {
    /// As tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Flows => "flows",
            Self::Pins => "pins",
        }
    }
}

/// Packets of one case.
#[derive(Serialize, Deserialize)]
pub struct Packets {
    /// The variable.
    pub sweep: Sweep,
    /// Which packets.
    pub packets: String,
    /// The value of the variable.
    pub value: u32,
    /// Nanoseconds of one run with the frame's restoring: median of the rounds.
    pub median_ns: f64,
    /// The same: minimum.
    pub min_ns: f64,
    /// Less the median of `transmit`.
    pub net_median_ns: f64,
    /// The same of the minima.
    pub net_min_ns: f64,
}

/// The fate of new flows when there is no room for their pins.
#[derive(Serialize, Deserialize)]
pub struct PinsFull {
    /// Pins that there is room for, and that there are.
    pub room: u32,
    /// Flows that began then, in slots in flux.
    pub new_flows: u32,
    /// Of them, those that were pinned all the same.
    pub pinned: u32,
    /// Those that went to the older backend of their slot, where the flow's next packets go as well.
    pub to_older_backend: u64,
}

/// The kernel memory of maps.
#[derive(Serialize, Deserialize)]
pub struct Memory {
    /// Services.
    pub services: usize,
    /// Backends of all of them.
    pub backends: usize,
    /// Pins that there is room for.
    pub pins_limit: u32,
    /// Bytes of all maps but the rings, as the kernel accounts them.
    pub tables_bytes: u64,
    /// Bytes of the rings.
    pub rings_bytes: u64,
}

/// A change of a ring: one backend is drained, or back.
#[derive(Serialize, Deserialize)]
pub struct Change {
    /// Services.
    pub services: u32,
    /// Backends of all of them.
    pub backends: u32,
    /// Milliseconds to compute the ring alone: median.
    pub table_ms: f64,
    /// Milliseconds from the wish to the last slot written in the kernel, with the ring: median.
    pub change_ms: f64,
    /// The same: minimum.
    pub change_min_ms: f64,
    /// Slots that changed.
    pub slots_changed: u64,
}

/// How long something took that was done several times.
#[derive(Serialize, Deserialize)]
pub struct Times {
    /// How often.
    pub count: usize,
    /// Milliseconds: median.
    pub median_ms: f64,
    /// Minimum.
    pub min_ms: f64,
    /// Maximum.
    pub max_ms: f64,
}

impl Times {
    /// Of these milliseconds; zero of none.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |n: usize| samples.get(n).copied().unwrap_or(0.0);
        let count = samples.len();
        let last = count.saturating_sub(1);
        Self { count, median_ms: at(count / 2), min_ms: at(0), max_ms: at(last) }
    }
}

/// `lbd` with so many services and backends.
#[derive(Serialize, Deserialize)]
pub struct Daemon {
    /// Services.
    pub services: u16,
    /// Backends of all of them.
    pub backends: u32,
    /// Whether it takes a higher limit than the default.
    pub raised: bool,
    /// From the start of the process with nothing there, to maps as they should be.
    pub start: Times,
    /// The same of a process that adopts the maps of a killed one.
    pub adopt: Times,
    /// `lbctl backend disable` and `enable`, from its start to its end.
    pub lbctl: Times,
    /// The most memory of `lbd` that was in RAM after a start and these changes.
    pub resident_bytes: u64,
}

/// A limit, and the error message for one more.
#[derive(Serialize, Deserialize)]
pub struct Limit {
    /// Its name.
    pub limit: String,
    /// How many there can be.
    pub value: u32,
    /// The command.
    pub asked: String,
    /// Its exit status.
    pub exit_status: Option<i32>,
    /// Its output.
    pub message: String,
}

fn words(sweep: Sweep, value: u32, packets: &str) -> String {
    format!("{} {value}, {packets}", sweep.name())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print_packets(f)?;
        self.print_maps(f)?;
        self.print_daemon(f)?;
        writeln!(f, "\nthe error for one more than a limit")?;
        for limit in &self.limits {
            let status = limit.exit_status.map_or_else(|| "-".into(), |status| status.to_string());
            writeln!(f, "{}: {}; {}: exit status {status}", limit.limit, limit.value, limit.asked)?;
            for line in limit.message.lines() {
                writeln!(f, "    {line}")?;
            }
        }
        let PinsFull { room, new_flows, pinned, to_older_backend } = &self.pins_full;
        writeln!(
            f,
            "pins: {room}; of {new_flows} new flows in slots in flux {pinned} were pinned, and {to_older_backend} \
             went to the\n    older backend of their slot\n"
        )?;
        write!(f, "{}", self.health)
    }
}

impl Report {
    fn print_packets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { services, backends, flows, pins, ring_slots, mode } = &self.base;
        writeln!(
            f,
            "cost of a packet, in nanoseconds; `net` is without restoring the frame\n\
             where they don't vary: services {services}, backends {backends} each, flows {flows}, pins {pins}; \
             {mode}, rings of {ring_slots} slots"
        )?;
        let head = ["median", "min", "net", "net min"];
        let [median, min, net, net_min] = head;
        writeln!(f, "{:<56}{median:>8}{min:>8}{net:>8}{net_min:>8}", "")?;
        let mut row = |name: &str, figures: [f64; 4]| {
            let [median, min, net, net_min] = figures;
            writeln!(f, "{name:<56}{median:>8.0}{min:>8.0}{net:>8.0}{net_min:>8.0}")
        };
        for case in &self.floors {
            let figures = [case.median_ns, case.min_ns, case.net_median_ns, case.net_min_ns];
            row(&format!("floor: {}", case.name), figures)?;
        }
        for case in &self.packets {
            let figures = [case.median_ns, case.min_ns, case.net_median_ns, case.net_min_ns];
            row(&words(case.sweep, case.value, &case.packets), figures)?;
        }
        Ok(())
    }

    fn print_maps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nmemory of the maps, in MiB")?;
        let head = ["services", "backends", "room for pins", "tables", "rings"];
        let [services, backends, pins, tables, rings] = head;
        writeln!(f, "{services:>9}{backends:>10}{pins:>15}{tables:>9}{rings:>9}")?;
        for memory in &self.memory {
            writeln!(
                f,
                "{:>9}{:>10}{:>15}{:>9.1}{:>9.1}",
                memory.services,
                memory.backends,
                memory.pins_limit,
                mib(memory.tables_bytes),
                mib(memory.rings_bytes),
            )?;
        }
        writeln!(
            f,
            "\none backend drained or back, in milliseconds: the ring's table alone, and the whole from the \
             wish to\nthe last slot written in the kernel"
        )?;
        let head = ["services", "backends", "table", "change", "change, min", "slots changed"];
        let [services, backends, table, change, min, slots] = head;
        writeln!(f, "{services:>9}{backends:>10}{table:>9}{change:>9}{min:>13}{slots:>15}")?;
        for change in &self.changes {
            writeln!(
                f,
                "{:>9}{:>10}{:>9.2}{:>9.2}{:>13.2}{:>15}",
                change.services,
                change.backends,
                change.table_ms,
                change.change_ms,
                change.change_min_ms,
                change.slots_changed,
            )?;
        }
        Ok(())
    }

    fn print_daemon(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nlbd, in milliseconds, median and minimum: from its start to maps as they should be, with nothing \
             there\nand with what a killed one has left; a change by lbctl, from its start to its end"
        )?;
        let head = ["services", "backends", "start", "min", "adopt", "min", "lbctl", "min"];
        let [services, backends, start, min, adopt, adopt_min, lbctl, lbctl_min] = head;
        writeln!(
            f,
            "{services:>9}{backends:>10}{start:>9}{min:>8}{adopt:>9}{adopt_min:>8}{lbctl:>9}{lbctl_min:>8}{:>15}",
            "resident, MiB"
        )?;
        for daemon in &self.daemon {
            writeln!(
                f,
                "{:>9}{:>10}{:>9.0}{:>8.0}{:>9.0}{:>8.0}{:>9.1}{:>8.1}{:>15.1}",
                daemon.services,
                daemon.backends,
                daemon.start.median_ms,
                daemon.start.min_ms,
                daemon.adopt.median_ms,
                daemon.adopt.min_ms,
                daemon.lbctl.median_ms,
                daemon.lbctl.min_ms,
                mib(daemon.resident_bytes),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_together() {
        let times = Times::of(vec![3.0, 1.0, 9.0]);
        assert_eq!((times.count, times.median_ms, times.min_ms, times.max_ms), (3, 3.0, 1.0, 9.0));
        assert_eq!(Times::of(Vec::new()).median_ms, 0.0);
    }

    #[test]
    fn everything_is_told() {
        let times = || Times::of(vec![41.0]);
        let report = Report {
            base: Base {
                services: 1,
                backends: 8,
                flows: 1 << 20,
                pins: 0,
                ring_slots: 65_537,
                mode: "ipip".into(),
            },
            floors: vec![Floor {
                name: "encapsulate".into(),
                median_ns: 80.0,
                min_ns: 79.0,
                net_median_ns: 20.0,
                net_min_ns: 19.0,
            }],
            packets: vec![Packets {
                sweep: Sweep::Services,
                packets: "to all of them".into(),
                value: 512,
                median_ns: 140.0,
                min_ns: 130.0,
                net_median_ns: 81.0,
                net_min_ns: 71.0,
            }],
            pins_full: PinsFull { room: 7, new_flows: 5, pinned: 0, to_older_backend: 5 },
            memory: vec![Memory {
                services: 1,
                backends: 8,
                pins_limit: 262_144,
                tables_bytes: 48 << 20,
                rings_bytes: 1 << 19,
            }],
            changes: vec![Change {
                services: 512,
                backends: 4_096,
                table_ms: 1.5,
                change_ms: 4.25,
                change_min_ms: 4.0,
                slots_changed: 8_192,
            }],
            daemon: vec![Daemon {
                services: 512,
                backends: 4_096,
                raised: false,
                start: times(),
                adopt: times(),
                lbctl: times(),
                resident_bytes: 25 << 20,
            }],
            limits: vec![Limit {
                limit: "services".into(),
                value: 512,
                asked: "lbd --check, one service more".into(),
                exit_status: Some(2),
                message: "513 services, but limits.services is 512; raise it".into(),
            }],
            health: health::Report { floor_us: 12.5, cases: Vec::new() },
        };
        let text = report.to_string();
        for part in [
            "services 512, to all of them                                 140     130      81      71\n",
            "        1         8         262144     48.0      0.5\n",
            "      512      4096     1.50     4.25         4.00           8192\n",
            "      512      4096       41      41       41      41     41.0    41.0           25.0\n",
            "    513 services, but limits.services is 512; raise it\n",
            "of 5 new flows in slots in flux 0 were pinned, and 5 went",
            "floor: bare connection",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
