//! The options of `docker run`, and the commands for a container that runs.

use hull_tests::command::eventually;
use hull_tests::engine::denying;
use hull_tests::{Engine, LeakCheck};

#[test]
fn environment_user_names_and_files() {
    let docker = Engine::docker();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "data\n").unwrap();
    let bound = format!("{}:/small/bound", volume.path().display());
    let mounted = format!(
        "type=bind,src={},dst=/mounted,readonly",
        volume.path().display()
    );
    let options = [
        "--env",
        "A=1",
        "--workdir",
        "/tmp",
        "--user",
        "1000:1000",
        "--hostname",
        "named",
        "--add-host",
        "other:1.2.3.4",
        "--dns",
        "192.0.2.53",
        "--volume",
        &bound,
        "--mount",
        &mounted,
        "--tmpfs",
        "/small:ro,size=1m",
        "--shm-size",
        "16m",
    ];
    let script = "echo $A $HOME; pwd; id -u; hostname; grep other /etc/hosts; grep 192.0.2.53 /etc/resolv.conf; \
        cat /small/bound/file; df -k /small /dev/shm | awk 'NR > 1 { print $2 }'; \
        for place in mounted small; do touch /$place/x 2>&1 || echo refused; done";
    let finished = docker.run(&options, &["sh", "-c", script]).expect(0);
    assert_eq!(
        finished.text(),
        "1 /\n/tmp\n1000\nnamed\n1.2.3.4\tother\nnameserver 192.0.2.53\ndata\n1024\n16384\n\
         touch: /mounted/x: Read-only file system\nrefused\ntouch: /small/x: Read-only file system\nrefused\n"
    );
}

#[test]
fn limits_and_privileges() {
    let docker = Engine::docker();
    let profile = denying(&["mkdir", "mkdirat"]);
    let seccomp = format!("seccomp={}", profile.path().display());
    let options = [
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_ADMIN",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        &seccomp,
        "--ulimit",
        "nofile=77:88",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--device",
        "/dev/null:/dev/other-null",
        "--init",
    ];
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; touch /x 2>&1; \
        awk '/CapEff|NoNewPrivs/ { print $2 }' /proc/self/status; ulimit -n; \
        cat /proc/sys/net/ipv4/ip_forward; test -c /dev/other-null && cat /proc/1/comm; \
        mkdir /dev/shm/made 2>/dev/null || echo denied";
    let finished = docker.run(&options, &["sh", "-c", script]).expect(0);
    assert_eq!(
        finished.text(),
        "67108864\n50000 100000\n50\ntouch: /x: Read-only file system\n0000000000001000\n1\n77\n1\ndocker-init\ndenied\n"
    );
}

#[test]
fn commands_for_a_container_that_runs() {
    let leaks = LeakCheck::new();
    let docker = Engine::docker();
    let container = docker.start(
        &["--health-cmd", "true", "--health-interval", "2s"],
        "sleep 100000",
    );
    let container = container.as_str();
    let inspect = |format: &str| docker.ok(&["inspect", "--format", format, container]);
    assert!(docker.ok(&["top", container]).contains("sleep 100000"));
    let stats = docker.ok(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemUsage}} {{.PIDs}}",
        container,
    ]);
    assert!(
        !stats.starts_with("0B"),
        "the host accounts for the VM: {stats}"
    );

    docker.ok(&["pause", container]);
    assert_eq!(inspect("{{.State.Status}}"), "paused\n");
    docker.ok(&["unpause", container]);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "copied\n").unwrap();
    let file = file.to_str().unwrap();
    docker.ok(&["cp", file, &format!("{container}:/tmp/file")]);
    assert_eq!(
        docker.exec(container, "cat /tmp/file").expect(0).text(),
        "copied\n"
    );
    docker.ok(&[
        "cp",
        &format!("{container}:/tmp/file"),
        &format!("{file}.back"),
    ]);
    assert_eq!(
        std::fs::read_to_string(format!("{file}.back")).unwrap(),
        "copied\n"
    );

    docker.ok(&[
        "update",
        "--memory",
        "200m",
        "--memory-swap",
        "200m",
        container,
    ]);
    let limit = docker
        .exec(container, "cat /sys/fs/cgroup/memory.max")
        .expect(0);
    assert_eq!(limit.text(), "209715200\n");
    assert!(eventually(
        || inspect("{{.State.Health.Status}}") == "healthy\n"
    ));

    docker.ok(&["restart", "--time", "1", container]);
    assert_eq!(
        docker.exec(container, "cat /tmp/file").expect(0).text(),
        "copied\n"
    );
    docker.ok(&["kill", container]);
    assert_eq!(docker.ok(&["wait", container]), "137\n");
    docker.remove(container);
    leaks.nothing_left(docker.root());
}

