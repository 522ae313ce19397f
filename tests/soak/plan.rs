//! The operations with their order, times and parameters: a function of the seed alone.
//!
//! [`Plan`] keeps its own account of its operations: drained backends, cut cables. It never
//! learns how the operations went, so that a seed gives the same ones on any machine. Times are those
//! of the plan; the run may be late, and is then as late with all that follows.

use std::{fmt, time::Duration};

use kit::{pair::Wire, ways::Way};

use crate::random::Random;

/// The services: all modes, both families.
pub const WAYS: [Way; 7] =
    [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6, Way::NatV4, Way::NatV6, Way::NatRangeV4];

/// How many web hosts there are; each is a backend of every service.
pub const HOSTS: usize = 4;

/// How long a node is spared everything that ends its `lbd`, in turns: a leak shows only in a process
/// that lives.
pub const EPOCH: Duration = Duration::from_secs(600);

/// How long a silent flow is kept: longer than the silence of any fault here, and of the repetition that
/// ends it, which TCP has put off meanwhile.
pub const IDLE: Duration = Duration::from_secs(20);

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The service, as an index of [`WAYS`].
    pub service: usize,
    /// The web host.
    pub host: usize,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `lbctl backend drain`
    Drain(Backend, Option<Duration>),
    /// `lbctl backend enable`
    Enable(Backend),
    /// `lbctl backend disable`, its flows stay
    Disable(Backend),
    /// `lbctl backend disable --force`
    ForceDown(Backend),
    /// `lbctl backend weight`
    Weight(Backend, u16),
    /// `lbctl backend remove`, its flows stay
    Remove(Backend),
    /// `lbctl backend remove --force`
    ForceOut(Backend),
    /// `lbctl backend add`
    Add(Backend, u16),
    /// nginx is killed.
    Kill(usize),
    /// nginx is started again.
    Revive(usize),
    /// nginx is stopped by a signal, and started at once.
    Restart(usize),
    /// nginx is stopped where it is.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// nginx stops and goes on, so many times, and each takes so long.
    Flap(usize, u8, Duration),
    /// A web host's cable is cut.
    Cut(usize),
    /// It is plugged in again.
    Mend(usize),
    /// A web host's cable is cut and plugged in, so many times, and each takes so long.
    Rattle(usize, u8, Duration),
    /// The files have another weight, and are loaded.
    ReloadWeight(Backend, u16),
    /// The files have checks at another interval, and are loaded.
    ReloadCheck(Duration),
    /// The files have a mistake, and are to be refused.
    ReloadMistake,
    /// `lbd` gets SIGTERM.
    Stop(usize),
    /// `lbd` is killed.
    Slay(usize),
    /// `lbd` is started; true: another copy of it, with other limits.
    Start(usize, bool),
    /// `lbd` is stopped where it is.
    Stall(usize),
    /// It goes on.
    Resume(usize),
    /// A node's cable to the clients is cut.
    CutNode(usize),
    /// It is plugged in again.
    MendNode(usize),
    /// The Active node hands over.
    HandOver,
    /// Nothing passes between the nodes: on the first wire, on the second.
    Part(bool, bool),
    /// They do again.
    Heal,
}

/// An operation and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, from the beginning.
    pub at: Duration,
    /// The operation.
    pub op: Op,
}

/// The operator's last setting of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Enabled,
    Draining,
    Disabled,
    Removed,
}

/// Steps without end.
#[derive(Clone, Debug)]
pub struct Plan {
    random: Random,
    now: Duration,
    setting: [[Setting; HOSTS]; WAYS.len()],
    /// Until when a host is left alone.
    busy: [Duration; HOSTS],
    node_busy: Duration,
    /// The ends of the operations that have begun.
    ends: Vec<Step>,
    /// The node that is spared first.
    spared: usize,
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Plan {
    /// The steps of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let spared = random.below(2);
        Self {
            random,
            now: Duration::from_secs(2),
            setting: [[Setting::Enabled; HOSTS]; WAYS.len()],
            busy: [Duration::ZERO; HOSTS],
            node_busy: Duration::ZERO,
            ends: Vec::new(),
            spared,
        }
    }

    /// The node whose `lbd` is spared at a time of the plan.
    #[must_use]
    pub fn spared(&self, at: Duration) -> usize {
        (self.spared + epoch(at)) % 2
    }

    /// The operations that restore everything.
    pub fn restore(mut self) -> Vec<Op> {
        let mut ops: Vec<_> =
            std::mem::take(&mut self.ends).into_iter().map(|end| end.op).collect();
        for (service, hosts) in self.setting.iter().enumerate() {
            for (host, setting) in hosts.iter().enumerate() {
                let backend = Backend { service, host };
                match setting {
                    Setting::Enabled => {}
                    Setting::Removed => ops.push(Op::Add(backend, 1)),
                    Setting::Draining | Setting::Disabled => ops.push(Op::Enable(backend)),
                }
            }
        }
        ops
    }

