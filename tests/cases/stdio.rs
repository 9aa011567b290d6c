//! Standard input, output and error: byte-exact, and with their ends.

use std::io::{Read, Write};
use std::process::Stdio;

use hull_tests::{Bundle, Hull};

/// Bytes that repeat nowhere soon, of every value.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

#[test]
fn a_mebibyte_through_cat_comes_back_equal() {
    let hull = Hull::new();
    let bytes = noise(1024 * 1024);
    let bundle = Bundle::new(&["cat"]);
    let finished = hull
        .hull_with_input(&["run", "--bundle", bundle.arg(), "cat"], bytes.clone())
        .expect(0);
    assert_eq!(finished.stdout.len(), bytes.len());
    assert!(finished.stdout == bytes, "the bytes differ");
}

#[test]
fn standard_error_keeps_apart_and_exact() {
    let hull = Hull::new();
    let bundle = Bundle::shell("cat | tee /dev/stderr");
    bundle.add_file("/marker", b"", 0o644);
    let bytes: Vec<u8> = noise(200_000).into_iter().map(|byte| byte & 0x7f).collect();
    let finished = hull
        .hull_with_input(&["run", "--bundle", bundle.arg(), "tee"], bytes.clone())
        .expect(0);
    assert!(finished.stdout == bytes, "stdout differs");
    assert!(finished.stderr.as_bytes() == bytes, "stderr differs");
}

#[test]
fn the_end_of_input_reaches_the_process_and_not_before() {
    let hull = Hull::new();
    let bundle = Bundle::shell("while read line; do echo got $line; done; echo end");
    let mut child = hull
        .command(&["run", "--bundle", bundle.arg(), "eof"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(b"one\n").unwrap();
    let mut first = [0; 8];
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"got one\n");
    assert!(
        child.try_wait().unwrap().is_none(),
        "it still waits for input"
    );
    input.write_all(b"two\n").unwrap();
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got two\nend\n");
    assert_eq!(hull_tests::command::wait(&mut child), Some(0));
}

#[test]
fn output_written_just_before_the_exit_is_not_lost() {
    let hull = Hull::new();
    let bundle = Bundle::shell("dd if=/dev/zero bs=65536 count=16 2>/dev/null; exit 5");
    let finished = hull.run(&bundle, "last-words").expect(5);
    assert_eq!(finished.stdout.len(), 1024 * 1024);
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let hull = Hull::new();
    let bundle = Bundle::shell("yes; echo $? >&2");
    let mut child = hull
        .command(&["run", "--bundle", bundle.arg(), "pipe"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut some = [0; 4096];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert!(
        hull_tests::command::wait(&mut child).is_some(),
        "yes ends by SIGPIPE"
    );
}

#[test]
fn a_created_container_reads_the_input_of_create() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["cat"]);
    let input = bundle.path().join("input");
    let output = bundle.path().join("output");
    std::fs::write(&input, b"through a file").unwrap();
    let status = hull
        .command(&["create", "--bundle", bundle.arg(), "input"])
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(std::fs::File::create(&output).unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let _ = hull.hull(&["start", "input"]).expect(0);
    hull.await_status("input", "stopped");
    assert_eq!(std::fs::read(&output).unwrap(), b"through a file");
    let _ = hull.hull(&["delete", "input"]).expect(0);
}
