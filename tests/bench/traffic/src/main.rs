//! Measures the network between two ends: `traffic serve` at one, `traffic measure ADDRESS SECONDS` at the other.
//!
//! `measure` prints a line for each figure, its name and its value. The kinds of traffic are those of netperf and
//! iperf: streams, request and response, connect and close, and datagrams of 64 bytes. One program for all of them,
//! static and without any configuration, so that it also runs as the only program of a guest.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

const PORT: u16 = 7000;
/// A write of a stream.
const BLOCK: usize = 128 * 1024;
/// What a datagram carries; its first eight bytes are its number.
const DATAGRAM: usize = 64;
/// What the server may have waiting of datagrams, in bytes.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How long the server may be silent: a guest that hangs must not hang the measurement of the others.
const SILENCE: Duration = Duration::from_secs(60);
/// How long datagrams may be under way after the last was sent.
const SETTLE: Duration = Duration::from_millis(500);

/// The first byte of each connection: what the server is to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    /// Read all, then answer with one byte.
    Sink = b's',
    /// Write until the client goes away.
    Source = b'S',
    /// Answer each byte with one.
    Echo = b'e',
    /// Answer with the counts of datagrams, and begin anew.
    Count = b'c',
}

impl Request {
    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        [Self::Sink, Self::Source, Self::Echo, Self::Count]
            .into_iter()
            .find(|request| *request as u8 == byte[0])
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve"] => Ok(serve()?),
        ["measure", address, seconds] => {
            let server = SocketAddr::new(address.parse()?, PORT);
            Ok(measure(server, Duration::from_secs(seconds.parse()?))?)
        }
        _ => Err("usage: traffic serve | traffic measure ADDRESS SECONDS".into()),
    }
}

/// Datagrams that have come.
#[derive(Debug, Default)]
struct Datagrams {
    received: AtomicU64,
    /// Those that came after one with a higher number.
    reordered: AtomicU64,
    /// The highest number and one.
    next: AtomicU64,
}

fn serve() -> io::Result<()> {
    // Of both versions of IP.
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let listener = TcpListener::bind(any)?;
    let socket = UdpSocket::bind(any)?;
    // Beyond the system's limit it takes privileges, which a container may not have.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    let counts = Arc::new(Datagrams::default());
    let counting = Arc::clone(&counts);
    thread::spawn(move || count_datagrams(&socket, &counting));
    println!("ready");
    loop {
        let (stream, _) = listener.accept()?;
        let counts = Arc::clone(&counts);
        thread::spawn(move || answer(stream, &counts));
    }
}