    /// Hosts that may have new flows of a service, and are well.
    fn ready(&self, service: usize) -> impl Iterator<Item = usize> {
        let setting = &self.setting[service];
        (0..HOSTS).filter(|&host| setting[host] == Setting::Enabled && self.busy[host] <= self.now)
    }

    /// An operation that may be begun now, if chance finds one.
    fn draw(&mut self) -> Option<Op> {
        match self.random.weighted(&[(54, 0), (22, 1), (14, 2), (10, 3)])? {
            0 => self.backend(),
            1 => self.host(),
            2 => self.node(),
            _ => self.reload(),
        }
    }

    fn backend(&mut self) -> Option<Op> {
        let service = self.random.below(WAYS.len());
        // The last backends of a service get help more often than not.
        let few = self.ready(service).count() < 2;
        let out: Vec<_> =
            (0..HOSTS).filter(|&host| self.setting[service][host] != Setting::Enabled).collect();
        let host = if few && !out.is_empty() {
            out[self.random.below(out.len())]
        } else {
            self.random.below(HOSTS)
        };
        let backend = Backend { service, host };
        let weight = 1 + self.random.below(5) as u16;
        let deadline = self.random.between(millis(2_000), millis(15_000));
        let choices: &[(usize, (Op, Setting))] = match self.setting[service][host] {
            Setting::Enabled => &[
                (24, (Op::Drain(backend, None), Setting::Draining)),
                (10, (Op::Drain(backend, Some(deadline)), Setting::Draining)),
                (10, (Op::Disable(backend), Setting::Disabled)),
                (6, (Op::ForceDown(backend), Setting::Disabled)),
                (26, (Op::Weight(backend, weight), Setting::Enabled)),
                (10, (Op::Remove(backend), Setting::Removed)),
                (6, (Op::ForceOut(backend), Setting::Removed)),
            ],
            Setting::Draining => &[
                (60, (Op::Enable(backend), Setting::Enabled)),
                (8, (Op::Disable(backend), Setting::Disabled)),
                (8, (Op::Weight(backend, weight), Setting::Draining)),
                (14, (Op::Remove(backend), Setting::Removed)),
                (4, (Op::ForceOut(backend), Setting::Removed)),
            ],
            Setting::Disabled => &[
                (70, (Op::Enable(backend), Setting::Enabled)),
                (10, (Op::Weight(backend, weight), Setting::Disabled)),
                (12, (Op::Remove(backend), Setting::Removed)),
            ],
            Setting::Removed => &[(1, (Op::Add(backend, weight), Setting::Enabled))],
        };
        let (op, setting) = self.random.weighted(choices)?;
        let takes_out =
            self.setting[service][host] == Setting::Enabled && setting != Setting::Enabled;
        // Once in a while no backend is left.
        if takes_out && self.ready(service).all(|ready| ready == host) && !self.random.one_in(12) {
            return None;
        }
        self.setting[service][host] = setting;
        Some(op)
    }

    fn host(&mut self) -> Option<Op> {
        let host = self.random.below(HOSTS);
        if self.busy[host] > self.now {
            return None;
        }
        let alone = (0..WAYS.len()).any(|service| self.ready(service).all(|ready| ready == host));
        if alone && !self.random.one_in(12) {
            return None;
        }
        let which = self.random.weighted(&[(5, 0), (3, 1), (4, 2), (2, 3), (6, 4), (2, 5)])?;
        let times = 2 + self.random.below(3) as u8;
        let each = self.random.between(millis(150), millis(500));
        let (op, end, lasts) = match which {
            0 => {
                (Op::Kill(host), Op::Revive(host), self.random.between(millis(300), millis(8_000)))
            }
            1 => return self.brief(host, Op::Restart(host), Duration::ZERO),
            2 => {
                (Op::Freeze(host), Op::Thaw(host), self.random.between(millis(500), millis(6_000)))
            }
            3 => return self.brief(host, Op::Flap(host, times, each), each * 2 * times.into()),
            4 => (Op::Cut(host), Op::Mend(host), self.random.between(millis(200), millis(6_000))),
            _ => return self.brief(host, Op::Rattle(host, times, each), each * 2 * times.into()),
        };
        self.ends.push(Step { at: self.now + lasts, op: end });
        // TCP doubles the time to its next repetition: it must not meet the next fault as well.
        self.busy[host] = self.now + lasts + (lasts * 5 / 2).max(millis(3_000));
        Some(op)
    }

