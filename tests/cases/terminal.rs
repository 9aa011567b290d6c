//! Terminals: by `run` on a terminal, and by `create` with a console socket.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use hull_tests::{Bundle, Hull};
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;

fn terminal_bundle(script: &str) -> Bundle {
    Bundle::shell(script).with(|config| config["process"]["terminal"] = json!(true))
}

/// Reads until `wanted` has come, and gives all that came.
fn read_until(master: &mut std::fs::File, wanted: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 1024];
    while !text.contains(wanted) {
        match master.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    assert!(text.contains(wanted), "{wanted:?} did not come: {text:?}");
    text
}

fn resize(master: &std::fs::File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is a terminal's, and the ioctl reads a winsize that outlives the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(result, 0);
}

#[test]
fn run_on_a_terminal_gives_the_container_one_that_follows_its_size() {
    let hull = Hull::new();
    let bundle = terminal_bundle("tty; stty size; read word; echo got $word; stty size; exit 6");
    let size = Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).unwrap();
    let mut command = std::process::Command::new("setsid");
    command
        .args(["--ctty", "--wait", "hull", "--root"])
        .arg(hull.root());
    command.args(["run", "--bundle", bundle.arg(), "tty"]);
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    drop(command);
    let mut master = std::fs::File::from(pty.master);
    drop(pty.slave);
    read_until(&mut master, "/dev/pts/0");
    read_until(&mut master, "33 101");
    resize(&master, 44, 120);
    // The size travels beside the bytes: it must have arrived before the word does.
    std::thread::sleep(std::time::Duration::from_secs(3));
    master.write_all(b"hello\n").unwrap();
    let text = read_until(&mut master, "44 120");
    assert!(text.contains("got hello"), "{text:?}");
    assert_eq!(hull_tests::command::wait(&mut child), Some(6));
}

/// The descriptor that is sent to a console socket.
fn receive_master(listener: &UnixListener) -> std::fs::File {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            #[allow(unsafe_code)]
            // SAFETY: the kernel has just made this descriptor for us.
            return unsafe { OwnedFd::from_raw_fd(fds[0]) }.into();
        }
    }
    panic!("no descriptor came");
}

#[test]
fn create_and_exec_send_the_master_over_the_console_socket() {
    for runtime in ["runc", "hull"].map(Hull::of_program) {
        let bundle = terminal_bundle("echo on a terminal; read word; echo got $word");
        let socket = bundle.path().join("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let master_of = |words: &[&str], last: &[&str]| {
            let mut command = runtime.command(words);
            command.arg("--console-socket").arg(&socket).args(last);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let mut command = command.spawn().unwrap();
            let master = receive_master(&listener);
            assert_eq!(hull_tests::command::wait(&mut command), Some(0));
            master
        };
        let mut master = master_of(&["create", "--bundle", bundle.arg()], &["console"]);
        let _ = runtime.hull(&["start", "console"]).expect(0);
        read_until(&mut master, "on a terminal");
        let script = "tty; read word; echo heard $word";
        let last = ["--detach", "--tty", "console", "sh", "-c", script];
        let mut second = master_of(&["exec"], &last);
        read_until(&mut second, "/dev/pts/1");
        second.write_all(b"more\n").unwrap();
        read_until(&mut second, "heard more");
        master.write_all(b"words\n").unwrap();
        read_until(&mut master, "got words");
        runtime.await_status("console", "stopped");
        let _ = runtime.hull(&["delete", "console"]).expect(0);
    }
}

#[test]
fn a_console_socket_without_a_terminal_and_the_other_way_round_are_refused() {
    let hull = Hull::new();
    let plain = Bundle::new(&["true"]);
    hull.hull(&[
        "create",
        "--bundle",
        plain.arg(),
        "--console-socket",
        "/tmp/none",
        "plain",
    ])
    .expect_error(&["console", "tty"]);
    let terminal = terminal_bundle("true");
    hull.hull(&["create", "--bundle", terminal.arg(), "nosocket"])
        .expect_error(&["console"]);
}

/// The runtime with `words`, for a shell.
fn line(runtime: &Hull, words: &[&str]) -> String {
    let command = runtime.command(words);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    words.join(" ")
}

#[test]
fn a_foreground_command_finds_its_terminal_behind_other_streams() {
    for runtime in ["runc", "hull"].map(Hull::of_program) {
        // runc tells the size only when the program runs.
        let bundle =
            terminal_bundle("tty; until stty size; do sleep 0.1; done 2>/dev/null; exit 6");
        let run = line(&runtime, &["run", "--bundle", bundle.arg(), "c"]);
        let nowhere = hull_tests::run("setsid", &["--wait", "sh", "-c", &run]).expect(1);
        assert!(nowhere.stderr.contains("open /dev/tty"), "{nowhere:?}");

        let output = bundle.path().join("output");
        let redirected = format!("</dev/null >{} 2>&1", output.display());
        let at_terminal = format!("stty rows 33 cols 101; {run} {redirected}");
        let _ = hull_tests::run("script", &["-qec", &at_terminal, "/dev/null"]).expect(6);
        let text = std::fs::read_to_string(output).unwrap();
        assert_eq!(text, "/dev/pts/0\n33 101\n");
    }
}

#[test]
fn exec_on_a_terminal() {
    for runtime in ["runc", "hull"].map(Hull::of_program) {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let _ = runtime.create(&bundle, "exectty");
        let _ = runtime.hull(&["start", "exectty"]).expect(0);
        let exec = line(&runtime, &["exec", "--tty", "exectty"]);
        let exec = format!("{exec} sh -c 'tty; exit 3'");
        for _ in 0..2 {
            // The one before may still be about to go.
            assert!(hull_tests::command::eventually(|| {
                let finished = hull_tests::run("script", &["-qec", &exec, "/dev/null"]).expect(3);
                finished.text().contains("/dev/pts/0")
            }));
        }
        let nowhere = hull_tests::run("setsid", &["--wait", "sh", "-c", &exec]).expect(255);
        assert!(nowhere.stderr.contains("open /dev/tty"), "{nowhere:?}");
    }
}
