//! CNI networks, attached to namespaces as container engines do it by libcni: the plugins of a list in order, each given
//! the result of the one before (CNI specification 1.0.0, §2 and §3), the last of which is remembered until it is detached.
//!
//! The plugins run in a namespace of the case's own that stands for the host, so that their bridges, rules and
//! addresses go with it.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Netns;
use crate::command::{Finished, finish, undo};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";
/// Where libcni remembers.
const RESULTS: &str = "/var/lib/cni/results";

/// A list of plugins.
#[derive(Debug)]
pub struct CniNetwork<'a> {
    host: &'a Netns,
    plugins: Vec<Value>,
    /// Where `host-local` remembers addresses, and `portmap` finds iptables.
    data: TempDir,
}

/// An interface that a network has made in a container's namespace.
#[derive(Debug)]
pub struct Attachment<'a> {
    network: &'a CniNetwork<'a>,
    container: &'a Netns,
    interface: &'static str,
    /// The result of the last plugin.
    pub result: Value,
}

impl<'a> CniNetwork<'a> {
    /// A network of `plugins`, each as in a list's `plugins`. An `ipam` with ranges is completed to `host-local`'s.
    ///
    /// # Panics
    /// There is no room for a directory.
    #[must_use]
    pub fn new(host: &'a Netns, plugins: &[Value]) -> Self {
        let data = TempDir::with_prefix("hull-cni-").expect("temporary directory");
        let path = data.path().join("path");
        std::fs::create_dir(&path).expect("directory");
        symlink("/usr/sbin/iptables", path.join("iptables")).expect("link");
        let mut plugins = plugins.to_vec();
        for plugin in &mut plugins {
            plugin["name"] = json!("case");
            plugin["cniVersion"] = json!(VERSION);
            if let Some(ipam) = plugin.get_mut("ipam") {
                ipam["type"] = json!("host-local");
                ipam["dataDir"] = json!(data.path());
            }
        }
        Self {
            host,
            plugins,
            data,
        }
    }

    /// `ADD`: attaches a container's namespace.
    ///
    /// # Panics
    /// A plugin fails.
    #[track_caller]
    #[must_use]
    pub fn add(&'a self, container: &'a Netns, interface: &'static str) -> Attachment<'a> {
        let mut attachment = Attachment {
            network: self,
            container,
            interface,
            result: Value::Null,
        };
        for plugin in &self.plugins {
            let answer = attachment.call("ADD", plugin).expect(0);
            attachment.result = serde_json::from_slice(&answer.stdout).expect("JSON");
        }
        attachment.remember();
        attachment
    }

    /// Whether `host-local` has given addresses that were not given back.
    ///
    /// # Panics
    /// The directory cannot be read.
    #[must_use]
    pub fn has_reservations(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("case")) else {
            return false;
        };
        entries
            .map(|entry| entry.expect("entry").file_name())
            .any(|name| name.to_string_lossy().parse::<std::net::IpAddr>().is_ok())
    }
}

impl Attachment<'_> {
    /// `CHECK`: what each plugin says; the reason if it objects.
    #[track_caller]
    #[must_use]
    pub fn check(&self) -> Vec<(String, Result<(), String>)> {
        let plugins = self.network.plugins.iter();
        plugins
            .map(|plugin| {
                let answer = self.call("CHECK", plugin);
                let verdict = match answer.code {
                    0 => Ok(()),
                    _ => Err(answer.text()),
                };
                (type_of(plugin).to_owned(), verdict)
            })
            .collect()
    }

    /// `CHECK`, with which every plugin must be content.
    ///
    /// # Panics
    /// One is not.
    #[track_caller]
    pub fn check_passes(&self) {
        for (plugin, verdict) in self.check() {
            assert!(verdict.is_ok(), "CHECK of {plugin}: {verdict:?}");
        }
    }

    /// `DEL`: detaches the container, the last plugin first.
    ///
    /// # Panics
    /// A plugin fails.
    #[track_caller]
    pub fn delete(&self) {
        for plugin in self.network.plugins.iter().rev() {
            let _ = self.call("DEL", plugin).expect(0);
        }
        self.forget();
    }

    fn remembered(&self) -> PathBuf {
        let file = format!("case-{}-{}", self.container.name(), self.interface);
        Path::new(RESULTS).join(file)
    }

    fn remember(&self) {
        let attachment = json!({
            "kind": "cniCacheV1",
            "containerId": self.container.name(),
            "ifName": self.interface,
            "networkName": "case",
            "netns": self.container.path(),
            "result": self.result,
        });
        std::fs::create_dir_all(RESULTS).expect("directory");
        std::fs::write(self.remembered(), attachment.to_string()).expect("file");
    }

    fn forget(&self) {
        match std::fs::remove_file(self.remembered()) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// The addresses without their prefixes.
    ///
    /// # Panics
    /// The result has no `ips`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let ips = self.result["ips"].as_array().expect("ips");
        ips.iter()
            .map(|ip| {
                let cidr = ip["address"].as_str().expect("address");
                cidr.split('/').next().unwrap_or(cidr).to_owned()
            })
            .collect()
    }

    #[track_caller]
    fn call(&self, command: &str, plugin: &Value) -> Finished {
        let mut config = plugin.clone();
        if !self.result.is_null() {
            config["prevResult"] = self.result.clone();
        }
        let mut program = Command::new("ip");
        program.args(["netns", "exec", self.network.host.name()]);
        if type_of(plugin) == "portmap" {
            // Where it finds ip6tables, its CHECK looks for rules of IPv6 addresses that there are not.
            let path = self.network.data.path().join("path");
            program.args(["env", &format!("PATH={}", path.display())]);
        }
        program
            .arg(format!("{PLUGINS}/{}", type_of(plugin)))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container.name())
            .env("CNI_NETNS", self.container.path())
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", PLUGINS);
        finish(&mut program, config.to_string().into_bytes())
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        undo(|| self.forget());
    }
}

fn type_of(plugin: &Value) -> &str {
    plugin["type"].as_str().expect("type")
}
