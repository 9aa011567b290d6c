//! Errata of QEMU's emulated SVM that kill guests of the test bed and the machine itself, and the turns that its CPUs
//! take; and their repair in the copy of QEMU that runs it (`target/i386/tcg/system/svm_helper.c`, the same up to QEMU 10.0).
//!
//! `VMRUN` with an external interrupt in EVENTINJ (AMD64 APM volume 2, 15.20) delivers the interrupt at once, but leaves
//! its vector behind in QEMU's variable for a pending exception (`cs->exception_index = vector`). When somebody then asks the
//! CPU to leave its loop, and no interrupt comes of it, QEMU takes that for an exception and delivers it: the guest has the
//! interrupt twice, the second time with interrupts off, at the first instruction of the handler of the first. Linux does
//! not survive that: it runs without its per-CPU base, until a panic, a triple fault or a hang.
//!
//! `VMRUN` and `#VMEXIT` set and clear `CPU_INTERRUPT_VIRQ` in `cs->interrupt_request` without the lock under which other threads
//! set their bits, so that either may be lost: an interrupt of the machine is not delivered, or a virtual one, whose vector is
//! 0 with KVM, is delivered to whoever runs then.
//!
//! The first is repaired by leaving out the store, which nothing else on this way reads; the second by locked
//! instructions on both sides.
//!
//! With one thread for all CPUs (`accel/tcg/tcg-accel-ops-rr.c`) a CPU that has work keeps the thread for 100 ms when another
//! has work too. What waits for the other (a queue that it empties, an answer) waits as long, and the queue overflows: the
//! turns are made 1 ms.

/// Distinguishes copies with different repairs in the cache.
pub(super) const NAME: &str = "svm-2-turns";

/// A place in QEMU's code and what is there instead: bytes in hexadecimal; in a place `..` is any byte, and in its repair `=N`
/// is what was byte N of the place.
struct Repair {
    place: &'static str,
    repaired: &'static str,
}

const REPAIRS: [Repair; 6] = [
    // helper_vmrun:
    // mov  %esi,…(%rbx)                     cs->exception_index = vector
    // movl $0,…(%rbx)                       env->exception_is_int = 0
    // movq $-1,…(%rbx)                      env->exception_next_eip = -1
    // testb $2,…(%rip); jne …               qemu_log_mask(CPU_LOG_TB_IN_ASM, …)
    // mov $1,%edx; mov %rbx,%rdi; call …    do_interrupt_x86_hardirq(env, vector, 1)
    Repair {
        place: "89 b3 .. .. .. .. c7 83 .. .. .. .. 00 00 00 00 48 c7 83 .. .. .. .. ff ff ff ff \
                f6 05 .. .. .. .. 02 0f 85 .. .. .. .. ba 01 00 00 00 48 89 df e8",
        // nopw 0(%rax,%rax,1)
        repaired: "66 0f 1f 44 00 00",
    },
    // helper_vmrun: test %esi,%esi; je …; orl $0x100,…(%rbx); jmp …
    Repair {
        place: "85 f6 0f 84 .. .. .. .. 81 8b .. .. .. .. 00 01 00 00 e9",
        // …; lock btsl $8,…(%rbx); nop
        repaired: "=0 =1 =2 =3 =4 =5 =6 =7 f0 0f ba ab =10 =11 =12 =13 08 90",
    },
    // do_vmexit: andl $~0x100,…(%rbx); movl $0,…(%rbx); lea 0x468(%rax),%rsi
    Repair {
        place: "81 a3 .. .. .. .. ff fe ff ff c7 83 .. .. .. .. 00 00 00 00 48 8d b0 68 04 00 00",
        // lock btrl $8,…(%rbx); nop
        repaired: "f0 0f ba b3 =2 =3 =4 =5 08 90",
    },
    // tcg_handle_interrupt:
    // test %al,%al; je …                    g_assert(bql_locked())
    // or %ebp,…(%rbx)                       cpu->interrupt_request |= mask
    // mov %rbx,%rdi; call …; test %al,%al   if (!qemu_cpu_is_self(cpu))
    Repair {
        place: "84 c0 74 .. 09 ab .. .. .. .. 48 89 df e8 .. .. .. .. 84 c0 75 .. 48 83 c4 08 48 89 df 5b 5d e9",
        // …; lock or %ebp,…(%rbx); push %rbx; pop %rdi
        repaired: "=0 =1 =2 =3 f0 09 ab =6 =7 =8 =9 53 5f",
    },
    // rr_kick_thread:
    // sub $8,%rsp; mov $1,%edi; call …      now = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL)
    // mov …(%rip),%rdi; lea 100000000(%rax),%rsi; call …
    //                                       timer_mod(rr_kick_vcpu_timer, now + TCG_KICK_PERIOD)
    // add $8,%rsp; jmp …                    rr_kick_next_cpu()
    Repair {
        place: "48 83 ec 08 bf 01 00 00 00 e8 .. .. .. .. 48 8b 3d .. .. .. .. 48 8d b0 00 e1 f5 05 \
                e8 .. .. .. .. 48 83 c4 08 eb",
        // …; lea 1000000(%rax),%rsi
        repaired: "=0 =1 =2 =3 =4 =5 =6 =7 =8 =9 =10 =11 =12 =13 =14 =15 =16 =17 =18 =19 =20 48 8d b0 40 42 0f 00",
    },
    // rr_start_kick_timer: the same, with add $0x18,%rsp before the lea, and jmp … for the call of timer_mod
    Repair {
        place: "bf 01 00 00 00 e8 .. .. .. .. 48 8b 3d .. .. .. .. 48 83 c4 18 48 8d b0 00 e1 f5 05 e9",
        repaired: "=0 =1 =2 =3 =4 =5 =6 =7 =8 =9 =10 =11 =12 =13 =14 =15 =16 =17 =18 =19 =20 48 8d b0 40 42 0f 00",
    },
];

