//! The program that gives connections to 127.0.0.1 in a network namespace to one listening socket
//! (`Documentation/bpf/prog_sk_lookup.rst`). It is asked before the kernel looks for a listener.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};

use hull_bpf::{Hook, Instruction, Link, Program, SocketMap, instruction, over};

use crate::network::Netns;

/// The steering, which ends with this value.
#[derive(Debug)]
pub(super) struct Steering {
    _link: Link,
}

impl Steering {
    /// Steers to `listener`, which is in `netns`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn to(listener: &TcpListener, netns: &Netns) -> io::Result<Self> {
        let map = SocketMap::of(listener.as_fd())?;
        let program = Program::load(Hook::SocketLookup, &program(&map))?;
        Ok(Self {
            _link: program.link(netns.as_fd())?,
        })
    }
}

/// Registers: what a helper gives, its arguments, the context, a socket, and the frame.
const RESULT: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const FRAME: u8 = 10;

/// Fields of `struct bpf_sk_lookup`, each of 32 bits, and what they are for a connection to 127.0.0.1.
const FIELDS: [(i16, i32); 3] = [
    (8, libc::AF_INET),
    (12, libc::IPPROTO_TCP),
    (40, i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets())),
];

/// BPF_FUNC_map_lookup_elem, BPF_FUNC_sk_release, BPF_FUNC_sk_assign.
const MAP_LOOKUP: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

fn program(map: &SocketMap) -> Vec<Instruction> {
    let assign = [
        // BPF_ALU64 | BPF_MOV | BPF_X, with _K; BPF_JMP | BPF_CALL
        instruction(0xbf, SOCKET, RESULT, 0, 0),
        instruction(0xbf, FIRST, CONTEXT, 0, 0),
        instruction(0xbf, SECOND, SOCKET, 0, 0),
        instruction(0xb7, THIRD, 0, 0, 0),
        instruction(0x85, 0, 0, 0, SK_ASSIGN),
        instruction(0xbf, FIRST, SOCKET, 0, 0),
        instruction(0x85, 0, 0, 0, SK_RELEASE),
    ];
    let look_up = [
        // BPF_ST | BPF_MEM | BPF_W: the key, which is 0
        instruction(0x62, FRAME, 0, -4, 0),
        instruction(0xbf, SECOND, FRAME, 0, 0),
        // BPF_ALU64 | BPF_ADD | BPF_K
        instruction(0x07, SECOND, 0, 0, -4),
        // BPF_LD | BPF_IMM | BPF_DW, of two instructions, with BPF_PSEUDO_MAP_FD
        instruction(0x18, FIRST, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP),
        // BPF_JMP | BPF_JEQ | BPF_K
        instruction(0x15, RESULT, 0, over(assign.len()), 0),
    ];
    let mut program = [&look_up[..], &assign].concat();
    for (field, value) in FIELDS.into_iter().rev() {
        // BPF_LDX | BPF_MEM | BPF_W; BPF_JMP32 | BPF_JNE | BPF_K
        let test = [
            instruction(0x61, SECOND, CONTEXT, field, 0),
            instruction(0x56, SECOND, 0, over(program.len()), value),
        ];
        program = [&test[..], &program].concat();
    }
    // SK_PASS; BPF_JMP | BPF_EXIT
    let end = [
        instruction(0xb7, RESULT, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    let begin = instruction(0xbf, CONTEXT, FIRST, 0, 0);
    [&[begin][..], &program, &end].concat()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::process::Command;

    use super::*;

    #[test]
    fn connections_to_127_0_0_1_come_to_the_listener_with_the_port_that_was_dialled() {
        let netns = Netns::create().unwrap();
        let steered = netns.run(|| {
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let other = TcpListener::bind("127.0.0.11:80").unwrap();
            let own = Netns::current().unwrap();
            let steering = Steering::to(&listener, &own).unwrap();
            for port in [80, 8080] {
                let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (server, _) = listener.accept().unwrap();
                assert_eq!(server.local_addr().unwrap(), client.peer_addr().unwrap());
            }
            let _client = TcpStream::connect("127.0.0.11:80").unwrap();
            other.accept().unwrap();
            TcpStream::connect("127.0.0.2:80").unwrap_err();
            drop(steering);
            TcpStream::connect("127.0.0.1:80").unwrap_err();
        });
        steered.unwrap();
    }
}
