//! `run`: `create`, `start`, and in the foreground also the wait for the end and `delete`.

use std::ffi::OsString;

use super::{ContainerId, CreateOptions, Created, create, delete, start};
use crate::Runtime;
use crate::error::{Error, ErrorKind, chain};
use crate::notify::ReadyNotice;
use crate::process_proxy::foreground::{HeldSignals, HostTerminal};
use crate::vmm_process;

/// What `run` is told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What `create` is told.
    pub create: CreateOptions,
    /// Leave the container there when it has ended.
    pub keep: bool,
    /// See [`start`].
    pub service_manager: Option<OsString>,
}

/// Creates and starts a container. Detached, gives 0 once it runs; otherwise waits for its end and gives its exit
/// code.
///
/// # Errors
/// The container could not be created or started; nothing is left of it then.
pub fn run(runtime: &Runtime, options: &RunOptions) -> Result<u8, Error> {
    let detach = options.create.console.is_detached();
    let signals = if detach {
        None
    } else {
        Some(HeldSignals::hold()?)
    };
    let id = &options.create.id;
    let Created {
        mut proxy,
        terminal,
    } = create(runtime, &options.create)?;
    let terminal = terminal.map(HostTerminal::make_raw).transpose();
    let started = terminal.map_err(Error::from).and_then(|terminal| {
        let notice = start(runtime, id, options.service_manager.as_deref())?;
        Ok((terminal, notice))
    });
    let (terminal, notice) = started.inspect_err(|_| clean_up(runtime, options, true))?;
    let Some(signals) = signals else {
        if let Some(notice) = notice {
            notice.hand_on(proxy.id())?;
        }
        return Ok(0);
    };
    if let Some(notice) = notice {
        // Signals are for the container meanwhile.
        std::thread::spawn(|| hand_on(notice));
    }
    let code = signals.wait(&mut proxy);
    drop(terminal);
    tell_of_crash(runtime, id);
    clean_up(runtime, options, false);
    Ok(code?)
}

/// In the foreground this process is the service.
fn hand_on(notice: ReadyNotice) {
    if let Err(error) = notice.hand_on(std::process::id()) {
        tracing::error!(error = %chain(&error), "the service manager is not told that the container is ready");
    }
}

/// Says why the VM is gone, if it did not end in order.
fn tell_of_crash(runtime: &Runtime, id: &ContainerId) {
    // Whoever has deleted the container meanwhile knows.
    let Ok(record) = runtime.store.container(id) else {
        return;
    };
    let directory = runtime.store.sandbox_directory(&record.sandbox_id);
    if let Some(crash) = vmm_process::describe_crash(&directory) {
        tracing::error!(container = %id, "the VM ended under its container: {crash}");
    }
}

/// The error that led here, or the container's exit code, is what the caller is to hear of.
fn clean_up(runtime: &Runtime, options: &RunOptions, force: bool) {
    if options.keep {
        return;
    }
    match delete(runtime, &options.create.id, force) {
        Ok(()) => {}
        // Somebody else has deleted it.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            tracing::error!(container = %options.create.id, error = %chain(&error), "delete");
        }
    }
}
