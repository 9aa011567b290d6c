use super::messages::{FromProxy, ToProxy};
use super::stdio::{Output, Untaken, carry_input};
use super::*;
use crate::logging::LogSettings;
use crate::sandbox::share::Share;
use crate::timing::Moment;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
const SILENCE: Duration = Duration::from_millis(200);

fn bytes() -> Vec<u8> {
    (0u32..)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(MIB)
        .collect()
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (File::from(reader), writer)
}

#[test]
fn an_output_is_carried_byte_for_byte_with_its_end() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (mut reader, writer) = pipe();
    let first = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&first);
    let output = Output::carry("stdout", ours, writer, move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    let guest = thread::spawn(move || {
        guest.write_all(&bytes()).unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        guest
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    output.finish(Untaken::Kept);
    assert_eq!(first.load(Ordering::SeqCst), 1);
    drop(guest.join().unwrap());
}

#[test]
fn lines_of_a_terminal_end_as_the_program_has_it_where_no_terminal_is() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (mut reader, writer) = pipe();
    let output = Output::carry_terminal(ours, writer, || {}).unwrap();
    let mut received = vec![0; 9];
    guest.write_all(b"one\r\ntwo\rtw\r").unwrap();
    reader.read_exact(&mut received).unwrap();
    assert_eq!(received, b"one\ntwo\rt");
    guest.write_all(b"\n\r\r\nlast\r").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    received.clear();
    reader.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"w\n\r\nlast\r");
    output.finish(Untaken::Kept);
}

#[test]
fn an_input_is_carried_byte_for_byte_with_its_end() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (reader, writer) = pipe();
    carry_input(reader.into(), ours).unwrap();
    let host = thread::spawn(move || File::from(writer).write_all(&bytes()).unwrap());
    let mut received = Vec::new();
    guest.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    host.join().unwrap();
}

#[test]
fn a_non_blocking_sink_and_a_slow_reader_lose_nothing() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (mut reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let output = Output::carry("stdout", ours, writer.into(), || {}).unwrap();
    let guest = thread::spawn(move || guest.write_all(&bytes()).unwrap());
    thread::sleep(Duration::from_millis(100));
    let finished = thread::spawn(move || output.finish_within(Untaken::Kept, SILENCE));
    // Its writer is blocked, not silent.
    thread::sleep(SILENCE * 4);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    guest.join().unwrap();
    finished.join().unwrap();
}

#[test]
fn an_output_whose_end_is_not_told_is_given_up() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (mut reader, writer) = pipe();
    let output = Output::carry("stdout", ours, writer, || {}).unwrap();
    guest.write_all(b"last words").unwrap();
    let begun = Instant::now();
    output.finish_within(Untaken::Kept, SILENCE);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let mut received = String::new();
    reader.read_to_string(&mut received).unwrap();
    assert_eq!(received, "last words");
}

#[test]
fn a_reader_that_leaves_is_told_to_the_guest() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (reader, writer) = pipe();
    let output = Output::carry("stdout", ours, writer, || {}).unwrap();
    drop(reader);
    while guest.write_all(&[0; 4096]).is_ok() {}
    output.finish(Untaken::Kept);
}

#[test]
fn what_a_killed_process_wrote_does_not_wait_for_a_reader_that_takes_nothing() {
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let (mut reader, writer) = pipe();
    let output = Output::carry("stdout", ours, writer, || {}).unwrap();
    let guest = thread::spawn(move || guest.write_all(&bytes()).unwrap());
    output.finish(Untaken::Dropped);
    // It takes something after all, and the rest still comes as long as there is somebody to carry it.
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    guest.join().unwrap();
}

#[test]
fn messages_are_read_back_as_they_were_sent() {
    let setup = ToProxy::Setup(Setup {
        streams: Streams::Console {
            socket: "/s".into(),
            size: Some((24, 80)),
        },
        own_session: true,
        log: LogSettings {
            path: Some("/l".into()),
            json: true,
            debug: false,
        },
        origin: Moment::now(),
        own_mounts: true,
        files: vec![FileKind::Input],
    });
    let attach = ToProxy::Attach(Attach {
        root: "/run/hull".into(),
        sandbox_id: "s".parse().unwrap(),
        container_id: "c".parse().unwrap(),
        exec_id: String::new(),
        files: vec![Share::rootfs(&"c".parse().unwrap(), Path::new("/rootfs"))],
        shows_processes: true,
        notify: Some("/run/s".into()),
    });
    for message in [setup, attach, ToProxy::Commit] {
        let text = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<ToProxy>(&text).unwrap(), message);
    }
    let failed = FromProxy::Failed {
        message: "why".into(),
    };
    let text = serde_json::to_vec(&failed).unwrap();
    assert_eq!(serde_json::from_slice::<FromProxy>(&text).unwrap(), failed);
}

#[test]
fn signals_about_the_proxy_itself_are_not_for_the_process() {
    for number in [libc::SIGCHLD, libc::SIGPIPE, libc::SIGURG, libc::SIGWINCH] {
        assert!(!signals::is_for_process(number));
    }
    for number in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, 34] {
        assert!(signals::is_for_process(number));
    }
}
