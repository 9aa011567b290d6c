//! The options of `podman run`, containers that share a VM, and `podman build`.

use hull_tests::engine::{build_context, denying};
use hull_tests::{Engine, LeakCheck, run_ok};

#[test]
fn environment_names_files_limits_and_privileges() {
    let podman = Engine::podman();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "data\n").unwrap();
    let bound = format!("{}:/bound", volume.path().display());
    let mounted = format!("type=bind,src={},dst=/mounted,ro", volume.path().display());
    let profile = denying(&["mkdir", "mkdirat"]);
    let seccomp = format!("--security-opt=seccomp={}", profile.path().display());
    let options = [
        "--env=A=1",
        "--workdir=/tmp",
        "--hostname=named",
        "--add-host=other:1.2.3.4",
        "--dns=192.0.2.53",
        "--volume",
        &bound,
        "--mount",
        &mounted,
        "--tmpfs=/small:size=1m",
        "--shm-size=16m",
        "--memory=64m",
        "--cpus=0.5",
        "--pids-limit=50",
        "--read-only",
        "--read-only-tmpfs=false",
        "--cap-drop=ALL",
        "--cap-add=NET_ADMIN",
        "--security-opt=no-new-privileges",
        &seccomp,
        "--ulimit=nofile=77:88",
        "--sysctl=net.ipv4.ip_forward=1",
        "--device=/dev/null:/dev/other-null",
        "--init",
        "--init-path=/usr/bin/docker-init",
    ];
    let script = "echo $A; pwd; hostname; grep other /etc/hosts; grep 192.0.2.53 /etc/resolv.conf; cat /bound/file; \
        df -k /small /dev/shm | awk 'NR > 1 { print $2 }'; touch /mounted/x 2>&1 || echo refused; touch /x 2>&1; \
        cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; awk '/CapEff|NoNewPrivs/ { print $2 }' /proc/self/status; \
        ulimit -n; cat /proc/sys/net/ipv4/ip_forward; test -c /dev/other-null && cat /proc/1/comm; \
        mkdir /small/made 2>/dev/null || echo denied";
    let finished = podman.run(&options, &["sh", "-c", script]).expect(0);
    assert_eq!(
        finished.text(),
        "1\n/tmp\nnamed\n1.2.3.4\tother\nnameserver 192.0.2.53\ndata\n1024\n16384\n\
         touch: /mounted/x: Read-only file system\nrefused\ntouch: /x: Read-only file system\n\
         67108864\n50000 100000\n50\n0000000000001000\n1\n77\n1\npodman-init\ndenied\n"
    );
}

#[test]
fn a_container_runs_as_a_user_with_groups() {
    let podman = Engine::podman();
    let script = "id -u; id -g; id -G; touch /tmp/own && stat -c %u:%g /tmp/own; \
                  touch /etc/own 2>/dev/null || echo denied; awk '/CapEff/ { print $2 }' /proc/self/status";
    let options = ["--user=1234:5678", "--group-add=9"];
    let finished = podman.run(&options, &["sh", "-c", script]).expect(0);
    assert_eq!(
        finished.text(),
        "1234\n5678\n5678 9\n1234:5678\ndenied\n0000000000000000\n"
    );
}

#[test]
fn what_a_vm_cannot_do_is_refused_with_the_reason() {
    let leaks = LeakCheck::new();
    let podman = Engine::podman();
    for (options, reason) in [
        (
            &["--privileged"][..],
            "cannot be given to a container in a VM",
        ),
        (&["--device", "/dev/kvm"], "/dev/kvm of the host"),
        (&["--pid", "host"], "cannot share the host's processes"),
        (&["--ipc", "host"], "cannot share the host's IPC objects"),
    ] {
        podman.run(options, &["true"]).expect_error(&[reason]);
    }
    for (program, code) in [("nosuch", 127), ("/etc/passwd", 126)] {
        let _ = podman.run(&[], &[program]).expect(code);
    }
    leaks.nothing_left(podman.root());
}

#[test]
fn a_container_that_fails_is_started_again() {
    Engine::podman().starts_again_what_fails();
}

#[test]
fn a_container_shares_the_processes_and_memory_of_another_and_finds_a_third_by_name() {
    let podman = Engine::podman();
    let network = podman.network();
    let server = podman.start(
        &["--network", &network],
        "mkdir /www; echo served > /www/index.html; httpd -p 80 -h /www; exec sleep 100000",
    );
    let first = podman.start(
        &["--network", &network, "--ipc", "shareable"],
        "echo shared > /dev/shm/word; exec sleep 12345",
    );
    podman.eventually(&first, "test -e /dev/shm/word");
    let fetch = format!("wget -T 20 -q -O - http://{server}/");
    assert_eq!(podman.eventually(&first, &fetch), "served\n");
    let shared = ["network", "pid", "ipc"].map(|kind| format!("--{kind}=container:{first}"));
    let script = "ps -o pid,args; cat /dev/shm/word; kill -0 1 && echo may signal";
    let seen = podman.run(
        &shared.each_ref().map(String::as_str),
        &["sh", "-c", script],
    );
    let seen = seen.expect(0).text();
    assert!(seen.contains("1 sleep 12345"), "{seen}");
    assert!(seen.ends_with("shared\nmay signal\n"), "{seen}");
}

#[test]
fn an_image_is_built_in_a_vm() {
    let podman = Engine::podman();
    let context = build_context();
    let image = format!("localhost/case-built-{}", std::process::id());
    let directory = context.path().to_str().unwrap();
    let build = [
        "--runtime",
        "hull",
        "build",
        "--isolation",
        "oci",
        "--tag",
        &image,
        directory,
    ];
    podman.ok(&build);
    let made = podman.ok(&["--runtime", "hull", "run", "--rm", &image]);
    podman.ok(&["rmi", &image]);
    let kernel = made.strip_prefix("from the context\nset\n").expect(&made);
    assert_ne!(kernel, run_ok("uname", &["-r"]));
}
