//! Many containers, many processes, and readers that do not read.
//!
//! A run of all cases has time for a part of the load; `HULL_LOAD=full` asks for all of it.

use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hull_tests::command::{eventually, wait};
use hull_tests::hull::pids_of;
use hull_tests::{Bundle, Hull, LeakCheck, Subreaper};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

/// How many there are to be of what a full load has `full` of.
pub(crate) fn load(part: usize, full: usize) -> usize {
    match std::env::var("HULL_LOAD") {
        Ok(load) if load == "full" => full,
        Ok(load) => panic!("HULL_LOAD={load}: it is full, or not set"),
        Err(_) => part,
    }
}

/// Calls `work` with each number below `count`, by `callers` threads at once.
pub(crate) fn in_parallel(callers: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

fn small(bundle: Bundle) -> Bundle {
    bundle.with(|config| config["annotations"] = json!({ "dev.hull.memory_mib": "128" }))
}

/// Those with an even number are `run`, the others made, started and deleted, their proxy reaped as an engine does.
#[test]
fn containers_of_many_callers_end_with_their_codes_and_leave_nothing() {
    let leaks = LeakCheck::with_cgroups();
    // So many guests boot at once only as fast as the host has CPUs for them.
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "[sandbox]\nboot_timeout_s = 200\n").unwrap();
    let hull = Hull::with_options(&["--config", config.path().to_str().unwrap()]);
    let start = Instant::now();
    let (count, callers) = (load(6, 50), load(3, 8));
    let subreaper = Subreaper::new();
    in_parallel(callers, count, |number| {
        let id = format!("load{number}");
        // None that hull fails with.
        let code = i32::try_from(number + 10).unwrap();
        let bundle = small(Bundle::shell(&format!("echo {number}; exit {code}")));
        let output = if number % 2 == 0 {
            hull.run(&bundle, &id).expect(code).text()
        } else {
            let output = hull.create(&bundle, &id);
            let proxy = Pid::from_raw(hull.state(&id)["pid"].as_i64().unwrap().try_into().unwrap());
            let _ = hull.hull(&["start", &id]).expect(0);
            assert_eq!(
                waitpid(proxy, None).unwrap(),
                WaitStatus::Exited(proxy, code)
            );
            let _ = hull.hull(&["delete", &id]).expect(0);
            fs::read_to_string(output).unwrap()
        };
        assert_eq!(output, format!("{number}\n"));
    });
    drop(subreaper);
    leaks.nothing_left(&hull.root());
    println!(
        "{count} containers by {callers} callers: {:?}",
        start.elapsed()
    );
}

/// The descriptors of a process.
fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process")
        .count()
}

/// The processes that a container sees, but for the one that lists them.
fn processes(hull: &Hull, id: &str) -> Vec<String> {
    let listed = hull
        .hull(&["exec", id, "ps", "-o", "pid,stat,args"])
        .expect(0)
        .text();
    let lines = listed
        .lines()
        .filter(|line| !line.contains("pid,stat,args"));
    lines.map(str::to_owned).collect()
}

/// 24 processes take some 15 seconds in the test bed, 200 two minutes.
#[test]
fn execs_end_with_their_codes_and_leave_no_process_and_no_descriptor() {
    let hull = Hull::new();
    let bundle = small(Bundle::new(&["sleep", "10000"]));
    let _output = hull.create(&bundle, "execs");
    let _ = hull.hull(&["start", "execs"]).expect(0);
    let pids = pids_of(&hull.root(), "execs");
    let proxy = i32::try_from(hull.state("execs")["pid"].as_i64().unwrap()).unwrap();
    let holders = [pids.vmm, pids.monitor, proxy];
    let processes_before = processes(&hull, "execs");
    let leaks = LeakCheck::with_cgroups();
    let held = || holders.map(descriptors);
    let exec = |number: usize| {
        let code = i32::try_from(number % 256).unwrap();
        let script = format!("echo {number}; exit {code}");
        let finished = hull
            .hull(&["exec", "execs", "sh", "-c", &script])
            .expect(code);
        assert_eq!(finished.text(), format!("{number}\n"));
    };
    // The guest keeps the files open that it has used once.
    exec(0);
    let before = held();

    let start = Instant::now();
    let count = load(24, 200);
    in_parallel(4, count, exec);
    println!("{count} execs: {:?}", start.elapsed());

    leaks.nothing_more();
    let mut after = [0; 3];
    let same = eventually(|| {
        after = held();
        after.iter().zip(before).all(|(now, then)| *now <= then)
    });
    assert!(
        same,
        "descriptors of VMM, monitor, proxy: {before:?}, then {after:?}"
    );
    assert_eq!(processes(&hull, "execs"), processes_before);
    let _ = hull.hull(&["delete", "--force", "execs"]).expect(0);
}

/// A process of hull whose output nobody reads, and which writes as much as it can.
fn unread(hull: &Hull, arguments: &[&str]) -> Child {
    hull.command(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("hull")
}

#[test]
fn a_reader_that_never_reads_blocks_nobody_else() {
    let leaks = LeakCheck::with_cgroups();
    let hull = Hull::new();
    let bundle = small(Bundle::shell("touch /started; exec yes"));
    let mut container = unread(&hull, &["run", "--bundle", bundle.arg(), "unread"]);
    assert!(eventually(|| bundle.rootfs().join("started").exists()));
    let mut exec = unread(
        &hull,
        &["exec", "unread", "sh", "-c", "touch /also; exec yes"],
    );
    assert!(eventually(|| bundle.rootfs().join("also").exists()));

    hull.await_status("unread", "running");
    let script = "dd if=/dev/zero bs=65536 count=16 2>/dev/null; exit 3";
    let finished = hull.hull(&["exec", "unread", "sh", "-c", script]).expect(3);
    assert_eq!(finished.stdout.len(), 1 << 20);
    let _ = hull.hull(&["ps", "unread"]).expect(0);
    let _ = hull.hull(&["pause", "unread"]).expect(0);
    let _ = hull.hull(&["resume", "unread"]).expect(0);
    assert_eq!(hull.state("unread")["status"], "running");

    // They end though nobody has taken what they wrote.
    let _ = hull.hull(&["kill", "unread", "KILL"]).expect(0);
    assert_eq!(wait(&mut container), Some(137));
    assert_eq!(wait(&mut exec), Some(137));
    leaks.nothing_left(&hull.root());
    let mut some = [0; 2];
    container
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut some)
        .unwrap();
    assert_eq!(&some, b"y\n");
}
