//! `delete`: what containerd runs when it has lost the process that served a container, or could not start it.
//!
//! containerd 1.7 kills this command after five seconds, which a guest that does not answer can take. So another process
//! does the work, and finishes it in any case.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context, bail};
use containerd_shim_protos::api::DeleteResponse;
use hull_runtime::sandbox::pod;
use hull_runtime::{container, own_program};
use protobuf::Message;

use crate::arguments::{Arguments, CLEAN_UP};
use crate::process::{KILLED, timestamp};
use crate::{bootstrap, rootfs, state};

/// Has the container cleaned up. Gives what is to be printed.
pub(crate) fn delete(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let bundle = arguments.bundle.as_deref().unwrap_or(Path::new("."));
    let bundle = std::path::absolute(bundle).context("the bundle")?;
    let output = own_program::command()
        .arg0(crate::NAME)
        .args(["-namespace", &arguments.namespace])
        .args(["-id", &arguments.id])
        .arg("-bundle")
        .arg(&bundle)
        .arg(CLEAN_UP)
        // The bundle may be removed meanwhile.
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .context("run the clean-up")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// Ends the container and leaves nothing of it. Gives what is to be printed.
pub(crate) fn clean_up(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let bundle = arguments.bundle.as_deref().unwrap_or(Path::new("."));
    // What the container was configured by does not matter any more.
    let runtime = state::runtime(&arguments.namespace, None, false, None)?;
    let id = arguments.id.parse().map_err(hull_runtime::Error::from)?;
    let proxy = runtime.store.container(&id).ok().and_then(|it| it.proxy);
    container::delete(&runtime, &id, true)?;
    pod::remove(&runtime, &id)?;
    let mounted = bundle.join(rootfs::DIRECTORY);
    rootfs::unmount(&mounted).with_context(|| mounted.display().to_string())?;
    bootstrap::remove_dead_socket(bundle);
    let mut response = DeleteResponse::new();
    response.pid = proxy
        .and_then(|proxy| u32::try_from(proxy.pid).ok())
        .unwrap_or(0);
    response.exit_status = KILLED;
    response.exited_at = Some(timestamp(SystemTime::now())).into();
    Ok(response.write_to_bytes()?)
}
