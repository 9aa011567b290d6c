//! Containers through the agent's own functions, on this machine instead of in a guest: the helper is the built
//! program, the root file system holds busybox, and the streams' connections are socket pairs.
//!
//! Each test runs in a thread with a mount namespace of its own, whose `/sys/fs/cgroup` is cgroup v2 as in the guest;
//! the test process takes orphans in, as PID 1 does. Needs root and `busybox`.

mod host;

use std::fs;
use std::time::Duration;

use host::{TestResult, on_a_guest, process, read_to_end, runs};
use hull_agent::container::helper::{Failure, HelperError};
use hull_agent::container::{CreateOptions, Error, ProcessInfo};
use hull_agent::stdio::InheritedFile;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn output_and_exit_status_come_through() -> TestResult {
    on_a_guest(async |guest| {
        let run = guest
            .run(&["sh", "-c", "echo out; echo err >&2; exit 7"], None)
            .await?;
        assert_eq!(run.stdout, b"out\n");
        assert_eq!(run.stderr, b"err\n");
        assert_eq!(run.status, 7);
        Ok(())
    })
}

#[test]
fn stdin_is_byte_exact_and_ends() -> TestResult {
    on_a_guest(async |guest| {
        let bytes: Vec<u8> = (0..1_u32 << 20)
            .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
            .collect();
        let run = guest.run(&["cat"], Some(&bytes)).await?;
        assert!(run.stdout == bytes, "{} bytes came back", run.stdout.len());
        assert_eq!(run.status, 0);
        Ok(())
    })
}

#[test]
fn without_stdin_a_process_reads_nothing() -> TestResult {
    on_a_guest(async |guest| {
        let run = guest.run(&["sh", "-c", "cat; echo end"], None).await?;
        assert_eq!(run.stdout, b"end\n");
        Ok(())
    })
}

#[test]
fn a_signal_ends_a_process_with_128_and_its_number() -> TestResult {
    on_a_guest(async |guest| {
        let process = guest.started("c", &["sleep", "1000"]).await?;
        let container = guest.containers.get("c")?;
        // The kernel keeps signals without a handler from a namespace's first process, SIGKILL excepted.
        container.signal("", 9, false)?;
        assert_eq!(process.wait().await.status, 137);
        assert!(matches!(container.signal("", 9, false), Err(Error::Ended)));
        assert!(matches!(
            container.signal("", 999, false),
            Err(Error::BadSignal(999))
        ));
        guest.containers.remove("c").await?;
        assert!(matches!(
            guest.containers.get("c"),
            Err(Error::NoContainer(_))
        ));
        Ok(())
    })
}

#[test]
fn device_rules_hold_for_nodes_that_a_container_makes() -> TestResult {
    on_a_guest(async |guest| {
        // 1:11 is kmsg, 1:7 is full, 10:1 exists nowhere.
        let script = "mknod /dev/log c 1 11; mknod /dev/f c 1 7; mknod /dev/o c 10 1; \
                      cat /dev/log; cat /dev/f | head -c 1 | wc -c; echo x > /dev/null && echo null; cat /dev/o; \
                      head -c 1 /dev/urandom | wc -c";
        let mut config = guest.config(&["sh", "-c", script]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
        }
        config["linux"]["resources"] = json!({ "devices": [
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm" },
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "access": "w" },
        ] });
        let run = guest.run_config(config.clone(), None).await?;
        assert_eq!(String::from_utf8(run.stdout)?, "1\nnull\n1\n");
        let errors = String::from_utf8(run.stderr)?;
        assert!(
            errors.contains("can't open '/dev/log': Operation not permitted"),
            "{errors}"
        );
        // Reading is not among what the rule for it allows.
        assert!(
            errors.contains("can't open '/dev/o': Operation not permitted"),
            "{errors}"
        );

        config["linux"]["resources"]["devices"][2]["access"] = json!("rw");
        let run = guest.run_config(config.clone(), None).await?;
        let errors = String::from_utf8(run.stderr)?;
        assert!(
            errors.contains("can't open '/dev/o': No such device"),
            "{errors}"
        );

        config["linux"]["resources"]["devices"][2]["access"] = json!("x");
        let json = config.to_string();
        let refused = guest
            .containers
            .create("c", json.as_bytes(), &CreateOptions::default())
            .await;
        assert!(matches!(refused, Err(Error::Devices(_))));
        guest.assert_nothing_left("c");
        Ok(())
    })
}

