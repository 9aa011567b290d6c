//! What the host holds of a container beside its streams: the lease on a process, the notification socket, and the
//! namespaces that another container joins. As containers.rs, on this machine instead of in a guest.

mod host;

use std::os::unix::net::UnixDatagram;

use hull_agent::container::{CreateOptions, SharedMemory};

use host::{TestResult, on_a_guest, runs};
use serde_json::json;
use tokio::io::AsyncReadExt;

fn notifying(name: &str) -> CreateOptions {
    CreateOptions {
        notify_socket: Some(name.into()),
        ..CreateOptions::default()
    }
}

#[test]
fn a_process_that_nobody_holds_any_more_is_killed() -> TestResult {
    on_a_guest(async |guest| {
        let first = guest.started("c", &["sleep", "1000"]).await?;
        let process =
            json!({ "args": ["sleep", "1000"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let executed = guest
            .containers
            .exec("c", "e", process.to_string().as_bytes(), false, &[], "")
            .await?;
        let lease_of_first = guest.open("lease", "c", "").await?;
        drop(guest.open("lease", "c", "e").await?);
        assert_eq!(executed.wait().await.status, 137);
        assert!(first.exit().is_none());
        drop(lease_of_first);
        assert_eq!(first.wait().await.status, 137);
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn messages_are_carried_before_and_after_the_start() -> TestResult {
    on_a_guest(async |guest| {
        let config = guest.config(&["sleep", "1000"]).to_string();
        for bad in ["", "..", "a/b"] {
            let refused = guest
                .containers
                .create("c", config.as_bytes(), &notifying(bad))
                .await;
            assert!(refused.is_err(), "{bad:?}");
        }
        guest
            .containers
            .create("c", config.as_bytes(), &notifying("notify.sock"))
            .await?;
        let path = guest.notify_directory("c").join("notify.sock");
        let sender = UnixDatagram::unbound()?;
        sender.send_to(b"STATUS=waiting", &path)?;
        let mut stream = guest.open("notify", "c", "").await?;
        assert!(guest.open("notify", "c", "").await.is_err(), "it is taken");
        guest.containers.start("c").await?;
        sender.send_to(&[b'x'; 5000], &path)?;
        sender.send_to(b"READY=1", &path)?;
        guest.containers.get("c")?.signal("", 9, false)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        assert_eq!(bytes, b"\0\x0eSTATUS=waiting\0\x07READY=1");
        guest.containers.remove("c").await?;
        assert!(!path.exists());
        Ok(())
    })
}

#[test]
fn what_nobody_reads_blocks_no_program() -> TestResult {
    on_a_guest(async |guest| {
        let config = guest.config(&["sleep", "1000"]).to_string();
        guest
            .containers
            .create("c", config.as_bytes(), &notifying("s"))
            .await?;
        guest.containers.start("c").await?;
        let path = guest.notify_directory("c").join("s");
        let sent = tokio::task::spawn_blocking(move || {
            let sender = UnixDatagram::unbound()?;
            (0..1000).try_for_each(|_| sender.send_to(b"STATUS=again", &path).map(drop))
        });
        sent.await??;
        guest.containers.remove("c").await?;
        Ok(())
    })
}

#[test]
fn a_container_joins_the_namespaces_of_another() -> TestResult {
    on_a_guest(async |guest| {
        let first = guest.started("one", &["sleep", "1000"]).await?;
        let mut config = guest.config(&[
            "sh",
            "-c",
            "echo $$; readlink /proc/1/ns/ipc; readlink /proc/self/ns/ipc",
        ]);
        let path = |name: &str| format!("/proc/{}/ns/{name}", first.pid());
        config["linux"]["namespaces"] = json!([
            { "type": "pid", "path": path("pid") }, { "type": "ipc", "path": path("ipc") }, { "type": "mount" },
        ]);
        let run = guest.run_config(config, None).await?;
        let text = String::from_utf8(run.stdout)?;
        let lines: Vec<&str> = text.lines().collect();
        assert_ne!(
            lines[0], "1",
            "it is not the first process of its namespace: {text}"
        );
        assert_eq!(lines[1], lines[2], "{text}");
        guest.containers.remove("one").await?;
        Ok(())
    })
}

#[test]
fn containers_of_a_pod_share_its_init() -> TestResult {
    on_a_guest(async |guest| {
        let config = |script: &str| {
            let mut config = guest.config(&["sh", "-c", script]);
            config["linux"]["namespaces"] =
                json!([{ "type": "pid", "path": "/proc/1/ns/pid" }, { "type": "mount" }]);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_SYS_PTRACE"]);
            }
            config
        };
        let create = async |id: &str, script: &str| {
            let process = guest.create(id, &config(script), false).await?;
            guest.containers.start(id).await?;
            Ok::<_, host::TestError>(process)
        };
        let listed = |id: &str, command: &str| {
            let list = guest.containers.get(id).and_then(|it| it.list());
            list.is_ok_and(|list| list.iter().any(|one| one.command == command))
        };
        let first = create("one", "sleep 1001 & exec sleep 1000").await?;
        let second = create("two", "sleep 1002 & while true; do sleep 0.05; done").await?;
        runs(async || listed("one", "sleep 1001") && listed("two", "sleep 1002")).await?;

        // It is as little as can be to who may see all of it, and nothing from here but SIGTERM ends it.
        let script =
            "kill -KILL 1; kill -HUP 1; cat /proc/1/cmdline; ls -A /proc/1/root /proc/1/cwd
                      grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/1/status";
        let run = guest.run_config(config(script), None).await?;
        assert_eq!(
            String::from_utf8(run.stdout)?,
            "hull-agent\0pod-init\0/proc/1/cwd:\n\n/proc/1/root:\n\
             Uid:\t65535\t65535\t65535\t65535\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n",
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );

        // It reaps what is left to it.
        let script = "orphan=$(sleep 0.1 >/dev/null & echo $!)
                      while [ -e /proc/$orphan ]; do sleep 0.05; done; echo reaped";
        let run = guest.run_config(config(script), None).await?;
        assert_eq!(run.stdout, b"reaped\n");

        // A container ends with its first process, and the pod's others do not.
        guest.containers.get("one")?.signal("", 9, false)?;
        assert_eq!(first.wait().await.status, 137);
        runs(async || !listed("one", "sleep 1001")).await?;
        assert!(listed("two", "sleep 1002"));

        // All end with it; the next container has a new one.
        for _ in 0..2 {
            let run = guest
                .run_config(config("kill -TERM 1; sleep 1000"), None)
                .await?;
            assert_eq!(run.status, 137);
        }
        assert_eq!(second.wait().await.status, 137);
        for id in ["one", "two"] {
            guest.containers.remove(id).await?;
        }
        Ok(())
    })
}

#[test]
fn shared_memory_is_there_as_long_as_a_container_that_has_it() -> TestResult {
    on_a_guest(async |guest| {
        let memory = SharedMemory {
            name: "8-1".into(),
            size: 1 << 20,
        };
        let path = guest.shared_memory().join("8-1");
        let mut config = guest.config(&["sh", "-c", "cat /shm/word; echo written > /shm/word"]);
        let mount =
            json!({ "destination": "/shm", "type": "bind", "source": path, "options": ["bind"] });
        config["mounts"] = match config["mounts"].as_array() {
            Some(mounts) => [&mounts[..], &[mount]].concat().into(),
            None => json!([mount]),
        };
        let options = CreateOptions {
            shared_memory: vec![memory],
            ..CreateOptions::default()
        };
        for id in ["one", "two"] {
            let json = config.to_string();
            let process = guest
                .containers
                .create(id, json.as_bytes(), &options)
                .await?;
            guest.containers.start(id).await?;
            let status = process.wait().await.status;
            assert_eq!(status, 0, "{id}");
            assert_eq!(std::fs::read_to_string(path.join("word"))?, "written\n");
        }
        guest.containers.remove("one").await?;
        assert!(path.join("word").exists());
        guest.containers.remove("two").await?;
        assert!(!path.exists());
        Ok(())
    })
}
