//! The virtual machine: its size, its end, and starts in a row.

use hull_tests::{Bundle, Hull, LeakCheck};
use serde_json::json;

#[test]
fn one_two_and_four_vcpus() {
    for vcpus in [1, 2, 4] {
        let hull = Hull::new();
        let bundle = Bundle::shell(
            "nproc; cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        )
        .with(|config| config["annotations"] = json!({ "dev.hull.vcpus": vcpus.to_string() }));
        let text = hull.run(&bundle, "vcpus").expect(0).text();
        assert_eq!(text.lines().next(), Some(vcpus.to_string().as_str()));
        assert!(text.contains("kvm-clock") || text.contains("tsc"), "{text}");
    }
}

#[test]
fn memory_as_the_annotation_has_it() {
    for (mebibytes, least) in [(192_u64, 100_000_u64), (4096, 3_900_000)] {
        let hull = Hull::new();
        let bundle = Bundle::shell("grep MemTotal /proc/meminfo").with(|config| {
            config["annotations"] = json!({ "dev.hull.memory_mib": mebibytes.to_string() })
        });
        let text = hull.run(&bundle, "memory").expect(0).text();
        let kibibytes: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kibibytes > least && kibibytes <= mebibytes * 1024, "{text}");
    }
}

#[test]
fn a_size_that_makes_no_sense_is_refused() {
    for (key, value) in [
        ("dev.hull.vcpus", "0"),
        ("dev.hull.vcpus", "33"),
        ("dev.hull.vcpus", "two"),
        ("dev.hull.memory_mib", "1"),
        ("dev.hull.memory_mib", "-5"),
        ("dev.hull.memory_mib", "99999999999"),
    ] {
        let leaks = LeakCheck::new();
        let hull = Hull::new();
        let bundle =
            Bundle::new(&["true"]).with(|config| config["annotations"] = json!({ key: value }));
        hull.run(&bundle, "size").expect_error(&[key]);
        leaks.nothing_left(&hull.root());
    }
}

#[test]
fn starts_and_deletes_in_a_row_leave_nothing() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["echo", "again"]);
    for number in 0..15 {
        let finished = hull.run(&bundle, &format!("row{number}")).expect(0);
        assert_eq!(finished.text(), "again\n", "start {number}");
    }
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_panic_of_the_guests_kernel_ends_the_container_with_137() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::shell("echo c > /proc/sysrq-trigger; sleep 1000").with(|config| {
        config["linux"]["readonlyPaths"] = json!([]);
        for mount in config["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/proc" {
                mount["options"] = json!(["rw"]);
            }
        }
    });
    let finished = hull.run(&bundle, "panic").expect(137);
    assert!(finished.stderr.contains("panic"), "{}", finished.stderr);
    leaks.nothing_left(&hull.root());
}