/// Repairs the QEMU in `program`. `false`, and nothing changed: it has not each place once, so it is another QEMU.
pub(super) fn repair(program: &mut [u8]) -> bool {
    let found: Option<Vec<usize>> = REPAIRS.iter().map(|repair| repair.find(program)).collect();
    let Some(found) = found else {
        return false;
    };
    for (repair, at) in REPAIRS.iter().zip(found) {
        let bytes = repair.bytes(&program[at..]);
        program[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    true
}

impl Repair {
    /// Where its place is, if there is one.
    fn find(&self, program: &[u8]) -> Option<usize> {
        let place: Vec<Option<u8>> = self.place.split_whitespace().map(byte).collect();
        let fits = |bytes: &[u8]| {
            place
                .iter()
                .zip(bytes)
                .all(|(expected, byte)| expected.is_none_or(|expected| expected == *byte))
        };
        let mut found = program
            .windows(place.len())
            .enumerate()
            .filter(|(_, bytes)| fits(bytes));
        match (found.next(), found.next()) {
            (Some((at, _)), None) => Some(at),
            _ => None,
        }
    }

    /// What the repaired place begins with.
    fn bytes(&self, place: &[u8]) -> Vec<u8> {
        let word = |word: &str| match word.strip_prefix('=') {
            Some(number) => place[number.parse::<usize>().expect("a number")],
            None => byte(word).expect("a byte"),
        };
        self.repaired.split_whitespace().map(word).collect()
    }
}

fn byte(word: &str) -> Option<u8> {
    u8::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &str) -> Vec<u8> {
        bytes
            .split_whitespace()
            .map(|word| byte(word).unwrap_or(0x5a))
            .collect()
    }

    fn a_qemu() -> Vec<u8> {
        let places = REPAIRS.iter().map(|repair| code(repair.place));
        places
            .flat_map(|place| [vec![0x90; 3], place].concat())
            .collect()
    }

    #[test]
    fn instructions_are_replaced_by_others_of_the_same_length() {
        let before = a_qemu();
        let mut program = before.clone();
        assert!(repair(&mut program));
        assert_eq!(program.len(), before.len());
        let replaced: Vec<(usize, usize)> =
            vec![(3, 6), (63, 10), (77, 10), (111, 9), (166, 4), (207, 4)];
        for (at, (old, new)) in before.iter().zip(&program).enumerate() {
            let is_replaced = replaced
                .iter()
                .any(|(start, length)| (*start..start + length).contains(&at));
            assert!(is_replaced || old == new, "{at}: {old:#x} became {new:#x}");
        }
        assert_eq!(
            program[63..73],
            *b"\xf0\x0f\xba\xab\x5a\x5a\x5a\x5a\x08\x90"
        );
    }

    #[test]
    fn another_qemu_stays_as_it_is() {
        let twice = [a_qemu(), a_qemu()].concat();
        let without_the_last = a_qemu()[..100].to_vec();
        for mut program in [vec![0x90; 100], twice, without_the_last] {
            let before = program.clone();
            assert!(!repair(&mut program));
            assert_eq!(program, before);
        }
    }
}
