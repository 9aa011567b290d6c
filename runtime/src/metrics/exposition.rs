//! The families of metrics, and their text (version 0.0.4 of Prometheus' format).

use hull_agent_protocol::latency::BOUNDS;
use hull_vmm_protocol::control::{DeviceCounters, DeviceKind, NicTraffic, TrafficCounters};
use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::MetricsError;
use super::reading::{Reading, Used, Vmm};
use MetricType::{COUNTER, GAUGE};

/// What KVM's names of exits for one reason end with.
const EXITS: &str = "_exits";

/// A family: its values in a reading, each with what tells it from the others of the sandbox.
struct Family {
    name: &'static str,
    kind: MetricType,
    help: &'static str,
    samples: for<'r> fn(&'r Reading) -> Vec<Sample<'r>>,
}

/// The values of labels other than `sandbox`, and the value.
type Sample<'r> = (Vec<(&'static str, &'r str)>, f64);

/// A new metric is a row here.
const FAMILIES: [Family; 26] = [
    Family {
        name: "hull_sandbox_running",
        kind: GAUGE,
        help: "Whether the VM of the sandbox runs.",
        samples: |reading| one(Some(reading.running.into())),
    },
    Family {
        name: "hull_scrape_success",
        kind: GAUGE,
        help: "Whether a source of the other metrics of a sandbox that runs has answered.",
        samples: scrape_success,
    },
    Family {
        name: "hull_vm_vcpus",
        kind: GAUGE,
        help: "CPUs that the guest is to have.",
        samples: |reading| one(Some(reading.vcpus.into())),
    },
    Family {
        name: "hull_vm_memory_bytes",
        kind: GAUGE,
        help: "Memory that the guest was given.",
        samples: |reading| of_vmm(reading, |vmm| vmm.memory),
    },
    Family {
        name: "hull_vmm_resident_bytes",
        kind: GAUGE,
        help: "Memory of the host that the VMM has, the guest's memory among it.",
        samples: |reading| of_vmm(reading, |vmm| vmm.resident),
    },
    Family {
        name: "hull_vm_user_exits_total",
        kind: COUNTER,
        help: "Exits of the vCPUs that the VMM has handled.",
        samples: |reading| of_vmm(reading, |vmm| vmm.exits),
    },
    Family {
        name: "hull_vm_exits_total",
        kind: COUNTER,
        help: "Exits of the vCPUs, as KVM counts them.",
        samples: |reading| one(kvm_counter(reading, "exits")),
    },
    Family {
        name: "hull_vm_exits_by_reason_total",
        kind: COUNTER,
        help: "Exits of the vCPUs for the reasons that KVM counts apart.",
        samples: exits_by_reason,
    },
    Family {
        name: "hull_vm_page_faults_total",
        kind: COUNTER,
        help: "Faults of the guest's memory that KVM has taken.",
        samples: |reading| one(kvm_counter(reading, "pf_taken")),
    },
    Family {
        name: "hull_guest_memory_total_bytes",
        kind: GAUGE,
        help: "Memory that the guest's kernel manages, as it says.",
        samples: |reading| {
            one(reading
                .guest
                .as_ref()
                .map(|guest| guest.memory_total as f64))
        },
    },
    Family {
        name: "hull_guest_memory_available_bytes",
        kind: GAUGE,
        help: "Memory that programs in the guest could still have, as it says.",
        samples: |reading| {
            one(reading
                .guest
                .as_ref()
                .map(|guest| guest.memory_available as f64))
        },
    },
    Family {
        name: "hull_agent_latency_seconds",
        kind: GAUGE,
        help: "How long the guest's agent took to answer just now.",
        samples: |reading| {
            one(reading
                .guest
                .as_ref()
                .map(|guest| guest.latency.as_secs_f64()))
        },
    },
    Family {
        name: "hull_nic_receive_bytes_total",
        kind: COUNTER,
        help: "Bytes that the guest has received.",
        samples: |reading| of_nics(reading, |nic| nic.received, |count| count.bytes),
    },
    Family {
        name: "hull_nic_receive_packets_total",
        kind: COUNTER,
        help: "Frames that the guest has received.",
        samples: |reading| of_nics(reading, |nic| nic.received, |count| count.packets),
    },
    Family {
        name: "hull_nic_receive_dropped_total",
        kind: COUNTER,
        help: "Frames for the guest that were lost.",
        samples: |reading| of_nics(reading, |nic| nic.received, |count| count.dropped),
    },
    Family {
        name: "hull_nic_transmit_bytes_total",
        kind: COUNTER,
        help: "Bytes that the guest has sent.",
        samples: |reading| of_nics(reading, |nic| nic.sent, |count| count.bytes),
    },
    Family {
        name: "hull_nic_transmit_packets_total",
        kind: COUNTER,
        help: "Frames that the guest has sent.",
        samples: |reading| of_nics(reading, |nic| nic.sent, |count| count.packets),
    },
    Family {
        name: "hull_nic_transmit_dropped_total",
        kind: COUNTER,
        help: "Frames of the guest that were lost.",
        samples: |reading| of_nics(reading, |nic| nic.sent, |count| count.dropped),
    },
    Family {
        name: "hull_device_to_guest_operations_total",
        kind: COUNTER,
        help: "Reads of a disk, replies of a file system, packets of the host through the socket device.",
        samples: |reading| of_devices(reading, |device| device.to_guest.operations),
    },
    Family {
        name: "hull_device_to_guest_bytes_total",
        kind: COUNTER,
        help: "Bytes of the same.",
        samples: |reading| of_devices(reading, |device| device.to_guest.bytes),
    },
    Family {
        name: "hull_device_from_guest_operations_total",
        kind: COUNTER,
        help: "Writes of a disk, requests to a file system, packets of the guest through the socket device.",
        samples: |reading| of_devices(reading, |device| device.from_guest.operations),
    },
    Family {
        name: "hull_device_from_guest_bytes_total",
        kind: COUNTER,
        help: "Bytes of the same.",
        samples: |reading| of_devices(reading, |device| device.from_guest.bytes),
    },
    Family {
        name: "hull_device_failures_total",
        kind: COUNTER,
        help: "What a device has refused the guest, or the host failed at.",
        samples: |reading| of_devices(reading, |device| device.failed),
    },
    Family {
        name: "hull_container_create_phase_seconds",
        kind: GAUGE,
        help: "How long each phase of the creation of a container took.",
        samples: create_phases,
    },
    Family {
        name: "hull_container_memory_bytes",
        kind: GAUGE,
        help: "Memory that a container uses, as the guest says.",
        samples: |reading| of_containers(reading, |used| used.memory as f64),
    },
    Family {
        name: "hull_container_cpu_seconds_total",
        kind: COUNTER,
        help: "CPU time that a container has used, as the guest says.",
        samples: |reading| of_containers(reading, |used| used.cpu.as_secs_f64()),
    },
];

