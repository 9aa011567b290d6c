//! A process's seccomp profile (config-linux.md, § Seccomp), loaded into the process itself: libseccomp translates it, and
//! what programs expect of calls that the profile cannot know is put before that.
//!
//! `libcontainer` would load it as well, but takes the mask of `SCMP_CMP_MASKED_EQ` for the value and the value for the
//! mask: engines' profiles, which are to keep clone(2) from making namespaces by it, would let everything pass.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::num::TryFromIntError;

use libc::sock_filter;
use libseccomp::error::SeccompError as LibraryError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};

use crate::sys;

/// How loading a profile fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeccompError {
    /// An error number that no system call can give.
    #[error("seccomp: errnoRet {errno}")]
    Errno {
        /// The number.
        errno: u32,
        source: TryFromIntError,
    },
    /// libseccomp does not take an architecture.
    #[error("seccomp: architecture {architecture:?}")]
    Architecture {
        architecture: Arch,
        source: LibraryError,
    },
    /// libseccomp does not take a rule.
    #[error("seccomp: the rule for {call}")]
    Rule { call: String, source: LibraryError },
    /// libseccomp makes no filter of the profile.
    #[error("seccomp: make the filter")]
    Make(#[source] LibraryError),
    /// The filter does not get from libseccomp to here.
    #[error("seccomp: read the filter")]
    Read(#[source] io::Error),
    /// The kernel does not take the filter.
    #[error("seccomp: load the filter")]
    Load(#[source] io::Error),
}

/// Loads `profile` into this process, which has one thread.
///
/// # Errors
/// See [`SeccompError`].
pub(super) fn load(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    let flags = profile.flags().iter().flatten();
    let flags = flags.fold(0, |flags, flag| flags | number_of(*flag));
    sys::load_seccomp_filter(&program(profile)?, flags).map_err(SeccompError::Load)
}

/// The program that the kernel runs at each system call.
fn program(profile: &LinuxSeccomp) -> Result<Vec<sock_filter>, SeccompError> {
    let mut program = unknown_calls(profile);
    program.extend(instructions(&filter(profile)?)?);
    Ok(program)
}

fn filter(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(SeccompError::Make)?;
    for &architecture in profile.architectures().iter().flatten() {
        filter
            .add_arch(translated(architecture))
            .map_err(|source| SeccompError::Architecture {
                architecture,
                source,
            })?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses rules that change nothing.
        if action == default {
            continue;
        }
        let arguments = rule.args().as_deref().unwrap_or_default();
        for name in rule.names() {
            // One that libseccomp does not know, the guest's kernel may not know either: profiles name newer ones.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            add_rule(&mut filter, action, call, arguments).map_err(|source| {
                SeccompError::Rule {
                    call: name.clone(),
                    source,
                }
            })?;
        }
    }
    Ok(filter)
}

/// All conditions must hold; but of several for the same argument, as runc has it, one is enough.
fn add_rule(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    arguments: &[LinuxSeccompArg],
) -> Result<(), LibraryError> {
    let conditions: Vec<_> = arguments.iter().map(condition).collect();
    let is_repeated = |(place, argument): (usize, &LinuxSeccompArg)| {
        let earlier = arguments.iter().take(place);
        earlier
            .map(LinuxSeccompArg::index)
            .any(|index| index == argument.index())
    };
    if arguments.iter().enumerate().any(is_repeated) {
        for condition in conditions {
            filter.add_rule_conditional(action, call, &[condition])?;
        }
    } else {
        filter.add_rule_conditional(action, call, &conditions)?;
    }
    Ok(())
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let value = argument.value();
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(value),
            argument.value_two().unwrap_or_default(),
        ),
    };
    // libseccomp refuses a number that no argument has.
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    ScmpArgCompare::new(index, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    let number = u16::try_from(errno).map_err(|source| SeccompError::Errno { errno, source })?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        // Refused with the specification.
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn translated(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

fn number_of(flag: LinuxSeccompFilterFlag) -> libc::c_ulong {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        }
    }
}

/// libseccomp's program for `filter`.
fn instructions(filter: &ScmpFilterContext) -> Result<Vec<sock_filter>, SeccompError> {
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let file = memfd_create("seccomp", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(file.map_err(|errno| SeccompError::Read(errno.into()))?);
    filter.export_bpf(&file).map_err(SeccompError::Make)?;
    let bytes = read(&mut file).map_err(SeccompError::Read)?;
    let (instructions, _) = bytes.as_chunks();
    let instructions = instructions.iter();
    Ok(instructions
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect())
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// From which number on calls are those of x32, which shares the kernel's number for the architecture with x86-64.
const X32_CALLS: u32 = 1 << 30;
/// The architectures whose calls an x86-64 kernel takes, with their numbers for it (<linux/audit.h>), and the number from
/// which on calls are not theirs.
const ARCHITECTURES: [(ScmpArch, u32, u32); 3] = [
    (ScmpArch::X8664, 0xc000_003e, X32_CALLS),
    (ScmpArch::X32, 0xc000_003e, u32::MAX),
    (ScmpArch::X86, 0x4000_0003, u32::MAX),
];

/// What goes before the filter of a profile that refuses what it does not name: a call with a higher number than any that it
/// names is newer than the profile, and fails with ENOSYS, as on an older kernel. Programs try an older call then, and would
/// take EPERM for an answer. runc does the same.
fn unknown_calls(profile: &LinuxSeccomp) -> Vec<sock_filter> {
    if matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    ) {
        return Vec::new();
    }
    let named: Vec<_> = profile.architectures().iter().flatten().copied().collect();
    let is_filtered = |architecture: ScmpArch| {
        architecture == ScmpArch::X8664
            || named.iter().any(|named| translated(*named) == architecture)
    };
    let mut program = Vec::new();
    for (architecture, number, end) in ARCHITECTURES {
        let rules = profile.syscalls().iter().flatten();
        // libseccomp gives negative numbers to calls of other architectures.
        let last = rules
            .flat_map(|rule| rule.names())
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, architecture).ok())
            .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
            .max();
        if let Some(last) = last.filter(|_| is_filtered(architecture)) {
            program.extend([
                statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARCHITECTURE),
                jump(libc::BPF_JEQ, number, 0, 4),
                statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER),
                jump(libc::BPF_JGT, last, 0, 2),
                jump(libc::BPF_JGE, end, 1, 0),
                statement(
                    libc::BPF_RET | libc::BPF_K,
                    libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
                ),
            ]);
        }
    }
    program
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

/// Skips `jt` instructions if the comparison with `k` holds, otherwise `jf`.
fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(libc::BPF_JMP | comparison | libc::BPF_K, k, jt, jf)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // All codes are below 256.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}
