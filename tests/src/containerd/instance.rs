//! A containerd of a case's own, with state, sockets and networks of its own.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{run, run_ok};

/// The bridge of its pods' network.
const BRIDGE: &str = "case-cri0";
/// Those that take their time to start, and serve no case.
const DISABLED: [&str; 6] = [
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
];

/// What holds a pod.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sandboxer {
    /// A container that waits.
    Container,
    /// The shim, by containerd 2.
    Shim,
}

impl Sandboxer {
    /// A line of the runtime's configuration, if it is not what containerd does by itself.
    fn setting(self) -> &'static str {
        match self {
            Self::Container => "",
            Self::Shim => "sandboxer = \"shim\"",
        }
    }
}

/// A containerd that runs. It ends when this goes.
#[derive(Debug)]
pub(super) struct Instance {
    directory: TempDir,
    process: RefCell<Child>,
}

impl Instance {
    /// One that has the snapshotters overlayfs and `snapshotter`, and has pods held as `sandboxer` says.
    pub(super) fn start(snapshotter: &str, sandboxer: Sandboxer) -> Self {
        let directory = TempDir::with_prefix("containerd-").expect("temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let disabled: Vec<String> = DISABLED
            .iter()
            .filter(|name| name.rsplit('.').next() != Some(snapshotter))
            .map(|name| format!("{name:?}"))
            .collect();
        let scratch = path("scratch");
        if snapshotter == "blockfile" {
            run_ok("truncate", &["-s", "64M", &scratch]);
            run_ok("busybox", &["mke2fs", "-F", &scratch]);
        }
        if snapshotter == "erofs" {
            // containerd leaves it out where the kernel does not know it yet.
            run_ok("modprobe", &["erofs"]);
        }
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.snapshotter.v1.blockfile"]
scratch_file = "{scratch}"
fs_type = "ext4"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{hull}{sandboxer}"#,
            root = path("root"),
            state = path("state"),
            disabled = disabled.join(", "),
            socket = path("socket"),
            opt = path("opt"),
            image = super::BUSYBOX,
            networks = path("net.d"),
            hull = include_str!("../../../deploy/containerd.toml"),
            sandboxer = sandboxer.setting(),
        );
        fs::write(path("config.toml"), config).expect("configuration");
        let network = json!({
            "cniVersion": "1.0.0", "name": "case",
            "plugins": [
                {
                    "type": "bridge", "bridge": BRIDGE, "isGateway": true,
                    "ipam": {
                        "type": "host-local", "dataDir": path("addresses"),
                        "ranges": [[{ "subnet": "10.97.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        fs::create_dir(path("net.d")).expect("directory");
        fs::write(path("net.d/case.conflist"), network.to_string()).expect("network");
        let process = RefCell::new(Self::spawn(&directory));
        Self { directory, process }
    }

    fn spawn(directory: &TempDir) -> Child {
        let log: File = OpenOptions::new()
            .append(true)
            .create(true)
            .open(directory.path().join("log"))
            .expect("log");
        Command::new("containerd")
            .arg("--config")
            .arg(directory.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("descriptor"))
            .stderr(log)
            .spawn()
            .expect("containerd")
    }

    pub(super) fn address(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Where the shim of a pod serves, as it has told containerd.
    pub(super) fn shim_address(&self, pod: &str) -> String {
        let state = self.directory.path().join("state");
        let name = format!("*/{pod}/bootstrap.json");
        // Which of its plugins keeps it depends on its version.
        let path = run_ok("find", &[state.to_str().expect("UTF-8"), "-path", &name]);
        let told = fs::read(path.trim()).expect("what it has told");
        let told: Value = serde_json::from_slice(&told).expect("JSON");
        told["address"].as_str().expect("an address").to_owned()
    }

    /// What it has said, for a case that fails.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(super) fn kill(&self) {
        let mut process = self.process.borrow_mut();
        process.kill().expect("kill");
        process.wait().expect("wait");
    }

    pub(super) fn restart(&self) {
        *self.process.borrow_mut() = Self::spawn(&self.directory);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let process = self.process.get_mut();
        // It may have ended by itself.
        let _ = process.kill();
        let _ = process.wait();
        // There is one only if there were pods.
        let _ = run("ip", &["link", "delete", BRIDGE]);
        // Layers of erofs stay mounted while their snapshots are there.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|target| Path::new(target).starts_with(self.directory.path()));
        for target in own.collect::<Vec<_>>().into_iter().rev() {
            let _ = run("umount", &[target]);
        }
    }
}
