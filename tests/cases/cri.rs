//! Kubernetes runs pods under hull through containerd: a RuntimeClass's handler `hull`, which is the runtime
//! `io.containerd.hull.v2` in containerd's configuration.

mod load;
mod pod;
mod sandboxer;
mod security;
mod streaming;

use std::fs;

use hull_tests::command::eventually;
use hull_tests::containerd::Containerd;
use hull_tests::{LeakCheck, run, run_ok};
use serde_json::json;
use tempfile::TempDir;

use pod::{Pod, ROOT, pod_config};

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

    // CNI's interface is as CNI has made it.
    let links = run_ok("nsenter", &["-t", &pod.vmm(), "-n", "ip", "-o", "link"]);
    assert!(
        links.contains("hull-tap0") && !links.contains("hull-br0"),
        "{links}"
    );

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
    let first = pod.start("first", "sleep 8888 & exec sleep 7777", |_| {});
    let second = pod.start("second", "sleep 100000", |_| {});
    let sees = |process: &str| cri.exec_ok(&second, "ps").contains(process);
    assert!(eventually(|| sees("sleep 7777\n") && sees("sleep 8888\n")));
    cri.exec_ok(
        &second,
        "kill -KILL $(ps | awk '/[s]leep 7777/ { print $1 }')",
    );
    assert_eq!(pod.await_exit(&first)["exitCode"], 137);
    assert!(eventually(|| !sees("sleep 8888\n")));
    assert!(sees("sleep 100000\n"));
    pod.remove();

    let logs = TempDir::new().unwrap();
    let host = json!({ "network": "NODE" });
    let request = json!({ "config": pod_config("pod", &logs, &host), "runtimeHandler": "hull" });
    let refused = cri.try_call("RunPodSandbox", &request).unwrap_err();
    assert!(refused.contains("host's network"), "{refused}");
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}

#[test]
fn a_vm_has_the_size_of_its_pod_and_grows_with_its_containers() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let pod = Pod::run_with(&cri, "sized", &json!({}), |config| {
        config["linux"]["resources"] = json!({
            "cpuPeriod": "100000", "cpuQuota": "150000", "memoryLimitInBytes": "629145600",
        });
    });
    let first = pod.start("first", "sleep 100000", |_| {});
    let memory_mib = || {
        let text = cri.exec_ok(&first, "grep MemTotal /proc/meminfo");
        let kib = text
            .split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("{text}")) / 1024
    };
    assert!(eventually(|| cri.exec_ok(&first, "nproc") == "2\n"));
    let before = memory_mib();
    assert!(before > 600, "{before}");

    pod.start("second", "sleep 100000", |config| {
        config["linux"]["resources"] = json!({ "memoryLimitInBytes": "943718400" });
    });
    let after = memory_mib();
    assert!(after > 900, "{before}, then {after}");
    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
