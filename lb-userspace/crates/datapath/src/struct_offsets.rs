//! Where the members of the kernel's structures are, by its type information (BTF), for programs that read them.
//!
//! aya 0.14 has the relocations for that (CO-RE), but rustc emits none, and aya's own reader of BTF keeps members to
//! itself. The format is in the kernel's Documentation/bpf/btf.rst.
//!
//! A kernel whose BTF was made by a newer pahole may have types of kinds that are not known here. How long such a type is,
//! BTF states itself if it has a layout section, which newer ones have (`struct btf_layout`); else it is inferred: by the one
//! length with which all that follows is valid. Where several fit or none, the types are refused.

use std::{collections::BTreeSet, fs, ops::Range};

use anyhow::{Context as _, Result, bail, ensure};

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// `BTF_KIND_STRUCT` and `BTF_KIND_UNION`.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// `BTF_KIND_FUNC`.
const FUNCTION: u32 = 12;
/// Bits of `struct btf_type`'s info that no kernel without a layout section uses.
const UNUSED: u32 = 0x60ff_0000;
/// `struct btf_type`: name_off, info, and a size or type.
const TYPE: usize = 12;
/// Bytes of a `struct btf_header` with `layout_off` and `layout_len`.
const HEADER_WITH_LAYOUT: usize = 32;
/// Structures without a name in each other; the kernel's are a few deep.
const MAX_DEPTH: usize = 8;

/// The types of a kernel.
pub(super) struct Types {
    data: Vec<u8>,
    strings: Range<usize>,
    /// Offset of each type in `data`, by its number; 0 is `void`.
    types: Vec<usize>,
}

impl Types {
    /// Those of the running kernel.
    ///
    /// # Errors
    ///
    /// If it provides none (`CONFIG_DEBUG_INFO_BTF`), or in an unknown format.
    pub(super) fn of_kernel() -> Result<Self> {
        let data = fs::read(KERNEL).with_context(|| {
            format!("read {KERNEL}, which the kernel has with CONFIG_DEBUG_INFO_BTF")
        })?;
        Self::parse(data).with_context(|| format!("parse {KERNEL}"))
    }

