//! `cargo xtask fuzz`: inputs that break their readers, looked for by the edges that they reach.
//!
//! The engine is libFuzzer, linked into `lb-fuzz`: it wants nothing of the toolchain but LLVM's pass
//! that counts edges, which a stable compiler has, and finds again from a corpus in files what it
//! knew before. cargo-fuzz is what people use around it; it takes a nightly compiler for what it adds
//! (sanitizers), and would be one more program to install.
//!
//! The corpus in the tree (`fuzz/corpus`) is read, and not written but by `--keep`; new inputs of a run
//! go to `target/fuzz/corpus`, from which the next one begins.

pub mod report;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use kit::signals;

use self::report::{Report, Run};
use crate::{
    cargo::{self, cargo},
    documents::{self, Saving},
    root, setup,
    side_by_side::side_by_side,
};

/// The variable that names the target to the program.
const VARIABLE: &str = "LB_FUZZ_TARGET";
/// Bytes of each target that are kept in the tree.
const KEPT: u64 = 48 << 10;
/// Seconds after which an input counts as one that hangs.
const HANGS: u32 = 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// Which targets; without one, all of them
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// For how long, each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many at a time; without it, as many as there are CPUs
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    #[command(flatten)]
    saving: Saving,
    /// Run this input of the one target, and nothing else
    #[arg(long, value_name = "FILE", requires = "targets")]
    replay: Option<PathBuf>,
    /// Then put the fewest inputs that reach most into fuzz/corpus
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The core on the host against the program in the kernel, byte for byte
    Packets,
    /// Advertisements, and a virtual router that receives them
    Vrrp,
    /// Messages of peers, and the session that takes them
    Sync,
    /// Requests to lbd over its socket
    Api,
    /// The configuration
    Config,
    /// The state file
    State,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Vrrp => "vrrp",
            Self::Sync => "sync",
            Self::Api => "api",
            Self::Config => "config",
            Self::State => "state",
        }
    }

    /// Bytes of the longest input.
    const fn longest(self) -> u32 {
        match self {
            Self::Vrrp | Self::Sync => 1_024,
            Self::Packets => 2_048,
            Self::Api => 4_096,
            Self::Config | Self::State => 12_288,
        }
    }

    const fn needs_root(self) -> bool {
        matches!(self, Self::Packets)
    }

    /// The corpus in the tree.
    fn corpus(self) -> PathBuf {
        crate::workspace().join("fuzz/corpus").join(self.name())
    }

    /// The inputs of interest that were found on this machine.
    fn found(self) -> PathBuf {
        built().join("corpus").join(self.name())
    }

    fn log(self) -> PathBuf {
        built().join(format!("{}.log", self.name()))
    }
}

/// The folder of the build and the findings.
fn built() -> PathBuf {
    crate::workspace().join("target/fuzz")
}

/// Where inputs go that break something.
fn findings() -> PathBuf {
    crate::workspace().join("fuzz/findings")
}

/// Builds the targets and runs them, side by side on the CPUs that there are.
///
/// # Errors
///
/// If something was found, or a target ran nothing at all.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::tools()?;
    setup::compiler()?;
    let program = build()?;
    if let Some(file) = &arguments.replay {
        let [target] = arguments.targets[..] else { bail!("an input is replayed in one target") };
        return replay(&program, target, file);
    }
    let targets = match &arguments.targets[..] {
        [] => Target::value_variants().to_vec(),
        some => some.to_vec(),
    };
    let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let jobs = arguments.jobs.unwrap_or(cpus).get();
    let report = Report::new(run_all(&program, &targets, jobs, arguments.seconds)?);
    if arguments.saving.save {
        let results = report.beside(documents::kept("fuzz")?);
        documents::save("fuzz", &[], &serde_json::to_string(&results)?)?;
    }
    if arguments.saving.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    report.verdict()?;
    if arguments.keep {
        for target in targets {
            keep(&program, target)?;
        }
    }
    Ok(())
}

/// Builds the program, with counters in the project's own code; returns its path.
///
/// Others' code is that of the ordinary build, which has most of it already.
fn build() -> Result<PathBuf> {
    eprintln!("fuzz: building the targets with counters; the first time takes minutes");
    let mut command = cargo();
    command.args(["build", "--workspace", "--exclude", "lb-ebpf", "--features", "lb-fuzz/engine"]);
    command.args(["--example", "lb-fuzz"]).args(cargo::quiet());
    command.env("RUSTC_WORKSPACE_WRAPPER", crate::workspace().join("fuzz/count-edges"));
    // Code that is optimised in hundreds of small units takes several times as long.
    command.env("CARGO_INCREMENTAL", "0");
    cargo::run(&mut command)?;
    Ok(cargo::folder(false)?.join("examples/lb-fuzz"))
}

