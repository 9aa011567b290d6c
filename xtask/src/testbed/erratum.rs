//! An erratum of QEMU's emulated SVM that kills guests of the test bed, and its repair in the copy that runs the machine.
//!
//! `VMRUN` with an external interrupt in EVENTINJ (AMD64 APM volume 2, 15.20) delivers the interrupt at once, but leaves
//! its vector behind in QEMU's variable for a pending exception (`helper_vmrun` in `target/i386/tcg/system/svm_helper.c`,
//! `cs->exception_index = vector`). When somebody then asks the CPU to leave its loop, and no interrupt comes of it, QEMU takes that
//! for an exception and delivers it: the guest has the interrupt twice, the second time with interrupts off, at the
//! first instruction of the handler of the first. Linux does not survive that: it runs without its per-CPU base, until
//! a panic, a triple fault or a hang. With one thread for all CPUs, whose turns are ended in that way, it was one slow boot in four;
//! with one thread per CPU it is rarer.
//!
//! The variable is read by nothing else on this way, so leaving out the one instruction that writes it is the repair.

/// Distinguishes copies with different repairs in the cache.
pub(super) const NAME: &str = "svm-eventinj-1";

/// `helper_vmrun` in QEMU of Debian, from the instruction to leave out. `..`: whatever is there.
///
/// ```text
/// mov  %esi,…(%rbx)                  cs->exception_index = vector
/// movl $0,…(%rbx)                    env->exception_is_int = 0
/// movq $-1,…(%rbx)                   env->exception_next_eip = -1
/// testb $2,…(%rip); jne …            qemu_log_mask(CPU_LOG_TB_IN_ASM, …)
/// mov $1,%edx; mov %rbx,%rdi; call … do_interrupt_x86_hardirq(env, vector, 1)
/// ```
const PLACE: &str = "89 b3 .. .. .. .. c7 83 .. .. .. .. 00 00 00 00 48 c7 83 .. .. .. .. ff ff ff ff \
                     f6 05 .. .. .. .. 02 0f 85 .. .. .. .. ba 01 00 00 00 48 89 df e8";

/// An instruction of the same length that does nothing.
const NOTHING: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00];

/// Repairs the QEMU in `program`. `false`, and nothing changed: it has no such place, or several, so it is another QEMU.
pub(super) fn repair(program: &mut [u8]) -> bool {
    let place: Vec<Option<u8>> = PLACE
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let mut found = program
        .windows(place.len())
        .enumerate()
        .filter(|(_, bytes)| {
            place
                .iter()
                .zip(*bytes)
                .all(|(expected, byte)| expected.is_none_or(|expected| expected == *byte))
        })
        .map(|(at, _)| at);
    let (Some(at), None) = (found.next(), found.next()) else {
        return false;
    };
    program[at..at + NOTHING.len()].copy_from_slice(&NOTHING);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_place() -> Vec<u8> {
        PLACE
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap_or(0x5a))
            .collect()
    }

    #[test]
    fn the_instruction_is_left_out_and_nothing_else() {
        let mut program = [&[0x90; 3], a_place().as_slice(), &[0x90; 3]].concat();
        let before = program.clone();
        assert!(repair(&mut program));
        assert_eq!(program[3..9], NOTHING);
        assert_eq!(program[..3], before[..3]);
        assert_eq!(program[9..], before[9..]);
    }

    #[test]
    fn another_qemu_stays_as_it_is() {
        for mut program in [vec![0x90; 100], [a_place(), a_place()].concat()] {
            let before = program.clone();
            assert!(!repair(&mut program));
            assert_eq!(program, before);
        }
    }
}
