//! How the NICs of a VM move packets: what the configuration says, and what the annotations of the container that the
//! VM is made for say.
//!
//! | annotation | value |
//! |---|---|
//! | `dev.hull.network.vhost` | `auto` or `off` |
//! | `dev.hull.network.rate.rx`, `dev.hull.network.rate.tx` | the most that each interface receives or sends |
//! | `dev.hull.network.rate.rx.<interface>`, `….tx.<interface>` | the same for one interface |
//! | `io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate`, `…tx_…` | as Kata has them: bits per second, 0 for none |
//!
//! An interface is named as the container's network namespace names it when its NIC is made. Containers that join a VM
//! have what was said for the first.
//!
//! A rate is bytes per second, optionally a comma, and a burst in bytes: `1250000` or `10M,256Ki`. `k`, `M` and `G` are
//! powers of 1000, `Ki`, `Mi` and `Gi` of 1024. Bytes are those of Ethernet frames. Without a burst it is what the rate
//! gives in 100 ms, and 128 KiB at least.

use std::collections::{BTreeMap, HashMap};

use hull_vmm_protocol::config::RateLimit;
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};

/// The annotation that sets who moves the packets.
const VHOST: &str = "dev.hull.network.vhost";
/// What annotations of rates begin with.
const RATE: &str = "dev.hull.network.rate.";
const RATE_NAMES: &str =
    "dev.hull.network.rate.rx or .tx, or with .<interface> after it, is expected";
/// Kata's annotations, and hull's direction.
const KATA_RATES: [(&str, Direction); 2] = [
    (
        "io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate",
        Direction::Receive,
    ),
    (
        "io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate",
        Direction::Send,
    ),
];

/// The slowest rate, in bytes per second: slower ones would hold a single frame for minutes.
const MIN_RATE: u64 = 1000;
/// The shortest burst: two of the largest frames of segmentation offload.
const MIN_BURST: u64 = 128 * 1024;

/// Who moves the packets between a NIC's queues and its tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vhost {
    /// The host's kernel (vhost-net) where the host has it and no rate is set, else the VMM.
    #[default]
    Auto,
    /// The VMM.
    Off,
}

/// How NICs move packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSettings {
    /// Who moves them.
    #[serde(default)]
    pub vhost: Vhost,
    /// The bounds of every interface that has none of its own.
    #[serde(default)]
    limits: Limits,
    /// The bounds of single interfaces, by name.
    #[serde(default)]
    limits_by_interface: BTreeMap<String, Limits>,
}

/// Bounds on what passes through a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of what the container receives.
    pub receive: Option<RateLimit>,
    /// Of what it sends.
    pub send: Option<RateLimit>,
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Receive,
    Send,
}

impl Limits {
    /// Whether there is no bound.
    pub fn are_none(&self) -> bool {
        self.receive.is_none() && self.send.is_none()
    }

    fn set(&mut self, direction: Direction, limit: Option<RateLimit>) {
        match direction {
            Direction::Receive => self.receive = limit,
            Direction::Send => self.send = limit,
        }
    }
}

impl NicSettings {
    /// The settings of the NICs of a container with these annotations. hull's own override Kata's.
    ///
    /// # Errors
    /// A value is not one, or an annotation below `dev.hull.network.rate` is not known.
    pub fn of(config: &Config, annotations: &HashMap<String, String>) -> Result<Self, ConfigError> {
        let mut settings = Self {
            vhost: config.vhost,
            ..Self::default()
        };
        if let Some(value) = annotations.get(VHOST) {
            settings.vhost = match value.as_str() {
                "auto" => Vhost::Auto,
                "off" => Vhost::Off,
                _ => return Err(refused(VHOST, value, "auto or off is expected")),
            };
        }
        for (name, direction) in KATA_RATES {
            if let Some(value) = annotations.get(name) {
                settings.limits.set(direction, kata_rate(name, value)?);
            }
        }
        for (name, value) in annotations {
            let Some(subject) = name.strip_prefix(RATE) else {
                continue;
            };
            let (direction, interface) = match subject.split_once('.') {
                Some((direction, interface)) => (direction, Some(interface)),
                None => (subject, None),
            };
            let direction = match direction {
                "rx" => Direction::Receive,
                "tx" => Direction::Send,
                _ => return Err(refused(name, value, RATE_NAMES)),
            };
            let limit = Some(rate(name, value)?);
            match interface {
                None => settings.limits.set(direction, limit),
                Some("") => return Err(refused(name, value, RATE_NAMES)),
                Some(interface) => settings
                    .limits_by_interface
                    .entry(interface.to_owned())
                    .or_default()
                    .set(direction, limit),
            }
        }
        Ok(settings)
    }

    /// The bounds of the NIC of this interface.
    pub fn limits_of(&self, interface: &str) -> Limits {
        let own = self.limits_by_interface.get(interface).copied();
        let own = own.unwrap_or_default();
        Limits {
            receive: own.receive.or(self.limits.receive),
            send: own.send.or(self.limits.send),
        }
    }
}

