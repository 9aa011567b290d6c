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
    let chosen = annotated_model(annotations)?.or(config.network_model);
    Ok(Options {
        model: chosen.unwrap_or_default(),
        chosen: chosen.is_some(),
        queue_pairs: vcpus.clamp(1, MAX_QUEUE_PAIRS).into(),
    })
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

    /// The model, and whether it is chosen.
    fn model(file: &str, annotation: Option<&str>) -> Result<(Model, bool), ConfigError> {
        let file = ConfigFile::parse(Path::new("c.toml"), file)?;
        let config = Config::resolve(file, Path::new("/usr"))?;
        let annotations = annotation.map(|name| (MODEL.to_owned(), name.to_owned()));
        let options = options(&config, &annotations.into_iter().collect(), 1)?;
        Ok((options.model, options.chosen))
    }

    #[test]
    fn an_annotation_overrides_the_configuration() {
        assert_eq!(model("", None).unwrap(), (Model::Bridge, false));
        let file = "[network]\nmodel = 'tc'";
        assert_eq!(model(file, None).unwrap(), (Model::Tc, true));
        for (name, chosen) in [
            ("bridge", Model::Bridge),
            ("tc", Model::Tc),
            ("none", Model::None),
        ] {
            assert_eq!(model(file, Some(name)).unwrap(), (chosen, true));
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
