use super::*;

use std::net::Ipv4Addr;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

/// A server on a port of the kernel's choice, and the host's ends of the connections that it makes.
async fn server(upstream: &[SocketAddr]) -> (SocketAddr, mpsc::UnboundedReceiver<DuplexStream>) {
    let listening = Listening::bind(Ipv4Addr::LOCALHOST.into()).await.unwrap();
    let address = listening.datagrams.local_addr().unwrap();
    let (sender, connections) = mpsc::unbounded_channel();
    let connect = move || {
        let (guest, host) = tokio::io::duplex(1024);
        let sent = sender.send(host);
        async move {
            sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(guest)
        }
    };
    let (_, upstream) = watch::channel(upstream.to_vec());
    tokio::spawn(listening.serve(Resolver { connect, upstream }));
    (address, connections)
}

async fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn next(connections: &mut mpsc::UnboundedReceiver<DuplexStream>) -> DuplexStream {
    timeout(LIMIT, connections.recv()).await.unwrap().unwrap()
}

async fn read(host: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(LIMIT, host.read_exact(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    bytes
}

#[tokio::test]
async fn datagrams_are_asked_each_on_its_own_and_answered_to_whom_asked() {
    let (address, mut connections) = server(&[]).await;
    let (first, second) = (client(address).await, client(address).await);
    first.send(b"one").await.unwrap();
    let mut to_first = next(&mut connections).await;
    second.send(b"second").await.unwrap();
    let mut to_second = next(&mut connections).await;
    assert_eq!(read(&mut to_first, 6).await, b"u\x00\x03one");
    assert_eq!(read(&mut to_second, 9).await, b"u\x00\x06second");

    let long = vec![b'x'; 5000];
    to_second.write_all(&5000_u16.to_be_bytes()).await.unwrap();
    to_second.write_all(&long).await.unwrap();
    to_first.write_all(b"\x00\x06answer").await.unwrap();
    let mut bytes = vec![0; MAX_MESSAGE];
    let length = timeout(LIMIT, first.recv(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bytes[..length], *b"answer");
    let length = timeout(LIMIT, second.recv(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bytes[..length], long);
}

#[tokio::test]
async fn a_host_that_closes_or_cuts_its_answer_gives_none_and_hurts_no_other() {
    let (address, mut connections) = server(&[]).await;
    let client = client(address).await;
    for cut in [&b""[..], b"\x00", b"\x00\x05cut"] {
        client.send(b"lost").await.unwrap();
        let mut host = next(&mut connections).await;
        host.write_all(cut).await.unwrap();
    }
    client.send(b"last").await.unwrap();
    let mut host = next(&mut connections).await;
    host.write_all(b"\x00\x02ok").await.unwrap();
    let mut bytes = [0; 16];
    let length = timeout(LIMIT, client.recv(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bytes[..length], *b"ok");
}

#[tokio::test]
async fn the_queries_of_a_connection_are_answered_in_their_order() {
    let (address, mut connections) = server(&[]).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"\x00\x03one\x00\x03two").await.unwrap();
    client.shutdown().await.unwrap();
    for (asked, answer) in [
        (b"t\x00\x03one", b"\x00\x02AB"),
        (b"t\x00\x03two", b"\x00\x02CD"),
    ] {
        let mut host = next(&mut connections).await;
        assert_eq!(read(&mut host, 6).await, asked);
        host.write_all(answer).await.unwrap();
    }
    let mut answered = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut answered))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answered, b"\x00\x02AB\x00\x02CD");
}

#[tokio::test]
async fn queries_without_answers_keep_neither_streams_nor_each_other_for_ever() {
    let (address, mut connections) = server(&[]).await;
    let client = client(address).await;
    let mut waiting = Vec::new();
    for _ in 0..MAX_QUERIES {
        client.send(b"query").await.unwrap();
        waiting.push(next(&mut connections).await);
    }
    client.send(b"one more").await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"\x00\x06stream").await.unwrap();
    let mut host = next(&mut connections).await;
    assert_eq!(
        read(&mut host, 9).await,
        b"t\x00\x06stream",
        "before the query that is too much"
    );
    drop(waiting.pop());
    let mut host = next(&mut connections).await;
    assert_eq!(read(&mut host, 11).await, b"u\x00\x08one more");
}

/// A message with this id and response code.
fn message(id: u8, code: u8) -> Vec<u8> {
    let mut message = vec![0; 12];
    message[1] = id;
    message[3] = code;
    message
}

/// What comes back by UDP when the embedded server and an upstream server answer so; without an answer they are silent.
async fn race(embedded: Option<u8>, upstream: Option<u8>) -> u8 {
    let upstream_socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, mut connections) = server(&[upstream_socket.local_addr().unwrap()]).await;
    let client = client(address).await;
    client.send(&message(7, 0)).await.unwrap();
    let mut host = next(&mut connections).await;
    read(&mut host, 15).await;
    if let Some(code) = embedded {
        host.write_all(&[&[0, 12], &message(7, code)[..]].concat())
            .await
            .unwrap();
    }
    let mut bytes = [0; 64];
    if let Some(code) = upstream {
        let received = timeout(LIMIT, upstream_socket.recv_from(&mut bytes)).await;
        let (_, asking) = received.unwrap().unwrap();
        // An answer to something else comes first.
        for answer in [message(8, 0), message(7, code)] {
            upstream_socket.send_to(&answer, asking).await.unwrap();
        }
    }
    let received = timeout(LIMIT, client.recv(&mut bytes)).await;
    assert_eq!(received.unwrap().unwrap(), 12);
    assert_eq!(bytes[1], 7);
    bytes[3]
}

#[tokio::test]
async fn what_the_embedded_server_does_not_know_is_asked_upstream() {
    const KNOWN: u8 = 0;
    const FAILED: u8 = 2;
    const UNKNOWN: u8 = 3;
    assert_eq!(race(Some(KNOWN), None).await, KNOWN);
    assert_eq!(race(Some(UNKNOWN), None).await, UNKNOWN);
    assert_eq!(race(None, Some(KNOWN)).await, KNOWN);
    assert_eq!(race(None, Some(UNKNOWN)).await, UNKNOWN);
    assert_eq!(race(Some(FAILED), Some(KNOWN)).await, KNOWN);
    assert_eq!(race(Some(FAILED), Some(UNKNOWN)).await, UNKNOWN);
    assert_eq!(race(Some(FAILED), Some(FAILED)).await, FAILED);
}
