//! What the driver of a NIC negotiates: features, the configuration space (§5.1.4) and the number of pairs of queues.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hull_vmm_protocol::config::RateLimit;
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
use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend as _, Offloads};
use super::control::Control;
use super::counters::Counters;
use super::rate::Rate;
use super::receive::Receiver;
use super::steering::Steering;
use super::tap::{Tap, TapError};
use super::transmit::Transmitter;
use super::vhost::{VhostError, VhostPairs};
use super::worker::{ControlSide, Shared, Side, Worker};
use super::{HEADER_SIZE, LINK_HEADER_SIZE, MAX_FRAME};
use crate::devices::virtio::device::{
    ActivateError, Activation, ActiveQueue, DeviceType, VirtioDevice,
};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;
use crate::memory::SharedMemory;

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
    /// vhost-net serves one pair with each descriptor.
    #[error("{vhosts} descriptors of vhost-net came for {pairs} pairs of queues")]
    VhostPairs {
        /// Pairs of queues.
        pairs: usize,
        /// Descriptors of vhost-net.
        vhosts: usize,
    },
    /// The kernel's mover of packets knows no bounds.
    #[error("a NIC with a rate limit cannot have vhost-net")]
    VhostWithLimit,
    /// vhost-net does not serve.
    #[error("vhost-net does not serve")]
    Vhost(#[from] VhostError),
}

/// Bounds on what passes through a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// On what the guest receives.
    pub receive: Option<RateLimit>,
    /// On what the guest sends.
    pub send: Option<RateLimit>,
}

