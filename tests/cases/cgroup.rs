//! The containers' cgroups on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hull_tests::command::{eventually, wait};
use hull_tests::{Bundle, Hull, LeakCheck, Systemd};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

const MOUNT: &str = "/sys/fs/cgroup";

fn cgroup(path: &str) -> PathBuf {
    Path::new(MOUNT).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

/// The programs of the processes in a cgroup.
fn programs(cgroup: &Path) -> Vec<String> {
    let mut programs: Vec<_> = read(&cgroup.join("cgroup.procs"))
        .lines()
        .map(|pid| read(Path::new(&format!("/proc/{pid}/comm"))))
        .collect();
    programs.sort();
    programs
}

#[test]
fn the_vm_and_its_proxies_are_in_the_containers_cgroup_with_its_limits() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let directory = tempfile::tempdir().unwrap();
    let seen = directory.path().join("cpu.max");
    let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
        config["linux"]["cgroupsPath"] = json!("/hull-cases/one");
        config["linux"]["resources"] = json!({
            "memory": { "limit": 100 << 20, "swap": 100 << 20 },
            "cpu": { "quota": 50_000, "period": 100_000, "shares": 512 },
        });
        config["annotations"] = json!({ "dev.hull.memory_mib": "256" });
        let look = format!(
            "cat /sys/fs/cgroup/hull-cases/one/cpu.max > {}",
            seen.display()
        );
        config["hooks"] =
            json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", look] }] });
    });
    let _pid_file = hull.create(&bundle, "c");
    hull.hull(&["start", "c"]).expect(0);
    let cgroup = cgroup("hull-cases/one");
    assert!(programs(&cgroup).starts_with(&["hull-monitor".into(), "hull-proxy".into()]));
    // Its VM boots at full speed.
    assert_eq!(read(&seen), "max 100000");
    assert_eq!(read(&cgroup.join("cpu.max")), "50000 100000");
    // The whole guest has room, and the container its limit in it.
    let limit: u64 = read(&cgroup.join("memory.max")).parse().unwrap();
    assert!((256 << 20..512 << 20).contains(&limit), "{limit}");
    assert_eq!(read(&cgroup.join("memory.swap.max")), "0");
    let inside = hull.hull(&["exec", "c", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(inside.expect(0).text().trim(), (100 << 20).to_string());

    // A process that is executed later has its proxy there too.
    let before = programs(&cgroup).len();
    // It keeps the streams of the command for its own.
    let executed = hull
        .command(&["exec", "--detach", "c", "sleep", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(executed.unwrap().success());
    assert_eq!(programs(&cgroup).len(), before + 1);
    hull.hull(&["delete", "--force", "c"]).expect(0);
    assert!(eventually(|| !cgroup.exists()));
    leaks.nothing_left(&hull.root());
    fs::remove_dir(cgroup.parent().unwrap()).unwrap();
}

#[test]
fn a_cgroup_that_is_in_use_is_refused_and_one_that_failed_is_removed() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let path = cgroup("hull-cases-taken");
    fs::create_dir(&path).unwrap();
    let mut stranger = std::process::Command::new("sleep")
        .arg("1000")
        // Or who waits for the end of the cases' output would wait for it too, if this one fails.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    fs::write(path.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    let bundle = Bundle::new(&["true"])
        .with(|config| config["linux"]["cgroupsPath"] = json!("/hull-cases-taken"));
    hull.run(&bundle, "c")
        .expect_error(&["hull-cases-taken", "not empty"]);
    assert!(
        stranger.try_wait().unwrap().is_none(),
        "it was not to be killed"
    );
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(eventually(|| fs::remove_dir(&path).is_ok()));

    let bundle = Bundle::new(&["true"]).with(|config| {
        config["linux"]["cgroupsPath"] = json!("/hull-cases-failed");
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    });
    hull.run(&bundle, "c").expect_error(&["hook"]);
    assert!(!cgroup("hull-cases-failed").exists());
    leaks.nothing_left(&hull.root());
}

#[test]
fn limits_change_while_the_container_runs() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|config| config["linux"]["cgroupsPath"] = json!("/hull-cases-update"));
    let _pid_file = hull.create(&bundle, "c");
    hull.hull(&["start", "c"]).expect(0);
    let inside = |file: &str| {
        let path = format!("/sys/fs/cgroup/{file}");
        let read = hull.hull(&["exec", "c", "cat", &path]).expect(0);
        read.text().trim().to_owned()
    };
    let options = ["update", "--memory", "64m", "--pids-limit", "77", "c"];
    hull.hull(&options).expect(0);
    assert_eq!(inside("memory.max"), (64 << 20).to_string());
    assert_eq!(inside("pids.max"), "77");
    let resources = json!({ "cpu": { "quota": 30_000, "period": 100_000 } }).to_string();
    hull.hull_with_input(&["update", "--resources", "-", "c"], resources.into())
        .expect(0);
    assert_eq!(inside("cpu.max"), "30000 100000");
    assert_eq!(inside("pids.max"), "77", "what is not named stays");
    let host = cgroup("hull-cases-update");
    assert_eq!(read(&host.join("cpu.max")), "30000 100000");
    hull.hull(&["update", "--cpu-burst", "5000", "c"]).expect(0);
    assert_eq!(inside("cpu.max.burst"), "5000");
    hull.hull(&["update", "--cpu-idle", "1", "c"]).expect(0);
    assert_eq!(inside("cpu.idle"), "1");
    assert_eq!(inside("cpu.max"), "30000 100000");
    // An option that means nothing is not taken.
    hull.hull(&["update", "--cpuset-mems", "0", "c"])
        .expect_error(&["--cpuset-mems"]);

    let line = hull.hull(&["events", "--stats", "c"]).expect(0).text();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(event["data"]["pids"]["limit"], 77);
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    hull.hull(&["delete", "--force", "c"]).expect(0);
    hull.hull(&["update", "--memory", "64m", "c"])
        .expect_error(&["does not exist"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_vm_grows_with_the_limits_of_its_container() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|config| config["linux"]["cgroupsPath"] = json!("/hull-cases-grow"));
    let _pid_file = hull.create(&bundle, "c");
    hull.hull(&["start", "c"]).expect(0);
    let inside = |script: &str| {
        hull.hull(&["exec", "c", "sh", "-c", script])
            .expect(0)
            .text()
    };
    let total_kib = || -> u64 {
        let line = inside("grep MemTotal /proc/meminfo");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert!(total_kib() < 512 << 10);
    assert_eq!(inside("nproc"), "1\n");

    hull.hull(&["update", "--memory", "1g", "c"]).expect(0);
    assert!(total_kib() > 1 << 20, "{} KiB", total_kib());
    assert_eq!(inside("cat /sys/fs/cgroup/memory.max"), "1073741824\n");
    // More than the VM had, and it is there: one buffer that is filled.
    inside("dd if=/dev/zero of=/dev/null bs=600M count=1");
    // Again, with the device that is there by then; and less, which the cgroup sees to.
    hull.hull(&["update", "--memory", "1200m", "c"]).expect(0);
    assert!(total_kib() > 1200 << 10, "{} KiB", total_kib());
    hull.hull(&["update", "--memory", "64m", "c"]).expect(0);
    assert!(total_kib() > 1200 << 10, "{} KiB", total_kib());

    let options = [
        "update",
        "--cpu-period",
        "100000",
        "--cpu-quota",
        "150000",
        "c",
    ];
    hull.hull(&options).expect(0);
    assert_eq!(inside("nproc"), "2\n");
    assert_eq!(inside("cat /sys/fs/cgroup/cpu.max"), "150000 100000\n");
    hull.hull(&["delete", "--force", "c"]).expect(0);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_vm_grows_no_further_than_the_configuration_says() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("hull.toml");
    fs::write(&config, "[sandbox]\nmax_memory_mib = 700\nmax_vcpus = 1\n").unwrap();
    let hull = Hull::with_options(&["--config", config.to_str().unwrap()]);
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _pid_file = hull.create(&bundle, "c");
    for option in [["--memory", "701m"], ["--cpu-quota", "200000"]] {
        let update = [
            "update",
            "--cpu-period",
            "100000",
            option[0],
            option[1],
            "c",
        ];
        hull.hull(&update)
            .expect_error(&["grows to 1 vCPUs and 700 MiB at the most"]);
    }
    // As far as it goes: the guest's own share is less then.
    hull.hull(&["update", "--memory", "690m", "c"]).expect(0);
    hull.hull(&["delete", "--force", "c"]).expect(0);
}

#[test]
fn an_exec_beside_a_delete_does_not_make_the_cgroup_again() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|config| config["linux"]["cgroupsPath"] = json!("/hull-cases-exec"));
    let _output = hull.create(&bundle, "c");
    hull.hull(&["start", "c"]).expect(0);
    // Whoever deletes it has this lock.
    let directory = fs::File::open(hull.root().join("containers/c")).unwrap();
    let turn = Flock::lock(directory, FlockArg::LockExclusive).unwrap();
    let mut both = [vec!["exec", "c", "true"], vec!["delete", "--force", "c"]].map(|words| {
        let mut command = hull.command(&words);
        command.stdin(Stdio::null()).spawn().unwrap()
    });
    let waits = |pid: u32| {
        let locks = read(Path::new("/proc/locks"));
        let pid = pid.to_string();
        locks
            .lines()
            .any(|lock| lock.contains("->") && lock.split(' ').any(|word| word == pid))
    };
    assert!(eventually(|| both.iter().all(|child| waits(child.id()))));
    drop(turn);
    let codes = both.each_mut().map(wait);
    assert_eq!(codes[1], Some(0));
    assert!(!cgroup("hull-cases-exec").exists(), "{codes:?}");
    leaks.nothing_left(&hull.root());
}

