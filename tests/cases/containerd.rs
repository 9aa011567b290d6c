//! containerd runs hull through its shim: `ctr run --runtime io.containerd.hull.v2`. The pods of Kubernetes are in cri.rs,
//! Docker's way to the shim in docker.rs.

use std::path::Path;
use std::process::{Child, Stdio};

use hull_tests::command::{eventually, finish, wait};
use hull_tests::containerd::{Containerd, ROOT, shim_of};
use hull_tests::hull::vmm_of;
use hull_tests::{Finished, LeakCheck, run, run_ok};
use serde_json::Value;

fn nothing_left(leaks: &LeakCheck) {
    leaks.nothing_left(Path::new(ROOT));
}

#[test]
fn a_program_has_its_streams_environment_mounts_and_exit_code() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "shared\n").unwrap();
    let mount = format!(
        "type=bind,src={},dst=/shared,options=rbind:ro",
        shared.path().display()
    );
    // ctr does not tell of the end of an input that is there at once.
    let script =
        "read line; echo $line; cat /shared/file; echo $WORD; grep Seccomp: /proc/self/status; grep -c /empty /proc/mounts
                  echo complaint >&2; echo > /shared/no; exit 3";
    let snapshotter = ["--snapshotter", "native"];
    let options = ["--seccomp", "--env", "WORD=told", "--mount", &mount];
    let empty = ["--mount", "type=tmpfs,dst=/empty"];
    let options = [&snapshotter[..], &options, &empty].concat();
    let mut command = containerd.foreground(&options, &["sh", "-c", script]);
    let finished = finish(&mut command, b"words\n".to_vec()).expect(3);
    assert_eq!(finished.text(), "words\nshared\ntold\nSeccomp:\t2\n1\n");
    assert!(finished.stderr.contains("complaint\n"), "{finished:?}");
    assert!(finished.stderr.contains("Read-only"), "{finished:?}");

    let mut command = containerd.foreground(&[], &["/nosuch"]);
    let _ = finish(&mut command, Vec::new()).expect_error(&["/nosuch"]);
    drop(containerd);
    nothing_left(&leaks);
}

#[test]
fn a_detached_task_is_executed_in_measured_paused_and_killed() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let log = tempfile::tempdir().unwrap();
    let log = log.path().join("directory/log");
    let uri = format!("file://{}", log.display());
    let id = containerd.start(
        &["--memory-limit", "134217728", "--log-uri", &uri],
        "trap 'exit 5' TERM; echo started; while :; do sleep 0.1; done",
    );
    containerd.await_state(&id, "RUNNING");
    let mut logged = String::new();
    let has_started = eventually(|| {
        logged = std::fs::read_to_string(&log).unwrap_or_default();
        logged == "started\n"
    });
    assert!(has_started, "{logged:?}");
    // Its input ends by a call.
    let mut exec = containerd.exec_command(&[], &id, "cat; echo complaint >&2; exit 9");
    let executed = finish(&mut exec, b"words\n".to_vec()).expect(9);
    assert_eq!(executed.text(), "words\n");
    assert!(executed.stderr.contains("complaint\n"), "{executed:?}");

    let (pid, _) = containerd.task(&id).unwrap();
    assert!(containerd.ok(&["task", "ps", &id]).contains(&pid));
    let metrics = containerd.ok(&["task", "metrics", "--format", "json", &id]);
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    assert_eq!(metrics["memory"]["usage_limit"], 134_217_728, "{metrics}");
    let used = metrics["cpu"]["usage_usec"].as_u64();
    assert!(used.is_some_and(|used| used > 0), "{metrics}");

    containerd.ok(&["task", "pause", &id]);
    containerd.await_state(&id, "PAUSED");
    containerd.ok(&["task", "resume", &id]);
    containerd.await_state(&id, "RUNNING");
    let refused = |words: &[&str]| containerd.ctr(&[words, &[&id]].concat());
    let _ = refused(&["task", "checkpoint"]).expect_error(&["not supported by hull"]);
    let _ = refused(&["task", "delete"]).expect_error(&["must be stopped"]);

    containerd.ok(&["task", "kill", &id]);
    containerd.await_state(&id, "STOPPED");
    assert_eq!(containerd.delete(&id), 5);
    nothing_left(&leaks);
}