#[test]
fn a_process_has_open_files_beside_its_stdio() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sleep", "1000"]).await?;
        let files = [
            InheritedFile::Input,
            InheritedFile::Output,
            InheritedFile::Socket,
            InheritedFile::UnixListener,
            InheritedFile::tcp_listener(false, 0),
            InheritedFile::Null,
        ];
        let script = "read word <&3; echo got $word >&4; read word <&5; echo and $word >&5; cat <&8; ls /proc/self/fd; \
                      exec 3<&- 4>&- 5>&-; read done";
        let json = process(&["sh", "-c", script]).to_string();
        let exec = guest
            .containers
            .exec("c", "e", json.as_bytes(), true, &files, "")
            .await?;
        let mut input = guest.open("file-3", "c", "e").await?;
        input.write_all(b"in\n").await?;
        let mut output = guest.open("file-4", "c", "e").await?;
        let mut line = [0; 7];
        output.read_exact(&mut line).await?;
        assert_eq!(&line, b"got in\n");
        let mut socket = guest.open("file-5", "c", "e").await?;
        socket.write_all(b"both\n").await?;
        assert_eq!(read_to_end(&mut socket).await?, b"and both\n");
        assert_eq!(read_to_end(&mut output).await?, b"");
        // Each is another connection, which the process has not accepted.
        for kind in ["file-6", "file-6", "file-7", "file-7"] {
            guest.open(kind, "c", "e").await?;
        }
        for kind in ["file-3", "file-4", "file-5", "file-8", "file-9"] {
            assert!(guest.open(kind, "c", "e").await.is_err(), "{kind}");
        }
        let mut stdout = guest.open("stdout", "c", "e").await?;
        drop(guest.open("stdin", "c", "e").await?);
        assert_eq!(exec.wait().await.status, 1);
        let listed = String::from_utf8(read_to_end(&mut stdout).await?)?;
        // And the directory itself.
        assert_eq!(listed, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_real_time_signal_reaches_and_ends_a_process() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sleep", "1000"]).await?;
        let json = process(&["sleep", "1000"]).to_string();
        let exec = guest
            .containers
            .exec("c", "e", json.as_bytes(), false, &[], "")
            .await?;
        let signal = libc::SIGRTMIN() + 3;
        guest
            .containers
            .get("c")?
            .signal("e", signal.unsigned_abs(), false)?;
        assert_eq!(i32::from(exec.wait().await.status), 128 + signal);
        guest.containers.get("c")?.signal("", 0, false)?;
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_working_directory_that_is_not_there_is_made() -> TestResult {
    on_a_guest(async |guest| {
        // A link that would lead out of the root file system.
        std::os::unix::fs::symlink("/", guest.rootfs().join("link"))?;
        let mut config = guest.config(&["pwd"]);
        config["process"]["cwd"] = json!("/link/new/work");
        let run = guest.run_config(config, None).await?;
        assert_eq!(String::from_utf8(run.stdout)?, "/new/work\n");
        assert!(guest.rootfs().join("new/work").is_dir());
        Ok(())
    })
}

#[test]
fn a_program_that_is_not_there_or_not_executable_is_told_apart() -> TestResult {
    on_a_guest(async |guest| {
        fs::write(guest.rootfs().join("data"), "not a program")?;
        for (program, expected, found) in [
            (
                "nonsense",
                "exec: \"nonsense\": executable file not found in $PATH",
                false,
            ),
            (
                "/no/such",
                "exec: \"/no/such\": stat /no/such: no such file or directory",
                false,
            ),
            ("/data", "exec: \"/data\": permission denied", true),
            ("/bin", "exec: \"/bin\": is a directory", true),
        ] {
            let config = guest.config(&[program]).to_string();
            let error = guest
                .containers
                .create("c", config.as_bytes(), &CreateOptions::default())
                .await
                .err();
            let Some(Error::Helper(HelperError::Failed(failure))) = error else {
                return Err(format!("{program}: {error:?}").into());
            };
            assert_eq!(failure.to_string(), expected);
            assert_eq!(
                matches!(failure, Failure::NotExecutable(_)),
                found,
                "{program}"
            );
            guest.assert_nothing_left("c");
        }
        Ok(())
    })
}

#[test]
fn a_container_that_cannot_be_made_says_why_and_leaves_nothing() -> TestResult {
    on_a_guest(async |guest| {
        let mut config = guest.config(&["true"]);
        config["mounts"] = json!([
            { "destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["bind"] },
        ]);
        let config = config.to_string();
        let error = guest
            .containers
            .create("c", config.as_bytes(), &CreateOptions::default())
            .await
            .err();
        let text = format!("{error:?}");
        assert!(
            text.contains("/no/such/source") && text.contains("ENOENT")
                || text.contains("No such file"),
            "{text}"
        );
        guest.assert_nothing_left("c");

        let config = guest.config(&["true"]).to_string();
        guest
            .containers
            .create("c", config.as_bytes(), &CreateOptions::default())
            .await?;
        let again = guest
            .containers
            .create("c", config.as_bytes(), &CreateOptions::default())
            .await;
        assert!(matches!(again, Err(Error::Exists(_))));
        for id in ["", "..", "a/b", "a b"] {
            let bad = guest
                .containers
                .create(id, config.as_bytes(), &CreateOptions::default())
                .await;
            assert!(matches!(bad, Err(Error::BadId(_))), "{id:?}");
        }
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_container_has_its_own_namespaces_but_the_guests_network() -> TestResult {
    on_a_guest(async |guest| {
        let names = ["pid", "mnt", "ipc", "uts", "cgroup", "net"];
        let script = names
            .map(|name| format!("readlink /proc/self/ns/{name}"))
            .join(";");
        let mut config = guest.config(&[
            "sh",
            "-c",
            &format!("{script}; hostname; echo $$; cat /proc/self/cgroup"),
        ]);
        config["hostname"] = json!("box");
        let run = guest.run_config(config, None).await?;
        let text = String::from_utf8(run.stdout)?;
        let lines: Vec<&str> = text.lines().collect();
        for (name, line) in names.iter().zip(&lines) {
            let ours = fs::read_link(format!("/proc/thread-self/ns/{name}"))?;
            let same = ours.to_string_lossy() == **line;
            assert_eq!(same, *name == "net", "{name}: {line}");
        }
        assert_eq!(lines[6..8], ["box", "1"]);
        // The last one is cgroup v2.
        assert_eq!(lines.last(), Some(&"0::/"));
        Ok(())
    })
}

#[test]
fn seccomp_has_its_effect_with_and_without_new_privileges_and_in_exec() -> TestResult {
    on_a_guest(async |guest| {
        for no_new_privileges in [true, false] {
            // Also denies what the set-up itself uses, which the profile must not hit.
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    { "names": ["mkdir", "mkdirat", "getcwd", "accept4", "accept", "setresuid", "close_range"],
                      "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
                ],
            });
            let script = "mkdir /tmp/x 2>&1; grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status; sleep 1000";
            let mut config = guest.config(&["sh", "-c", script]);
            config["linux"]["seccomp"] = profile;
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            let nnp = u8::from(no_new_privileges);
            let wanted = format!("CapBnd:\t0000000000000001\nNoNewPrivs:\t{nnp}\nSeccomp:\t2\n");

            let first = guest.create("c", &config, false).await?;
            guest.containers.start("c").await?;
            let mut stdout = guest.open("stdout", "c", "").await?;
            let text = host::read_until(&mut stdout, "Seccomp:\t2\n").await?;
            assert!(text.contains("Operation not supported"), "{text}");
            assert!(text.ends_with(&wanted), "{text}");

            let mut exec = process(&[
                "sh",
                "-c",
                "mkdir /tmp/y 2>&1; grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status",
            ]);
            exec["noNewPrivileges"] = json!(no_new_privileges);
            let run = guest.exec("c", "e", &exec, None).await?;
            let text = String::from_utf8(run.stdout)?;
            assert!(
                text.contains("Operation not supported") && text.ends_with(&wanted),
                "{text}"
            );
            guest.containers.remove("c").await?;
            assert_eq!(first.wait().await.status, 137);
        }
        Ok(())
    })
}

#[test]
fn a_process_has_its_user_environment_and_limits() -> TestResult {
    on_a_guest(async |guest| {
        let script = "id -u; id -g; id -G; pwd; echo $A; ulimit -n; umask; yes 2>&1 | head -n 1; env | grep -c .; \
                      echo by its name > /proc/self/fd/1";
        let mut config = guest.config(&["sh", "-c", script]);
        config["process"]["user"] =
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o27 });
        config["process"]["cwd"] = json!("/tmp");
        config["process"]["env"] = json!(["PATH=/bin", "A=b c"]);
        config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        let run = guest.run_config(config, None).await?;
        let text = String::from_utf8(run.stdout)?;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..8],
            ["1000", "1001", "1001 7", "/tmp", "b c", "100", "0027", "y"]
        );
        assert_eq!(lines.last(), Some(&"by its name"));
        // SIGPIPE has its default action: yes(1) has nothing to say.
        assert_eq!(String::from_utf8(run.stderr)?, "");
        Ok(())
    })
}

