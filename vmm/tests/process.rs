//! The hull-vmm process as its caller sees it, with kernels of a few instructions: what it answers, and what it
//! leaves behind.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hull_vmm_protocol::config::{FsConfig, NetConfig, VmConfig, VsockConfig};
use hull_vmm_protocol::control::{FailureKind, Request, Response};
use hull_vmm_protocol::outcome::{Cause, Outcome, Ready, StartFailure};
use hull_vmm_protocol::socket::{CallError, ControlClient};

const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
const LOOP: &[u8] = &[0xeb, 0xfe];

/// A PVH kernel whose entry is at 16 MiB, in 32-bit protected mode.
fn kernel(code: &[u8]) -> Vec<u8> {
    const FILE_OFFSET: usize = 0x800;
    let mut image = vec![0_u8; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1]);
    put(16, &[2, 0, 0x3e, 0]);
    put(24, &0x100_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    // A load segment: kind, offset, physical address, sizes.
    put(64, &1_u32.to_le_bytes());
    put(64 + 8, &(FILE_OFFSET as u64).to_le_bytes());
    put(64 + 24, &0x100_0000_u64.to_le_bytes());
    put(64 + 32, &0x800_u64.to_le_bytes());
    put(64 + 40, &0x800_u64.to_le_bytes());
    // The note XEN_ELFNOTE_PHYS32_ENTRY.
    put(120, &4_u32.to_le_bytes());
    put(120 + 8, &0x400_u64.to_le_bytes());
    put(120 + 32, &20_u64.to_le_bytes());
    put(
        0x400,
        &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0],
    );
    put(0x410, &0x100_0000_u32.to_le_bytes());
    put(FILE_OFFSET, code);
    image
}

struct Sandbox {
    directory: tempfile::TempDir,
    config: VmConfig,
}

impl Sandbox {
    fn new(code: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("kernel"), kernel(code)).unwrap();
        fs::write(path("initramfs"), "initramfs").unwrap();
        fs::create_dir(path("vsock")).unwrap();
        let config = VmConfig {
            vcpus: 1,
            max_vcpus: 2,
            memory_mib: 64,
            max_memory_mib: 1024,
            kernel: path("kernel"),
            initramfs: path("initramfs"),
            cmdline: String::new(),
            early_serial: true,
            vsock: VsockConfig {
                cid: 3,
                socket: path("vsock/agent.sock"),
            },
            console_log: path("console.log"),
            control_socket: path("control.sock"),
            outcome: path("outcome.json"),
            jail: false,
        };
        Self { directory, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&self) -> Process {
        let config = serde_json::to_vec(&self.config).unwrap();
        fs::write(self.path("config.json"), config).unwrap();
        self.spawn_with_config_file()
    }

    fn spawn_with_config_file(&self) -> Process {
        let ready = tempfile::tempfile().unwrap();
        let fd = ready.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hull-vmm"));
        command
            .arg("--config")
            .arg(self.path("config.json"))
            .args(["--ready-fd", "9"])
            .stderr(Stdio::piped());
        // SAFETY: dup2 is async-signal-safe, and the descriptor is open in the child as it was in the parent.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || match libc::dup2(fd, 9) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        Process {
            child: command.spawn().unwrap(),
            ready,
        }
    }

    fn client(&self) -> ControlClient {
        ControlClient::connect(&self.config.control_socket, Duration::from_secs(20)).unwrap()
    }

    fn outcome(&self) -> Outcome {
        serde_json::from_slice(&fs::read(&self.config.outcome).unwrap()).unwrap()
    }
}

struct Process {
    child: Child,
    ready: File,
}

