//! Interrupts by message. Each vector has an eventfd and, once it is connected, a number of its own (GSI) in KVM's
//! routing table, which the kernel takes as a whole (`KVM_SET_GSI_ROUTING`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::pci::host::{MsiMessage, MsiVector};

/// Inputs of the IOAPIC; messages have numbers from here on.
const IOAPIC_PINS: u32 = 24;
const PIC_PINS: u32 = 8;
/// The most numbers that are given: `KVM_MAX_IRQ_ROUTES` less the wired routes, with room to spare.
const LAST_GSI: u32 = 4000;

/// The routing table of a machine.
pub struct Routes {
    fd: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    used: BTreeSet<u32>,
    messages: BTreeMap<u32, MsiMessage>,
}

impl Routes {
    pub(super) fn new(fd: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            fd,
            table: Mutex::default(),
        })
    }

    /// A new vector, not connected.
    ///
    /// # Errors
    /// No number or no descriptor is left.
    pub fn vector(self: &Arc<Self>) -> io::Result<RoutedVector> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut table = self.lock();
        let gsi = (IOAPIC_PINS..=LAST_GSI)
            .find(|gsi| !table.used.contains(gsi))
            .ok_or(io::ErrorKind::StorageFull)?;
        table.used.insert(gsi);
        Ok(RoutedVector {
            routes: self.clone(),
            gsi,
            event,
        })
    }

    /// Gives KVM the table with `message` for `gsi` in it.
    fn set(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut table = self.lock();
        let before = table.messages.insert(gsi, message);
        if before == Some(message) {
            return Ok(());
        }
        let result = self.write(&table.messages);
        if result.is_err() {
            match before {
                Some(before) => table.messages.insert(gsi, before),
                None => table.messages.remove(&gsi),
            };
        }
        result
    }

    fn write(&self, messages: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let mut entries = wired();
        entries.extend(messages.iter().map(|(gsi, message)| route(*gsi, *message)));
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::StorageFull)?;
        Ok(self.fd.set_gsi_routing(&routing)?)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes of the wired interrupts, as KVM has them before its table is set: to the PICs and to the IOAPIC.
fn wired() -> Vec<kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..kvm_irq_routing_entry::default()
    };
    let ioapic = (0..IOAPIC_PINS).map(|pin| entry(pin, KVM_IRQCHIP_IOAPIC, pin));
    let master = (0..PIC_PINS).map(|pin| entry(pin, KVM_IRQCHIP_PIC_MASTER, pin));
    let slave = (0..PIC_PINS).map(|pin| entry(PIC_PINS + pin, KVM_IRQCHIP_PIC_SLAVE, pin));
    ioapic.chain(master).chain(slave).collect()
}

fn route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..kvm_irq_routing_msi::default()
            },
        },
        ..kvm_irq_routing_entry::default()
    }
}

/// A vector and its number.
pub struct RoutedVector {
    routes: Arc<Routes>,
    gsi: u32,
    event: EventFd,
}

impl MsiVector for RoutedVector {
    fn connect(&self, message: MsiMessage) -> io::Result<()> {
        self.routes.set(self.gsi, message)?;
        Ok(self.routes.fd.register_irqfd(&self.event, self.gsi)?)
    }

    /// The route stays: nothing signals it, and the next connection most often has the same message.
    fn disconnect(&self) -> io::Result<()> {
        Ok(self.routes.fd.unregister_irqfd(&self.event, self.gsi)?)
    }

    fn eventfd(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for RoutedVector {
    fn drop(&mut self) {
        let mut table = self.routes.lock();
        table.messages.remove(&self.gsi);
        table.used.remove(&self.gsi);
    }
}