#[test]
fn start_hooks_run_in_the_container_and_a_failing_one_ends_it() -> TestResult {
    on_a_guest(async |guest| {
        let mut config = guest.config(&["sh", "-c", "cat /tmp/hook"]);
        config["hooks"] = json!({
            "prestart": [{ "path": "/no/such/host/program" }],
            "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/hook; echo >>/tmp/hook"] }],
        });
        let run = guest.run_config(config.clone(), None).await?;
        let state: serde_json::Value = serde_json::from_slice(&run.stdout)?;
        assert_eq!(state["status"], "created");
        assert_eq!(state["pid"], 1);

        // It runs under the process's own profile.
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }],
        });
        let hook = json!({ "path": "/bin/mkdir", "args": ["mkdir", "/tmp/made"] });
        config["hooks"] = json!({ "startContainer": [hook] });
        for no_new_privileges in [true, false] {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            let run = guest.run_config(config.clone(), None).await?;
            assert_eq!(run.status, 255);
            let text = String::from_utf8(run.stderr)?;
            let told = "error running startContainer hook #0: error running hook: exit status: 1";
            assert!(text.contains(told), "{text}");
        }
        Ok(())
    })
}

#[test]
fn exec_runs_beside_the_first_process_and_leaks_nothing() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sleep", "1000"]).await?;
        let run = guest
            .exec(
                "c",
                "first",
                &process(&["sh", "-c", "echo $$ $PPID; cat; exit 3"]),
                Some(b"in"),
            )
            .await?;
        assert_eq!(run.status, 3);
        assert!(
            run.stdout.ends_with(b" 0\nin"),
            "{:?}",
            String::from_utf8_lossy(&run.stdout)
        );
        let descriptors = host::open_descriptors()?;
        for number in 0..100 {
            let run = guest
                .exec("c", &format!("e{number}"), &process(&["true"]), None)
                .await?;
            assert_eq!(run.status, 0);
        }
        assert!(
            host::open_descriptors()? <= descriptors + 2,
            "descriptors leak"
        );
        assert_eq!(
            guest.files_of("c")?,
            [
                "config.json",
                "notify.sock",
                "state.json",
                "youki_config.json"
            ]
        );
        assert_eq!(guest.containers.get("c")?.list()?.len(), 1);

        let error = guest
            .exec("c", "bad", &process(&["nonsense"]), None)
            .await
            .err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(
            text,
            "exec: \"nonsense\": executable file not found in $PATH"
        );
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn containers_in_a_row_leave_nothing() -> TestResult {
    on_a_guest(async |guest| {
        guest.run(&["true"], None).await?;
        let descriptors = host::open_descriptors()?;
        for _ in 0..30 {
            assert_eq!(guest.run(&["true"], None).await?.status, 0);
        }
        assert!(
            host::open_descriptors()? <= descriptors + 2,
            "descriptors leak"
        );
        assert!(!guest.containers.reaper().has_children());
        Ok(())
    })
}