impl Process {
    /// Waits for the line on the ready descriptor.
    fn ready(&mut self) -> Ready {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut line = String::new();
            self.ready.rewind().unwrap();
            self.ready.read_to_string(&mut line).unwrap();
            if line.ends_with('\n') {
                return serde_json::from_str(&line).unwrap();
            }
            assert!(Instant::now() < deadline, "no line on the ready descriptor");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end; gives the exit code.
    fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.signal(), None);
                return status.code().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("hull-vmm does not end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_reset_is_an_orderly_end() {
    let sandbox = Sandbox::new(RESET);
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    assert_eq!(process.exit_code(), 0);
    let outcome = sandbox.outcome();
    assert_eq!(
        (outcome.cause, outcome.console_tail.as_str()),
        (Cause::GuestReset, "")
    );
}

#[test]
fn a_triple_fault_is_told_with_what_the_console_said() {
    #[rustfmt::skip]
    let sandbox = Sandbox::new(&[
        0x66, 0xba, 0xf8, 0x03,                   // mov dx, 0x3f8
        0xb0, b'O', 0xee, 0xb0, b'h', 0xee,       // print "Oh"
        0x31, 0xc0, 0x0f, 0x22, 0xd8,             // page tables at 0, where there are none
        0x0f, 0x20, 0xc0,                         // mov eax, cr0
        0x0d, 0x00, 0x00, 0x00, 0x80,             // or eax, 0x8000_0000
        0x0f, 0x22, 0xc0,                         // mov cr0, eax
        0xeb, 0xfe,                               // jmp $
    ]);
    let mut process = sandbox.spawn();
    assert_eq!(process.exit_code(), 1);
    let outcome = sandbox.outcome();
    assert_eq!(
        (outcome.cause, outcome.console_tail.as_str()),
        (Cause::TripleFault, "Oh")
    );
    assert_eq!(
        fs::read_to_string(&sandbox.config.console_log).unwrap(),
        "Oh"
    );
}

#[test]
fn a_kvm_that_cannot_go_on_is_told_in_words() {
    // A jump to where nothing is: no KVM can go on from there.
    let sandbox = Sandbox::new(&[0xb8, 0x00, 0x00, 0x00, 0x80, 0xff, 0xe0]);
    let mut process = sandbox.spawn();
    assert_eq!(process.exit_code(), 1);
    let outcome = sandbox.outcome();
    assert_eq!(outcome.cause, Cause::KvmCannotRun);
    assert!(
        outcome.message.contains("hardware virtualisation"),
        "{}",
        outcome.message
    );
}

/// Switches on memory decoding of 00:01.0, which is pvpanic, tells of a panic, and goes on with `then`.
fn panic_then(then: &[u8]) -> Vec<u8> {
    #[rustfmt::skip]
    let mut code = vec![
        0x66, 0xba, 0xf8, 0x0c,             // mov dx, 0xcf8
        0xb8, 0x04, 0x08, 0x00, 0x80,       // mov eax, 0x8000_0804
        0xef,                               // out dx, eax
        0x66, 0xba, 0xfc, 0x0c,             // mov dx, 0xcfc
        0x66, 0xb8, 0x02, 0x00,             // mov ax, 2
        0x66, 0xef,                         // out dx, ax
        0xb0, 0x01,                         // mov al, 1
        0xa2, 0x00, 0x00, 0x00, 0xc0,       // mov [0xc000_0000], al
    ];
    code.extend_from_slice(then);
    code
}

#[test]
fn a_panic_is_told_as_one_whether_the_kernel_resets_or_hangs() {
    for then in [RESET, LOOP] {
        let sandbox = Sandbox::new(&panic_then(then));
        let mut process = sandbox.spawn();
        assert_eq!(process.exit_code(), 1);
        assert_eq!(sandbox.outcome().cause, Cause::GuestPanic);
    }
}

#[test]
fn calls_and_signals_stop_a_machine() {
    let sandbox = Sandbox::new(LOOP);
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    assert_eq!(
        fs::read(&sandbox.config.outcome).unwrap(),
        b"",
        "not ended yet"
    );
    let Response::Status(status) = sandbox.client().call(&Request::Status, &[]).unwrap() else {
        panic!("no status");
    };
    assert_eq!(status.pid, process.child.id());
    assert_eq!(status.devices, ["vsock", "console", "rng"]);
    assert_eq!(
        sandbox.client().call(&Request::Stop, &[]).unwrap(),
        Response::Done
    );
    assert_eq!(process.exit_code(), 0);
    assert_eq!(sandbox.outcome().cause, Cause::Stopped);

    let sandbox = Sandbox::new(LOOP);
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    let pid = i32::try_from(process.child.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(process.exit_code(), 0);
    assert_eq!(sandbox.outcome().cause, Cause::Stopped);
}

#[test]
fn memory_can_be_asked_for_up_to_the_bound_and_the_guest_takes_what_it_takes() {
    let sandbox = Sandbox::new(LOOP);
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    let client = sandbox.client();
    let resize = |memory_mib: u32| client.call(&Request::ResizeMemory { memory_mib }, &[]);
    let devices_and_memory = || match client.call(&Request::Status, &[]) {
        Ok(Response::Status(status)) => (status.devices, status.memory_mib),
        other => panic!("{other:?}"),
    };
    for memory_mib in [0, 63, 1025, u32::MAX] {
        match resize(memory_mib) {
            Err(CallError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::Invalid),
            other => panic!("{memory_mib}: {other:?}"),
        }
    }
    assert_eq!(resize(64).unwrap(), Response::Done);
    let (devices, _) = devices_and_memory();
    assert_eq!(devices.len(), 3, "it has what it started with");
    for memory_mib in [1024, 65, 64] {
        assert_eq!(resize(memory_mib).unwrap(), Response::Done);
        let (devices, has) = devices_and_memory();
        assert_eq!(devices, ["vsock", "console", "rng", "memory"]);
        assert_eq!(has, 64, "this guest has no driver");
    }
    assert_eq!(client.call(&Request::Stop, &[]).unwrap(), Response::Done);
    assert_eq!(process.exit_code(), 0);
}

#[test]
fn devices_are_attached_and_detached_and_wrong_calls_refused() {
    let sandbox = Sandbox::new(LOOP);
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    let client = sandbox.client();
    let attach = |id: &str, tag: &str, directory: PathBuf| {
        client.call(
            &Request::AttachFs(FsConfig {
                id: id.to_owned(),
                tag: tag.to_owned(),
                directory,
            }),
            &[],
        )
    };
    let kind = |result: Result<Response, CallError>| match result {
        Err(CallError::Failed(failure)) => failure.kind,
        other => panic!("{other:?}"),
    };
    let share = sandbox.path("vsock");
    let attached = attach("fs0", "hull", share.clone()).unwrap();
    let Response::Attached { pci_address } = attached else {
        panic!("{attached:?}");
    };
    assert_eq!(pci_address, "0000:00:05.0");
    assert_eq!(
        kind(attach("fs0", "hull", share.clone())),
        FailureKind::Exists
    );
    assert_eq!(
        kind(attach("", "hull", share.clone())),
        FailureKind::Invalid
    );
    assert_eq!(
        kind(attach("fs1", &"t".repeat(37), share.clone())),
        FailureKind::Invalid
    );
    assert_eq!(
        kind(attach("fs1", "hull", sandbox.path("none"))),
        FailureKind::Host
    );
    let net = |mac: &str| Request::AttachNet(NetConfig::new("n0".to_owned(), mac.to_owned(), 1500));
    assert_eq!(
        kind(client.call(&net("02:00:00:00:00:01"), &[])),
        FailureKind::Invalid
    );
    assert_eq!(kind(client.call(&net("02:00"), &[])), FailureKind::Invalid);
    let null = File::open("/dev/null").unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&null)];
    assert_eq!(
        kind(client.call(&net("02:00:00:00:00:01"), &fds)),
        FailureKind::Host
    );
    assert_eq!(
        kind(client.call(&Request::Status, &fds)),
        FailureKind::Invalid
    );
    let detach = |id: &str| client.call(&Request::Detach { id: id.to_owned() }, &[]);
    assert_eq!(detach("fs0").unwrap(), Response::Done);
    assert_eq!(kind(detach("fs0")), FailureKind::NotFound);
    assert_eq!(kind(detach("console")), FailureKind::Invalid);
    // The place is free again; 27 slots of eight functions fit, and the machine goes on when the bus is full.
    for index in 0..27 * 8 {
        let attached = attach(&format!("fs{index}"), "hull", share.clone()).unwrap();
        let pci_address = format!("0000:00:{:02x}.{}", 5 + index / 8, index % 8);
        assert_eq!(attached, Response::Attached { pci_address });
    }
    assert_eq!(
        kind(attach("full", "hull", share.clone())),
        FailureKind::Exhausted
    );
    // One of a slot goes, the first or another, and the others stay.
    for (id, function) in [("fs64", 0), ("fs67", 3)] {
        assert_eq!(detach(id).unwrap(), Response::Done);
        let attached = attach(id, "hull", share.clone()).unwrap();
        let pci_address = format!("0000:00:0d.{function}");
        assert_eq!(attached, Response::Attached { pci_address });
    }
    assert_eq!(client.call(&Request::Stop, &[]).unwrap(), Response::Done);
    assert_eq!(process.exit_code(), 0);
}

