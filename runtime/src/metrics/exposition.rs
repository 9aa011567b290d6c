//! The families of metrics, and their text (version 0.0.4 of Prometheus' format).

use hull_vmm_protocol::control::{NicTraffic, TrafficCounters};
use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

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
const FAMILIES: [Family; 21] = [
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
        .filter(|family| !family.get_metric().is_empty())
        .collect();
    TextEncoder::new()
        .encode_to_string(&families)
        .map_err(MetricsError::Encode)
}

impl Family {
    fn of(&self, readings: &[Reading]) -> MetricFamily {
        let metrics = readings.iter().flat_map(|reading| {
            let samples = (self.samples)(reading).into_iter();
            samples.map(|(labels, value)| self.metric(reading.sandbox.as_str(), &labels, value))
        });
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(self.kind);
        family.set_metric(metrics.collect());
        family
    }

    fn metric(&self, sandbox: &str, labels: &[(&str, &str)], value: f64) -> Metric {
        let sandbox = ("sandbox", sandbox);
        let labels = std::iter::once(&sandbox).chain(labels);
        let pairs = labels.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
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
            }),
            nics: Some(vec![("strange\"\\\n".into(), passed)]),
            guest: Some(Guest {
                latency: Duration::from_millis(2),
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
            "hull_agent_latency_seconds{sandbox=\"one\"} 0.002",
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
        assert_eq!(helped.len(), FAMILIES.len());
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
