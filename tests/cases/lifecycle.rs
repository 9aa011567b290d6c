//! create, start, state, kill, delete, list: the life cycle of the OCI runtime specification.

use hull_tests::{Bundle, Hull, LeakCheck};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn run_gives_the_output_and_the_exit_code_and_leaves_nothing() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::shell("echo to stdout; echo to stderr >&2; exit 7");
    let finished = hull.run(&bundle, "first").expect(7);
    assert_eq!(finished.text(), "to stdout\n");
    assert_eq!(finished.stderr, "to stderr\n");
    leaks.nothing_left(&hull.root());
}

#[test]
fn the_container_has_a_kernel_of_its_own() {
    let hull = Hull::new();
    let host = hull_tests::run_ok("uname", &["-r"]);
    let guest = hull
        .run(&Bundle::new(&["uname", "-r"]), "kernel")
        .expect(0)
        .text();
    assert_ne!(guest, host);
    assert!(!guest.trim().is_empty());
}

#[test]
fn each_step_of_the_life_cycle_shows_in_the_state() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::shell("echo started; trap 'exit 3' TERM; while :; do sleep 1; done")
        .with(|config| config["annotations"] = serde_json::json!({ "com.example.key": "value" }));
    let pid_file = bundle.path().join("pid");

    let output = bundle.path().join("out");
    let status = hull
        .command(&["create", "--bundle", bundle.arg(), "--pid-file"])
        .arg(&pid_file)
        .arg("steps")
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&output).unwrap())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let created = hull.state("steps");
    assert_eq!(created["status"], "created");
    assert_eq!(created["id"], "steps");
    assert_eq!(created["bundle"], bundle.arg());
    assert_eq!(created["annotations"]["com.example.key"], "value");
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(created["pid"], pid);
    kill(Pid::from_raw(pid), None).expect("the pid is a process of the host");
    assert_eq!(
        std::fs::read_to_string(&output).unwrap(),
        "",
        "nothing runs before start"
    );

    let _ = hull.hull(&["start", "steps"]).expect(0);
    hull.await_status("steps", "running");
    assert!(hull_tests::command::eventually(|| {
        std::fs::read_to_string(&output).unwrap() == "started\n"
    }));
    hull.hull(&["start", "steps"]).expect_error(&["steps"]);
    hull.hull(&["delete", "steps"]).expect_error(&["steps"]);

    let _ = hull.hull(&["kill", "steps", "TERM"]).expect(0);
    hull.await_status("steps", "stopped");
    hull.hull(&["kill", "steps", "TERM"])
        .expect_error(&["not running"]);
    let _ = hull.hull(&["delete", "steps"]).expect(0);
    hull.hull(&["state", "steps"])
        .expect_error(&["does not exist"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn list_has_all_containers_as_a_table_as_json_and_as_ids() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "one");
    let list: Value =
        serde_json::from_slice(&hull.hull(&["list", "-f", "json"]).expect(0).stdout).unwrap();
    assert_eq!(list[0]["id"], "one");
    assert_eq!(list[0]["status"], "created");
    assert_eq!(list[0]["bundle"], bundle.arg());
    assert_eq!(hull.hull(&["list", "-q"]).expect(0).text(), "one\n");
    let table = hull.hull(&["list"]).expect(0).text();
    assert!(table.starts_with("ID"), "{table}");
    assert!(table.contains("created"), "{table}");
    let _ = hull.hull(&["delete", "--force", "one"]).expect(0);
}

#[test]
fn a_created_container_is_deleted_without_ever_starting() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "unborn");
    let _ = hull.hull(&["delete", "unborn"]).expect(0);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_running_container_is_deleted_by_force() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "forced");
    let _ = hull.hull(&["start", "forced"]).expect(0);
    let _ = hull.hull(&["delete", "--force", "forced"]).expect(0);
    let _ = hull.hull(&["delete", "--force", "forced"]).expect(0);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_container_ended_by_a_signal_gives_128_and_its_number() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut running = hull
        .command(&["run", "--bundle", bundle.arg(), "signalled"])
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(hull_tests::command::eventually(|| {
        let list = hull.hull(&["list", "-f", "json"]);
        list.text().contains("\"running\"")
    }));
    let _ = hull.hull(&["kill", "signalled", "KILL"]).expect(0);
    assert_eq!(hull_tests::command::wait(&mut running), Some(137));
}

#[test]
fn a_detached_run_goes_on_after_the_command() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let status = hull
        .command(&["run", "--detach", "--bundle", bundle.arg(), "detached"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    hull.await_status("detached", "running");
    let _ = hull.hull(&["kill", "detached", "9"]).expect(0);
    hull.await_status("detached", "stopped");
    let _ = hull.hull(&["delete", "detached"]).expect(0);
    leaks.nothing_left(&hull.root());
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]);
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    let _ = hull.hull(&["spec", "--bundle", bundle.arg()]).expect(0);
    hull.hull(&["spec", "--bundle", bundle.arg()])
        .expect_error(&["config.json"]);
    let bundle = bundle.with(|config| {
        config["process"]["terminal"] = serde_json::json!(false);
        config["process"]["args"] = serde_json::json!(["echo", "from hull spec"]);
    });
    assert_eq!(
        hull.run(&bundle, "spec").expect(0).text(),
        "from hull spec\n"
    );
}

#[test]
fn features_and_version_are_told() {
    let hull = Hull::new();
    let features: Value =
        serde_json::from_slice(&hull.hull(&["features"]).expect(0).stdout).unwrap();
    for hook in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        assert!(
            features["hooks"]
                .as_array()
                .unwrap()
                .iter()
                .any(|name| name == hook),
            "{hook}"
        );
    }
    let version = hull_tests::run_ok("hull", &["--version"]);
    assert!(version.starts_with("hull version "), "{version}");
    assert!(version.contains("spec: 1."), "{version}");
}
