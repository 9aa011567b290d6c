//! Reads and checks what the caller wants of this process: [`VmConfig`].

use std::io;
use std::path::{Path, PathBuf};

use hull_vmm_protocol::config::VmConfig;

use crate::arch::x86_64::mp_table::MAX_VCPUS;

/// The least guest memory, in MiB: less does not hold a kernel and its initramfs.
const MIN_MEMORY_MIB: u32 = 64;
/// The first context id that a guest may have (virtio 1.2 §5.10.4).
const FIRST_GUEST_CID: u32 = 3;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// It is not the JSON of a [`VmConfig`].
    #[error("configuration {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: serde_json::Error,
    },
    /// A value is out of range.
    #[error("configuration: {field} is {value}, {allowed} is allowed")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The values that are allowed.
        allowed: &'static str,
    },
    /// A path is not absolute.
    #[error("configuration: {field} is {path}, which is not an absolute path of a file")]
    Path {
        /// The field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The command line has a control character.
    #[error("configuration: cmdline holds a control character")]
    CommandLine,
}

/// Reads the configuration at `path` and checks every value that can be checked without the host.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(path: &Path) -> Result<VmConfig, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let config = serde_json::from_slice(&text).map_err(|source| ConfigError::Json {
        path: path.to_owned(),
        source,
    })?;
    check(&config)?;
    Ok(config)
}

fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let range = |field, value: u64, allowed, holds: bool| {
        if holds {
            Ok(())
        } else {
            Err(ConfigError::Range {
                field,
                value,
                allowed,
            })
        }
    };
    let vcpus = config.vcpus;
    range(
        "vcpus",
        vcpus.into(),
        "1 to 32",
        (1..=MAX_VCPUS).contains(&vcpus),
    )?;
    let max = config.max_vcpus;
    range(
        "max_vcpus",
        max.into(),
        "vcpus to 32",
        (vcpus..=MAX_VCPUS).contains(&max),
    )?;
    let memory = config.memory_mib;
    range(
        "memory_mib",
        memory.into(),
        "64 or more",
        memory >= MIN_MEMORY_MIB,
    )?;
    let max = config.max_memory_mib;
    range(
        "max_memory_mib",
        max.into(),
        "memory_mib or more",
        max >= memory,
    )?;
    let cid = config.vsock.cid;
    range(
        "vsock.cid",
        cid.into(),
        "3 to 4294967294",
        (FIRST_GUEST_CID..u32::MAX).contains(&cid),
    )?;
    for (field, path) in [
        ("kernel", &config.kernel),
        ("initramfs", &config.initramfs),
        ("vsock.socket", &config.vsock.socket),
        ("console_log", &config.console_log),
        ("control_socket", &config.control_socket),
        ("outcome", &config.outcome),
    ] {
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(ConfigError::Path {
                field,
                path: path.clone(),
            });
        }
    }
    if config.cmdline.chars().any(char::is_control) {
        return Err(ConfigError::CommandLine);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const GOOD: &str = r#"{"vcpus":1,"max_vcpus":2,"memory_mib":64,"max_memory_mib":64,"kernel":"/k","initramfs":"/i",
        "vsock":{"cid":3,"socket":"/s"},"console_log":"/c","control_socket":"/d","outcome":"/o","jail":false}"#;

    fn load_text(text: &str) -> Result<VmConfig, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(file.path())
    }

    #[test]
    fn a_good_configuration_is_taken() {
        let config = load_text(GOOD).unwrap();
        assert_eq!((config.vcpus, config.early_serial), (1, false));
    }

    #[test]
    fn each_bad_value_is_named() {
        for (from, to, named) in [
            (r#""vcpus":1"#, r#""vcpus":0"#, "vcpus is 0"),
            (r#""vcpus":1"#, r#""vcpus":33"#, "vcpus is 33"),
            (r#""max_vcpus":2"#, r#""max_vcpus":33"#, "max_vcpus is 33"),
            (r#""vcpus":1"#, r#""vcpus":3"#, "max_vcpus is 2"),
            (
                r#""memory_mib":64"#,
                r#""memory_mib":63"#,
                "memory_mib is 63",
            ),
            (
                r#""max_memory_mib":64"#,
                r#""max_memory_mib":63"#,
                "max_memory_mib is 63",
            ),
            (r#""cid":3"#, r#""cid":2"#, "vsock.cid is 2"),
            (r#""/k""#, r#""k""#, "kernel is k"),
            (r#""/o""#, r#""/""#, "outcome is /"),
            (
                r#""jail":false"#,
                r#""jail":false,"cmdline":"a\nb""#,
                "control character",
            ),
        ] {
            let error = load_text(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_not_a_configuration_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            &GOOD.replace("\"jail\"", "\"unknown\":1,\"jail\""),
        ] {
            assert!(matches!(load_text(text), Err(ConfigError::Json { .. })));
        }
        let missing = load(Path::new("/nonexistent/config.json"));
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
    }
}
