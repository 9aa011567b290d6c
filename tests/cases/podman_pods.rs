//! Podman's pods, whose containers share a VM, and `podman kube play`.

use std::path::Path;

use hull_tests::{Engine, LeakCheck, Systemd, run_ok};
use serde_json::json;

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
fn the_containers_of_a_pod_share_what_podman_has_them_share() {
    let leaks = LeakCheck::new();
    let podman = Engine::podman();
    let pod = podman.pod(&["--share", "net,ipc,uts,pid"]);
    let first = podman.start(
        &["--pod", &pod],
        "echo shared > /dev/shm/word; exec sleep 12345",
    );
    let second = podman.start(&["--pod", &pod], "exec sleep 67890");
    let namespaces =
        format!("{BOOT}; for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done");
    let of = |container: &str| podman.exec(container, &namespaces).expect(0).text();
    assert_eq!(of(&first), of(&second));
    assert_eq!(podman.eventually(&second, "cat /dev/shm/word"), "shared\n");
    podman.eventually(&second, "ps -o args | grep '^sleep 12345'");
    podman.ok(&["pod", "stop", "--time", "1", &pod]);
    podman.ok(&["pod", "start", &pod]);
    assert_eq!(
        podman.eventually(&second, BOOT),
        podman.eventually(&first, BOOT)
    );
    let root = podman.root().to_owned();
    drop(podman);
    leaks.nothing_left(&root);
}

/// Two containers and a volume of the host's.
fn pod(name: &str, volume: &Path) -> String {
    let container = |name: &str, script: &str| {
        json!({
            "name": name, "image": "busybox", "imagePullPolicy": "Never",
            "command": ["sh", "-c", script],
            "volumeMounts": [{ "name": "data", "mountPath": "/data" }, { "name": "scratch", "mountPath": "/scratch" }],
        })
    };
    let server = "echo served > /data/index.html; httpd -p 80 -h /data; exec sleep 100000";
    let client =
        "until wget -q -O /scratch/page http://127.0.0.1/; do sleep 1; done; exec sleep 100000";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container("server", server), container("client", client)],
            "volumes": [
                { "name": "data", "hostPath": { "path": volume, "type": "Directory" } },
                { "name": "scratch", "emptyDir": {} },
            ],
        },
    })
    .to_string()
}

/// As Podman is where systemd is: that makes the cgroups.
#[test]
fn a_pod_of_kubernetes_is_played() {
    let leaks = LeakCheck::new();
    let systemd = Systemd::start();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // Podman's own image to hold a pod is built with a program that Debian recommends only.
    let image = format!("localhost/case-pause-{}", std::process::id());
    let import = format!(
        "tar -C /var/lib/testbed/busybox -c . | podman import --change 'CMD [\"sleep\", \"100000\"]' - {image}"
    );
    run_ok("sh", &["-c", &import]);
    let settings = std::fs::read_to_string("/etc/containers/containers.conf").unwrap();
    let settings = settings
        .replace("[engine]", &format!("[engine]\ninfra_image = \"{image}\""))
        .replace("\"cgroupfs\"", "\"systemd\"")
        .replace("\"crun\"", "\"hull\"");
    std::fs::write(path("containers.conf"), settings).unwrap();
    let settings = format!("CONTAINERS_CONF={}", path("containers.conf").display());
    let within = [systemd.enter(), vec!["env".into(), settings]].concat();
    let podman = Engine::podman().within(within);
    let name = format!("case-kube-{}", std::process::id());
    std::fs::create_dir(path("volume")).unwrap();
    let description = path("pod.yaml");
    std::fs::write(&description, pod(&name, &path("volume"))).unwrap();
    let description = description.to_str().unwrap();
    podman.ok(&["kube", "play", description]);
    let (server, client) = (format!("{name}-server"), format!("{name}-client"));
    assert_eq!(podman.eventually(&client, "cat /scratch/page"), "served\n");
    let boot = |container: &str| podman.exec(container, BOOT).expect(0).text();
    assert_eq!(boot(&server), boot(&client));
    assert_ne!(boot(&server), run_ok("sh", &["-c", BOOT]));
    let page = path("volume").join("index.html");
    assert_eq!(std::fs::read_to_string(page).unwrap(), "served\n");
    // Of its processes only one is a VMM.
    let vmm = systemd.run_ok("sh", &["-c", "cat /proc/$(pgrep -x hull-vmm)/cgroup"]);
    assert!(vmm.contains("/machine-libpod_pod_"), "{vmm}");
    podman.ok(&["kube", "play", "--down", description]);
    podman.ok(&["rmi", &image]);
    let root = podman.root().to_owned();
    drop((podman, systemd));
    leaks.nothing_left(&root);
}
