//! Metrics in Prometheus' text format: of one sandbox on its socket, and of all by `hull metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use hull_tests::command::eventually;
use hull_tests::hull::pids_of;
use hull_tests::{Bundle, Finished, Hull, LeakCheck, Netns, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// The one family that is neither a counter nor a gauge.
const HISTOGRAM: &str = "hull_agent_call_seconds";

/// An exposition: the values of its samples by name and labels as they are written.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asserts on the way that each family has its help and its type once, before its samples, and is not parted.
    #[track_caller]
    fn parse(text: &str) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
        let mut lines = text.lines();
        let mut family = "";
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} comes twice");
                let typed = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
                let kind = typed.and_then(|typed| typed.strip_prefix(family));
                let expected = match family {
                    HISTOGRAM => " histogram",
                    _ if family.ends_with("_total") => " counter",
                    _ => " gauge",
                };
                assert_eq!(kind, Some(expected), "{family}");
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let name = match family {
                HISTOGRAM => name.rsplit_once('_').unwrap().0,
                _ => name,
            };
            assert_eq!(name, family, "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(sample.to_owned(), value).is_none(), "{line}");
        }
        Self(samples)
    }

    /// Asks until whoever knows something has answered in time.
    #[track_caller]
    fn complete(ask: impl Fn() -> Finished) -> Self {
        let mut metrics = Self(BTreeMap::new());
        let complete = eventually(|| {
            metrics = Self::parse(&ask().expect(0).text());
            let mut sources = metrics
                .0
                .iter()
                .filter(|(name, _)| name.starts_with("hull_scrape_success"));
            sources.all(|(_, answered)| *answered == 1.0)
        });
        assert!(complete, "{:#?}", metrics.0);
        metrics
    }

    #[track_caller]
    fn of(&self, sample: &str) -> f64 {
        let found = self.0.get(sample).copied();
        found.unwrap_or_else(|| panic!("{sample} is not in {:#?}", self.0))
    }
}

/// Those that `hull_scrape_success` tells of.
const SOURCES: [&str; 3] = ["vmm", "nics", "agent"];

fn socket(hull: &Hull, sandbox: &str) -> PathBuf {
    hull.root().join("metrics").join(format!("{sandbox}.sock"))
}

fn get(socket: &Path, path: &str) -> Finished {
    let socket = socket.to_str().unwrap();
    let url = format!("http://localhost{path}");
    run("curl", &["-sSf", "-m", "60", "--unix-socket", socket, &url])
}

