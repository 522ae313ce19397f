//! What runs a program on frames that are restored before each run, and the floors to compare with.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, TestRunOptions, Xdp},
};
use lb_datapath::objects;
use zerocopy::IntoBytes as _;

use crate::frames::Plan;

const PROGRAMS: [&str; 7] =
    ["restore", "transmit", "swap", "encapsulate", "generate", "pass", "sink"];

/// The benchmark's own programs.
pub struct Runner {
    /// With their maps.
    pub object: Ebpf,
}

/// Loads a program into the kernel.
pub fn load(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("load {name}"))
}

/// A program that is loaded.
pub fn program_fd(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &Xdp =
        ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?;
    Ok(program.fd()?.try_clone()?)
}

impl Runner {
    /// Loads all of them.
    pub fn load() -> Result<Self> {
        let mut object = EbpfLoader::new().load(objects::BENCH)?;
        for name in PROGRAMS {
            load(&mut object, name)?;
        }
        Ok(Self { object })
    }

    /// A floor: `transmit`, `swap` or `encapsulate`.
    pub fn floor(&self, name: &str) -> Result<ProgramFd> {
        program_fd(&self.object, name)
    }

    /// Runs `target` behind `restore` on `packets` frames of the plan; nanoseconds of one.
    pub fn run(&mut self, target: &ProgramFd, plan: &mut Plan, packets: u32) -> Result<f64> {
        let map = self.object.map_mut("TARGET").context("no map TARGET")?;
        ProgramArray::try_from(map)?.set(0, target, 0)?;
        let words: [u8; size_of::<Plan>()] = plan.as_bytes().try_into()?;
        let map = self.object.map_mut("PLAN").context("no map PLAN")?;
        Array::<_, [u8; size_of::<Plan>()]>::try_from(map)?.set(0, words, 0)?;
        plan.runs += u64::from(packets);
        let frame = vec![0; plan.frame_len as usize];
        let restore: &Xdp = self.object.program("restore").context("no restore")?.try_into()?;
        let result = restore.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            ..TestRunOptions::new()
        })?;
        ensure!(result.return_value != 0, "the program gave up on a frame");
        // The kernel returns the mean of one run, in whole nanoseconds.
        Ok(result.duration.as_nanos() as f64)
    }
}
