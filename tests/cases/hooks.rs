//! Hooks of every kind, each at its point and in its namespaces.

use std::fs;

use hull_tests::{Bundle, Hull, LeakCheck, Netns};
use serde_json::{Value, json};

/// Adds a hook that appends `<kind> <status from stdin> <id of its network namespace>` to `log`.
fn add_hook(bundle: Bundle, kind: &str, host_side: bool) -> Bundle {
    let log = if host_side {
        bundle.path().join("hooks.log")
    } else {
        "/hooks.log".into()
    };
    let script = format!(
        "state=$(cat); status=${{state#*\\\"status\\\":}}; status=${{status#*\\\"}}; status=${{status%%\\\"*}}; \
         echo {kind} $status $(readlink /proc/self/ns/net) $ADDED >> {}",
        log.display()
    );
    bundle.with(|config| {
        config["hooks"][kind] = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["ADDED=by-env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "timeout": 60
        }]);
    })
}

#[test]
fn each_kind_runs_at_its_point_in_its_namespace() {
    let hull = Hull::new();
    let netns = Netns::new();
    let mut bundle = Bundle::new(&["cat", "/hooks.log"]).in_netns(&netns.path());
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        bundle = add_hook(bundle, kind, true);
    }
    bundle = add_hook(bundle, "startContainer", false);
    let output = hull.create(&bundle, "hooks");
    let log = || fs::read_to_string(bundle.path().join("hooks.log")).unwrap_or_default();
    let kinds = || -> Vec<String> {
        log()
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(kinds(), ["prestart", "createRuntime", "createContainer"]);
    let _ = hull.hull(&["start", "hooks"]).expect(0);
    hull.await_status("hooks", "stopped");
    assert_eq!(
        kinds(),
        ["prestart", "createRuntime", "createContainer", "poststart"]
    );
    let _ = hull.hull(&["delete", "hooks"]).expect(0);
    assert_eq!(kinds()[4..], ["poststop"]);

    let container_netns = netns.exec("readlink /proc/self/ns/net").text();
    let host_netns = hull_tests::run_ok("readlink", &["/proc/self/ns/net"]);
    for line in log().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (status, namespace) = match words[0] {
            "prestart" | "createRuntime" => ("creating", &host_netns),
            "createContainer" => ("creating", &container_netns),
            "poststart" => ("running", &host_netns),
            _ => ("stopped", &host_netns),
        };
        assert_eq!(
            words[1..],
            [status, namespace.trim(), "by-env"],
            "{}",
            words[0]
        );
    }
    let inside = fs::read_to_string(output).unwrap();
    assert!(inside.starts_with("startContainer created "), "{inside}");
}

#[test]
fn a_hook_gets_the_state_with_a_pid_whose_network_namespace_is_the_containers() {
    let hull = Hull::new();
    let bundle = Bundle::shell("ip -o link | wc -l");
    let state_file = bundle.path().join("state");
    let script = format!(
        "tee {} | sed -e 's/.*\"pid\"://' -e 's/[^0-9].*//' > {}.pid; \
        ip link add eth9 type dummy && ip link set eth9 netns $(cat {}.pid)",
        state_file.display(),
        state_file.display(),
        state_file.display()
    );
    let bundle = bundle.with(|config| {
        config["annotations"] = json!({ "com.example.hook": "seen" });
        config["hooks"]["createRuntime"] = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        }]);
    });
    let finished = hull.run(&bundle, "hook-state").expect(0);
    let state: Value = serde_json::from_slice(&fs::read(&state_file).unwrap()).unwrap();
    assert_eq!(state["id"], "hook-state");
    assert_eq!(state["bundle"], bundle.arg());
    assert_eq!(state["annotations"]["com.example.hook"], "seen");
    assert!(state["ociVersion"].is_string());
    // lo, and what the hook has moved in.
    assert_eq!(finished.text(), "2\n");
}

#[test]
fn what_hooks_mount_for_the_containers_pid_is_in_the_container_and_not_on_the_host() {
    let join = "nsenter --mount --target $(sed -e 's/.*\"pid\"://' -e 's/[^0-9].*//')";
    // runc parts from the host's mounts before its hooks run.
    for (program, seen) in [
        ("hull", "joined\non-host\nown\n"),
        ("runc", "joined\nown\n"),
    ] {
        let leaks = LeakCheck::new();
        let runtime = Hull::of_program(program);
        let bundle = Bundle::shell("cat /*/word");
        let directory = |name: &str| bundle.rootfs().join(name);
        let names = ["joined", "on-host", "own"];
        for name in names {
            fs::create_dir(directory(name)).unwrap();
        }
        let mount = |name: &str| {
            let directory = directory(name);
            let directory = directory.display();
            format!("mount -t tmpfs none {directory} && echo {name} > {directory}/word")
        };
        let hook = |script: String| {
            let env = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": [env] }])
        };
        let mut config = bundle.config();
        config["hooks"] = json!({
            "prestart": hook(mount("on-host")),
            "createRuntime": hook(format!("{join} sh -c '{}'", mount("joined"))),
            // Where the root file system is.
            "createContainer": hook("mount -t tmpfs none own && echo own > own/word".into()),
        });
        bundle.write(&config);
        let output = runtime.create(&bundle, "mounts");
        let on_host = names.map(|name| directory(name).join("word").exists());
        assert_eq!(on_host, [false, true, false], "{program}");
        let _ = runtime.hull(&["start", "mounts"]).expect(0);
        runtime.await_status("mounts", "stopped");
        assert_eq!(fs::read_to_string(output).unwrap(), seen, "{program}");
        let _ = runtime.hull(&["delete", "mounts"]).expect(0);
        let mounted = directory("on-host");
        hull_tests::run_ok("umount", &[mounted.to_str().unwrap()]);
        leaks.nothing_left(&runtime.root());
    }
}

#[test]
fn a_failing_hook_fails_create_shows_its_stderr_and_undoes_everything() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let leaks = LeakCheck::new();
        let hull = Hull::new();
        let bundle = Bundle::new(&["true"]).with(|config| {
            config["hooks"][kind] = json!([{
                "path": "/bin/sh", "args": ["sh", "-c", "echo the reason is $0 >&2; exit 4", kind]
            }]);
        });
        hull.run(&bundle, "failing")
            .expect_error(&[kind, &format!("the reason is {kind}")]);
        leaks.nothing_left(&hull.root());
    }
}

#[test]
fn a_hook_that_takes_too_long_fails_create_and_is_killed() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["hooks"]["prestart"] = json!([{ "path": "/bin/sleep", "args": ["hull-hook-sleeps", "1000"], "timeout": 1 }]);
    });
    hull.run(&bundle, "slow")
        .expect_error(&["prestart", "time"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_failing_poststop_hook_does_not_stop_delete() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["hooks"]["poststop"] = json!([{ "path": "/bin/false" }]);
    });
    let _ = hull.run(&bundle, "poststop").expect(0);
    leaks.nothing_left(&hull.root());
}
