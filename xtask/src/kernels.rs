//! `cargo xtask test kernels`: the loaded program and the short test of a node and a pair, on kernels
//! that people run.
//!
//! Each kernel boots once, as many at a time as this machine has CPUs for. The tests are the programs that
//! run here, built once, in the guest over a scratch copy of this machine's root: `datapath`, then
//! the module `short` of `network`, on veth (with a frame that its driver loses) and on virtio NICs, and `guest`, which can
//! panic a kernel and is run nowhere else.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use kit::signals;
use serde::{Deserialize, Serialize};

use crate::{
    cargo, documents, setup,
    side_by_side::side_by_side,
    test::{self, Program},
    vm::{self, Machine, Output, kernel::Kernel, quoted},
};

/// Debian's of the last two releases, and the newest there is.
const KERNELS: [&str; 3] = ["6.1", "6.12", vm::kernel::NEWEST];

/// For one kernel. Without KVM they take an hour; a machine that does much else gets more.
const LIMIT: Duration = Duration::from_secs(7_200);

/// Of the thirty states that the datapath tests compare here; each takes seconds there.
const EPOCHS: u8 = 4;

/// The balancers' NICs, each with one for the switch.
const NICS: u8 = 4;

/// By a veth alone, a frame can be lost after the program has sent it whenever a test wants that.
const ON_VETH: &[&str] = &[
    "short::",
    "tc::",
    "raw_ip::clients_that_come_by_a_tun_reach_all_web_hosts_in_each_mode",
    "egress::frames_that_the_driver_does_not_transmit_are_drops_with_a_reason",
    // Bridges and VLANs, as these kernels have them.
    "egress::bridge_with_the_nodes_address_is_left_by_its_port",
    "egress::vlan_on_",
];

/// Runs the tests on these kernels, or on those that must work. `save` has the results put into the documents.
///
/// # Errors
///
/// If a kernel or QEMU can't be had, or a test fails on one.
pub fn run(kernels: &[String], save: bool) -> Result<()> {
    setup::lab_with(&["iperf3"])?;
    vm::packages()?;
    let programs = test::build_some(&["datapath", "network", "guest"])?;
    cargo::build_for_tests(&[])?;
    let kernels: Vec<&str> = match kernels {
        [] => KERNELS.to_vec(),
        kernels => kernels.iter().map(String::as_str).collect(),
    };
    let script = script(&programs)?;
    let jobs = vm::at_a_time().min(kernels.len());
    let results = side_by_side(&kernels, jobs, |&kernel| on(kernel, &script, jobs > 1));
    ensure!(!signals::caught(), "interrupted");
    println!();
    for Tested { name, result, time } in &results {
        let result = if result.is_err() { "FAILED" } else { "ok" };
        println!("{result:<6} {:>6.1} s  tests on {name}", time.as_secs_f64());
    }
    if save {
        let report = serde_json::to_string(&Report::new(&results))?;
        documents::save("kernels", &["qemu-system-x86_64"], &report)?;
    }
    let failed = results.iter().filter(|tested| tested.result.is_err());
    let failed: Vec<_> = failed.map(|tested| tested.name.as_str()).collect();
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

/// Their results, for the documents.
#[derive(Serialize, Deserialize)]
pub struct Report {
    kvm: bool,
    states: u8,
    /// Each kernel.
    pub kernels: Vec<Outcome>,
}

/// Whether all tests passed on a kernel.
#[derive(Serialize, Deserialize)]
pub struct Outcome {
    kernel: String,
    /// Whether they did.
    pub passed: bool,
    seconds: f64,
}

impl Report {
    fn new(results: &[Tested]) -> Self {
        let outcome = |tested: &Tested| Outcome {
            kernel: tested.name.clone(),
            passed: tested.result.is_ok(),
            seconds: tested.time.as_secs_f64().round(),
        };
        let kernels = results.iter().map(outcome).collect();
        Self { kvm: vm::has_kvm(), states: EPOCHS, kernels }
    }
}

/// The results of the tests on a kernel.
struct Tested {
    name: String,
    result: Result<()>,
    time: Duration,
}

/// Runs the script on a kernel; its output is shown when it is done, if others run beside it.
fn on(requested: &str, script: &str, is_beside_others: bool) -> Tested {
    let start = Instant::now();
    let mut name = format!("Linux {requested}");
    let result = Kernel::obtain(requested).and_then(|kernel| {
        name = format!("Linux {}", kernel.release);
        let machine = Machine {
            kernel: &kernel,
            folder: None,
            cpus: 2,
            memory_mib: 2_560,
            nics: NICS,
            e1000: true,
            counted: false,
            limit: LIMIT,
        };
        if !is_beside_others {
            println!("\n== tests on {name}");
            return machine.run(script, Output::Stdout);
        }
        println!("tests on {name} have begun");
        let console = Console::new();
        let result = machine.run(script, Output::File(&console.0));
        println!("\n== tests on {name}\n{}", console.text());
        result
    });
    if let Err(error) = &result {
        eprintln!("xtask: {error:#}");
    }
    Tested { name, result, time: start.elapsed() }
}

/// The file of a machine's console, removed when dropped.
struct Console(PathBuf);

impl Console {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(vm::cache().join(format!("said-{}-{n}", std::process::id())))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0).unwrap_or_default()).into_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every test, whatever became of the one before.
fn script(programs: &[Program]) -> Result<String> {
    let find = |name: &str| {
        let found = programs.iter().find(|program| program.is_called(name));
        found.ok_or_else(|| anyhow::anyhow!("the test program {name} was not built"))
    };
    let (datapath, network, guest) = (find("datapath")?, find("network")?, find("guest")?);
    let macs: Vec<_> = (0..NICS).map(vm::mac).collect();
    let e1000 = [NICS, NICS + 1].map(vm::mac).join(",");
    let binaries = quoted(&cargo::folder(false)?.to_string_lossy());
    // In a guest, too, a test that can't run has failed.
    let mut script = format!(
        "export CI=true LB_EPOCHS={EPOCHS} LB_BIN_DIR={binaries} RUST_BACKTRACE=0\nfailed=0\n"
    );
    for (what, variable, program, tests) in [
        ("the loaded program", String::new(), datapath, &[][..]),
        ("a node and a pair on veth", String::new(), network, ON_VETH),
        (
            "a node and a pair on virtio NICs",
            format!("LB_NICS={} ", macs.join(",")),
            network,
            &["short::"],
        ),
        // Last: where it fails, it may take the kernel with it.
        (
            "bonds, tunnels, an e1000, and generic XDP behind GRO",
            format!("LB_DISPOSABLE_KERNEL=1 LB_NICS={e1000} "),
            guest,
            &[],
        ),
    ] {
        for part in tests {
            let named = program.tests(&[(*part).to_owned()])?;
            ensure!(!named.is_empty(), "no test has {part} in its name");
        }
        let tests = tests.join(" ");
        let (folder, executable) = (&program.folder, &program.executable);
        let folder = quoted(&folder.to_string_lossy());
        let executable = quoted(&executable.to_string_lossy());
        script.push_str(&format!(
            "echo '-- {what}'\n\
             (cd {folder} && {variable}CARGO_MANIFEST_DIR={folder} {executable} {tests} --test-threads=1) \
             || failed=1\n"
        ));
    }
    script.push_str("exit $failed\n");
    Ok(script)
}
