//! Docker runs hull as a runtime: `docker run --runtime hull`, and by the name of its shim for containerd.

use std::net::UdpSocket;
use std::process::Command;

use hull_tests::command::{eventually, finish};
use hull_tests::{Engine, LeakCheck, run, run_ok};

/// Serves its argument at port 80.
fn web_server(page: &str) -> String {
    format!("mkdir -p /www; echo {page} > /www/index.html; httpd -p 80 -h /www; sleep 100000")
}

const FETCH: &str = "wget -T 20 -q -O -";

#[test]
fn input_output_and_the_exit_code_are_carried() {
    for docker in Engine::dockers() {
        let script = "cat; echo complaint >&2; exit 3";
        let mut command = Command::new("docker");
        command.args(docker.foreground(&["--interactive"], &["sh", "-c", script]));
        let finished = finish(&mut command, b"words\n".to_vec()).expect(3);
        assert_eq!(finished.text(), "words\n");
        assert_eq!(finished.stderr, "complaint\n");
    }
}

#[test]
fn a_terminal_is_given_to_run_and_to_exec() {
    for docker in Engine::dockers() {
        let words = docker.foreground(&["--tty"], &["sh", "-c", "'tty; exit 5'"]);
        let line = format!("docker {}", words.join(" "));
        let finished = run("script", &["-qec", &line, "/dev/null"]).expect(5);
        assert!(finished.text().contains("/dev/pts/"), "{finished:?}");

        let container = docker.start(&[], "sleep 100000");
        let line = format!("docker exec --tty {container} sh -c 'tty; exit 6'");
        let finished = run("script", &["-qec", &line, "/dev/null"]).expect(6);
        assert!(finished.text().contains("/dev/pts/"), "{finished:?}");
    }
}

#[test]
fn a_detached_container_has_logs_volumes_and_exec_and_leaves_nothing() {
    let leaks = LeakCheck::new();
    for docker in Engine::dockers() {
        let volume = tempfile::tempdir().unwrap();
        let mount = format!("{}:/volume", volume.path().display());
        let container = docker.start(
            &["--volume", &mount],
            "echo written > /volume/file; echo started; trap 'exit 4' TERM; while :; do sleep 1; done",
        );
        assert!(eventually(
            || docker.ok(&["logs", &container]) == "started\n"
        ));
        let written = std::fs::read_to_string(volume.path().join("file")).unwrap();
        assert_eq!(written, "written\n");
        let executed = docker
            .exec(&container, "cat /volume/file; exit 9")
            .expect(9);
        assert_eq!(executed.text(), "written\n");

        docker.ok(&["stop", "--time", "100", &container]);
        let code = docker.ok(&["inspect", "--format", "{{.State.ExitCode}}", &container]);
        assert_eq!(code, "4\n");
        docker.ok(&["start", &container]);
        docker.ok(&["kill", &container]);
        assert_eq!(docker.ok(&["wait", &container]), "137\n");
        let root = docker.root().to_owned();
        drop(docker);
        leaks.nothing_left(&root);
    }
}

#[test]
fn a_published_port_is_reached_from_the_host_and_from_localhost() {
    let docker = Engine::docker();
    let container = docker.start(&["--publish", "80"], &web_server("published"));
    let port = docker.ok(&["port", &container, "80/tcp"]);
    let port = port.lines().next().unwrap().rsplit(':').next().unwrap();
    let own = run_ok("ip", &["-4", "-o", "addr", "show", "docker0"]);
    let own = own.split_whitespace().nth(3).unwrap();
    let own = own.split('/').next().unwrap();
    for address in ["127.0.0.1", own] {
        let url = format!("http://{address}:{port}/");
        assert!(
            eventually(|| run("curl", &["-sS", "-m", "20", &url]).text() == "published\n"),
            "{url}"
        );
    }
}

#[test]
fn names_resolve_both_ways_between_hull_and_runc_over_udp_and_tcp() {
    let docker = Engine::docker();
    let network = docker.network();
    let plain = docker.start_plain(&["--network", &network], &web_server("plain"));
    let hull = docker.start(&["--network", &network], &web_server("hull"));
    for (from, to, page) in [(&hull, &plain, "plain\n"), (&plain, &hull, "hull\n")] {
        assert_eq!(
            docker.eventually(from, &format!("{FETCH} http://{to}/")),
            page
        );
        let looked_up = docker.eventually(from, &format!("nslookup {to}"));
        assert!(looked_up.contains("127.0.0.11"), "{looked_up}");
    }

    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker.ok(&["inspect", "--format", format, &plain]);
    let octets: Vec<String> = address
        .trim()
        .split('.')
        .map(|octet| format!("{:02x}", octet.parse::<u8>().unwrap()))
        .collect();
    let query: String = query_over_tcp(&plain)
        .iter()
        .map(|byte| format!("\\x{byte:02x}"))
        .collect();
    let answer = docker.eventually(
        &hull,
        &format!("printf '{query}' | timeout 20 nc 127.0.0.11 53 | hexdump -v -e '1/1 \"%02x\"' | grep 1234"),
    );
    // The address is the last of the only record.
    assert!(answer.trim().ends_with(&octets.concat()), "{answer}");

    // Port 53 of all addresses is the container's own all the same, for datagrams as well.
    let sockets = docker.exec(&hull, "netstat -lntu").expect(0).text();
    assert!(sockets.contains("127.0.0.11:"), "{sockets}");
    assert!(!sockets.contains(":53 "), "{sockets}");
    let answers = docker.eventually(
        &hull,
        &format!(
            "nc -l -p 53 -e echo own & sleep 1; nslookup {plain} && nc 127.0.0.1 53 < /dev/null | grep own"
        ),
    );
    assert!(answers.contains("127.0.0.11"), "{answers}");
}