#[test]
fn a_sandbox_tells_what_it_costs_and_hull_tells_it_of_all() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let (netns, peer) = (Netns::new(), Netns::new());
    netns.veth("eth0", &["10.77.0.2/24"], &peer, "peer0", &["10.77.0.1/24"]);
    netns.settle("eth0");
    let bundle = Bundle::new(&["sleep", "100000"])
        .in_netns(&netns.path())
        .with(|config| config["annotations"] = json!({ "dev.hull.memory_mib": "160" }));
    let _ = hull.create(&bundle, "wired");
    let _ = hull.hull(&["start", "wired"]).expect(0);
    let other = Bundle::new(&["sleep", "100000"]);
    let _ = hull.create(&other, "other");

    let before = Metrics::complete(|| hull.hull(&["metrics"]));
    for sandbox in ["wired", "other"] {
        let of = |name: &str, labels: &str| {
            before.of(&format!("{name}{{sandbox=\"{sandbox}\"{labels}}}"))
        };
        assert_eq!(of("hull_sandbox_running", ""), 1.0);
        for source in SOURCES {
            assert_eq!(
                of("hull_scrape_success", &format!(",source=\"{source}\"")),
                1.0
            );
        }
        let exits = of("hull_vm_exits_total", "");
        assert!(exits >= of("hull_vm_user_exits_total", "") && exits > 100.0);
        assert!(of("hull_vm_exits_by_reason_total", ",reason=\"io\"") > 0.0);
        assert!(of("hull_vmm_resident_bytes", "") > 1e6);
        let (total, available) = (
            of("hull_guest_memory_total_bytes", ""),
            of("hull_guest_memory_available_bytes", ""),
        );
        assert!(0.0 < available && available < total && total < of("hull_vm_memory_bytes", ""));
        for (device, kind) in [("shared", "file_system"), ("vsock", "socket")] {
            let labels = format!(",device=\"{device}\",kind=\"{kind}\"");
            for direction in ["to_guest", "from_guest"] {
                let of = |what| of(&format!("hull_device_{direction}_{what}_total"), &labels);
                assert!(of("operations") > 0.0 && of("bytes") > 0.0, "{device}");
            }
        }
        let calls = of(&format!("{HISTOGRAM}_count"), "");
        assert!(calls > 3.0 && of(&format!("{HISTOGRAM}_bucket"), ",le=\"+Inf\"") == calls);
        assert!(of(&format!("{HISTOGRAM}_sum"), "") > 0.0);
        let latency = of("hull_agent_latency_seconds", "");
        assert!(0.0 < latency && latency < 5.0, "{latency}");
        let container = format!(",container=\"{sandbox}\"");
        assert!(of("hull_container_memory_bytes", &container) > 0.0);
        for phase in ["vmm_spawn", "hooks", "agent", "container"] {
            let labels = format!("{container},phase=\"{phase}\"");
            assert!(of("hull_container_create_phase_seconds", &labels) > 0.0);
        }
    }
    assert_eq!(
        before.of("hull_vm_memory_bytes{sandbox=\"wired\"}"),
        160.0 * 1_048_576.0
    );

    // A client that says nothing keeps nobody waiting.
    let silent = UnixStream::connect(socket(&hull, "wired")).unwrap();
    let _ = peer.exec("ping -c 5 -i 0.2 -s 500 10.77.0.2").expect(0);
    let after = Metrics::complete(|| get(&socket(&hull, "wired"), "/metrics"));
    drop(silent);
    for direction in ["receive", "transmit"] {
        for (unit, least) in [("packets", 5.0), ("bytes", 2500.0), ("dropped", 0.0)] {
            let name = format!(
                "hull_nic_{direction}_{unit}_total{{sandbox=\"wired\",interface=\"eth0\"}}"
            );
            let passed = after.of(&name) - before.of(&name);
            assert!(passed >= least, "{name}: {passed}");
        }
    }
    let exits = "hull_vm_exits_total{sandbox=\"wired\"}";
    assert!(after.of(exits) > before.of(exits));
    assert!(
        after
            .0
            .keys()
            .all(|sample| sample.contains("sandbox=\"wired\""))
    );

    for id in ["wired", "other"] {
        let _ = hull.hull(&["delete", "--force", id]).expect(0);
    }
    assert_eq!(hull.hull(&["metrics"]).expect(0).text(), "");
    assert!(!socket(&hull, "wired").exists());
    drop((netns, peer));
    leaks.nothing_left(&hull.root());
}

#[test]
fn metrics_outlive_a_monitor_and_tell_of_a_vm_that_is_gone() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let bundle = Bundle::new(&["sleep", "100000"]);
    let _ = hull.create(&bundle, "one");
    let socket = socket(&hull, "one");
    get(&socket, "/other").expect_error(&["404"]);
    let mut strange = UnixStream::connect(&socket).unwrap();
    strange.write_all(&[0; 4096]).unwrap();

    let pids = pids_of(&hull.root(), "one");
    kill(Pid::from_raw(pids.monitor), Signal::SIGKILL).unwrap();
    let up = "hull_sandbox_running{sandbox=\"one\"} 1\n";
    assert!(eventually(|| get(&socket, "/metrics").text().contains(up)));

    kill(Pid::from_raw(pids.vmm), Signal::SIGKILL).unwrap();
    let down = "hull_sandbox_running{sandbox=\"one\"} 0\n";
    assert!(eventually(|| hull.hull(&["metrics"]).text().contains(down)));
    let _ = hull.hull(&["delete", "--force", "one"]).expect(0);
    leaks.nothing_left(&hull.root());
}
