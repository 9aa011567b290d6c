//! Open files that the caller leaves for a container's process: `--preserve-fds`, and sockets of a service manager. The
//! same cases hold for runc, but for what cannot be handed into a VM.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use hull_tests::command::{finish, wait};
use hull_tests::{Bundle, Hull, LeakCheck};

const RUNTIMES: [&str; 2] = ["runc", "hull"];

/// `command` run by a shell that opens files for it first, by `redirections`. What the shell has as its input, it may make
/// one of them.
fn with_files(redirections: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{redirections} exec \"$@\""), "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    shell
}

#[test]
fn files_and_pipes_are_read_and_written_by_their_numbers() {
    for program in RUNTIMES {
        eprintln!("with {program}");
        let leaks = LeakCheck::new();
        let runtime = Hull::of_program(program);
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("in"), "asked\n").unwrap();
        let open = format!("exec 3<{} 4>{} 5</dev/null;", path("in"), path("out"));
        let answer = "cat <&5; read word <&3; echo $word and $1 >&4; ls /proc/self/fd; exit 7";
        // A listing has its directory open, as the number after the last.
        let listed = "0\n1\n2\n3\n4\n5\n6\n";
        let bundle = Bundle::new(&["sh", "-c", answer, "sh", "run"]);
        let words = ["run", "--preserve-fds", "3", "--bundle", bundle.arg(), "c"];
        let run = with_files(&open, &runtime.command(&words));
        let finished = finish(&mut { run }, Vec::new()).expect(7);
        assert_eq!(finished.text(), listed);
        assert_eq!(fs::read_to_string(path("out")).unwrap(), "asked and run\n");

        let bundle = Bundle::new(&["sleep", "1000"]);
        let _output = runtime.create(&bundle, "d");
        let _ = runtime.hull(&["start", "d"]).expect(0);
        let words = [
            "exec",
            "--preserve-fds",
            "3",
            "d",
            "sh",
            "-c",
            answer,
            "sh",
            "exec",
        ];
        let exec = with_files(&open, &runtime.command(&words));
        let finished = finish(&mut { exec }, Vec::new()).expect(7);
        assert_eq!(finished.text(), listed);
        assert_eq!(fs::read_to_string(path("out")).unwrap(), "asked and exec\n");

        let _ = runtime.hull(&["delete", "--force", "d"]).expect(0);
        leaks.nothing_left(&runtime.root());
    }
}

/// A shell's redirection of its input, which is a socket, to the number 3.
const INPUT_IS_3: &str = "exec 3<&0 </dev/null;";

#[test]
fn a_connected_socket_goes_both_ways_and_ends_both_ways() {
    for program in RUNTIMES {
        eprintln!("with {program}");
        let leaks = LeakCheck::new();
        let runtime = Hull::of_program(program);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let bundle = Bundle::shell("cat <&3; echo the end >&3");
        let words = ["run", "--preserve-fds", "1", "--bundle", bundle.arg(), "c"];
        let mut run = with_files(INPUT_IS_3, &runtime.command(&words));
        let run = run
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped());
        let mut child = run.spawn().unwrap();
        // The shell's.
        run.stdin(Stdio::null());
        ours.write_all(b"words\n").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut heard)
            .unwrap();
        assert_eq!(heard, "words\n");
        assert_eq!(wait(&mut child), Some(0));
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "the end\n");
        leaks.nothing_left(&runtime.root());
    }
}

/// A service that answers three connections to the sockets that it was started with, one after the other.
const SERVICE: &str = r#"
    open(my $listener, "+<&=", 3) or die "3: $!";
    for (1..3) {
        accept(my $client, $listener) or die "accept: $!";
        my $line = <$client>;
        print $client "$ENV{LISTEN_FDS} for $ENV{LISTEN_PID}, $$: $line";
        close $client;
    }
"#;

/// Starts a container that is such a service, with `listener` to listen on.
fn service(runtime: &Hull, listener: impl Into<OwnedFd>) -> (Bundle, Child) {
    let bundle = Bundle::new(&["/usr/bin/perl", "-e", SERVICE]);
    bundle.add_program("/usr/bin/perl");
    let words = ["run", "--bundle", bundle.arg(), "service"];
    let is_service = format!("{INPUT_IS_3} LISTEN_FDS=1 LISTEN_PID=$$");
    let mut run = with_files(&is_service, &runtime.command(&words));
    let child = run.stdin(Stdio::from(listener.into())).spawn().unwrap();
    (bundle, child)
}

/// Asks as a client does that waits for the whole answer.
fn asked(mut client: impl Read + Write, word: &str) -> String {
    writeln!(client, "{word}").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_service_listens_on_the_socket_that_its_manager_has_opened() {
    for program in RUNTIMES {
        eprintln!("with {program}");
        let leaks = LeakCheck::new();
        let runtime = Hull::of_program(program);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A client that is there before the service, as is usual.
        let first = TcpStream::connect(address).unwrap();
        let (_bundle, mut child) = service(&runtime, listener.try_clone().unwrap());
        assert_eq!(asked(first, "first"), "1 for 1, 1: first\n");
        for word in ["second", "third"] {
            let answer = asked(TcpStream::connect(address).unwrap(), word);
            assert_eq!(answer, format!("1 for 1, 1: {word}\n"));
        }
        assert_eq!(wait(&mut child), Some(0));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (_bundle, mut child) = service(&runtime, listener);
        for word in ["one", "two", "three"] {
            let answer = asked(UnixStream::connect(&path).unwrap(), word);
            assert_eq!(answer, format!("1 for 1, 1: {word}\n"));
        }
        assert_eq!(wait(&mut child), Some(0));
        leaks.nothing_left(&runtime.root());
    }
}

#[test]
fn what_is_no_stream_of_bytes_is_refused_by_its_name() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("both");
    File::create(&path).unwrap();
    let words = ["run", "--preserve-fds", "1", "--bundle", bundle.arg(), "c"];
    for (open, reason) in [
        (
            format!("exec 3<>{};", path.display()),
            "both read and written",
        ),
        ("exec 3</;".into(), "a directory"),
        ("exec 3</dev/zero;".into(), "a device"),
        ("exec 3<&-;".into(), "open file 3"),
    ] {
        let mut run = with_files(&open, &hull.command(&words));
        finish(&mut run, Vec::new()).expect_error(&[reason]);
    }
    let words = ["run", "--preserve-fds", "33", "--bundle", bundle.arg(), "c"];
    hull.hull(&words).expect_error(&["33 open files", "32"]);
}