#[test]
fn what_cannot_start_says_why() {
    let told = |sandbox: &Sandbox| {
        let mut process = sandbox.spawn();
        let ready = process.ready();
        assert_eq!(process.exit_code(), 1);
        match ready {
            Ready::Failed { kind, message } => (kind, message),
            Ready::Running => panic!("it runs"),
        }
    };
    let mut sandbox = Sandbox::new(LOOP);
    sandbox.config.vcpus = 0;
    assert_eq!(told(&sandbox).0, StartFailure::Config);

    let sandbox = Sandbox::new(LOOP);
    fs::remove_file(sandbox.path("kernel")).unwrap();
    let (kind, message) = told(&sandbox);
    assert_eq!(kind, StartFailure::Kernel);
    assert!(message.contains("No such file"), "{message}");

    let sandbox = Sandbox::new(LOOP);
    fs::write(sandbox.path("kernel"), vec![b'x'; 8192]).unwrap();
    let (kind, message) = told(&sandbox);
    assert_eq!(kind, StartFailure::Kernel);
    assert!(message.contains("is not a kernel"), "{message}");

    let mut sandbox = Sandbox::new(LOOP);
    sandbox.config.initramfs = sandbox.path("none");
    assert_eq!(told(&sandbox).0, StartFailure::Kernel);

    let sandbox = Sandbox::new(LOOP);
    fs::write(&sandbox.config.control_socket, "taken").unwrap();
    assert_eq!(told(&sandbox).0, StartFailure::Host);

    let sandbox = Sandbox::new(LOOP);
    fs::write(sandbox.path("config.json"), "{").unwrap();
    let mut process = sandbox.spawn_with_config_file();
    let ready = process.ready();
    assert!(
        matches!(
            ready,
            Ready::Failed {
                kind: StartFailure::Config,
                ..
            }
        ),
        "{ready:?}"
    );
}

