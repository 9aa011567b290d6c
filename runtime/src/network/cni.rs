//! Which uplinks CNI has made. libcni, by which engines run the plugins, remembers what came of each `ADD` for the `CHECK`
//! and `DEL` to come, at a place that is the same for all of them.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::link::Link;
use super::mac::MacAddress;

/// One JSON file for each attachment, `<network>-<container>-<interface>`.
pub(super) const RESULTS: &str = "/var/lib/cni/results";

/// Of such a file (libcni's `cniCacheV1`) what tells the interface.
#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "ifName")]
    interface: String,
    result: AddResult,
}

/// The result of `ADD` (CNI specification 1.0.0, section 5).
#[derive(Deserialize)]
struct AddResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
}

/// Whether `link` is among the attachments that `results` remembers.
pub(super) fn has_made(results: &Path, link: &Link) -> bool {
    link.mac
        .is_some_and(|mac| has_attached(results, &link.name, mac))
}

/// What cannot be read tells of no attachment: whoever asks for a `CHECK` cannot read it either.
fn has_attached(results: &Path, name: &str, mac: MacAddress) -> bool {
    let Ok(files) = fs::read_dir(results) else {
        return false;
    };
    let suffix = format!("-{name}");
    let of_name = files.flatten().map(|file| file.path()).filter(|path| {
        let file = path.file_name().unwrap_or_default();
        file.as_encoded_bytes().ends_with(suffix.as_bytes())
    });
    of_name
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .any(|attachment| is_of(&attachment, name, mac))
}

fn is_of(attachment: &Attachment, name: &str, mac: MacAddress) -> bool {
    let mut interfaces = attachment.result.interfaces.iter();
    attachment.interface == name
        && interfaces.any(|interface| interface.name == name && interface.mac.parse() == Ok(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([0x0a, 0x58, 0x0a, 0x58, 0x00, 0x02]);

    #[test]
    fn an_attachment_is_known_by_the_interfaces_name_and_address() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        let known = |name, mac| has_attached(directory.path(), name, mac);
        assert!(!has_attached(&directory.path().join("none"), "eth0", MAC));
        write("net-damaged-eth0", "{");
        write(
            "net-0f3a-eth0",
            r#"{"kind": "cniCacheV1", "containerId": "0f3a", "config": "e30=", "ifName": "eth0", "networkName": "net",
                "result": {"cniVersion": "1.0.0", "interfaces": [
                    {"mac": "f6:0d:5e:3b:1c:50", "name": "cni0"},
                    {"mac": "0A:58:0a:58:00:02", "name": "eth0", "sandbox": "/var/run/netns/n"}]}}"#,
        );
        assert!(known("eth0", MAC));
        assert!(!known("eth1", MAC));
        assert!(!known("eth0", MacAddress([2, 0, 0, 0, 0, 1])));
        assert!(!known(
            "cni0",
            MacAddress([0xf6, 0x0d, 0x5e, 0x3b, 0x1c, 0x50])
        ));
    }
}
