//! Where the shim keeps what the runtime library knows of its containers, so that `hull --root` finds them.

use std::path::{Path, PathBuf};

use hull_runtime::Runtime;
use hull_runtime::config::Config;
use hull_runtime::logging::LogSettings;
use hull_runtime::store::Store;

/// Below it is a state directory for each namespace of containerd's.
const ROOT: &str = "/run/hull/containerd";

/// The state directory of a namespace.
pub(crate) fn root(namespace: &str) -> PathBuf {
    Path::new(ROOT).join(namespace)
}

/// What the library works with for a container of `namespace`, whose proxies tell what goes wrong in `log`.
///
/// # Errors
/// The configuration cannot be read.
pub(crate) fn runtime(
    namespace: &str,
    config: Option<&Path>,
    systemd_cgroup: bool,
    log: Option<PathBuf>,
) -> Result<Runtime, hull_runtime::Error> {
    Ok(Runtime {
        store: Store::new(root(namespace)),
        config: Config::load(config)?,
        systemd_cgroup,
        log: LogSettings {
            path: log,
            json: false,
            debug: false,
        },
    })
}
