//! A container's device rules (`linux.resources.devices`) as a BPF program on its cgroup, which cgroup v2 has in place of
//! the files of v1 (`Documentation/admin-guide/cgroup-v2.rst`, Device controller).
//!
//! The last rule that fits decides, as in v1. The program asks the rules from the last to the first.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use hull_bpf::{Hook, Instruction, Program, instruction};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Why rules could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A rule that the kernel cannot have.
    #[error("device rule with {what} {value:?}")]
    Rule {
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel refused the program, or knows none.
    #[error("load the program of the device rules")]
    Load(#[source] io::Error),
    /// The cgroup does not take it.
    #[error("attach the device rules to {path:?}")]
    Attach {
        /// The cgroup.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// BPF_DEVCG_DEV_*: what kind of device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// BPF_DEVCG_ACC_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ANY_ACCESS: i32 = MKNOD | READ | WRITE;

/// A rule for some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// Nothing: every device, whatever the rest says.
    kind: Option<Kind>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

const fn allowed(kind: Kind, major: Option<i32>, minor: Option<i32>, access: i32) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

/// What every container may do, as under runc: make nodes, and use those that its `/dev` has.
const DEFAULT: [Rule; 11] = [
    allowed(Kind::Character, None, None, MKNOD),
    allowed(Kind::Block, None, None, MKNOD),
    // null, zero, full, random, urandom
    allowed(Kind::Character, Some(1), Some(3), ANY_ACCESS),
    allowed(Kind::Character, Some(1), Some(5), ANY_ACCESS),
    allowed(Kind::Character, Some(1), Some(7), ANY_ACCESS),
    allowed(Kind::Character, Some(1), Some(8), ANY_ACCESS),
    allowed(Kind::Character, Some(1), Some(9), ANY_ACCESS),
    // tty, console, ptmx
    allowed(Kind::Character, Some(5), Some(0), ANY_ACCESS),
    allowed(Kind::Character, Some(5), Some(1), ANY_ACCESS),
    allowed(Kind::Character, Some(5), Some(2), ANY_ACCESS),
    // pts
    allowed(Kind::Character, Some(136), None, ANY_ACCESS),
];

impl Rule {
    /// Nothing for a rule about what is no device (FIFOs).
    fn of(rule: &LinuxDeviceCgroup) -> Result<Option<Self>, DeviceError> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
            LinuxDeviceType::P => return Ok(None),
        };
        let number = |what, number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => i32::try_from(number)
                .ok()
                .filter(|number| *number >= 0)
                .map(Some)
                .ok_or_else(|| DeviceError::Rule {
                    what,
                    value: number.to_string(),
                }),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => {
                    return Err(DeviceError::Rule {
                        what: "access",
                        value: other.to_string(),
                    });
                }
            };
        }
        Ok(Some(Self {
            allow: rule.allow(),
            kind,
            major: number("major number", rule.major())?,
            minor: number("minor number", rule.minor())?,
            access,
        }))
    }

    /// The instructions that decide for what the rule fits, and go on behind themselves for the rest.
    fn instructions(&self, program: &mut Vec<Instruction>) {
        let mut tests = Vec::new();
        if let Some(kind) = self.kind {
            tests.push(vec![Test::Differs(KIND, kind as i32)]);
            if self.access != ANY_ACCESS {
                let masked = [Test::Copy(SCRATCH, ACCESS), Test::And(SCRATCH, self.access)];
                // Allowed is what asks for nothing else; denied is what asks for any of it.
                let test = if self.allow {
                    Test::DiffersFrom(SCRATCH, ACCESS)
                } else {
                    Test::Is(SCRATCH, 0)
                };
                tests.push(masked.into_iter().chain([test]).collect());
            }
            let numbers = [(MAJOR, self.major), (MINOR, self.minor)];
            let numbers = numbers
                .into_iter()
                .filter_map(|(register, number)| Some((register, number?)));
            tests.extend(numbers.map(|(register, number)| vec![Test::Differs(register, number)]));
        }
        let tests: Vec<Test> = tests.into_iter().flatten().collect();
        for (place, test) in tests.iter().enumerate() {
            // Over the tests behind this one, and the decision.
            let behind = tests.len() - place - 1 + DECISION;
            program.push(test.instruction(i16::try_from(behind).unwrap_or(i16::MAX)));
        }
        decide(self.allow, program);
    }
}

/// Registers of the program. The first holds the context at the start, and is free afterwards.
const DECIDED: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// A step of a rule's test; those that compare jump behind the rule when it does not fit.
enum Test {
    Copy(u8, u8),
    And(u8, i32),
    Is(u8, i32),
    Differs(u8, i32),
    DiffersFrom(u8, u8),
}

