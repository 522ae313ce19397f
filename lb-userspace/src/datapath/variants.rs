//! The two variants of a program: one for drivers, which takes frames of several buffers (`xdp.frags`), and one for
//! generic mode, which does not.
//!
//! In generic mode the kernel makes a frame of several buffers ready for a program without frags by making it one
//! buffer (`skb_linearize`), as it always did. For one with frags, Linux 6.9 and later copy it into buffers of a page
//! pool (`skb_pp_cow_data`), and panics of 7.0 and 7.1 are on record there: two segments of a client that GRO merges
//! are enough. A link keeps its mode, and takes either variant (`bpf_link_update`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::{Ebpf, programs};

use super::{load, program_pins};

/// The names of a program's variants in its object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Of the one for drivers.
    pub native: &'static str,
    /// Of the one for generic mode.
    pub generic: &'static str,
}

/// The balancer's.
pub(super) const BALANCE: Names = Names { native: "balance", generic: "balance_generic" };
/// Those of the balancer that captures.
pub(super) const CAPTURE: Names = Names { native: "capture", generic: "capture_generic" };
/// The decapsulator's.
pub(super) const DECAP: Names = Names { native: "decapsulate", generic: "decap_generic" };

impl Names {
    /// The name of the variant for a mode.
    pub(super) const fn of(self, generic: bool) -> &'static str {
        if generic { self.generic } else { self.native }
    }

    /// The ids of the variants that are loaded.
    pub(super) fn loaded(self, object: &Ebpf) -> Vec<u32> {
        let id = |name| {
            let program: &programs::Xdp = object.program(name)?.try_into().ok()?;
            Some(program.info().ok()?.id())
        };
        [self.native, self.generic].into_iter().filter_map(id).collect()
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
    pub(super) fn get(&mut self, generic: bool) -> Result<&mut programs::Xdp> {
        let program = loaded(self.object, self.names.of(generic))?;
        program_pins::pin(&self.folder, program)?;
        Ok(program)
    }
}

/// A program of an object; the kernel is given it unless it has it.
pub(super) fn loaded<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut programs::Xdp> {
    let program = object.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    let program: &mut programs::Xdp = program.try_into().context("the program is not XDP")?;
    if program.fd().is_err() {
        load::load_program(program).context("the kernel refuses the program")?;
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
                let name = names.of(generic);
                let section = &object.programs[name].section;
                let ProgramSection::Xdp { frags, .. } = section else { panic!("{name} is XDP") };
                assert_eq!(*frags, !generic, "{name}");
                // BPF_OBJ_NAME_LEN, with the zero byte.
                assert!(name.len() < 16, "{name} is cut off by the kernel");
            }
        }
    }
}
