//! Kubernetes runs pods under hull through containerd: a RuntimeClass's handler `hull`, which is the runtime
//! `io.containerd.hull.v2` in containerd's configuration.

use std::fs;

use hull_tests::command::eventually;
use hull_tests::containerd::{BUSYBOX, Containerd, Cri};
use hull_tests::{LeakCheck, run};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where the shim keeps the state of Kubernetes' containers.
const ROOT: &str = "/run/hull/containerd/k8s.io";

/// A pod, and what containers of it are made with.
struct Pod<'a> {
    cri: &'a Cri,
    config: Value,
    id: String,
    logs: TempDir,
}

/// What a pod and its containers are told of the namespaces that they share.
type Namespaces = Value;

fn pod_config(logs: &TempDir, namespaces: &Namespaces) -> Value {
    json!({
        "metadata": { "name": "pod", "uid": "uid", "namespace": "default" },
        "hostname": "pod",
        "logDirectory": logs.path(),
        "linux": { "securityContext": { "namespaceOptions": namespaces } },
    })
}

impl<'a> Pod<'a> {
    fn run(cri: &'a Cri, namespaces: &Namespaces) -> Self {
        let logs = TempDir::with_prefix("logs-").unwrap();
        let config = pod_config(&logs, namespaces);
        let request = json!({ "config": config, "runtimeHandler": "hull" });
        let answer = cri.call("RunPodSandbox", &request);
        let id = answer["podSandboxId"].as_str().unwrap().to_owned();
        Self {
            cri,
            config,
            id,
            logs,
        }
    }