#[test]
fn output_of_an_exec_ends_with_it_even_if_a_child_keeps_it_open() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sleep", "1000"]).await?;
        let script = "sleep 1000 & head -c 60000 /dev/zero";
        let process = process(&["sh", "-c", script]);
        let exec = guest.exec("c", "e", &process, None);
        let run = tokio::time::timeout(Duration::from_secs(20), exec).await??;
        assert_eq!(run.stdout.len(), 60000);
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_reader_that_does_not_read_blocks_its_own_process_only() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sh", "-c", "yes"]).await?;
        let _unread = guest.open("stdout", "c", "").await?;
        let run = guest
            .exec("c", "e", &process(&["echo", "here"]), None)
            .await?;
        assert_eq!(run.stdout, b"here\n");
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_terminal_carries_both_ways_and_has_a_size() -> TestResult {
    on_a_guest(async |guest| {
        let mut config = guest.config(&[
            "sh",
            "-c",
            "tty; stty size; read line; stty size; echo got $line; exit 4",
        ]);
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 30, "width": 90 });
        let first = guest.create("c", &config, true).await?;
        guest.containers.start("c").await?;
        let mut terminal = guest.open("terminal", "c", "").await?;
        let text = host::read_until(&mut terminal, "30 90\r\n").await?;
        assert!(text.starts_with("/dev/"), "{text}");
        first.io.resize(50, 120)?;
        tokio::io::AsyncWriteExt::write_all(&mut terminal, b"hello\n").await?;
        let text = host::read_to_end(&mut terminal).await?;
        assert_eq!(text, b"hello\r\n50 120\r\ngot hello\r\n");
        assert_eq!(first.wait().await.status, 4);

        guest.containers.remove("c").await?;
        guest.started("d", &["sleep", "1000"]).await?;
        let script =
            "stty size; echo $TERM; stat -L -c %u /proc/self/fd/0; grep CapEff /proc/self/status";
        let mut exec = process(&["sh", "-c", script]);
        exec["terminal"] = json!(true);
        exec["user"] = json!({ "uid": 1000, "gid": 1000 });
        exec["consoleSize"] = json!({ "height": 11, "width": 22 });
        exec["env"] = json!(["PATH=/bin", "TERM=vt100"]);
        let process = guest
            .containers
            .exec("d", "e", exec.to_string().as_bytes(), true, &[], "")
            .await?;
        let mut terminal = guest.open("terminal", "d", "e").await?;
        assert_eq!(
            host::read_to_end(&mut terminal).await?,
            b"11 22\r\nvt100\r\n1000\r\nCapEff:\t0000000000000000\r\n"
        );
        assert_eq!(process.wait().await.status, 0);
        guest.containers.remove("d").await?;
        Ok(())
    })
}

