//! What `deploy/` has for the nodes of a cluster. Its part of containerd's configuration is in use in cri.rs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hull_tests::command::finish;
use hull_tests::{Finished, run_ok};
use serde_json::Value;
use tempfile::TempDir;

/// `deploy/` by the names of its files.
const FILES: [(&str, &str); 4] = [
    ("node.sh", include_str!("../../deploy/node.sh")),
    (
        "containerd.toml",
        include_str!("../../deploy/containerd.toml"),
    ),
    (
        "containerd-2.toml",
        include_str!("../../deploy/containerd-2.toml"),
    ),
    ("crio.conf", include_str!("../../deploy/crio.conf")),
];
/// What an administrator has written.
const CONFIG: &str =
    "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";

/// A directory that is a node's root, and `node.sh` beside it.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let node = Self(directory);
        fs::create_dir_all(node.root().join("dev")).unwrap();
        symlink("/dev/kvm", node.root().join("dev/kvm")).unwrap();
        fs::create_dir_all(node.root().join("etc/containerd")).unwrap();
        fs::create_dir_all(node.root().join("etc/crio")).unwrap();
        for (name, text) in FILES {
            fs::write(node.0.path().join(name), text).unwrap();
        }
        node
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn script(&self, verb: &str) -> Finished {
        let mut command = Command::new("sh");
        command
            .arg(self.0.path().join("node.sh"))
            .arg(verb)
            .arg(self.root())
            .env("HULL_PREFIX", "/usr/local");
        finish(&mut command, Vec::new())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_default()
    }
}

/// containerd's configuration as it understands it, with all of its defaults.
fn understood(config: &Path) -> String {
    let config = config.display().to_string();
    run_ok("containerd", &["--config", &config, "config", "dump"])
}

#[test]
fn a_node_gets_hull_and_is_as_before_when_it_is_removed() {
    let node = Node::new();
    let config = "etc/containerd/config.toml";
    fs::write(node.root().join(config), CONFIG).unwrap();
    // Twice is once.
    for _ in 0..2 {
        let _ = node.script("install").expect(0);
    }
    for program in ["bin/hull", "bin/containerd-shim-hull-v2"] {
        let program = node.root().join("usr/local").join(program);
        run_ok(program.to_str().unwrap(), &["--version"]);
    }
    let dump = understood(&node.root().join(config));
    for runtime in ["runc", "hull"] {
        let table = format!("containerd.runtimes.{runtime}]\n");
        assert_eq!(dump.matches(&table).count(), 1, "{dump}");
        let kind = format!("\"io.containerd.{runtime}.v2\"");
        assert!(dump.contains(&kind), "{dump}");
    }
    let crio = "etc/crio/crio.conf.d/50-hull.conf";
    let named = node.read(crio);
    let named = named
        .lines()
        .find_map(|line| line.strip_prefix("runtime_path = \"/"));
    let named = named.and_then(|path| path.strip_suffix('"')).unwrap();
    assert!(node.root().join(named).exists(), "{named}");

    let _ = node.script("remove").expect(0);
    assert_eq!(node.read(config), CONFIG);
    assert!(!node.root().join(crio).exists());
    let left = run_ok("find", &[node.root().to_str().unwrap(), "-type", "f"]);
    assert_eq!(left.lines().count(), 1, "{left}");
}

#[test]
fn the_versions_of_containerd_s_configuration_are_told_apart() {
    let node = Node::new();
    let config = "etc/containerd/config.toml";
    for (text, section) in [
        ("", "io.containerd.grpc.v1.cri"),
        ("version = 3\n", "io.containerd.cri.v1.runtime"),
    ] {
        let path = node.root().join(config);
        if !text.is_empty() {
            fs::write(path, text).unwrap();
        }
        let _ = node.script("install").expect(0);
        let table = format!("[plugins.\"{section}\".containerd.runtimes.hull]");
        let written = node.read(config);
        assert!(written.contains(&table), "{written}");
    }
    fs::write(node.root().join(config), "version = 1\n").unwrap();
    let _ = node.script("install").expect_error(&["version 2 or 3"]);
    fs::remove_file(node.root().join("dev/kvm")).unwrap();
    let _ = node.script("install").expect_error(&["no /dev/kvm"]);
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).expect("YAML")
}

#[test]
fn the_manifests_name_what_there_is() {
    let class = yaml(include_str!("../../deploy/runtime-class.yaml"));
    assert_eq!(class["apiVersion"], "node.k8s.io/v1");
    assert_eq!(class["kind"], "RuntimeClass");
    let handler = class["handler"].as_str().unwrap();
    for (name, text) in &FILES[1..] {
        let table = format!("runtimes.{handler}]");
        assert!(text.contains(&table), "{name}: {text}");
    }
    // Bytes with a suffix, and thousandths of a CPU.
    let fixed = &class["overhead"]["podFixed"];
    for (resource, suffix) in [("memory", "Mi"), ("cpu", "m")] {
        let amount = fixed[resource]
            .as_str()
            .and_then(|text| text.strip_suffix(suffix));
        let amount: u32 = amount.unwrap().parse().unwrap();
        assert!(amount > 0, "{class}");
    }

    let set = yaml(include_str!("../../deploy/daemon-set.yaml"));
    assert_eq!(
        (&set["apiVersion"], &set["kind"]),
        (&"apps/v1".into(), &"DaemonSet".into())
    );
    let template = &set["spec"]["template"];
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        template["metadata"]["labels"]
    );
    let pod = &template["spec"];
    assert_eq!(class["scheduling"]["nodeSelector"], pod["nodeSelector"]);
    let container = &pod["containers"][0];
    let command: Vec<&str> = (0..3)
        .filter_map(|at| container["command"][at].as_str())
        .collect();
    let mount = &container["volumeMounts"][0];
    assert_eq!(
        command,
        [
            "/opt/hull/deploy/node.sh",
            "serve",
            mount["mountPath"].as_str().unwrap()
        ]
    );
    assert_eq!(mount["name"], pod["volumes"][0]["name"]);
    let image = include_str!("../../deploy/Dockerfile");
    assert!(
        image.contains("\nCOPY deploy /opt/hull/deploy\n"),
        "{image}"
    );
}
