//! CRI-O's way with `runtime_type = "oci"`: conmon, called with the words and the pipes that CRI-O gives it, for the infra
//! container and the containers of a pod whose namespaces were made, and wired by CNI, before. CRI-O itself is not in
//! Debian.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hull_tests::cni::CniNetwork;
use hull_tests::command::{eventually, wait};
use hull_tests::{Bundle, Hull, LeakCheck, Netns, run, run_ok};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What CRI-O keeps for a pod: the directories that conmon is told, and pinned namespaces.
struct Crio {
    hull: Hull,
    directory: TempDir,
}

impl Crio {
    fn new() -> Self {
        let directory = TempDir::with_prefix("crio-").unwrap();
        for name in ["exits", "attach"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // A byte for conmon, which waits for one until CRI-O has put it into its cgroup.
        fs::write(directory.path().join("start"), [0]).unwrap();
        Self {
            hull: Hull::new(),
            directory,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// conmon with CRI-O's two pipes, of which a file stands for each; `sync` is what conmon answers by.
    fn conmon(&self, sync: &str, words: &[String]) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "exec conmon \"$@\" 3>\"$SYNC\" 4<\"$START\"",
                "conmon",
            ])
            .args(words)
            .env("SYNC", self.path(sync))
            .env("START", self.path("start"))
            .env("_OCI_SYNCPIPE", "3")
            .env("_OCI_STARTPIPE", "4")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// conmon's answer, once it is there.
    fn answer(&self, sync: &str) -> Value {
        let mut answer = Value::Null;
        assert!(eventually(|| {
            let text = fs::read_to_string(self.path(sync)).unwrap_or_default();
            answer = serde_json::from_str(&text).unwrap_or_default();
            !answer.is_null()
        }));
        answer
    }

    fn runtime_words(&self) -> Vec<String> {
        let root = format!("--root={}", self.hull.root().display());
        ["-r", "/usr/local/bin/hull", "--runtime-arg", &root]
            .map(str::to_owned)
            .into()
    }

    /// Has conmon create a container; gives the pid that CRI-O is told.
    fn create(&self, bundle: &Bundle, id: &str, options: &[&str]) -> i64 {
        let of_bundle = |name: &str| format!("{}/{name}", bundle.arg());
        let persistent = self.path(&format!("persistent-{id}"));
        fs::create_dir(&persistent).unwrap();
        let mut words: Vec<String> = vec!["-b".into(), bundle.arg().into()];
        words.extend(["-c".into(), id.into()]);
        words.extend(["--exit-dir".into(), self.path("exits")]);
        words.extend(["-l".into(), self.path(&format!("{id}.log"))]);
        words.extend(["--log-level".into(), "info".into()]);
        words.extend(["-n".into(), format!("k8s_{id}_pod_default_0")]);
        words.extend(["-P".into(), of_bundle("conmon-pidfile")]);
        words.extend(["-p".into(), of_bundle("pidfile")]);
        words.extend(["--persist-dir".into(), persistent]);
        words.extend(self.runtime_words());
        words.extend(["--socket-dir-path".into(), self.path("attach")]);
        words.extend(["--syslog".into(), "-u".into(), id.into()]);
        words.extend(options.iter().map(|&option| option.to_owned()));
        let sync = format!("{id}.sync");
        let status = self.conmon(&sync, &words).status().unwrap();
        assert!(status.success(), "{status}");
        let answer = self.answer(&sync);
        let pid = answer["pid"].as_i64().unwrap();
        assert!(pid > 0, "{answer}");
        assert_eq!(
            fs::read_to_string(of_bundle("pidfile")).unwrap(),
            pid.to_string()
        );
        pid
    }

    fn start(&self, id: &str) {
        let _ = self.hull.hull(&["start", id]).expect(0);
    }

    /// `ExecSync`: gives conmon's answer, and what the process has written to its standard output.
    fn exec(
        &self,
        bundle: &Bundle,
        id: &str,
        args: &[&str],
        limit: Option<u32>,
    ) -> (Value, String) {
        let mut process = bundle.config()["process"].clone();
        process["args"] = json!(args);
        let spec = self.path("exec-process");
        fs::write(&spec, process.to_string()).unwrap();
        let log = self.path("exec.log");
        fs::write(&log, "").unwrap();
        let mut words: Vec<String> = vec!["-c".into(), id.into(), "-n".into(), "k8s".into()];
        words.extend(self.runtime_words());
        words.extend([
            "-p".into(),
            self.path("exec.pid"),
            "-e".into(),
            "-l".into(),
            log.clone(),
        ]);
        words.extend(["--socket-dir-path".into(), self.path("attach")]);
        words.extend(["--log-level", "info", "--sync"].map(str::to_owned));
        words.extend(["--log-global-size-max", "16777216"].map(str::to_owned));
        if let Some(seconds) = limit {
            words.extend(["-T".into(), seconds.to_string()]);
        }
        words.extend(["--exec-process-spec".into(), spec]);
        let mut child = self.conmon("exec.sync", &words).spawn().unwrap();
        wait(&mut child).expect("conmon ends");
        (self.answer("exec.sync"), written(Path::new(&log)))
    }

    /// A shell script of a probe, which succeeds.
    fn probe(&self, bundle: &Bundle, id: &str, script: &str) -> String {
        let (answer, text) = self.exec(bundle, id, &["sh", "-c", script], None);
        assert_eq!(answer["exit_code"], 0, "{script}: {answer}");
        text
    }

    /// The exit code that CRI-O finds.
    fn exit_code(&self, id: &str) -> String {
        let path = self.directory.path().join("exits").join(id);
        assert!(eventually(|| path.exists()), "{}", path.display());
        fs::read_to_string(path).unwrap()
    }
}

/// Standard output in a log of conmon's: lines of a time, a stream, `F` or `P`, and the words.
fn written(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap();
    let words = text.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ' ').skip(1);
        (fields.next() == Some("stdout")).then(|| fields.nth(1).unwrap_or_default())
    });
    words.map(|words| format!("{words}\n")).collect()
}

