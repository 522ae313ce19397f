//! A run: the plan's steps one after the other under traffic, and a judgement of all that ends.

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::{
    reports::soak::{Course, Node, Report, Violation, time},
    signals,
};

use crate::{
    clients::Clients,
    clock::Clock,
    model::{self, Answer, Done, History, Life, Observations, Span},
    node_logs::Reader,
    plan::{Op, Plan, Step, WAYS, epoch},
    samples::{Sample, Sampler, growths},
    testbed::Testbed,
    unsolicited::Filter,
};

/// The arguments.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// The seed of the steps.
    pub seed: u64,
    /// For how long.
    pub length: Duration,
    /// Where logs are kept.
    pub folder: PathBuf,
}

/// How long after its end a connection is judged: then all is known that has to do with it.
const JUDGED: Duration = Duration::from_secs(4);

/// How long the pair may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);

/// How long it may take after the last connection that state begins to go, or goes on to: the longest idle
/// timeout, and the steps that slots settle by on a machine that is busy with other things.
const SETTLED: Duration = Duration::from_secs(90);

/// Where violations are kept.
const VIOLATIONS: &str = "violations.txt";

/// How many operations are listed beside a violation.
const LISTED: usize = 20;

/// How many violations are printed in full.
const MOST: usize = 100;

/// The state of a run.
struct Run {
    arguments: Arguments,
    clock: Clock,
    testbed: Testbed,
    reader: Reader,
    filter: Filter,
    observations: Observations,
    sampler: Sampler,
    report: Report,
    /// Connections that have ended and are not judged yet.
    pending: Vec<Life>,
    /// The counts of the observations that are judged.
    looked_at: (usize, usize),
    /// Since when each node was spared.
    turns: Vec<(usize, Duration)>,
    /// When the first step could be taken.
    begun: Duration,
    printed: Duration,
    /// When the progress was printed, where that takes a line each time.
    printed_line: Duration,
    doing: String,
}

/// Runs it.
///
/// # Errors
///
/// If it can't be set up. Violations are in the report.
pub fn run(arguments: Arguments) -> Result<Report> {
    let clock = Clock::start();
    fs::create_dir_all(&arguments.folder)
        .with_context(|| format!("create {}", arguments.folder.display()))?;
    // Of another run of the seed.
    let _ = fs::remove_file(arguments.folder.join(VIOLATIONS));
    eprintln!("soak: seed {}; two nodes and their web hosts are started", arguments.seed);
    let testbed = Testbed::start(clock)?;
    let reader = Reader::new(clock, &testbed.ha_pair.lab, testbed.logs());
    let sampler = Sampler::start(clock)?;
    sampler.follow(testbed.pids());
    let filter = Filter::start(&testbed.ha_pair.lab)?;
    let clients = Clients::start(&testbed.ha_pair.lab, clock, arguments.seed)?;
    let mut run = Run {
        report: Report {
            seed: arguments.seed,
            services: WAYS.map(|way| way.name().to_owned()).into(),
            ..Report::default()
        },
        arguments,
        clock,
        testbed,
        reader,
        filter,
        observations: Observations::default(),
        sampler,
        pending: Vec::new(),
        looked_at: (0, 0),
        turns: Vec::new(),
        begun: clock.now(),
        printed: Duration::ZERO,
        printed_line: Duration::ZERO,
        doing: String::new(),
    };
    let done = run.steps(&clients);
    run.end(clients, done)
}

impl Run {
    /// Carries the plan out for as long as it is to last, then restores everything.
    fn steps(&mut self, clients: &Clients) -> Result<()> {
        let mut plan = Plan::new(self.arguments.seed);
        let begun = self.clock.now();
        // The nodes' logs of their start are not of this run.
        self.reader.read(&mut self.observations)?;
        self.looked_at = (self.observations.moved.len(), self.observations.takeovers.len());
        let end = begun + self.arguments.length;
        let mut late = begun;
        while self.clock.now() < end && !signals::caught() {
            let before = plan.clone();
            let Some(step) = plan.next() else { break };
            if !self.wait_for(&step, late, end, clients)? {
                plan = before;
                break;
            }
            late = late.max(self.clock.now().saturating_sub(step.at));
            let spared = plan.spared(step.at);
            if self.turns.len() <= epoch(step.at) {
                self.turns.push((spared, self.clock.now()));
            }
            self.carry_out(step.op)?;
        }
        self.report.duration_seconds = (self.clock.now() - begun).as_secs_f64();
        for op in plan.restore() {
            self.carry_out(op)?;
        }
        self.wait_whole(clients)?;
        // Late failures are still seen.
        let calm = self.clock.now() + JUDGED;
        while self.clock.now() < calm {
            self.go_on(clients)?;
        }
        Ok(())
    }

