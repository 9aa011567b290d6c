//! What the driver negotiates with the socket device.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::backend::UnixSockets;
use super::muxer::Muxer;
use super::worker::{KickedRing, RX_QUEUE, TX_QUEUE, Worker};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

/// Receive, transmit, events. Linux fills all of the receive queue with pages as it boots, so it is no longer than
/// half a megabyte of them.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// VIRTIO_VSOCK_F_STREAM (§5.10.3).
const VIRTIO_VSOCK_F_STREAM: u32 = 0;

/// The socket device. See [`super`].
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    /// None while the worker has them.
    sockets: Option<UnixSockets>,
    activity: Arc<Activity>,
    worker: Option<WorkerThread<UnixSockets>>,
}

impl Vsock {
    /// A device for the guest `cid`. Programs of the host connect to `listener`; what the guest connects to port P of
    /// the host goes to the Unix socket `<guest_socket_prefix>_P`, opened when the guest asks for it.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking.
    pub fn new(cid: u32, listener: UnixListener, guest_socket_prefix: PathBuf) -> io::Result<Self> {
        Ok(Self {
            guest_cid: u64::from(cid),
            sockets: Some(UnixSockets::new(listener, guest_socket_prefix)?),
            activity: Arc::default(),
            worker: None,
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activity(&self) -> Option<Arc<Activity>> {
        Some(Arc::clone(&self.activity))
    }

    /// `struct virtio_vsock_config` (§5.10.4): the guest's CID.
    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().into()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = activation.queues.into_iter();
        let mut ready = |index| {
            let active = queues
                .next()
                .filter(|active| active.queue.ready())
                .ok_or(ActivateError::QueueNotReady(index))?;
            Ok(KickedRing {
                ring: Ring::new(active.queue, event_idx),
                kick: active.kick,
            })
        };
        let rx = ready(RX_QUEUE)?;
        let tx = ready(TX_QUEUE)?;

        let sockets = self.sockets.take().ok_or(ActivateError::NoBackend)?;
        let muxer = Muxer::new(self.guest_cid, sockets).map_err(|source| ActivateError::Host {
            operation: "create an epoll instance",
            source,
        })?;
        let worker = Worker::new(
            activation.memory,
            rx,
            tx,
            activation.interrupt,
            muxer,
            Arc::clone(&self.activity),
        )
        .map_err(|source| ActivateError::Host {
            operation: "watch the vsock queues",
            source,
        })?;
        let thread =
            WorkerThread::spawn("vsock", move |stop| worker.run(&stop)).map_err(|source| {
                ActivateError::Host {
                    operation: "start the vsock worker",
                    source,
                }
            })?;
        self.worker = Some(thread);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.sockets = worker.stop();
        }
    }
}
