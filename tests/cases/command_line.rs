//! The command line, by the same commands for hull and for Debian's runc: a case that runc fails is a wrong case. Where
//! the two differ, `runtime/DIFFERENCES.md` says so.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use hull_tests::command::{eventually, finish, wait};
use hull_tests::{Bundle, Hull};
use serde_json::{Value, json};

const RUNTIMES: [&str; 2] = ["runc", "hull"];

/// Runs `case` with each of the runtimes.
fn with_each(case: impl Fn(&Hull)) {
    for program in RUNTIMES {
        eprintln!("with {program}");
        case(&Hull::of_program(program));
    }
}

/// Runs a command, and checks its exit code and, if it fails, its message.
#[track_caller]
fn expect(runtime: &Hull, command: &str, code: i32, message: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    let finished = runtime.hull(&words);
    assert_eq!(finished.code, code, "{command}: {finished:?}");
    assert!(finished.stderr.contains(message), "{command}: {finished:?}");
    finished.text()
}

#[test]
fn a_container_that_is_not_there() {
    with_each(|runtime| {
        for verb in [
            "state",
            "start",
            "kill",
            "delete",
            "pause",
            "resume",
            "ps",
            "events --stats",
            "update --memory 64m",
        ] {
            expect(
                runtime,
                &format!("{verb} nobody"),
                1,
                "container does not exist",
            );
        }
        expect(runtime, "exec nobody true", 255, "container does not exist");
        expect(runtime, "delete --force nobody", 0, "");
        assert_eq!(expect(runtime, "list --quiet", 0, ""), "");
        assert!(expect(runtime, "list", 0, "").starts_with("ID "));
    });
}

#[test]
fn words_that_make_no_sense() {
    with_each(|runtime| {
        for command in [
            "state",
            "create",
            "kill",
            "--nonsense list",
            "--log-format xml list",
            "list --nonsense",
            "run --bundle /nowhere c",
            "create --bundle /nowhere c",
        ] {
            expect(runtime, command, 1, "");
        }
        expect(runtime, "nonsense", 3, "");
    });
}

#[test]
fn each_verb_in_each_state() {
    with_each(|runtime| {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let _output = runtime.create(&bundle, "c");
        let create = format!("create --bundle {} c", bundle.arg());
        expect(
            runtime,
            &create,
            1,
            "container with given ID already exists",
        );
        expect(runtime, "delete c", 0, "");

        let _output = runtime.create(&bundle, "c");
        expect(runtime, "start c", 0, "");
        expect(
            runtime,
            "start c",
            1,
            "cannot start an already running container",
        );
        expect(runtime, "delete c", 1, "that is not stopped");
        let pids: Vec<i64> =
            serde_json::from_str(&expect(runtime, "ps --format json c", 0, "")).unwrap();
        assert_eq!(pids.len(), 1);
        assert!(expect(runtime, "ps c", 0, "").contains("sleep 1000"));

        expect(runtime, "--debug exec c true", 0, "level=debug");

        expect(runtime, "pause c", 0, "");
        assert_eq!(runtime.state("c")["status"], "paused");
        expect(runtime, "pause c", 1, "container not running");
        expect(runtime, "start c", 1, "in the paused state");
        expect(
            runtime,
            "exec c true",
            255,
            "cannot exec in a paused container",
        );
        expect(runtime, "resume c", 0, "");
        expect(runtime, "resume c", 1, "container not paused");
        assert_eq!(runtime.state("c")["status"], "running");

        expect(runtime, "kill c 0", 0, "");
        let _ = runtime.hull(&["kill", "c", ""]).expect(0);
        expect(runtime, "kill c NOSUCH", 1, "unknown signal");
        expect(runtime, "kill c 99", 1, "");
        expect(runtime, "kill --all c KILL", 0, "");
        runtime.await_status("c", "stopped");
        expect(runtime, "kill c KILL", 1, "container not running");
        expect(runtime, "kill --all c KILL", 0, "");
        expect(
            runtime,
            "exec c true",
            255,
            "cannot exec in a stopped container",
        );
        expect(
            runtime,
            "start c",
            1,
            "cannot start a container that has stopped",
        );
        expect(runtime, "pause c", 1, "container not running");
        expect(runtime, "update --memory 64m c", 1, "container not running");
        expect(runtime, "ps c", 0, "");
        expect(runtime, "delete c", 0, "");
        expect(runtime, "state c", 1, "container does not exist");
    });
}

