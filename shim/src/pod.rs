//! A pod as CreateSandbox describes it, as the runtime library makes it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use hull_runtime::sandbox::pod::PodOptions;
use protobuf::Message;

use self::cri::pod::{DNSConfig, NamespaceMode, PodSandboxConfig};
use crate::error::Error;

/// The messages of `proto/pod.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unused,
    nonstandard_style
)]
mod cri {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// Annotations of a pod that are for hull.
const OF_HULL: &str = "dev.hull.";
/// The host's files that a pod has if its configuration does not say otherwise.
const HOSTS: &str = "/etc/hosts";
const RESOLVER: &str = "/etc/resolv.conf";
const HOSTNAME: &str = "/etc/hostname";

/// What is asked for.
///
/// # Errors
/// It is no pod's configuration, or asks for what a VM cannot give.
pub(crate) fn options(request: &CreateSandboxRequest) -> Result<PodOptions, Error> {
    let invalid = |problem: String| Error::Invalid {
        what: "the pod's configuration",
        problem,
    };
    let any = request
        .options
        .as_ref()
        .ok_or_else(|| invalid("it is missing".into()))?;
    if any.type_url.rsplit('/').next() != Some("runtime.v1.PodSandboxConfig") {
        return Err(invalid(format!("{} is not known", any.type_url)));
    }
    let config = PodSandboxConfig::parse_from_bytes(&any.value)
        .map_err(|error| invalid(error.to_string()))?;
    check_namespaces(&config, &request.netns_path)?;
    let parent = &config.linux.cgroup_parent;
    Ok(PodOptions {
        id: request
            .sandbox_id
            .parse()
            .map_err(hull_runtime::Error::from)?,
        netns: PathBuf::from(&request.netns_path),
        annotations: annotations(&config, &request.sandbox_id),
        cgroup: (!parent.is_empty()).then(|| cgroup(parent, &request.sandbox_id)),
        files: files(&config)?,
        sysctls: config.linux.sysctls.clone(),
        hostname: config.hostname,
    })
}

/// What is the node's cannot be a VM's.
fn check_namespaces(config: &PodSandboxConfig, netns: &str) -> Result<(), Error> {
    let namespaces = &config.linux.security_context.namespace_options;
    let is_nodes =
        |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode == NamespaceMode::NODE.into();
    for (is_asked, what) in [
        (
            netns.is_empty() || is_nodes(namespaces.network),
            "sharing the host's network with a pod in a VM",
        ),
        (
            is_nodes(namespaces.pid),
            "sharing the host's processes with a pod in a VM",
        ),
        (
            is_nodes(namespaces.ipc),
            "sharing the host's IPC objects with a pod in a VM",
        ),
        (
            namespaces
                .userns_options
                .as_ref()
                .is_some_and(|options| !is_nodes(options.mode)),
            "a user namespace for a pod in a VM",
        ),
    ] {
        if is_asked {
            return Err(Error::Unsupported(what.into()));
        }
    }
    Ok(())
}

/// Those that containerd writes for the container that holds a pod where there is one, and those for hull.
fn annotations(config: &PodSandboxConfig, id: &str) -> HashMap<String, String> {
    let mut annotations = config.annotations.clone();
    annotations.retain(|name, _| name.starts_with(OF_HULL));
    let of_cri = |name: &str| format!("io.kubernetes.cri.{name}");
    annotations.insert(of_cri("container-type"), "sandbox".into());
    annotations.insert(of_cri("sandbox-id"), id.into());
    if let Some(resources) = config.linux.resources.as_ref() {
        for (name, value) in [
            ("sandbox-cpu-period", resources.cpu_period),
            ("sandbox-cpu-quota", resources.cpu_quota),
            ("sandbox-memory", resources.memory_limit_in_bytes),
        ] {
            annotations.insert(of_cri(name), value.to_string());
        }
    }
    annotations
}

/// The pod's cgroup below `parent`, which is a slice if systemd makes cgroups: as containerd names that of a pod's
/// container.
fn cgroup(parent: &str, id: &str) -> PathBuf {
    let parent = Path::new(parent);
    match parent.file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}").into(),
        _ => parent.join(id),
    }
}

/// The files by which a pod's containers find names, as containerd makes them where it holds the pod itself.
fn files(config: &PodSandboxConfig) -> Result<BTreeMap<PathBuf, Vec<u8>>, Error> {
    let of_host = |path: &str| std::fs::read(path).map_err(Error::io("read", path));
    let resolver = match config.dns_config.as_ref() {
        Some(dns) => resolver(dns).into(),
        None => of_host(RESOLVER)?,
    };
    let mut files = BTreeMap::from([(HOSTS.into(), of_host(HOSTS)?), (RESOLVER.into(), resolver)]);
    if !config.hostname.is_empty() {
        files.insert(HOSTNAME.into(), format!("{}\n", config.hostname).into());
    }
    Ok(files)
}

