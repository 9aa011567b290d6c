//! What a pod may do: security contexts, seccomp profiles, sysctls; and what it is seen to use.

use std::fs;

use hull_tests::command::eventually;
use hull_tests::containerd::Containerd;
use hull_tests::{LeakCheck, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::pod::{Pod, ROOT};

/// The bit of CAP_NET_ADMIN.
const NET_ADMIN: &str = "0000000000001000";

#[test]
fn security_contexts_seccomp_profiles_and_sysctls_hold_and_pods_have_stats() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let parent = PodCgroup::new("/case-cri-pod");
    let pod = Pod::run_with(&cri, "pod", &json!({}), |config| {
        config["linux"]["cgroupParent"] = parent.0.into();
        config["linux"]["sysctls"] =
            json!({ "net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1" });
    });

    let restricted = pod.start(
        "restricted",
        "echo ids $(id -u) $(id -g) $(id -G); grep -E 'CapBnd|NoNewPrivs' /proc/self/status
         touch /file || echo read-only; sleep 100000",
        |config| {
            let context = &mut config["linux"]["securityContext"];
            context["runAsUser"] = json!({ "value": "1000" });
            context["runAsGroup"] = json!({ "value": "2000" });
            context["supplementalGroups"] = json!(["3000"]);
            context["readonlyRootfs"] = true.into();
            context["noNewPrivs"] = true.into();
            context["capabilities"] =
                json!({ "dropCapabilities": ["ALL"], "addCapabilities": ["NET_ADMIN"] });
        },
    );
    for line in [
        "ids 1000 2000 2000 3000",
        &format!("CapBnd:\t{NET_ADMIN}"),
        "NoNewPrivs:\t1",
        "read-only",
    ] {
        pod.await_log("restricted", line);
    }
    let sysctls = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(cri.exec_ok(&restricted, sysctls), "2000\t3000\n1\n");

    let profiles = TempDir::new().unwrap();
    let profile = profiles.path().join("no-directories.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    fs::write(&profile, text.to_string()).unwrap();
    for (name, seccomp, mode, made) in [
        (
            "unconfined",
            json!({ "profileType": "Unconfined" }),
            0,
            "made",
        ),
        (
            "default",
            json!({ "profileType": "RuntimeDefault" }),
            2,
            "made",
        ),
        (
            "localhost",
            json!({ "profileType": "Localhost", "localhostRef": profile }),
            2,
            "refused",
        ),
    ] {
        let script =
            "grep Seccomp: /proc/self/status; mkdir /new && echo made || echo refused; exit 3";
        let container = pod.start(name, script, |config| {
            config["linux"]["securityContext"]["seccomp"] = seccomp;
        });
        assert_eq!(pod.await_exit(&container)["exitCode"], 3);
        pod.await_log(name, &format!("Seccomp:\t{mode}"));
        pod.await_log(name, made);
    }

    let request = json!({ "podSandboxId": pod.id });
    let mut stats = Value::Null;
    let number = |value: &Value| value["value"].as_str().and_then(|value| value.parse().ok());
    let told = eventually(|| {
        stats = cri.call("PodSandboxStats", &request);
        let linux = &stats["stats"]["linux"];
        let memory: Option<u64> = number(&linux["memory"]["workingSetBytes"]);
        memory.is_some_and(|memory| memory > 0)
            && linux["network"]["defaultInterface"]["name"] == "eth0"
            && linux["containers"]
                .as_array()
                .is_some_and(|containers| !containers.is_empty())
    });
    assert!(told, "{stats}");
    let runs = format!("hull_sandbox_running{{sandbox=\"{}\"}} 1\n", pod.id);
    assert!(run_ok("hull", &["--root", ROOT, "metrics"]).contains(&runs));
    let socket = format!("{ROOT}/metrics/{}.sock", pod.id);
    let ask = ["-sSf", "--unix-socket", &socket, "http://localhost/metrics"];
    assert!(run_ok("curl", &ask).contains(&runs));

    pod.remove();
    drop(pod);
    drop((cri, containerd, parent));
    leaks.nothing_left(ROOT.as_ref());
}

/// A pod's cgroup, which the kubelet makes.
struct PodCgroup(&'static str);

impl PodCgroup {
    fn new(name: &'static str) -> Self {
        let cgroup = Self(name);
        fs::create_dir(cgroup.path()).unwrap();
        cgroup
    }

    fn path(&self) -> String {
        format!("/sys/fs/cgroup{}", self.0)
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        // A case that has failed leaves cgroups in it.
        let _ = fs::remove_dir(self.path());
    }
}
