//! Podman runs hull as a runtime: `podman --runtime hull`.

use std::process::Command;

use hull_tests::command::{eventually, finish};
use hull_tests::{Engine, run};

/// Serves its argument at port 80.
fn web_server(page: &str) -> String {
    format!("mkdir -p /www; echo {page} > /www/index.html; httpd -p 80 -h /www; sleep 100000")
}

const FETCH: &str = "wget -T 20 -q -O -";

#[test]
fn input_output_terminals_and_exit_codes_are_carried() {
    let podman = Engine::podman();
    let script = "cat; echo complaint >&2; exit 3";
    let mut command = Command::new("podman");
    command.args(podman.foreground(&["--interactive"], &["sh", "-c", script]));
    let finished = finish(&mut command, b"words\n".to_vec()).expect(3);
    assert_eq!(finished.text(), "words\n");
    assert_eq!(finished.stderr, "complaint\n");

    let words = podman.foreground(&["--tty"], &["sh", "-c", "'tty; exit 5'"]);
    let line = format!("podman {}", words.join(" "));
    let finished = run("script", &["-qec", &line, "/dev/null"]).expect(5);
    assert!(finished.text().contains("/dev/pts/"), "{finished:?}");
}

#[test]
fn a_detached_container_is_published_executed_in_connected_and_stopped() {
    let podman = Engine::podman();
    let script = "echo started; mkdir /www; echo published > /www/index.html; httpd -p 80 -h /www; \
                  trap 'exit 4' TERM; while :; do sleep 1; done";
    let container = podman.start(&["--publish", "80"], script);
    assert!(eventually(
        || podman.ok(&["logs", &container]) == "started\n"
    ));
    assert_eq!(
        podman.exec(&container, "echo in; exit 9").expect(9).text(),
        "in\n"
    );

    let port = podman.ok(&["port", &container, "80/tcp"]);
    let port = port.trim().rsplit(':').next().unwrap().to_owned();
    let gateway = "{{(index .Subnets 0).Gateway}}";
    let own = podman.ok(&["network", "inspect", "--format", gateway, "podman"]);
    for address in ["127.0.0.1", own.trim()] {
        let url = format!("http://{address}:{port}/");
        assert!(
            eventually(|| run("curl", &["-sS", "-m", "20", &url]).text() == "published\n"),
            "{url}"
        );
    }

    let network = podman.network();
    podman.ok(&["network", "connect", &network, &container]);
    podman.eventually(&container, "ip addr show dev eth1 | grep 'inet '");
    podman.ok(&["network", "disconnect", &network, &container]);
    podman.eventually(&container, "! ip link show dev eth1");
    podman.eventually(&container, "ip addr show dev eth0 | grep 'inet '");

    podman.ok(&["stop", "--time", "100", &container]);
    let code = podman.ok(&["inspect", "--format", "{{.State.ExitCode}}", &container]);
    assert_eq!(code, "4\n");
}

#[test]
fn network_none_has_lo_only_and_network_host_is_refused() {
    let podman = Engine::podman();
    let links = podman.run(&["--network", "none"], &["ls", "/sys/class/net"]);
    assert_eq!(links.expect(0).text(), "lo\n");
    podman
        .run(&["--network", "host"], &["true"])
        .expect_error(&["sharing the host's network with a VM is not supported"]);
}

#[test]
fn a_container_joins_the_vm_of_another_and_outlives_it() {
    let podman = Engine::podman();
    let first = podman.start(&[], &web_server("first"));
    let of_first = format!("container:{first}");
    let second = podman.start(
        &["--network", &of_first],
        "httpd -p 81 -h /etc; sleep 100000",
    );
    let fetch = format!("{FETCH} http://127.0.0.1/");
    assert_eq!(podman.eventually(&second, &fetch), "first\n");
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let boots = [&first, &second].map(|container| podman.exec(container, boot).expect(0).text());
    assert_eq!(boots[0], boots[1], "one kernel");
    podman.ok(&["kill", &first]);
    podman.ok(&["wait", &first]);
    podman.eventually(&second, "ip addr show dev lo | grep 'inet '");
    assert_eq!(podman.exec(&second, boot).expect(0).text(), boots[1]);
}

#[test]
fn the_network_of_a_container_that_is_in_no_vm_is_refused_and_left_as_it_is() {
    let podman = Engine::podman();
    let plain = podman.start_plain(&[], "sleep 100000");
    let before = podman.settled_links(&plain);
    let of_plain = format!("container:{plain}");
    podman
        .run(&["--network", &of_plain], &["true"])
        .expect_error(&["in use by a container that is not in a VM"]);
    assert_eq!(podman.exec(&plain, "ip addr").expect(0).text(), before);
}

#[test]
fn the_containers_of_a_pod_share_a_vm_and_its_network() {
    let podman = Engine::podman();
    let pod = podman.pod(&["--publish", "18082:80"]);
    let server = podman.start(&["--pod", &pod], &web_server("pod"));
    let url = "http://127.0.0.1:18082/";
    assert!(eventually(|| {
        run("curl", &["-sS", "-m", "20", url]).text() == "pod\n"
    }));
    let script =
        format!("{FETCH} http://127.0.0.1/; hostname; cat /proc/sys/kernel/random/boot_id");
    let text = podman
        .run(&["--pod", &pod], &["sh", "-c", &script])
        .expect(0)
        .text();
    let boot = podman.exec(&server, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(text, format!("pod\n{pod}\n{}", boot.expect(0).text()));
}
