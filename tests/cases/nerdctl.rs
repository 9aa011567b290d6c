//! nerdctl's way: createRuntime and postStop hooks that read the state from standard input and run a list of CNI plugins
//! on `/proc/PID/ns/net`. nerdctl itself is not in Debian; the hook here does with CNI what `nerdctl internal oci-hook`
//! does, in a namespace that stands for the host.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use hull_tests::command::{Finished, eventually, finish};
use hull_tests::{Bundle, Hull, LeakCheck, Netns};
use serde_json::json;

/// Called as `… internal oci-hook EVENT`, with the list's file and a file for the result in its environment.
const HOOK: &str = r#"#!/bin/sh
set -eu
state=$(cat)
id=$(echo "$state" | jq -er .id)
pid=$(echo "$state" | jq -er .pid)
call() {
    echo "$2" | CNI_COMMAND=$1 CNI_CONTAINERID="default-$id" CNI_NETNS=$netns CNI_IFNAME=$3 CNI_PATH=/usr/lib/cni \
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=$id" "/usr/lib/cni/$(echo "$2" | jq -r .type)"
}
plugin() {
    jq -c --argjson at "$1" --argjson result "$2" --argjson state "$state" '. as $list | .plugins[$at]
        + { name: $list.name, cniVersion: $list.cniVersion }
        + (if .plugins[$at].capabilities.portMappings
           then { runtimeConfig: { portMappings: ($state.annotations["nerdctl/ports"] | fromjson) } } else {} end)
        + (if $result == null then {} else { prevResult: $result } end)' "$CONFLIST"
}
last=$(jq '.plugins | length - 1' "$CONFLIST")
case "$1 $2 $3" in
"internal oci-hook createRuntime")
    netns=/proc/$pid/ns/net
    call ADD '{ "cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback" }' lo >/dev/null
    result=null
    for at in $(seq 0 "$last"); do
        result=$(call ADD "$(plugin "$at" "$result")" eth0)
    done
    echo "$result" >"$RESULT"
    ;;
"internal oci-hook postStop")
    # The container's namespace is gone.
    netns=
    for at in $(seq "$last" -1 0); do
        call DEL "$(plugin "$at" "$(cat "$RESULT")")" eth0
    done
    rm "$RESULT"
    ;;
*) exit 64 ;;
esac
"#;

/// Runs a command where the host's network is `host`.
fn on_host(host: &Netns, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", host.path().display()))
        .arg(program);
    command
}

fn hull_on(host: &Netns, hull: &Hull, words: &[&str]) -> Finished {
    let mut command = on_host(host, "hull");
    command.arg("--root").arg(hull.root()).args(words);
    finish(&mut command, Vec::new())
}

#[test]
fn the_hooks_of_nerdctl_wire_and_unwire_a_container() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let host = Netns::new();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::write(file("hook"), HOOK).unwrap();
    std::fs::set_permissions(file("hook"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let list = json!({
        "cniVersion": "1.0.0", "name": "bridge", "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
        "plugins": [
            { "type": "bridge", "bridge": "nerdctl0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": { "type": "host-local", "dataDir": file("ipam"), "routes": [{ "dst": "0.0.0.0/0" }],
                        "ranges": [[{ "subnet": "10.4.0.0/24", "gateway": "10.4.0.1" }]] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall", "ingressPolicy": "same-bridge" },
            { "type": "tuning" },
        ],
    });
    std::fs::write(file("list"), list.to_string()).unwrap();
    let hook = |event: &str| {
        json!([{
            "path": file("hook"), "args": ["nerdctl", "internal", "oci-hook", event],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                format!("CONFLIST={}", file("list").display()), format!("RESULT={}", file("result").display()),
            ],
        }])
    };
    let ports =
        json!([{ "hostPort": 18090, "containerPort": 80, "protocol": "tcp", "hostIP": "" }]);
    let script =
        "mkdir -p /www; echo served > /www/index.html; httpd -p 80 -h /www; exec sleep 100000";
    let bundle = Bundle::shell(script).with(|config| {
        config["hooks"] =
            json!({ "createRuntime": hook("createRuntime"), "poststop": hook("postStop") });
        config["annotations"] =
            json!({ "nerdctl/networks": "[\"bridge\"]", "nerdctl/ports": ports.to_string() });
    });
    let output = std::fs::File::create(bundle.path().join("out")).unwrap();
    let status = on_host(&host, "hull")
        .arg("--root")
        .arg(hull.root())
        .args(["create", "--bundle", bundle.arg(), "c"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .status()
        .unwrap();
    let said = std::fs::read_to_string(bundle.path().join("out")).unwrap();
    assert!(status.success(), "{said}");
    let _ = hull_on(&host, &hull, &["start", "c"]).expect(0);

    let inside = hull.hull(&[
        "exec",
        "c",
        "sh",
        "-c",
        "ip -4 addr show dev eth0; ip route",
    ]);
    let inside = inside.expect(0).text();
    assert!(inside.contains("10.4.0.2/24"), "{inside}");
    assert!(inside.contains("default via 10.4.0.1"), "{inside}");
    for url in ["http://10.4.0.2/", "http://10.4.0.1:18090/"] {
        let mut fetch = on_host(&host, "curl");
        fetch.args(["-sS", "-m", "20", url]);
        assert!(
            eventually(|| finish(&mut fetch, Vec::new()).text() == "served\n"),
            "{url}"
        );
    }

    let _ = hull.hull(&["kill", "c", "KILL"]).expect(0);
    hull.await_status("c", "stopped");
    let _ = hull_on(&host, &hull, &["delete", "c"]).expect(0);
    assert!(!file("result").exists(), "the hook of postStop has run");
    // Without a namespace the plugin `bridge` leaves its rule for masquerading behind, also with nerdctl.
    for (table, word) in [("nat", "18090"), ("filter", "10.4.0.2")] {
        let mut rules = on_host(&host, "iptables-save");
        rules.args(["-t", table]);
        let rules = finish(&mut rules, Vec::new()).expect(0).text();
        assert!(!rules.contains(word), "{rules}");
    }
    assert!(!file("ipam").join("bridge/10.4.0.2").exists());
    let veths = host
        .links()
        .into_iter()
        .filter(|name| name.starts_with("veth"));
    assert_eq!(veths.count(), 0);
    drop(host);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_hook_of_nerdctl_that_fails_is_told_and_undone() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let directory = tempfile::tempdir().unwrap();
    let undone = directory.path().join("undone");
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["hooks"] = json!({
            "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo 'level=fatal msg=\"no such network\"' >&2; exit 1"] }],
            "poststop": [{ "path": "/bin/touch", "args": ["touch", undone] }],
        });
    });
    hull.run(&bundle, "c")
        .expect_error(&["createRuntime", "no such network"]);
    assert!(
        undone.exists(),
        "what the hook has begun is undone by the other"
    );
    leaks.nothing_left(&hull.root());
}