impl Test {
    fn instruction(&self, behind: i16) -> Instruction {
        match *self {
            // BPF_ALU | BPF_MOV | BPF_X
            Self::Copy(target, source) => instruction(0xbc, target, source, 0, 0),
            // BPF_ALU | BPF_AND | BPF_K
            Self::And(target, value) => instruction(0x54, target, 0, 0, value),
            // BPF_JMP | BPF_JEQ | BPF_K
            Self::Is(register, value) => instruction(0x15, register, 0, behind, value),
            // BPF_JMP | BPF_JNE | BPF_K
            Self::Differs(register, value) => instruction(0x55, register, 0, behind, value),
            // BPF_JMP | BPF_JNE | BPF_X
            Self::DiffersFrom(register, other) => instruction(0x5d, register, other, behind, 0),
        }
    }
}

/// Instructions of a decision.
const DECISION: usize = 2;

fn decide(allow: bool, program: &mut Vec<Instruction>) {
    // BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT
    program.push(instruction(0xb7, DECIDED, 0, 0, i32::from(allow)));
    program.push(instruction(0x95, 0, 0, 0, 0));
}

/// The program of the rules; nothing when they allow everything.
fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<Instruction>>, DeviceError> {
    let mut parsed = Vec::new();
    for rule in rules {
        parsed.extend(Rule::of(rule)?);
    }
    match parsed.last() {
        None => return Ok(None),
        Some(last) if last.allow && last.kind.is_none() => return Ok(None),
        Some(_) => {}
    }
    // struct bpf_cgroup_dev_ctx: kind and access in the halves of the first word, then major and minor.
    // BPF_LDX | BPF_MEM | BPF_W; BPF_ALU | BPF_AND | BPF_K; BPF_ALU | BPF_RSH | BPF_K
    let mut program = vec![
        instruction(0x61, KIND, SCRATCH, 0, 0),
        instruction(0x54, KIND, 0, 0, 0xffff),
        instruction(0x61, ACCESS, SCRATCH, 0, 0),
        instruction(0x74, ACCESS, 0, 0, 16),
        instruction(0x61, MAJOR, SCRATCH, 4, 0),
        instruction(0x61, MINOR, SCRATCH, 8, 0),
    ];
    for rule in parsed.iter().chain(&DEFAULT).rev() {
        rule.instructions(&mut program);
        if rule.kind.is_none() {
            // It fits every device: no rule before it is ever asked.
            return Ok(Some(program));
        }
    }
    // What no rule names is allowed, as it is in a cgroup without rules.
    decide(true, &mut program);
    Ok(Some(program))
}

/// Puts the rules in force for the cgroup's processes, for as long as the cgroup is there.
///
/// # Errors
/// See [`DeviceError`].
pub(super) fn apply(rules: &[LinuxDeviceCgroup], cgroup: &Path) -> Result<(), DeviceError> {
    let Some(instructions) = program(rules)? else {
        return Ok(());
    };
    let program = Program::load(Hook::Device, &instructions).map_err(DeviceError::Load)?;
    let attach = |directory: File| program.attach(directory.as_fd());
    File::open(cgroup)
        .and_then(attach)
        .map_err(|source| DeviceError::Attach {
            path: cgroup.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(allow: bool, kind: LinuxDeviceType) -> LinuxDeviceCgroup {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .build()
            .unwrap()
    }

    #[test]
    fn rules_that_allow_everything_need_no_program() {
        assert_eq!(program(&[]).unwrap(), None);
        let all = rule(true, LinuxDeviceType::A);
        assert_eq!(
            program(&[rule(false, LinuxDeviceType::C), all.clone()]).unwrap(),
            None
        );
        assert!(
            program(&[all, rule(false, LinuxDeviceType::C)])
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn nothing_is_asked_before_a_rule_for_everything() {
        let long = program(&[
            rule(true, LinuxDeviceType::B),
            rule(false, LinuxDeviceType::A),
        ]);
        let short = program(&[rule(false, LinuxDeviceType::A)]);
        assert_eq!(long.unwrap(), short.unwrap());
    }

    #[test]
    fn rules_that_the_kernel_cannot_have_are_refused() {
        let mut bad = rule(true, LinuxDeviceType::C);
        bad.set_access(Some("rx".to_owned()));
        assert!(program(&[bad]).is_err());
        let mut bad = rule(true, LinuxDeviceType::C);
        bad.set_major(Some(i64::MAX));
        assert!(program(&[bad]).is_err());
    }
}
