//! The runtime options that come with Create: those that runc's shim takes, and containerd's general ones.

use std::path::PathBuf;

use containerd_shim_protos::shim::oci;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};

use crate::error::Error;

/// What hull takes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// hull's configuration file.
    pub(crate) config: Option<PathBuf>,
    /// systemd makes the cgroups of containers.
    pub(crate) systemd_cgroup: bool,
}

/// The types of runtime options.
const RUNC: &str = "containerd.runc.v1.Options";
const GENERAL: &str = "runtimeoptions.v1.Options";

impl Options {
    /// Whether a message of this type is runtime options.
    pub(crate) fn is_known(type_url: &str) -> bool {
        matches!(type_url.rsplit('/').next(), Some(RUNC | GENERAL))
    }

    /// Reads them; what they ask for beyond that is refused.
    pub(crate) fn of(any: Option<&Any>) -> Result<Self, Error> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        match any.type_url.rsplit('/').next() {
            Some(RUNC) => Self::of_runc(&any.value),
            Some(GENERAL) => Self::general(&any.value),
            _ => Err(Error::Unsupported(format!(
                "the runtime option {}",
                any.type_url
            ))),
        }
    }

    /// Where the shim of the pod listens is told containerd's own side.
    fn of_runc(bytes: &[u8]) -> Result<Self, Error> {
        let options = oci::Options::parse_from_bytes(bytes).map_err(malformed)?;
        for (name, is_set) in [
            ("no_pivot_root", options.no_pivot_root),
            ("no_new_keyring", options.no_new_keyring),
            ("shim_cgroup", !options.shim_cgroup.is_empty()),
            ("io_uid", options.io_uid != 0),
            ("io_gid", options.io_gid != 0),
            ("binary_name", !options.binary_name.is_empty()),
            ("root", !options.root.is_empty()),
            ("criu_image_path", !options.criu_image_path.is_empty()),
            ("criu_work_path", !options.criu_work_path.is_empty()),
        ] {
            if is_set {
                return Err(Error::Unsupported(format!("runc's option {name}")));
            }
        }
        Ok(Self {
            config: None,
            systemd_cgroup: options.systemd_cgroup,
        })
    }

    /// `runtimeoptions.v1.Options` of containerd: 1 is the type of what follows, 2 a file, 3 a file's content.
    fn general(bytes: &[u8]) -> Result<Self, Error> {
        let mut config = None;
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof().map_err(malformed)? {
            // A field's number is above three bits that say how it is written; 2 is a string (protobuf encoding).
            match (tag >> 3, tag & 7) {
                (1, 2) => drop(input.read_string().map_err(malformed)?),
                (2, 2) => config = Some(input.read_string().map_err(malformed)?),
                (3, 2) => {
                    if !input.read_bytes().map_err(malformed)?.is_empty() {
                        let what = "a configuration within the runtime options (name a file by ConfigPath)";
                        return Err(Error::Unsupported(what.into()));
                    }
                }
                _ => {
                    return Err(Error::Invalid {
                        what: "runtime options",
                        problem: format!("unknown field {}", tag >> 3),
                    });
                }
            }
        }
        Ok(Self {
            config: config.filter(|path| !path.is_empty()).map(PathBuf::from),
            systemd_cgroup: false,
        })
    }
}

fn malformed(error: protobuf::Error) -> Error {
    Error::Invalid {
        what: "runtime options",
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: Vec<u8>) -> Any {
        let mut any = Any::new();
        any.type_url = name.into();
        any.value = value;
        any
    }

    #[test]
    fn options_are_taken_or_refused() {
        assert_eq!(Options::of(None).unwrap(), Options::default());
        let mut runc = oci::Options::new();
        runc.systemd_cgroup = true;
        let bytes = runc.write_to_bytes().unwrap();
        let options = Options::of(Some(&any("containerd.runc.v1.Options", bytes))).unwrap();
        assert!(options.systemd_cgroup);
        runc.shim_cgroup = "/shims".into();
        let bytes = runc.write_to_bytes().unwrap();
        Options::of(Some(&any("containerd.runc.v1.Options", bytes))).unwrap_err();

        let name = "runtimeoptions.v1.Options";
        let options = Options::of(Some(&any(name, b"\x0a\x01t\x12\x02/c".to_vec()))).unwrap();
        assert_eq!(options.config, Some("/c".into()));
        for bytes in [&b"\x1a\x01b"[..], b"\x22\x01b", b"\x12\x09/c"] {
            Options::of(Some(&any(name, bytes.to_vec()))).unwrap_err();
        }
        Options::of(Some(&any("other.Options", vec![]))).unwrap_err();
    }
}
