//! `bpf_xdp_pull_data` for the programs, where the kernel has it (Linux 6.18): it brings headers into a
//! frame's first buffer.
//!
//! It is one of the kernel's own functions, which a program calls by its number in the kernel's type
//! information (`BPF_PSEUDO_KFUNC_CALL`). aya 0.14 resolves no such call, so the objects have one of a
//! helper that does not exist, behind a constant that is 0, and both are changed here.

use std::{borrow::Cow, sync::OnceLock};

use aya::EbpfLoader;

use super::struct_offsets::Types;

/// `code`, registers, offset and the number, as lb-ebpf's `pull.rs` has it: a call of a helper.
const PLACEHOLDER: [u8; 8] = [0x85, 0, 0, 0, 0x64, 0x70, 0x62, 0x6c];
/// The source register of a call of the kernel's function, in the byte of the registers.
const KERNEL_FUNCTION: u8 = 2 << 4;
static HAS_IT: u32 = 1;

/// The function's number in the kernel's type information.
fn number() -> Option<u32> {
    static NUMBER: OnceLock<Option<u32>> = OnceLock::new();
    *NUMBER.get_or_init(|| {
        // aya's own reader refuses all types if it does not know the kind of one.
        Types::of_kernel().ok()?.function("bpf_xdp_pull_data")
    })
}

/// Whether programs can bring headers into a frame's first buffer.
#[must_use]
pub fn is_possible() -> bool {
    number().is_some()
}

/// An object whose programs do so if the kernel can; `loader` is to load it.
#[must_use]
pub fn with_pull_data<'a>(object: &'a [u8], loader: &mut EbpfLoader<'_>) -> Cow<'a, [u8]> {
    let Some(number) = number() else { return Cow::Borrowed(object) };
    let [code, ..] = PLACEHOLDER;
    let [a, b, c, d] = number.to_le_bytes();
    let call = [code, KERNEL_FUNCTION, 0, 0, a, b, c, d];
    let mut object = object.to_vec();
    let mut found = false;
    for instruction in object.as_chunks_mut::<8>().0 {
        if *instruction == PLACEHOLDER {
            *instruction = call;
            found = true;
        }
    }
    if found {
        loader.override_global("PULL_DATA", &HAS_IT, true);
    }
    Cow::Owned(object)
}
