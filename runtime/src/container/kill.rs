//! `kill`: a signal for a container's first process, or for all of its processes.

use nix::sys::signal::Signal;

use super::state::{Status, check_live, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::error::Error;
use crate::sandbox::agent_of;

/// Sends `signal` to the container `id`.
///
/// # Errors
/// It does not run; unless the signal is for `all` its processes, of which there are none then.
pub fn kill(runtime: &Runtime, id: &ContainerId, signal: u32, all: bool) -> Result<(), Error> {
    let record = runtime.store.container(id)?;
    match status(&runtime.store, &record) {
        Status::Stopped if all => return Ok(()),
        Status::Stopped | Status::Creating => return Err(ContainerError::NotRunning.into()),
        Status::Created | Status::Running | Status::Paused => {}
    }
    let sent = agent_of(&runtime.store, &record.sandbox_id)
        .and_then(|mut agent| agent.signal(id, "", signal, all));
    // It may have ended between the look and the signal.
    if sent.is_err() && status(&runtime.store, &record) == Status::Stopped {
        return Err(ContainerError::NotRunning.into());
    }
    Ok(sent?)
}

/// Sends `signal` to the process of the container `id` that was started by [`exec_detached`](super::exec_detached) and has
/// `exec_id`.
///
/// # Errors
/// It does not run.
pub fn kill_exec(
    runtime: &Runtime,
    id: &ContainerId,
    exec_id: &str,
    signal: u32,
) -> Result<(), Error> {
    let record = runtime.store.container(id)?;
    check_live(&runtime.store, &record)?;
    let mut agent = agent_of(&runtime.store, &record.sandbox_id)?;
    Ok(agent.signal(id, exec_id, signal, false)?)
}

/// Reads a signal: a number, a name, or a name without its `SIG`, in any case; `RTMIN+3` too.
///
/// # Errors
/// It is none.
pub fn parse_signal(text: &str) -> Result<u32, ContainerError> {
    let fail = || ContainerError::Signal(text.into());
    if let Ok(number) = text.parse::<u32>() {
        // 0 only asks whether there is a process.
        return (0..=64)
            .contains(&number)
            .then_some(number)
            .ok_or_else(fail);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(realtime) = realtime(name) {
        return Ok(realtime);
    }
    let signal: Signal = format!("SIG{name}").parse().map_err(|_| fail())?;
    Ok((signal as i32).unsigned_abs())
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`: 34 to 64, as the C library numbers them.
fn realtime(name: &str) -> Option<u32> {
    let offset = |text: &str, sign: char| -> Option<u32> {
        if text.is_empty() {
            return Some(0);
        }
        text.strip_prefix(sign)?
            .parse()
            .ok()
            .filter(|offset| *offset <= 30)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(34 + offset(rest, '+')?);
    }
    let rest = name.strip_prefix("RTMAX")?;
    Some(64 - offset(rest, '-')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_people_write_them() {
        for (text, number) in [
            ("0", 0),
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("WINCH", 28),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in [
            "",
            "65",
            "-1",
            "SIG",
            "NOSUCH",
            "9x",
            "RTMIN+31",
            "RTMIN-1",
            "SIGSIGKILL",
        ] {
            parse_signal(text).unwrap_err();
        }
    }
}
