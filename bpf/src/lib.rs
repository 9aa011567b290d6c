//! BPF programs that are made of instructions at run time, loaded and attached by bpf(2). The runtime steers connections of a
//! network namespace with them, the agent connections and devices of cgroups.
//!
//! The libraries for BPF load programs that a compiler has made ahead; these depend on a container's configuration.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One instruction, as `struct bpf_insn` of <linux/bpf.h>.
pub type Instruction = [u8; 8];

/// An instruction of its fields: the operation, the registers, the offset of a jump or of memory, and the constant
/// (`Documentation/bpf/standardization/instruction-set.rst`).
pub fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Instruction {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [code, source << 4 | target, o0, o1, v0, v1, v2, v3]
}

/// The offset of a jump over so many instructions; the kernel takes no program with more than it can be.
pub fn over(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

/// Where the kernel calls a program, of `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// A process of a cgroup makes or opens a device (BPF_CGROUP_DEVICE).
    Device = 6,
    /// A process of a cgroup connects a socket (BPF_CGROUP_INET4_CONNECT).
    Connect4 = 10,
    /// The same of IPv6 (BPF_CGROUP_INET6_CONNECT).
    Connect6 = 11,
    /// It sends a datagram to an address (BPF_CGROUP_UDP4_SENDMSG).
    SendMsg4 = 14,
    /// It is told where a datagram comes from (BPF_CGROUP_UDP4_RECVMSG).
    RecvMsg4 = 19,
    /// The same of IPv6 (BPF_CGROUP_UDP6_RECVMSG).
    RecvMsg6 = 20,
    /// It asks for the address of a socket's peer (BPF_CGROUP_INET4_GETPEERNAME).
    GetPeerName4 = 29,
    /// The same of IPv6 (BPF_CGROUP_INET6_GETPEERNAME).
    GetPeerName6 = 30,
    /// The kernel looks for the socket that a packet to a network namespace is for (BPF_SK_LOOKUP).
    SocketLookup = 36,
}

impl Hook {
    /// The type of its programs, of `enum bpf_prog_type`.
    fn program_type(self) -> u32 {
        const CGROUP_DEVICE: u32 = 15;
        const CGROUP_SOCK_ADDR: u32 = 18;
        const SK_LOOKUP: u32 = 30;
        match self {
            Self::Device => CGROUP_DEVICE,
            Self::Connect4
            | Self::Connect6
            | Self::SendMsg4
            | Self::RecvMsg4
            | Self::RecvMsg6
            | Self::GetPeerName4
            | Self::GetPeerName6 => CGROUP_SOCK_ADDR,
            Self::SocketLookup => SK_LOOKUP,
        }
    }
}

/// A program that the kernel has checked and loaded. It stays while it is attached, or this is held.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
    hook: Hook,
}

/// Keeps a program attached until it is dropped.
#[derive(Debug)]
pub struct Link {
    _descriptor: OwnedFd,
}

/// A map of one socket, which programs find at the key 0 (BPF_MAP_TYPE_SOCKMAP).
#[derive(Debug)]
pub struct SocketMap(OwnedFd);

impl Program {
    /// Loads it for its hook.
    ///
    /// # Errors
    /// bpf(2): also where the kernel finds fault with the instructions.
    pub fn load(hook: Hook, instructions: &[Instruction]) -> io::Result<Self> {
        const BPF_PROG_LOAD: libc::c_int = 5;
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
            kind: hook.program_type(),
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
            attach_type: hook as u32,
        };
        Ok(Self {
            descriptor: descriptor(BPF_PROG_LOAD, &load)?,
            hook,
        })
    }

    /// Attaches it to a cgroup, or to a network namespace where its hook is one of those, beside others.
    ///
    /// # Errors
    /// bpf(2).
    pub fn link(&self, target: BorrowedFd<'_>) -> io::Result<Link> {
        const BPF_LINK_CREATE: libc::c_int = 28;
        #[repr(C)]
        struct Create {
            program: RawFd,
            target: RawFd,
            attach_type: u32,
            flags: u32,
        }
        let create = Create {
            program: self.descriptor.as_raw_fd(),
            target: target.as_raw_fd(),
            attach_type: self.hook as u32,
            flags: 0,
        };
        let descriptor = descriptor(BPF_LINK_CREATE, &create)?;
        Ok(Link {
            _descriptor: descriptor,
        })
    }

    /// Attaches it to a cgroup for as long as that is there, beside those of the cgroup's parents.
    ///
    /// # Errors
    /// bpf(2).
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        const BPF_PROG_ATTACH: libc::c_int = 8;
        const BPF_F_ALLOW_MULTI: u32 = 2;
        #[repr(C)]
        struct Attach {
            target: RawFd,
            program: RawFd,
            kind: u32,
            flags: u32,
        }
        let attach = Attach {
            target: cgroup.as_raw_fd(),
            program: self.descriptor.as_raw_fd(),
            kind: self.hook as u32,
            flags: BPF_F_ALLOW_MULTI,
        };
        call(BPF_PROG_ATTACH, &attach).map(drop)
    }
}

impl SocketMap {
    /// The map of `socket`.
    ///
    /// # Errors
    /// bpf(2).
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        const BPF_MAP_CREATE: libc::c_int = 0;
        const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
        const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
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
        Ok(Self(map))
    }
}

impl AsRawFd for SocketMap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
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
