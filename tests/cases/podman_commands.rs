//! The commands of Podman for a container that runs: attach, commit, cp, exec, health checks, logs, pause, restart, stats,
//! top, update, wait; and what such a container tells a service manager.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use hull_tests::command::{LIMIT, eventually, finish};
use hull_tests::{Bundle, Engine, LeakCheck, run};

#[test]
fn a_container_that_runs_is_looked_at_changed_and_started_again() {
    let leaks = LeakCheck::new();
    let podman = Engine::podman();
    let container = podman.start(
        &["--health-cmd=test -e /healthy", "--health-interval=disable"],
        "echo started; exec sleep 100000",
    );
    let container = container.as_str();
    let inspect = |format: &str| podman.ok(&["inspect", "--format", format, container]);
    let _ = podman.command(&["healthcheck", "run", container]).expect(1);
    let _ = podman.exec(container, "touch /healthy").expect(0);
    podman.ok(&["healthcheck", "run", container]);
    assert_eq!(inspect("{{.State.Health.Status}}"), "healthy\n");

    let format = "{{.MemUsageBytes}} {{.PIDs}}";
    let stats = podman.ok(&["stats", "--no-stream", "--format", format, container]);
    assert!(
        !stats.starts_with("0B"),
        "the host accounts for the VM: {stats}"
    );
    podman.ok(&["pause", container]);
    assert_eq!(inspect("{{.State.Status}}"), "paused\n");
    podman.ok(&["unpause", container]);
    podman.ok(&["update", "--memory", "200m", container]);
    let limit = podman.exec(container, "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit.expect(0).text(), "209715200\n");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file").display().to_string();
    std::fs::write(&file, "copied\n").unwrap();
    let inside = format!("{container}:/tmp/file");
    podman.ok(&["cp", &file, &inside]);
    let copied = podman.exec(container, "cat /tmp/file").expect(0);
    assert_eq!(copied.text(), "copied\n");
    let back = format!("{file}.back");
    podman.ok(&["cp", &inside, &back]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "copied\n");

    podman.ok(&["kill", container]);
    assert_eq!(podman.ok(&["wait", container]), "137\n");
    podman.ok(&["restart", container]);
    assert_eq!(podman.eventually(container, "cat /tmp/file"), "copied\n");
    let logs = || podman.ok(&["logs", container]);
    assert!(eventually(|| logs() == "started\n".repeat(2)));
    podman.remove(container);
    leaks.nothing_left(podman.root());
}

#[test]
fn top_shows_the_processes_of_the_guest() {
    let podman = Engine::podman();
    let container = podman.start(&[], "exec sleep 100000");
    let top = || {
        let text = podman.ok(&["top", &container, "ppid", "user", "args"]);
        let rows = text.lines().skip(1);
        let words = |row: &str| row.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut rows: Vec<String> = rows.map(words).collect();
        rows.sort();
        rows
    };
    assert!(eventually(|| top() == ["0 root sleep 100000"]));
    let script = "echo $$ > /tmp/pid; exec sleep 54321";
    let user = ["exec", "--detach", "--user", "1234:5678", &container];
    podman.ok(&[&user[..], &["sh", "-c", script]].concat());
    assert!(eventually(
        || top() == ["0 1234 sleep 54321", "0 root sleep 100000"]
    ));
    let all = podman.ok(&["top", &container]);
    assert!(all.contains("sleep 54321"), "{all}");
    let _ = podman.exec(&container, "kill $(cat /tmp/pid)").expect(0);
    assert!(eventually(|| top() == ["0 root sleep 100000"]));
}

#[test]
fn a_container_is_attached_to_and_committed() {
    Engine::podman().attaches_to_a_container_and_commits_it();
}

#[test]
fn sessions_of_exec_end_and_leave_nothing() {
    let podman = Engine::podman();
    let container = podman.start(&[], "exec sleep 100000");
    podman.eventually(&container, "true");
    let leaks = LeakCheck::new();
    for code in [0, 9] {
        let mut command = Command::new("podman");
        command.args(["exec", "--interactive", &container, "sh", "-c"]);
        command.arg(format!("cat; exit {code}"));
        let finished = finish(&mut command, b"words\n".to_vec()).expect(code);
        assert_eq!(finished.text(), "words\n");
    }
    let line = format!(
        "podman exec --tty --user 5:6 --workdir /tmp --env A=1 {container} \
         sh -c 'tty; id -u; id -g; pwd; echo $A; exit 6'"
    );
    let finished = run("script", &["-qec", &line, "/dev/null"]).expect(6);
    assert_eq!(finished.text(), "/dev/pts/0\r\n5\r\n6\r\n/tmp\r\n1\r\n");
    let sessions = ["inspect", "--format", "{{.ExecIDs}}", &container];
    assert!(eventually(|| podman.ok(&sessions) == "[]\n"));
    // A session that nobody waits for goes later: Podman keeps its exit code for a while.
    podman.ok(&["exec", "--detach", &container, "touch", "/tmp/detached"]);
    podman.eventually(&container, "test -e /tmp/detached");
    assert_eq!(
        podman.ok(&["exec", &container, "ps", "-o", "args"]),
        "COMMAND\nsleep 100000\nps -o args\n"
    );
    leaks.nothing_more();
}

#[test]
fn a_container_reports_to_the_service_manager_of_podman() {
    let podman = Engine::podman();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    // Its root file system has a program that can send to such a socket.
    let bundle = Bundle::new(&["true"]);
    bundle.add_program("/usr/bin/socat");
    let rootfs = bundle.rootfs();
    let script = "echo $NOTIFY_SOCKET; until test -e /go; do sleep 1; done; \
                  printf 'READY=1\\nSTATUS=up' | socat -u - UNIX-SENDTO:$NOTIFY_SOCKET; exec sleep 100000";
    let name = podman.name();
    let mut command = Command::new("podman");
    command
        .args(["--runtime", "hull", "run", "--detach", "--name", &name])
        .args(["--sdnotify=container", "--rootfs"])
        .arg(&rootfs)
        .args(["sh", "-c", script])
        .env("NOTIFY_SOCKET", &path);
    let _ = finish(&mut command, Vec::new()).expect(0);
    let logs = || podman.ok(&["logs", &name]);
    assert!(eventually(|| logs() == "/run/notify/notify.sock\n"));
    let _ = podman.exec(&name, "touch /go").expect(0);
    // Podman tells first which process to watch.
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).unwrap();
        if String::from_utf8_lossy(&buffer[..length]).contains("READY=1") {
            return;
        }
    }
}
