//! Bad input and broken hosts: a clear error each time, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use hull_tests::{Bundle, Hull, LeakCheck, run, run_ok};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// `hull create` of the bundle fails with `words` in its message, and leaves nothing.
#[track_caller]
fn refused(bundle: &Bundle, words: &[&str]) {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    hull.hull(&["create", "--bundle", bundle.arg(), "bad"])
        .expect_error(words);
    leaks.nothing_left(&hull.root());
}

/// The same for a configuration that `change` has spoilt.
#[track_caller]
fn refused_with(change: impl FnOnce(&mut Value), words: &[&str]) {
    refused(&Bundle::new(&["true"]).with(change), words);
}

/// A configuration file of hull with other values, and the options that name it.
fn configuration(directory: &Path, text: &str) -> [String; 2] {
    let file = directory.join("hull.toml");
    fs::write(&file, text).unwrap();
    ["--config".to_owned(), file.to_str().unwrap().to_owned()]
}

fn hull_with(options: &[String]) -> Hull {
    Hull::with_options(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_missing_bundle_or_configuration() {
    let hull = Hull::new();
    hull.hull(&["create", "--bundle", "/no/such/bundle", "bad"])
        .expect_error(&["/no/such/bundle"]);
    let bundle = Bundle::new(&["true"]);
    fs::remove_file(bundle.path().join("config.json")).unwrap();
    refused(&bundle, &["config.json"]);
}

#[test]
fn a_broken_configuration() {
    let bundle = Bundle::new(&["true"]);
    for (text, word) in [
        ("", "config.json"),
        ("{", "config.json"),
        ("[]", "config.json"),
        ("{}", "ociVersion"),
        ("{\"ociVersion\": 1}", "config.json"),
        ("\u{0}\u{1}", "config.json"),
    ] {
        fs::write(bundle.path().join("config.json"), text).unwrap();
        refused(&bundle, &[word]);
    }
}

#[test]
fn an_unsupported_version_of_the_specification() {
    for version in ["", "0.9.0", "2.0.0", "one"] {
        refused_with(
            |config| config["ociVersion"] = json!(version),
            &["ociVersion"],
        );
    }
}

#[test]
fn an_id_that_is_no_name() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]);
    for id in [
        "",
        "a/b",
        "..",
        "../x",
        ".",
        "a b",
        "a\n",
        &"x".repeat(2000),
    ] {
        hull.hull(&["create", "--bundle", bundle.arg(), id])
            .expect_error(&["id"]);
        hull.hull(&["state", id]).expect_error(&[]);
        hull.hull(&["delete", "--force", id]).expect_error(&[]);
    }
    leaks.nothing_left(&hull.root());
}

#[test]
fn an_id_that_is_taken() {
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "taken");
    hull.hull(&["create", "--bundle", bundle.arg(), "taken"])
        .expect_error(&["taken", "exist"]);
    assert_eq!(
        hull.state("taken")["status"],
        "created",
        "the first one is as it was"
    );
    let _ = hull.hull(&["delete", "--force", "taken"]).expect(0);
}

#[test]
fn a_root_file_system_that_is_not_there() {
    refused_with(
        |config| config["root"]["path"] = json!("nowhere"),
        &["nowhere"],
    );
    refused_with(
        |config| drop(config.as_object_mut().unwrap().remove("root")),
        &["root"],
    );
    refused_with(
        |config| config["root"]["path"] = json!("config.json"),
        &["config.json"],
    );
}

#[test]
fn no_arguments() {
    refused_with(|config| config["process"]["args"] = json!([]), &["args"]);
    refused_with(
        |config| drop(config["process"].as_object_mut().unwrap().remove("args")),
        &["args"],
    );
}

#[test]
fn a_program_that_is_not_in_the_root_file_system_gives_127() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let finished = hull
        .run(&Bundle::new(&["no-such-program"]), "missing")
        .expect(127);
    assert!(
        finished
            .stderr
            .contains("executable file not found in $PATH"),
        "{}",
        finished.stderr
    );
    let finished = hull
        .run(&Bundle::new(&["/no/such/program"]), "missing")
        .expect(127);
    assert!(
        finished.stderr.contains("/no/such/program"),
        "{}",
        finished.stderr
    );
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_program_that_is_not_executable_gives_126() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["/etc/data"]);
    bundle.add_file("/etc/data", b"no program", 0o644);
    let finished = hull.run(&bundle, "data").expect(126);
    assert!(
        finished.stderr.contains("permission denied"),
        "{}",
        finished.stderr
    );
    leaks.nothing_left(&hull.root());
}

