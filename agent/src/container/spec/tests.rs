use std::path::Path;

use super::*;
use serde_json::{Value, json};

fn guest() -> Guest {
    Guest {
        cpus: [0, 1].into(),
        first_processes: [42].into(),
        swap: false,
        cgroups: "/hull".into(),
    }
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "/run/hull/shared/c/rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "cwd": "/",
            "apparmorProfile": "docker-default",
            "selinuxLabel": "x",
            "noNewPrivileges": false,
            "capabilities": { "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] },
        },
        "hooks": {
            "prestart": [{ "path": "/host/a" }],
            "startContainer": [{ "path": "/guest/b" }],
        },
        "linux": {
            "cgroupsPath": "system.slice:docker:abc",
            "namespaces": [
                { "type": "network", "path": "/proc/1/ns/net" },
                { "type": "ipc" },
                { "type": "mount" },
            ],
            "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "1" },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 1048576, "swap": 2097152 },
                "cpu": { "cpus": "1-7", "mems": "0-1", "shares": 512 },
            },
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
    })
}

fn convert(config: &Value) -> Result<GuestSpec, SpecError> {
    for_guest(config.to_string().as_bytes(), "c", &guest())
}

#[test]
fn what_is_the_hosts_is_dropped() {
    let guest = convert(&config()).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    let namespaces = linux.namespaces().as_ref().unwrap();
    assert_eq!(namespaces.len(), 5);
    assert!(namespaces.iter().all(|one| one.path().is_none()));
    assert!(
        namespaces
            .iter()
            .all(|one| one.typ() != LinuxNamespaceType::Network)
    );
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/hull/c")));
    assert!(linux.seccomp().is_none());
    assert!(guest.spec.hooks().is_none());
    let process = guest.spec.process().as_ref().unwrap();
    assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
    assert_eq!(guest.payload.start_hooks.len(), 1);
}

#[test]
fn resources_are_cut_to_what_the_guest_has() {
    let guest = convert(&config()).unwrap();
    let resources = guest
        .spec
        .linux()
        .as_ref()
        .unwrap()
        .resources()
        .clone()
        .unwrap();
    let cpu = resources.cpu().as_ref().unwrap();
    assert_eq!(cpu.cpus().as_deref(), Some("1"));
    assert!(cpu.mems().is_none());
    assert_eq!(cpu.shares(), Some(512));
    let memory = resources.memory().as_ref().unwrap();
    assert_eq!(memory.limit(), Some(1_048_576));
    assert!(memory.swap().is_none());
}

#[test]
fn a_cpu_set_outside_the_guest_or_all_of_it_is_no_set() {
    assert_eq!(clamp("4-7", &guest().cpus), None);
    assert_eq!(clamp("0-1", &guest().cpus), None);
    assert_eq!(clamp("nonsense", &guest().cpus), None);
    assert_eq!(parse_cpus("0-2,5\n"), Some([0, 1, 2, 5].into()));
    assert_eq!(parse_cpus("0-4294967295"), None);
}

#[test]
fn network_sysctls_are_the_guests() {
    let guest = convert(&config()).unwrap();
    assert_eq!(
        guest.network_sysctls,
        [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned()
        )]
    );
    let left = guest
        .spec
        .linux()
        .as_ref()
        .unwrap()
        .sysctl()
        .clone()
        .unwrap();
    assert_eq!(left.keys().collect::<Vec<_>>(), ["kernel.msgmax"]);
    let mut bad = config();
    bad["linux"]["sysctl"] = json!({ "net.../../x": "1" });
    assert!(matches!(convert(&bad), Err(SpecError::Sysctl(_))));
}

#[test]
fn loading_a_profile_adds_capabilities_that_the_program_does_not_get() {
    let guest = convert(&config()).unwrap();
    let chown = Some(HashSet::from([Capability::Chown]));
    assert_eq!(guest.payload.capabilities.bounding(), &chown);
    let process = guest.spec.process().as_ref().unwrap();
    let during = process
        .capabilities()
        .as_ref()
        .unwrap()
        .bounding()
        .clone()
        .unwrap();
    assert!(during.contains(&Capability::SysAdmin) && during.contains(&Capability::Chown));
    assert_eq!(guest.payload.capabilities.ambient(), &Some(HashSet::new()));

    let mut without = config();
    without["process"]["noNewPrivileges"] = json!(true);
    let guest = convert(&without).unwrap();
    let process = guest.spec.process().as_ref().unwrap();
    assert_eq!(process.capabilities().as_ref().unwrap().bounding(), &chown);
}