/// Runs a command of ctr's in a terminal of 33 lines.
#[track_caller]
fn in_terminal(command: &std::process::Command) -> Finished {
    let words: Vec<String> = command
        .get_args()
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let line = format!("stty rows 33 cols 99; ctr {}", words.join(" "));
    run("script", &["-qec", &line, "/dev/null"])
}

#[test]
fn a_terminal_is_given_to_run_and_to_exec_and_a_task_is_attached_to() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    // The size comes with a call of its own.
    let script = "tty; until stty size | grep \"33 99\"; do sleep 0.1; done; exit 5";
    let finished = in_terminal(&containerd.foreground(&["--tty"], &["sh", "-c", script])).expect(5);
    assert!(finished.text().contains("/dev/pts/"), "{finished:?}");

    let id = containerd.start(&[], "read line; echo got $line; exit 8");
    let exec = containerd.exec_command(&["--tty"], &id, "tty; exit 6");
    let finished = in_terminal(&exec).expect(6);
    assert!(finished.text().contains("/dev/pts/"), "{finished:?}");

    let mut attach = containerd.command(&["task", "attach", &id]);
    let attached = finish(&mut attach, b"word\n".to_vec()).expect(8);
    assert_eq!(attached.text(), "got word\n");
    drop(containerd);
    nothing_left(&leaks);
}

#[test]
fn cni_wires_the_namespace_of_the_pid_that_create_has_told() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let script = "ip -4 -o addr show dev eth0 | grep 'inet ' || exit 1
                  gateway=$(ip route | awk '/^default/ { print $3 }')
                  until ping -c 1 -W 5 $gateway; do :; done; exit 3";
    let mut command = containerd.foreground(&["--cni"], &["sh", "-c", script]);
    let _ = finish(&mut command, Vec::new()).expect(3);
    // The plugin leaves it, for other containers.
    run_ok("ip", &["link", "delete", "cni0"]);
    nothing_left(&leaks);
}

/// A program that reads both outputs, and says whose they are.
const LOGGER: &str = r#"#!/bin/sh
log=$1
exec 5>&-
cat <&4 >"$log.err" &
cat <&3 >"$log.out"
wait
echo "$CONTAINER_NAMESPACE $CONTAINER_ID" >"$log"
"#;

#[test]
fn a_reader_that_never_reads_blocks_nobody_else() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let id = containerd.start(&[], "exec sleep 1000");
    containerd.await_state(&id, "RUNNING");
    // ctr reads no more of the exec's FIFO once its own output is full.
    let mut unread = containerd
        .exec_command(&[], &id, "touch /started; exec yes")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(eventually(|| {
        containerd.exec(&id, "test -e /started").code == 0
    }));

    let script = "dd if=/dev/zero bs=65536 count=16 2>/dev/null; exit 3";
    assert_eq!(containerd.exec(&id, script).expect(3).stdout.len(), 1 << 20);
    containerd.ok(&["task", "pause", &id]);
    containerd.ok(&["task", "resume", &id]);
    containerd.ok(&["task", "kill", "--signal", "KILL", &id]);
    containerd.await_state(&id, "STOPPED");
    unread.kill().unwrap();
    wait(&mut unread);
    assert_eq!(containerd.delete(&id), 137);
    nothing_left(&leaks);
}

#[test]
fn a_logger_program_gets_all_that_is_written() {
    use std::os::unix::fs::PermissionsExt;

    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let directory = tempfile::tempdir().unwrap();
    let logger = directory.path().join("logger");
    std::fs::write(&logger, LOGGER).unwrap();
    std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = directory.path().join("log");
    let uri = format!("binary://{}?{}", logger.display(), log.display());
    let script = "seq 20000; echo complaint >&2; exit 7";
    let id = containerd.start(&["--log-uri", &uri], script);
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name));
    assert!(eventually(|| read("log").is_ok()), "the logger has ended");
    assert_eq!(read("log").unwrap(), format!("default {id}\n"));
    assert_eq!(read("log.err").unwrap(), "complaint\n");
    let numbers = read("log.out").unwrap();
    assert_eq!(numbers.lines().count(), 20000);
    assert!(numbers.ends_with("\n20000\n"));
    containerd.await_state(&id, "STOPPED");
    assert_eq!(containerd.delete(&id), 7);
    nothing_left(&leaks);
}

/// What `task`'s root file system is, and the disks of its VM.
fn root_and_disks(containerd: &Containerd, task: &str) -> (String, usize) {
    let shown = containerd.exec(task, "grep ' / ' /proc/mounts; ls /sys/block | grep -c ^vd");
    let text = shown.expect(0).text();
    let (root, disks) = text.trim_end().rsplit_once('\n').unwrap();
    (root.to_owned(), disks.parse().unwrap())
}