/// A NIC.
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    taps: Vec<Arc<Tap>>,
    /// The kernel's side of the pairs, if it serves them.
    vhost: Option<VhostPairs>,
    limits: Limits,
    counters: Arc<Counters>,
    link_up: Arc<AtomicBool>,
    /// Of each pair; only of the control queue, if there is one, where the kernel serves the pairs.
    workers: Vec<WorkerThread<()>>,
    active: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Net")
            .field("mac", &self.mac)
            .field("taps", &self.taps)
            .field("vhost", &self.vhost.is_some())
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
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
            vhost: None,
            limits: Limits::default(),
            counters: Arc::default(),
            link_up: Arc::new(AtomicBool::new(true)),
            workers: Vec::new(),
            active: false,
        })
    }

    /// The same with bounds on what passes, which the VMM's workers keep.
    ///
    /// # Errors
    /// vhost-net serves it.
    pub fn with_limits(mut self, limits: Limits) -> Result<Self, NetError> {
        self.limits = limits;
        self.checked()
    }

    /// The same with pairs that the host's kernel serves: descriptors of `/dev/vhost-net`, one for each.
    ///
    /// # Errors
    /// Their number is wrong, the host refuses, or there are limits.
    pub fn with_vhost(mut self, fds: Vec<OwnedFd>) -> Result<Self, NetError> {
        if fds.len() != self.taps.len() {
            return Err(NetError::VhostPairs {
                pairs: self.taps.len(),
                vhosts: fds.len(),
            });
        }
        let vhost = VhostPairs::adopt(fds)?;
        self.taps[0].lift_send_bound()?;
        self.features = vhost.restrict(self.features);
        self.vhost = Some(vhost);
        self.checked()
    }

    fn checked(self) -> Result<Self, NetError> {
        if self.vhost.is_some() && self.limits != Limits::default() {
            return Err(NetError::VhostWithLimit);
        }
        Ok(self)
    }

    /// The number of its pairs of queues.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        // At most MAX_PAIRS.
        u16::try_from(self.taps.len()).unwrap_or(u16::MAX)
    }

    /// What the VMM has seen pass through it: nothing, ever, where the host's kernel serves the pairs.
    #[must_use]
    pub fn counters(&self) -> Option<Arc<Counters>> {
        let counted = self.vhost.is_none();
        counted.then(|| Arc::clone(&self.counters))
    }

    /// The most that buffers for one received frame must hold.
    fn largest_frame(&self, offloads: Offloads) -> usize {
        if offloads.segmentation() {
            return MAX_FRAME;
        }
        HEADER_SIZE + LINK_HEADER_SIZE + usize::from(self.mtu.max(DEFAULT_MTU))
    }

    /// Puts the pairs that the driver has set up to work.
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let Queues { pairs, control } = Queues::new(activation.queues, features, self.taps.len())?;
        self.taps[0]
            .set_offloads(Offloads::from_bits(features))
            .map_err(host("set the tap's offloads"))?;
        let usable = u16::try_from(pairs.len()).unwrap_or(u16::MAX);
        let steering = Steering::new(self.taps.clone(), usable);
        let steering = Arc::new(steering.map_err(host("set the tap's queues"))?);
        let event_idx = has(features, VIRTIO_RING_F_EVENT_IDX);
        let control = control.map(|(index, active)| Side {
            work: Some(QueueService::new(
                Ring::new(active.queue, event_idx),
                index,
                Arc::clone(&activation.interrupt),
                Control::new(Arc::clone(&steering), features),
            )),
            kick: active.kick,
            index,
        });
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        if let Some(vhost) = &mut self.vhost {
            vhost
                .start(&memory.memory(), features, &pairs, interrupt, &self.taps)
                .map_err(|error| ActivateError::Backend(Box::new(error)))?;
            return control.map_or(Ok(()), |control| self.start_control(memory, control));
        }
        let shared = Arc::new(Shared {
            memory,
            interrupt,
            steering,
            counters: Arc::clone(&self.counters),
            receive_rate: Rate::new(self.limits.receive, Instant::now()),
            send_rate: Rate::new(self.limits.send, Instant::now()),
            link_up: Arc::clone(&self.link_up),
        });
        self.start_pairs(&shared, features, pairs, control)
    }

    /// Starts a worker for each pair; that of the first also serves the control queue.
    fn start_pairs(
        &mut self,
        shared: &Arc<Shared<Tap>>,
        features: u64,
        pairs: Vec<[ActiveQueue; 2]>,
        mut control: Option<ControlSide<Tap>>,
    ) -> Result<(), ActivateError> {
        let event_idx = has(features, VIRTIO_RING_F_EVENT_IDX);
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        let largest = self.largest_frame(Offloads::from_bits(features));
        for (pair, [receive, transmit]) in (0..).zip(pairs) {
            let worker = Worker::new(
                Arc::clone(shared),
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
            self.spawn(&format!("net-pair{pair}"), move |stop| worker.run(&stop))?;
        }
        Ok(())
    }

    /// Starts a worker for the control queue alone.
    fn start_control(
        &mut self,
        memory: SharedMemory,
        control: ControlSide<Tap>,
    ) -> Result<(), ActivateError> {
        let Side { work, kick, .. } = control;
        let Some(mut service) = work else {
            return Ok(());
        };
        self.spawn("net-control", move |stop| {
            if let Err(error) = service.run(&memory, &kick, &stop) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a NIC takes no commands until the driver resets it");
            }
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(EventFd) + Send + 'static,
    ) -> Result<(), ActivateError> {
        let thread = WorkerThread::spawn(name, work).map_err(host("start a NIC's thread"))?;
        self.workers.push(thread);
        Ok(())
    }

    /// Stops all that works on the queues.
    fn stop(&mut self) {
        self.workers.clear();
        if let Some(vhost) = &mut self.vhost {
            vhost.stop();
        }
        self.active = false;
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

    /// `struct virtio_net_config` up to `mtu` (§5.1.4).
    fn config(&self) -> Vec<u8> {
        let link = if self.link_up.load(Ordering::SeqCst) {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        [
            &self.mac[..],
            &link.to_le_bytes()[..2],
            &self.pairs().to_le_bytes(),
            &self.mtu.to_le_bytes(),
        ]
        .concat()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.active {
            return Err(ActivateError::NoBackend);
        }
        let started = self.start(activation);
        match &started {
            Ok(()) => self.active = true,
            Err(_) => self.stop(),
        }
        started
    }

    fn vectors_changed(&mut self) {
        if let Some(vhost) = &self.vhost {
            vhost.follow_vectors();
        }
    }

    fn reset(&mut self) {
        self.stop();
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
    /// Receive and transmit queue.
    pairs: Vec<[ActiveQueue; 2]>,
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
                (Some(receive), Some(transmit)) if complete => set_up.push([receive, transmit]),
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