    /// A fault of a host that its one operation ends as well.
    fn brief(&mut self, host: usize, op: Op, lasts: Duration) -> Option<Op> {
        self.busy[host] = self.now + lasts + (lasts * 5 / 2).max(millis(3_000));
        Some(op)
    }

    fn node(&mut self) -> Option<Op> {
        if self.node_busy > self.now {
            return None;
        }
        // No operation that ends an `lbd` lasts beyond its epoch.
        let other = 1 - self.spared(self.now);
        let ends_in_time = epoch(self.now + millis(6_000)) == epoch(self.now);
        let any = self.random.below(2);
        let upgrade = self.random.one_in(3);
        let which = self.random.weighted(&[(3, 0), (4, 1), (3, 2), (3, 3), (4, 4), (4, 5)])?;
        let lasts = self.random.between(millis(300), millis(5_000));
        let (first, second) = match self.random.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        let (op, end) = match which {
            0 | 1 if !ends_in_time => return None,
            0 => (Op::Slay(other), Op::Start(other, upgrade)),
            1 => (Op::Stop(other), Op::Start(other, upgrade)),
            2 => (Op::Stall(any), Op::Resume(any)),
            3 => (Op::CutNode(any), Op::MendNode(any)),
            4 => (Op::Part(first, second), Op::Heal),
            _ => {
                self.node_busy = self.now + millis(2_000);
                return Some(Op::HandOver);
            }
        };
        self.ends.push(Step { at: self.now + lasts, op: end });
        self.node_busy = self.now + lasts + millis(3_000);
        Some(op)
    }

    fn reload(&mut self) -> Option<Op> {
        let backend =
            Backend { service: self.random.below(WAYS.len()), host: self.random.below(HOSTS) };
        let weight = 1 + self.random.below(5) as u16;
        match self.random.weighted(&[(2, 0), (1, 1), (1, 2)])? {
            // The file brings a backend back that lbctl has removed: what would be removed on a node
            // that does not run now, and is there when it starts, is another case.
            0 if self.node_busy > self.now
                || self.setting[backend.service][backend.host] == Setting::Removed =>
            {
                None
            }
            0 => Some(Op::ReloadWeight(backend, weight)),
            1 => Some(Op::ReloadCheck(millis(400) + millis(100) * self.random.below(3) as u32)),
            _ => Some(Op::ReloadMistake),
        }
    }
}

/// The number of an epoch.
#[must_use]
pub fn epoch(at: Duration) -> usize {
    (at.as_millis() / EPOCH.as_millis()) as usize
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let pause = self.random.between(millis(200), millis(1_800));
        let due = self.ends.iter().enumerate().min_by_key(|(_, end)| end.at);
        if let Some((index, end)) = due.map(|(index, end)| (index, *end))
            && end.at <= self.now + pause
        {
            self.ends.swap_remove(index);
            self.now = self.now.max(end.at);
            return Some(end);
        }
        self.now += pause;
        // Not all that chance finds may be begun now; a weight can always be set or help be given.
        let op = loop {
            if let Some(op) = self.draw() {
                break op;
            }
        };
        Some(Step { at: self.now, op })
    }
}

