//! How a sandbox's network is wired: as the configuration says, or the annotations of its first container.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IntoDeserializer;

use super::{Config, ConfigError};
use crate::network::{Model, Options};

/// The most queue pairs of a NIC: more vCPUs share them.
const MAX_QUEUE_PAIRS: u8 = 8;

/// The annotation that chooses the model.
const MODEL: &str = "dev.hull.network.model";

/// What the annotations begin with that containerd and CRI-O give every container of a Kubernetes pod.
const OF_KUBERNETES: &str = "io.kubernetes.cri";

/// What is wanted of the network of a sandbox with `vcpus` that is made for a container with these annotations. Each
/// vCPU has a pair of queues of its own, so that none waits for another.
///
/// # Errors
/// See [`annotated_model`].
pub(super) fn options(
    config: &Config,
    annotations: &HashMap<String, String>,
    vcpus: u8,
) -> Result<Options, ConfigError> {
    Ok(Options {
        model: annotated_model(annotations)?
            .or(config.network_model)
            .unwrap_or_else(|| default_model(annotations)),
        queue_pairs: vcpus.clamp(1, MAX_QUEUE_PAIRS).into(),
    })
}

/// The model where nobody has chosen one. A pod's network is CNI's, whose `CHECK` compares the uplink with what `ADD` has
/// made: CRI-O asks for it with each look at the pod's status.
fn default_model(annotations: &HashMap<String, String>) -> Model {
    if is_of_kubernetes(annotations) {
        Model::Tc
    } else {
        Model::default()
    }
}

/// Whether annotations are those of a container of a Kubernetes pod.
pub fn is_of_kubernetes(annotations: &HashMap<String, String>) -> bool {
    let mut names = annotations.keys();
    names.any(|name| name.starts_with(OF_KUBERNETES))
}

/// The model that annotations choose; none if they do not.
///
/// # Errors
/// They choose one that there is not.
pub fn annotated_model(
    annotations: &HashMap<String, String>,
) -> Result<Option<Model>, ConfigError> {
    let Some(name) = annotations.get(MODEL) else {
        return Ok(None);
    };
    let text = IntoDeserializer::<serde::de::value::Error>::into_deserializer(name.as_str());
    let model = Model::deserialize(text).map_err(|_| ConfigError::Value {
        name: MODEL,
        value: name.clone(),
        expected: "bridge, tc or none is expected",
    })?;
    Ok(Some(model))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::ConfigFile;
    use super::*;

    fn model(file: &str, annotation: Option<&str>) -> Result<Model, ConfigError> {
        let file = ConfigFile::parse(Path::new("c.toml"), file)?;
        let config = Config::resolve(file, Path::new("/usr"))?;
        let annotations = annotation.map(|name| (MODEL.to_owned(), name.to_owned()));
        Ok(options(&config, &annotations.into_iter().collect(), 1)?.model)
    }

    #[test]
    fn an_annotation_overrides_the_configuration() {
        assert_eq!(model("", None).unwrap(), Model::Bridge);
        assert_eq!(model("[network]\nmodel = 'tc'", None).unwrap(), Model::Tc);
        for (name, chosen) in [
            ("bridge", Model::Bridge),
            ("tc", Model::Tc),
            ("none", Model::None),
        ] {
            let file = "[network]\nmodel = 'tc'";
            assert_eq!(model(file, Some(name)).unwrap(), chosen);
        }
    }

    #[test]
    fn a_pod_of_kubernetes_has_the_model_that_cni_can_check_unless_one_is_chosen() {
        for (name, file, chosen) in [
            ("io.kubernetes.cri.container-type", "", Model::Tc),
            ("io.kubernetes.cri-o.ContainerType", "", Model::Tc),
            (
                "io.kubernetes.cri-o.ContainerType",
                "[network]\nmodel = 'bridge'",
                Model::Bridge,
            ),
            ("io.podman.annotations.init", "", Model::Bridge),
        ] {
            let config = ConfigFile::parse(Path::new("c.toml"), file).unwrap();
            let config = Config::resolve(config, Path::new("/usr")).unwrap();
            let annotations = HashMap::from([(name.to_owned(), "sandbox".to_owned())]);
            assert_eq!(options(&config, &annotations, 1).unwrap().model, chosen);
        }
    }

    #[test]
    fn each_vcpu_has_queues_of_its_own_up_to_a_bound() {
        let config = Config::resolve(ConfigFile::default(), Path::new("/usr")).unwrap();
        for (vcpus, pairs) in [(1, 1), (2, 2), (8, 8), (32, 8)] {
            let options = options(&config, &HashMap::new(), vcpus).unwrap();
            assert_eq!(options.queue_pairs, pairs);
        }
    }

    #[test]
    fn a_model_that_there_is_not_is_refused_by_name() {
        for name in ["", "Bridge", "macvtap", "bridge "] {
            let error = model("", Some(name)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("dev.hull.network.model is {name:?}: bridge, tc or none is expected")
            );
        }
    }
}
