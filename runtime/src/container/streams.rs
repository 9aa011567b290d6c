//! Where a process's streams go on the host: what a caller says about its terminal, against what its configuration
//! says.

use std::path::PathBuf;

use oci_spec::runtime::{BoxBuilder, Process};

use super::ContainerError;
use crate::process_proxy::Streams;
use crate::process_proxy::foreground::HostTerminal;

/// What a caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// It stays, and the process's terminal is its own.
    Foreground,
    /// It goes, and gets the terminal by this socket, if the process has one.
    Detached(Option<PathBuf>),
}

impl Console {
    /// The streams of a process; the rules are runc's.
    ///
    /// # Errors
    /// A terminal without anyone to have it, or the reverse.
    pub(super) fn streams(&self, process: &Process) -> Result<Streams, ContainerError> {
        let terminal = process.terminal().unwrap_or(false);
        match (self, terminal) {
            (Self::Foreground, true) => Ok(Streams::Terminal),
            (Self::Foreground | Self::Detached(None), false) => Ok(Streams::Standard),
            (Self::Detached(Some(socket)), true) => Ok(Streams::Console {
                socket: std::path::absolute(socket).unwrap_or_else(|_| socket.clone()),
                size: console_size(process),
            }),
            (Self::Detached(None), true) => Err(ContainerError::Options(
                "cannot allocate tty if hull will detach without setting console socket",
            )),
            (Self::Detached(Some(_)), false) => Err(ContainerError::Options(
                "cannot use console socket if hull will not detach or allocate tty",
            )),
        }
    }

    pub(super) fn is_detached(&self) -> bool {
        matches!(self, Self::Detached(_))
    }
}

/// Gives a process that is to have the command's own terminal the size of that from the start.
pub(super) fn fit(process: &mut Process, terminal: Option<&HostTerminal>) {
    if let Some(size) = terminal.and_then(HostTerminal::size) {
        let size = BoxBuilder::default().height(size.rows).width(size.columns);
        process.set_console_size(size.build().ok());
    }
}

/// Rows and columns; none if it is not told, or makes no sense.
fn console_size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    let rows = u16::try_from(size.height()).ok()?;
    let columns = u16::try_from(size.width()).ok()?;
    (rows != 0 && columns != 0).then_some((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(text: &str) -> Process {
        serde_json::from_str(text).unwrap()
    }

    const USER: &str = r#""user":{"uid":0,"gid":0},"cwd":"/""#;

    #[test]
    fn a_terminal_has_someone_to_have_it() {
        let plain = process(&format!("{{{USER}}}"));
        let terminal = process(&format!(
            "{{{USER},\"terminal\":true,\"consoleSize\":{{\"height\":24,\"width\":80}}}}"
        ));
        let socket = Console::Detached(Some("/s".into()));
        let nobody = Console::Detached(None);
        assert_eq!(
            Console::Foreground.streams(&plain).unwrap(),
            Streams::Standard
        );
        assert_eq!(
            Console::Foreground.streams(&terminal).unwrap(),
            Streams::Terminal
        );
        assert_eq!(nobody.streams(&plain).unwrap(), Streams::Standard);
        assert_eq!(
            socket.streams(&terminal).unwrap(),
            Streams::Console {
                socket: "/s".into(),
                size: Some((24, 80)),
            }
        );
        nobody.streams(&terminal).unwrap_err();
        socket.streams(&plain).unwrap_err();
    }
}