    fn parse(data: Vec<u8>) -> Result<Self> {
        let magic = data.get(..2).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        ensure!(magic == Some(MAGIC), "it does not begin as BTF does");
        let mut all = Self { data, strings: 0..0, types: Vec::new() };
        // struct btf_header: magic, version and flags, hdr_len, then offset and length of types, strings, and layout.
        let header = all.word(4)? as usize;
        let section = |at| {
            let start = header + all.word(at)? as usize;
            anyhow::Ok(start..start + all.word(at + 4)? as usize)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let layout = if header < HEADER_WITH_LAYOUT { 0..0 } else { section(24)? };
        all.strings = strings;
        let lengths = all.data.get(layout).context("it ends too early")?;
        // struct btf_layout: info_sz, elem_sz, flags.
        let lengths: Vec<_> =
            lengths.as_chunks::<4>().0.iter().map(|one| Length::of(one[0], one[1])).collect();
        let known =
            |kind: u32| Length::of_kind(kind).or_else(|| lengths.get(kind as usize).copied());
        all.types = match all.walk(types.clone(), known)? {
            Walk::Whole(types) => types,
            Walk::Unknown(kind) => all.infer(types, kind)?,
        };
        Ok(all)
    }

    /// Offsets of the types in a section, with the lengths that are known.
    fn walk(&self, section: Range<usize>, known: impl Fn(u32) -> Option<Length>) -> Result<Walk> {
        let mut types = vec![0];
        let mut at = section.start;
        while at < section.end {
            types.push(at);
            let kind = self.kind(at)?;
            let Some(length) = known(kind) else { return Ok(Walk::Unknown(kind)) };
            at += TYPE + length.info + length.each * self.count(at)?;
        }
        Ok(Walk::Whole(types))
    }

    /// The same with the one length of a kind with which every type is valid.
    fn infer(&self, section: Range<usize>, unknown: u32) -> Result<Vec<usize>> {
        let fits = |length: Length| {
            let known =
                |kind| Length::of_kind(kind).or_else(|| (kind == unknown).then_some(length));
            let Ok(Walk::Whole(types)) = self.walk(section.clone(), known) else { return None };
            let last = *types.last()?;
            let end = last + TYPE + {
                let length = known(self.kind(last).ok()?)?;
                length.info + length.each * self.count(last).ok()?
            };
            (end == section.end && types[1..].iter().all(|&at| self.is_valid(at))).then_some(types)
        };
        let sizes = [0, 4, 8, 12, 16];
        let lengths = sizes.into_iter().flat_map(|info| sizes.map(|each| Length { info, each }));
        // Lengths that come to the same, as where every count is 0, are one.
        let found: BTreeSet<_> = lengths.filter_map(fits).collect();
        let [types] = &found.into_iter().collect::<Vec<_>>()[..] else {
            bail!("kind {unknown} is unknown, and the length of its types can't be inferred");
        };
        Ok(types.clone())
    }

    /// Whether this may be a type: its name begins where a string does, and no reserved bit is set.
    fn is_valid(&self, at: usize) -> bool {
        let (Ok(name), Ok(info)) = (self.word(at), self.word(at + 4)) else { return false };
        let name = self.strings.start + name as usize;
        let begins = name == self.strings.start || self.data.get(name - 1) == Some(&0);
        self.strings.contains(&name) && begins && info & UNUSED == 0
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

    /// The number of the function `name`, by which a program calls it.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        let is_it = |at: usize| matches!((self.kind(at), self.word(at)), (Ok(FUNCTION), Ok(called)) if self.is_called(called, name));
        (1_u32..)
            .zip(self.types.iter().skip(1))
            .find(|(_, at)| is_it(**at))
            .map(|(number, _)| number)
    }

    fn bits(&self, at: usize, name: &str, depth: usize) -> Result<Option<u32>> {
        let info = self.word(at + 4)?;
        for n in 0..self.count(at)? {
            // struct btf_member: name_off, type, offset.
            let member = at + TYPE + 12 * n;
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
        // Five bits until Linux 7.0; the two above were 0.
        Ok(if at == 0 { 0 } else { (self.word(at + 4)? >> 24) & 0x7f })
    }

    /// How many members, values, parameters or variables it has.
    fn count(&self, at: usize) -> Result<usize> {
        // 16 bits until Linux 7.0; the eight above were 0.
        Ok((self.word(at + 4)? & 0xff_ffff) as usize)
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        let rest = self.data.get(self.strings.start + offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// How far a walk over the types has come.
enum Walk {
    /// To their end.
    Whole(Vec<usize>),
    /// To one of a kind whose length is not known.
    Unknown(u32),
}

/// Bytes that follow a `struct btf_type`: once, and for each of its members.
#[derive(Clone, Copy, Debug)]
struct Length {
    info: usize,
    each: usize,
}

impl Length {
    fn of(info: u8, each: u8) -> Self {
        Self { info: info.into(), each: each.into() }
    }

    fn of_kind(kind: u32) -> Option<Self> {
        let (info, each) = match kind {
            // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
            2 | 7..=11 | FUNCTION | 16 | 18 => (0, 0),
            // Integers, variables, declaration tags.
            1 | 14 | 17 => (4, 0),
            // Arrays.
            3 => (12, 0),
            STRUCT | UNION | 15 | 19 => (0, 12),
            // Enumerations, prototypes.
            6 | 13 => (0, 8),
            _ => return None,
        };
        Some(Self::of(info, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { u32 a; union { struct { u32 b; u32 c; }; }; u32 d:3; }`, where only the struct has a name.
    fn types() -> Result<Types> {
        Types::parse(blob(&[], &[]))
    }

    /// The same after these types; with a layout section if there is one.
    fn blob(others: &[u32], layout: &[[u8; 4]]) -> Vec<u8> {
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
        let (words, others) = (words.iter(), others.iter());
        // Before the last one, whose number no other names.
        let types = words.clone().take(19).chain(others).chain(words.skip(19));
        let types: Vec<u8> = types.flat_map(|word| word.to_ne_bytes()).collect();
        let mut data = Vec::from(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        let (ends, length) = (types.len() as u32, strings.len() as u32);
        let mut header = vec![24, 0, ends, ends, length];
        if !layout.is_empty() {
            header[0] = 32;
            header.extend([ends + length, 4 * layout.len() as u32]);
        }
        data.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        data.extend(types);
        data.extend(strings);
        data.extend(layout.concat());
        data
    }

    /// Three types of a kind that is not known here: a word, and two for each member.
    const STRANGE: [u32; 20] = [
        1,
        (21 << 24) | 2,
        4,
        77,
        1,
        2,
        3,
        4, //
        0,
        (21 << 24) | 1,
        0,
        78,
        5,
        6, //
        0,
        (21 << 24) | 1,
        0,
        79,
        7,
        8,
    ];

    fn are_found(types: &Types) {
        for (member, offset) in [("a", 0), ("b", 4), ("d", 12)] {
            assert_eq!(types.offset("outer", member).expect("it is there"), offset, "{member}");
        }
    }

    #[test]
    fn a_kind_that_is_not_known_is_passed_by_its_layout() {
        // Of kinds that are known here, the layout is not read.
        let mut layout = vec![[99; 4]; 22];
        layout[21] = [4, 8, 0, 0];
        let types = Types::parse(blob(&STRANGE, &layout)).expect("types");
        are_found(&types);
        assert_eq!(types.types.len(), 8, "void, four, and three of the other kind");
        // Several are no more difficult.
        layout.push([12, 0, 0, 0]);
        let others = [&STRANGE[..], &[0, 22 << 24, 0, 1, 2, 3]].concat();
        are_found(&Types::parse(blob(&others, &layout)).expect("types"));
    }

    #[test]
    fn a_kind_that_is_not_known_is_passed_by_what_follows() {
        let types = Types::parse(blob(&STRANGE, &[])).expect("types");
        are_found(&types);
        assert_eq!(types.types.len(), 8);
    }

    #[test]
    fn types_whose_length_can_not_be_told_are_refused() {
        let refused = |others: &[u32]| {
            let types = Types::parse(blob(others, &[])).map(drop);
            let error = types.expect_err("nobody knows");
            assert!(error.to_string().starts_with("kind 21 is unknown"), "{error:#}");
        };
        // Twenty bytes are none of the lengths that are tried; a second kind could be of any.
        refused(&[1, 21 << 24, 4, u32::MAX, 2, 3, 4, 5]);
        refused(&[&STRANGE[..], &[0, 22 << 24, 0, u32::MAX, u32::MAX]].concat());
    }

    #[test]
    fn functions_have_numbers() {
        let function = [1, FUNCTION << 24, 0];
        let types = Types::parse(blob(&function, &[])).expect("types");
        assert_eq!(types.function("outer"), Some(4), "the struct of this name is none");
        assert_eq!(types.function("int"), None);
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
