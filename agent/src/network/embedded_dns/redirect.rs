//! Port 53 of the embedded server's address leads to the port that the agent listens on, as Docker's own rules have it in
//! a container's network namespace. So nobody holds port 53 itself, and a container can be a DNS server on all addresses.
//!
//! Programs of the root cgroup change the port in what a process says of its peer to the kernel, and back in what the
//! kernel says of it. Unlike rules of the packet filter they cost packets nothing, and a container that flushes its
//! rules keeps its DNS. They are for the guest's own network namespace: one that a container makes, as Docker in Docker
//! does, may have another server there.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use hull_agent_protocol::dns::ADDRESS;
use hull_bpf::{Hook, Instruction, Link, Program, instruction, over};

/// The redirection, which ends with this value.
#[derive(Debug)]
pub(super) struct Redirect {
    _links: Vec<Link>,
}

/// A program that is asked for a socket address.
struct Translation {
    hook: Hook,
    family: Family,
    way: Way,
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    /// With the IPv4 address mapped to one of IPv6 (RFC 4291 §2.5.5.2), as sockets for both have it.
    V6,
}

#[derive(Clone, Copy)]
enum Way {
    /// From the process to the kernel.
    There,
    /// From the kernel to the process.
    Back,
}

/// A mapped address by which a datagram is sent comes to the hook of IPv4 too.
const TRANSLATIONS: [Translation; 7] = [
    translation(Hook::Connect4, Family::V4, Way::There),
    translation(Hook::Connect6, Family::V6, Way::There),
    translation(Hook::SendMsg4, Family::V4, Way::There),
    translation(Hook::RecvMsg4, Family::V4, Way::Back),
    translation(Hook::RecvMsg6, Family::V6, Way::Back),
    translation(Hook::GetPeerName4, Family::V4, Way::Back),
    translation(Hook::GetPeerName6, Family::V6, Way::Back),
];

const fn translation(hook: Hook, family: Family, way: Way) -> Translation {
    Translation { hook, family, way }
}

impl Redirect {
    /// Leads what the processes of the cgroup at `cgroup`, and of those below it, say to the server to `port`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn attach(cgroup: &Path, port: u16) -> io::Result<Self> {
        let cgroup = File::open(cgroup)?;
        let link = |translation: &Translation| {
            let instructions = translation.program(port);
            Program::load(translation.hook, &instructions)?.link(cgroup.as_fd())
        };
        let links = TRANSLATIONS.iter().map(link).collect::<io::Result<_>>()?;
        Ok(Self { _links: links })
    }
}

/// Registers: what a helper gives, its argument and the context at the start, a scratch one, and two that calls leave.
const RESULT: u8 = 0;
const ARGUMENT: u8 = 1;
const SCRATCH: u8 = 2;
const CONTEXT: u8 = 6;
const COOKIE: u8 = 7;

/// `user_port` of `struct bpf_sock_addr`.
const PORT: i16 = 24;
/// BPF_FUNC_get_netns_cookie.
const NETNS_COOKIE: i32 = 122;

impl Translation {
    fn program(&self, port: u16) -> Vec<Instruction> {
        let [standard, own] = [ADDRESS.port(), port].map(|port| i32::from(port.to_be()));
        let (found, given) = match self.way {
            Way::There => (standard, own),
            Way::Back => (own, standard),
        };
        // BPF_ALU64 | BPF_MOV | BPF_X, with _K; BPF_JMP | BPF_CALL; BPF_STX | BPF_MEM | BPF_W; BPF_JMP | BPF_EXIT
        let same_namespace = [
            instruction(0xbf, ARGUMENT, CONTEXT, 0, 0),
            instruction(0x85, 0, 0, 0, NETNS_COOKIE),
            instruction(0xbf, COOKIE, RESULT, 0, 0),
            // Without a socket it is the cookie of the first namespace.
            instruction(0xb7, ARGUMENT, 0, 0, 0),
            instruction(0x85, 0, 0, 0, NETNS_COOKIE),
        ];
        let change = [
            instruction(0xb7, SCRATCH, 0, 0, given),
            instruction(0x63, CONTEXT, SCRATCH, PORT, 0),
        ];
        let end = [
            instruction(0xb7, RESULT, 0, 0, 1),
            instruction(0x95, 0, 0, 0, 0),
        ];

        // From the end, so that the length of what is behind a jump is known.
        let mut program = [&change[..], &end].concat();
        // BPF_JMP | BPF_JNE | BPF_X
        let other = instruction(0x5d, RESULT, COOKIE, over(program.len() - end.len()), 0);
        program = [&same_namespace[..], &[other], &program].concat();
        let port = (PORT, found);
        for (field, value) in self.family.address().into_iter().chain([port]) {
            // BPF_LDX | BPF_MEM | BPF_W; BPF_JMP32 | BPF_JNE | BPF_K
            let test = [
                instruction(0x61, SCRATCH, CONTEXT, field, 0),
                instruction(0x56, SCRATCH, 0, over(program.len() - end.len()), value),
            ];
            program = [&test[..], &program].concat();
        }
        [
            &[instruction(0xbf, CONTEXT, ARGUMENT, 0, 0)][..],
            &program[..],
        ]
        .concat()
    }
}

impl Family {
    /// Fields of `struct bpf_sock_addr`, each of 32 bits, and what they are if they are the server's address.
    fn address(self) -> Vec<(i16, i32)> {
        let address: Ipv4Addr = *ADDRESS.ip();
        let word = i32::from_ne_bytes(address.octets());
        match self {
            Self::V4 => vec![(4, word)],
            Self::V6 => {
                let mapped = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
                vec![(8, 0), (12, 0), (16, mapped), (20, word)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_every_program() {
        for translation in &TRANSLATIONS {
            let loaded = Program::load(translation.hook, &translation.program(40000));
            assert!(loaded.is_ok(), "{:?}: {loaded:?}", translation.hook);
        }
    }
}