fn count_datagrams(socket: &UdpSocket, counts: &Datagrams) -> io::Result<()> {
    let mut datagram = [0; DATAGRAM];
    loop {
        if socket.recv(&mut datagram)? < DATAGRAM {
            continue;
        }
        let (number, _) = datagram.split_first_chunk().expect("it is longer");
        let number = u64::from_be_bytes(*number);
        let next = counts.next.fetch_max(number + 1, Ordering::Relaxed);
        counts.received.fetch_add(1, Ordering::Relaxed);
        if number < next {
            counts.reordered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn answer(mut stream: TcpStream, counts: &Datagrams) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match Request::read(&mut stream)? {
        Request::Sink => {
            let mut block = vec![0; BLOCK];
            while stream.read(&mut block)? > 0 {}
            stream.write_all(&[0])
        }
        Request::Source => loop {
            stream.write_all(&[0; BLOCK])?;
        },
        Request::Echo => {
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        }
        Request::Count => {
            let received = counts.received.swap(0, Ordering::Relaxed);
            let reordered = counts.reordered.swap(0, Ordering::Relaxed);
            counts.next.store(0, Ordering::Relaxed);
            stream.write_all(&received.to_be_bytes())?;
            stream.write_all(&reordered.to_be_bytes())
        }
    }
}

fn measure(server: SocketAddr, time: Duration) -> io::Result<()> {
    for (name, streams) in [("tcp_1_stream", 1), ("tcp_8_streams", 8)] {
        let (bytes_per_second, resent) = stream_in(server, time, streams)?;
        println!("{name}_in_mbit {:.0}", bytes_per_second * 8e-6);
        println!("{name}_in_resent {resent}");
        let bytes_per_second = stream_out(server, time, streams)?;
        println!("{name}_out_mbit {:.0}", bytes_per_second * 8e-6);
    }
    let full = send_datagrams(server, time, None)?;
    println!("udp_64_full_reordered {}", full.reordered);
    let most = most_datagrams(server, time, full)?;
    println!("udp_64_pps {most:.0}");
    let half = send_datagrams(server, time, Some(most / 2.0))?;
    println!("udp_64_half_lost {}", half.lost);
    println!("udp_64_half_reordered {}", half.reordered);
    let mut round_trips = request_response(server, time)?;
    round_trips.sort_unstable();
    let quantile =
        |percent: usize| round_trips[(round_trips.len() - 1) * percent / 100].as_micros();
    println!("tcp_rr_median_us {}", quantile(50));
    println!("tcp_rr_p99_us {}", quantile(99));
    println!("tcp_crr_per_s {:.0}", connections_per_second(server, time)?);
    Ok(())
}

fn open(server: SocketAddr, request: Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[request as u8])?;
    Ok(stream)
}

/// Towards the server, until it has read all: bytes per second, and segments that were sent again.
fn stream_in(server: SocketAddr, time: Duration, streams: usize) -> io::Result<(f64, u64)> {
    let resent_before = segments_sent_again()?;
    let begin = Instant::now();
    let send = move || -> io::Result<u64> {
        let mut stream = open(server, Request::Sink)?;
        let block = [0; BLOCK];
        let mut bytes = 0;
        while begin.elapsed() < time {
            stream.write_all(&block)?;
            bytes += BLOCK as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.read_exact(&mut [0])?;
        Ok(bytes)
    };
    let bytes: u64 = in_parallel(streams, send)?.iter().sum();
    let bytes_per_second = bytes as f64 / begin.elapsed().as_secs_f64();
    Ok((bytes_per_second, segments_sent_again()? - resent_before))
}

/// From the server: bytes per second.
fn stream_out(server: SocketAddr, time: Duration, streams: usize) -> io::Result<f64> {
    let begin = Instant::now();
    let receive = move || -> io::Result<u64> {
        let mut stream = open(server, Request::Source)?;
        let mut block = vec![0; BLOCK];
        let mut bytes = 0;
        while begin.elapsed() < time {
            bytes += stream.read(&mut block)? as u64;
        }
        Ok(bytes)
    };
    let bytes: u64 = in_parallel(streams, receive)?.iter().sum();
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn in_parallel<T: Send + 'static>(
    count: usize,
    work: impl Fn() -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<Vec<T>> {
    let threads: Vec<_> = (0..count).map(|_| thread::spawn(work.clone())).collect();
    let join = |thread: thread::JoinHandle<io::Result<T>>| thread.join().expect("no panic");
    threads.into_iter().map(join).collect()
}

/// How many TCP segments this network namespace has had to send again since it was made.
fn segments_sent_again() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = lines
        .next()
        .zip(lines.next())
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let value = pairs.find(|(name, _)| *name == "RetransSegs");
    let value = value.and_then(|(_, value)| value.parse().ok());
    value.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What has become of datagrams.
struct Sent {
    sent: u32,
    per_second: f64,
    lost: u64,
    reordered: u64,
}

/// The throughput, as RFC 2544 §26.1 means it: the highest rate, in eighths of what can be sent (`full`), of which all but a
/// thousandth arrive; 0 if an eighth is too much. A receiver that is sent more has less, for it drops what has cost it the
/// most.
fn most_datagrams(server: SocketAddr, time: Duration, full: Sent) -> io::Result<f64> {
    let eighth = full.per_second / 8.0;
    let mut eighths = 8_u8;
    let mut at_rate = full;
    while at_rate.lost > u64::from(at_rate.sent / 1000) {
        eighths -= 1;
        if eighths == 0 {
            return Ok(0.0);
        }
        at_rate = send_datagrams(server, time, Some(eighth * f64::from(eighths)))?;
    }
    Ok(at_rate.per_second)
}

/// Sends datagrams as fast as it goes, or at a rate per second.
fn send_datagrams(server: SocketAddr, time: Duration, rate: Option<f64>) -> io::Result<Sent> {
    read_counts(server)?;
    let socket = UdpSocket::bind(if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })?;
    socket.connect(server)?;
    let interval = rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(1.0)));
    let begin = Instant::now();
    let mut datagram = [0; DATAGRAM];
    let mut sent = 0_u32;
    while begin.elapsed() < time {
        if interval.is_some_and(|interval| begin.elapsed() < interval * sent) {
            thread::yield_now();
            continue;
        }
        datagram[..8].copy_from_slice(&u64::from(sent).to_be_bytes());
        match socket.send(&datagram) {
            Ok(_) => sent += 1,
            // The host's own queue is full.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    let elapsed = begin.elapsed();
    thread::sleep(SETTLE);
    let (received, reordered) = read_counts(server)?;
    Ok(Sent {
        sent,
        per_second: f64::from(sent) / elapsed.as_secs_f64(),
        lost: u64::from(sent).saturating_sub(received),
        reordered,
    })
}

fn read_counts(server: SocketAddr) -> io::Result<(u64, u64)> {
    let mut stream = open(server, Request::Count)?;
    let mut counts = [[0; 8]; 2];
    for count in &mut counts {
        stream.read_exact(count)?;
    }
    let [received, reordered] = counts.map(u64::from_be_bytes);
    Ok((received, reordered))
}

/// One byte there and back, one after the other: how long each took. There is at least one.
fn request_response(server: SocketAddr, time: Duration) -> io::Result<Vec<Duration>> {
    let mut stream = open(server, Request::Echo)?;
    let mut round_trips = Vec::new();
    let begin = Instant::now();
    loop {
        let sent = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        round_trips.push(sent.elapsed());
        if begin.elapsed() >= time {
            return Ok(round_trips);
        }
    }
}

/// Connect, one byte there and back, close.
fn connections_per_second(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < time {
        let mut stream = open(server, Request::Echo)?;
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
