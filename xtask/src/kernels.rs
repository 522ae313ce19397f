//! `cargo xtask test kernels`: the loaded program and the short test of a node and a pair, on kernels
//! that people run.
//!
//! Each kernel boots once. The tests are the programs that run here, built once, in the guest over a
//! scratch copy of this machine's root: `datapath`, then `short` on veth and on virtio NICs.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    cargo, setup,
    test::{self, Program},
    vm::{self, Machine, Output, kernel::Kernel, quoted},
};

/// Debian's of the last two releases, and the newest there is.
const KERNELS: [&str; 3] = ["6.1", "6.12", vm::kernel::NEWEST];

/// For one kernel. Two minutes are enough; a machine that does much else gets more.
const LIMIT: Duration = Duration::from_secs(900);

/// Of the thirty states that the datapath tests compare here; each takes seconds there.
const EPOCHS: u8 = 4;

/// The balancers' NICs, each with one for the switch.
const NICS: u8 = 4;

/// Runs the tests on these kernels, or on those that must work.
///
/// # Errors
///
/// If a kernel or QEMU can't be had, or a test fails on one.
pub fn run(kernels: &[String]) -> Result<()> {
    setup::packages()?;
    vm::packages()?;
    let programs = test::build_some(&["datapath", "short"])?;
    cargo::build(false)?;
    let kernels: Vec<&str> = match kernels {
        [] => KERNELS.to_vec(),
        kernels => kernels.iter().map(String::as_str).collect(),
    };
    let script = script(&programs)?;
    let mut failed = Vec::new();
    let mut times = Vec::new();
    for asked in kernels {
        let start = Instant::now();
        let (name, result) = match Kernel::obtain(asked) {
            Ok(kernel) => (format!("Linux {}", kernel.release), on(&kernel, &script)),
            Err(error) => (format!("Linux {asked}"), Err(error)),
        };
        if let Err(error) = result {
            eprintln!("xtask: {error:#}");
            failed.push(name.clone());
        }
        times.push((name, start.elapsed()));
    }
    println!();
    for (name, time) in times {
        let result = if failed.contains(&name) { "FAILED" } else { "ok" };
        println!("{result:<6} {:>6.1} s  tests on {name}", time.as_secs_f64());
    }
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

fn on(kernel: &Kernel, script: &str) -> Result<()> {
    println!("\n== tests on Linux {}", kernel.release);
    let machine = Machine {
        kernel,
        folder: None,
        cpus: 2,
        memory_mib: 2_560,
        nics: NICS,
        counted: false,
        limit: LIMIT,
    };
    machine.run(script, Output::Stdout)
}

/// Every test, whatever became of the one before.
fn script(programs: &[Program]) -> Result<String> {
    let find = |name: &str| {
        let found = programs.iter().find(|program| program.is_called(name));
        found.ok_or_else(|| anyhow::anyhow!("the test program {name} was not built"))
    };
    let (datapath, short) = (find("datapath")?, find("short")?);
    let macs: Vec<_> = (0..NICS).map(vm::mac).collect();
    let binaries = quoted(&cargo::folder(false)?.to_string_lossy());
    // In a guest, too, a test that can't run has failed.
    let mut script = format!(
        "export CI=true LB_EPOCHS={EPOCHS} LB_BIN_DIR={binaries} RUST_BACKTRACE=0\nfailed=0\n"
    );
    for (what, variable, program) in [
        ("the loaded program", String::new(), datapath),
        ("a node and a pair on veth", String::new(), short),
        ("a node and a pair on virtio NICs", format!("LB_NICS={} ", macs.join(",")), short),
    ] {
        let (folder, executable) = (&program.folder, &program.executable);
        let folder = quoted(&folder.to_string_lossy());
        let executable = quoted(&executable.to_string_lossy());
        script.push_str(&format!(
            "echo '-- {what}'\n\
             (cd {folder} && {variable}CARGO_MANIFEST_DIR={folder} {executable} --test-threads=1) \
             || failed=1\n"
        ));
    }
    script.push_str("exit $failed\n");
    Ok(script)
}
