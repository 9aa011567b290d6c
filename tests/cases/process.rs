//! What the OCI runtime specification says of the process: user, capabilities, limits, seccomp, namespaces.

use hull_tests::{Bundle, Hull};
use serde_json::json;

#[test]
fn user_groups_umask_directory_and_environment() {
    let hull = Hull::new();
    let bundle = Bundle::shell("id -u; id -g; id -G; umask; pwd; echo $COLOUR").with(|config| {
        config["process"]["user"] =
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [1002, 1003], "umask": 0o027 });
        config["process"]["cwd"] = json!("/tmp");
        config["process"]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!("COLOUR=green"));
    });
    let text = hull.run(&bundle, "user").expect(0).text();
    assert_eq!(text, "1000\n1001\n1001 1002 1003\n0027\n/tmp\ngreen\n");
}

#[test]
fn capabilities_limits_and_no_new_privileges() {
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status; ulimit -n; ulimit -Hn",
    )
    .with(|config| {
        let capabilities = json!(["CAP_CHOWN", "CAP_KILL"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = capabilities.clone();
        }
        config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    });
    let text = hull.run(&bundle, "capabilities").expect(0).text();
    assert!(text.contains("CapEff:\t0000000000000021"), "{text}");
    assert!(text.contains("CapBnd:\t0000000000000021"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.ends_with("100\n200\n"), "{text}");
}

#[test]
fn a_seccomp_profile_has_its_effect() {
    let hull = Hull::new();
    for no_new_privileges in [true, false] {
        let bundle = Bundle::shell("mkdir /tmp/made; echo mkdir $?; chmod 700 /tmp; echo chmod $?")
            .with(|config| {
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                config["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [
                        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }
                    ]
                });
            });
        let finished = hull.run(&bundle, "seccomp").expect(0);
        assert_eq!(finished.text(), "mkdir 1\nchmod 0\n");
        assert!(
            finished.stderr.contains("Operation not permitted"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn the_container_is_alone_in_its_namespaces() {
    let hull = Hull::new();
    let script = "echo $$; hostname; ls -d /proc/[0-9]* | wc -l; ls /proc/sysvipc | wc -l";
    let text = hull.run(&Bundle::shell(script), "alone").expect(0).text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["1", "hull-case"]);
    assert!(lines[2].parse::<u32>().unwrap() <= 3, "{text}");
}

#[test]
fn masked_and_read_only_paths_and_sysctls() {
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "cat /proc/kcore | wc -c; echo 1 > /proc/sys/vm/swappiness || echo read-only; \
         cat /proc/sys/net/ipv4/ip_default_ttl; cat /proc/sys/kernel/msgmax",
    )
    .with(|config| {
        config["linux"]["sysctl"] =
            json!({ "net.ipv4.ip_default_ttl": "42", "kernel.msgmax": "4096" });
    });
    let text = hull.run(&bundle, "masked").expect(0).text();
    assert_eq!(text, "0\nread-only\n42\n4096\n");
}

#[test]
fn limits_of_memory_processes_and_cpu_hold_in_the_guest() {
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; \
         i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done 2>/dev/null; echo not reached",
    )
    .with(|config| {
        config["linux"]["resources"] = json!({
            "memory": { "limit": 67_108_864 }, "pids": { "limit": 20 }, "cpu": { "quota": 50000, "period": 100_000 }
        });
    });
    let finished = hull.run(&bundle, "limits");
    assert!(
        finished.text().starts_with("67108864\n20\n50000 100000\n"),
        "{finished:?}"
    );
    assert!(!finished.text().contains("not reached"), "{finished:?}");
}

#[test]
fn too_much_memory_ends_the_process_and_not_the_machine() {
    let hull = Hull::new();
    let bundle =
        Bundle::shell("head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null; echo status $?")
            .with(|config| {
                config["linux"]["resources"]["memory"] =
                    json!({ "limit": 50_000_000, "swap": 50_000_000 });
            });
    let finished = hull.run(&bundle, "oom").expect(0);
    assert!(finished.text().contains("status 137"), "{finished:?}");
}
