use super::*;
use serde_json::{Value, json};

fn translate_json(
    mounts: Value,
    change: impl FnOnce(&mut Value),
) -> Result<(Value, Vec<Share>), RootfsError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("rootfs")).unwrap();
    std::fs::create_dir_all(directory.path().join("data")).unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "box",
        "process": {
            "args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "apparmorProfile": "docker-default", "selinuxLabel": "x:y:z",
        },
        "mounts": mounts,
        "hooks": {
            "prestart": [{"path": "/bin/p"}],
            "startContainer": [{"path": "/bin/s"}],
        },
        "linux": {
            "cgroupsPath": "system.slice:docker:abc",
            "resources": {"blockIO": {"weight": 100}, "pids": {"limit": 10}},
            "maskedPaths": ["/proc/keys"],
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "mount"},
                {"type": "network", "path": "/run/netns/x"}, {"type": "uts"},
            ],
        },
    });
    change(&mut config);
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(directory.path()).unwrap();
    let guest = translate(
        &"c1".parse().unwrap(),
        &bundle,
        false,
        false,
        None,
        &|_, path| match path.to_str() {
            Some("/proc/7/ns/ipc") => Some(GuestNamespace::Of("/proc/42/ns/ipc".into())),
            Some("/run/utsns/7") => Some(GuestNamespace::New),
            _ => None,
        },
    )?;
    Ok((serde_json::from_slice(&guest.spec).unwrap(), guest.shares))
}

#[test]
fn the_guest_gets_what_has_a_meaning_there() {
    let (spec, shares) = translate_json(json!([]), |_| {}).unwrap();
    assert_eq!(spec["root"]["path"], "/run/hull/shared/c1/rootfs");
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "box");
    assert_eq!(spec["linux"]["cgroupsPath"], "/c1");
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/keys"]));
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 10);
    assert_eq!(spec["linux"]["resources"].get("blockIO"), None);
    assert_eq!(spec["process"].get("apparmorProfile"), None);
    assert_eq!(spec["process"].get("selinuxLabel"), None);
    assert_eq!(spec["hooks"].get("prestart"), None);
    assert_eq!(spec["hooks"]["startContainer"][0]["path"], "/bin/s");
    let kinds: Vec<&str> = spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["pid", "ipc", "mount", "uts"]);
    assert_eq!(shares.len(), 1);
    assert_eq!(shares[0].target, Path::new("c1/rootfs"));
}

#[test]
fn bind_mounts_go_by_way_of_the_shared_directory() {
    let (spec, shares) = translate_json(
        json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro", "nosuid", "rslave"]},
            {"destination": "/etc/hosts", "type": "none", "source": "file", "options": ["bind"]},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
            {"destination": "/masked", "type": "bind", "source": "/dev/null", "options": ["bind"]},
        ]),
        |_| {},
    )
    .unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    assert_eq!(mounts[0]["source"], "proc");
    assert_eq!(mounts[1]["source"], "/run/hull/shared/c1/mounts/0");
    assert_eq!(
        mounts[1]["options"],
        json!(["rbind", "ro", "nosuid", "rslave"])
    );
    assert_eq!(mounts[2]["source"], "/run/hull/shared/c1/mounts/1");
    assert_eq!(mounts[3]["source"], "/sys");
    assert_eq!(mounts[4]["source"], "/dev/null");
    assert_eq!(shares.len(), 3);
    let data = &shares[1];
    assert!(data.recursive && data.readonly && !data.is_file);
    assert_eq!(data.propagation, crate::sandbox::share::Propagation::Slave);
    let hosts = &shares[2];
    assert!(!hosts.recursive && !hosts.readonly && hosts.is_file);
}

#[test]
fn an_engines_shared_memory_becomes_the_guests() {
    if !Path::new("/dev/shm").is_dir() {
        panic!("this test needs /dev/shm");
    }
    let (spec, shares) = translate_json(
        json!([{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "nodev"]}]),
        |_| {},
    )
    .unwrap();
    let shm = &spec["mounts"][0];
    assert!(
        shm["source"]
            .as_str()
            .unwrap()
            .starts_with("/run/hull/shm/"),
        "{shm}"
    );
    assert_eq!(shm["options"], json!(["rbind", "nodev"]));
    assert_eq!(shares.len(), 1);
}

