//! Bundles: a directory with a `config.json` and a root file system made of busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A bundle that is removed with its value.
#[derive(Debug)]
pub struct Bundle {
    directory: TempDir,
}

impl Bundle {
    /// A bundle whose process is `args`, with a network namespace of its own that has nothing but `lo`.
    ///
    /// # Panics
    /// The machine has no static busybox, or no room.
    #[must_use]
    pub fn new(args: &[&str]) -> Self {
        let directory = TempDir::with_prefix("hull-bundle-").expect("temporary directory");
        let bundle = Self { directory };
        make_rootfs(&bundle.rootfs());
        bundle.write(&default_config(args));
        bundle
    }

    /// A bundle that runs a shell script.
    #[must_use]
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// The bundle's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory as an argument.
    ///
    /// # Panics
    /// Never: temporary directories are UTF-8.
    #[must_use]
    pub fn arg(&self) -> &str {
        self.path().to_str().expect("UTF-8")
    }

    /// The root file system's directory.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The configuration as it is.
    ///
    /// # Panics
    /// It is not JSON.
    #[must_use]
    pub fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path().join("config.json")).expect("config.json"))
            .expect("JSON")
    }

    /// Replaces the configuration.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, config: &Value) {
        let text = serde_json::to_vec_pretty(config).expect("JSON");
        fs::write(self.path().join("config.json"), text).expect("config.json");
    }

    /// Changes the configuration.
    #[must_use]
    pub fn with(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut config = self.config();
        change(&mut config);
        self.write(&config);
        self
    }

    /// Puts the container into the network namespace at `path`.
    #[must_use]
    pub fn in_netns(self, path: &Path) -> Self {
        self.with(|config| {
            for namespace in config["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
            {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
        })
    }

    /// Copies a program of this machine into the root file system, with the shared libraries that it needs.
    ///
    /// # Panics
    /// It is not there.
    pub fn add_program(&self, program: &str) {
        let libraries = crate::run_ok("ldd", &[program]);
        let paths = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for path in paths.chain([program]) {
            self.add_file(
                path,
                &fs::read(path).expect("a file of this machine"),
                0o755,
            );
        }
    }

    /// Writes an executable file into the root file system.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn add_file(&self, path: &str, content: &[u8], mode: u32) {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("has a parent")).expect("directories");
        fs::write(&path, content).expect("file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .expect("mode");
    }
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "var"] {
        fs::create_dir_all(root.join(directory)).expect("directories");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("static busybox of Debian");
    let applets = crate::run_ok("/bin/busybox", &["--list"]);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("link");
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").expect("group");
}

/// What `runc spec` writes, with the given arguments, without a terminal, and with a writable root.
fn default_config(args: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "hull-case",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" }
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi"
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
            ]
        }
    })
}
