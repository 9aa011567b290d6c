//! The configuration: what a file says (file.rs), what each container may ask of its sandbox (sandbox.rs): of the VM
//! (sizing.rs, pod.rs), of the network (network.rs) and of its NICs (nics.rs), and here what holds in the end.

mod file;
mod network;
mod nics;
mod pod;
mod sandbox;
mod sizing;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::network::Model;
use file::ConfigFile;
pub use network::{annotated_model, is_of_kubernetes};
pub use nics::{Limits, NicSettings, Vhost};
pub use sandbox::SandboxConfig;
pub use sizing::VmSize;

/// The file that is read if none is named and this one is there.
pub const DEFAULT_PATH: &str = "/etc/hull/config.toml";

/// How a configuration fails.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not one.
    #[error("configuration {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("{name} is {value:?}: {expected}")]
    Value {
        /// The setting or the annotation.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An annotation is not known, or its value is not one.
    #[error("annotation {name} is {value:?}: {expected}")]
    Annotation {
        /// The annotation.
        name: String,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// hull cannot find out where it is itself.
    #[error("cannot find the path of hull's own program")]
    OwnProgram(#[source] io::Error),
}

/// What holds: the file's values, and the defaults for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The `hull-vmm` program.
    pub vmm: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initial RAM file system.
    pub initramfs: PathBuf,
    /// What is appended to the kernel's command line.
    pub kernel_parameters: String,
    /// Whether the guest's early messages go to the console log.
    pub early_serial: bool,
    /// vCPUs of a VM that nothing else is asked for.
    pub vcpus: u8,
    /// Memory in MiB of a VM that nothing else is asked for.
    pub memory_mib: u32,
    /// vCPUs that a VM can grow to; as many as the host has CPUs, within reason, if none.
    pub max_vcpus: Option<u8>,
    /// Memory in MiB that a VM can grow to; the host's if none.
    pub max_memory_mib: Option<u32>,
    /// Memory in MiB that a VM has beyond the memory limit of its container.
    pub memory_overhead_mib: u32,
    /// How long a VM may take to boot.
    pub boot_limit: Duration,
    /// How the network namespace of a sandbox is wired that nothing else is asked for; as it suits the engine if none.
    pub network_model: Option<Model>,
    /// Who moves the packets of NICs.
    pub vhost: Vhost,
}

impl Config {
    /// Reads `path`, or [`DEFAULT_PATH`] if that is none and it is there. What the file does not name is found beside
    /// hull's own program, in `../libexec/hull` and `../share/hull`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => ConfigFile::read(path)?,
            None if Path::new(DEFAULT_PATH).exists() => ConfigFile::read(Path::new(DEFAULT_PATH))?,
            None => ConfigFile::default(),
        };
        let program = std::env::current_exe().map_err(ConfigError::OwnProgram)?;
        let prefix = program
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"));
        Self::resolve(file, prefix)
    }

    fn resolve(file: ConfigFile, prefix: &Path) -> Result<Self, ConfigError> {
        let absolute = |name, path: Option<PathBuf>, default: &str| match path {
            None => Ok(prefix.join(default)),
            Some(path) if path.is_absolute() => Ok(path),
            Some(path) => Err(ConfigError::Value {
                name,
                value: path.display().to_string(),
                expected: "an absolute path is expected",
            }),
        };
        let ConfigFile {
            paths,
            guest,
            sandbox,
            network,
        } = file;
        let boot_limit = Duration::from_secs(sandbox.boot_timeout_s.unwrap_or(60));
        if boot_limit.is_zero() {
            return Err(ConfigError::Value {
                name: "sandbox.boot_timeout_s",
                value: "0".into(),
                expected: "at least 1 is expected",
            });
        }
        Ok(Self {
            vmm: absolute("paths.vmm", paths.vmm, "libexec/hull/hull-vmm")?,
            kernel: absolute("paths.kernel", paths.kernel, "share/hull/vmlinux")?,
            initramfs: absolute(
                "paths.initramfs",
                paths.initramfs,
                "share/hull/initramfs.cpio",
            )?,
            kernel_parameters: guest.kernel_parameters.unwrap_or_default(),
            early_serial: guest.early_serial.unwrap_or(false),
            vcpus: sizing::vcpus("sandbox.vcpus", sandbox.vcpus.unwrap_or(1))?,
            memory_mib: sizing::memory("sandbox.memory_mib", sandbox.memory_mib.unwrap_or(512))?,
            max_vcpus: sandbox
                .max_vcpus
                .map(|vcpus| sizing::vcpus("sandbox.max_vcpus", vcpus))
                .transpose()?,
            max_memory_mib: sandbox
                .max_memory_mib
                .map(|mib| sizing::memory("sandbox.max_memory_mib", mib))
                .transpose()?,
            memory_overhead_mib: sandbox.memory_overhead_mib.unwrap_or(128),
            boot_limit,
            network_model: network.model,
            vhost: network.vhost.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let file = ConfigFile::parse(Path::new("c.toml"), text)?;
        Config::resolve(file, Path::new("/usr"))
    }

    #[test]
    fn without_a_file_everything_is_beside_the_program() {
        let config = resolve("").unwrap();
        assert_eq!(config.vmm, Path::new("/usr/libexec/hull/hull-vmm"));
        assert_eq!(config.kernel, Path::new("/usr/share/hull/vmlinux"));
        assert_eq!(
            config.initramfs,
            Path::new("/usr/share/hull/initramfs.cpio")
        );
        assert_eq!((config.vcpus, config.memory_mib), (1, 512));
        assert_eq!(config.network_model, None);
    }

    #[test]
    fn a_file_overrides_what_it_names() {
        let config = resolve(
            "[paths]\nkernel = '/boot/vmlinuz'\n[guest]\nkernel_parameters = 'debug'\nearly_serial = true\n\
             [sandbox]\nvcpus = 2\nboot_timeout_s = 5\n[network]\nmodel = 'none'\n",
        )
        .unwrap();
        assert_eq!(config.kernel, Path::new("/boot/vmlinuz"));
        assert_eq!(config.kernel_parameters, "debug");
        assert!(config.early_serial);
        assert_eq!(config.vcpus, 2);
        assert_eq!(config.boot_limit, Duration::from_secs(5));
        assert_eq!(config.network_model, Some(Model::None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "[sandbox]\nvcpus = 0",
            "[sandbox]\nvcpus = 33",
            "[sandbox]\nmemory_mib = 63",
            "[sandbox]\nboot_timeout_s = 0",
            "[paths]\nkernel = 'vmlinux'",
            "[paths]\nkernal = '/vmlinux'",
            "[network]\nmodel = 'magic'",
            "[network]\nvhost = 'maybe'",
            "sandbox",
        ] {
            resolve(text).unwrap_err();
        }
    }
}
