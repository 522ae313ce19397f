//! The pair and its web hosts, on which the operations are carried out.

use std::{fmt::Write as _, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Service,
    ha_pair::{HaPair, Plan},
    lab::Options,
    pair::Wire,
    status::PairExt as _,
    wait,
};
use lb_api::status::{self, BackendState};
use lb_model::router::State;

use crate::{
    clock::Clock,
    model::{Done, Log, Span, Trouble},
    plan::{Backend, HOSTS, IDLE, Op, WAYS},
};

/// Between two advertisements.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long an `lbd` may take to start, on a machine that is busy with other things.
const START: Duration = Duration::from_secs(60);

/// Room for pins; an upgrade goes from one to the other, and has all maps made anew.
const PINS: [u32; 2] = [65_536, 131_072];

/// The pair at work.
#[derive(Debug)]
pub struct Testbed {
    /// The nodes and hosts.
    pub ha_pair: HaPair,
    /// What was done.
    pub log: Log,
    clock: Clock,
    /// Whether a fault of the nodes lasts, whatever they have noticed of it.
    struck: bool,
    nodes: [Node; 2],
    files: Files,
}

/// The state of a node.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Whether its `lbd` takes commands.
    away: bool,
    pins: usize,
    /// The operations that it has missed, by their place in the log.
    missed: Vec<usize>,
}

/// The changing part of the configuration files.
#[derive(Clone, Debug)]
struct Files {
    weights: [[u16; HOSTS]; WAYS.len()],
    interval: Duration,
}