#[test]
fn root_file_systems_on_disks_are_the_guest_s_and_go_with_their_tasks() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own_with("blockfile", "default");
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
    let on_host = mounts();
    let snapshotter = ["--snapshotter", "blockfile"];
    let pod = containerd.start(&snapshotter, "exec sleep 100000");
    let (root, disks) = root_and_disks(&containerd, &pod);
    assert!(
        root.starts_with("/dev/vd") && root.contains(" ext4 rw"),
        "{root}"
    );
    assert_eq!(disks, 1);
    assert_eq!(mounts(), on_host);

    // Another one in the same VM, which writes and ends.
    let of_pod = format!("io.kubernetes.cri.sandbox-id={pod}");
    let kind = "io.kubernetes.cri.container-type=container";
    let options = ["--annotation", kind, "--annotation", &of_pod];
    let writes =
        "trap 'echo last > /also; exit 3' TERM; echo word > /file; while :; do sleep 0.1; done";
    let writer = containerd.start(&[&snapshotter[..], &options].concat(), writes);
    assert_eq!(root_and_disks(&containerd, &writer).1, 2);
    let read = "while [ ! -e /file ]; do sleep 0.1; done; cat /file";
    assert_eq!(containerd.exec(&writer, read).expect(0).text(), "word\n");
    containerd.ok(&["task", "kill", "--signal", "TERM", &writer]);
    containerd.await_state(&writer, "STOPPED");
    let deleted = containerd.ctr(&["task", "delete", &writer]);
    assert!(deleted.stderr.contains("exit code 3"), "{deleted:?}");
    assert_eq!(root_and_disks(&containerd, &pod).1, 1);

    // All that it wrote is on the host's image.
    let image = tempfile::tempdir().unwrap();
    let target = image.path().to_str().unwrap();
    let mount = [
        "snapshot",
        "--snapshotter",
        "blockfile",
        "mounts",
        target,
        &writer,
    ];
    run_ok("sh", &["-ec", &containerd.ok(&mount)]);
    let read = std::fs::read_to_string(image.path().join("also"));
    run_ok("umount", &[target]);
    assert_eq!(read.unwrap(), "last\n");

    containerd.ok(&["task", "kill", "--signal", "KILL", &pod]);
    containerd.await_state(&pod, "STOPPED");
    assert_eq!(containerd.delete(&pod), 137);
    drop(containerd);
    nothing_left(&leaks);
}

#[test]
fn a_root_file_system_of_erofs_layers_is_written_to() {
    let leaks = LeakCheck::new();
    let Some(containerd) = Containerd::start_own_of_version_2("erofs") else {
        return;
    };
    let plugins = containerd.ok(&["plugins", "ls"]);
    let is_there = |line: &str| line.contains(" erofs ") && line.trim_end().ends_with("ok");
    assert!(plugins.lines().any(is_there), "{plugins}");
    let script = "echo word > /file; cat /file; ls /bin/busybox; exit 3";
    let mut command = containerd.foreground(&["--snapshotter", "erofs"], &["sh", "-c", script]);
    let finished = finish(&mut command, Vec::new()).expect(3);
    assert_eq!(finished.text(), "word\n/bin/busybox\n");
    drop(containerd);
    nothing_left(&leaks);
}

/// A program that ends with `code` when it is sent SIGTERM, from when on [`READY`] ends.
fn until_terminated(code: u8) -> String {
    format!("trap 'exit {code}' TERM; touch /ready; while :; do sleep 0.1; done")
}

const READY: &str = "until [ -e /ready ]; do sleep 0.1; done";

/// `ctr events`, which ends when this goes.
struct Events {
    process: Child,
    log: tempfile::NamedTempFile,
}

impl Events {
    fn listen(containerd: &Containerd) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let process = containerd
            .command(&["events"])
            .stdin(Stdio::null())
            .stdout(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Self { process, log }
    }

