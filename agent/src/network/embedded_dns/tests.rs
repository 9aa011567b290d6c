use super::*;

use std::net::Ipv4Addr;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

/// A server on a port of the kernel's choice, and the host's ends of the connections that it makes.
async fn server() -> (SocketAddr, mpsc::UnboundedReceiver<DuplexStream>) {
    let listening = Listening::bind((Ipv4Addr::LOCALHOST, 0).into())
        .await
        .unwrap();
    let address = listening.datagrams.local_addr().unwrap();
    let (sender, connections) = mpsc::unbounded_channel();
    tokio::spawn(listening.serve(move || {
        let (guest, host) = tokio::io::duplex(1024);
        let sent = sender.send(host);
        async move {
            sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(guest)
        }
    }));
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
    let (address, mut connections) = server().await;
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
    let (address, mut connections) = server().await;
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
async fn a_connection_is_carried_both_ways_with_its_ends() {
    let (address, mut connections) = server().await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"\x00\x03one\x00\x03two").await.unwrap();
    client.shutdown().await.unwrap();
    let mut host = next(&mut connections).await;
    let mut asked = Vec::new();
    timeout(LIMIT, host.read_to_end(&mut asked))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(asked, b"t\x00\x03one\x00\x03two");
    host.write_all(b"\x00\x02AB").await.unwrap();
    drop(host);
    let mut answered = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut answered))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answered, b"\x00\x02AB");
}

#[tokio::test]
async fn queries_without_answers_keep_neither_streams_nor_each_other_for_ever() {
    let (address, mut connections) = server().await;
    let client = client(address).await;
    let mut waiting = Vec::new();
    for _ in 0..MAX_QUERIES {
        client.send(b"query").await.unwrap();
        waiting.push(next(&mut connections).await);
    }
    client.send(b"one more").await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"stream").await.unwrap();
    let mut host = next(&mut connections).await;
    assert_eq!(
        read(&mut host, 7).await,
        b"tstream",
        "before the query that is too much"
    );
    drop(waiting.pop());
    let mut host = next(&mut connections).await;
    assert_eq!(read(&mut host, 11).await, b"u\x00\x08one more");
}
