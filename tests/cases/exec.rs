//! `exec`: further processes in a running container.

use hull_tests::{Bundle, Hull};
use serde_json::json;

/// A hull with a running container `exec`.
fn running(bundle: &Bundle) -> Hull {
    let hull = Hull::new();
    let _ = hull.create(bundle, "exec");
    let _ = hull.hull(&["start", "exec"]).expect(0);
    hull
}

#[test]
fn exec_has_input_output_environment_user_and_exit_code() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let hull = running(&bundle);
    let finished = hull
        .hull(&["exec", "exec", "sh", "-c", "echo out; echo err >&2; exit 9"])
        .expect(9);
    assert_eq!(finished.text(), "out\n");
    assert_eq!(finished.stderr, "err\n");

    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let echoed = hull
        .hull_with_input(&["exec", "exec", "cat"], bytes.clone())
        .expect(0);
    assert!(echoed.stdout == bytes, "the bytes differ");

    let options = [
        "exec",
        "--env",
        "COLOUR=blue",
        "--cwd",
        "/tmp",
        "--user",
        "65534:65534",
        "exec",
    ];
    let script = ["sh", "-c", "echo $COLOUR $(pwd) $(id -u):$(id -g)"];
    let finished = hull.hull(&[&options[..], &script[..]].concat()).expect(0);
    assert_eq!(finished.text(), "blue /tmp 65534:65534\n");

    // The processes share the container's namespaces.
    let finished = hull.hull(&[
        "exec",
        "exec",
        "sh",
        "-c",
        "cat /proc/1/cmdline | tr '\\0' ' '; hostname",
    ]);
    assert_eq!(finished.expect(0).text(), "sleep 1000 hull-case\n");
}

#[test]
fn exec_of_what_is_not_there_gives_127_and_of_what_cannot_run_126() {
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|config| config["process"]["capabilities"] = json!({ "bounding": ["CAP_KILL"] }));
    bundle.add_file("/etc/data", b"no program", 0o644);
    let hull = running(&bundle);
    let missing = hull.hull(&["exec", "exec", "no-such-program"]).expect(127);
    assert!(
        missing.stderr.contains("executable file not found"),
        "{}",
        missing.stderr
    );
    let refused = hull.hull(&["exec", "exec", "/etc/data"]).expect(126);
    assert!(
        refused.stderr.contains("permission denied"),
        "{}",
        refused.stderr
    );
    // What only its owner may run, somebody may who overrides that (capabilities(7), CAP_DAC_OVERRIDE).
    let busybox = std::fs::read(bundle.rootfs().join("bin/busybox")).unwrap();
    bundle.add_file("/opt/true", &busybox, 0o700);
    let somebody = ["exec", "--user", "1000"];
    let of_root = ["exec", "/opt/true"];
    let _ = hull.hull(&[&somebody[..], &of_root].concat()).expect(126);
    let overriding = [&somebody[..], &["--cap", "CAP_DAC_OVERRIDE"], &of_root];
    let _ = hull.hull(&overriding.concat()).expect(0);
    let _ = hull.hull(&["exec", "exec", "true"]).expect(0);
}

#[test]
fn exec_reads_a_process_file_and_detaches() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let hull = running(&bundle);
    let process = bundle.path().join("process.json");
    let mut object = bundle.config()["process"].clone();
    object["args"] = json!(["sh", "-c", "echo written > /tmp/by-exec; exec sleep 1000"]);
    std::fs::write(&process, object.to_string()).unwrap();
    let pid_file = bundle.path().join("exec.pid");
    let status = hull
        .command(&["exec", "--detach", "--process"])
        .arg(&process)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg("exec")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).expect("a process of the host");
    assert!(hull_tests::command::eventually(|| {
        hull.hull(&["exec", "exec", "cat", "/tmp/by-exec"]).text() == "written\n"
    }));
}

#[test]
fn exec_needs_a_running_container() {
    let hull = Hull::new();
    hull.hull(&["exec", "nobody", "true"])
        .expect_error(&["nobody", "does not exist"]);
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "created");
    let _ = hull.hull(&["start", "created"]).expect(0);
    let _ = hull.hull(&["kill", "created", "KILL"]).expect(0);
    hull.await_status("created", "stopped");
    hull.hull(&["exec", "created", "true"])
        .expect_error(&["created"]);
}

#[test]
fn many_execs_have_their_own_exit_codes() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let hull = running(&bundle);
    for code in 0..20 {
        let _ = hull
            .hull(&["exec", "exec", "sh", "-c", &format!("exit {code}")])
            .expect(code);
    }
    // `sleep`, and the shell that counts.
    let count = hull
        .hull(&["exec", "exec", "sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
        .expect(0);
    assert!(
        count.text().trim().parse::<u32>().unwrap() <= 4,
        "processes are left: {}",
        count.text()
    );
}