/// The text of some sandboxes' readings.
pub(super) fn text(readings: &[Reading]) -> Result<String, MetricsError> {
    let families: Vec<_> = FAMILIES
        .iter()
        .map(|family| family.of(readings))
        .chain([agent_calls(readings)])
        .filter(|family| !family.get_metric().is_empty())
        .collect();
    TextEncoder::new()
        .encode_to_string(&families)
        .map_err(MetricsError::Encode)
}

/// The one family that has not a value for each sample.
fn agent_calls(readings: &[Reading]) -> MetricFamily {
    let metrics = readings.iter().filter_map(|reading| {
        let (counts, sum) = &reading.guest.as_ref()?.calls;
        let mut so_far = 0_u64;
        let buckets = BOUNDS.iter().zip(counts).map(|(bound, count)| {
            so_far = so_far.saturating_add(*count);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(so_far);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        let all = counts
            .iter()
            .fold(0_u64, |all, count| all.saturating_add(*count));
        histogram.set_sample_count(all);
        histogram.set_sample_sum(sum.as_secs_f64());
        let mut metric = labelled(reading, &[]);
        metric.set_histogram(histogram);
        Some(metric)
    });
    family(
        "hull_agent_call_seconds",
        MetricType::HISTOGRAM,
        "How long calls of the guest's agent have taken, but for waits.",
        metrics.collect(),
    )
}

fn family(name: &str, kind: MetricType, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// A metric of a sandbox, without a value.
fn labelled(reading: &Reading, labels: &[(&str, &str)]) -> Metric {
    let sandbox = ("sandbox", reading.sandbox.as_str());
    let labels = std::iter::once(&sandbox).chain(labels);
    let pairs = labels.map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    });
    Metric::from_label(pairs.collect())
}

impl Family {
    fn of(&self, readings: &[Reading]) -> MetricFamily {
        let metrics = readings.iter().flat_map(|reading| {
            let samples = (self.samples)(reading).into_iter();
            samples.map(|(labels, value)| self.metric(reading, &labels, value))
        });
        family(self.name, self.kind, self.help, metrics.collect())
    }

    fn metric(&self, reading: &Reading, labels: &[(&str, &str)], value: f64) -> Metric {
        let mut metric = labelled(reading, labels);
        if self.kind == COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

fn one<'r>(value: Option<f64>) -> Vec<Sample<'r>> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn of_vmm<'r>(reading: &Reading, value: impl Fn(&Vmm) -> u64) -> Vec<Sample<'r>> {
    one(reading.vmm.as_ref().map(|vmm| value(vmm) as f64))
}

fn scrape_success(reading: &Reading) -> Vec<Sample<'_>> {
    let sources = [
        ("vmm", reading.vmm.is_some()),
        ("nics", reading.nics.is_some()),
        ("agent", reading.guest.is_some()),
    ];
    let asked = sources.into_iter().filter(|_| reading.running);
    asked
        .map(|(source, answered)| (vec![("source", source)], answered.into()))
        .collect()
}

fn kvm_counter(reading: &Reading, name: &str) -> Option<f64> {
    let count = *reading.vmm.as_ref()?.vcpu_counters.get(name)?;
    Some(count as f64)
}

fn exits_by_reason(reading: &Reading) -> Vec<Sample<'_>> {
    let counters = reading.vmm.iter().flat_map(|vmm| &vmm.vcpu_counters);
    counters
        .filter_map(|(name, count)| {
            let reason = name.strip_suffix(EXITS)?;
            Some((vec![("reason", reason)], *count as f64))
        })
        .collect()
}

fn of_nics(
    reading: &Reading,
    direction: fn(&NicTraffic) -> TrafficCounters,
    value: fn(&TrafficCounters) -> u64,
) -> Vec<Sample<'_>> {
    let nics = reading.nics.iter().flatten();
    nics.map(|(interface, passed)| {
        let count = value(&direction(passed)) as f64;
        (vec![("interface", interface.as_str())], count)
    })
    .collect()
}

