//! What tells that the guest's kernel has ended processes of a container for want of memory.

use std::os::unix::net::UnixStream;

use hull_agent_protocol::stdio::{StreamKind, StreamRequest};

use super::ContainerId;
use crate::Runtime;
use crate::agent_client::{AgentError, vsock};
use crate::error::Error;
use crate::vmm_process::vsock_socket;

/// A connection on which a byte comes each time that processes of the container `id` were ended so; its end is the end of
/// the container. There can be one for each container.
///
/// # Errors
/// The agent does not answer, or there is one already.
pub fn out_of_memory(runtime: &Runtime, id: &ContainerId) -> Result<UnixStream, Error> {
    let record = runtime.store.container(id)?;
    let socket = vsock_socket(&runtime.store.sandbox_directory(&record.sandbox_id));
    let request = StreamRequest {
        kind: StreamKind::OutOfMemory,
        container_id: id.to_string(),
        exec_id: String::new(),
    };
    Ok(vsock::open_stream(&socket, &request).map_err(AgentError::Connect)?)
}