#[test]
fn streams_are_opened_once_and_only_if_they_are_there() -> TestResult {
    on_a_guest(async |guest| {
        guest.started("c", &["sleep", "1000"]).await?;
        let _stdout = guest.open("stdout", "c", "").await?;
        for (kind, container, exec, answer) in [
            ("stdout", "c", "", "was opened before"),
            ("stdin", "c", "", "has no stream"),
            ("terminal", "c", "", "has no stream"),
            ("stdout", "d", "", "there is no container"),
            ("stdout", "c", "e", "has no process"),
        ] {
            let error = guest.open(kind, container, exec).await.err();
            let text = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                text.starts_with("error ") && text.contains(answer),
                "{text:?}"
            );
        }
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn closing_stdin_keeps_what_has_come() -> TestResult {
    on_a_guest(async |guest| {
        let config = guest.config(&["sh", "-c", "sleep 0.3; wc -c"]);
        let first = guest.create("c", &config, true).await?;
        guest.containers.start("c").await?;
        let mut stdin = guest.open("stdin", "c", "").await?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, &[7; 5000]).await?;
        first.io.close_stdin();
        let mut stdout = guest.open("stdout", "c", "").await?;
        assert_eq!(host::read_to_end(&mut stdout).await?, b"5000\n");
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn all_processes_of_a_container_are_listed_signalled_paused_and_killed() -> TestResult {
    on_a_guest(async |guest| {
        let script = "trap 'echo term' TERM; sleep 999 & while true; do sleep 0.05; done";
        let first = guest.started("c", &["sh", "-c", script]).await?;
        let container = guest.containers.get("c")?;
        // The shell's children call themselves as it does until they execute.
        let has = |list: Vec<ProcessInfo>| {
            let mut all = list.iter();
            all.any(|one| one.command == "sleep 999" && one.uid == 0)
        };
        runs(async || container.list().is_ok_and(has)).await?;
        container.freeze(true).await?;
        let paused = guest.exec("c", "e", &process(&["true"]), None).await.err();
        assert_eq!(
            paused.map(|error| error.to_string()).as_deref(),
            Some("container \"c\" is paused")
        );
        container.freeze(false).await?;
        container.signal("", 15, true)?;
        let mut stdout = guest.open("stdout", "c", "").await?;
        host::read_until(&mut stdout, "term\n").await?;
        let gone = |list: Vec<ProcessInfo>| list.iter().all(|one| one.command != "sleep 999");
        runs(async || container.list().is_ok_and(gone)).await?;
        container.signal("", 9, true)?;
        assert_eq!(first.wait().await.status, 137);
        guest.containers.remove("c").await?;
        guest.assert_nothing_left("c");
        Ok(())
    })
}

#[test]
fn read_only_and_masked_paths_and_tmpfs_mounts_hold() -> TestResult {
    on_a_guest(async |guest| {
        let script = "touch /x /dev/x 2>&1; echo into > /dev/null && echo null; echo 1 > /proc/sys/kernel/panic; cat /proc/kcore | wc -c; touch /scratch/a && echo ok; \
                      mount | grep -c 'on /scratch type tmpfs .*size=1024k'";
        let mut config = guest.config(&["sh", "-c", script]);
        config["root"]["readonly"] = json!(true);
        config["mounts"][1]["options"] = json!(["mode=755", "ro"]);
        config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        let mounts = config["mounts"].as_array_mut().ok_or("mounts")?;
        mounts.push(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nosuid"] }));
        fs::create_dir_all(guest.rootfs().join("scratch"))?;
        let run = guest.run_config(config, None).await?;
        let text = String::from_utf8(run.stdout)?;
        assert_eq!(
            text,
            "touch: /x: Read-only file system\ntouch: /dev/x: Read-only file system\nnull\n0\nok\n1\n",
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        assert!(String::from_utf8(run.stderr)?.contains("/proc/sys/kernel/panic: Read-only"));
        Ok(())
    })
}
