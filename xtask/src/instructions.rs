//! `cargo xtask bench instructions`: starts a virtual machine whose clock counts instructions, and
//! measures in it.
//!
//! The counted instructions are those of the kernel and of the balancer's program, which is always optimised:
//! how the program that measures is built makes no difference, so it is as for the tests, of which
//! most of it is there.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    cargo,
    documents::{self, Saving},
    setup,
    vm::{self, Machine, Output, SHARED, kernel::Kernel, quoted},
};

/// The kernel on which the figures in the tree were counted.
const KERNEL: &str = "6.12";

/// More than the machine takes on one that does much else.
const LIMIT: Duration = Duration::from_secs(1_200);

/// The programs that set IPVS and the machine's interfaces up.
const PROGRAMS: &[(&str, &str)] = &[("ipvsadm", "ipvsadm"), ("ethtool", "ethtool")];

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    saving: Saving,
    /// Fail if a packet takes 3 % more instructions than in bench/instructions.json
    #[arg(long)]
    check: bool,
    /// Note the figures in bench/instructions.json
    #[arg(long, conflicts_with = "check")]
    update: bool,
    /// On another kernel: a series (6.1), `newest`, or the folder of an unpacked kernel package
    #[arg(long, default_value = KERNEL)]
    kernel: String,
}

/// Measures, and compares or notes the figures.
///
/// # Errors
///
/// If the machine can't be had, something does not work in it, or a packet costs too much.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::tools()?;
    vm::packages()?;
    setup::these(PROGRAMS)?;
    eprintln!("bench: building it; the first time takes minutes");
    cargo::build_for_tests(&["lb-bench"])?;
    let kernel = Kernel::obtain(&arguments.kernel)?;
    let folder = Folder::new()?;
    let machine = Machine {
        kernel: &kernel,
        folder: Some(&folder.0),
        cpus: 1,
        memory_mib: 2_048,
        nics: 0,
        e1000: false,
        counted: true,
        limit: LIMIT,
    };
    let program = cargo::folder(false)?.join("lb-bench");
    let noted = crate::workspace().join("bench/instructions.json");
    let mut script = format!(
        "exec {} instructions --json-file {SHARED}/results.json",
        quoted(&program.to_string_lossy())
    );
    if arguments.check {
        script += &format!(" --against {}", quoted(&noted.to_string_lossy()));
    }
    eprintln!("bench: measuring on Linux {}; two minutes", kernel.release);
    let output = if arguments.saving.json { Output::Stderr } else { Output::Stdout };
    machine.run(&script, output)?;
    let results = folder.0.join("results.json");
    let results = fs::read_to_string(&results).context("the machine left no results")?;
    if arguments.saving.json {
        print!("{results}");
    }
    if arguments.saving.save {
        documents::save("instructions", &["ipvsadm", "qemu-system-x86_64"], &results)?;
    }
    if arguments.update {
        fs::write(&noted, results).with_context(|| noted.display().to_string())?;
    }
    Ok(())
}

/// A folder for the results, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder = crate::workspace().join(format!("target/vm/results-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