impl Testbed {
    /// Builds it all, and starts both nodes; the first one is Active.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(clock: Clock) -> Result<Self> {
        let options = Options { webs: HOSTS as u8, ..Options::default() };
        let ha_pair = HaPair::new(&options, Plan::new(&WAYS, INTERVAL))?;
        let files = Files { weights: [[1; HOSTS]; WAYS.len()], interval: INTERVAL * 5 };
        let mut testbed = Self {
            ha_pair,
            log: Log::default(),
            clock,
            struck: false,
            nodes: Default::default(),
            files,
        };
        for n in [0, 1] {
            testbed.launch(n)?;
            testbed.ha_pair.nodes[n].wait_usable()?;
        }
        wait::until(START, "the pair is whole", || testbed.whole())?;
        ensure!(testbed.active()? == 0, "the second node is Active");
        Ok(testbed)
    }

    /// Where a node's log is.
    #[must_use]
    pub fn logs(&self) -> [PathBuf; 2] {
        [0, 1].map(|n| self.ha_pair.nodes[n].config().with_file_name("lbd.log"))
    }

    /// The processes of both `lbd`.
    #[must_use]
    pub fn pids(&self) -> [Option<u32>; 2] {
        [0, 1].map(|n| self.ha_pair.nodes[n].pid().ok())
    }

    /// Carries an operation out, and notes it.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn carry_out(&mut self, op: Op) -> Result<()> {
        let began = self.clock.now();
        let place = self.log.done.len();
        self.log.done.push(Done { op, began, ended: None });
        if op.strikes_a_node() {
            self.log.troubles.push(Trouble { op, span: Span::since(began) });
            self.struck = op != Op::HandOver;
        }
        self.act(op, place).with_context(|| op.to_string())?;
        if matches!(op, Op::Start(..) | Op::Resume(_) | Op::MendNode(_) | Op::Heal) {
            self.struck = false;
        }
        if self.nodes.iter().all(|node| !node.missed.contains(&place)) {
            self.log.done[place].ended = Some(self.clock.now());
        }
        Ok(())
    }

    fn act(&mut self, op: Op, place: usize) -> Result<()> {
        let orphan = self.ha_pair.lab.orphan();
        match op {
            _ if op.backend().is_some() => self.request_all(op, place),
            Op::Kill(host) => self.ha_pair.lab.webs[host].nginx.kill(),
            Op::Revive(host) => {
                let web = &mut self.ha_pair.lab.webs[host];
                web.nginx.restart(&web.host.namespace, orphan)
            }
            Op::Restart(host) => {
                let web = &mut self.ha_pair.lab.webs[host];
                web.nginx.stop()?;
                web.nginx.restart(&web.host.namespace, orphan)
            }
            Op::Freeze(host) => self.ha_pair.lab.webs[host].nginx.freeze(),
            Op::Thaw(host) => self.ha_pair.lab.webs[host].nginx.thaw(),
            Op::Flap(host, times, each) => {
                let nginx = &self.ha_pair.lab.webs[host].nginx;
                (0..times).try_for_each(|_| {
                    nginx.freeze()?;
                    thread::sleep(each);
                    nginx.thaw()?;
                    thread::sleep(each);
                    Ok(())
                })
            }
            Op::Cut(host) => self.ha_pair.lab.cut(&web(host)),
            Op::Mend(host) => self.ha_pair.lab.mend(&web(host)),
            Op::Rattle(host, times, each) => (0..times).try_for_each(|_| {
                self.ha_pair.lab.cut(&web(host))?;
                thread::sleep(each);
                self.ha_pair.lab.mend(&web(host))?;
                thread::sleep(each);
                Ok(())
            }),
            Op::ReloadWeight(backend, weight) => {
                self.files.weights[backend.service][backend.host] = weight;
                self.reload()
            }
            Op::ReloadCheck(interval) => {
                self.files.interval = interval;
                self.reload()
            }
            Op::ReloadMistake => self.reload_mistake(),
            Op::Stop(n) => {
                self.nodes[n].away = true;
                let status = self.ha_pair.nodes[n].stop()?;
                ensure!(status.success(), "lbd ended with {status}");
                Ok(())
            }
            Op::Slay(n) => {
                self.nodes[n].away = true;
                self.ha_pair.nodes[n].kill()
            }
            Op::Start(n, upgrade) => {
                self.nodes[n].pins ^= usize::from(upgrade);
                self.launch(n)?;
                self.catch_up(n)
            }
            Op::Stall(n) => {
                self.nodes[n].away = true;
                self.ha_pair.nodes[n].signal(libc::SIGSTOP)
            }
            Op::Resume(n) => {
                self.ha_pair.nodes[n].signal(libc::SIGCONT)?;
                self.catch_up(n)
            }
            Op::CutNode(n) => self.ha_pair.lab.cut(&self.ha_pair.host(n).name),
            Op::MendNode(n) => self.ha_pair.lab.mend(&self.ha_pair.host(n).name),
            Op::HandOver => self.ha_pair.hand_over(self.active()?),
            Op::Part(first, second) => {
                let wires = [(first, Wire::First), (second, Wire::Second)];
                let parted = wires.into_iter().filter(|(parted, _)| *parted);
                parted.map(|(_, wire)| wire).try_for_each(|wire| self.ha_pair.lab.part(wire))
            }
            Op::Heal => {
                self.ha_pair.lab.heal(Wire::First)?;
                self.ha_pair.lab.heal(Wire::Second)
            }
            _ => bail!("nobody knows how to do it"),
        }
    }

    /// Runs an operator's command on both nodes; on one that is away, later.
    fn request_all(&mut self, op: Op, place: usize) -> Result<()> {
        for n in [0, 1] {
            if self.nodes[n].away {
                self.nodes[n].missed.push(place);
            } else {
                self.request(n, op)?;
            }
        }
        Ok(())
    }

    fn request(&self, n: usize, op: Op) -> Result<()> {
        let Backend { service, host } = op.backend().context("a command about no backend")?;
        let way = WAYS[service];
        let address = way.backend(&self.ha_pair.lab.webs[host]).to_string();
        let mut line = vec!["backend"];
        let (command, options): (_, &[&str]) = match op {
            Op::Drain(_, None) => ("drain", &["--yes"]),
            Op::Drain(_, Some(_)) => ("drain", &["--yes", "--deadline"]),
            Op::Enable(_) => ("enable", &[]),
            Op::Disable(_) => ("disable", &["--yes"]),
            Op::ForceDown(_) => ("disable", &["--yes", "--force"]),
            Op::Weight(..) => ("weight", &[]),
            Op::Remove(_) => ("remove", &["--yes"]),
            Op::ForceOut(_) => ("remove", &["--yes", "--force"]),
            _ => ("add", &["--weight"]),
        };
        let last = match op {
            Op::Drain(_, Some(deadline)) => Some(format!("{}ms", deadline.as_millis())),
            Op::Weight(_, weight) | Op::Add(_, weight) => Some(weight.to_string()),
            _ => None,
        };
        line.extend([command, way.name(), &address]);
        line.extend(options);
        line.extend(last.as_deref());
        self.ha_pair.nodes[n]
            .lbctl(&line)
            .map(drop)
            .with_context(|| self.ha_pair.host(n).name.clone())
    }

    /// Runs the commands on a node that it has missed.
    fn catch_up(&mut self, n: usize) -> Result<()> {
        self.nodes[n].away = false;
        for place in std::mem::take(&mut self.nodes[n].missed) {
            self.request(n, self.log.done[place].op)?;
            self.log.done[place].ended = Some(self.clock.now());
        }
        Ok(())
    }

    fn launch(&mut self, n: usize) -> Result<()> {
        self.configure(n)?;
        let node = &mut self.ha_pair.nodes[n];
        node.begin()?;
        let answers = wait::until(START, "lbd answers", || {
            node.check()?;
            node.status()
        });
        answers.map(drop).with_context(|| self.ha_pair.logs())
    }

    /// Writes a node's file.
    fn configure(&mut self, n: usize) -> Result<()> {
        let Self { ha_pair, nodes, files, .. } = self;
        let tables = ha_pair.plan.tables(&ha_pair.lab, n)?;
        let pins = PINS[nodes[n].pins];
        let more = format!("{tables}\n[log]\nformat = \"json\"\n\n[limits]\npins = {pins}\n");
        let services = files.services(ha_pair);
        ha_pair.nodes[n].set_more(&more);
        ha_pair.nodes[n].configure(&services)
    }

    /// Has both nodes read their files again; one that is away will when it starts.
    fn reload(&mut self) -> Result<()> {
        for n in [0, 1] {
            self.configure(n)?;
            if !self.nodes[n].away {
                self.ha_pair.nodes[n].lbctl(&["config", "reload"])?;
            } else if self.ha_pair.nodes[n].is_running() {
                // One that was stopped where it is receives the signal when it goes on.
                self.ha_pair.nodes[n].signal(libc::SIGHUP)?;
            }
        }
        Ok(())
    }

    /// Has both nodes read a file with a mistake, which they must refuse.
    fn reload_mistake(&mut self) -> Result<()> {
        for n in [0, 1] {
            if self.nodes[n].away {
                continue;
            }
            let node = &self.ha_pair.nodes[n];
            let good = std::fs::read_to_string(node.config()).context("read lbd.toml")?;
            let bad = good.replacen("weight = ", "weight = -", 1);
            ensure!(bad != good, "no weight in lbd.toml");
            std::fs::write(node.config(), bad).context("write lbd.toml")?;
            let output = node.lbctl_output(&["config", "reload"]);
            std::fs::write(node.config(), good).context("write lbd.toml")?;
            ensure!(!output?.status.success(), "a file with a mistake was taken");
        }
        Ok(())
    }

    /// The node that is Active.
    ///
    /// # Errors
    ///
    /// If there is none, or a node does not answer.
    pub fn active(&self) -> Result<usize> {
        for n in [0, 1] {
            if self.ha_pair.pair(n)?.is_active() {
                return Ok(n);
            }
        }
        bail!("no node is Active")
    }

    /// That both nodes are there, one of them is Active, and each knows all flows of the other.
    ///
    /// # Errors
    ///
    /// If a condition is missing.
    pub fn whole(&self) -> Result<()> {
        ensure!(!self.struck, "what was done to the nodes lasts");
        let mut active = 0;
        for n in [0, 1] {
            let name = &self.ha_pair.host(n).name;
            ensure!(!self.nodes[n].away, "{name} is away");
            let pair = self.ha_pair.pair(n)?;
            ensure!(pair.synced(), "{name} reports of its peer: {:?}", pair.peers);
            active += pair.routers.iter().filter(|router| router.state == State::Active).count();
            let all = [0, pair.routers.len()];
            let active_here =
                pair.routers.iter().filter(|router| router.state == State::Active).count();
            ensure!(all.contains(&active_here), "{name} is in between: {:?}", pair.routers);
            if active_here > 0 {
                ensure!(active == active_here, "both nodes are Active");
            }
        }
        ensure!(active > 0, "no node is Active");
        Ok(())
    }

    /// Whether something is wrong with the nodes, by operations that are not yet found whole again.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.log.troubles.last().is_some_and(|trouble| trouble.span.until == Duration::MAX)
    }

    /// Looks whether the pair is whole after a trouble, and notes it.
    ///
    /// # Errors
    ///
    /// If a condition is missing.
    pub fn look(&mut self) -> Result<()> {
        if self.is_troubled() {
            self.whole()?;
            let now = self.clock.now();
            if let Some(trouble) = self.log.troubles.last_mut() {
                trouble.span.until = now;
            }
        }
        Ok(())
    }

    /// How much is left of the operations, on both nodes: slots in flux, pins, and backends that take no
    /// new flows.
    ///
    /// # Errors
    ///
    /// If a node does not answer, or could not write its maps.
    pub fn left(&self) -> Result<u64> {
        let mut left = 0;
        for n in [0, 1] {
            let name = &self.ha_pair.host(n).name;
            let status = self.ha_pair.nodes[n].status()?;
            ensure!(status.last_error.is_none(), "{name}: {:?}", status.last_error);
            for (service, state) in &status.services {
                ensure!(
                    state.backends.len() == HOSTS,
                    "{name}: {service}: {:?}",
                    state.backends.keys()
                );
                left += u64::from(state.slots_in_flux);
                let idle = |backend: &&status::Backend| {
                    !matches!(backend.state(), BackendState::Up | BackendState::Suspect)
                        || backend.slots == 0
                };
                left += state.backends.values().filter(idle).count() as u64;
            }
            left += status.pins.used;
        }
        Ok(left)
    }
}

impl Files {
    /// The services, with the checks and the backends written differently.
    fn services(&self, ha_pair: &HaPair) -> Vec<Service> {
        let mut services = ha_pair.plan.services(&ha_pair.lab);
        for (service, weights) in services.iter_mut().zip(&self.weights) {
            let mut lines = format!(
                "idle_timeout = \"{}s\"\nflap_half_life = \"5s\"\n[service.check]\ntype = \"http\"\npath = \"/health\"\n\
                 interval = \"{}ms\"\nfast_interval = \"250ms\"\ndown_interval = \"250ms\"\n\
                 timeout = \"2s\"\nrise = 1\nfall = 2\n",
                IDLE.as_secs(),
                self.interval.as_millis()
            );
            // Nothing fails to be written to a string.
            if service.more_ports > 0 {
                let _ = writeln!(lines, "port = {}", service.port);
            }
            for (address, weight) in service.backends.drain(..).zip(weights) {
                let _ = writeln!(
                    lines,
                    "[[service.backend]]\naddress = \"{address}\"\nweight = {weight}"
                );
            }
            service.settings += &lines;
        }
        services
    }
}

/// The name of a web host.
fn web(host: usize) -> String {
    format!("web{}", host + 1)
}