#[test]
fn a_container_that_fails_is_started_again() {
    Engine::docker().starts_again_what_fails();
}

#[test]
fn what_a_vm_cannot_do_is_refused_with_the_reason() {
    let docker = Engine::docker();
    let refused = |options: &[&str], reason: &str| {
        let finished = docker.run(options, &["true"]).expect(125);
        assert!(
            finished.stderr.contains(reason),
            "{options:?}: {}",
            finished.stderr
        );
    };
    // Docker keeps the host's namespace mounted from the first time on.
    refused(&["--network", "host"], "sharing the host's network");
    let leaks = LeakCheck::new();
    for (options, reason) in [
        (
            &["--privileged"][..],
            "cannot be given to a container in a VM",
        ),
        (&["--device", "/dev/kvm"], "/dev/kvm of the host"),
        (&["--pid", "host"], "cannot share the host's processes"),
    ] {
        refused(options, reason);
    }
    for (program, code) in [("nosuch", 127), ("/etc/passwd", 126)] {
        let _ = docker.run(&[], &[program]).expect(code);
    }
    leaks.nothing_left(docker.root());
}

#[test]
fn containers_of_one_vm_share_processes_and_memory() {
    let docker = Engine::docker();
    let first = docker.start(
        &["--ipc", "shareable"],
        "echo shared > /dev/shm/word; exec sleep 12345",
    );
    let of_first = format!("container:{first}");
    let shared = [
        "--network",
        &of_first,
        "--pid",
        &of_first,
        "--ipc",
        &of_first,
    ];
    docker.eventually(&first, "test -e /dev/shm/word");
    let script = "ps -o pid,args; cat /dev/shm/word; kill -0 1 && echo may signal";
    let seen = docker.run(&shared, &["sh", "-c", script]).expect(0).text();
    assert!(seen.contains("1 sleep 12345"), "{seen}");
    assert!(seen.ends_with("shared\nmay signal\n"), "{seen}");
    // Another network is another VM, whose kernel has other processes.
    for kind in ["pid", "ipc"] {
        let option = format!("--{kind}={of_first}");
        docker
            .run(&[&option], &["true"])
            .expect(125)
            .expect_error(&["shares its network is in the same VM"]);
    }
    assert_eq!(
        docker.exec(&first, "cat /dev/shm/word").expect(0).text(),
        "shared\n"
    );
}

#[test]
fn a_container_is_attached_to_and_committed() {
    Engine::docker().attaches_to_a_container_and_commits_it();
}

#[test]
fn three_services_find_one_another() {
    let docker = Engine::docker();
    let network = docker.network();
    let start = |script: &str| docker.start(&["--network", &network], script);
    let store =
        start("mkdir /www; echo stored > /www/index.html; httpd -p 80 -h /www; exec sleep 100000");
    // A service that answers by asking the next.
    let relay = |next: &str| {
        format!(
            "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; wget -T 20 -q -O - http://{next}\\n' > /www/cgi-bin/ask; \
             chmod 755 /www/cgi-bin/ask; httpd -p 80 -h /www; exec sleep 100000"
        )
    };
    let middle = start(&relay(&store));
    let front = start(&relay(&format!("{middle}/cgi-bin/ask")));
    let ask = "wget -T 60 -q -O - http://127.0.0.1/cgi-bin/ask | grep stored";
    assert_eq!(docker.eventually(&front, ask), "stored\n");
}