/// Parses a rate with its burst.
fn rate(name: &str, value: &str) -> Result<RateLimit, ConfigError> {
    let error = || {
        let expected = "bytes per second (1000 at least), or those and a burst in bytes, like 10M,256Ki, are expected";
        refused(name, value, expected)
    };
    let (rate, burst) = match value.split_once(',') {
        Some((rate, burst)) => (rate, Some(burst)),
        None => (value, None),
    };
    let rate = quantity(rate).filter(|rate| *rate >= MIN_RATE);
    let rate = rate.ok_or_else(error)?;
    let burst_bytes = match burst {
        None => default_burst(rate),
        Some(burst) => quantity(burst)
            .filter(|burst| *burst > 0)
            .ok_or_else(error)?,
    };
    Ok(RateLimit {
        bytes_per_second: rate,
        burst_bytes,
    })
}

/// Parses a rate of Kata's.
fn kata_rate(name: &str, value: &str) -> Result<Option<RateLimit>, ConfigError> {
    let bits: u64 = value
        .parse()
        .map_err(|_| refused(name, value, "bits per second are expected"))?;
    if bits == 0 {
        return Ok(None);
    }
    let rate = bits / 8;
    if rate < MIN_RATE {
        return Err(refused(
            name,
            value,
            "8000 bits per second at least are expected",
        ));
    }
    Ok(Some(RateLimit {
        bytes_per_second: rate,
        burst_bytes: default_burst(rate),
    }))
}

fn default_burst(rate: u64) -> u64 {
    (rate / 10).max(MIN_BURST)
}

/// Parses `1250`, `10k` or `10Ki`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    // A sign is no digit.
    let number = digits
        .parse::<u64>()
        .ok()
        .filter(|_| !digits.starts_with('+'));
    number?.checked_mul(factor)
}

fn refused(name: &str, value: &str, expected: &'static str) -> ConfigError {
    ConfigError::Annotation {
        name: name.to_owned(),
        value: value.to_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::ConfigFile;
    use std::path::Path;

    fn settings(file: &str, annotations: &[(&str, &str)]) -> Result<NicSettings, ConfigError> {
        let file = ConfigFile::parse(Path::new("c.toml"), file)?;
        let config = Config::resolve(file, Path::new("/usr"))?;
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        NicSettings::of(&config, &annotations)
    }

    fn limit(bytes_per_second: u64, burst_bytes: u64) -> Option<RateLimit> {
        Some(RateLimit {
            bytes_per_second,
            burst_bytes,
        })
    }

    #[test]
    fn annotations_override_the_file_which_overrides_the_default() {
        let off = "[network]\nvhost = 'off'";
        assert_eq!(settings("", &[]).unwrap(), NicSettings::default());
        assert_eq!(settings(off, &[]).unwrap().vhost, Vhost::Off);
        assert_eq!(
            settings(off, &[(VHOST, "auto")]).unwrap().vhost,
            Vhost::Auto
        );
        assert_eq!(settings("", &[(VHOST, "off")]).unwrap().vhost, Vhost::Off);
    }

    #[test]
    fn a_rate_holds_for_all_interfaces_or_for_one() {
        let settings = settings(
            "",
            &[
                ("dev.hull.network.rate.rx", "10M,256Ki"),
                ("dev.hull.network.rate.rx.eth1", "2000"),
                ("dev.hull.network.rate.tx.net.7", "1Gi,1"),
            ],
        )
        .unwrap();
        assert_eq!(
            settings.limits_of("eth0"),
            Limits {
                receive: limit(10_000_000, 262_144),
                send: None
            }
        );
        assert_eq!(settings.limits_of("eth1").receive, limit(2000, 131_072));
        assert_eq!(settings.limits_of("net.7").send, limit(1 << 30, 1));
        assert_eq!(
            settings.limits_of("net.7").receive,
            limit(10_000_000, 262_144)
        );
    }

    #[test]
    fn the_rates_of_kata_are_in_bits() {
        let (rx, tx) = (KATA_RATES[0].0, KATA_RATES[1].0);
        let settings =
            |annotations: &[(&str, &str)]| settings("", annotations).unwrap().limits_of("eth0");
        assert_eq!(
            settings(&[(rx, "80000000")]).receive,
            limit(10_000_000, 1_000_000)
        );
        assert!(settings(&[(rx, "0"), (tx, "0")]).are_none());
        let both = settings(&[(tx, "8000"), ("dev.hull.network.rate.tx", "5k")]);
        assert_eq!(both.send, limit(5000, 131_072));
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (name, value) in [
            (VHOST, "on"),
            (VHOST, ""),
            ("dev.hull.network.rate.rx", ""),
            ("dev.hull.network.rate.rx", "999"),
            ("dev.hull.network.rate.rx", "-1"),
            ("dev.hull.network.rate.rx", "+2000"),
            ("dev.hull.network.rate.rx", "10 M"),
            ("dev.hull.network.rate.rx", "10m"),
            ("dev.hull.network.rate.rx", "10M,"),
            ("dev.hull.network.rate.rx", "10M,0"),
            ("dev.hull.network.rate.tx", "99999999999999G"),
            ("dev.hull.network.rate.tx.", "10M"),
            ("dev.hull.network.rate.up", "10M"),
            (KATA_RATES[0].0, "fast"),
            (KATA_RATES[1].0, "7999"),
        ] {
            let error = settings("", &[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        settings("[network]\nvhost = 'on'", &[]).unwrap_err();
    }
}
