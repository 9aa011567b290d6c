use super::*;
use hull_vmm_protocol::config::VsockConfig;
use hull_vmm_protocol::outcome::Cause;
use std::os::unix::fs::PermissionsExt;

fn config(directory: &Path) -> VmConfig {
    VmConfig {
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 128,
        max_memory_mib: 128,
        kernel: "/k".into(),
        initramfs: "/i".into(),
        cmdline: String::new(),
        early_serial: false,
        vsock: VsockConfig {
            cid: 3,
            socket: vsock_socket(directory),
        },
        console_log: directory.join("console.log"),
        control_socket: control_socket(directory),
        outcome: directory.join("outcome.json"),
        jail: true,
    }
}

/// Runs a shell script in place of hull-vmm.
fn run(script: &str, limit: Duration) -> Result<(), VmmError> {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("hull-vmm");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let netns = Netns::current().unwrap();
    let vmm = StartingVmm::spawn(
        &program,
        &netns,
        directory.path(),
        &config(directory.path()),
    )
    .unwrap();
    let identity = vmm.identity();
    let answer = vmm.wait_running(limit);
    if answer.is_err() {
        assert!(!identity.is_alive());
    } else {
        stop(&identity, directory.path()).unwrap();
    }
    answer
}

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_vmm_says_that_its_machine_runs() {
    run("echo '\"running\"'; exec sleep 60", LIMIT).unwrap();
}

#[test]
fn a_vmm_says_why_its_machine_does_not_run() {
    let error = run(
        r#"echo '{"failed":{"kind":"kvm","message":"/dev/kvm: Permission denied"}}'; sleep 60"#,
        LIMIT,
    )
    .unwrap_err();
    assert!(matches!(
        error,
        VmmError::Start {
            kind: StartFailure::Kvm,
            ..
        }
    ));
    assert!(error.to_string().contains("/dev/kvm: Permission denied"));
}

#[test]
fn a_vmm_that_dies_or_hangs_is_told_apart() {
    let error = run("echo broken >&2; exit 3", LIMIT).unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    let error = run("exec sleep 60", Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, VmmError::NotReady { .. }), "{error}");
}

#[test]
fn the_end_is_described_without_the_guest_driving_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("console.log"),
        "x".repeat(10_000) + "\x1b[2Jlast line\n\n",
    )
    .unwrap();
    let text = describe_end(directory.path());
    assert!(text.ends_with("[2Jlast line"), "{text:?}");
    assert!(text.len() < 5000);
    let outcome = Outcome {
        cause: Cause::GuestPanic,
        message: "the guest's kernel panicked".into(),
        console_tail: "Kernel panic - not syncing".into(),
    };
    std::fs::write(
        directory.path().join("outcome.json"),
        serde_json::to_vec(&outcome).unwrap(),
    )
    .unwrap();
    assert_eq!(
        describe_end(directory.path()),
        "the guest's kernel panicked\n--- console ---\nKernel panic - not syncing"
    );
}
