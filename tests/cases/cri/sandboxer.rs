//! containerd 2 can have the shim hold a pod (`sandboxer = "shim"`): the VM is there without any container.

use hull_tests::command::eventually;
use hull_tests::containerd::{Containerd, Cri};
use hull_tests::{LeakCheck, run, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::pod::{Pod, ROOT, pod_config};

/// The pid of a pod's VMM.
fn vmm(pod: &Pod<'_>) -> String {
    let path = format!("{ROOT}/sandboxes/{}/sandbox.json", pod.id);
    let sandbox: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    sandbox["vmm"]["pid"].to_string()
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
    let vmm = vmm(&pod);
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
    let fetch = "wget -T 20 -q -O - http://127.0.0.1/";
    assert!(eventually(
        || cri.exec(&client, fetch) == (0, "page\n".into())
    ));
    let url = format!("http://{}/", pod.address());
    assert_eq!(run_ok("curl", &["-sS", "-m", "20", &url]), "page\n");

    // It outlives all of its containers.
    end(&pod, &server, &cri);
    end(&pod, &client, &cri);
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
fn a_pod_without_a_container_that_holds_it_outlives_containerd_and_ends_with_its_vm() {
    let leaks = LeakCheck::new();
    let Some(containerd) = Containerd::start_own_without_pause() else {
        return;
    };
    let cri = containerd.cri();
    let own = json!({ "pid": "CONTAINER" });
    let pod = Pod::run_with(&cri, "held", &own, |_| {});
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

    run_ok("kill", &["-KILL", &vmm(&pod)]);
    assert!(eventually(|| !is_ready(&cri, &pod)));
    for container in [&first, &second] {
        assert_eq!(pod.await_exit(container)["exitCode"], 137);
    }
    pod.remove();
    drop(pod);

    // The shim is killed: containerd has what it served cleaned up.
    let pod = Pod::run_with(&cri, "shimless", &own, |_| {});
    let first = pod.start("first", "sleep 100000", |_| {});
    let vmm = vmm(&pod);
    let status = run_ok("cat", &[&format!("/proc/{vmm}/status")]);
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    run_ok("kill", &["-KILL", shim.unwrap().trim()]);
    assert!(eventually(|| run("kill", &["-0", &vmm]).code != 0));
    assert!(eventually(|| !is_ready(&cri, &pod)));
    pod.await_exit(&first);
    pod.remove();

    let logs = TempDir::new().unwrap();
    let config = pod_config("refused", &logs, &json!({ "pid": "POD" }));
    let request = json!({ "config": config, "runtimeHandler": "hull" });
    let refused = cri.try_call("RunPodSandbox", &request).unwrap_err();
    assert!(refused.contains("no container holds"), "{refused}");
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
