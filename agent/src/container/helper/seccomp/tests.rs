use serde_json::{Value, json};

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const ALWAYS: u32 = libc::BPF_JMP | libc::BPF_JA;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// What the kernel's interpreter makes of a call under `profile`, as far as libseccomp uses it (`struct seccomp_data`).
fn verdict(profile: &Value, architecture: u32, number: u32, arguments: &[u64]) -> u32 {
    let profile = serde_json::from_value(profile.clone()).unwrap();
    let program = program(&profile).unwrap();
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    data.resize(64, 0);
    let (mut next, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[next];
        next += 1;
        let code = u32::from(code);
        let offset = usize::try_from(k).unwrap();
        let mut jump = |holds| next += usize::from(if holds { jt } else { jf });
        match code {
            LOAD => {
                let word = data[offset..][..4].try_into().unwrap();
                accumulator = u32::from_le_bytes(word);
            }
            AND => accumulator &= k,
            ALWAYS => next += offset,
            EQUAL => jump(accumulator == k),
            GREATER => jump(accumulator > k),
            AT_LEAST => jump(accumulator >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.unsigned_abs()
}

fn number(call: &str) -> u32 {
    let call = ScmpSyscall::from_name_by_arch(call, ScmpArch::X8664).unwrap();
    call.as_raw_syscall().try_into().unwrap()
}

/// As engines write it.
fn of_an_engine() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["read", "close_range", "of_the_future"], "action": "SCMP_ACT_ALLOW" },
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]
            },
            { "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
        ],
    })
}

#[test]
fn a_masked_comparison_looks_at_the_masked_bits() {
    let clone = |flags: i32| {
        let flags = u64::from(flags.unsigned_abs());
        verdict(&of_an_engine(), X86_64, number("clone"), &[flags])
    };
    assert_eq!(clone(libc::SIGCHLD), libc::SECCOMP_RET_ALLOW);
    assert_eq!(
        clone(libc::CLONE_VM | libc::CLONE_VFORK),
        libc::SECCOMP_RET_ALLOW
    );
    for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS | libc::SIGCHLD] {
        assert_eq!(clone(namespace), errno(libc::EPERM), "{namespace:#x}");
    }
}

#[test]
fn calls_newer_than_the_profile_are_not_there_and_others_as_it_says() {
    let calls = |architecture, number| verdict(&of_an_engine(), architecture, number, &[]);
    assert_eq!(calls(X86_64, number("read")), libc::SECCOMP_RET_ALLOW);
    assert_eq!(calls(X86_64, number("mount")), errno(libc::ENOSYS));
    assert_eq!(calls(X86_64, number("reboot")), errno(libc::EPERM));
    let last = number("close_range");
    assert_eq!(calls(X86_64, last), libc::SECCOMP_RET_ALLOW);
    for architecture in [X86_64, I386] {
        assert_eq!(calls(architecture, last + 1), errno(libc::ENOSYS));
        assert_eq!(calls(architecture, 1000), errno(libc::ENOSYS));
    }
    assert_eq!(calls(X86_64, X32_CALLS | 1), errno(libc::EPERM));
    assert_eq!(calls(X86_64, X32_CALLS | 1000), errno(libc::ENOSYS));
}

#[test]
fn a_profile_that_allows_what_it_does_not_name_allows_what_is_new() {
    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"] {
        let profile = json!({
            "defaultAction": default,
            "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_KILL" }],
        });
        assert_ne!(verdict(&profile, X86_64, 1000, &[]), errno(libc::ENOSYS));
        assert_eq!(
            verdict(&profile, X86_64, number("mkdir"), &[]),
            libc::SECCOMP_RET_KILL_THREAD
        );
    }
}

#[test]
fn conditions_for_one_argument_are_alternatives_and_others_hold_together() {
    let allows = |indices: [u32; 2], arguments: &[u64]| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{
                "names": ["kcmp"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    { "index": indices[0], "value": 1, "op": "SCMP_CMP_EQ" },
                    { "index": indices[1], "value": 2, "op": "SCMP_CMP_EQ" },
                ],
            }],
        });
        verdict(&profile, X86_64, number("kcmp"), arguments) == libc::SECCOMP_RET_ALLOW
    };
    assert!(allows([0, 0], &[1]) && allows([0, 0], &[2]) && !allows([0, 0], &[3]));
    assert!(allows([0, 1], &[1, 2]) && !allows([0, 1], &[1, 1]) && !allows([0, 1], &[2, 2]));
}

#[test]
fn what_libseccomp_or_the_kernel_cannot_take_is_refused() {
    let refused = |rule: Value| {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        program(&serde_json::from_value(profile).unwrap()).unwrap_err()
    };
    let errno = json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000 });
    assert!(matches!(
        refused(errno),
        SeccompError::Errno { errno: 70000, .. }
    ));
    let argument = json!([{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }]);
    let argument = json!({ "names": ["read"], "action": "SCMP_ACT_KILL", "args": argument });
    assert!(matches!(refused(argument), SeccompError::Rule { call, .. } if call == "read"));
}