    /// Waits for a step's time, and for a whole pair if it takes one; whether it comes to that before
    /// the end.
    fn wait_for(
        &mut self,
        step: &Step,
        late: Duration,
        end: Duration,
        clients: &Clients,
    ) -> Result<bool> {
        while self.clock.now() < step.at + late {
            if self.clock.now() >= end || signals::caught() {
                return Ok(false);
            }
            self.go_on(clients)?;
        }
        if step.op.strikes_a_node() {
            self.wait_whole(clients)?;
        }
        Ok(true)
    }

    fn wait_whole(&mut self, clients: &Clients) -> Result<()> {
        let limit = self.clock.now() + WHOLE;
        while self.testbed.is_troubled() {
            let Err(why) = self.testbed.look() else { break };
            if self.clock.now() > limit {
                return Err(why).with_context(|| format!("the pair is not whole within {WHOLE:?}"));
            }
            self.go_on(clients)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, op: Op) -> Result<()> {
        *self.report.operations.entry(op.kind().to_owned()).or_default() += 1;
        self.doing = op.to_string();
        let done = self.testbed.carry_out(op);
        self.sampler.follow(self.testbed.pids());
        done
    }

    /// A moment of the run between two steps.
    fn go_on(&mut self, clients: &Clients) -> Result<()> {
        thread::sleep(Duration::from_millis(50));
        // An error is printed where the state is waited for.
        let _ = self.testbed.look();
        self.pending.extend(clients.ended());
        let now = self.clock.now();
        if now >= self.printed + Duration::from_secs(1) {
            self.printed = now;
            self.judge(Some(now))?;
            self.print_progress(clients);
        }
        Ok(())
    }

    /// Judges connections that have ended long enough ago; without a time, everything.
    fn judge(&mut self, now: Option<Duration>) -> Result<()> {
        for alarm in self.reader.read(&mut self.observations)? {
            self.violation(self.clock.now(), "alarm", alarm);
        }
        let unsolicited = self.filter.new_ones()?;
        let history = History::of(&self.testbed.log);
        for (from, to) in unsolicited {
            let of_backend = self.reader.translated(from);
            let may = |one| model::may_be_left(&history, &self.observations, one, self.clock.now());
            if of_backend.is_some_and(may) {
                continue;
            }
            let what = format!("{from} has sent to {to}, where nothing was asked of it");
            self.violation(self.clock.now(), "unsolicited packet", what);
        }
        for (at, late) in self.sampler.stalls() {
            self.observations.stalls.insert(at, late);
            self.report.longest_stall_ns = self.report.longest_stall_ns.max(late.as_nanos() as u64);
        }
        self.report.load_average = self.report.load_average.max(load());
        let ripe = |at: Duration| now.is_none_or(|now| at + JUDGED <= now);
        let (moved, takeovers) = self.looked_at;
        let new: Vec<_> = self.observations.moved[moved..]
            .iter()
            .take_while(|moved| ripe(moved.span.from))
            .copied()
            .collect();
        for moved in &new {
            if model::unfounded(&history, &self.observations, moved) {
                let what = format!(
                    "lb{} has moved the flows of {}, whose host was not cut off",
                    moved.node + 1,
                    moved.backend
                );
                self.violation(moved.span.from, "flows moved", what);
            }
        }
        self.looked_at.0 += new.len();
        let new: Vec<_> = self.observations.takeovers[takeovers..]
            .iter()
            .take_while(|(_, at)| ripe(*at))
            .copied()
            .collect();
        for &(node, at) in &new {
            if model::uncalled(&history, &self.observations, at) {
                let what = format!("lb{} became Active, and nothing was wrong", node + 1);
                self.violation(at, "takeover", what);
            }
        }
        self.looked_at.1 += new.len();
        let (ripe, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|life| ripe(life.ended));
        self.pending = pending;
        for life in ripe {
            self.judge_life(&history, &life);
        }
        Ok(())
    }

    fn judge_life(&mut self, history: &History, life: &Life) {
        if life.end.is_err() {
            match model::excuse(history, &self.observations, life) {
                Some(reason) => {
                    *self.report.broken_allowed.entry(format!("{reason:?}")).or_default() += 1;
                }
                None => {
                    self.report.broken_not_allowed += 1;
                    self.violation(life.ended, "broken", format!("{life}"));
                }
            }
        }
        match model::may_answer(history, &self.observations, life) {
            Answer::Right => {}
            Answer::BaseOwner => self.report.answers_of_base_owners += 1,
            Answer::Wrong => {
                self.violation(life.opened, "answer of a backend that may not", format!("{life}"));
            }
        }
    }

    /// Notes a violation, and prints it with the operations before it.
    fn violation(&mut self, at: Duration, kind: &str, what: String) {
        let violation = Violation { at_seconds: at.as_secs_f64(), kind: kind.to_owned(), what };
        if self.report.violations.len() < MOST {
            let excerpt = self.excerpt(at, &violation);
            eprintln!("{}{excerpt}", clear());
            let file = self.arguments.folder.join(VIOLATIONS);
            let file = fs::File::options().create(true).append(true).open(file);
            // It is in the report as well.
            let _ = file.and_then(|mut file| file.write_all(excerpt.as_bytes()));
        }
        self.report.violations.push(violation);
    }

    /// The operations and the nodes' logs around a moment.
    fn excerpt(&self, at: Duration, violation: &Violation) -> String {
        let mut excerpt = format!(
            "VIOLATION at {:.3} s, {}: {}\n  replay: --seed {}\n",
            violation.at_seconds, violation.kind, violation.what, self.arguments.seed
        );
        let soon = at + Duration::from_secs(1);
        let before: Vec<_> =
            self.testbed.log.done.iter().filter(|done| done.began <= soon).collect();
        let first = before[before.len().saturating_sub(LISTED)..].first().map(|done| done.began);
        let first = first.unwrap_or_default();
        let mut lines: Vec<(Duration, String)> = Vec::new();
        for done in &before[before.len().saturating_sub(LISTED)..] {
            lines.push((done.began, describe(done)));
        }
        let shown = Span { from: first, until: soon };
        for moved in self.observations.moved.iter().filter(|moved| shown.contains(moved.span.from))
        {
            let (node, backend) = (moved.node + 1, moved.backend);
            lines.push((moved.span.from, format!("  lb{node} moves the flows of {backend}")));
        }
        for (node, at) in self.observations.takeovers.iter().filter(|(_, at)| shown.contains(*at)) {
            lines.push((*at, format!("  lb{} becomes Active", node + 1)));
        }
        for trouble in &self.testbed.log.troubles {
            if shown.contains(trouble.span.until) {
                lines.push((trouble.span.until, format!("  whole again after {}", trouble.op)));
            }
        }
        let stalls = self.observations.stalls.range(shown.from..shown.until);
        for (at, late) in stalls.filter(|(_, late)| **late >= Duration::from_millis(100)) {
            lines.push((*at, format!("  the machine was late by {late:.0?}")));
        }
        lines.sort();
        for (when, line) in lines {
            let _ = writeln!(excerpt, "  {:>9.3} s {line}", when.as_secs_f64());
        }
        excerpt
    }

    fn print_progress(&mut self, clients: &Clients) {
        let is_terminal = io::stderr().is_terminal();
        if !is_terminal && self.printed < self.printed_line + Duration::from_secs(30) {
            return;
        }
        self.printed_line = self.printed;
        let counts = clients.counts();
        let allowed: u64 = self.report.broken_allowed.values().sum();
        let line = format!(
            "[{} of {}] {} operations, {} requests, {} downloads, {} MiB compared; broken: {allowed} as \
             they may, {} not; {}",
            time(self.clock.now().saturating_sub(self.begun)),
            time(self.arguments.length),
            self.report.operations.values().sum::<u64>(),
            counts.requests.load(Ordering::Relaxed),
            counts.downloads.load(Ordering::Relaxed),
            counts.bytes.load(Ordering::Relaxed) >> 20,
            self.report.broken_not_allowed,
            self.doing,
        );
        // A failed write is no reason to stop.
        let _ = match is_terminal {
            true => write!(io::stderr(), "{}{line}", clear()),
            false => writeln!(io::stderr(), "{line}"),
        };
    }

    /// Ends the clients, judges the rest, and looks whether anything is left.
    fn end(mut self, clients: Clients, done: Result<()>) -> Result<Report> {
        let went_well = done.is_ok();
        if let Err(err) = done {
            self.violation(self.clock.now(), "operation", format!("{err:#}"));
        }
        eprintln!("{}soak: the last connections end", clear());
        let (counts, lives) = clients.finish()?;
        self.pending.extend(lives);
        self.report.connections = counts.connections.into_inner();
        self.report.requests = counts.requests.into_inner();
        self.report.downloads = counts.downloads.into_inner();
        self.report.bytes_verified = counts.bytes.into_inner();
        thread::sleep(crate::node_logs::DELAY);
        self.judge(None)?;
        if went_well && !signals::caught() {
            eprintln!("soak: what flows have left behind has to go");
            self.wait_until_empty();
        }
        self.report.takeovers = self.observations.takeovers.len() as u64;
        self.report.flows_moved = self.observations.moved.len() as u64;
        self.keep();
        self.grown()
    }

    /// Waits until no state is left, for as long as it becomes less.
    fn wait_until_empty(&mut self) {
        let (mut least, mut limit) = (u64::MAX, self.clock.now() + SETTLED);
        loop {
            let left = self.testbed.left();
            let now = self.clock.now();
            match left {
                Ok(0) => return,
                Ok(left) if left < least => (least, limit) = (left, now + SETTLED),
                _ if now <= limit => {}
                Ok(left) => {
                    let what = format!("{left} slots in flux and pins, no fewer for {SETTLED:?}");
                    return self.violation(now, "state that stays", what);
                }
                Err(err) => return self.violation(now, "state that stays", format!("{err:#}")),
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// The resources of both `lbd`, and whether they go on to grow.
    fn grown(mut self) -> Result<Report> {
        let samples = self.sampler.finish()?;
        for (n, samples) in samples.iter().enumerate() {
            let course = |figure: fn(&Sample) -> u64| {
                Course::of(&samples.iter().map(figure).collect::<Vec<_>>())
            };
            let mut pids: Vec<_> = samples.iter().map(|sample| sample.pid).collect();
            pids.dedup();
            self.report.nodes.push(Node {
                name: format!("lb{}", n + 1),
                processes: pids.len(),
                rss_bytes: course(|sample| sample.resources.rss_bytes),
                fds: course(|sample| sample.resources.fds),
                bpf_maps: course(|sample| sample.resources.bpf_maps),
                bpf_programs: course(|sample| sample.resources.bpf_programs),
            });
            let ends = self.turns.iter().skip(1).map(|(_, from)| *from);
            let length = Duration::from_secs_f64(self.report.duration_seconds);
            let ends = ends.chain([self.begun + length]);
            let spared = self.turns.iter().zip(ends).filter(|((spared, _), _)| *spared == n);
            let spared: Vec<_> = spared.map(|(&(_, from), until)| Span { from, until }).collect();
            self.report.growth.extend(growths(n, samples, &spared));
        }
        let leaks: Vec<_> = self.report.growth.iter().filter(|growth| growth.goes_on()).collect();
        for leak in leaks.into_iter().cloned().collect::<Vec<_>>() {
            let what = format!(
                "{} of {}: {} in the middle, {} in the end",
                leak.what, leak.node, leak.middle, leak.last
            );
            let at_seconds = self.clock.now().as_secs_f64();
            eprintln!("VIOLATION, growth: {what}");
            self.report.violations.push(Violation { at_seconds, kind: "growth".into(), what });
        }
        Ok(self.report)
    }

    /// Keeps the logs of all hosts, and the operations.
    fn keep(&self) {
        let mut operations = String::new();
        for done in &self.testbed.log.done {
            let _ = writeln!(operations, "{:>10.3} s {}", done.began.as_secs_f64(), describe(done));
        }
        let folder = &self.arguments.folder;
        let mut kept = vec![fs::write(folder.join("operations.txt"), operations)];
        for (n, log) in self.testbed.logs().iter().enumerate() {
            kept.push(fs::copy(log, folder.join(format!("lb{}.log", n + 1))).map(drop));
        }
        for web in &self.testbed.ha_pair.lab.webs {
            let log = self.testbed.ha_pair.lab.folder().join(&web.host.name).join("nginx.log");
            kept.push(fs::copy(log, folder.join(format!("{}.log", web.host.name))).map(drop));
        }
        for err in kept.into_iter().filter_map(Result::err) {
            eprintln!("soak: a log is not kept in {}: {err}", folder.display());
        }
    }
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host.map_or("nobody yet".into(), |host| format!("web{}", host + 1));
        write!(
            f,
            "{} by {} from port {} on {host}",
            self.kind,
            WAYS[self.service].name(),
            self.port
        )?;
        let seconds = Duration::as_secs_f64;
        write!(f, ", opened at {:.3} s", seconds(&self.opened))?;
        if let Some(answered) = self.answered {
            write!(
                f,
                ", answered at {:.3}, last received at {:.3}",
                seconds(&answered),
                seconds(&self.last_received)
            )?;
        }
        write!(f, ", ended at {:.3}: {:?}", seconds(&self.ended), self.end)
    }
}

/// An operation, and how long it took.
fn describe(done: &Done) -> String {
    match done.ended {
        Some(ended) => format!("{}, took {:.3?}", done.op, ended - done.began),
        None => format!("{}, not done on both nodes", done.op),
    }
}

/// The sequence that clears the progress line.
fn clear() -> &'static str {
    if io::stderr().is_terminal() { "\r\x1b[K" } else { "" }
}

/// The machine's load of the last minute.
fn load() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}
