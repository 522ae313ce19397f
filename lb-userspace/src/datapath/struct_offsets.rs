//! Where the members of the kernel's structures are, by its type information (BTF), for programs that read them.
//!
//! aya 0.14 has the relocations for that (CO-RE), but rustc emits none, and aya's own reader of BTF keeps members to
//! itself. The format is in the kernel's Documentation/bpf/btf.rst.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// `BTF_KIND_STRUCT` and `BTF_KIND_UNION`.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Structures without a name in each other; the kernel's are a few deep.
const MAX_DEPTH: usize = 8;

/// The types of a kernel.
pub(super) struct Types {
    data: Vec<u8>,
    strings: usize,
    /// Offset of each type in `data`, by its number; 0 is `void`.
    types: Vec<usize>,
}

impl Types {
    /// Those of the running kernel.
    ///
    /// # Errors
    ///
    /// If it tells none (`CONFIG_DEBUG_INFO_BTF`), or in an unknown format.
    pub(super) fn of_kernel() -> Result<Self> {
        let data = fs::read(KERNEL).with_context(|| {
            format!("read {KERNEL}, which the kernel has with CONFIG_DEBUG_INFO_BTF")
        })?;
        Self::parse(data).with_context(|| format!("parse {KERNEL}"))
    }

    fn parse(data: Vec<u8>) -> Result<Self> {
        let magic = data.get(..2).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        ensure!(magic == Some(MAGIC), "it does not begin as BTF does");
        let mut all = Self { data, strings: 0, types: vec![0] };
        // struct btf_header: magic, version and flags, hdr_len, type_off, type_len, str_off, str_len.
        let header = all.word(4)? as usize;
        let section = |all: &Self, at| anyhow::Ok(header + all.word(at)? as usize);
        let mut at = section(&all, 8)?;
        let end = at + all.word(12)? as usize;
        all.strings = section(&all, 16)?;
        while at < end {
            all.types.push(at);
            at += all.length(at)?;
        }
        Ok(all)
    }

    /// Offset in bytes of a member of the structure `name`, also where it is in one without a name inside of that.
    ///
    /// # Errors
    ///
    /// If the kernel has no such structure or member.
    pub(super) fn offset(&self, name: &str, member: &str) -> Result<u32> {
        for &at in self.types.iter().skip(1) {
            if self.kind(at)? == STRUCT && self.is_called(self.word(at)?, name) {
                let bits = self.bits(at, member, MAX_DEPTH)?;
                let bits = bits.with_context(|| format!("struct {name} has no member {member}"))?;
                return Ok(bits / 8);
            }
        }
        bail!("the kernel has no struct {name}")
    }

    fn bits(&self, at: usize, name: &str, depth: usize) -> Result<Option<u32>> {
        let info = self.word(at + 4)?;
        for n in 0..(info & 0xffff) as usize {
            // struct btf_member: name_off, type, offset.
            let member = at + 12 + 12 * n;
            let (called, kind, offset) =
                (self.word(member)?, self.word(member + 4)?, self.word(member + 8)?);
            // With `kflag` the upper byte is the size of a bit field.
            let offset = if info >> 31 == 1 { offset & 0xff_ffff } else { offset };
            if called != 0 {
                if self.is_called(called, name) {
                    return Ok(Some(offset));
                }
                continue;
            }
            let inner = self.types.get(kind as usize).copied().context("a type's number")?;
            if depth > 0
                && [STRUCT, UNION].contains(&self.kind(inner)?)
                && let Some(more) = self.bits(inner, name, depth - 1)?
            {
                return Ok(Some(offset + more));
            }
        }
        Ok(None)
    }

    fn word(&self, at: usize) -> Result<u32> {
        let bytes = self.data.get(at..at + 4).context("it ends too early")?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn kind(&self, at: usize) -> Result<u32> {
        Ok(if at == 0 { 0 } else { (self.word(at + 4)? >> 24) & 0x1f })
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        let rest = self.data.get(self.strings + offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Bytes of `struct btf_type` and what follows it, by kind.
    fn length(&self, at: usize) -> Result<usize> {
        let count = (self.word(at + 4)? & 0xffff) as usize;
        Ok(12
            + match self.kind(at)? {
                // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
                2 | 7..=12 | 16 | 18 => 0,
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                // Arrays.
                3 => 12,
                STRUCT | UNION | 15 | 19 => 12 * count,
                // Enumerations, prototypes.
                6 | 13 => 8 * count,
                kind => bail!("kind {kind} is unknown"),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { u32 a; union { struct { u32 b; u32 c; }; }; u32 d:3; }`, where only the struct has a name.
    fn types() -> Result<Types> {
        let strings = b"\0outer\0a\0b\0c\0d\0int\0";
        let at = |name: &str| {
            let name = format!("\0{name}\0");
            strings.windows(name.len()).position(|it| it == name.as_bytes()).expect("a name") as u32
                + 1
        };
        let (int, structure, union) = (1 << 24, STRUCT << 24, UNION << 24);
        let words: &[u32] = &[
            &[at("int"), int, 4, 32][..],
            &[0, structure | 2, 8, at("b"), 1, 0, at("c"), 1, 32],
            &[0, union | 1, 8, 0, 2, 0],
            &[at("outer"), (1 << 31) | structure | 3, 16, at("a"), 1, 0, 0, 3, 32],
            &[at("d"), 1, (3 << 24) | 96],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut data = Vec::from(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        let header = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        data.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        data.extend(types);
        data.extend(strings);
        Types::parse(data)
    }

    #[test]
    fn members_are_found_also_in_structures_without_a_name() -> Result<()> {
        let types = types()?;
        for (member, offset) in [("a", 0), ("b", 4), ("c", 8), ("d", 12)] {
            assert_eq!(types.offset("outer", member)?, offset, "{member}");
        }
        let error = |name, member| types.offset(name, member).expect_err("not there").to_string();
        assert_eq!(error("outer", "e"), "struct outer has no member e");
        assert_eq!(error("inner", "a"), "the kernel has no struct inner");
        Ok(())
    }

    #[test]
    fn types_that_are_cut_off_are_refused() -> Result<()> {
        let whole = types()?.data;
        for length in 0..whole.len() - 20 {
            let types = Types::parse(whole[..length].to_vec());
            let found = types.and_then(|types| types.offset("outer", "d"));
            assert!(found.is_err(), "of {length} bytes: {found:?}");
        }
        Ok(())
    }
}
