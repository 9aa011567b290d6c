use super::*;
use serde_json::json;

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"},
        ]},
    })
}

fn bundle(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("rootfs")).unwrap();
    std::fs::write(directory.path().join("config.json"), text).unwrap();
    directory
}

fn load(config: &Value) -> Result<Bundle, BundleError> {
    Bundle::load(bundle(&config.to_string()).path())
}

/// The configuration with the value at `pointer` replaced.
fn with(pointer: &str, value: Value) -> Value {
    let mut config = config();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[name] = value;
    config
}

#[test]
fn a_bundle_is_loaded_with_absolute_paths() {
    let directory = bundle(&config().to_string());
    let bundle = Bundle::load(directory.path()).unwrap();
    assert!(bundle.rootfs.is_absolute());
    assert!(bundle.rootfs.ends_with("rootfs"));
    assert!(!bundle.terminal());
}

#[test]
fn a_bundle_that_is_not_there_or_broken_is_refused() {
    let error = Bundle::load(Path::new("/nonexistent")).unwrap_err();
    assert!(matches!(error, BundleError::Read { .. }), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Bundle::load(empty.path()).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    for text in ["", "{", "[]", "null", "{}", r#"{"ociVersion": 1}"#] {
        let error = Bundle::load(bundle(text).path()).unwrap_err();
        assert!(
            matches!(
                error,
                BundleError::Parse { .. } | BundleError::Version { .. }
            ),
            "{text}: {error}"
        );
    }
}

#[test]
fn versions_of_the_first_major_are_taken() {
    for version in ["1.0.0", "1.0.2-dev", "1.0.0-rc5", "1.1.0", "1.2.1", "1.3.0"] {
        load(&with("/ociVersion", json!(version))).unwrap();
    }
    for version in ["", "1", "1.0", "0.6.0", "1.4.0", "2.0.0", "1.0.x", "x"] {
        let error = load(&with("/ociVersion", json!(version))).unwrap_err();
        assert!(matches!(error, BundleError::Version { .. }), "{version}");
    }
}

#[test]
fn what_runc_takes_is_taken() {
    let mut config = with("/mounts", json!([{"destination": "mnt/x"}]));
    let process = config["process"].as_object_mut().unwrap();
    process.remove("user");
    let bundle = load(&config).unwrap();
    assert_eq!(bundle.process.user().uid(), 0);
    let mounts = bundle.spec.mounts().as_ref().unwrap();
    assert_eq!(mounts[0].destination(), Path::new("/mnt/x"));
}

#[test]
fn a_rootfs_that_is_not_there_is_named() {
    for path in ["missing", "config.json", "/nonexistent/rootfs"] {
        let error = load(&with("/root/path", json!(path))).unwrap_err();
        assert!(matches!(error, BundleError::NoRootfs { .. }), "{path}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    for (pointer, value, field) in [
        ("/root", Value::Null, "root"),
        ("/process", Value::Null, "process"),
        ("/linux", Value::Null, "linux"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a\0b"]), "process.args"),
        ("/process/cwd", json!("tmp"), "process.cwd"),
        ("/process/user/uid", json!(u32::MAX), "process.user"),
        (
            "/process/user/additionalGids",
            json!([1, 1_u32 << 31]),
            "process.user",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "x"}]}),
            "hooks.poststop",
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "/x", "timeout": 0}]}),
            "hooks.prestart",
        ),
    ] {
        let error = load(&with(pointer, value)).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn what_a_vm_cannot_give_is_refused_with_the_reason() {
    for kind in ["pid", "ipc", "mount", "network"] {
        let mut config = config();
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != kind);
        let error = load(&config).unwrap_err();
        assert!(matches!(error, BundleError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(kind), "{error}");
    }
    for (pointer, value) in [
        ("/linux/intelRdt", json!({"closID": "x"})),
        ("/vm", json!({"kernel": {"path": "/k"}})),
    ] {
        let error = load(&with(pointer, value)).unwrap_err();
        assert!(matches!(error, BundleError::Unsupported { .. }), "{error}");
    }
}

#[test]
fn capabilities_of_the_future_are_left_out() {
    let capabilities = json!({ "bounding": ["CAP_CHOWN", "CAP_OF_THE_FUTURE"], "effective": ["CAP_OF_THE_FUTURE"] });
    let bundle = load(&with("/process/capabilities", capabilities.clone())).unwrap();
    let of_bundle = bundle.process.capabilities().clone().unwrap();
    let mut process = config()["process"].clone();
    process["capabilities"] = capabilities;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), process.to_string()).unwrap();
    let process = read_process(file.path()).unwrap();
    let of_process = process.capabilities().clone().unwrap();
    for sets in [of_bundle, of_process] {
        let bounding = sets.bounding().clone().unwrap();
        assert!(bounding.into_iter().eq([Capability::Chown]));
        assert!(sets.effective().clone().unwrap().is_empty());
    }
    // What else is wrong is told with its place.
    let mut wrong = with(
        "/process/capabilities",
        json!({ "bounding": ["CAP_OF_THE_FUTURE"] }),
    );
    wrong["process"]["cwd"] = json!(7);
    let error = load(&wrong).unwrap_err();
    assert!(matches!(error, BundleError::Parse { source, .. } if source.line() > 0));
}
