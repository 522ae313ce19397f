//! `lbd` on one node of a lab and keepalived on the other, with the same address.

use std::{
    net::{IpAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    ha_pair::PRIORITIES,
    keepalived::{Instance, Keepalived},
    lab::{Lab, Options},
    owners::{Longest, Watch},
    router::Router,
    wait,
};

/// The virtual router's identifier.
const VRID: u8 = 51;

/// Its name.
pub const ROUTER: &str = "main";

/// How late a node of a busy machine may be, beyond the protocol's times.
const SLACK: Duration = Duration::from_millis(150);

/// How long two nodes may both have the address while one takes over from the other, which goes when it
/// receives an advertisement.
const OVERLAP: Duration = Duration::from_millis(150);

/// A node of the testbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `lbd`.
    Ours,
    /// keepalived.
    Theirs,
}

/// How both are set up.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The address.
    pub vip: IpAddr,
    /// Between two advertisements.
    pub interval: Duration,
    /// Whether `lbd` has the interval in its configuration; else it has the default.
    pub same_interval: bool,
    /// The node with the higher priority.
    pub higher: Who,
    /// A password, and with it version 2.
    pub password: Option<&'static str>,
    /// Whether advertisements go from one to the other alone.
    pub unicast: bool,
    /// Whether the higher priority takes over from a lower one.
    pub preempt: bool,
}

/// Both at work.
pub struct Testbed {
    /// `lbd`.
    pub ours: Balancer,
    /// keepalived.
    pub theirs: Keepalived,
    /// The hosts.
    pub lab: Lab,
    plan: Plan,
}

/// How the address goes from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It does not: there is one owner all the time.
    None,
    /// The new owner takes it from the old one, which lives.
    Taken,
    /// The old owner sends priority 0: the other waits for its skew.
    Left,
    /// The old owner sends nothing more: the other waits for three intervals and its skew.
    Silent,
    /// One that was killed comes back and finds its leftovers; it receives the owner's advertisement, lets go,
    /// and may take over then.
    Returned(Who),
}

impl Who {
    /// The number of its node.
    pub const fn node(self) -> usize {
        match self {
            Self::Ours => 0,
            Self::Theirs => 1,
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Ours => Self::Theirs,
            Self::Theirs => Self::Ours,
        }
    }
}

impl Plan {
    /// By multicast of version 3, ten times a second.
    pub fn new(vip: impl Into<IpAddr>, higher: Who) -> Self {
        let interval = Duration::from_millis(100);
        Self {
            vip: vip.into(),
            interval,
            same_interval: true,
            higher,
            password: None,
            unicast: false,
            preempt: true,
        }
    }

    /// The priority that a node has.
    pub fn priority(&self, who: Who) -> u8 {
        PRIORITIES[usize::from(who != self.higher)]
    }

    fn ours(&self, lab: &Lab, priority: u8) -> Result<String> {
        let mut router = Router::new(ROUTER, VRID, priority, self.interval, &[self.vip]);
        if !self.preempt {
            router = router.with("preempt = false");
        }
        if let Some(password) = self.password {
            router = router.password(password);
        }
        if self.unicast {
            let [from, to] = self.ends(lab)?;
            router = router.unicast(from, &[to]);
            if self.takes_short_hops() {
                router = router.with("min_ttl = 64");
            }
        }
        let table = router.toml();
        if self.same_interval {
            return Ok(table);
        }
        let lines = table.lines().filter(|line| !line.starts_with("interval = "));
        Ok(lines.map(|line| format!("{line}\n")).collect())
    }

    fn theirs(&self, lab: &Lab, priority: u8) -> Result<Instance> {
        let mut instance = Instance::new(VRID, priority, self.interval, &[self.vip]);
        if !self.preempt {
            instance = instance.with("nopreempt");
        }
        if let Some(password) = self.password {
            instance = instance.password(password);
        }
        if self.unicast {
            let [to, from] = self.ends(lab)?;
            instance = instance.unicast(from, &[to]);
            if !self.takes_short_hops() {
                instance = instance.with("unicast_ttl 255");
            }
        }
        Ok(instance)
    }

    /// Whether `lbd` takes advertisements as keepalived sends them by unicast over IPv6 by
    /// default: with the kernel's hop limit, where RFC 9568 asks for 255. Else keepalived is configured.
    fn takes_short_hops(&self) -> bool {
        self.vip.is_ipv6() && self.higher == Who::Theirs
    }

    /// The addresses of unicast: ours and theirs.
    fn ends(&self, lab: &Lab) -> Result<[IpAddr; 2]> {
        Ok(lab.pair()?.map(|host| host.address(self.vip)))
    }

    /// The service that has the address.
    fn services(&self, lab: &Lab) -> [Service; 1] {
        let backends = lab.webs.iter().map(|web| web.host.address(self.vip)).collect();
        [Service::tcp("web", self.vip, 80, "dsr", backends)]
    }
}

