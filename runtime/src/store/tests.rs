use super::tests_support::{record, sandbox_record};
use super::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::sync::atomic::{AtomicBool, Ordering};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path().join("run/hull"));
    (directory, store)
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

/// Everything below a directory but directories.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn an_id_is_taken_until_its_reservation_is_dropped() {
    let (_directory, store) = store();
    let reservation = store.reserve(&id("c1")).unwrap();
    let error = store.reserve(&id("c1")).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    store.reserve(&id("c2")).unwrap().keep();
    drop(reservation);
    assert!(store.lock_container(&id("c1")).unwrap().is_none());
    assert!(store.lock_container(&id("c2")).unwrap().is_some());
    store.reserve(&id("c1")).unwrap();
}

#[test]
fn who_deletes_second_finds_the_container_gone_also_if_there_is_another() {
    for another in [false, true] {
        let (_directory, store) = store();
        store.reserve(&id("c1")).unwrap().keep();
        let first = store.lock_container(&id("c1")).unwrap().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.lock_container(&id("c1")).unwrap().is_some());
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!second.is_finished());
            store.remove_container(&id("c1")).unwrap();
            if another {
                store.reserve(&id("c1")).unwrap().keep();
            }
            drop(first);
            assert!(!second.join().unwrap());
        });
    }
}

#[test]
fn records_are_read_back_and_listed() {
    let (_directory, store) = store();
    assert!(store.containers().unwrap().is_empty());
    for name in ["b", "a"] {
        store.reserve(&id(name)).unwrap().keep();
        store.save_container(&record(&id(name))).unwrap();
    }
    store.reserve(&id("half-made")).unwrap().keep();
    let listed: Vec<String> = store
        .containers()
        .unwrap()
        .into_iter()
        .map(|record| record.id.to_string())
        .collect();
    assert_eq!(listed, ["a", "b"]);
    assert!(matches!(
        store.container(&id("c")),
        Err(StoreError::NotFound { .. })
    ));
    store.remove_container(&id("a")).unwrap();
    store.remove_container(&id("a")).unwrap();
    assert!(store.container(&id("a")).is_err());
}

#[test]
fn a_damaged_record_is_named() {
    let (_directory, store) = store();
    store.reserve(&id("c1")).unwrap().keep();
    let path = store.root().join("containers/c1/state.json");
    std::fs::write(&path, "{").unwrap();
    let error = store.container(&id("c1")).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }));
    assert!(error.to_string().contains("state.json"), "{error}");
}

#[test]
fn a_lock_is_waited_for_and_fails_once_the_sandbox_is_gone() {
    let (_directory, store) = store();
    let lock = store.create_sandbox(&id("s")).unwrap();
    store.save_sandbox(&sandbox_record(&id("s"))).unwrap();
    let released = std::sync::Arc::new(AtomicBool::new(false));
    let waiting = {
        let (store, released) = (store.clone(), released.clone());
        std::thread::spawn(move || {
            let answer = store.lock_sandbox(&id("s"));
            assert!(released.load(Ordering::SeqCst));
            answer.map(drop)
        })
    };
    std::thread::sleep(std::time::Duration::from_millis(50));
    store.remove_sandbox(&id("s")).unwrap();
    released.store(true, Ordering::SeqCst);
    drop(lock);
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::NoSandbox { .. }), "{error}");
}

#[test]
fn a_file_without_a_name_takes_the_place_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pid");
    for text in ["12345", "6"] {
        write_unnamed(&path, text.as_bytes(), 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(files(directory.path()), std::slice::from_ref(&path));
    }
    write_unnamed(&path.join("below"), b"", 0o644).unwrap_err();
    write_unnamed(Path::new("/nonexistent/pid"), b"", 0o644).unwrap_err();
}

#[test]
fn a_full_disk_leaves_what_was_there_and_nothing_else() {
    let (directory, _) = store();
    let small = directory.path().join("small");
    std::fs::create_dir(&small).unwrap();
    mount(
        Some("tmpfs"),
        &small,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k,nr_inodes=24"),
    )
    .unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let store = Store::new(small.clone());
        let reservation = store.reserve(&id("c1")).unwrap();
        let small_record = record(&id("c1"));
        store.save_container(&small_record).unwrap();
        let mut large_record = small_record.clone();
        large_record.owner = "x".repeat(100 * 1024);
        let error = store.save_container(&large_record).unwrap_err();
        assert!(
            crate::error::chain(&error).contains("No space left"),
            "{error:?}"
        );
        assert_eq!(store.container(&id("c1")).unwrap().owner, "root");
        assert_eq!(files(&small), [small.join("containers/c1/state.json")]);
        drop(reservation);
        assert!(files(&small).is_empty());
        // Not even a directory may fit.
        for name in 0..24 {
            if std::fs::File::create(small.join(format!("f{name}"))).is_err() {
                break;
            }
        }
        store.reserve(&id("c2")).unwrap_err();
        store.create_sandbox(&id("c2")).unwrap_err();
        assert!(!small.join("sandboxes/c2").exists());
    });
    umount2(&small, MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
}