#[test]
fn what_a_virtual_machine_cannot_do_is_refused_with_the_reason() {
    let without_network = |config: &mut Value| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    };
    refused_with(without_network, &["network"]);
    refused_with(
        |config| config["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net"),
        &["network", "host"],
    );
    refused_with(
        |config| config["linux"]["namespaces"][1]["path"] = json!("/no/such/netns"),
        &["/no/such/netns"],
    );
    refused_with(
        |config| config["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid"),
        &["pid"],
    );
}

#[test]
fn a_kernel_or_an_initramfs_that_is_missing_or_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    fs::write(&text, "this is no kernel").unwrap();
    for (option, file, word) in [
        ("kernel", "/no/such/vmlinux", "/no/such/vmlinux"),
        ("initramfs", "/no/such/initramfs", "/no/such/initramfs"),
        ("kernel", text.to_str().unwrap(), "kernel"),
    ] {
        let leaks = LeakCheck::new();
        let options = configuration(
            directory.path(),
            &format!("[paths]\n{option} = \"{file}\"\n"),
        );
        let hull = hull_with(&options);
        hull.run(&Bundle::new(&["true"]), "image")
            .expect_error(&[word]);
        leaks.nothing_left(&hull.root());
    }
}

#[test]
fn an_unknown_key_in_the_configuration_of_hull() {
    let directory = tempfile::tempdir().unwrap();
    let hull = hull_with(&configuration(
        directory.path(),
        "[paths]\nkernal = \"/x\"\n",
    ));
    hull.run(&Bundle::new(&["true"]), "key")
        .expect_error(&["kernal"]);
}

