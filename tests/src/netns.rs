//! Network namespaces that a case makes for itself, with the veth pairs in them.

use std::fmt::Display;
use std::path::PathBuf;

use serde_json::Value;

use crate::command::{Finished, eventually, run, run_ok};
use crate::unique;

/// A named network namespace, removed with its value.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    /// Makes one with `lo` up.
    #[must_use]
    pub fn new() -> Self {
        let name = unique("netns");
        run_ok("ip", &["netns", "add", &name]);
        run_ok("ip", &["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// Its name for `ip -n`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip -n NAME <words>`, which must succeed.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        let mut arguments = vec!["-n", self.name.as_str()];
        arguments.extend(words.split_whitespace());
        run_ok("ip", &arguments)
    }

    /// `ip -n NAME -j <words>`.
    ///
    /// # Panics
    /// It fails or does not print JSON.
    #[track_caller]
    #[must_use]
    pub fn ip_json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ip(&format!("-j -d {words}"))).expect("JSON")
    }

    /// Runs a command in the namespace.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, words: &str) -> Finished {
        let mut arguments = vec!["netns", "exec", self.name.as_str()];
        arguments.extend(words.split_whitespace());
        run("ip", &arguments)
    }

    /// Waits until `address` answers an echo request from here: on a busy host neither ARP nor neighbour discovery waits long
    /// enough for a guest.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    pub fn await_answer_of(&self, address: impl Display) {
        let ping = format!("ping -c 1 -W 5 {address}");
        let mut last = None;
        let answered = eventually(|| {
            let finished = self.exec(&ping);
            let answered = finished.code == 0;
            last = Some(finished);
            answered
        });
        assert!(answered, "{last:?}");
    }

    /// A veth pair: `name` in this namespace, `peer_name` in `peer`, both up, with `addresses` on this side and
    /// `peer_addresses` on the other.
    pub fn veth(
        &self,
        name: &str,
        addresses: &[&str],
        peer: &Self,
        peer_name: &str,
        peer_addresses: &[&str],
    ) {
        self.ip(&format!(
            "link add {name} type veth peer name {peer_name} netns {}",
            peer.name
        ));
        for (side, link, cidrs) in [(self, name, addresses), (peer, peer_name, peer_addresses)] {
            for cidr in cidrs {
                let nodad = if cidr.contains(':') { "nodad" } else { "" };
                side.ip(&format!("addr add {cidr} dev {link} {nodad}"));
            }
            side.ip(&format!("link set {link} up"));
        }
    }

    /// Waits until what the kernel does by itself with the new link `link` is over: it has its carrier, which a bridge is
    /// given up to a second late, its link-local address, and there is no address whose duplicates are still looked for.
    ///
    /// # Panics
    /// It never is.
    #[track_caller]
    pub fn settle(&self, link: &str) {
        let mut seen = String::new();
        let settled = eventually(|| {
            let own = self.ip(&format!("addr show dev {link}"));
            seen = self.ip("addr") + &self.ip("route show table all");
            own.contains("LOWER_UP")
                && own.contains("inet6 fe80::")
                && !seen.contains("tentative")
                && !seen.contains("linkdown")
        });
        assert!(settled, "{seen}");
    }

    /// The MAC address of a link.
    ///
    /// # Panics
    /// There is no such link.
    #[must_use]
    pub fn mac(&self, link: &str) -> String {
        self.ip_json(&format!("link show dev {link}"))[0]["address"]
            .as_str()
            .expect("MAC")
            .to_owned()
    }

    /// The names of all links, sorted.
    ///
    /// # Panics
    /// `ip` prints something else.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .ip_json("link show")
            .as_array()
            .expect("links")
            .iter()
            .map(|link| link["ifname"].as_str().expect("name").to_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(run("ip", &["netns", "delete", &self.name]));
    }
}