    fn address(&self) -> String {
        let status = self
            .cri
            .call("PodSandboxStatus", &json!({ "podSandboxId": self.id }));
        assert_eq!(status["status"]["runtimeHandler"], "hull", "{status}");
        status["status"]["network"]["ip"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Creates and starts a container that runs a shell script, with what `configure` adds to its configuration.
    fn start(&self, name: &str, script: &str, configure: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({
            "metadata": { "name": name },
            "image": { "image": BUSYBOX },
            "command": ["sh", "-c", script],
            "logPath": format!("{name}.log"),
            "linux": self.config["linux"],
        });
        configure(&mut config);
        let request =
            json!({ "podSandboxId": self.id, "config": config, "sandboxConfig": self.config });
        let created = self.cri.call("CreateContainer", &request);
        let id = created["containerId"].as_str().unwrap().to_owned();
        self.cri
            .call("StartContainer", &json!({ "containerId": id }));
        id
    }

    fn status(&self, container: &str) -> Value {
        let request = json!({ "containerId": container });
        self.cri.call("ContainerStatus", &request)["status"].take()
    }

    fn await_exit(&self, container: &str) -> Value {
        let mut status = Value::Null;
        let exited = eventually(|| {
            status = self.status(container);
            status["state"] == "CONTAINER_EXITED"
        });
        assert!(exited, "{status}");
        status
    }

    /// Waits for a line of a container's log: a time, a stream, `F`, and the words.
    fn await_log(&self, name: &str, line: &str) {
        let path = self.logs.path().join(format!("{name}.log"));
        let mut log = String::new();
        let written = eventually(|| {
            log = fs::read_to_string(&path).unwrap_or_default();
            log.lines().any(|logged| logged.ends_with(line))
        });
        assert!(written, "{line:?} is not in {log:?}");
    }

    fn remove(&self) {
        let request = json!({ "podSandboxId": self.id });
        self.cri.call("StopPodSandbox", &request);
        self.cri.call("RemovePodSandbox", &request);
    }
}

#[test]
fn a_pod_of_kubernetes_lives_in_one_vm() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let pod = Pod::run(&cri, &json!({ "pid": "CONTAINER" }));
    let secrets = TempDir::new().unwrap();
    fs::write(secrets.path().join("word"), "old").unwrap();
    let server = pod.start(
        "server",
        "trap 'exit 4' TERM; mkdir /www; echo page > /www/index.html; httpd -p 80 -h /www
         echo serves; echo complaint >&2; while :; do sleep 0.1; done",
        |config| {
            config["envs"] = json!([{ "key": "WORD", "value": "told" }]);
            config["mounts"] =
                json!([{ "containerPath": "/secrets", "hostPath": secrets.path(), "readonly": true }]);
            config["linux"]["resources"] = json!({ "memoryLimitInBytes": "67108864" });
        },
    );
    let client = pod.start("client", "sleep 100000", |_| {});
    pod.await_log("server", "stdout F serves");
    pod.await_log("server", "stderr F complaint");

    // One kernel, one network, one host name.
    let same = "cat /proc/sys/kernel/random/boot_id; hostname; ip -4 -o addr show dev eth0; readlink /proc/self/ns/ipc";
    assert_eq!(cri.exec_ok(&server, same), cri.exec_ok(&client, same));
    let fetch = "wget -T 20 -q -O - http://127.0.0.1/";
    assert_eq!(cri.exec_ok(&client, fetch), "page\n");
    let url = format!("http://{}/", pod.address());
    assert!(eventually(|| run("curl", &["-sS", "-m", "20", &url])
        .text()
        == "page\n"));
    cri.exec_ok(&server, "echo shared > /dev/shm/word");
    assert_eq!(cri.exec_ok(&client, "cat /dev/shm/word"), "shared\n");

    // Each has its own processes, environment and mounts; those change live.
    assert_eq!(
        cri.exec(&server, "echo $WORD; exit 3"),
        (3, "told\n".into())
    );
    assert!(!cri.exec_ok(&client, "ps").contains("httpd"));
    fs::write(secrets.path().join("word"), "new").unwrap();
    assert_eq!(cri.exec_ok(&server, "cat /secrets/word"), "new");

    let limit = "cat /sys/fs/cgroup/memory.max";
    assert_eq!(cri.exec_ok(&server, limit), "67108864\n");
    let more = json!({ "containerId": server, "linux": { "memoryLimitInBytes": "134217728" } });
    cri.call("UpdateContainerResources", &more);
    assert_eq!(cri.exec_ok(&server, limit), "134217728\n");
    let stats = cri.call("ContainerStats", &json!({ "containerId": server }));
    let used = &stats["stats"]["memory"]["workingSetBytes"]["value"];
    assert!(used.as_str().is_some_and(|used| used != "0"), "{stats}");

    // One ends and is made anew, while the pod lives on.
    cri.call(
        "StopContainer",
        &json!({ "containerId": server, "timeout": "100" }),
    );
    assert_eq!(pod.await_exit(&server)["exitCode"], 4);
    cri.call("RemoveContainer", &json!({ "containerId": server }));
    let brief = pod.start("server", "echo again; exit 7", |_| {});
    assert_eq!(pod.await_exit(&brief)["exitCode"], 7);
    pod.await_log("server", "stdout F again");
    cri.exec_ok(&client, "true");

    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}

#[test]
fn a_pod_that_shares_its_pids_does_and_one_on_the_hosts_network_is_refused() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let pod = Pod::run(&cri, &json!({ "pid": "POD" }));
    let first = pod.start("first", "exec sleep 7777", |_| {});
    let second = pod.start("second", "sleep 100000", |_| {});
    assert!(cri.exec_ok(&second, "ps").contains("sleep 7777"));
    cri.exec_ok(
        &second,
        "kill -KILL $(ps | awk '/[s]leep 7777/ { print $1 }')",
    );
    assert_eq!(pod.await_exit(&first)["exitCode"], 137);
    pod.remove();

    let logs = TempDir::new().unwrap();
    let host = json!({ "network": "NODE" });
    let request = json!({ "config": pod_config(&logs, &host), "runtimeHandler": "hull" });
    let refused = cri.try_call("RunPodSandbox", &request).unwrap_err();
    assert!(refused.contains("host's network"), "{refused}");
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
