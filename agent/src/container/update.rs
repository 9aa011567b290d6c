//! UpdateContainer.

use std::path::PathBuf;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;

use super::{Containers, Error, spec};

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

impl Containers {
    /// Sets limits of a container anew; those that `resources`, an OCI resources object, does not name stay.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<(), Error> {
        let container = self.get(id)?;
        if container.process("")?.exit().is_some() {
            return Err(container.state("stopped"));
        }
        let guest = self.guest();
        let resources = spec::resources_for_guest(resources, &guest)?;
        let limits = ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        Manager::new(PathBuf::from(CGROUPS), guest.cgroups.join(id))
            .and_then(|manager| manager.apply(&limits))
            .map_err(|error| Error::Limit(Box::new(error)))
    }
}
