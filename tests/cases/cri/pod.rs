//! Pods as the kubelet makes them.

use std::fs;

use hull_tests::command::eventually;
use hull_tests::containerd::{BUSYBOX, Cri};
use hull_tests::hull::vmm_of;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where the shim keeps the state of Kubernetes' containers.
pub(super) const ROOT: &str = "/run/hull/containerd/k8s.io";

/// A pod, and what containers of it are made with.
pub(super) struct Pod<'a> {
    cri: &'a Cri,
    config: Value,
    pub(super) id: String,
    pub(super) logs: TempDir,
}

/// What a pod and its containers are told of the namespaces that they share.
pub(super) type Namespaces = Value;

pub(super) fn pod_config(name: &str, logs: &TempDir, namespaces: &Namespaces) -> Value {
    json!({
        "metadata": { "name": name, "uid": name, "namespace": "default" },
        "hostname": name,
        "logDirectory": logs.path(),
        "linux": { "securityContext": { "namespaceOptions": namespaces } },
    })
}

impl<'a> Pod<'a> {
    pub(super) fn run(cri: &'a Cri, namespaces: &Namespaces) -> Self {
        Self::run_with(cri, "pod", namespaces, |_| {})
    }

    /// The same with a name, and with what `configure` adds to its configuration.
    pub(super) fn run_with(
        cri: &'a Cri,
        name: &str,
        namespaces: &Namespaces,
        configure: impl FnOnce(&mut Value),
    ) -> Self {
        let logs = TempDir::with_prefix("logs-").unwrap();
        let mut config = pod_config(name, &logs, namespaces);
        configure(&mut config);
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

    /// The pid of its VMM.
    #[track_caller]
    pub(super) fn vmm(&self) -> String {
        vmm_of(ROOT.as_ref(), &self.id).to_string()
    }

    pub(super) fn address(&self) -> String {
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
    pub(super) fn start(
        &self,
        name: &str,
        script: &str,
        configure: impl FnOnce(&mut Value),
    ) -> String {
        let mut config = json!({
            "metadata": { "name": name },
            "image": { "image": BUSYBOX },
            "command": ["sh", "-c", script],
            "logPath": format!("{name}.log"),
            "linux": { "securityContext": self.config["linux"]["securityContext"] },
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

    pub(super) fn await_exit(&self, container: &str) -> Value {
        let mut status = Value::Null;
        let exited = eventually(|| {
            status = self.status(container);
            status["state"] == "CONTAINER_EXITED"
        });
        assert!(exited, "{status}");
        status
    }

    /// Waits for a line of a container's log: a time, a stream, `F`, and the words.
    pub(super) fn await_log(&self, name: &str, line: &str) {
        let path = self.logs.path().join(format!("{name}.log"));
        let mut log = String::new();
        let written = eventually(|| {
            log = fs::read_to_string(&path).unwrap_or_default();
            log.lines().any(|logged| logged.ends_with(line))
        });
        assert!(written, "{line:?} is not in {log:?}");
    }

    pub(super) fn remove(&self) {
        let request = json!({ "podSandboxId": self.id });
        self.cri.call("StopPodSandbox", &request);
        self.cri.call("RemovePodSandbox", &request);
    }
}