#[test]
fn exec_with_each_option() {
    with_each(|runtime| {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let _output = runtime.create(&bundle, "c");
        expect(runtime, "start c", 0, "");
        for (options, command, output) in [
            ("--cwd /tmp", "pwd", "/tmp\n"),
            ("--user 1000:1001", "id", "uid=1000 gid=1001"),
            ("-g 33 -g 44", "id", "groups=33,44"),
            ("--env A=1 --env B=2", "env", "\nA=1\nB=2\n"),
            (
                "--no-new-privs",
                "grep NoNewPrivs /proc/self/status",
                "\t1\n",
            ),
            ("--preserve-fds 0", "echo fine", "fine\n"),
        ] {
            let text = expect(runtime, &format!("exec {options} c {command}"), 0, "");
            assert!(text.contains(output), "{options}: {text}");
        }
        let command = "exec --cap CAP_NET_ADMIN c grep CapEff /proc/self/status";
        let line = expect(runtime, command, 0, "");
        let set = line.split_whitespace().nth(1).unwrap();
        assert_ne!(u64::from_str_radix(set, 16).unwrap() & 1 << 12, 0, "{line}");
        expect(runtime, "exec c false", 1, "");
        let killed = runtime.hull(&["exec", "c", "sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.code, 137);
        expect(runtime, "exec c", 255, "process args cannot be empty");
        expect(runtime, "exec --process /nowhere c", 255, "/nowhere");
        expect(runtime, "exec --user nobody c id", 255, "nobody");
        let no_user = "uids and gids must be in range";
        expect(runtime, "exec --user 4294967295 c id", 255, no_user);
        expect(runtime, "exec --user 1:4294967295 c id", 255, no_user);
        let nowhere = "set in config.json failed: no such file or directory";
        expect(runtime, "exec --cwd /nowhere c id", 255, nowhere);

        let pid_file = bundle.path().join("pid");
        // The process keeps the streams of the command for its own.
        let status = runtime
            .command(&["exec", "--detach", "--pid-file"])
            .arg(&pid_file)
            .args(["c", "sleep", "1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).expect("it is a process");
        let pids: Vec<i64> =
            serde_json::from_str(&expect(runtime, "ps --format json c", 0, "")).unwrap();
        assert_eq!(pids.len(), 2);
        expect(runtime, "delete --force c", 0, "");
    });
}

#[test]
fn run_with_each_option() {
    with_each(|runtime| {
        let bundle = Bundle::shell("echo out; exit 5");
        let run = |options: &str| format!("run {options} --bundle {} c", bundle.arg());
        assert_eq!(expect(runtime, &run("--no-pivot"), 5, ""), "out\n");
        expect(runtime, "state c", 1, "container does not exist");
        expect(runtime, &run("--keep --no-new-keyring"), 5, "");
        let state = runtime.state("c");
        assert_eq!(
            (&state["status"], &state["pid"]),
            (&"stopped".into(), &0.into())
        );
        for key in ["ociVersion", "id", "bundle", "rootfs", "created", "owner"] {
            assert!(state[key].is_string(), "{key}: {state}");
        }
        expect(runtime, "delete c", 0, "");
    });
}

#[test]
fn a_terminal_has_somebody_to_hold_it() {
    with_each(|runtime| {
        let bundle =
            Bundle::new(&["true"]).with(|config| config["process"]["terminal"] = true.into());
        let bundle = bundle.arg();
        for verb in ["create", "run --detach"] {
            let command = format!("{verb} --bundle {bundle} c");
            expect(runtime, &command, 1, "cannot allocate tty if");
        }
        let command = format!("create --console-socket /nowhere --bundle {bundle} c");
        expect(runtime, &command, 1, "/nowhere");
        assert_eq!(expect(runtime, "list --quiet", 0, ""), "");
    });
}

#[test]
fn errors_are_told_in_the_log_too() {
    with_each(|runtime| {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let command = format!("--log {} --log-format json state nobody", log.display());
        expect(runtime, &command, 1, "container does not exist");
        let line = std::fs::read_to_string(&log).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["level"], "error");
        assert!(
            message["msg"]
                .as_str()
                .unwrap()
                .contains("container does not exist")
        );
        assert!(message["time"].is_string());
    });
}

/// A bundle whose program tells its service manager that it is ready once there is a file `/go`.
fn service() -> Bundle {
    let bundle = Bundle::shell(
        "until test -e /go; do sleep 0.2; done; \
         printf READY=1 | socat -u - UNIX-SENDTO:$NOTIFY_SOCKET; exec sleep 1000",
    );
    bundle.add_program("/usr/bin/socat");
    bundle
}

/// Runs `command` as a service whose container becomes ready meanwhile, and gives what its manager hears first.
fn run_as_service(bundle: &Bundle, command: &mut Command) -> [String; 2] {
    let path = bundle.path().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut child = command
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::fs::write(bundle.rootfs().join("go"), "").unwrap();
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    assert!(eventually(|| {
        // runc from 1.2 on and hull send a barrier last, which is a descriptor: it has no room here, so it is closed.
        while let Ok(length) = manager.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        child.try_wait().unwrap().is_some()
    }));
    assert_eq!(wait(&mut child), Some(0));
    std::fs::remove_file(path).unwrap();
    heard.truncate(2);
    heard.try_into().expect("two messages at least")
}

#[test]
fn a_service_tells_its_manager_that_its_container_is_ready() {
    with_each(|runtime| {
        let ready = |id: &str| {
            let pid = runtime.state(id)["pid"].clone();
            ["READY=1\n".to_owned(), format!("MAINPID={pid}\n")]
        };
        let bundle = service();
        let mut create = runtime.command(&["create", "--bundle", bundle.arg(), "c"]);
        create
            .env("NOTIFY_SOCKET", "/run/manager")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(create.status().unwrap().success());
        let heard = run_as_service(&bundle, &mut runtime.command(&["start", "c"]));
        assert_eq!(heard, ready("c"));
        expect(runtime, "delete --force c", 0, "");

        let bundle = service();
        let words = ["run", "--detach", "--bundle", bundle.arg(), "d"];
        let heard = run_as_service(&bundle, &mut runtime.command(&words));
        assert_eq!(heard, ready("d"));
        expect(runtime, "delete --force d", 0, "");
    });
}

#[test]
fn sockets_that_a_service_manager_has_opened_for_others_are_not_looked_at() {
    let bundle = Bundle::new(&["sh", "-c", "echo $LISTEN_FDS"]);
    with_each(|runtime| {
        let mut of_other = runtime.command(&["run", "--bundle", bundle.arg(), "c"]);
        of_other.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
        let finished = finish(&mut of_other, Vec::new()).expect(0);
        assert_eq!(finished.text(), "\n");
    });
}

#[test]
fn short_options_and_the_other_forms_of_output() {
    with_each(|runtime| {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let pid_file = bundle.path().join("pid");
        let status = runtime
            .command(&["--rootless", "false", "run", "-d", "-b", bundle.arg()])
            .arg("--pid-file")
            .arg(&pid_file)
            .arg("c")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let list: Value = serde_json::from_str(&expect(runtime, "list -f json", 0, "")).unwrap();
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().parse().unwrap();
        assert_eq!(
            [&list[0]["id"], &list[0]["status"], &list[0]["pid"]],
            [&json!("c"), &json!("running"), &json!(pid)]
        );
        assert_eq!(expect(runtime, "list -q", 0, ""), "c\n");
        assert!(expect(runtime, "ps -f table c", 0, "").contains("sleep 1000"));
        for bad in ["list -f xml", "ps -f xml c", "update -r /nowhere c"] {
            expect(runtime, bad, 1, "");
        }
        let mut process = bundle.config()["process"].clone();
        process["args"] = json!(["sh", "-c", "grep CapEff /proc/self/status; exit 4"]);
        process.as_object_mut().unwrap().remove("capabilities");
        let file = bundle.path().join("process.json");
        std::fs::write(&file, process.to_string()).unwrap();
        let text = expect(runtime, &format!("exec -p {} c", file.display()), 4, "");
        let own = expect(runtime, "exec c grep CapEff /proc/self/status", 0, "");
        assert_eq!(text, own);
        let text = expect(runtime, "exec -e A=1 -u 5:6 -c CAP_NET_ADMIN c env", 0, "");
        assert!(text.contains("A=1\n"), "{text}");

        expect(runtime, "pause c", 0, "");
        let mut waiting = runtime
            .command(&["exec", "--ignore-paused", "c", "true"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs(1));
        assert!(waiting.try_wait().unwrap().is_none(), "it is frozen too");
        expect(runtime, "resume c", 0, "");
        assert_eq!(wait(&mut waiting), Some(0));

        expect(runtime, "kill -a c 9", 0, "");
        runtime.await_status("c", "stopped");
        expect(runtime, "delete -f c", 0, "");
        expect(runtime, "--debug list", 0, "");
        assert!(expect(runtime, "-v", 0, "").contains("spec: 1."));
    });
}

#[test]
fn limits_and_what_is_used_of_them() {
    with_each(|runtime| {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let _output = runtime.create(&bundle, "c");
        expect(runtime, "start c", 0, "");
        for options in [
            "--memory 64m --memory-reservation 32m --memory-swap 64m",
            "--memory-swap -1",
            "--pids-limit 70",
            "--cpu-period 100000 --cpu-quota 50000",
            "--cpu-share 512 --cpuset-cpus 0",
            "--blkio-weight 100",
        ] {
            expect(runtime, &format!("update {options} c"), 0, "");
        }
        let script = "cd /sys/fs/cgroup; cat memory.max memory.swap.max memory.low pids.max cpu.max cpuset.cpus";
        let limits = || {
            let inside = runtime.hull(&["exec", "c", "sh", "-c", script]);
            inside.expect(0).text()
        };
        assert_eq!(limits(), "67108864\nmax\n33554432\n70\n50000 100000\n0\n");
        let resources = r#"{"pids":{"limit":60},"memory":{"limit":134217728},"cpu":{"quota":20000,"period":100000}}"#;
        let update = ["update", "-r", "-", "c"];
        let _ = runtime.hull_with_input(&update, resources.into()).expect(0);
        assert!(limits().starts_with("134217728\n"));

        let stats: Value =
            serde_json::from_str(&expect(runtime, "events --stats c", 0, "")).unwrap();
        assert_eq!(
            (&stats["type"], &stats["id"]),
            (&json!("stats"), &json!("c"))
        );
        for (key, limit) in [("pids", json!(60)), ("cpu", Value::Null)] {
            assert!(stats["data"][key].is_object(), "{key}: {stats}");
            assert_eq!(stats["data"][key]["limit"], limit, "{stats}");
        }
        assert_eq!(stats["data"]["memory"]["usage"]["limit"], 134_217_728);
        expect(runtime, "delete --force c", 0, "");
    });
}

#[test]
fn exec_joins_a_cgroup_that_takes_processes() {
    with_each(|runtime| {
        let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            let mut cgroups = mounts.iter_mut().filter(|mount| mount["type"] == "cgroup");
            cgroups.next().unwrap()["options"] = json!(["nosuid", "nodev", "noexec"]);
        });
        let _output = runtime.create(&bundle, "c");
        expect(runtime, "start c", 0, "");
        expect(
            runtime,
            "exec --cgroup .. c true",
            255,
            ".. is not a sub cgroup path",
        );
        expect(runtime, "exec --cgroup nowhere c true", 255, "o such file");
        let inside = |script: &str| {
            let inside = runtime.hull(&["exec", "c", "sh", "-ec", script]);
            inside.expect(0).text()
        };
        inside("cd /sys/fs/cgroup; mkdir init other; echo 1 > init/cgroup.procs");
        let own = "c cat /proc/self/cgroup";
        assert_eq!(expect(runtime, &format!("exec {own}"), 0, ""), "0::/\n");
        let other = format!("exec --cgroup other {own}");
        assert_eq!(expect(runtime, &other, 0, ""), "0::/other\n");
        // As a service manager does; its cgroup takes no processes of its own any more.
        inside(
            "cd /sys/fs/cgroup; echo $$ > init/cgroup.procs; echo +memory > cgroup.subtree_control",
        );
        assert_eq!(expect(runtime, &format!("exec {own}"), 0, ""), "0::/init\n");
        expect(runtime, "exec --cgroup / c true", 255, "esource busy");
        assert_eq!(expect(runtime, &other, 0, ""), "0::/other\n");
        expect(runtime, "delete --force c", 0, "");
    });
}

#[test]
fn events_tell_of_a_container_until_its_end() {
    with_each(|runtime| {
        let bundle = Bundle::shell("until test -e /end; do sleep 0.2; done");
        let _output = runtime.create(&bundle, "c");
        expect(runtime, "start c", 0, "");
        let mut events = runtime
            .command(&["events", "--interval", "200ms", "c"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(first["type"], "stats");
        std::fs::write(bundle.rootfs().join("end"), "").unwrap();
        // To the end of the output, so that it can be written.
        assert!(lines.all(|line| line.is_ok()));
        assert_eq!(wait(&mut events), Some(0));
        runtime.await_status("c", "stopped");
        expect(runtime, "delete c", 0, "");
    });
}

/// The names of the members of an object and of the objects in it.
fn names(value: &Value, path: &str, all: &mut Vec<String>) {
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        names(member, &path, all);
        all.push(path);
    }
}

#[test]
fn features_tell_at_least_what_runc_tells_of() {
    let of = |program| -> Value {
        let features = Hull::of_program(program).hull(&["features"]).expect(0);
        serde_json::from_slice(&features.stdout).unwrap()
    };
    let (runc, hull) = (of("runc"), of("hull"));
    let mut all = Vec::new();
    names(&runc, "", &mut all);
    all.retain(|name| !name.starts_with(".annotations.") && !name.ends_with("Flags"));
    for name in all {
        assert!(hull.pointer(&name.replace('.', "/")).is_some(), "{name}");
    }
    assert_eq!(runc["hooks"], hull["hooks"]);
    assert_eq!(runc["linux"]["capabilities"], hull["linux"]["capabilities"]);
}

#[test]
fn what_a_vm_cannot_do_is_refused_in_words() {
    let hull = Hull::new();
    for (command, code, reason) in [
        (
            "checkpoint --image-path /tmp c",
            1,
            "cannot be checkpointed",
        ),
        ("restore c", 1, "cannot be checkpointed"),
        ("--rootless true list", 1, "hull runs as root"),
        ("spec --rootless", 1, "hull runs as root"),
        ("exec --apparmor a c true", 255, "no AppArmor"),
        ("exec --process-label l c true", 255, "no SELinux"),
        ("exec --cgroup cpu:g c true", 255, "of version 2"),
        ("update --cpuset-mems 0 c", 1, "one memory node"),
        ("update --cpu-rt-period 1 c", 1, "no real-time limits"),
        ("update --cpu-rt-runtime 1 c", 1, "no real-time limits"),
        ("update --l3-cache-schema s c", 1, "the host's"),
        ("update --mem-bw-schema s c", 1, "the host's"),
    ] {
        expect(&hull, command, code, reason);
    }
}