/// Namespaces that are kept by mounts, as CRI-O's `pinns` does.
struct Pinned(TempDir);

impl Pinned {
    fn new() -> Self {
        let directory = TempDir::with_prefix("pinned-").unwrap();
        let mount = directory.path().display().to_string();
        run_ok("mount", &["--bind", &mount, &mount]);
        // What a process mounts from inside a namespace is to be no peer's.
        run_ok("mount", &["--make-private", &mount]);
        let pinned = Self(directory);
        for kind in ["ipc", "uts"] {
            let path = pinned.path(kind);
            fs::write(&path, "").unwrap();
            run_ok(
                "unshare",
                &[&format!("--{kind}={}", path.display()), "true"],
            );
        }
        pinned
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.0.path().join(kind)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mount = self.0.path().display().to_string();
        let paths = ["ipc", "uts"].map(|kind| self.path(kind).display().to_string());
        for path in paths.iter().chain([&mount]) {
            drop(run("umount", &[path]));
        }
    }
}

/// Gives a bundle the namespaces, the shared memory and the annotations of CRI-O's pod `pod`.
fn in_pod(
    bundle: Bundle,
    kind: &str,
    pod: &str,
    netns: &Netns,
    pinned: &Pinned,
    shm: &Path,
) -> Bundle {
    bundle.with(|config| {
        config["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": kind,
            "io.kubernetes.cri-o.SandboxID": pod,
        });
        config["linux"]["namespaces"] = json!([
            { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
            { "type": "network", "path": netns.path() },
            { "type": "ipc", "path": pinned.path("ipc") },
            { "type": "uts", "path": pinned.path("uts") },
        ]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
        mounts.push(json!({ "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rw", "bind"] }));
    })
}

/// Connects to conmon as `kubectl attach` does through CRI-O.
fn attach(path: &Path) -> OwnedFd {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(120, 0)).unwrap();
    let address = UnixAddr::new(path).unwrap();
    connect(socket.as_raw_fd(), &address).unwrap();
    socket
}

/// Says a line, and reads packets, each with the number of its stream before it, until all of `answer` has come.
fn converse(socket: &OwnedFd, line: &str, answer: &str) {
    let words = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &words,
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .unwrap();
    let mut heard = String::new();
    let mut packet = [0; 8193];
    while !heard.contains(answer) {
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty())
            .map_err(io::Error::from)
            .unwrap();
        assert!(length > 0, "{answer:?} did not come: {heard:?}");
        assert_eq!(packet[0], 2, "standard output");
        heard.push_str(&String::from_utf8_lossy(&packet[1..length]));
    }
}

