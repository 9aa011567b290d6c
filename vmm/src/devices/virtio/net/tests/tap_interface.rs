//! A tap in a network namespace of the test's own, and a packet socket to see and send what passes on the host's side.

use std::ffi::{c_int, c_short};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

const NAME: &str = "tap0";

/// An EtherType for experiments, so that the kernel's own frames can be told apart.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

#[allow(unsafe_code, reason = "the macros make unsafe functions")]
mod ioctl {
    use std::ffi::c_int;

    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifaddr, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifnetmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_read_bad!(siocgifindex, libc::SIOCGIFINDEX, libc::ifreq);
}

/// Runs `test` in a thread with a network namespace of its own.
pub(super) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests of the network device need root");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The host's side of a tap.
pub(super) struct TapInterface {
    index: c_int,
    packets: OwnedFd,
}

impl TapInterface {
    /// Makes a tap with the runtime's flags, which is up, and gives a descriptor for each queue.
    pub(super) fn new(queues: usize) -> (Self, Vec<OwnedFd>) {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let fds = (0..queues).map(|_| open(NAME, flags)).collect();
        let control = control_socket();
        let mut request = request();
        // SAFETY: the kernel writes to the request that it is lent.
        #[allow(unsafe_code, reason = "an ioctl on a union")]
        let index = unsafe {
            ioctl::siocgifindex(control.as_raw_fd(), &raw mut request).expect("SIOCGIFINDEX");
            request.ifr_ifru.ifru_ifindex
        };
        set_flags(libc::IFF_UP);
        let packets = packet_socket(index, false);
        (Self { index, packets }, fds)
    }

    /// Takes the interface up or down.
    pub(super) fn set_up(&self, up: bool) {
        set_flags(if up { libc::IFF_UP } else { 0 });
    }

    /// Gives the host the address 10.0.0.1/24 on the interface.
    pub(super) fn set_address(&self) {
        let control = control_socket();
        let request = |address| {
            let mut request = request();
            request.ifr_ifru.ifru_addr = address;
            request
        };
        // SAFETY: the kernel reads the requests that it is lent.
        #[allow(unsafe_code, reason = "ioctls")]
        unsafe {
            ioctl::siocsifaddr(control.as_raw_fd(), &request(ipv4([10, 0, 0, 1])))
                .expect("SIOCSIFADDR");
            ioctl::siocsifnetmask(control.as_raw_fd(), &request(ipv4([255, 255, 255, 0])))
                .expect("SIOCSIFNETMASK");
        }
    }

    /// Removes the interface.
    pub(super) fn remove(&self) {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        let netlink = netlink.expect("netlink");
        // struct nlmsghdr with RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK; struct ifinfomsg with the index.
        let mut message = Vec::new();
        message.extend(32_u32.to_ne_bytes());
        message.extend(17_u16.to_ne_bytes());
        message.extend(5_u16.to_ne_bytes());
        message.extend([0; 12]);
        message.extend(self.index.to_ne_bytes());
        message.extend([0; 8]);
        send(netlink.as_raw_fd(), &message, MsgFlags::empty()).expect("RTM_DELLINK");
        let mut answer = [0; 64];
        recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("netlink");
        assert_eq!(answer[16..20], [0; 4], "RTM_DELLINK");
    }

    /// Sends a frame towards the guest.
    pub(super) fn send(&self, frame: &[u8]) {
        let sent = send(self.packets.as_raw_fd(), frame, MsgFlags::empty()).expect("packet socket");
        assert_eq!(sent, frame.len());
    }

    /// Sends a frame towards the guest that is still to be segmented, with a `virtio_net_hdr` of ten bytes in front.
    pub(super) fn send_unfinished(&self, header: [u8; 10], frame: &[u8]) {
        let socket = packet_socket(self.index, true);
        let bytes = [&header, frame].concat();
        assert_eq!(
            send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).expect("packet socket"),
            bytes.len()
        );
    }

    /// The next frame of the tests' EtherType, or of another that `wanted` accepts, if it comes within a second.
    pub(super) fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x20000];
        loop {
            match recv(self.packets.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) if wanted(&frame[..length]) => {
                    frame.truncate(length);
                    return Some(frame);
                }
                // The socket tells once that the interface was down.
                Ok(_) | Err(nix::Error::ENETDOWN) => {}
                Err(nix::Error::EAGAIN) => return None,
                Err(error) => panic!("packet socket: {error}"),
            }
        }
    }
}

/// Sets the interface's flags.
fn set_flags(flags: c_int) {
    let mut request = request();
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).unwrap();
    // SAFETY: the kernel reads the request that it is lent.
    #[allow(unsafe_code, reason = "an ioctl")]
    unsafe { ioctl::siocsifflags(control_socket().as_raw_fd(), &raw const request) }
        .expect("SIOCSIFFLAGS");
}

/// A frame of the tests' EtherType that nobody else knows, `length` bytes long.
pub(super) fn frame(length: usize, seed: usize) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
    frame.extend(ETHERTYPE);
    frame.extend(
        (0..=250)
            .cycle()
            .skip(seed % 251)
            .take(length - frame.len()),
    );
    frame
}

/// Whether a frame is of the tests' EtherType.
pub(super) fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE)
}

/// A descriptor of the tap called `name`, made with `flags`.
pub(super) fn open(name: &str, flags: c_int) -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).unwrap();
    // SAFETY: the kernel reads the request that it is lent.
    #[allow(unsafe_code, reason = "an ioctl")]
    unsafe { ioctl::tunsetiff(file.as_raw_fd(), &raw const request) }.expect("TUNSETIFF");
    file.into()
}

/// A request about the interface.
fn request() -> libc::ifreq {
    named(NAME)
}

#[allow(unsafe_code, reason = "a C structure with a union")]
fn named(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is numbers, arrays of them, and pointers; zero is valid for all.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn control_socket() -> OwnedFd {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("socket")
}

fn ipv4(address: [u8; 4]) -> libc::sockaddr {
    let mut socket_address = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap(),
        sa_data: [0; 14],
    };
    for (to, from) in socket_address.sa_data[2..].iter_mut().zip(address) {
        *to = from.cast_signed();
    }
    socket_address
}

/// A socket for all frames on interface `index`, with a `virtio_net_hdr` in front of them or not.
#[allow(
    unsafe_code,
    reason = "the address and the option of packet sockets are not in nix"
)]
fn packet_socket(index: c_int, header: bool) -> OwnedFd {
    let all = c_int::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
    // SAFETY: a system call on numbers, whose result is a descriptor of our own.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: numbers only.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    address.sll_ifindex = index;
    let size = |bytes: usize| libc::socklen_t::try_from(bytes).unwrap();
    let with_header = c_int::from(header);
    // SAFETY: the kernel reads an address and an int of the sizes given.
    unsafe {
        let bound = libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size(size_of_val(&address)),
        );
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
        let set = libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const with_header).cast(),
            size(size_of::<c_int>()),
        );
        assert_eq!(set, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
    }
    let second = TimeVal::new(1, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &second).expect("SO_RCVTIMEO");
    socket
}
