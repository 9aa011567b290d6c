//! The root file system, volumes and the file systems that are made in the guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hull_tests::command::eventually;
use hull_tests::{Bundle, Hull, LeakCheck, run, run_ok};
use serde_json::json;

#[test]
fn what_the_container_writes_is_on_the_host_with_its_owner() {
    use std::os::unix::fs::MetadataExt;
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "echo content > /var/file; chown 1000:1001 /var/file; chmod 640 /var/file; ln -s file /var/link; mkdir /var/directory",
    );
    let _ = hull.run(&bundle, "writes").expect(0);
    let file = bundle.rootfs().join("var/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content\n");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (1000, 1001, 0o640)
    );
    assert_eq!(
        fs::read_link(bundle.rootfs().join("var/link"))
            .unwrap()
            .to_str(),
        Some("file")
    );
    assert!(bundle.rootfs().join("var/directory").is_dir());
}

#[test]
fn a_read_only_root_refuses_writes() {
    let hull = Hull::new();
    let bundle = Bundle::shell("echo x > /var/file || echo refused")
        .with(|config| config["root"]["readonly"] = json!(true));
    assert_eq!(hull.run(&bundle, "readonly").expect(0).text(), "refused\n");
    assert!(!bundle.rootfs().join("var/file").exists());
}

/// A tmpfs in a directory, as long as it is not dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        run_ok("mount", &["-t", "tmpfs", "none", path.to_str().unwrap()]);
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[self.0.to_str().unwrap()]);
    }
}

#[test]
fn volumes_of_directories_and_files_read_only_and_not() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("given"), "by the host\n").unwrap();
    let below = Mounted::at(volume.path().join("be low"));
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "cat /data/given /etc/one; echo by the guest > /data/made; echo x > /fixed/made || echo refused; echo x > /etc/one || echo refused
        echo y > '/fixed/be low/made' || echo refused; echo x > '/whole/be low/made' || echo refused",
    )
    .with(|config| {
        let source = volume.path().to_str().unwrap();
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rw"] }));
        mounts.push(json!({ "destination": "/fixed", "type": "bind", "source": source, "options": ["rbind", "ro"] }));
        mounts.push(json!({ "destination": "/whole", "type": "bind", "source": source, "options": ["rbind", "rro"] }));
        mounts.push(json!({ "destination": "/etc/one", "type": "bind", "source": format!("{source}/given"), "options": ["bind", "ro"] }));
    });
    let finished = hull.run(&bundle, "volumes").expect(0);
    assert_eq!(
        finished.text(),
        "by the host\nby the host\nrefused\nrefused\nrefused\n"
    );
    let made = fs::read_to_string(below.0.join("made"));
    assert_eq!(made.unwrap(), "y\n");
    assert_eq!(
        fs::read_to_string(volume.path().join("made")).unwrap(),
        "by the guest\n"
    );
    leaks.nothing_left(&hull.root());
}

/// Podman makes `/etc/hosts` before `create` and writes it between that and `start`; others write it later, when they
/// connect a network. The guest's kernel remembers a file's size for a second, and the container looks all the time.
#[test]
fn what_was_written_to_a_mounted_file_before_a_start_or_exec_is_seen_by_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let hull = Hull::new();
    let looks = "cat /etc/hosts; while :; do cat /etc/hosts >/dev/null; done";
    let bundle = Bundle::shell(looks).with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/etc/hosts", "type": "bind", "source": file.path(), "options": ["bind"] }));
    });
    let output = hull.create(&bundle, "hosts");
    let mut text = "192.0.2.1 first\n".to_owned();
    fs::write(file.path(), &text).unwrap();
    let _ = hull.hull(&["start", "hosts"]).expect(0);
    let written = || fs::read_to_string(&output).unwrap();
    assert!(eventually(|| written() == text), "{}", written());
    for round in 2..8 {
        text += &format!("192.0.2.{round} next\n");
        fs::write(file.path(), &text).unwrap();
        let seen = hull.hull(&["exec", "hosts", "cat", "/etc/hosts"]).expect(0);
        assert_eq!(seen.text(), text);
    }
}

