//! A process's streams as containerd names them: FIFOs, `file://` and `binary://` loggers, or nothing.
//!
//! Without a terminal the process proxy gets the streams themselves, and no byte passes this process: a reader that is
//! slow holds up its own process only. With a terminal, two threads of this process carry its bytes (terminal.rs).

mod fifo;
mod logger;
mod terminal;
mod uri;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use hull_runtime::container::Console;
use hull_runtime::process_proxy::StandardStreams;
use hull_runtime::{WindowSize, set_window_size};
use nix::unistd::pipe2;

use crate::error::Error;
use terminal::{Carried, ConsoleSocket};
use uri::Uri;

/// How containerd names the streams; what is empty is not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamNames {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose streams they are, which loggers are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) id: &'a str,
}

/// Streams that are open, before there is a process.
#[derive(Debug)]
pub(crate) struct OpenStreams {
    input: Option<Arc<OwnedFd>>,
    output: Option<Arc<OwnedFd>>,
    errors: Option<Arc<OwnedFd>>,
    held: Held,
    console: Option<ConsoleSocket>,
}

/// What this process holds of the streams while there is the process.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// An end for writing, so that the input does not end with each of the clients that come and go.
    stdin: Option<OwnedFd>,
    /// Ends for reading, so that the process can write while there is no client.
    _readers: Vec<OwnedFd>,
    terminal: Option<Carried>,
}

impl OpenStreams {
    /// Opens what `names` says. The socket of a terminal is made in `directory`.
    pub(crate) fn open(
        names: &StreamNames,
        owner: Owner<'_>,
        directory: &Path,
    ) -> Result<Self, Error> {
        let mut held = Held::default();
        let mut input = None;
        if !names.stdin.is_empty() {
            let (reader, writer) = fifo::open_input(Path::new(&names.stdin))?;
            input = Some(Arc::new(reader));
            held.stdin = Some(writer);
        }
        let (output, errors) = open_outputs(names, owner, &mut held)?;
        let console = names
            .terminal
            .then(|| ConsoleSocket::listen(directory))
            .transpose()?;
        Ok(Self {
            input,
            output,
            errors,
            held,
            console,
        })
    }

    /// Where the runtime library is to send the terminal.
    pub(crate) fn console(&self) -> Console {
        Console::Detached(self.console.as_ref().map(|socket| socket.path().into()))
    }

    /// What the runtime library is to give the process proxy.
    pub(crate) fn standard(&self) -> StandardStreams {
        if self.console.is_some() {
            return StandardStreams::default();
        }
        StandardStreams {
            stdin: self.input.clone(),
            stdout: self.output.clone(),
            stderr: self.errors.clone(),
        }
    }

    /// Takes the terminal that the process proxy has sent, and carries its bytes from now on.
    pub(crate) fn connect(self) -> Result<Held, Error> {
        let Self {
            input,
            output,
            errors: _,
            mut held,
            console,
        } = self;
        if let Some(socket) = console {
            let master = socket.receive()?;
            held.terminal = Some(Carried::start(master, input, output)?);
        }
        Ok(held)
    }
}

impl Held {
    /// The input ends once no client has it open either.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sets the size of the terminal; nothing happens without one.
    pub(crate) fn resize(&self, size: WindowSize) -> std::io::Result<()> {
        match &self.terminal {
            Some(terminal) => set_window_size(terminal.master(), size),
            None => Ok(()),
        }
    }

    /// What tells that all of the terminal's output has been written; once.
    pub(crate) fn take_output_end(&mut self) -> Option<tokio::sync::oneshot::Receiver<()>> {
        self.terminal.as_mut()?.take_output_end()
    }
}

type Outputs = (Option<Arc<OwnedFd>>, Option<Arc<OwnedFd>>);

/// Standard output says how both are written, as with containerd's own shim.
fn open_outputs(names: &StreamNames, owner: Owner<'_>, held: &mut Held) -> Result<Outputs, Error> {
    match Uri::parse(&names.stdout)? {
        Uri::Fifo(stdout) => {
            let mut open = |path: Option<&Path>| -> Result<Option<Arc<OwnedFd>>, Error> {
                let Some(path) = path else { return Ok(None) };
                let (writer, reader) = fifo::open_output(path)?;
                held._readers.extend(reader);
                Ok(Some(Arc::new(writer)))
            };
            let output = open(stdout.as_deref())?;
            let errors = match Uri::parse(&names.stderr)? {
                Uri::Fifo(stderr) if !names.terminal => open(stderr.as_deref())?,
                Uri::Fifo(_) => None,
                Uri::File(_) | Uri::Binary { .. } => {
                    return Err(Error::Unsupported(format!(
                        "standard error to {} beside another standard output",
                        names.stderr
                    )));
                }
            };
            Ok((output, errors))
        }
        Uri::File(path) => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
            }
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)
                .map_err(Error::io("open", &path))?;
            let file = Arc::new(OwnedFd::from(file));
            Ok((Some(Arc::clone(&file)), Some(file)))
        }
        Uri::Binary { program, arguments } => {
            let pipe = || {
                pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(|errno| Error::io("make a pipe for", &program)(errno.into()))
            };
            let (stdout, output) = pipe()?;
            let (stderr, errors) = pipe()?;
            logger::start(&program, &arguments, owner, stdout, stderr)?;
            Ok((Some(Arc::new(output)), Some(Arc::new(errors))))
        }
    }
}