#[test]
fn namespaces_of_other_containers_are_joined() {
    let mut config = config();
    config["linux"]["namespaces"] = json!([
        { "type": "pid", "path": "/proc/42/ns/pid" },
        { "type": "uts", "path": "/proc/42/ns/uts" },
        { "type": "ipc", "path": "/proc/1/ns/ipc" },
        { "type": "mount" },
    ]);
    let guest = convert(&config).unwrap();
    let namespaces = guest.spec.linux().as_ref().unwrap().namespaces().clone();
    let namespaces = namespaces.unwrap();
    assert_eq!(namespaces.len(), 5);
    for namespace in namespaces {
        let path = match namespace.typ() {
            LinuxNamespaceType::Pid => Some(Path::new("/proc/42/ns/pid")),
            LinuxNamespaceType::Uts => Some(Path::new("/proc/42/ns/uts")),
            LinuxNamespaceType::Ipc => Some(Path::new("/proc/1/ns/ipc")),
            _ => None,
        };
        assert_eq!(namespace.path().as_deref(), path);
    }
}

#[test]
fn the_processes_of_a_pod_are_those_of_its_init() {
    let mut own = convert(&config()).unwrap();
    assert!(!own.shares_processes());
    assert!(own.pod_processes().is_none());
    let mut config = config();
    config["linux"]["namespaces"] = json!([{ "type": "pid", "path": "/proc/1/ns/pid" }]);
    let mut guest = convert(&config).unwrap();
    assert!(guest.shares_processes());
    let namespace = guest.pod_processes().unwrap();
    namespace.set_path(Some("/proc/7/ns/pid".into()));
    assert!(guest.shares_processes());
    assert!(guest.pod_processes().is_none());
}

#[test]
fn what_the_guest_cannot_have_is_refused() {
    let edit = |pointer: &str, value: Value| {
        let mut config = config();
        match pointer.rsplit_once('/') {
            Some((parent, key)) => config.pointer_mut(parent).unwrap()[key] = value,
            None => unreachable!("pointers begin with a slash"),
        }
        convert(&config).unwrap_err().to_string()
    };
    for (kind, path) in [
        ("pid", "/proc/1/ns/ipc"),
        ("pid", "/proc/42/ns/ipc"),
        ("ipc", "/run/ipc"),
        ("mount", "/proc/42/ns/mnt"),
    ] {
        let namespaces = json!([{ "type": kind, "path": path }]);
        assert!(edit("/linux/namespaces", namespaces).contains(path));
    }
    assert_eq!(
        edit("/linux/namespaces", json!([{ "type": "user" }])),
        "a user namespace is not supported"
    );
    assert_eq!(edit("/process/args", json!([])), "process.args is missing");
    assert_eq!(edit("/root", Value::Null), "root is missing");
    assert!(edit("/process/cwd", json!("relative")).contains("not an absolute path"));
    assert!(edit("/root", json!({ "path": "rootfs" })).contains("not an absolute path"));
    assert!(
        edit(
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" })
        )
        .contains("NOTIFY")
    );
    assert!(matches!(
        for_guest(b"{", "c", &guest()),
        Err(SpecError::Parse(_))
    ));
}

#[test]
fn a_console_size_is_carried_when_it_is_one() {
    let mut with_size = config();
    with_size["process"]["terminal"] = json!(true);
    with_size["process"]["consoleSize"] = json!({ "height": 40, "width": 100 });
    let guest = convert(&with_size).unwrap();
    assert!(guest.terminal);
    assert_eq!(guest.payload.window, Some((40, 100)));
    with_size["process"]["consoleSize"] = json!({ "height": 0, "width": 70000 });
    assert_eq!(convert(&with_size).unwrap().payload.window, None);
}