#[test]
fn what_cannot_be_mounted_is_named() {
    for (mount, expected) in [
        (
            json!({"destination": "/m", "type": "bind", "source": "missing"}),
            "missing",
        ),
        (json!({"destination": "/m", "type": "bind"}), "/m"),
        (json!({"destination": "/m"}), "/m"),
        (
            json!({"destination": "/m", "type": "nfs", "source": "h:/x"}),
            "/m",
        ),
        (
            json!({"destination": "/m", "type": "overlay", "source": "o"}),
            "/m",
        ),
    ] {
        let error = translate_json(json!([mount]), |_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn namespaces_of_the_host_are_refused_and_those_of_the_sandbox_joined() {
    let set = |path: &'static str| {
        move |config: &mut Value| config["linux"]["namespaces"][1]["path"] = json!(path)
    };
    let (spec, _) = translate_json(json!([]), set("/proc/7/ns/ipc")).unwrap();
    assert_eq!(spec["linux"]["namespaces"][1]["path"], "/proc/42/ns/ipc");
    let error = translate_json(json!([]), set("/proc/1/ns/ipc")).unwrap_err();
    assert!(matches!(error, RootfsError::Namespace { .. }), "{error}");
}

#[test]
fn only_devices_that_every_linux_has_are_made() {
    let device = |kind: &'static str, major: i64, minor: i64| {
        move |config: &mut Value| {
            config["linux"]["devices"] =
                json!([{"path": "/dev/x", "type": kind, "major": major, "minor": minor}]);
        }
    };
    translate_json(json!([]), device("c", 1, 3)).unwrap();
    translate_json(json!([]), device("c", 10, 229)).unwrap();
    translate_json(json!([]), device("p", 0, 0)).unwrap();
    for (kind, major, minor) in [("b", 8, 0), ("c", 1, 1), ("c", 10, 232), ("c", -1, -1)] {
        let error = translate_json(json!([]), device(kind, major, minor)).unwrap_err();
        assert!(matches!(error, RootfsError::Device { .. }), "{error}");
    }
}

#[test]
fn a_service_gets_the_socket_that_runc_gives_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("rootfs")).unwrap();
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1"]},
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "network"},
        ]},
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(directory.path()).unwrap();
    let guest = translate(
        &"c1".parse().unwrap(),
        &bundle,
        false,
        true,
        None,
        &|_, _| None,
    )
    .unwrap();
    let spec: Value = serde_json::from_slice(&guest.spec).unwrap();
    let env = json!(["A=1", "NOTIFY_SOCKET=/run/notify/notify.sock"]);
    assert_eq!(spec["process"]["env"], env);
    assert_eq!(spec["mounts"][0]["destination"], "/run/notify");
    assert_eq!(spec["mounts"][0]["source"], "/run/hull/notify/c1");
    let socket = guest.notify.unwrap();
    assert_eq!((socket.name.as_str(), socket.host), ("notify.sock", None));
}

#[test]
fn an_engines_notification_socket_is_the_guests() {
    let directory = tempfile::tempdir().unwrap();
    let notify = directory.path().join("notify");
    std::fs::create_dir(&notify).unwrap();
    let _socket = std::os::unix::net::UnixDatagram::bind(notify.join("s")).unwrap();
    let given = |destination: &str, source: PathBuf| {
        let translated = translate_json(
            json!([{"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}]),
            |config| config["process"]["env"] = json!(["NOTIFY_SOCKET=/run/n/s"]),
        );
        let (spec, shares) = translated.unwrap();
        (spec["mounts"][0]["source"].clone(), shares.len())
    };
    assert_eq!(given("/run/n", notify.clone()).0, "/run/hull/notify/c1");
    assert_eq!(
        given("/run/n/s", notify.join("s")).0,
        "/run/hull/notify/c1/s"
    );
    // What else is in a directory is not taken away, and another mount is none of it.
    assert_eq!(given("/run/m", notify.clone()).1, 2);
    std::fs::write(notify.join("other"), "").unwrap();
    assert_eq!(given("/run/n", notify.clone()).1, 2);
}
