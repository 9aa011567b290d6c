//! What containerd's streaming server carries, and logs.

use std::fs;

use hull_tests::LeakCheck;
use hull_tests::containerd::streaming::{RESIZE, STDERR, STDIN, STDOUT, Streams};
use hull_tests::containerd::{Containerd, Cri};
use serde_json::json;

use super::pod::{Pod, ROOT};

/// The channel of the first forwarded port; that of its errors is the next, and the other port's come then.
const PORT_8080: u8 = 0;
const ERROR_OF_8081: u8 = 3;

fn exec(cri: &Cri, container: &str, script: &str, terminal: bool) -> Streams {
    let request = json!({
        "containerId": container, "cmd": ["sh", "-c", script],
        "tty": terminal, "stdin": true, "stdout": true, "stderr": !terminal,
    });
    Streams::open(&cri.call("Exec", &request))
}

#[test]
fn processes_and_containers_are_talked_to_and_logs_rotate() {
    let leaks = LeakCheck::new();
    let containerd = Containerd::start_own("k8s.io");
    let cri = containerd.cri();
    let pod = Pod::run(&cri, &json!({}));
    let talker = pod.start(
        "talker",
        "echo begins; while read word; do echo heard $word; echo complaint >&2; done",
        |config| config["stdin"] = true.into(),
    );

    let script = "read word; echo got $word; echo bad >&2; exit 5";
    let mut process = exec(&cri, &talker, script, false);
    process.send(STDIN, b"this\n");
    process.finish();
    assert_eq!(process.text(STDOUT), "got this\n");
    assert_eq!(process.text(STDERR), "bad\n");
    assert_eq!(process.exit_code(), 5);

    let script = "while [ \"$(stty size 2>/dev/null)\" != '45 123' ]; do sleep 0.1; done; tty";
    let mut process = exec(&cri, &talker, script, true);
    process.send(RESIZE, br#"{"Width":123,"Height":45}"#);
    process.finish();
    assert_eq!(process.text(STDOUT), "/dev/pts/0\r\n");
    assert_eq!(process.exit_code(), 0);

    let request = json!({ "containerId": talker, "stdin": true, "stdout": true, "stderr": true });
    let mut attached = Streams::open(&cri.call("Attach", &request));
    attached.send(STDIN, b"one\n");
    attached.await_text(STDOUT, "heard one\n");
    attached.await_text(STDERR, "complaint\n");

    pod.await_log("talker", "stdout F begins");
    pod.await_log("talker", "stdout F heard one");
    let log = pod.logs.path().join("talker.log");
    let rotated = pod.logs.path().join("talker.log.1");
    fs::rename(&log, &rotated).unwrap();
    cri.call("ReopenContainerLog", &json!({ "containerId": talker }));
    attached.send(STDIN, b"two\n");
    pod.await_log("talker", "stdout F heard two");
    assert!(!fs::read_to_string(&log).unwrap().contains("begins"));
    assert!(!fs::read_to_string(&rotated).unwrap().contains("two"));

    cri.exec_ok(
        &talker,
        "mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www",
    );
    // 8081 is served by nobody.
    let request = json!({ "podSandboxId": pod.id, "port": [8080, 8081] });
    let mut forwarded = Streams::open(&cri.call("PortForward", &request));
    forwarded.send(PORT_8080, b"GET / HTTP/1.0\r\n\r\n");
    forwarded.await_text(PORT_8080, "\r\n\r\npage\n");
    forwarded.await_text(ERROR_OF_8081, "connection reset by peer");

    drop((attached, forwarded));
    pod.remove();
    drop(pod);
    drop((cri, containerd));
    leaks.nothing_left(ROOT.as_ref());
}