#[test]
fn systemd_makes_the_scope_of_a_container() {
    let leaks = LeakCheck::new();
    let systemd = Systemd::start();
    for program in ["runc", "hull"] {
        eprintln!("with {program}");
        let runtime = Hull::of_program(program).within(&systemd);
        let bundle = |path: &str| {
            Bundle::new(&["sleep", "1000"]).with(|config| {
                config["linux"]["cgroupsPath"] = json!(path);
                config["linux"]["resources"] = json!({
                    "memory": { "limit": 100 << 20, "swap": 100 << 20 },
                    "cpu": { "quota": 50_000, "period": 100_000 },
                });
            })
        };
        for path in ["/no/slice", "nonsense:hull:c"] {
            runtime.run(&bundle(path), "c").expect_error(&["slice"]);
        }
        let bundle = bundle("cases-one.slice:prefix:name");
        let _output = runtime.create(&bundle, "c");
        runtime.hull(&["start", "c"]).expect(0);
        let scope = systemd.cgroup("cases.slice/cases-one.slice/prefix-name.scope");
        if program == "hull" {
            let programs = programs(&scope);
            assert!(programs.starts_with(&["hull-monitor".into(), "hull-proxy".into()]));
        }
        let limit: u64 = read(&scope.join("memory.max")).parse().unwrap();
        assert!((100 << 20..1024 << 20).contains(&limit), "{limit}");
        assert_eq!(read(&scope.join("memory.swap.max")), "0");
        for (options, quota) in [
            ("--pids-limit 70", "50000"),
            ("--cpu-share 512", "50000"),
            ("--cpu-quota 30000", "30000"),
        ] {
            let options = options.split(' ').chain(["c"]);
            let update: Vec<_> = ["update"].into_iter().chain(options).collect();
            runtime.hull(&update).expect(0);
            // It sets what it knows.
            systemd.reload();
            assert_eq!(read(&scope.join("cpu.max")), format!("{quota} 100000"));
        }
        assert_eq!(read(&scope.join("memory.max")), limit.to_string());
        runtime.hull(&["exec", "c", "true"]).expect(0);
        runtime.hull(&["delete", "--force", "c"]).expect(0);
        assert!(eventually(|| !scope.exists()));
    }
    drop(systemd);
    assert!(!cgroup("hull-case-systemd").exists());
    leaks.nothing_more();
}
