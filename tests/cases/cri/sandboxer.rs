//! containerd 2 can have the shim hold a pod (`sandboxer = "shim"`): the VM is there without any container.

use std::time::Duration;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::sandbox_api::{PingRequest, PlatformRequest, SandboxMetricsRequest};
use containerd_shim_protos::ttrpc::context::with_duration;
use hull_tests::command::eventually;
use hull_tests::containerd::{Containerd, Cri};
use hull_tests::{LeakCheck, run, run_ok};
use protobuf::Message;
use serde_json::json;

use super::pod::{Pod, ROOT};

/// Calls of the Sandbox API by which containerd's clients ask after a pod that runs.
fn ask_the_shim(containerd: &Containerd, pod: &Pod<'_>) {
    let shim = containerd.sandbox_api(&pod.id);
    let context = || with_duration(Duration::from_secs(60));
    let mut ping = PingRequest::new();
    ping.sandbox_id.clone_from(&pod.id);
    shim.ping_sandbox(context(), &ping).unwrap();
    ping.sandbox_id = "other".into();
    let refused = shim.ping_sandbox(context(), &ping).unwrap_err();
    assert!(refused.to_string().contains("other"), "{refused}");

    let mut request = PlatformRequest::new();
    request.sandbox_id.clone_from(&pod.id);
    let platform = shim.platform(context(), &request).unwrap().platform;
    assert_eq!((&*platform.os, &*platform.architecture), ("linux", "amd64"));

    let mut request = SandboxMetricsRequest::new();
    request.sandbox_id.clone_from(&pod.id);
    let answer = shim.sandbox_metrics(context(), &request).unwrap().metrics;
    assert_eq!(answer.id, pod.id);
    let metrics = Metrics::parse_from_bytes(&answer.data.value).unwrap();
    assert!(
        metrics.memory.usage > 0 && metrics.cpu.usage_usec > 0,
        "{metrics}"
    );
    let [nic] = &metrics.network[..] else {
        panic!("{metrics}");
    };
    assert_eq!(nic.name, "eth0");
    assert!(nic.rx_bytes > 0 && nic.tx_bytes > 0, "{metrics}");
}

fn is_ready(cri: &Cri, pod: &Pod<'_>) -> bool {
    let status = cri.try_call("PodSandboxStatus", &json!({ "podSandboxId": pod.id }));
    // The first of its values is not written. For a moment, a shim that was killed is still asked.
    status.is_ok_and(|status| status["status"]["state"] != "SANDBOX_NOTREADY")
}

fn end(pod: &Pod<'_>, container: &str, cri: &Cri) {
    let stop = json!({ "containerId": container, "timeout": "0" });
    cri.call("StopContainer", &stop);
    pod.await_exit(container);
    cri.call("RemoveContainer", &json!({ "containerId": container }));
}

#[test]
fn a_pod_is_a_vm_without_a_container_that_holds_it() {
    let leaks = LeakCheck::new();
    let Some(containerd) = Containerd::start_own_without_pause() else {
        return;
    };
    let cri = containerd.cri();
    let pod = Pod::run_with(&cri, "held", &json!({ "pid": "CONTAINER" }), |config| {
        config["dnsConfig"] = json!({ "servers": ["10.97.0.53"] });
        config["linux"]["sysctls"] = json!({ "net.core.somaxconn": "777" });
    });
    assert_eq!(run_ok("hull", &["--root", ROOT, "list", "-q"]), "");
    // What stands for the pod is in its network namespace.
    let vmm = pod.vmm();
    let addresses = run_ok("nsenter", &["-t", &vmm, "-n", "ip", "-4", "addr"]);
    assert!(addresses.contains(&pod.address()), "{addresses}");

    let web_server = "mkdir /www; echo page > /www/index.html; httpd -p 80 -h /www; sleep 100000";
    let server = pod.start("server", web_server, |_| {});
    let client = pod.start("client", "sleep 100000", |_| {});
    let same = "cat /proc/sys/kernel/random/boot_id; hostname; ip -4 -o addr show dev eth0; readlink /proc/self/ns/ipc";
    let common = cri.exec_ok(&server, same);
    assert_eq!(cri.exec_ok(&client, same), common);
    assert!(common.contains("\nheld\n"), "{common}");
    cri.exec_ok(&server, "echo shared > /dev/shm/word");
    let of_pod = "cat /dev/shm/word /etc/resolv.conf /etc/hostname /proc/sys/net/core/somaxconn";
    assert_eq!(
        cri.exec_ok(&client, of_pod),
        "shared\nnameserver 10.97.0.53\nheld\n777\n"
    );
    assert!(!cri.exec_ok(&client, "ps").contains("httpd"));
    let debug = pod.start("debug", "sleep 100000", |config| {
        let namespaces = &mut config["linux"]["securityContext"]["namespaceOptions"];
        *namespaces = json!({ "pid": "TARGET", "targetId": server });
    });
    assert!(cri.exec_ok(&debug, "ps").contains("httpd"));
    let fetch = "wget -T 20 -q -O - http://127.0.0.1/";
    assert!(eventually(
        || cri.exec(&client, fetch) == (0, "page\n".into())
    ));
    let url = format!("http://{}/", pod.address());
    assert_eq!(run_ok("curl", &["-sS", "-m", "20", &url]), "page\n");
    ask_the_shim(&containerd, &pod);

    // It outlives all of its containers.
    for container in [&debug, &server, &client] {
        end(&pod, container, &cri);
    }
    assert!(is_ready(&cri, &pod));
    let next = pod.start("next", "sleep 100000", |_| {});
    assert_eq!(cri.exec_ok(&next, same), common);
    cri.call("StopPodSandbox", &json!({ "podSandboxId": pod.id }));
    assert!(!is_ready(&cri, &pod));
    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}