/// A query for the IPv4 address of `name` with id 0x1234, with its length before it (RFC 1035 §4.1 and §4.2.2).
fn query_over_tcp(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let length = u16::try_from(query.len()).unwrap();
    [&length.to_be_bytes()[..], &query].concat()
}

#[test]
fn networks_are_connected_and_disconnected_while_the_container_runs() {
    for docker in Engine::dockers() {
        let container = docker.start(&[], "sleep 100000");
        docker.eventually(&container, "ip addr show dev eth0 | grep 'inet '");
        let network = docker.network();
        let plain = docker.start_plain(&["--network", &network], &web_server("plain"));
        docker.ok(&["network", "connect", &network, &container]);
        docker.eventually(&container, "ip addr show dev eth1 | grep 'inet '");
        // With the first network that has one, Docker's DNS server has come as well.
        let fetch = format!("{FETCH} http://{plain}/");
        assert_eq!(docker.eventually(&container, &fetch), "plain\n");
        docker.ok(&["network", "disconnect", &network, &container]);
        docker.eventually(&container, "! ip link show dev eth1");
        docker.eventually(&container, "ip addr show dev eth0 | grep 'inet '");
    }
}

#[test]
fn network_none_has_lo_only_and_network_host_is_refused() {
    let docker = Engine::docker();
    // Of what else may be the host's, its name can be given to a VM.
    let seen = docker.run(
        &["--network", "none", "--uts", "host"],
        &["sh", "-c", "ls /sys/class/net; hostname"],
    );
    let hostname = run_ok("hostname", &[]);
    assert_eq!(seen.expect(0).text(), format!("lo\n{hostname}"));
    docker
        .run(&["--network", "host"], &["true"])
        .expect(125)
        .expect_error(&["sharing the host's network with a VM is not supported"]);
}

#[test]
fn a_container_joins_the_vm_of_another_and_outlives_it() {
    for docker in Engine::dockers() {
        let first = docker.start(&[], &web_server("first"));
        let of_first = format!("container:{first}");
        let second = docker.start(
            &["--network", &of_first],
            "httpd -p 81 -h /etc; sleep 100000",
        );
        let fetch = format!("{FETCH} http://127.0.0.1/");
        assert_eq!(docker.eventually(&second, &fetch), "first\n");
        docker.eventually(&second, "ip addr show dev eth0 | grep 'inet '");
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let boots =
            [&first, &second].map(|container| docker.exec(container, boot).expect(0).text());
        assert_eq!(boots[0], boots[1], "one kernel");
        docker.remove(&first);
        let fetch = format!("{FETCH} http://127.0.0.1:81/hostname");
        docker.eventually(&second, &fetch);
        assert_eq!(docker.exec(&second, boot).expect(0).text(), boots[1]);
    }
}

#[test]
fn the_network_of_a_container_that_is_in_no_vm_is_refused_and_left_as_it_is() {
    let docker = Engine::docker();
    let plain = docker.start_plain(&[], "sleep 100000");
    let before = docker.settled_links(&plain);
    let of_plain = format!("container:{plain}");
    docker
        .run(&["--network", &of_plain], &["true"])
        .expect(125)
        .expect_error(&["in use by a container that is not in a VM"]);
    assert_eq!(docker.exec(&plain, "ip addr").expect(0).text(), before);
}

#[test]
fn names_that_docker_does_not_know_are_asked_of_its_upstream_servers() {
    let docker = Engine::docker();
    let network = docker.network();
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    let gateway = docker.ok(&["network", "inspect", "--format", format, &network]);
    let gateway = gateway.trim();
    serve_names(UdpSocket::bind((gateway, 53)).unwrap());
    let plain = docker.start_plain(&["--network", &network], "sleep 100000");
    let container = docker.start(&["--network", &network, "--dns", gateway], "sleep 100000");
    let outside = docker.eventually(&container, "nslookup outside.example");
    assert!(outside.contains("Address: 192.0.2.77"), "{outside}");
    let unknown = docker.exec(&container, "nslookup nowhere.example");
    assert!(unknown.text().contains("NXDOMAIN"), "{unknown:?}");
    let inside = docker.eventually(&container, &format!("nslookup {plain}"));
    assert!(!inside.contains("192.0.2.77"), "{inside}");
}

/// Answers queries for names that begin with `outside` with the IPv4 address 192.0.2.77, and says of others that there
/// are none, as long as this process lives.
fn serve_names(socket: UdpSocket) {
    const HEADER: usize = 12;
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut bytes) {
            let name = &bytes[HEADER..length];
            let is_known = name.starts_with(b"\x07outside");
            // Past the labels are the type and the class.
            let labels = name.iter().position(|byte| *byte == 0).unwrap();
            let is_ipv4 = name[labels + 1..labels + 3] == [0, 1];
            let question = &name[..labels + 5];
            let has_answer = is_known && is_ipv4;
            let code = if is_known { 0 } else { 3 };
            let mut answer = vec![bytes[0], bytes[1], 0x81, 0x80 | code, 0, 1];
            answer.extend([0, u8::from(has_answer), 0, 0, 0, 0]);
            answer.extend(question);
            if has_answer {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            let _ = socket.send_to(&answer, client);
        }
    });
}
