//! The variants of a program, by the mode in which it runs: one for drivers, which takes frames of several buffers
//! (`xdp.frags`), one for generic XDP, which does not, and two for tc, by what frames begin with.
//!
//! In generic mode the kernel makes a frame of several buffers ready for a program without frags by making it one
//! buffer (`skb_linearize`), as it always did. For one with frags, Linux 6.9 and later copy it into buffers of a page
//! pool (`skb_pp_cow_data`), and panics of 7.0 and 7.1 are on record there: two segments of a client that GRO merges
//! are enough. A link keeps its mode, and takes either XDP variant (`bpf_link_update`).

use std::{
    collections::BTreeSet,
    fmt, iter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    programs::{self, Program},
};

use super::{loadable, program_pins};

/// How an interface runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// XDP, in the driver.
    Native,
    /// XDP, in the network stack.
    Generic,
    /// tc, at the ingress of the network stack.
    Tc,
    /// The same on an interface whose frames begin with their IP header.
    TcRaw,
}

impl Mode {
    /// Its name in status and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc | Self::TcRaw => "tc",
        }
    }

    /// Whether it is at tc.
    pub(super) const fn is_tc(self) -> bool {
        matches!(self, Self::Tc | Self::TcRaw)
    }

    /// That of XDP by the driver or by the network stack.
    pub(super) const fn of_xdp(generic: bool) -> Self {
        if generic { Self::Generic } else { Self::Native }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The names of a program's variants in its object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Of the one for drivers.
    pub native: &'static str,
    /// Of the one for generic mode.
    pub generic: &'static str,
    /// Of those for tc, if it has them.
    pub tc: Option<TcNames>,
}

/// The names of a program's variants for tc.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcNames {
    /// Of the one for frames with an Ethernet header.
    pub ethernet: &'static str,
    /// Of the one for frames that begin with their IP header.
    pub raw: &'static str,
}

/// The balancer's.
pub(super) const BALANCE: Names = names("balance", "balance_generic", "classify", "classify_raw");
/// Those of the balancer that captures.
pub(super) const CAPTURE: Names = names("capture", "capture_generic", "capture_tc", "capture_raw");
/// The decapsulator's.
pub(super) const DECAP: Names = Names { native: "decapsulate", generic: "decap_generic", tc: None };

const fn names(
    native: &'static str,
    generic: &'static str,
    ethernet: &'static str,
    raw: &'static str,
) -> Names {
    Names { native, generic, tc: Some(TcNames { ethernet, raw }) }
}

impl Names {
    /// The name of the variant for a mode.
    pub(super) fn of(self, mode: Mode) -> Result<&'static str> {
        match mode {
            Mode::Native => Ok(self.native),
            Mode::Generic => Ok(self.generic),
            Mode::Tc | Mode::TcRaw => {
                let tc =
                    self.tc.with_context(|| format!("{} has no variant for tc", self.native))?;
                Ok(if mode == Mode::Tc { tc.ethernet } else { tc.raw })
            }
        }
    }

    /// Those for generic XDP and for tc.
    fn of_stack(self) -> impl Iterator<Item = &'static str> {
        let tc = self.tc.into_iter().flat_map(|tc| [tc.ethernet, tc.raw]);
        iter::once(self.generic).chain(tc)
    }

    /// The ids of the variants that are loaded.
    pub(super) fn loaded(self, object: &Ebpf) -> Vec<u32> {
        let id = |name| Some(object.program(name)?.info().ok()?.id());
        iter::once(self.native).chain(self.of_stack()).filter_map(id).collect()
    }
}

/// The variants of a program, and where they are pinned.
#[derive(Debug)]
pub(super) struct Variants<'a> {
    object: &'a mut Ebpf,
    names: Names,
    folder: PathBuf,
}

impl<'a> Variants<'a> {
    /// Those of these names; `folder` is that of the maps which they use.
    pub(super) fn new(object: &'a mut Ebpf, names: Names, folder: &Path) -> Self {
        Self { object, names, folder: folder.into() }
    }

    /// The variant for a mode, loaded and pinned: a start that finds it on a link has to know its maps.
    pub(super) fn get(&mut self, mode: Mode) -> Result<&mut Program> {
        let program = loaded(self.object, self.names.of(mode)?)?;
        program_pins::pin(&self.folder, program)?;
        Ok(program)
    }

    /// The same for one of XDP.
    pub(super) fn xdp(&mut self, generic: bool) -> Result<&mut programs::Xdp> {
        self.get(Mode::of_xdp(generic))?.try_into().context("the program is not XDP")
    }

    /// The same for one of tc.
    pub(super) fn tc(&mut self, mode: Mode) -> Result<&mut programs::SchedClassifier> {
        self.get(mode)?.try_into().context("the program is not for tc")
    }
}

/// Lets go of the variants for generic XDP and for tc that are loaded and not `running`, so that the kernel unloads
/// them; they are loaded again when they are wanted. The one for drivers stays: it explains packets and checks egress
/// interfaces, whatever runs.
pub(super) fn unload(object: &mut Ebpf, names: Names, running: &BTreeSet<u32>) -> Result<()> {
    for name in names.of_stack() {
        let Some(program) = object.program_mut(name) else { continue };
        let Ok(info) = program.info() else { continue };
        if !running.contains(&info.id()) {
            match program {
                Program::Xdp(program) => program.unload(),
                Program::SchedClassifier(program) => program.unload(),
                _ => Ok(()),
            }
            .with_context(|| format!("unload the program {name}"))?;
        }
    }
    Ok(())
}

/// A program of an object; the kernel is given it unless it has it.
pub(super) fn loaded<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    let program = object.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    if program.fd().is_err() {
        match program {
            Program::Xdp(program) => loadable::load_program(program),
            Program::SchedClassifier(program) => loadable::load_program(program),
            _ => bail!("the program {name} is neither for XDP nor for tc"),
        }
        .context("the kernel refuses the program")?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use aya_obj::{Object, ProgramSection};

    use super::*;
    use crate::objects;

    #[test]
    fn only_the_variant_for_drivers_takes_frames_of_several_buffers() {
        for (object, names) in
            [(objects::BALANCER, BALANCE), (objects::CAPTURE, CAPTURE), (objects::DECAP, DECAP)]
        {
            let object = Object::parse(object).expect("an object");
            for generic in [false, true] {
                let name = names.of(Mode::of_xdp(generic)).expect("a name");
                let section = &object.programs[name].section;
                let ProgramSection::Xdp { frags, .. } = section else { panic!("{name} is XDP") };
                assert_eq!(*frags, !generic, "{name}");
                // BPF_OBJ_NAME_LEN, with the zero byte.
                assert!(name.len() < 16, "{name} is cut off by the kernel");
            }
            for name in names.tc.into_iter().flat_map(|tc| [tc.ethernet, tc.raw]) {
                let section = &object.programs[name].section;
                assert!(matches!(section, ProgramSection::SchedClassifier), "{name}: {section:?}");
                assert!(name.len() < 16, "{name} is cut off by the kernel");
            }
        }
    }
}