/// The engine for a target; in the workspace's folder.
fn engine(program: &Path, target: Target) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(crate::workspace()).env(VARIABLE, target.name()).stdin(Stdio::null());
    if target.needs_root() { root::as_root(command, "loading the program") } else { Ok(command) }
}

fn replay(program: &Path, target: Target, file: &Path) -> Result<()> {
    // As it was typed, from where it was typed.
    let file = fs::canonicalize(file).with_context(|| format!("find {}", file.display()))?;
    let mut command = engine(program, target)?;
    command.arg(format!("-timeout={HANGS}")).arg(&file);
    let status = command.status().context("run the target")?;
    ensure!(status.success(), "{} breaks {}: see above", file.display(), target.name());
    println!("fuzz: {} does no harm", file.display());
    Ok(())
}

/// Runs all targets, `jobs` at a time.
fn run_all(program: &Path, targets: &[Target], jobs: usize, seconds: u64) -> Result<Vec<Run>> {
    let jobs = jobs.min(targets.len());
    let rounds = targets.len().div_ceil(jobs) as u64;
    eprintln!(
        "fuzz: {} of {} at a time, {seconds} s each: {} s",
        jobs,
        targets.len(),
        rounds * seconds
    );
    let runs = side_by_side(targets, jobs, |&target| run_one(program, target, seconds));
    ensure!(!signals::caught(), "interrupted");
    let of_jobs = |run: Result<Run>| run.map(|run| run.beside(jobs));
    runs.into_iter().map(of_jobs).collect()
}

fn run_one(program: &Path, target: Target, seconds: u64) -> Result<Run> {
    let (found, corpus, log) = (target.found(), target.corpus(), target.log());
    for folder in [&found, &corpus, &findings()] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let mut command = engine(program, target)?;
    command.arg(format!("-max_total_time={seconds}"));
    // A slow input is no finding, only one that hangs: the machine may have others to serve.
    command.arg(format!("-timeout={HANGS}")).arg(format!("-report_slow_units={HANGS}"));
    command.arg(format!("-max_len={}", target.longest()));
    command.arg(format!("-artifact_prefix=fuzz/findings/{}-", target.name()));
    command.args(["-print_final_stats=1", "-rss_limit_mb=2048", "-use_value_profile=1"]);
    let dictionary = format!("fuzz/dictionaries/{}", target.name());
    if crate::workspace().join(&dictionary).is_file() {
        command.arg(format!("-dict={dictionary}"));
    }
    command.arg(&found).arg(&corpus);
    let file = fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    let start = Instant::now();
    let status = command.status().with_context(|| format!("run {}", target.name()))?;
    let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let run = Run::read(target.name(), &text, start.elapsed());
    eprintln!("fuzz: {}", run.line());
    if !status.success() && run.findings.is_empty() {
        let last: Vec<_> = text.lines().rev().take(20).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!("{}: {status}; its last words:\n{}", target.name(), last.join("\n"));
    }
    for finding in &run.findings {
        eprintln!("{}", run.failure(&text));
        eprintln!("fuzz: once more: cargo xtask fuzz {} --replay {finding}", target.name());
    }
    Ok(run)
}

/// Replaces the corpus of a target by as few inputs as reach the same.
fn keep(program: &Path, target: Target) -> Result<()> {
    let (found, corpus) = (target.found(), target.corpus());
    let chosen = built().join("kept").join(target.name());
    if chosen.exists() {
        fs::remove_dir_all(&chosen).with_context(|| format!("empty {}", chosen.display()))?;
    }
    fs::create_dir_all(&chosen).with_context(|| format!("make {}", chosen.display()))?;
    let mut command = engine(program, target)?;
    command.args(["-set_cover_merge=1", &format!("-max_len={}", target.longest())]);
    command.arg(&chosen).arg(&corpus).arg(&found).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().with_context(|| format!("choose inputs of {}", target.name()))?;
    ensure!(status.success(), "choose inputs of {}: {status}", target.name());
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&chosen)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.file_name(), entry.path()));
    }
    // Many small ones cover more than few large ones.
    inputs.sort();
    let mut room = KEPT;
    let all = inputs.len();
    inputs.retain(|(bytes, ..)| {
        let fits = *bytes <= room;
        room -= if fits { *bytes } else { 0 };
        fits
    });
    fs::remove_dir_all(&corpus).with_context(|| format!("empty {}", corpus.display()))?;
    fs::create_dir_all(&corpus)?;
    for (_, name, path) in &inputs {
        let to = corpus.join(name);
        fs::copy(path, &to).with_context(|| format!("write {}", to.display()))?;
    }
    let bytes = KEPT - room;
    eprintln!("fuzz: {}: {} of {all} inputs kept, {bytes} bytes", target.name(), inputs.len());
    Ok(())
}
