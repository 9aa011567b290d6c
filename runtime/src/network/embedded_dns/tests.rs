//! The forwarder on real sockets, in a network namespace that each test makes. Needs root.

use super::forward::MAX_CONNECTIONS;
use super::*;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A forwarder to the server's own address, and the path of its socket, in a namespace that lives as long as the test.
struct Forwarder {
    directory: tempfile::TempDir,
    netns: Netns,
}

impl Forwarder {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let netns = Netns::create().unwrap();
        let forwarder = Self { directory, netns };
        forwarder
            .netns
            .run(|| start(&forwarder.vsock()))
            .unwrap()
            .unwrap();
        forwarder
    }

    fn vsock(&self) -> PathBuf {
        // Longer than the address of a Unix socket may be.
        let directory = self.directory.path().join("d".repeat(120));
        fs::create_dir_all(&directory).unwrap();
        directory.join("agent.sock")
    }

    /// A connection as the VMM makes it for the guest.
    fn connect(&self) -> UnixStream {
        let path = guest_socket(&self.vsock());
        let stream = with_short_path(&path, |address| {
            UnixStream::connect(address.path().unwrap())
        })
        .unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn datagram_server(&self) -> UdpSocket {
        let socket = self
            .netns
            .run(|| UdpSocket::bind(ADDRESS))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    fn stream_server(&self) -> TcpListener {
        self.netns
            .run(|| TcpListener::bind(ADDRESS))
            .unwrap()
            .unwrap()
    }
}

fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_datagram_is_asked_for_by_a_datagram_and_answered_once() {
    let forwarder = Forwarder::start();
    let server = forwarder.datagram_server();
    let mut guest = forwarder.connect();
    guest.write_all(b"u\x00\x05query").unwrap();
    let mut bytes = vec![0; 1024];
    let (length, client) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..length], *b"query");
    let answer = vec![7; 40_000];
    server.send_to(&answer, client).unwrap();
    server.send_to(b"again", client).unwrap();
    let answered = rest(guest);
    assert_eq!(answered[..2], 40_000_u16.to_be_bytes());
    assert_eq!(answered[2..], answer);
}

#[test]
fn a_stream_is_carried_both_ways_with_its_ends() {
    let forwarder = Forwarder::start();
    let server = forwarder.stream_server();
    let mut guest = forwarder.connect();
    guest.write_all(b"t\x00\x03one\x00\x03two").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    let (mut server, _) = server.accept().unwrap();
    let mut asked = Vec::new();
    server.read_to_end(&mut asked).unwrap();
    assert_eq!(asked, b"\x00\x03one\x00\x03two");
    server.write_all(b"\x00\x01A\x00\x01B").unwrap();
    drop(server);
    assert_eq!(rest(guest), b"\x00\x01A\x00\x01B");
}

#[test]
fn without_a_server_and_with_nonsense_the_connection_is_closed() {
    let forwarder = Forwarder::start();
    for sent in [
        &b"u\x00\x05query"[..],
        b"t\x00\x05query",
        b"x",
        b"\x00\xff\xff",
        // Longer than any datagram.
        &[&b"u\xff\xff"[..], &[0; 65535]].concat(),
    ] {
        let mut guest = forwarder.connect();
        // The other side may have closed already.
        let _ = guest.write_all(sent);
        // Closed in order, or by a reset where bytes were left unread.
        let _ = guest.read(&mut [0]).map(|count| assert_eq!(count, 0));
    }
    let guest = forwarder.connect();
    guest.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(guest), b"");
}

#[test]
fn connections_beyond_the_limit_wait_and_are_served_when_others_go() {
    let forwarder = Forwarder::start();
    let server = forwarder.datagram_server();
    let mut idle: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| forwarder.connect()).collect();
    let mut guest = forwarder.connect();
    guest.write_all(b"u\x00\x04late").unwrap();
    let short = Duration::from_millis(200);
    server.set_read_timeout(Some(short)).unwrap();
    server.recv_from(&mut [0; 64]).unwrap_err();
    idle.pop();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
    server.send_to(b"ok", client).unwrap();
    assert_eq!(rest(guest), b"\x00\x02ok");
}

#[test]
fn a_forwarder_that_was_killed_leaves_no_socket_in_the_next_ones_way() {
    let forwarder = Forwarder::start();
    let again = forwarder.netns.run(|| start(&forwarder.vsock())).unwrap();
    again.unwrap();
    let server = forwarder.datagram_server();
    let mut guest = forwarder.connect();
    guest.write_all(b"u\x00\x01q").unwrap();
    let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
    server.send_to(b"a", client).unwrap();
    assert_eq!(rest(guest), b"\x00\x01a");
}

#[test]
fn a_server_is_found_on_any_port_of_its_address_and_on_no_other_address() {
    let netns = Netns::create().unwrap();
    let bound = |address| netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    assert!(!is_served(&netns).unwrap());
    let _others = [bound("127.0.0.1:53"), bound("0.0.0.0:5353")];
    assert!(!is_served(&netns).unwrap());
    let _server = bound("127.0.0.11:40001");
    assert!(is_served(&netns).unwrap());
    assert!(!is_served(&Netns::create().unwrap()).unwrap());
}