    /// The topic of each of a task's events.
    fn of(&self, id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log.path()).unwrap();
        let lines = text.lines().filter(|line| line.contains(id));
        lines
            .filter_map(|line| line.split(' ').find(|word| word.starts_with("/tasks/")))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for the last event of a task, and gives the topics of all.
    fn until_deleted(&self, id: &str) -> Vec<String> {
        let mut topics = Vec::new();
        let deleted = eventually(|| {
            topics = self.of(id);
            topics.last().is_some_and(|topic| topic == "/tasks/delete")
        });
        assert!(deleted, "{topics:?}");
        topics
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It does not end by itself.
        let _ = self.process.kill();
        let _ = wait(&mut self.process);
    }
}

#[test]
fn events_come_in_the_order_of_runc_s_shim() {
    let events_with = |runtime| {
        let containerd = Containerd::with_runtime(runtime);
        let events = Events::listen(&containerd);
        // It listens once it hears of something.
        assert!(eventually(|| {
            run_ok("ctr", &["namespace", "label", "default", "case=events"]);
            std::fs::metadata(events.log.path()).unwrap().len() > 0
        }));
        let id = containerd.start(&[], &until_terminated(5));
        let _ = containerd.exec(&id, &format!("{READY}; exit 9")).expect(9);
        containerd.ok(&["task", "pause", &id]);
        containerd.ok(&["task", "resume", &id]);
        containerd.ok(&["task", "kill", &id]);
        containerd.await_state(&id, "STOPPED");
        assert_eq!(containerd.delete(&id), 5);
        events.until_deleted(&id)
    };
    let of_runc = events_with("io.containerd.runc.v2");
    assert!(
        of_runc.contains(&"/tasks/exec-started".into()),
        "{of_runc:?}"
    );
    assert_eq!(events_with(hull_tests::containerd::RUNTIME), of_runc);
}

#[test]
fn what_is_ended_for_want_of_memory_is_told_as_it_happens() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let events = Events::listen(&containerd);
    // First a child, then the program itself.
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let script = format!("{hog}; until [ -e /go ]; do sleep 0.1; done; exec {hog}");
    let id = containerd.start(&["--memory-limit", "67108864"], &script);
    let is_told = || events.of(&id).contains(&"/tasks/oom".into());
    assert!(eventually(is_told), "{:?}", events.of(&id));
    let _ = containerd.exec(&id, "touch /go").expect(0);
    containerd.await_state(&id, "STOPPED");
    assert_eq!(containerd.delete(&id), 137);
    let mut topics = events.until_deleted(&id);
    topics.retain(|topic| !topic.contains("exec-"));
    let of_task = ["create", "start", "oom", "exit", "oom", "exit", "delete"];
    assert_eq!(topics, of_task.map(|name| format!("/tasks/{name}")));
    drop((events, containerd));
    nothing_left(&leaks);
}

#[test]
fn tasks_outlive_containerd_and_their_ends_are_told_when_it_is_back() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("default");
    let lives = containerd.start(&[], "sleep 100000");
    let ends = containerd.start(&[], &until_terminated(44));
    let _ = containerd.exec(&ends, READY).expect(0);
    let (pid, _) = containerd.task(&ends).unwrap();
    containerd.kill();
    run_ok("kill", &["-TERM", &pid]);
    let proxy = format!("/proc/{pid}");
    assert!(eventually(|| !Path::new(&proxy).exists()), "{ends} ends");
    containerd.restart();
    containerd.await_state(&ends, "STOPPED");
    assert_eq!(containerd.delete(&ends), 44);
    let executed = containerd.exec(&lives, "echo lives; exit 4").expect(4);
    assert_eq!(executed.text(), "lives\n");

    // A VM that goes takes its task with it.
    let vmm = vmm_of(Path::new(ROOT), &lives).to_string();
    run_ok("kill", &["-KILL", &vmm]);
    containerd.await_state(&lives, "STOPPED");
    assert_eq!(containerd.delete(&lives), 137);
    drop(containerd);
    nothing_left(&leaks);
}

#[test]
fn containerd_cleans_up_after_a_shim_that_was_killed() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::of_machine();
    let events = Events::listen(&containerd);
    let other = containerd.start(&[], "sleep 100000");
    let id = containerd.start(&[], "sleep 100000");
    let (pid, _) = containerd.task(&id).unwrap();
    run_ok("kill", &["-KILL", &shim_of(&pid)]);
    assert!(eventually(|| containerd.task(&id).is_none()));
    let topics = events.until_deleted(&id);
    assert!(topics.contains(&"/tasks/exit".into()), "{topics:?}");
    let _ = containerd.exec(&other, "exit 4").expect(4);
    drop((events, containerd));
    nothing_left(&leaks);
}