#[test]
fn a_pod_of_crio_lives_in_one_vm() {
    let leaks = LeakCheck::new();
    let crio = Crio::new();
    let (host, netns) = (Netns::new(), Netns::new());
    let bridge = json!({
        "type": "bridge", "bridge": "crio0", "isGateway": true,
        "ipam": { "ranges": [[{ "subnet": "10.99.0.0/24" }]] },
    });
    let tuning = json!({ "type": "tuning", "mtu": 1400 });
    let network = CniNetwork::new(&host, &[bridge, tuning]);
    let attachment = network.add(&netns, "eth0");
    let pinned = Pinned::new();
    let shm = tempfile::tempdir().unwrap();
    let of_pod = |bundle, kind| in_pod(bundle, kind, "infra", &netns, &pinned, shm.path());

    let infra = of_pod(Bundle::new(&["sleep", "100000"]), "sandbox");
    crio.create(&infra, "infra", &[]);
    crio.start("infra");
    let script = "echo started; while read line; do echo got $line; done; exec sleep 100000";
    let talker = of_pod(Bundle::shell(script), "container");
    crio.create(&talker, "talker", &["--leave-stdin-open", "-i"]);
    crio.start("talker");
    let brief = of_pod(Bundle::shell("exit 7"), "container");
    crio.create(&brief, "brief", &[]);
    crio.start("brief");
    assert_eq!(crio.exit_code("brief"), "7");

    let same = "cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts";
    assert_eq!(
        crio.probe(&infra, "infra", same),
        crio.probe(&talker, "talker", same)
    );
    crio.probe(&infra, "infra", "echo shared > /dev/shm/word");
    assert_eq!(
        crio.probe(&talker, "talker", "cat /dev/shm/word"),
        "shared\n"
    );
    let address = &attachment.addresses()[0];
    let shown = crio.probe(&talker, "talker", "ip -4 addr show dev eth0");
    assert!(shown.contains(address), "{shown}");
    host.await_answer_of(address);
    // As CRI-O does for the pod's status.
    attachment.check_passes();

    let (answer, text) = crio.exec(
        &talker,
        "talker",
        &["sh", "-c", "echo out; exit 3"],
        Some(120),
    );
    assert_eq!((&answer["exit_code"], text.as_str()), (&json!(3), "out\n"));
    let (answer, _) = crio.exec(&talker, "talker", &["sleep", "7777"], Some(2));
    assert_eq!(answer["message"], "command timed out", "{answer}");
    // conmon kills what CRI-O was told to be the process.
    let left = "ps -o args | grep '^sleep 7777' | wc -l";
    assert!(eventually(|| crio.probe(&talker, "talker", left) == "0\n"));

    let log = crio.path("talker.log");
    assert!(eventually(|| written(Path::new(&log)) == "started\n"));
    let socket = attach(&crio.directory.path().join("attach/talker/attach"));
    converse(&socket, "word\n", "got word\n");
    drop(socket);
    assert!(eventually(
        || written(Path::new(&log)) == "started\ngot word\n"
    ));

    let _ = crio.hull.hull(&["kill", "talker", "KILL"]).expect(0);
    assert_eq!(crio.exit_code("talker"), "137");
    for id in ["brief", "talker"] {
        let _ = crio.hull.hull(&["delete", "--force", id]).expect(0);
    }
    let _ = crio.hull.hull(&["kill", "infra", "KILL"]).expect(0);
    assert_eq!(crio.exit_code("infra"), "137");
    let _ = crio.hull.hull(&["delete", "--force", "infra"]).expect(0);
    attachment.delete();
    let root = crio.hull.root();
    drop(attachment);
    drop(network);
    drop((host, netns, pinned));
    leaks.nothing_left(&root);
}

#[test]
fn what_hull_refuses_is_told_to_crio() {
    let crio = Crio::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["linux"]["namespaces"] = json!([
            { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
        ]);
    });
    let mut words: Vec<String> = vec!["-b".into(), bundle.arg().into(), "-c".into(), "c".into()];
    words.extend([
        "--exit-dir".into(),
        crio.path("exits"),
        "-l".into(),
        crio.path("c.log"),
    ]);
    words.extend([
        "-p".into(),
        format!("{}/pidfile", bundle.arg()),
        "-u".into(),
        "c".into(),
    ]);
    words.extend(crio.runtime_words());
    words.extend(["--socket-dir-path".into(), crio.path("attach")]);
    let _ = crio.conmon("c.sync", &words).status().unwrap();
    let answer = crio.answer("c.sync");
    assert_eq!(answer["pid"], -1, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("sharing the host's network"), "{message}");
}