impl Testbed {
    /// Starts both, and waits until the one with the higher priority alone has the address.
    pub fn start(plan: Plan) -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, webs: 1, ..Options::default() })?;
        let [ours, theirs] = lab.pair()?;
        let tables = plan.ours(&lab, plan.priority(Who::Ours))?;
        let mut ours = Balancer::on(&lab, ours, &plan.services(&lab), &tables)?;
        let instance = plan.theirs(&lab, plan.priority(Who::Theirs))?;
        let mut theirs = Keepalived::new(&lab, theirs, &[instance])?;
        // Without preemption the first to come is the one that stays.
        match plan.higher {
            Who::Ours => ours.launch()?,
            Who::Theirs => theirs.launch()?,
        }
        let mut testbed = Self { ours, theirs, lab, plan };
        if !testbed.plan.preempt {
            testbed.wait_owner(testbed.plan.higher)?;
        }
        match testbed.plan.higher {
            Who::Ours => testbed.theirs.launch()?,
            Who::Theirs => testbed.ours.launch()?,
        }
        testbed.ours.wait_usable()?;
        testbed.wait_owner(testbed.plan.higher)?;
        Ok(testbed)
    }

    /// Does something, and sees how the address goes to its owner: there is one all the time, but for
    /// what the way of the change takes.
    pub fn step(
        &mut self,
        what: &str,
        owner: Who,
        change: Change,
        operation: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let watch = Watch::start(&self.namespaces()?, self.plan.vip)?;
        // So that the watch has begun.
        thread::sleep(self.plan.interval);
        let begun = Instant::now();
        operation(self).with_context(|| what.to_owned())?;
        let done = Instant::now();
        self.wait_owner(owner).with_context(|| what.to_owned())?;
        // An error would show in the next advertisements.
        thread::sleep(self.plan.interval * 5);
        let owners = watch.finish()?;
        let (from, end) = owners.span();
        let end = end.min(Instant::now());
        // Addresses of a dead node stay there until the node is back.
        let owners = match change {
            Change::Silent => owners.without(owner.other().node(), begun, end),
            Change::Returned(who) => {
                owners.without(who.node(), from, done + self.plan.interval * 2)
            }
            _ => owners,
        };
        let seen = owners.longest(from + Duration::from_millis(20), end);
        let bound = self.bound(owner, change);
        let precision = owners.precision;
        ensure!(
            seen.none <= bound.none + precision && seen.two <= bound.two + precision,
            "{what}: {seen}, and {bound} are right (looked every {precision:?} at least); {}",
            self.logs()
        );
        println!("{what}: {seen} (of {bound})");
        Ok(())
    }

    /// How long a change may take.
    fn bound(&self, owner: Who, change: Change) -> Longest {
        let Plan { interval, password, .. } = &self.plan;
        // RFC 9568, 6.1; RFC 3768 has seconds for intervals.
        let unit = if password.is_some() { Duration::from_secs(1) } else { *interval };
        let skew = unit * (256 - u32::from(self.plan.priority(owner))) / 256;
        let zero = Duration::ZERO;
        match change {
            Change::None => Longest { none: zero, two: zero },
            Change::Taken | Change::Returned(_) => Longest { none: SLACK, two: OVERLAP },
            Change::Left => Longest { none: skew + SLACK, two: OVERLAP },
            Change::Silent => Longest { none: *interval * 3 + skew + SLACK, two: OVERLAP },
        }
    }

    /// Starts a node's program.
    pub fn launch(&mut self, who: Who) -> Result<()> {
        match who {
            Who::Ours => self.ours.launch(),
            Who::Theirs => self.theirs.launch(),
        }
    }

    /// Stops a node's program in order.
    pub fn stop(&mut self, who: Who) -> Result<()> {
        match who {
            Who::Ours => self.ours.stop().map(drop),
            Who::Theirs => self.theirs.stop().map(drop),
        }
    }

    /// Kills a node's program.
    pub fn kill(&mut self, who: Who) -> Result<()> {
        match who {
            Who::Ours => self.ours.kill(),
            Who::Theirs => self.theirs.kill(),
        }
    }

    /// Gives a node another priority by its configuration.
    pub fn reload(&mut self, who: Who, priority: u8) -> Result<()> {
        match who {
            Who::Ours => {
                let tables = self.plan.ours(&self.lab, priority)?;
                self.ours.set_more(&tables);
                self.ours.configure(&self.plan.services(&self.lab))?;
                self.ours.lbctl(&["config", "reload"]).map(drop)
            }
            Who::Theirs => {
                self.theirs.configure(&[self.plan.theirs(&self.lab, priority)?])?;
                self.theirs.reload()
            }
        }
    }

    /// Starts keepalived anew by another plan.
    pub fn replace_theirs(&mut self, plan: &Plan) -> Result<()> {
        self.theirs.stop()?;
        self.theirs.configure(&[plan.theirs(&self.lab, plan.priority(Who::Theirs))?])?;
        self.theirs.launch()
    }

    /// Waits until a node has the address, and the other one has not or is dead.
    fn wait_owner(&self, who: Who) -> Result<()> {
        let limit = Duration::from_secs(10) + self.plan.interval * 8;
        wait::until(limit, &format!("{who:?} has the address"), || {
            let nodes = self.namespaces()?;
            let has =
                |who: Who| nodes[who.node()].enter(|| UdpSocket::bind((self.plan.vip, 0)).is_ok());
            ensure!(has(who)?, "it has not");
            let dead = match who.other() {
                Who::Ours => self.ours.pid().is_err(),
                Who::Theirs => !self.theirs.is_running(),
            };
            ensure!(dead || !has(who.other())?, "the other one has it as well");
            Ok(())
        })
        .with_context(|| self.logs())
    }

    fn namespaces(&self) -> Result<[&kit::namespace::Namespace; 2]> {
        Ok(self.lab.pair()?.map(|host| &host.namespace))
    }

    /// The last log lines of both.
    fn logs(&self) -> String {
        let tail = |log: String| {
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        };
        let (ours, theirs) = (tail(self.ours.log()), tail(self.theirs.log()));
        let output = self.ours.lbctl(&["-o", "json", "vrrp", "status"]).unwrap_or_default();
        format!("lbd wrote:\n{ours}\nand reports:\n{output}\nkeepalived wrote:\n{theirs}\n")
    }
}