#[test]
fn a_volume_that_is_not_there_is_refused() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["mounts"].as_array_mut().unwrap().push(
            json!({ "destination": "/data", "type": "bind", "source": "/no/such/volume", "options": ["rbind"] }),
        );
    });
    hull.run(&bundle, "novolume")
        .expect_error(&["/no/such/volume"]);
    leaks.nothing_left(&hull.root());
}

#[test]
fn shared_memory_tmpfs_and_the_usual_file_systems_are_made_in_the_guest() {
    let hull = Hull::new();
    let bundle = Bundle::shell("df -k /dev/shm | tail -1; df -k /scratch | tail -1; grep -E ' /(proc|sys|dev/mqueue|dev/pts) ' /proc/mounts | wc -l; stat -c %a /var/kept; ls /dev")
        .with(|config| {
            for mount in config["mounts"].as_array_mut().unwrap() {
                if mount["destination"] == "/dev/shm" {
                    mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=12m"]);
                }
            }
            for destination in ["/scratch", "/var/kept"] {
                config["mounts"].as_array_mut().unwrap().push(
                    json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=3m"] }),
                );
            }
        });
    // One that names no mode has that of the directory in its place.
    let kept = bundle.rootfs().join("var/kept");
    fs::create_dir(&kept).unwrap();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o3710)).unwrap();
    let text = hull.run(&bundle, "tmpfs").expect(0).text();
    assert!(text.contains("12288"), "{text}");
    assert!(text.contains("3072"), "{text}");
    assert!(text.contains("\n4\n3710\n"), "{text}");
    for device in [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdin", "fd",
    ] {
        assert!(
            text.lines().any(|line| line == device),
            "/dev/{device} is not in {text}"
        );
    }
}

#[test]
fn many_files_and_a_large_one() {
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "mkdir /var/many; i=0; while [ $i -lt 300 ]; do echo $i > /var/many/$i; i=$((i+1)); done; ls /var/many | wc -l; \
         cat /var/many/* | wc -l; dd if=/dev/urandom of=/var/large bs=65536 count=64 2>/dev/null; \
         cp /var/large /var/copy; cmp /var/large /var/copy && echo equal; mv /var/copy /var/moved; rm /var/large; ls /var",
    );
    let text = hull.run(&bundle, "files").expect(0).text();
    assert_eq!(text, "300\n300\nequal\nmany\nmoved\n");
    assert_eq!(
        fs::metadata(bundle.rootfs().join("var/moved"))
            .unwrap()
            .len(),
        4 * 1024 * 1024
    );
}

#[test]
fn a_path_that_climbs_out_of_the_bundle_stays_inside() {
    let hull = Hull::new();
    let bundle = Bundle::shell("cat /etc/climb 2>/dev/null || echo kept inside");
    // A link of the image that points at a file of the host must be resolved in the container.
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "of the host").unwrap();
    std::os::unix::fs::symlink(
        format!("../../../../../../..{}", secret.path().display()),
        bundle.rootfs().join("etc/climb"),
    )
    .unwrap();
    assert_eq!(hull.run(&bundle, "climb").expect(0).text(), "kept inside\n");
}

#[test]
fn a_directory_is_listed_whole_with_itself_and_the_one_above() {
    let hull = Hull::new();
    let bundle = Bundle::shell("ls -a /many; stat -c %i / /many; ls -ai /many | head -n 2");
    let many = bundle.rootfs().join("many");
    fs::create_dir(&many).unwrap();
    // More than one answer of the host's holds.
    let mut names: Vec<String> = (0..3000)
        .map(|number| format!("file-{number:04}"))
        .collect();
    for name in &names {
        fs::write(many.join(name), "").unwrap();
    }
    names.splice(0..0, [".".to_owned(), "..".to_owned()]);
    let text = hull.run(&bundle, "c").expect(0).text();
    let lines: Vec<&str> = text.lines().collect();
    let (listed, rest) = lines.split_at(names.len());
    assert_eq!(listed, names);
    let [root, own, first, second] = rest else {
        panic!("{rest:?}");
    };
    assert_eq!(first.trim(), format!("{own} ."));
    assert_eq!(second.trim(), format!("{root} .."));
}