#[test]
fn an_agent_that_never_answers_shows_the_console() {
    // An initramfs without an agent: the kernel finds no init, says so, and panics or waits.
    let directory = tempfile::tempdir().unwrap();
    let initramfs = directory.path().join("empty.cpio");
    let mut archive = Vec::new();
    let header = format!("070701{:0>88}{:08x}{:08x}", "", 11, 0);
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(b"TRAILER!!!\0\0\0\0");
    archive.resize(512, 0);
    fs::write(&initramfs, archive).unwrap();
    let leaks = LeakCheck::new();
    let options = configuration(
        directory.path(),
        &format!(
            "[paths]\ninitramfs = \"{}\"\n[sandbox]\nboot_timeout_s = 60\n",
            initramfs.display()
        ),
    );
    let hull = hull_with(&options);
    hull.run(&Bundle::new(&["true"]), "mute")
        .expect_error(&["Kernel panic"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn an_agent_that_is_silent_meets_the_time_limit() {
    // A guest whose init lives and says nothing to the host.
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("dev")).unwrap();
    fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    fs::write(
        root.join("init"),
        "#!/busybox sh\necho init is silent > /dev/console\nexec /busybox sleep 100000\n",
    )
    .unwrap();
    run_ok("chmod", &["755", root.join("init").to_str().unwrap()]);
    run_ok(
        "mknod",
        &[root.join("dev/console").to_str().unwrap(), "c", "5", "1"],
    );
    let initramfs = directory.path().join("silent.cpio");
    let script = format!(
        "cd {} && find . | cpio -o -H newc --quiet > {}",
        root.display(),
        initramfs.display()
    );
    if run("cpio", &["--version"]).code == 0 {
        run_ok("sh", &["-c", &script]);
    } else {
        let script = script
            .replace("cpio -o", "busybox cpio -o")
            .replace(" --quiet", "");
        run_ok("sh", &["-c", &script]);
    }
    let leaks = LeakCheck::new();
    let options = configuration(
        directory.path(),
        &format!(
            "[paths]\ninitramfs = \"{}\"\n[sandbox]\nboot_timeout_s = 20\n",
            initramfs.display()
        ),
    );
    let hull = hull_with(&options);
    hull.run(&Bundle::new(&["true"]), "silent")
        .expect_error(&["agent", "20", "init is silent"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn no_kvm_device_and_no_permission_to_use_it() {
    for (command, word) in [
        ("umount -l /dev/kvm 2>/dev/null; rm -f /dev/kvm", "/dev/kvm"),
        (
            "mknod /dev/kvm.none b 99 99; mount --bind /dev/kvm.none /dev/kvm",
            "/dev/kvm",
        ),
    ] {
        let leaks = LeakCheck::new();
        let hull = Hull::new();
        let bundle = Bundle::new(&["true"]);
        // A mount namespace with a /dev of its own, so that the machine's stays as it is.
        let script = format!(
            "mount -t tmpfs none /mnt && cp -a /dev/null /dev/zero /dev/urandom /dev/random /dev/kvm /mnt/ && \
             mkdir -p /mnt/net /mnt/pts /mnt/shm && cp -a /dev/net/tun /mnt/net/ && mount --move /mnt /dev && \
             {command}; exec hull --root {} run --bundle {} nokvm",
            hull.root().display(),
            bundle.arg()
        );
        run("unshare", &["--mount", "sh", "-c", &script]).expect_error(&[word]);
        leaks.nothing_left(&hull.root());
    }
}

#[test]
fn a_vmm_that_is_killed_leaves_a_stopped_container_that_delete_cleans_up() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut running = hull
        .command(&["run", "--bundle", bundle.arg(), "--keep", "orphan"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(hull_tests::command::eventually(|| {
        hull.hull(&["list", "-f", "json"])
            .text()
            .contains("\"running\"")
    }));
    let vmm = run_ok(
        "sh",
        &[
            "-c",
            &format!(
                "for p in /proc/[0-9]*; do if tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q 'hull-vmm.*{}'; \
         then echo ${{p#/proc/}}; fi; done",
                hull.root().display()
            ),
        ],
    );
    let pids: Vec<i32> = vmm.lines().filter_map(|pid| pid.parse().ok()).collect();
    assert!(
        !pids.is_empty(),
        "the VMM's command line names its state directory"
    );
    for pid in pids {
        // The shell above may have found itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    assert_eq!(hull_tests::command::wait(&mut running), Some(137));
    assert_eq!(hull.state("orphan")["status"], "stopped");
    hull.hull(&["exec", "orphan", "true"])
        .expect_error(&["orphan"]);
    let _ = hull.hull(&["delete", "orphan"]).expect(0);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_full_disk_under_the_state_directory() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]);
    let full = bundle.path().join("full");
    fs::create_dir(&full).unwrap();
    let full = full.to_str().unwrap();
    run_ok("mount", &["-t", "tmpfs", "-o", "size=16k", "none", full]);
    run("sh", &["-c", &format!("yes > {full}/filler")]).expect_error(&[]);
    let finished = run(
        "hull",
        &[
            "--root",
            &format!("{full}/state"),
            "run",
            "--bundle",
            bundle.arg(),
            "full",
        ],
    );
    let left: Vec<_> = ["containers", "sandboxes"]
        .iter()
        .flat_map(|kind| {
            fs::read_dir(format!("{full}/state/{kind}"))
                .into_iter()
                .flatten()
                .flatten()
        })
        .map(|entry| entry.path())
        .collect();
    run_ok("umount", &[full]);
    finished.expect_error(&["No space left on device"]);
    assert!(left.is_empty(), "{left:?}");
    leaks.nothing_left(&hull.root());
}

#[test]
fn unknown_containers_and_signals() {
    let hull = Hull::new();
    for verb in ["state", "start", "delete"] {
        hull.hull(&[verb, "nobody"])
            .expect_error(&["nobody", "does not exist"]);
    }
    hull.hull(&["kill", "nobody", "TERM"])
        .expect_error(&["does not exist"]);
    let bundle = Bundle::new(&["sleep", "1000"]);
    let _ = hull.create(&bundle, "signals");
    hull.hull(&["kill", "signals", "NOSUCH"])
        .expect_error(&["NOSUCH"]);
    hull.hull(&["kill", "signals", "4711"])
        .expect_error(&["4711"]);
    let _ = hull.hull(&["delete", "--force", "signals"]).expect(0);
}

#[test]
fn errors_go_to_the_log_as_json() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.json");
    let hull = Hull::with_options(&["--log", log.to_str().unwrap(), "--log-format", "json"]);
    hull.hull(&["state", "nobody"]).expect_error(&["nobody"]);
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("nobody"), "{last}");
    assert!(last["time"].is_string());
}