#[test]
fn containers_share_the_processes_of_a_pod_that_no_container_holds() {
    let leaks = LeakCheck::new();
    let Some(containerd) = Containerd::start_own_without_pause() else {
        return;
    };
    let cri = containerd.cri();
    // They do if nothing is said.
    let pod = Pod::run(&cri, &json!({}));
    let first = pod.start("first", "sleep 8888 & exec sleep 7777", |_| {});
    let second = pod.start("second", "sleep 100000", |_| {});
    let sees = |container: &str, processes: &[&str]| {
        let listed = cri.exec_ok(container, "ps -o pid,args");
        processes.iter().all(|process| listed.contains(process))
    };
    let init = " 1 hull-agent pod-init\n";
    assert!(eventually(|| sees(
        &second,
        &[init, "sleep 7777\n", "sleep 8888\n"]
    )));
    assert!(sees(&first, &[init, "sleep 100000\n"]));
    let reaped = "orphan=$(sleep 0.1 >/dev/null & echo $!)
                  while [ -e /proc/$orphan ]; do sleep 0.1; done";
    cri.exec_ok(&second, reaped);

    let kill = "kill -KILL 1 $(ps | awk '/[s]leep 7777/ { print $1 }')";
    cri.exec_ok(&second, kill);
    assert_eq!(pod.await_exit(&first)["exitCode"], 137);
    assert!(eventually(|| !sees(&second, &["sleep 8888\n"])));
    assert!(sees(&second, &[init, "sleep 100000\n"]));
    let next = pod.start("next", "exec sleep 9999", |_| {});
    assert!(sees(&second, &["sleep 9999\n"]));

    // Its init ends all of them, and not the pod.
    assert_eq!(cri.exec(&second, "kill 1; sleep 100000").0, 137);
    for container in [&second, &next] {
        assert_eq!(pod.await_exit(container)["exitCode"], 137);
    }
    assert!(is_ready(&cri, &pod));
    let last = pod.start("last", "exec sleep 6666", |_| {});
    assert!(sees(&last, &[init, "sleep 6666\n"]));
    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}

#[test]
fn a_pod_without_a_container_that_holds_it_outlives_containerd_and_ends_with_its_vm() {
    let leaks = LeakCheck::new();
    let Some(containerd) = Containerd::start_own_without_pause() else {
        return;
    };
    let cri = containerd.cri();
    let pod = Pod::run_with(&cri, "held", &json!({}), |_| {});
    let first = pod.start("first", "sleep 100000", |_| {});
    let second = pod.start("second", "sleep 100000", |_| {});
    containerd.kill();
    containerd.restart();
    let request = json!({ "podSandboxId": pod.id });
    assert!(eventually(|| cri
        .try_call("PodSandboxStatus", &request)
        .is_ok()));
    assert!(is_ready(&cri, &pod));
    assert_eq!(cri.exec(&second, "exit 6").0, 6);

    run_ok("kill", &["-KILL", &pod.vmm()]);
    assert!(eventually(|| !is_ready(&cri, &pod)));
    for container in [&first, &second] {
        assert_eq!(pod.await_exit(container)["exitCode"], 137);
    }
    pod.remove();
    drop(pod);

    // The shim is killed: containerd has what it served cleaned up.
    let pod = Pod::run_with(&cri, "shimless", &json!({}), |_| {});
    let first = pod.start("first", "sleep 100000", |_| {});
    let vmm = pod.vmm();
    let status = run_ok("cat", &[&format!("/proc/{vmm}/status")]);
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    run_ok("kill", &["-KILL", shim.unwrap().trim()]);
    assert!(eventually(|| run("kill", &["-0", &vmm]).code != 0));
    assert!(eventually(|| !is_ready(&cri, &pod)));
    pod.await_exit(&first);
    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