#[test]
fn the_jail_shows_nothing_of_the_host_and_keeps_few_privileges() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root: it makes a mount namespace"
    );
    let mut sandbox = Sandbox::new(LOOP);
    sandbox.config.jail = true;
    let mut process = sandbox.spawn();
    assert_eq!(process.ready(), Ready::Running);
    let pid = process.child.id();
    let mut names: Vec<String> = fs::read_dir(format!("/proc/{pid}/root/"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["proc", "shared", "vsock"]);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 3, "{mounts}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        let held = u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
        let kept: u64 = [0, 1, 2, 3, 4, 6, 7, 27, 31]
            .map(|bit| 1 << bit)
            .iter()
            .sum();
        assert_eq!(held & !kept, 0, "{line}");
    }
    let attached = sandbox.client().call(
        &Request::AttachFs(FsConfig {
            id: "fs0".to_owned(),
            tag: "hull".to_owned(),
            directory: "/shared".into(),
        }),
        &[],
    );
    assert!(
        matches!(attached, Ok(Response::Attached { .. })),
        "{attached:?}"
    );
    assert_eq!(
        sandbox.client().call(&Request::Stop, &[]).unwrap(),
        Response::Done
    );
    assert_eq!(process.exit_code(), 0);
    assert_eq!(sandbox.outcome().cause, Cause::Stopped);
}
