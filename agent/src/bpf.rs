//! Instructions of BPF programs (`Documentation/bpf/standardization/instruction-set.rst`), which sys.rs loads.

/// One instruction, as `struct bpf_insn` of <linux/bpf.h>.
pub(crate) type Instruction = [u8; 8];

/// An instruction of its fields: the operation, the registers, the offset of a jump or of memory, and the constant.
pub(crate) fn instruction(
    code: u8,
    target: u8,
    source: u8,
    offset: i16,
    value: i32,
) -> Instruction {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [code, source << 4 | target, o0, o1, v0, v1, v2, v3]
}
