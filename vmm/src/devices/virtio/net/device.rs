//! What the driver of a NIC negotiates: features, the configuration space (§5.1.4) and the number of pairs of queues.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;

use super::backend::{Backend as _, Offloads};
use super::control::Control;
use super::counters::Counters;
use super::receive::Receiver;
use super::steering::Steering;
use super::tap::{Tap, TapError};
use super::transmit::Transmitter;
use super::worker::{Shared, Side, Worker};
use super::{HEADER_SIZE, LINK_HEADER_SIZE, MAX_FRAME};
use crate::devices::virtio::device::{
    ActivateError, Activation, ActiveQueue, DeviceType, VirtioDevice,
};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

/// The size of receive and transmit queues.
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// The most pairs of queues, one for each of the most vCPUs.
const MAX_PAIRS: usize = 32;
/// The smallest MTU that the specification allows (§5.1.4.1).
const MIN_MTU: u16 = 68;
/// The largest packet on a NIC whose MTU is not told.
const DEFAULT_MTU: u16 = 1500;

/// Why a NIC cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There must be a tap for each pair of queues.
    #[error("a NIC has 1 to 32 pairs of queues, not {0}")]
    Pairs(usize),
    /// A MAC address of a NIC is neither zero nor that of a group.
    #[error("the MAC address {0:02x?} is not that of one interface")]
    Mac([u8; 6]),
    /// An MTU is 68 or more.
    #[error("the MTU {0} is too small")]
    Mtu(u16),
    /// A tap does not serve.
    #[error("the tap does not serve")]
    Tap(#[from] TapError),
}

/// A NIC.
#[derive(Debug)]
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    taps: Vec<Arc<Tap>>,
    counters: Arc<Counters>,
    link_up: Arc<AtomicBool>,
    workers: Vec<WorkerThread<()>>,
}

impl Net {
    /// A NIC with the guest's MAC address and the largest MTU that its driver may set; 0 leaves the MTU to whoever
    /// configures the link in the guest (a Linux driver never goes beyond the one it was told). `taps` has a descriptor
    /// for each pair of queues, made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and IFF_MULTI_QUEUE if there are several.
    ///
    /// # Errors
    /// An argument is not possible, or the host refuses to set up a tap.
    pub fn new(mac: [u8; 6], mtu: u16, taps: Vec<OwnedFd>) -> Result<Self, NetError> {
        if taps.is_empty() || taps.len() > MAX_PAIRS {
            return Err(NetError::Pairs(taps.len()));
        }
        if mac == [0; 6] || mac[0] & 1 != 0 {
            return Err(NetError::Mac(mac));
        }
        if mtu != 0 && mtu < MIN_MTU {
            return Err(NetError::Mtu(mtu));
        }
        let taps = Tap::adopt(taps)?;
        let uso = taps[0].knows_udp_segmentation()?;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * taps.len()];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Ok(Self {
            mac,
            mtu,
            features: offered_features(mtu != 0, taps.len() > 1, uso),
            queue_sizes,
            taps: taps.into_iter().map(Arc::new).collect(),
            counters: Arc::default(),
            link_up: Arc::new(AtomicBool::new(true)),
            workers: Vec::new(),
        })
    }

    /// What has passed through it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// `struct virtio_net_config` up to `mtu` (§5.1.4).
    fn config(&self) -> [u8; 12] {
        let link = if self.link_up.load(Ordering::SeqCst) {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        // At most MAX_PAIRS.
        let pairs = u16::try_from(self.taps.len()).unwrap_or(u16::MAX);
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&link.to_le_bytes()[..2]);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }

    /// The most that buffers for one received frame must hold.
    fn largest_frame(&self, offloads: Offloads) -> usize {
        if offloads.segmentation() {
            return MAX_FRAME;
        }
        HEADER_SIZE + LINK_HEADER_SIZE + usize::from(self.mtu.max(DEFAULT_MTU))
    }

    /// Starts a worker for each pair that the driver has set up.
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let mut queues = Queues::new(activation.queues, features, self.taps.len())?;
        let offloads = Offloads::from_bits(features);
        self.taps[0]
            .set_offloads(offloads)
            .map_err(host("set the tap's offloads"))?;
        let steering = Steering::new(self.taps.clone(), queues.usable());
        let shared = Arc::new(Shared {
            memory: activation.memory,
            interrupt: activation.interrupt,
            steering: steering.map_err(host("set the tap's queues"))?,
            counters: Arc::clone(&self.counters),
            link_up: Arc::clone(&self.link_up),
        });
        let event_idx = has(features, VIRTIO_RING_F_EVENT_IDX);
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        let largest = self.largest_frame(offloads);
        let mut control = queues.control.take().map(|(index, active)| Side {
            work: Some(Control::new(Ring::new(active.queue, event_idx), features)),
            kick: active.kick,
            index,
        });
        for (pair, (receive, transmit)) in (0..).zip(queues.pairs) {
            let worker = Worker::new(
                Arc::clone(&shared),
                pair,
                Side {
                    work: Some(Receiver::new(
                        Ring::new(receive.queue, event_idx),
                        mergeable,
                        largest,
                    )),
                    kick: receive.kick,
                    index: 2 * pair,
                },
                Side {
                    work: Some(Transmitter::new(Ring::new(transmit.queue, event_idx))),
                    kick: transmit.kick,
                    index: 2 * pair + 1,
                },
                control.take(),
            );
            let thread =
                WorkerThread::spawn(&format!("net-pair{pair}"), move |stop| worker.run(&stop));
            self.workers
                .push(thread.map_err(host("start a NIC's thread"))?);
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !self.workers.is_empty() {
            return Err(ActivateError::NoBackend);
        }
        let started = self.start(activation);
        if started.is_err() {
            self.workers.clear();
        }
        started
    }

    fn reset(&mut self) {
        self.workers.clear();
        self.link_up.store(true, Ordering::SeqCst);
        // The next driver may accept fewer offloads than the frames that still wait for this one make use of.
        if let Err(error) = self.taps[0].set_offloads(Offloads::default()) {
            tracing::warn!(%error, "cannot reset the tap's offloads");
        }
        for tap in &self.taps {
            tap.discard_queued();
        }
    }
}

