//! `spec`: a configuration to start from, like runc's: a shell with a terminal in a read-only root file system.

use oci_spec::runtime::Spec;

use crate::bundle::NEWEST_OCI_VERSION;

/// The configuration that `hull spec` writes.
pub fn default_spec() -> Spec {
    let mut spec = Spec::default();
    spec.set_version("1.2.0".into())
        .set_hostname(Some("hull".into()))
        .set_annotations(None);
    debug_assert!(spec.version().as_str() <= NEWEST_OCI_VERSION);
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;

    #[test]
    fn the_default_configuration_is_one_that_hull_runs() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("rootfs")).unwrap();
        default_spec()
            .save(directory.path().join("config.json"))
            .unwrap();
        let bundle = Bundle::load(directory.path()).unwrap();
        assert!(bundle.terminal());
    }
}
