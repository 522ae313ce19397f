//! `cargo xtask lab`: the lab to play with, until a signal ends it.

use std::{os::unix::process::CommandExt as _, path::Path};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use kit::{
    balancer::Balancer,
    ha_pair::HaPair,
    lab::{self, Lab, Options, Record},
};

use crate::{cargo, pair, root, run, setup};

#[derive(Subcommand)]
pub enum Command {
    /// Build and start the lab: client, balancer, web1, web2, web3
    Up {
        /// Two balancers that stand for each other: lb1 and lb2
        #[arg(long)]
        pair: bool,
        /// All is set up and built
        #[arg(long, hide = true)]
        built: bool,
    },
    /// Run a program on a host of the newest lab: lab exec client -- curl http://10.0.0.100/
    Exec {
        /// client, balancer (or lb1, lb2), web1, web2, web3, switch
        host: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Remove the lab, and what killed runs left behind
    Down,
}

/// Does it.
///
/// # Errors
///
/// If the lab is not as the command needs it.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { pair, built } => up(pair, built),
        Command::Exec { host, command } => exec(&host, &command),
        Command::Down => down(),
    }
}

fn up(pair: bool, built: bool) -> Result<()> {
    if !built {
        setup::tools()?;
        setup::lab_with(&[])?;
        cargo::build(false)?;
    }
    let again: &[&str] =
        if pair { &["lab", "up", "--built", "--pair"] } else { &["lab", "up", "--built"] };
    root::become_root(again, "the lab")?;
    lab::sweep()?;
    if let Some(record) = lab::labs()?.iter().find(|record| record.stays) {
        println!("the lab is up already");
        describe(record);
        return Ok(());
    }
    let options = Options { stays: true, pair, ..Options::default() };
    let started = if pair { start_pair(&options) } else { start(&options) };
    let record = lab::labs()?.into_iter().find(|record| record.pid == std::process::id());
    match (started, record) {
        (Ok(()), record) => {
            describe(&record.context("the lab's record")?);
            Ok(())
        }
        (Err(err), record) => {
            record.map_or(Ok(()), |record| record.remove())?;
            Err(err)
        }
    }
}

/// Starts a lab with one balancer, which stays.
fn start(options: &Options) -> Result<()> {
    let lab = Lab::new(options)?;
    Balancer::start(&lab, &run::services(&lab))?.keep();
    Ok(())
}

/// Starts a lab with a pair, which stays.
fn start_pair(options: &Options) -> Result<()> {
    let mut ha_pair = HaPair::start(options, pair::plan())?;
    ha_pair.nodes.iter_mut().for_each(Balancer::keep);
    Ok(())
}

fn describe(record: &Record) {
    let folder = record.folder();
    let hosts: Vec<_> = record.hosts.iter().map(|(name, _)| name.as_str()).collect();
    println!("hosts: {}; files in {}", hosts.join(", "), folder.display());
    println!("  cargo xtask lab exec client -- curl -sS http://10.0.0.100/");
    if hosts.contains(&"lb1") {
        println!("  cargo xtask lab exec lb1 -- lbctl vrrp status");
        println!("  cargo xtask lab exec lb1 -- lbctl vrrp failover --all");
    } else {
        println!("  cargo xtask lab exec balancer -- lbctl status");
    }
    println!("  cargo xtask lab down");
}

fn exec(host: &str, command: &[String]) -> Result<()> {
    let args: Vec<_> =
        ["lab", "exec", host, "--"].into_iter().chain(command.iter().map(String::as_str)).collect();
    root::become_root(&args, "the lab")?;
    let labs = lab::labs()?;
    // A test's lab is the test's alone, be it newer.
    let lab = labs.iter().find(|lab| lab.alive() && (lab.stays || is_of_a_command(lab)));
    let lab = lab.context("no lab is up; `cargo xtask lab up` or `cargo xtask run` starts one")?;
    let (program, args) = command.split_first().context("no program")?;
    // The binaries of this build, and the lab's daemon, are what is meant in a lab.
    let built = cargo::folder(false)?.join(program);
    let program = if built.is_file() { built.as_path() } else { Path::new(program) };
    let mut command = lab.namespace(host)?.command(program);
    // The balancers of a pair have a folder each.
    let own = lab.folder().join(host).join("lbd.sock");
    let socket = if own.exists() { own } else { lab.folder().join("lbd.sock") };
    command.env("LB_SOCKET", socket).args(args);
    Err(command.exec()).context("nsenter")
}

/// Whether a lab was made by `cargo xtask run`.
fn is_of_a_command(lab: &Record) -> bool {
    let program = std::fs::read_link(format!("/proc/{}/exe", lab.pid));
    program.is_ok_and(|program| program.file_name() == Some("xtask".as_ref()))
}

fn down() -> Result<()> {
    root::become_root(&["lab", "down"], "the lab")?;
    let mut removed = lab::sweep()?;
    for lab in lab::labs()? {
        if lab.stays {
            lab.remove()?;
            removed.push(lab.name);
        } else {
            println!(
                "{} belongs to a running command (pid {}), which removes it",
                lab.name, lab.pid
            );
        }
    }
    match removed.as_slice() {
        [] => println!("no lab is up"),
        names => println!("removed {}", names.join(", ")),
    }
    Ok(())
}