fn of_devices(reading: &Reading, value: fn(&DeviceCounters) -> u64) -> Vec<Sample<'_>> {
    let devices = reading.vmm.iter().flat_map(|vmm| &vmm.devices);
    devices
        .map(|device| {
            let kind = match device.kind {
                DeviceKind::Disk => "disk",
                DeviceKind::FileSystem => "file_system",
                DeviceKind::Socket => "socket",
            };
            let labels = vec![("device", device.id.as_str()), ("kind", kind)];
            (labels, value(device) as f64)
        })
        .collect()
}

fn create_phases(reading: &Reading) -> Vec<Sample<'_>> {
    let containers = reading.containers.iter();
    containers
        .flat_map(|container| {
            container.phases.iter().map(|phase| {
                let labels = vec![
                    ("container", container.id.as_str()),
                    ("phase", phase.name.as_str()),
                ];
                (labels, phase.elapsed_us as f64 / 1e6)
            })
        })
        .collect()
}

fn of_containers(reading: &Reading, value: fn(&Used) -> f64) -> Vec<Sample<'_>> {
    let containers = reading.containers.iter();
    containers
        .filter_map(|container| {
            let used = value(container.used.as_ref()?);
            Some((vec![("container", container.id.as_str())], used))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use hull_vmm_protocol::control::Moved;

    use super::*;
    use crate::metrics::reading::{Container, Guest};
    use crate::timing::Phase;

    fn reading(sandbox: &str) -> Reading {
        let mut passed = NicTraffic::default();
        (passed.received.bytes, passed.sent.dropped) = (1500, 3);
        let counters = [("exits", 70), ("halt_exits", 20), ("pf_taken", 5)];
        Reading {
            sandbox: sandbox.parse().unwrap(),
            running: true,
            vcpus: 2,
            vmm: Some(Vmm {
                memory: 256 << 20,
                resident: 4096,
                exits: 7,
                vcpu_counters: counters
                    .map(|(name, count)| (name.to_owned(), count))
                    .into(),
                devices: vec![DeviceCounters {
                    id: "disk-c1".into(),
                    kind: DeviceKind::Disk,
                    to_guest: Moved {
                        operations: 2,
                        bytes: 4096,
                    },
                    from_guest: Moved::default(),
                    failed: 1,
                }],
            }),
            nics: Some(vec![("strange\"\\\n".into(), passed)]),
            guest: Some(Guest {
                latency: Duration::from_millis(2),
                calls: ([5, 0, 2, 0, 0, 0, 0, 1], Duration::from_millis(5500)),
                memory_total: u64::MAX,
                memory_available: 0,
            }),
            containers: vec![Container {
                id: "c1".parse().unwrap(),
                phases: vec![Phase {
                    name: "hooks".into(),
                    elapsed_us: 1500,
                    total_us: 2000,
                }],
                used: Some(Used {
                    cpu: Duration::from_millis(500),
                    memory: 8192,
                }),
            }],
        }
    }

    #[test]
    fn sandboxes_share_families_and_are_told_apart_by_their_label() {
        let mut silent = reading("two");
        (silent.vmm, silent.nics, silent.guest) = (None, None, None);
        let text = text(&[reading("one"), silent]).unwrap();
        for line in [
            "# TYPE hull_vm_exits_total counter",
            "hull_vm_exits_total{sandbox=\"one\"} 70",
            "hull_vm_exits_by_reason_total{sandbox=\"one\",reason=\"halt\"} 20",
            "hull_vm_memory_bytes{sandbox=\"one\"} 268435456",
            "hull_nic_receive_bytes_total{sandbox=\"one\",interface=\"strange\\\"\\\\\\n\"} 1500",
            "hull_nic_transmit_dropped_total{sandbox=\"one\",interface=\"strange\\\"\\\\\\n\"} 3",
            "hull_device_to_guest_bytes_total{sandbox=\"one\",device=\"disk-c1\",kind=\"disk\"} 4096",
            "hull_device_failures_total{sandbox=\"one\",device=\"disk-c1\",kind=\"disk\"} 1",
            "hull_agent_latency_seconds{sandbox=\"one\"} 0.002",
            "hull_agent_call_seconds_bucket{sandbox=\"one\",le=\"0.004\"} 5",
            "hull_agent_call_seconds_bucket{sandbox=\"one\",le=\"4.096\"} 7",
            "hull_agent_call_seconds_bucket{sandbox=\"one\",le=\"+Inf\"} 8",
            "hull_agent_call_seconds_sum{sandbox=\"one\"} 5.5",
            "hull_container_create_phase_seconds{sandbox=\"two\",container=\"c1\",phase=\"hooks\"} 0.0015",
            "hull_container_cpu_seconds_total{sandbox=\"one\",container=\"c1\"} 0.5",
            "hull_scrape_success{sandbox=\"one\",source=\"agent\"} 1",
            "hull_scrape_success{sandbox=\"two\",source=\"agent\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(
            !text.contains("hull_vm_exits_total{sandbox=\"two\"}"),
            "{text}"
        );
        let mut helped = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            *helped.entry(line.split(' ').next()).or_insert(0) += 1;
        }
        assert_eq!(helped.len(), FAMILIES.len() + 1);
        assert!(helped.values().all(|count| *count == 1), "{helped:?}");
    }

    #[test]
    fn nothing_runs_and_nothing_is_asked() {
        assert_eq!(text(&[]).unwrap(), "");
        let mut ended = reading("ended");
        ended.running = false;
        let text = text(&[ended]).unwrap();
        assert!(text.contains("hull_sandbox_running{sandbox=\"ended\"} 0"));
        assert!(!text.contains("hull_scrape_success"));
    }
}