/// The queues that the driver has set up. Pairs come first, then the control queue (§5.1.2).
struct Queues {
    pairs: Vec<(ActiveQueue, ActiveQueue)>,
    /// With its index.
    control: Option<(u16, ActiveQueue)>,
}

impl Queues {
    /// Sorts the queues. Without VIRTIO_NET_F_MQ there is one pair, and the control queue comes right after it.
    fn new(queues: Vec<ActiveQueue>, features: u64, pairs: usize) -> Result<Self, ActivateError> {
        let pairs = if has(features, VIRTIO_NET_F_MQ) {
            pairs
        } else {
            1
        };
        let mut queues = queues
            .into_iter()
            .map(|active| active.queue.ready().then_some(active));
        let mut set_up = Vec::with_capacity(pairs);
        let mut complete = true;
        for _ in 0..pairs {
            let pair = (queues.next().flatten(), queues.next().flatten());
            match pair {
                (Some(receive), Some(transmit)) if complete => set_up.push((receive, transmit)),
                (None, _) if set_up.is_empty() && complete => {
                    return Err(ActivateError::QueueNotReady(0));
                }
                (_, None) if set_up.is_empty() && complete => {
                    return Err(ActivateError::QueueNotReady(1));
                }
                _ => complete = false,
            }
        }
        let control = queues
            .next()
            .flatten()
            .filter(|_| has(features, VIRTIO_NET_F_CTRL_VQ));
        let index = u16::try_from(2 * pairs).unwrap_or(u16::MAX);
        Ok(Self {
            pairs: set_up,
            control: control.map(|active| (index, active)),
        })
    }

    fn usable(&self) -> u16 {
        u16::try_from(self.pairs.len()).unwrap_or(u16::MAX)
    }
}

fn offered_features(mtu: bool, several_pairs: bool, uso: bool) -> u64 {
    let always = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
    ];
    let sometimes = [
        (VIRTIO_NET_F_MTU, mtu),
        (VIRTIO_NET_F_MQ, several_pairs),
        (VIRTIO_NET_F_GUEST_USO4, uso),
        (VIRTIO_NET_F_GUEST_USO6, uso),
        (VIRTIO_NET_F_HOST_USO, uso),
    ];
    let sometimes = sometimes.into_iter().filter(|(_, offered)| *offered);
    let bits = always.into_iter().chain(sometimes.map(|(bit, _)| bit));
    bits.fold(0, |features, bit| features | 1 << bit)
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

fn host(operation: &'static str) -> impl Fn(io::Error) -> ActivateError {
    move |source| ActivateError::Host { operation, source }
}
