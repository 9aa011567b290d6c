use super::*;
use serde_json::json;
use std::time::Instant;

fn shell(script: &str) -> Hook {
    serde_json::from_value(json!({"path": "/bin/sh", "args": ["hook", "-c", script]})).unwrap()
}

fn timed(script: &str, timeout: i64) -> Hook {
    let mut hook = serde_json::to_value(shell(script)).unwrap();
    hook["timeout"] = json!(timeout);
    serde_json::from_value(hook).unwrap()
}

fn run_one(hook: Hook) -> Result<(), HookError> {
    let bundle = tempfile::tempdir().unwrap();
    run(
        HookKind::Prestart,
        &[hook],
        r#"{"id":"c"}"#,
        bundle.path(),
        None,
    )
}

#[test]
fn the_table_has_a_row_for_each_kind_in_order() {
    for kind in [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
        HookKind::Poststart,
        HookKind::Poststop,
    ] {
        assert_eq!(kind.row().0, kind);
    }
}

#[test]
fn a_hook_gets_the_state_its_environment_and_the_bundle() {
    let bundle = tempfile::tempdir().unwrap();
    let hook = serde_json::from_value(json!({
        "path": "/bin/sh",
        "args": ["hook", "-c", "cat > out; echo \"$0 $A $B $HOME\" >> out"],
        "env": ["A=1", "B=x=y"],
    }))
    .unwrap();
    run(
        HookKind::CreateRuntime,
        &[hook],
        "{}\n",
        bundle.path(),
        None,
    )
    .unwrap();
    let written = std::fs::read_to_string(bundle.path().join("out")).unwrap();
    assert_eq!(written, "{}\nhook 1 x=y \n");
}

#[test]
fn a_failing_hook_is_told_with_what_it_wrote() {
    let error = run_one(shell("echo said; echo complained >&2; exit 7")).unwrap_err();
    let text = error.to_string();
    for part in [
        "prestart hook #0",
        "exit status: 7",
        "stdout: said",
        "stderr: complained",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    let hook = serde_json::from_value(json!({"path": "/nonexistent/hook"})).unwrap();
    let error = run_one(hook).unwrap_err();
    assert!(matches!(error, HookError::Run { .. }));
    assert!(error.to_string().contains("/nonexistent/hook"));
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let late = directory.path().join("late");
    let script = format!("echo begun >&2; (sleep 2; touch {}) & wait", late.display());
    let begun = Instant::now();
    let error = run_one(timed(&script, 1)).unwrap_err();
    assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("begun"), "{error}");
    std::thread::sleep(Duration::from_secs(3).saturating_sub(begun.elapsed()));
    assert!(!late.exists());
}

#[test]
fn a_hook_may_ignore_its_input_and_leave_a_daemon() {
    let state = "x".repeat(1 << 20);
    let begun = Instant::now();
    run(
        HookKind::Prestart,
        &[shell("sleep 20 & exit 0")],
        &state,
        Path::new("/"),
        None,
    )
    .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn the_first_failure_is_the_last_hook() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = [shell("exit 0"), shell("exit 1"), shell("touch ran")];
    let error = run(HookKind::Poststop, &hooks, "", bundle.path(), None).unwrap_err();
    assert!(error.to_string().contains("poststop hook #1"), "{error}");
    assert!(!bundle.path().join("ran").exists());
}

#[test]
fn create_container_hooks_run_in_the_network_namespace() {
    let bundle = tempfile::tempdir().unwrap();
    let netns = Netns::create().unwrap();
    let own = ProcessIdentity::own().unwrap();
    let read = shell("readlink /proc/self/ns/net > netns");
    let hooks = [read];
    run(
        HookKind::CreateContainer,
        &hooks,
        "",
        bundle.path(),
        Some((&own, &netns)),
    )
    .unwrap();
    let inside = std::fs::read_to_string(bundle.path().join("netns")).unwrap();
    assert_eq!(inside.trim(), format!("net:[{}]", netns.id().inode));
    run(
        HookKind::CreateRuntime,
        &hooks,
        "",
        bundle.path(),
        Some((&own, &netns)),
    )
    .unwrap();
    let outside = std::fs::read_to_string(bundle.path().join("netns")).unwrap();
    assert_ne!(outside, inside);
}
