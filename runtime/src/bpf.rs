//! bpf(2): the commands that steering connections takes (`Documentation/bpf/prog_sk_lookup.rst`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One instruction, as `struct bpf_insn` of <linux/bpf.h>.
pub(crate) type Instruction = [u8; 8];

/// An instruction of its fields: the operation, the registers, the offset of a jump or of memory, and the constant
/// (`Documentation/bpf/standardization/instruction-set.rst`).
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

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// A map that holds `socket` at 0.
pub(crate) fn socket_map(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Update {
        map: RawFd,
        _padding: u32,
        key: *const u32,
        value: *const u64,
        flags: u64,
    }
    let map = descriptor(
        BPF_MAP_CREATE,
        &Create {
            kind: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 8,
            entries: 1,
            flags: 0,
        },
    )?;
    let key = 0;
    let value = u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    let update = Update {
        map: map.as_raw_fd(),
        _padding: 0,
        key: &raw const key,
        value: &raw const value,
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, &update)?;
    Ok(map)
}

/// Loads a program of type BPF_PROG_TYPE_SK_LOOKUP; the kernel checks its instructions.
pub(crate) fn load_socket_lookup(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: *const Instruction,
        license: *const libc::c_char,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type: BPF_SK_LOOKUP,
    };
    descriptor(BPF_PROG_LOAD, &load)
}

/// Attaches such a program to a network namespace for as long as the descriptor that is given back is open.
pub(crate) fn link_socket_lookup(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: RawFd,
        target: RawFd,
        attach_type: u32,
        flags: u32,
    }
    let link = Link {
        program: program.as_raw_fd(),
        target: netns.as_raw_fd(),
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    descriptor(BPF_LINK_CREATE, &link)
}

#[allow(unsafe_code)]
fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of the attributes, which outlive the call. The callers above give it
    // the layout of <linux/bpf.h> for their commands, and pointers to what outlives the call too.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<T>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same for a command that makes a descriptor.
#[allow(unsafe_code)]
fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the call has just made this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
