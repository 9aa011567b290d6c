//! What the driver negotiates with the file system device.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::api::server::Server;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::backend::SharedDirectory;
use super::credentials;
use super::worker::{Pool, RequestQueue};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

/// High priority, requests. Linux limits a request to as many pages as the request queue is long, less four; it takes
/// 256 of them for a megabyte.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// How many request queues there are, not counting the one of high priority.
const REQUEST_QUEUES: u32 = 1;

/// Threads that serve requests.
const THREADS: usize = 4;

/// The length of the tag in the configuration space.
const TAG_LENGTH: usize = 36;

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is empty or longer than 36 bytes.
    #[error("a tag of {0} bytes; it has 1 to 36")]
    TagLength(usize),
    /// The directory cannot be opened.
    #[error("cannot share {}", directory.display())]
    Directory {
        /// What was to be shared.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `/proc` is not usable.
    #[error("sharing a directory needs /proc")]
    Proc(#[source] io::Error),
}

/// The file system device. See [`super`].
pub struct Fs {
    /// `struct virtio_fs_config` (§5.11.4).
    config: [u8; TAG_LENGTH + 4],
    directory: Arc<SharedDirectory>,
    server: Arc<Server<Arc<SharedDirectory>>>,
    activity: Arc<Activity>,
    active: Option<Active>,
}

struct Active {
    pool: Arc<Pool>,
    threads: Vec<WorkerThread<()>>,
}

impl Fs {
    /// A device that shares `directory`, as this process sees it, under `tag`. Mounts that appear below it later are
    /// shared as well.
    ///
    /// # Errors
    /// The tag is not 1 to 36 bytes long; the directory cannot be opened; `/proc` is missing.
    pub fn new(tag: &str, directory: &Path) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_LENGTH {
            return Err(FsError::TagLength(tag.len()));
        }
        let mut config = [0; TAG_LENGTH + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_LENGTH..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let directory = Arc::new(SharedDirectory::open(directory)?);
        // Said here and not by the threads that it is about: a guest could make them say it again and again.
        if let Err(error) = credentials::keep_capabilities() {
            tracing::warn!(%error, "the host will check the guest's file access a second time");
        }
        Ok(Self {
            config,
            activity: Arc::default(),
            server: Arc::new(Server::new(Arc::clone(&directory))),
            directory,
            active: None,
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> DeviceType {
        DeviceType::FileSystem
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activity(&self) -> Option<Arc<Activity>> {
        Some(Arc::clone(&self.activity))
    }

    fn config(&self) -> Vec<u8> {
        self.config.into()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        if activation.queues.len() < QUEUE_SIZES.len() {
            return Err(ActivateError::QueueNotReady(1));
        }
        let mut queues = Vec::with_capacity(QUEUE_SIZES.len());
        for (index, active) in (0..).zip(activation.queues) {
            if !active.queue.ready() {
                return Err(ActivateError::QueueNotReady(index));
            }
            let ring = Ring::new(active.queue, event_idx);
            queues.push(RequestQueue::new(index, ring, active.kick));
        }
        let pool = Arc::new(Pool {
            memory: activation.memory,
            queues,
            interrupt: activation.interrupt,
            directory: Arc::clone(&self.directory),
            server: Arc::clone(&self.server),
            activity: Arc::clone(&self.activity),
            stopping: AtomicBool::new(false),
        });
        let mut threads = Vec::with_capacity(THREADS);
        for number in 0..THREADS {
            let pool = Arc::clone(&pool);
            let thread = WorkerThread::spawn(&format!("fs-{number}"), move |stop| {
                if let Err(error) = credentials::keep_capabilities() {
                    tracing::debug!(%error, "access is checked twice");
                }
                if let Err(error) = pool.serve(&stop) {
                    tracing::error!(%error, "a file system worker ends");
                }
            })
            .map_err(|source| ActivateError::Host {
                operation: "start a file system worker",
                source,
            })?;
            threads.push(thread);
        }
        self.active = Some(Active { pool, threads });
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            active.pool.stopping.store(true, Ordering::Relaxed);
            drop(active.threads);
            self.directory.forget_guest();
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}