/// resolv.conf(5).
fn resolver(dns: &DNSConfig) -> String {
    let mut text = String::new();
    let mut line = |name: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(&format!("{name} {}\n", values.join(" ")));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

#[cfg(test)]
mod tests {
    use protobuf::well_known_types::any::Any;

    use super::cri::pod::{NamespaceOption, UserNamespace};
    use super::*;

    fn request(change: impl FnOnce(&mut PodSandboxConfig)) -> CreateSandboxRequest {
        let mut config = PodSandboxConfig::new();
        config.hostname = "pod".into();
        config.dns_config.mut_or_insert_default().servers = vec!["10.0.0.1".into()];
        change(&mut config);
        let mut any = Any::new();
        any.type_url = "runtime.v1.PodSandboxConfig".into();
        any.value = config.write_to_bytes().unwrap();
        let mut request = CreateSandboxRequest::new();
        request.sandbox_id = "p1".into();
        request.netns_path = "/run/netns/n".into();
        request.options = Some(any).into();
        request
    }

    #[test]
    fn a_pod_is_made_as_its_configuration_says() {
        let options = options(&request(|config| {
            config
                .annotations
                .insert("dev.hull.network.model".into(), "bridge".into());
            config.annotations.insert("other".into(), "x".into());
            let dns = config.dns_config.mut_or_insert_default();
            dns.searches = vec!["a.example".into(), "b.example".into()];
            dns.options = vec!["ndots:5".into()];
            let linux = config.linux.mut_or_insert_default();
            linux.cgroup_parent = "/kubepods/pod7".into();
            linux
                .sysctls
                .insert("net.core.somaxconn".into(), "7".into());
            linux
                .resources
                .mut_or_insert_default()
                .memory_limit_in_bytes = 1 << 30;
        }))
        .unwrap();
        assert_eq!(options.id.as_str(), "p1");
        assert_eq!(options.hostname, "pod");
        assert_eq!(options.cgroup, Some("/kubepods/pod7/p1".into()));
        assert_eq!(options.sysctls["net.core.somaxconn"], "7");
        let annotation = |name: &str| options.annotations.get(name).map(String::as_str);
        assert_eq!(annotation("dev.hull.network.model"), Some("bridge"));
        assert_eq!(
            annotation("io.kubernetes.cri.container-type"),
            Some("sandbox")
        );
        assert_eq!(
            annotation("io.kubernetes.cri.sandbox-memory"),
            Some("1073741824")
        );
        assert_eq!(annotation("other"), None);
        assert_eq!(
            options.files[Path::new(RESOLVER)],
            b"search a.example b.example\nnameserver 10.0.0.1\noptions ndots:5\n"
        );
        assert_eq!(options.files[Path::new(HOSTNAME)], b"pod\n");
    }

    #[test]
    fn systemd_has_the_cgroup_in_the_pods_slice() {
        let parent = "/kubepods.slice/kubepods-pod7.slice";
        assert_eq!(
            cgroup(parent, "p1"),
            Path::new("kubepods-pod7.slice:cri-containerd:p1")
        );
    }

    #[test]
    fn what_is_the_nodes_is_refused() {
        let error = |request| options(&request).unwrap_err().to_string();
        let mode = NamespaceMode::NODE;
        let namespaces = |change: fn(&mut NamespaceOption, NamespaceMode)| {
            request(|config| {
                let linux = config.linux.mut_or_insert_default();
                let context = linux.security_context.mut_or_insert_default();
                change(context.namespace_options.mut_or_insert_default(), mode);
            })
        };
        let mut without = request(|_| {});
        without.netns_path.clear();
        for (request, word) in [
            (without, "host's network"),
            (
                namespaces(|it, mode| it.network = mode.into()),
                "host's network",
            ),
            (
                namespaces(|it, mode| it.pid = mode.into()),
                "host's processes",
            ),
            (namespaces(|it, mode| it.ipc = mode.into()), "host's IPC"),
            (
                namespaces(|it, _| it.userns_options = Some(UserNamespace::new()).into()),
                "user namespace",
            ),
        ] {
            let error = error(request);
            assert!(error.contains(word), "{error}");
        }
        let mut other = request(|_| {});
        other.options.mut_or_insert_default().type_url = "other".into();
        assert!(error(other).contains("other is not known"));
        let mut none = request(|_| {});
        none.options = None.into();
        assert!(error(none).contains("missing"));
    }
}
