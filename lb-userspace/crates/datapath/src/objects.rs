//! The BPF objects, as `build.rs` left them.

/// The balancer: programs `balance` and, for generic mode, `balance_generic`.
pub static BALANCER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer"));

/// The balancer as it is while it captures: programs `capture` and `capture_generic`.
pub static CAPTURE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture"));

/// The decapsulator of backends: programs `decapsulate` and `decap_generic`.
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// What gives sockets of this node a backend: programs for hooks of a control group.
pub(crate) static LOCAL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/local"));

/// What counts the frames that are lost after the balancer has sent them: programs for tracepoints.
pub(crate) static TX_ERRORS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tx_errors"));

/// The programs of the benchmark; nothing that is installed contains them.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// The balancer without its log: program `silent`. It is for the benchmark, too.
pub static SILENT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/silent"));

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use aya_obj::{Object, generated::bpf_insn};

    /// The most that the frames of a chain of calls may add up to (`MAX_BPF_STACK`).
    const MAX_STACK: u32 = 512;
    /// To a multiple of this Linux rounds a frame up (`check_max_stack_depth`); since 6.6 to one of 16, with a JIT.
    const ROUNDED_TO: u32 = 32;

    /// A function: its frame in bytes, and the places of those that it calls.
    #[derive(Default)]
    struct Frame {
        bytes: u32,
        calls: BTreeSet<usize>,
    }

    /// Where a call among the program's functions leads.
    fn callee(place: usize, insn: &bpf_insn) -> Option<usize> {
        const CALL: u8 = 0x85;
        const PSEUDO_CALL: u8 = 1;
        (insn.code == CALL && insn.src_reg() == PSEUDO_CALL)
            .then(|| place.checked_add_signed(insn.imm as isize + 1).expect("a place"))
    }

    /// The functions of a linked program by their places.
    fn frames(program: &[bpf_insn]) -> BTreeMap<usize, Frame> {
        const FRAME_POINTER: u8 = 10;
        const MOVE: u8 = 0xbf;
        const ADD: u8 = 0x07;
        let mut frames: BTreeMap<usize, Frame> = program
            .iter()
            .enumerate()
            .filter_map(|(place, insn)| callee(place, insn))
            .map(|at| (at, Frame::default()))
            .collect();
        frames.insert(0, Frame::default());
        // The registers that hold the frame pointer.
        let mut copies = BTreeSet::new();
        for (place, insn) in program.iter().enumerate() {
            let (_, frame) = frames.range_mut(..=place).next_back().expect("the first is at 0");
            frame.calls.extend(callee(place, insn));
            let (to, from) = (insn.dst_reg(), insn.src_reg());
            let offset = match (insn.code, insn.code & 7) {
                (MOVE, _) if from == FRAME_POINTER => {
                    copies.insert(to);
                    continue;
                }
                (ADD, _) if copies.remove(&to) => insn.imm,
                // Loads, and stores of values and registers.
                (_, 1) if from == FRAME_POINTER => insn.off.into(),
                (_, 2 | 3) if to == FRAME_POINTER => insn.off.into(),
                _ => 0,
            };
            frame.bytes = frame.bytes.max(offset.min(0).unsigned_abs());
        }
        frames
    }

    /// The deepest chain of calls from the function at `place`: its bytes, and the frames.
    fn deepest(frames: &BTreeMap<usize, Frame>, place: usize) -> (u32, Vec<u32>) {
        let frame = &frames[&place];
        let below = frame.calls.iter().map(|callee| deepest(frames, *callee)).max();
        let (depth, mut chain) = below.unwrap_or_default();
        chain.insert(0, frame.bytes);
        (depth + frame.bytes.max(1).next_multiple_of(ROUNDED_TO), chain)
    }

    #[test]
    fn no_chain_of_calls_has_more_stack_than_linux_6_1_allows() {
        let mut longest = 0;
        for object in
            [super::BALANCER, super::CAPTURE, super::DECAP, super::LOCAL, super::TX_ERRORS]
        {
            let mut object = Object::parse(object).expect("an object");
            let text = object.functions.keys().map(|(section, _)| *section).collect();
            object.relocate_calls(&text).expect("calls that lead somewhere");
            for (name, program) in &object.programs {
                let linked = &object.functions[&program.function_key()];
                let (depth, chain) = deepest(&frames(&linked.instructions), 0);
                longest = longest.max(chain.len());
                assert!(depth <= MAX_STACK, "{name}: {depth} bytes, in frames of {chain:?}");
            }
        }
        assert!(longest > 3, "calls were not followed: no chain has more than {longest} functions");
    }
}
