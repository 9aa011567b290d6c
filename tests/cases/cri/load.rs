//! Many pods at once, and containerd restarted under them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hull_tests::LeakCheck;
use hull_tests::command::{eventually, run};
use hull_tests::containerd::Containerd;
use serde_json::json;

use super::pod::{Pod, ROOT};
use crate::load::{in_parallel, load};

/// Containers of a pod.
const CONTAINERS: [&str; 3] = ["server", "second", "third"];

/// The full load is 30 pods and 500 execs, for a machine of 24 GiB; the test bed has 6 GiB and two emulated CPUs, where
/// 4 pods and 40 execs take a minute.
#[test]
fn pods_answer_at_their_addresses_through_a_restart_of_containerd_and_leave_nothing() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let (pods, execs) = (load(4, 30), load(40, 500));
    let start = Instant::now();
    let made: Vec<(Pod, Vec<String>)> = (0..pods)
        .map(|number| {
            let pod = Pod::run_with(&cri, &format!("pod{number}"), &json!({}), |config| {
                config["annotations"] = json!({ "dev.hull.memory_mib": "160" });
            });
            let containers = CONTAINERS.map(|name| {
                let script = match name {
                    "server" => {
                        format!(
                            "mkdir /www; echo {number} > /www/index.html; exec httpd -f -h /www"
                        )
                    }
                    _ => "sleep 100000".into(),
                };
                pod.start(name, &script, |_| {})
            });
            (pod, containers.to_vec())
        })
        .collect();
    println!("{pods} pods: {:?}", start.elapsed());

    let each_answers = || {
        for (number, (pod, _)) in made.iter().enumerate() {
            let url = format!("http://{}/", pod.address());
            let answers =
                || run("curl", &["-sS", "-m", "20", &url]).text() == format!("{number}\n");
            assert!(eventually(answers), "pod {number} at {url}");
        }
    };
    let done = AtomicUsize::new(0);
    let exec_half = || {
        in_parallel(4, execs / 2, |_| {
            let number = done.fetch_add(1, Ordering::Relaxed);
            let (_, containers) = &made[number % pods];
            let container = &containers[number / pods % CONTAINERS.len()];
            let code = i64::try_from(number % 256).unwrap();
            let (exited, text) = cri.exec(container, &format!("echo {number}; exit {code}"));
            assert_eq!((exited, text), (code, format!("{number}\n")));
        });
    };
    each_answers();
    exec_half();
    containerd.kill();
    containerd.restart();
    let is_back = || cri.try_call("PodSandboxStatus", &json!({ "podSandboxId": made[0].0.id }));
    assert!(eventually(|| is_back().is_ok()));
    each_answers();
    exec_half();
    println!("{execs} execs: {:?}", start.elapsed());

    for (pod, _) in &made {
        pod.remove();
    }
    println!("all gone: {:?}", start.elapsed());
    drop(made);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
