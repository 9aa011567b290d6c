//! The command line by which containerd runs a shim: options as Go's flag package writes them, then an action
//! (containerd's `core/runtime/v2/README.md`, "Commands").

use std::path::PathBuf;

use anyhow::{Context, bail};

/// The action that is this program's own.
pub(crate) const CLEAN_UP: &str = "clean-up";

/// What the shim is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the process that serves, or find it.
    Start,
    /// Have what is left of one that died cleaned up.
    Delete,
    /// Clean up: how `delete` runs it.
    CleanUp,
    /// Serve: how `start` runs it.
    #[default]
    Serve,
    /// Say what the runtime is.
    Info,
    /// Say which version this is.
    Version,
}

/// The arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) action: Action,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The container.
    pub(crate) id: String,
    /// containerd's socket.
    pub(crate) address: String,
    /// The bundle, with `delete`.
    pub(crate) bundle: Option<PathBuf>,
    /// Messages of level debug too.
    pub(crate) debug: bool,
}

impl Arguments {
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        let mut action = None;
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                if action.replace(word).is_some() {
                    bail!("more than one action");
                }
                continue;
            };
            let (name, given) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            if let "debug" | "v" | "version" | "info" = name {
                let is_set = match given.as_deref() {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(value) => bail!("-{name}={value}: true or false is expected"),
                };
                match name {
                    "debug" => arguments.debug = is_set,
                    "info" if is_set => arguments.action = Action::Info,
                    _ if is_set => arguments.action = Action::Version,
                    _ => {}
                }
                continue;
            }
            let value = given
                .or_else(|| words.next())
                .with_context(|| format!("-{name} has no value"))?;
            match name {
                "namespace" => arguments.namespace = value,
                "id" => arguments.id = value,
                "address" => arguments.address = value,
                "bundle" => arguments.bundle = Some(value.into()),
                // Events go to the ttrpc socket, and the socket to serve is inherited.
                "publish-binary" | "socket" => {}
                _ => bail!("unknown option -{name}"),
            }
        }
        match action.as_deref() {
            None => {}
            Some("start") => arguments.action = Action::Start,
            Some("delete") => arguments.action = Action::Delete,
            Some(CLEAN_UP) => arguments.action = Action::CleanUp,
            Some(other) => bail!("unknown action {other:?}"),
        }
        if !matches!(arguments.action, Action::Info | Action::Version) {
            arguments.check()?;
        }
        Ok(arguments)
    }

    /// The namespace becomes part of a path.
    fn check(&self) -> anyhow::Result<()> {
        let is_plain = |text: &str| {
            !text.is_empty()
                && text != "."
                && text != ".."
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !is_plain(&self.namespace) {
            bail!(
                "-namespace {:?}: containerd's namespace is expected",
                self.namespace
            );
        }
        if self.id.is_empty() {
            bail!("-id is missing");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_s_command_lines_are_read() {
        let line = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 -debug start";
        let arguments = parse(line).unwrap();
        assert_eq!(arguments.action, Action::Start);
        assert_eq!(arguments.namespace, "default");
        assert_eq!(arguments.id, "c1");
        assert_eq!(arguments.address, "/run/c.sock");
        assert!(arguments.debug);

        let arguments = parse("--namespace=k8s.io -id=c1 -bundle /b -debug=false delete").unwrap();
        assert_eq!(arguments.action, Action::Delete);
        assert_eq!(arguments.bundle, Some("/b".into()));
        assert!(!arguments.debug);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        let served = parse("-namespace default -id c1").unwrap();
        assert_eq!(served.action, Action::Serve);
    }

    #[test]
    fn what_is_no_command_line_of_containerd_s_is_refused() {
        for line in [
            "start",
            "-namespace default start",
            "-namespace ../x -id c start",
            "-namespace .. -id c start",
            "-namespace a -id c stop",
            "-namespace a -id c start delete",
            "-namespace a -id",
            "-namespace a -id c -nosuch x start",
            "-debug=maybe -namespace a -id c start",
        ] {
            parse(line).unwrap_err();
        }
    }
}
