//! Commands in the machine, over ssh. One connection per instance is opened ahead and shared by all commands, since
//! its key exchange takes most of a second at emulated speed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::image::Image;
use crate::command;

/// What every command in the machine starts from.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// ssh's exit code when it has lost the machine, or cannot reach it.
pub(super) const LOST: i32 = 255;

/// How to reach the sshd of one machine.
#[derive(Clone, Copy)]
pub(super) struct Connection<'a> {
    pub(super) image: &'a Image,
    /// The instance's directory, which holds the shared connection's socket.
    pub(super) directory: &'a Path,
    pub(super) port: u16,
}

/// Whether a command gets a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    Yes,
    No,
}

impl Connection<'_> {
    /// Opens the shared connection and leaves it open in the background.
    pub(super) fn open(&self) -> Result<()> {
        let mut ssh = self.ssh();
        ssh.args(["-f", "-N", "-o", "ControlMaster=yes", "root@testbed"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command::run(&mut ssh)
    }

    /// ssh with `script`, for the machine's shell to run.
    pub(super) fn shell(&self, script: &OsStr, terminal: Terminal) -> Command {
        let mut ssh = self.ssh();
        ssh.arg(if terminal == Terminal::Yes {
            "-tt"
        } else {
            "-T"
        })
        .args(["-o", "ControlMaster=no", "root@testbed"])
        .arg(script);
        ssh
    }

    /// Options that leave this user's and this host's own ssh configuration out.
    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        // A relative path for the socket, since a socket's path may have no more than 108 bytes.
        ssh.current_dir(self.directory)
            .args(["-F", "none", "-S", "ssh", "-p"])
            .arg(self.port.to_string())
            .arg("-i")
            .arg(self.image.key());
        for option in [
            "HostName=127.0.0.1",
            "HostKeyAlias=testbed",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "ConnectTimeout=60",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        let mut known_hosts = OsString::from("UserKnownHostsFile=\"");
        known_hosts.push(self.image.known_hosts());
        known_hosts.push("\"");
        ssh.arg("-o").arg(known_hosts);
        ssh
    }
}

/// A script that runs `command` as root in /root, with `variables` in its environment, and ends with its exit code.
pub(super) fn script(command: &[OsString], variables: &[(OsString, OsString)]) -> OsString {
    let mut script = Vec::new();
    script.extend_from_slice(format!("cd /root && export PATH={PATH}").as_bytes());
    for (name, value) in variables {
        script.push(b' ');
        script.extend_from_slice(name.as_bytes());
        script.push(b'=');
        quote(value, &mut script);
    }
    script.push(b';');
    for word in command {
        script.push(b' ');
        quote(word, &mut script);
    }
    // Without the exit, the shell would make way for the command, and ssh has no exit code for a signal's end.
    script.extend_from_slice(b"; exit $?");
    OsString::from_vec(script)
}

/// Quotes a word for a POSIX shell.
fn quote(word: &OsStr, script: &mut Vec<u8>) {
    script.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            _ => script.push(byte),
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = [
            "printf",
            "%s|",
            "",
            "a b",
            "it's",
            "$HOME;`id`\\",
            "\n",
            "*",
        ];
        let script = script(
            &words.map(OsString::from),
            &[("HULL_X".into(), "1 '2'".into())],
        );
        let script = script.to_str().unwrap().replace("cd /root", "cd /");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, b"|a b|it's|$HOME;`id`\\|\n|*|");
    }
}