impl Op {
    /// Its kind, as it is counted.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Drain(_, None) => "drain",
            Self::Drain(_, Some(_)) => "drain_deadline",
            Self::Enable(_) => "enable",
            Self::Disable(_) => "disable",
            Self::ForceDown(_) => "disable_force",
            Self::Weight(..) => "weight",
            Self::Remove(_) => "remove",
            Self::ForceOut(_) => "remove_force",
            Self::Add(..) => "add",
            Self::Kill(_) => "nginx_kill",
            Self::Revive(_) => "nginx_start",
            Self::Restart(_) => "nginx_restart",
            Self::Freeze(_) => "nginx_stop",
            Self::Thaw(_) => "nginx_continue",
            Self::Flap(..) => "nginx_flap",
            Self::Cut(_) => "cable_cut",
            Self::Mend(_) => "cable_plug",
            Self::Rattle(..) => "cable_flap",
            Self::ReloadWeight(..) => "reload_weight",
            Self::ReloadCheck(_) => "reload_check",
            Self::ReloadMistake => "reload_mistake",
            Self::Stop(_) => "lbd_stop",
            Self::Slay(_) => "lbd_kill",
            Self::Start(_, false) => "lbd_start",
            Self::Start(_, true) => "lbd_upgrade",
            Self::Stall(_) => "lbd_stall",
            Self::Resume(_) => "lbd_continue",
            Self::CutNode(_) => "node_cable_cut",
            Self::MendNode(_) => "node_cable_plug",
            Self::HandOver => "handover",
            Self::Part(..) => "partition",
            Self::Heal => "heal",
        }
    }

    /// Whether it takes a pair that is whole: nothing else is wrong with the nodes.
    #[must_use]
    pub const fn strikes_a_node(self) -> bool {
        matches!(
            self,
            Self::Stop(_)
                | Self::Slay(_)
                | Self::Stall(_)
                | Self::CutNode(_)
                | Self::HandOver
                | Self::Part(..)
        )
    }

    /// The node that it strikes alone.
    #[must_use]
    pub const fn node(self) -> Option<usize> {
        match self {
            Self::Stop(node) | Self::Slay(node) | Self::Stall(node) | Self::CutNode(node) => {
                Some(node)
            }
            _ => None,
        }
    }

    /// The backend that an operator's command is about.
    #[must_use]
    pub const fn backend(self) -> Option<Backend> {
        match self {
            Self::Drain(backend, _)
            | Self::Enable(backend)
            | Self::Disable(backend)
            | Self::ForceDown(backend)
            | Self::Weight(backend, _)
            | Self::Remove(backend)
            | Self::ForceOut(backend)
            | Self::Add(backend, _) => Some(backend),
            _ => None,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} web{}", WAYS[self.service].name(), self.host + 1)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        if let Some(backend) = self.backend() {
            write!(f, "{kind} {backend}")?;
        }
        match self {
            Self::Drain(_, Some(deadline)) => write!(f, " within {deadline:?}"),
            Self::Weight(_, weight) | Self::Add(_, weight) => write!(f, ": {weight}"),
            _ if self.backend().is_some() => Ok(()),
            Self::Kill(host)
            | Self::Revive(host)
            | Self::Restart(host)
            | Self::Freeze(host)
            | Self::Thaw(host)
            | Self::Cut(host)
            | Self::Mend(host) => write!(f, "{kind} web{}", host + 1),
            Self::Flap(host, times, each) | Self::Rattle(host, times, each) => {
                write!(f, "{kind} web{}, {times} times {each:?}", host + 1)
            }
            Self::ReloadWeight(backend, weight) => write!(f, "{kind} {backend}: {weight}"),
            Self::ReloadCheck(interval) => write!(f, "{kind}: {interval:?}"),
            Self::Stop(node)
            | Self::Slay(node)
            | Self::Start(node, _)
            | Self::Stall(node)
            | Self::Resume(node)
            | Self::CutNode(node)
            | Self::MendNode(node) => write!(f, "{kind} lb{}", node + 1),
            Self::Part(first, second) => {
                let wires = [(first, Wire::First), (second, Wire::Second)];
                let wires: Vec<_> =
                    wires.iter().filter(|(parted, _)| **parted).map(|(_, wire)| wire).collect();
                write!(f, "{kind} {wires:?}")
            }
            _ => f.write_str(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_again_and_another_one_gives_others() {
        let steps = |seed| Plan::new(seed).take(2_000).collect::<Vec<_>>();
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn every_kind_comes_in_an_hour_and_none_beyond_its_time() {
        let hour = Plan::new(3).take_while(|step| step.at < Duration::from_secs(3_600));
        let steps: Vec<_> = hour.collect();
        let kinds: BTreeSet<_> = steps.iter().map(|step| step.op.kind()).collect();
        assert_eq!(kinds.len(), 32, "{kinds:?}");
        assert!(steps.len() > 2_000, "{}", steps.len());
        assert!(steps.is_sorted_by_key(|step| step.at));
    }

    #[test]
    fn what_is_begun_is_ended_and_the_nodes_have_one_fault_at_a_time() {
        let mut open = None;
        for step in Plan::new(4).take(5_000) {
            match step.op {
                Op::HandOver => assert_eq!(open, None, "{step:?}"),
                op if op.strikes_a_node() => assert_eq!(open.replace(op), None, "{step:?}"),
                Op::Start(..) | Op::Resume(_) | Op::MendNode(_) | Op::Heal => {
                    assert!(open.take().is_some(), "{step:?}");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn the_spared_node_keeps_its_lbd_for_its_epoch() {
        let mut plan = Plan::new(5);
        let mut struck = BTreeSet::new();
        for _ in 0..20_000 {
            let step = plan.next().unwrap();
            if let Op::Stop(node) | Op::Slay(node) | Op::Start(node, _) = step.op {
                assert_ne!(node, plan.spared(step.at), "{step:?}");
                struck.insert(node);
            }
        }
        assert_eq!(struck.len(), 2);
    }

    #[test]
    fn all_is_restored() {
        let mut plan = Plan::new(6);
        for _ in 0..500 {
            plan.next();
        }
        let begun = plan.ends.len();
        let out =
            plan.setting.iter().flatten().filter(|setting| **setting != Setting::Enabled).count();
        assert_eq!(plan.restore().len(), begun + out);
    }
}
